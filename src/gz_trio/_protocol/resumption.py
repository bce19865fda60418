"""How one reply goes on after it broke: the next request, and what its answer is to the reader.

The ways, in the order in which they are tried (design section 4): by the cursor, by having the
model continue, by replay. A way that the server refuses is not tried again in the same reply.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn, cast
from urllib.parse import quote

import msgspec

from . import lenient_json
from .apis import CHAT, RESPONSES, Api
from .cursor import Cursor, Place
from .decoding import DONE, Decoder, Item
from .errors import (
    AuthenticationError,
    BadRequestError,
    GatewayError,
    NotFoundError,
    RateLimitError,
)
from .events import Delta, RawEvent, Restarted
from .relaying import Identities, Relaying
from .resume import Delivered, Diverged
from .settings import ResumePolicy
from .sse import ServerSentEvent

Way = Literal["cursor", "continue", "replay"]

# In a request, these ask for more than a text, or for one that a grammar governs from its begin.
_NOT_JUST_TEXT = (
    "logprobs", "top_logprobs", "structured_outputs",
    "guided_json", "guided_regex", "guided_choice", "guided_grammar",
    "regex", "ebnf", "json_schema",
)  # fmt: skip
_OUTPUT_LIMITS = (("max_tokens", 1), ("max_completion_tokens", 1), ("min_tokens", 0))


class CannotResume(Exception):
    """None of the ways is left; the message says why, for a person."""


class StartedOver(Exception):
    """The server did not clearly go on where it was asked to: better to ask in another way."""


@dataclass(frozen=True, slots=True)
class NextRequest:
    """What to send.

    Args:
        way: How it takes the reply up; `None` where nothing was delivered yet.
        method: The HTTP method.
        path: What follows the base URL.
        content: The body.
        headers: Beside the usual ones.
    """

    way: Way | None
    method: Literal["GET", "POST"]
    path: str
    content: bytes
    headers: Mapping[str, str]


class Resumption:
    """The requests of one reply, and the place of their answers in it.

    For each attempt: `next_request`; `begin` with each event until one begins the answer; for that
    event and those behind it `is_repeat`, `decoder` and, for what it decodes, `new_parts` and
    `new_event`; `passed`.

    >>> resumption = Resumption({"model": "m", "messages": []}, ResumePolicy())
    >>> request = resumption.next_request()
    >>> request.way, request.path, request.content
    (None, '/chat/completions', b'{"model":"m","messages":[]}')
    >>> event = ServerSentEvent("message", b'{"choices":[{"delta":{"content":"Once"}}]}')
    >>> resumption.begin(event)
    True
    >>> [part.text for item in resumption.decoder.decode(event)
    ...  for part in resumption.new_parts(item)]
    ['Once']
    >>> resumption.next_request().way
    'replay'

    Args:
        body: The request's body.
        policy: Which ways there are.
        api: Which API is asked.

    Raises:
        TypeError: `body` holds something that JSON cannot.
    """

    __slots__ = (
        "_began_before", "_content", "_cursor", "_delivered", "_is_continuation", "_is_kept",
        "_kept_decoder", "_last_id", "_last_was_repeat", "_policy", "_refused", "_relaying",
        "_repeated", "_suspected", "_taken_up_after", "_tokens", "_unconfirmed", "api", "begun",
        "decoder", "open_text", "way",
    )  # fmt: skip

    def __init__(self, body: Mapping[str, object], policy: ResumePolicy, api: Api = CHAT) -> None:
        self._content = msgspec.json.encode(body)
        self._policy = policy
        self.api = api
        # Whether the server runs the answer and keeps it, whoever listens.
        self._is_kept = (
            api is RESPONSES and body.get("background") is True and body.get("store") is not False
        )
        self._delivered = Delivered()
        # A first answer is handed on as it comes, unless there are events to remember.
        self._relaying = None if api.mark is None else self._new_relaying()
        self._began_before = False
        self._cursor: Cursor = api.make_cursor()
        self._refused: tuple[Way, ...] = ()
        self._is_continuation = False
        self._repeated: list[Delta] | None = None
        self._tokens = 0  # That the reader has, about: the deltas with text or reasoning.
        self.open_text: list[str] | None = None
        """The first choice's text, where more of it may simply be added by `append`.

        That is the usual case, which has to be fast; else see `new_parts`.
        """
        # Of the attempt
        self.way: Way | None = None
        self.begun = False
        self.decoder: Decoder = api.make_decoder()
        # Of the answer that the cursor is in, over all attempts that took it up.
        self._kept_decoder: Decoder = self.decoder
        self._taken_up_after: str | None = None
        self._last_id: str | None = None
        self._last_was_repeat = False
        self._suspected: list[Delta] | None = None
        self._unconfirmed: list[ServerSentEvent] | None = None

    def _new_relaying(self) -> Relaying:
        identities = Identities() if self.api is RESPONSES else None
        return Relaying(self.api.retell, self.api.mark, self._delivered.is_new, identities)

    @property
    def renamed(self) -> Mapping[str, str]:
        """By the ids that the reader was told in `raw`, those that the server knows instead."""
        return {} if self._relaying is None else self._relaying.renamed

    # What the reader has

    @property
    def content(self) -> bool:
        """Whether text, reasoning or a tool call was delivered."""
        return self._delivered.content

    @property
    def finish_reason(self) -> str | None:
        """The finish reason of the first choice, or of the first one that has one."""
        return next(iter(self._delivered.finish_reasons), None)

    @property
    def finish_reasons(self) -> list[str]:
        """The finish reason of each choice that has one, in the choices' order."""
        return self._delivered.finish_reasons

    @property
    def repeated(self) -> int:
        """How many characters came once more, over all attempts."""
        return self._delivered.repeated

    # Requests

    def next_request(self) -> NextRequest:
        """What the next attempt sends.

        Raises:
            CannotResume: There is nothing that it may send.
        """
        self.begun = False
        self.decoder = self.api.make_decoder()
        self.open_text = None
        self._suspected = None
        self._unconfirmed = None
        content = self._content
        taken_up = self._taken_up()
        if taken_up is not None:
            self.way = "cursor"
            return taken_up
        if (continued := self._continued()) is not None:
            self.way = "continue"
            content = msgspec.json.encode(continued)
        else:
            self._check_replay()
            self.way = "replay" if self._delivered.content else None
        return NextRequest(self.way, "POST", self.api.path, content, self.api.headers)

    def _taken_up(self) -> NextRequest | None:
        """The request for the rest of a stream that the server keeps, if it is known to."""
        last, api = self._cursor.last_event_id, self.api
        if last is None or "cursor" in self._refused:
            return None
        if api is not RESPONSES:
            headers = {**api.headers, "Last-Event-ID": last}
            return NextRequest("cursor", "POST", api.path, self._content, headers)
        response_id = self._kept_decoder.response_id
        if response_id is None or not self._is_kept:
            return None
        path = f"{api.path}/{quote(response_id, safe='')}?stream=true&starting_after={last}"
        return NextRequest("cursor", "GET", path, b"", api.headers)

    @property
    def cancel_path(self) -> str | None:
        """Where the answer that the server runs on its own is ended; `None` if it has ended."""
        decoder = self.decoder if self.begun else self._kept_decoder
        response_id = decoder.response_id
        if not self._is_kept or response_id is None or decoder.over or decoder.complete:
            return None
        return f"{self.api.path}/{quote(response_id, safe='')}/cancel"

    def leave_out(self, field: str) -> bool:
        """Never again send `field` of the body; whether there was one."""
        body = cast("dict[str, object]", msgspec.json.decode(self._content))
        if field not in body:
            return False
        del body[field]
        self._content = msgspec.json.encode(body)
        return True

    def refused(self, error: GatewayError) -> bool:
        """Whether `error`, the answer's status, is about the way; it is not tried again then.

        A server that kept no stream, or does not continue, says so by 400 or 404 (or another
        status of that kind), not by a failure that passes.
        """
        if self.way not in ("cursor", "continue") or error.retryable:
            return False
        if not isinstance(error, BadRequestError | NotFoundError):
            return False
        self._refused = (*self._refused, self.way)
        return True

    def ended_early(self, error: GatewayError | None) -> None:
        """The server ended the answer, by the frame `error` or by nothing.

        A kept stream that goes on with nothing is left: it ended as it did the first time.
        """
        if self.decoder.over:
            self._cursor = self.api.make_cursor()
            return
        passes = isinstance(error, AuthenticationError | RateLimitError)
        if self.way == "cursor" and not self.begun and not passes:
            self._refused = (*self._refused, "cursor")

    def _check_replay(self) -> None:
        """Raises: CannotResume."""
        expected = self._delivered.characters
        if expected and self._delivered.repeated + expected > self._policy.max_replay:
            raise CannotResume(
                f"the reply broke after {expected} characters, and asking for it again would "
                f"exceed the {self._policy.max_replay} that may be replayed: see "
                "ResumePolicy(max_replay=...)"
            )

    def _continued(self) -> dict[str, object] | None:
        """The body that has the model go on, or `None` where it cannot be asked to."""
        policy = self._policy
        if policy.continue_ is None or "continue" in self._refused or self.api is RESPONSES:
            return None
        partial = self._delivered.continuable_text
        body = cast("dict[str, object]", msgspec.json.decode(self._content))
        if not partial or not _is_just_text(body):
            return None
        messages = lenient_json.objects(body.get("messages"))
        if messages != body.get("messages"):
            return None
        message: dict[str, object] = {"role": "assistant"}
        if messages and messages[-1].get("role") == "assistant":  # A prefill of the caller's own.
            message = messages.pop()
            begun = message.get("content")
            if not isinstance(begun, str):
                return None
            if not policy.echo:
                partial = begun + partial
            elif len(partial) < len(begun.rstrip()):
                return None  # It broke before anything of the model's own came.
        message["content"] = partial
        if policy.continue_ == "prefix":
            message["prefix"] = True
        elif policy.continue_ == "vllm":
            body |= {"add_generation_prompt": False, "continue_final_message": True}
        for limit, least in _OUTPUT_LIMITS:
            allowed = body.get(limit)
            if isinstance(allowed, int):
                body[limit] = max(allowed - self._tokens, least)
        return body | {"messages": [*messages, message]}

    # Answers

    def begin(self, event: ServerSentEvent | None) -> bool:
        """Whether the answer begins with `event`; errors and `[DONE]` begin none.

        Args:
            event: One of the answer's; `None` for a whole completion.

        Raises:
            StartedOver: The answer is not to be read on; the next request goes another way.
            CannotResume: The server has started over, and a replay is not allowed.
        """
        place: Place | None = None
        if self.way == "cursor":
            place = "unknown"
            if event is not None:
                place = self._cursor.place_of(event, begun=self._kept_decoder.choices)
        if event is not None:
            items = self.api.make_decoder().decode(event)
            if not items or isinstance(items[0], GatewayError):
                return False
            if place != "here" and items[0] is DONE:
                return False
            if place == "unknown" and event.id is None and not any(map(_says_something, items)):
                return False  # The role, say: some send it at the head of every response.
        if place == "here":
            self.decoder = self._kept_decoder
            self.decoder.take_up()
            self._taken_up_after = self._cursor.last_event_id
            self._last_id = None
            is_new = event is not None and not self._cursor.has_passed(event)
            # Numbers may run on where a server starts over: what it says tells, then.
            is_suspect = is_new and self._delivered.content and not self._cursor.names_the_stream
            self._suspected = [] if is_suspect else None
            self.begun = True
            return True
        if place == "unknown" or (place == "beginning" and self._continued() is not None):
            self._start_over()
        if place == "beginning":
            self._check_replay()
            self.way = "replay" if self._delivered.content else None
        self._is_continuation = self.way == "continue"
        if self._is_continuation:
            self._delivered.begin_continuation(echo=self._policy.echo)
        else:
            self._delivered.begin_attempt()
        if self._began_before:
            self._relaying = self._relaying or self._new_relaying()
            self._relaying.begin_again(self._cursor.last_event_id)
        self._began_before = True
        self._cursor = self.api.make_cursor()
        self._kept_decoder = self.decoder
        self._repeated = None
        self._taken_up_after = None
        self.begun = True
        return True

    def is_repeat(self, event: ServerSentEvent) -> bool:
        """Whether the kept stream has given `event` before."""
        if self._taken_up_after is None:
            return False
        if event.id != self._last_id:
            self._last_id = event.id
            self._last_was_repeat = self._cursor.has_passed(event)
            return self._last_was_repeat
        # An event without an id of its own, behind one that has it.
        return self._last_was_repeat and event.id != self._taken_up_after

    def passed(self, event: ServerSentEvent) -> None:
        """`event` was taken, and was more than an error."""
        if event.id is not None:
            self.open_text = None  # Where it leads to, each event has to be told.
        if self._suspected is not None:
            self._unconfirmed = self._unconfirmed or []
            self._unconfirmed.append(event)
            return
        if self._unconfirmed:
            for each in self._unconfirmed:
                self._cursor.passed(each)
            self._unconfirmed = None
        self._cursor.passed(event)

    def new_parts(self, delta: Delta) -> tuple[Delta | Restarted, ...]:
        """What of `delta` the reader has not got, or a new beginning and all from there on.

        Raises:
            Diverged: The answer is another one, and the reply may not start over.
            StartedOver: The answer is not to be read on; the next request goes another way.
        """
        if self._suspected is None:
            parts = self._new_parts(delta)
            self.open_text = None
            # Only behind text that is new in this attempt: of its first, others are told.
            is_first_choices = bool(parts and delta.text and not delta.choice)
            if is_first_choices and self._taken_up_after is None:
                self.open_text = self._delivered.open_text
            return parts
        self._suspected.append(delta)
        begins_anew = self._delivered.begins_with(self._suspected)
        if begins_anew is None:
            return ()
        if begins_anew:
            self._start_over()
        cleared, self._suspected = self._suspected, None
        return tuple(part for each in cleared for part in self._new_parts(each))

    def append(self, deltas: Sequence[Delta]) -> None:
        """Count more of the `open_text` as delivered; without one, see `new_parts`.

        Only for events without an id, of which nothing else is to be said.
        """
        if self.open_text is not None:
            for delta in deltas:
                self.open_text.append(delta.text)
            self._tokens += len(deltas)

    def _start_over(self) -> NoReturn:
        self._refused = (*self._refused, "cursor")
        raise StartedOver

    def _new_parts(self, delta: Delta) -> tuple[Delta | Restarted, ...]:
        if self._policy.on_divergence == "restart" and self._delivered.repeating:
            self._repeated = self._repeated or []
            self._repeated.append(delta)
        repeating = self._delivered.repeating
        try:
            new = self._delivered.new_part(delta)
        except Diverged:
            return self._restarted()
        if self._relaying is not None:
            new = self._relaying.part(delta, new, repeating=repeating)
        if new is None:
            return ()
        self._tokens += bool(new.text or new.reasoning)
        held = self._delivered.no_longer_held_back()
        return (*held, new) if held else (new,)

    def new_event(self, event: RawEvent) -> RawEvent | None:
        """What the reader gets of it; `None` where he has got it."""
        mark = None if self.api.mark is None else self.api.mark(event.data)
        if not self._delivered.is_new(mark or event):
            return None
        return event if self._relaying is None else self._relaying.event(event)

    def end(self) -> tuple[Delta | Restarted, ...]:
        """The answer is complete; what the reader gets for that.

        Raises:
            Diverged: It ended before the first one's length, and the reply may not start over.
            StartedOver: It said nothing but what the answer had begun with.
        """
        self.open_text = None
        suspected, self._suspected = self._suspected or [], None
        if any(delta.text or delta.reasoning for delta in suspected):
            self._start_over()
        parts = [part for delta in suspected for part in self._new_parts(delta)]
        try:
            return (*parts, *self._delivered.end_attempt())
        except Diverged:
            return self._restarted()

    def _restarted(self) -> tuple[Delta | Restarted, ...]:
        if self._is_continuation:  # Half an answer is nothing to start over with.
            self._refused = (*self._refused, "continue")
            self._cursor = self.api.make_cursor()
            raise StartedOver
        if self._policy.on_divergence != "restart" or self._delivered.tool_calls:
            raise Diverged
        self._delivered.restart()
        self._relaying = None if self.api.mark is None else self._new_relaying()
        self._tokens = 0
        repeated, self._repeated = self._repeated or [], None
        return (Restarted(), *(part for delta in repeated for part in self._new_parts(delta)))


def _says_something(item: Item) -> bool:
    return not isinstance(item, Delta) or bool(
        item.text or item.reasoning or item.tool_calls or item.finish_reason
    )


def _is_just_text(body: Mapping[str, object]) -> bool:
    """Whether the answer to `body` is one text, which can be continued."""
    response_format = lenient_json.as_object(body.get("response_format")) or {"type": "text"}
    return (
        body.get("n") in (None, 1)
        and response_format.get("type") == "text"
        and not any(body.get(field) for field in _NOT_JUST_TEXT)
    )
