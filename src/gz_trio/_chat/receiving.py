"""The task that receives a reply: attempt after attempt, through refreshes and reconnects."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import inf
from typing import Literal

import trio

from .._auth.authenticator import Authenticator
from .._protocol.chat import DONE, ChatItem, MessageBuilder
from .._protocol.errors import (
    APIConnectionError,
    BadRequestError,
    EmptyResponseError,
    GatewayError,
    NotFoundError,
    ProtocolError,
    StreamInterrupted,
    StreamTimeout,
    error_from_response,
)
from .._protocol.events import (
    Delta,
    Finished,
    Paused,
    RateLimited,
    RawEvent,
    Restarted,
    Resumed,
    Usage,
)
from .._protocol.keys import Key
from .._protocol.resume import Diverged
from .._protocol.resumption import CannotResume, NextRequest, Resumption, StartedOver
from .._protocol.settings import ResumePolicy, RetryPolicy, Timeouts
from .._protocol.sse import EventStreamDecoder, ServerSentEvent
from .._transport.interface import Request, Response, Transport
from .attempts import Attempt, Timing
from .bodies import read_body, read_error_body
from .buffer import EventBuffer
from .recovering import Recovering
from .telemetry import ReplyTelemetry

GOODBYE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class ReplySettings:
    """What a reply may do on its own: how to retry, to resume, and how long to wait."""

    retry: RetryPolicy
    resume: ResumePolicy
    timeouts: Timeouts


class Receiver:
    """Fills a buffer with the events of one reply.

    Args:
        transport: What sends the requests.
        authenticator: What holds the key.
        origin: Of the gateway.
        model: The model that is asked, or `None`.
        make_request: Gives the request for a key, a `content` and further `headers`.
        resumption: The reply's requests.
        settings: How often to retry, and how long to wait.
        now: Unix time in seconds.
        buffer: What is filled.
        telemetry: What is told of it.
    """

    def __init__(
        self,
        transport: Transport,
        authenticator: Authenticator,
        *,
        origin: str,
        model: str | None,
        make_request: Callable[..., Request],
        resumption: Resumption,
        settings: ReplySettings,
        now: Callable[[], float],
        buffer: EventBuffer,
        telemetry: ReplyTelemetry,
    ) -> None:
        self._transport = transport
        self._origin = origin
        self._model = model
        self._make_request = make_request
        self._resumption = resumption
        self._timeouts = settings.timeouts
        self._now = now
        self._buffer = buffer
        self._telemetry = telemetry
        self._recovering = Recovering(
            authenticator,
            origin=origin,
            model=model,
            policy=settings.retry,
            announce=self._pause,
        )
        self._paused_at: float | None = None
        self._total_left = settings.timeouts.total
        self._last_usage: Usage | None = None
        self.attempts: list[Attempt] = []
        self.timing = Timing(trio.current_time())
        self.details = MessageBuilder()
        """The `reasoning_details` of the answer, repeated ones included: they go back unchanged."""

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:  # noqa: ASYNC910 - one, unless the first one's failure ends it
        """Receive to the end of the reply, whichever it is."""
        # What a reader gets who waits while this task crashes.
        end: Exception | None = APIConnectionError("the reply's background task has failed")
        with self._telemetry.receiving():
            try:
                await self._receive_all()
                end = None
            except GatewayError as error:
                end = error
            except trio.Cancelled:
                end = trio.ClosedResourceError("the reply's block has been left")
                raise
            finally:
                self._end(end)

    def _end(self, error: Exception | None) -> None:
        if self._buffer.end(error):
            now = trio.current_time()
            self._unpause(now)
            self.timing.ended = now - self.timing.started
            self._telemetry.ended(
                error,
                self.timing,
                finish_reasons=self._resumption.finish_reasons,
                usage=self._last_usage,
            )

    async def _receive_all(self) -> None:
        request = self._resumption.next_request()
        while True:
            key = await self._recovering.next_key()
            attempt = Attempt(trio.current_time(), key.generation, request.way, epoch=key.epoch)
            self.attempts.append(attempt)
            try:
                await self._try_once(key, request, attempt)
                return
            except _AskDifferently as refusal:
                request = self._next_request(refusal.error)
            except _ErrorFrame as frame:
                self._resumption.ended_early(frame.error)
                request = await self._recover(attempt, frame.error, in_frame=True)
            except GatewayError as error:
                request = await self._recover(attempt, error, in_frame=False)

    async def _try_once(  # noqa: ASYNC910 - one, unless `_ask` fails before its own
        self, key: Key, request: NextRequest, attempt: Attempt
    ) -> None:
        """One request, to the end of its answer; raises what ended it early."""
        repeated_before = self._resumption.repeated
        with self._telemetry.attempt(attempt):
            try:
                await self._ask(key, request, attempt)
            except _AttemptError as failure:
                attempt.cause = failure.error
                raise
            except GatewayError as error:
                attempt.cause = error
                raise
            finally:
                attempt.ended = trio.current_time()
                attempt.repeated = self._resumption.repeated - repeated_before
                if self._total_left is not None:
                    self._total_left -= attempt.ended - attempt.started

    def _next_request(self, failure: GatewayError) -> NextRequest:
        try:
            return self._resumption.next_request()
        except CannotResume as reason:
            raise StreamInterrupted(str(reason)) from failure

    async def _recover(  # noqa: ASYNC910 - one, where it waits
        self, attempt: Attempt, failure: GatewayError, *, in_frame: bool
    ) -> NextRequest:
        """Wait as long as `failure` asks for; what is to be sent then.

        A checkpoint where it waits; what follows, the next key, is one always.
        """
        try:
            step = self._recovering.decide(failure, in_frame=in_frame, mid_stream=attempt.accepted)
        except APIConnectionError:
            if not self._resumption.content:
                raise
            raise StreamInterrupted("the reply broke and could not be taken up again") from failure
        request = self._next_request(failure)
        await self._recovering.carry_out(step)
        return request

    async def _ask(self, key: Key, request: NextRequest, attempt: Attempt) -> None:
        first_token_by = attempt.started + (self._timeouts.first_token or inf)
        total_by = attempt.started + (inf if self._total_left is None else self._total_left)
        headers = {**self._telemetry.headers(), **request.headers}
        response: Response | None = None
        try:
            with self._time_limit("first_token", first_token_by, total_by):
                response = await self._transport.send(
                    self._make_request(key, content=request.content, headers=headers)
                )
            self._telemetry.responded(response.status)
            if not 200 <= response.status < 300:
                raise self._response_error(response, await read_error_body(response))
            content_type = response.headers.get("content-type", "text/event-stream")
            kind = content_type.partition(";")[0].strip().lower()
            if kind == "application/json":
                with self._time_limit("first_token", first_token_by, total_by):
                    body = await read_body(response)
                self._begin(None, body, attempt)
                items = self._resumption.decoder.decode_completion(body)
                self._take(items, attempt, len(body))
                self._finish()
                return
            if kind != "text/event-stream":
                raise ProtocolError(
                    "the gateway answered with something other than an event stream: is "
                    f"{self._origin} the base URL of an OpenAI-compatible API?",
                    status=response.status,
                )
            await self._receive(response, attempt, first_token_by, total_by)
        except StartedOver:
            raise _AskDifferently(
                StreamInterrupted("the server did not go on where the reply broke")
            ) from None
        except CannotResume as reason:
            raise StreamInterrupted(str(reason)) from None
        except Diverged:
            raise StreamInterrupted(
                "the reply broke, and when it was asked for again the answer was a different one"
            ) from None
        finally:
            if response is not None:
                await response.aclose()

    async def _receive(  # noqa: ASYNC910 - one, unless `receive` fails before its own
        self, response: Response, attempt: Attempt, first_token_by: float, total_by: float
    ) -> None:
        """The event stream of one response."""
        events = EventStreamDecoder()
        between_tokens = self._timeouts.between_tokens or inf
        which: Literal["first_token", "between_tokens"] = "first_token"
        by = first_token_by
        done = False
        while not done:
            try:
                with self._time_limit(which, by, total_by):
                    data = await response.receive()
            except (APIConnectionError, StreamTimeout):
                if self._resumption.decoder.complete:
                    break  # all is there but the goodbye
                raise
            if not data:
                break
            which, by = "between_tokens", trio.current_time() + between_tokens
            for event in events.feed(data):
                done = self._take_event(event, attempt)
                if done:
                    break
            if self._buffer.full:
                full_since = trio.current_time()
                await self._buffer.wait_for_room()
                by = trio.current_time() + between_tokens
                # The reader's time is not the gateway's.
                waited = trio.current_time() - full_since
                total_by += waited
                if self._total_left is not None:
                    self._total_left += waited
        self._finish()
        if done:
            # The reader has its end. What remains is the end of the body, which comes with the
            # last event or not at all, and lets the connection be used again.
            with suppress(GatewayError), trio.move_on_after(GOODBYE_SECONDS):
                while await response.receive():
                    pass

    @contextmanager
    def _time_limit(
        self, which: Literal["first_token", "between_tokens"], by: float, total_by: float
    ) -> Generator[None]:
        with trio.move_on_at(min(by, total_by)) as scope:
            yield
        if scope.cancelled_caught:
            timeouts = self._timeouts
            if total_by < by:
                message = f"the reply was not complete after {timeouts.total:g} s"
                raise StreamTimeout(message, which="total", retryable=False)
            if which == "first_token":
                message = f"no first token came within {timeouts.first_token:g} s"
            else:
                message = f"no next token came within {timeouts.between_tokens:g} s"
            raise StreamTimeout(message, which=which)

    def _response_error(self, response: Response, body: bytes) -> Exception:
        error = error_from_response(response.status, response.headers, body, now=self._now())
        if self._resumption.refused(error):
            return _AskDifferently(error)
        if (
            isinstance(error, BadRequestError)
            and b"stream_options" in body
            # An addition of ours to what the caller asks for.
            and self._resumption.leave_out("stream_options")
        ):
            return _AskDifferently(error)
        if isinstance(error, NotFoundError):
            return error.another(
                f"the gateway at {self._origin} has no model {self._model!r}, or the base URL "
                "is not that of an OpenAI-compatible API"
            )
        return error

    # What came

    def _begin(self, event: ServerSentEvent | None, data: bytes, attempt: Attempt) -> None:
        if not self._resumption.begin(event):
            return
        self._telemetry.answered(data)
        attempt.resumed_by = self._resumption.way
        if attempt.resumed_by in ("replay", None):
            self.details = MessageBuilder()

    def _take_event(self, event: ServerSentEvent, attempt: Attempt) -> bool:
        """Give the reader what is new in `event`. Whether the stream said that it is done."""
        resumption = self._resumption
        if not resumption.begun:
            self._begin(event, event.data, attempt)
        if resumption.begun and resumption.is_repeat(event):
            self._accept(attempt)
            return False
        items = resumption.decoder.decode(event)
        try:
            done = self._take(items, attempt, len(event.data))
        except _ErrorFrame:
            if not isinstance(items[0], GatewayError):
                resumption.passed(event)
            raise
        if items:
            resumption.passed(event)
        return done

    def _take(self, items: tuple[ChatItem, ...], attempt: Attempt, size: int) -> bool:
        for item in items:
            if isinstance(item, GatewayError):
                raise _ErrorFrame(item)
            if item is DONE:
                return True
            self._accept(attempt)
            if isinstance(item, RawEvent):
                if self._resumption.is_new(item):
                    self._buffer.put(item, size)
                continue
            attempt.tokens += bool(item.text or item.reasoning or item.tool_calls)
            if item.reasoning_details:
                self.details.feed(Delta(reasoning_details=item.reasoning_details))
            parts = self._resumption.new_parts(item)
            for part in parts:
                self._give(part, size if len(parts) == 1 else None)
        return False

    def _accept(self, attempt: Attempt) -> None:
        if not attempt.accepted:
            attempt.accepted = True
            self._recovering.accepted()

    def _give(self, part: Delta | Restarted, size: int | None = None) -> None:
        if isinstance(part, Restarted):
            self._recovering.restarted()
            self._tell(part)
            return
        now = trio.current_time()
        self._last_usage = part.usage or self._last_usage
        if self._unpause(now):
            self._tell(Resumed())
        if part.text or part.reasoning or part.tool_calls:
            self._recovering.progressed()
            is_first = self.timing.first_token is None
            self.timing.token_came(now)
            if is_first:
                self._telemetry.first_token(now - self.timing.started)
        self._buffer.put(part, len(part.raw) if size is None else size)

    def _finish(self) -> None:
        """The response has ended: is the reply whole?"""
        if not self._resumption.decoder.complete:
            self._resumption.ended_early(None)
            raise APIConnectionError("the connection was closed before the reply was complete")
        if not self._resumption.content and self._resumption.finish_reason in ("stop", None):
            raise EmptyResponseError("the model's answer is empty: no text and no tool call")
        for part in self._resumption.end():
            self._give(part)
        self._buffer.put(Finished(self._resumption.finish_reason, self._last_usage))
        self._end(None)

    # Pauses

    def _pause(self, event: Paused | RateLimited) -> None:
        if self._paused_at is None:
            self._paused_at = trio.current_time()
        self._tell(event)

    def _tell(self, event: Paused | RateLimited | Resumed | Restarted) -> None:
        self._telemetry.announced(event)
        self._buffer.put(event)

    def _unpause(self, now: float) -> bool:
        if self._paused_at is None:
            return False
        self.timing.was_paused(now - self._paused_at)
        self._paused_at = None
        return True


class _AttemptError(Exception):
    """An attempt has ended early, by `error`."""

    def __init__(self, error: GatewayError) -> None:
        self.error = error


class _ErrorFrame(_AttemptError):
    """The error came as a frame of the stream, not as a status."""


class _AskDifferently(_AttemptError):
    """The server does not take the request as it is, but may take another one."""
