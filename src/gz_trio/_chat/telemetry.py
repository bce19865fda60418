"""What is told of a reply: a span, one more for each attempt, metrics and log records.

Names are those of OpenTelemetry's generative-AI conventions, and `gz_trio.` for what they do not
know. The same names are the extra fields of the log records (`gz_trio.reply`). Never told: what
was asked and answered, and keys.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from functools import lru_cache
from itertools import count
from typing import cast
from urllib.parse import urlsplit

import msgspec
import trio

from .. import _telemetry as telemetry
from .._protocol import lenient_json
from .._protocol.apis import CHAT, MESSAGES, Api
from .._protocol.events import Paused, RateLimited, Restarted, Resumed, Usage
from .._telemetry import Attributes, Span
from .attempts import Attempt, Timing

_log = logging.getLogger("gz_trio.reply")
_reply_ids = count(1)

# The conventions' names for providers whose own API this is. Anybody else's gateway speaks
# OpenAI's format, and the attribute names the format, whoever answers in the end.
_PROVIDERS = {
    "api.anthropic.com": "anthropic",
    "api.cohere.ai": "cohere",
    "api.deepseek.com": "deepseek",
    "api.groq.com": "groq",
    "api.mistral.ai": "mistral_ai",
    "api.moonshot.ai": "moonshot_ai",
    "api.perplexity.ai": "perplexity",
    "api.x.ai": "x_ai",
    "generativelanguage.googleapis.com": "gcp.gemini",
}
_AZURE = ".openai.azure.com"

# Fields of a chat-completions request, the conventions' names for them, and their type.
_REQUEST_FIELDS: tuple[tuple[str, str, type[int | float]], ...] = (
    ("max_tokens", "gen_ai.request.max_tokens", int),
    ("max_completion_tokens", "gen_ai.request.max_tokens", int),
    ("max_output_tokens", "gen_ai.request.max_tokens", int),
    ("temperature", "gen_ai.request.temperature", float),
    ("top_p", "gen_ai.request.top_p", float),
    ("top_k", "gen_ai.request.top_k", float),
    ("frequency_penalty", "gen_ai.request.frequency_penalty", float),
    ("presence_penalty", "gen_ai.request.presence_penalty", float),
    ("seed", "gen_ai.request.seed", int),
)
_REQUEST_FIELD_NAMES = frozenset(field for field, *_ in _REQUEST_FIELDS)
_OUTPUT_TYPES = {"text": "text", "json_object": "json", "json_schema": "json"}


class ReplyTelemetry:
    """Tells of one reply. Made in its reader's task: what is current there, the span is part of.

    All else is called by the task that receives. Nothing is called for each token.

    Args:
        body: The request's.
        origin: Where it is sent to, as `"https://host"`.
        api: Which API it is of.
    """

    __slots__ = (
        "_answer", "_api", "_attempt_answer", "_attempt_span", "_attempts", "_ended", "_id",
        "_model", "_origin", "_pause", "_span", "_status",
    )  # fmt: skip

    def __init__(self, body: Mapping[str, object], origin: str, api: Api = CHAT) -> None:
        self._api = api
        model = body.get("model")
        self._model = model if isinstance(model, str) else None
        self._origin = origin
        self._id = next(_reply_ids)
        name = "chat" if self._model is None else f"chat {self._model}"
        known = {} if telemetry.api is None else {**self._fields(), **_request(body)}
        self._span = telemetry.start_span(name, known, client=True)
        self._attempts = 0
        self._attempt_span: Span | None = None  # There, while an attempt is under way.
        self._status: int | None = None
        self._attempt_answer = _NO_ANSWER
        self._answer = _NO_ANSWER
        self._pause: tuple[str, float] | None = None
        self._ended = False
        self._log(logging.DEBUG, "gz_trio.reply.started", {}, "a reply begins")

    # Dictionaries are made when they are told, not kept: most are told to nobody.

    def _labels(self) -> dict[str, str | int]:
        labels: dict[str, str | int] = {"gen_ai.operation.name": "chat", **_server(self._origin)}
        if self._api is MESSAGES:
            labels["gen_ai.provider.name"] = "anthropic"
        if self._model is not None:
            labels["gen_ai.request.model"] = self._model
        return labels

    def _fields(self) -> dict[str, str | int]:
        return {"gz_trio.reply.id": self._id, **self._labels()}

    def _about_attempt(self, attempt: Attempt) -> dict[str, str | int]:
        return {
            "gz_trio.attempt.number": self._attempts,
            "gz_trio.key.generation": attempt.generation,
        }

    def receiving(self) -> AbstractContextManager[object]:
        """Around all that the receiving task does: a refresh, say, is part of the reply."""
        return self._span.current()

    def begin_attempt(self, attempt: Attempt) -> AbstractContextManager[object]:
        """An attempt begins; give it back to `end_attempt`. Be in the context while it is sent."""
        self._attempts += 1
        self._status = None
        self._attempt_answer = _NO_ANSWER
        about, span = self._about_attempt(attempt), self._span
        if span is not telemetry.NO_SPAN:
            server = _server(self._origin)
            where = {name: server[name] for name in ("server.address", "server.port")}
            span = telemetry.start_span("gz_trio.attempt", {**where, **about}, client=True)
        self._attempt_span = span
        message = "attempt %d begins"
        self._log(logging.DEBUG, "gz_trio.attempt.started", about, message, self._attempts)
        return span.current()

    def end_attempt(self, attempt: Attempt, *, left: bool = False) -> None:
        """It is over: by `attempt.cause`, or because the reader `left`, or complete."""
        span, self._attempt_span = self._attempt_span, None
        if span is not None:
            # Whoever leaves behind the end of the reply has missed nothing.
            self._tell_attempt(span, attempt, left=left and not self._ended)

    def _tell_attempt(self, span: Span, attempt: Attempt, *, left: bool) -> None:
        error = attempt.cause
        if error is None and self._unheard():
            return
        about = self._about_attempt(attempt)
        if self._status is not None:
            about["http.response.status_code"] = self._status
        about |= self._attempt_answer.told()
        outcome = "failed" if error is not None else "left" if left else "complete"
        about["gz_trio.outcome"] = outcome
        about["gz_trio.attempt.tokens"] = attempt.tokens
        if attempt.resumed_by is not None:
            about["gz_trio.attempt.resumed_by"] = attempt.resumed_by
            about["gz_trio.attempt.repeated"] = attempt.repeated
        span.set(about)
        span.end(error)
        event = "gz_trio.attempt.ended"
        if error is None:
            self._log(logging.DEBUG, event, about, "attempt %d: %s", self._attempts, outcome)
        else:
            why = telemetry.error_type(error)
            fields = {**about, "error.type": why}
            message = "attempt %d failed: %s"
            self._log(logging.INFO, event, fields, message, self._attempts, why)

    def headers(self) -> dict[str, str]:
        """What the attempt's request carries beside its own headers, so that traces join."""
        return {} if self._attempt_span is None else self._attempt_span.headers()

    def responded(self, status: int) -> None:
        """The head of the attempt's response has come."""
        self._status = status

    def answered(self, data: bytes) -> None:
        """The attempt's answer has begun with `data`: an event's, or a whole completion."""
        with suppress(*lenient_json.MSGSPEC_ERRORS):
            sent = _decode_sent(data)
            whole = sent.response or sent.message
            named = lenient_json.as_object(whole) or {"id": sent.id, "model": sent.model}
            answer = self._answer = self._attempt_answer = _Answer(
                named.get("id"), named.get("model")
            )
            if isinstance(answer.model, str):
                answer.model = sys.intern(answer.model)  # One for all streams.

    def first_token(self, seconds: float) -> None:
        """The reply's first text, reasoning or tool call has come, so long after its start."""
        told = {"gen_ai.response.time_to_first_chunk": seconds}
        self._span.set(told)
        message = "the first token came after %.3f s"
        self._log(logging.DEBUG, "gz_trio.first_token", told, message, seconds)

    def announced(self, event: Paused | RateLimited | Resumed | Restarted) -> None:
        """The reader is told of this."""
        told: dict[str, str | float] = {}
        match event:
            case Paused(reason):
                self._pause = self._pause or (reason, trio.current_time())
                name, message = "gz_trio.paused", f"paused: {reason}"
                told["gz_trio.pause.reason"] = reason
            case RateLimited(wait):
                self._pause = self._pause or ("rate_limit", trio.current_time())
                name, message = "gz_trio.paused", f"paused: rate limit, {wait:.3f} s"
                told |= {"gz_trio.pause.reason": "rate_limit", "gz_trio.pause.wait": wait}
            case Resumed():
                seconds = self._end_pause()
                name, message = "gz_trio.resumed", f"goes on after {seconds:.3f} s"
                told["gz_trio.pause.duration"] = seconds
            case Restarted():
                name = "gz_trio.restarted"
                message = "the second answer is another one: the text starts anew"
        self._span.event(name, told)
        self._log(logging.INFO, name, told, message)

    def ended(
        self,
        error: BaseException | None,
        timing: Timing,
        *,
        finish_reasons: Sequence[str] = (),
        usage: Usage | None = None,
    ) -> None:
        """The end; the first call counts.

        Args:
            error: `None` where the reply is complete, `trio.ClosedResourceError` where its reader
                has left, else why it failed.
            timing: The reply's, with its end.
            finish_reasons: Of each choice that has one.
            usage: What the server said.
        """
        if self._ended:
            return
        self._ended = True
        outcome = "complete" if error is None else "failed"
        if isinstance(error, trio.ClosedResourceError):
            error, outcome = None, "left"
        self._end_pause()
        self._measure(error, timing, outcome, usage)
        if error is None and self._unheard():
            return
        told: dict[str, str | int | float | Sequence[str]] = {
            "gz_trio.outcome": outcome,
            "gz_trio.reply.attempts": self._attempts,
            "gz_trio.reply.paused": timing.paused,
            **self._answer.told(),
            **_usage(usage),
        }
        if timing.between_tokens is not None and timing.longest_gap is not None:
            told["gz_trio.reply.between_tokens"] = timing.between_tokens
            told["gz_trio.reply.longest_gap"] = timing.longest_gap
        if finish_reasons:
            told["gen_ai.response.finish_reasons"] = tuple(finish_reasons)
        self._span.set(told)
        self._log_end(error, timing, told)
        self._span.end(error)

    def _measure(
        self, error: BaseException | None, timing: Timing, outcome: str, usage: Usage | None
    ) -> None:
        if telemetry.api is None:
            return
        labels = self._labels()
        answered_by = self._answer.told().get("gen_ai.response.model")
        if answered_by is not None:
            labels["gen_ai.response.model"] = answered_by
        ended = {**labels, "gz_trio.outcome": outcome, **_failure(error)}
        telemetry.record(telemetry.OPERATION_DURATION, timing.ended or 0.0, ended)
        if timing.first_token is not None:
            telemetry.record(telemetry.TIME_TO_FIRST_CHUNK, timing.first_token, labels)
        if usage is not None:
            for kind, tokens in (
                ("input", usage.prompt_tokens),
                ("output", usage.completion_tokens),
            ):
                spent = {**labels, "gen_ai.token.type": kind}
                telemetry.record(telemetry.TOKEN_USAGE, tokens, spent)

    def _log_end(self, error: BaseException | None, timing: Timing, told: Attributes) -> None:
        event, values = "gz_trio.reply.ended", (timing.ended or 0.0, self._attempts)
        if error is None:
            message = f"{told['gz_trio.outcome']} after %.3f s, attempts: %d"
            self._log(logging.DEBUG, event, told, message, *values)
            return
        # The reader gets the error. A warning is due where an answer that had begun is lost.
        level = logging.INFO if timing.first_token is None else logging.WARNING
        why = telemetry.safe_message(error) or telemetry.error_type(error)
        message = "failed after %.3f s, attempts: %d: %s"
        self._log(level, event, {**told, **_failure(error)}, message, *values, why)

    def _end_pause(self) -> float:
        """How long the reply was paused until now, in seconds."""
        if self._pause is None:
            return 0.0
        (reason, since), self._pause = self._pause, None
        seconds = trio.current_time() - since
        labels = {**self._labels(), "gz_trio.pause.reason": reason}
        telemetry.record(telemetry.PAUSE_DURATION, seconds, labels)
        return seconds

    def _unheard(self) -> bool:
        """Whether what goes as it should is told to nobody."""
        return self._span is telemetry.NO_SPAN and not _log.isEnabledFor(logging.DEBUG)

    def _log(
        self, level: int, event: str, attributes: Attributes, message: str, *values: object
    ) -> None:
        if _log.isEnabledFor(level):
            telemetry.log(_log, level, event, {**self._fields(), **attributes}, message, *values)


class _Answer(msgspec.Struct, gc=False):
    """What an event says of the whole answer."""

    id: object = None
    model: object = None

    def told(self) -> dict[str, str]:
        named = (("gen_ai.response.id", self.id), ("gen_ai.response.model", self.model))
        return {name: value for name, value in named if isinstance(value, str) and value}


class _Sent(msgspec.Struct, gc=False):
    """An answer's first event: of chat completions; of the others the answer is within."""

    id: object = None
    model: object = None
    response: object = None
    message: object = None


_NO_ANSWER = _Answer()
_decode_sent = msgspec.json.Decoder(_Sent).decode


@lru_cache
def _server(origin: str) -> dict[str, str | int]:
    url = urlsplit(origin)
    host = url.hostname or ""
    azure = host.endswith(_AZURE)
    return {
        "gen_ai.provider.name": "azure.ai.openai" if azure else _PROVIDERS.get(host, "openai"),
        "server.address": host,
        "server.port": url.port or (443 if url.scheme == "https" else 80),
    }


def _request(body: Mapping[str, object]) -> dict[str, str | bool | int | float | Sequence[str]]:
    """The parameters of a request; none of its text."""
    found: dict[str, str | bool | int | float | Sequence[str]] = {"gen_ai.request.stream": True}
    for field, name, kind in () if _REQUEST_FIELD_NAMES.isdisjoint(body) else _REQUEST_FIELDS:
        value = body.get(field)
        if isinstance(value, bool) or not isinstance(value, int | kind):
            continue
        if abs(value) < 2**63:  # Beyond that, none that a span can hold.
            found[name] = kind(value)
    choices = body.get("n")
    if isinstance(choices, int) and choices != 1:
        found["gen_ai.request.choice.count"] = choices
    stop = body.get("stop", body.get("stop_sequences"))
    if isinstance(stop, str):
        found["gen_ai.request.stop_sequences"] = (stop,)
    elif isinstance(stop, list | tuple):
        sequences = cast("Sequence[object]", stop)
        found["gen_ai.request.stop_sequences"] = tuple(str(each) for each in sequences)
    output = lenient_json.as_object(body.get("response_format")) or {}
    kind_of_output = _OUTPUT_TYPES.get(str(output.get("type")))
    if kind_of_output is not None:
        found["gen_ai.output.type"] = kind_of_output
    return found


def _usage(usage: Usage | None) -> dict[str, int]:
    if usage is None:
        return {}
    found = {
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
    }
    for details, field, name in (
        ("prompt_tokens_details", "cached_tokens", "gen_ai.usage.cache_read.input_tokens"),
        ("input_tokens_details", "cached_tokens", "gen_ai.usage.cache_read.input_tokens"),
        ("", "cache_read_input_tokens", "gen_ai.usage.cache_read.input_tokens"),
        (
            "completion_tokens_details",
            "reasoning_tokens",
            "gen_ai.usage.reasoning.output_tokens",
        ),
        ("output_tokens_details", "reasoning_tokens", "gen_ai.usage.reasoning.output_tokens"),
    ):
        within = lenient_json.as_object(usage.raw.get(details)) or {} if details else usage.raw
        tokens = within.get(field)
        if isinstance(tokens, int):
            found[name] = tokens
    return found


def _failure(error: BaseException | None) -> dict[str, str]:
    return {} if error is None else {"error.type": telemetry.error_type(error)}
