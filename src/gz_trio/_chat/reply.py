"""A reply: its attempts, the pauses between them, and the one reader who gets what is new.

One task receives (attempt after attempt, through refreshes and reconnects) and one reads. Between
them lies a bounded buffer, so that cancelling a read loses nothing and leaves the connection alone.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import inf

import trio
from trio.lowlevel import Abort, RaiseCancelT, Task, checkpoint, checkpoint_if_cancelled

from .._auth.authenticator import Authenticator
from .._protocol.chat import DONE, ChatDecoder, ChatItem, MessageBuilder
from .._protocol.errors import (
    APIConnectionError,
    AuthenticationError,
    BadRequestError,
    EmptyResponseError,
    GatewayError,
    NotFoundError,
    ProtocolError,
    RefreshError,
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
    ReplyEvent,
    Restarted,
    Resumed,
    Usage,
)
from .._protocol.keys import Key
from .._protocol.recovery import Recovery
from .._protocol.refresh import AuthStatus
from .._protocol.resume import Delivered, Diverged
from .._protocol.retry import Raise, Refresh, Wait
from .._protocol.settings import ResumePolicy, RetryPolicy, Timeouts
from .._protocol.sse import EventStreamDecoder
from .._transport.interface import Request, Response, Transport

BUFFER_BYTES = 256 * 1024
"""A reader that has this much waiting for it stops the receiving."""

CHECKPOINT_EVERY = 64
GOODBYE_SECONDS = 1.0
AUTHENTICATION_FAILED = "Authentication failed after refresh attempt. Please log in again."
ERROR_BODY_SECONDS = 10.0
MAX_ERROR_BODY = 1024 * 1024
MAX_COMPLETION_BODY = 64 * 1024 * 1024


@dataclass(slots=True)
class Attempt:
    """One request of a reply.

    Args:
        started: When it was sent, in seconds on Trio's clock.
        generation: Of the key that it was sent with.
        ended: When it ended, or `None` while it runs.
        error: What ended it, or `None` where it was complete.
        deltas: How many deltas came, repeated ones included: what a replay is paid for.
        accepted: Whether the gateway answered with an event that is no error.
    """

    started: float
    generation: int
    ended: float | None = None
    error: GatewayError | None = None
    deltas: int = 0
    accepted: bool = False


@dataclass(slots=True)
class Timing:
    """How long a reply took, in seconds on Trio's clock.

    Args:
        started: When the first request was sent.
        first_token: From then until the first text, reasoning or tool call, or `None`.
        paused: The sum of all pauses: from a failure until new text came.
        ended: From `started` until the reply was complete or failed, or `None`.
    """

    started: float
    first_token: float | None = None
    paused: float = 0.0
    ended: float | None = None


@dataclass(frozen=True, slots=True)
class ReplySettings:
    """What a reply may do on its own: how to retry, to resume, and how long to wait."""

    retry: RetryPolicy
    resume: ResumePolicy
    timeouts: Timeouts


class Reply:
    """A reply that streams: iterate over it for its deltas.

    Made by `Session.stream` and `Gateway.stream`; one task reads it. Iterating raises, when all
    that came before has been read:

    - `AuthenticationError`, `RefreshError` or `RefreshTimeout`: no key that the gateway accepts.
    - `StreamInterrupted`: it broke, and a second answer was another one.
    - `StreamTimeout`, `RateLimitError` and the rest of the tree under `GatewayError`.
    - `trio.ClosedResourceError`: the reply's block has been left.
    - `trio.BusyResourceError`: another task is reading.

    Every `GatewayError` has the text so far as `partial`.
    """

    def __init__(
        self,
        *,
        transport: Transport,
        authenticator: Authenticator,
        origin: str,
        model: str | None,
        make_request: Callable[..., Request],
        contents: list[bytes],
        settings: ReplySettings,
        now: Callable[[], float],
    ) -> None:
        self._transport = transport
        self._authenticator = authenticator
        self._origin = origin
        self._model = model
        self._make_request = make_request
        self._contents = contents
        self._settings = settings
        self._now = now
        # Receiving
        self._delivered = Delivered()
        self._recovery = Recovery(settings.retry)
        self._epoch: int | None = None
        self._paused_at: float | None = None
        self._total_left = settings.timeouts.total
        self._may_restart = settings.resume.on_divergence == "restart"
        self._repeated: list[Delta] = []
        self._last_usage: Usage | None = None
        self._details = MessageBuilder()
        # Between the two tasks
        self._buffer: deque[tuple[ReplyEvent, int]] = deque()
        self._buffered_bytes = 0
        self._room = trio.Event()
        self._ended = False
        self._error: Exception | None = None
        # Reading
        self._busy = False
        self._parked: Task | None = None
        self._reads = 0
        self._message = MessageBuilder()
        self._finish_reason: str | None = None
        self._usage: Usage | None = None
        self.attempts: list[Attempt] = []
        self.timing = Timing(trio.current_time())

    def __repr__(self) -> str:
        state = "ended" if self._ended else "streaming"
        return f"<Reply model={self._model!r} {state}, {len(self.text)} characters>"

    # What the reader has got

    @property
    def text(self) -> str:
        """The text of the first choice, as far as it was read."""
        return self._message.text

    @property
    def message(self) -> dict[str, object]:
        """The assistant message of the first choice, as the next turn sends it back."""
        message = self._message.message
        details = self._details.message.get("reasoning_details")
        # All of one attempt: signatures in them hold for that answer alone.
        return message if details is None else {**message, "reasoning_details": details}

    @property
    def usage(self) -> Usage | None:
        """Tokens used, or `None` where the server did not (yet) tell."""
        return self._usage

    @property
    def finish_reason(self) -> str | None:
        """Why the model stopped, first choice: `"stop"`, `"length"`, ..., or `None` before."""
        return self._finish_reason

    @property
    def complete(self) -> bool:
        """Whether the whole reply has been read."""
        return self._ended and self._error is None and not self._buffer

    # Reading

    def __aiter__(self) -> Reply:
        return self

    async def __anext__(self) -> Delta:
        """The next delta. A checkpoint; cancelling it loses nothing."""
        while True:
            event = await self._read()
            if event is None:
                raise StopAsyncIteration
            if isinstance(event, Delta):
                return event

    def events(self) -> ReplyEvents:
        """Everything that happens, as an async iterator: deltas, pauses, and the end.

        Reads from where the reply was read to; what the one iterator took, the other misses.
        """
        return ReplyEvents(self._read)

    async def _read(self) -> ReplyEvent | None:
        """The next event, `None` after the last. Always a checkpoint."""
        if self._busy:
            raise trio.BusyResourceError("another task is reading this reply")
        self._busy = True
        try:
            if self._buffer or self._ended:
                self._reads += 1
                if self._reads % CHECKPOINT_EVERY and self._buffer:
                    await checkpoint_if_cancelled()
                else:
                    await checkpoint()
            else:
                await self._park()
        finally:
            self._busy = False
        if self._buffer:
            event, size = self._buffer.popleft()
            self._buffered_bytes -= size
            if self._buffered_bytes < BUFFER_BYTES:
                self._room.set()
            self._note(event)
            return event
        if self._error is None:
            return None
        raise self._reader_error(self._error)

    async def _park(self) -> None:
        """Wait for an event or the end: one reschedule, no event object a token."""

        def abort(_raise_cancel: RaiseCancelT) -> Abort:
            self._parked = None
            return Abort.SUCCEEDED

        self._parked = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)

    def _note(self, event: ReplyEvent) -> None:
        match event:
            case Delta():
                self._message.feed(event)
                if event.choice == 0 and event.finish_reason is not None:
                    self._finish_reason = event.finish_reason
                self._usage = event.usage or self._usage
            case Restarted():
                self._message = MessageBuilder()
                self._finish_reason = self._usage = None
            case _:
                pass

    def _reader_error(self, error: Exception) -> Exception:
        if not isinstance(error, GatewayError):
            return error
        copy = error.another()
        copy.partial = self.text
        return copy

    # Receiving

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:  # noqa: ASYNC910 - one, unless the first one's failure ends it
        """The receiving task: to the end of the reply, whichever it is. For `Gateway` alone."""
        # What a reader gets who waits while this task crashes.
        end: Exception | None = APIConnectionError("the reply's background task has failed")
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
        """Nothing comes after this; the first call counts."""
        if self._ended:
            return
        self._ended = True
        self._error = error
        now = trio.current_time()
        self.timing.ended = now - self.timing.started
        self._unpause(now)
        self._wake()

    def _wake(self) -> None:
        if self._parked is not None:
            task, self._parked = self._parked, None
            trio.lowlevel.reschedule(task)

    def _give(self, event: ReplyEvent, size: int = 0) -> None:
        self._buffer.append((event, size))
        self._buffered_bytes += size
        self._wake()

    async def _receive_all(self) -> None:
        key = await self._next_key(None)
        while True:
            attempt = Attempt(trio.current_time(), key.generation)
            self.attempts.append(attempt)
            self._delivered.begin_attempt()
            self._details = MessageBuilder()
            self._repeated = []
            try:
                try:
                    await self._try_once(key, attempt)
                finally:
                    attempt.ended = trio.current_time()
                    if self._total_left is not None:
                        self._total_left -= attempt.ended - attempt.started
                return
            except _AskForLess as less:
                attempt.error = less.error
                del self._contents[0]
                continue
            except _ErrorFrame as frame:
                failure, in_frame = frame.error, True
            except GatewayError as error:
                failure, in_frame = error, False
            attempt.error = failure
            rejected = await self._recover(key, attempt, failure, in_frame)
            try:
                key = await self._next_key(rejected)
            except AuthenticationError as error:
                # What the gateway said of the key is what its caller needs to look it up there.
                error.status = error.status or failure.status
                error.code = error.code or failure.code
                error.type = error.type or failure.type
                error.request_id = error.request_id or failure.request_id
                error.body = error.body or failure.body
                if error.__cause__ is None:
                    raise error from failure
                raise

    async def _recover(  # noqa: ASYNC910
        self, key: Key, attempt: Attempt, failure: GatewayError, in_frame: bool
    ) -> Key | None:
        """Wait as long as `failure` asks for. The key that needs a refresh, if one does.

        A checkpoint where it waits; what follows, `_next_key`, is one always.
        """
        step = self._recovery.after(
            failure,
            generation=key.generation,
            in_frame=in_frame,
            mid_stream=attempt.accepted,
            jitter=random.random(),
        )
        match step:
            case Refresh():
                self._pause(Paused("refresh"))
                return key  # noqa: ASYNC910
            case Wait(seconds, rate_limited):
                self._pause(RateLimited(seconds) if rate_limited else Paused("reconnect"))
                await trio.sleep(seconds)
                return None
            case Raise():
                if self._delivered.content and isinstance(failure, APIConnectionError):
                    raise StreamInterrupted(
                        "the reply broke and could not be taken up again"
                    ) from failure
                raise failure

    async def _next_key(self, rejected: Key | None) -> Key:
        try:
            if rejected is None:
                if self._authenticator.state.status is AuthStatus.AUTHENTICATING:
                    self._pause(Paused("refresh"))
                key = await self._authenticator.key()
            else:
                key = await self._authenticator.refresh(
                    rejected, origin=self._origin, model=self._model
                )
        except RefreshError as error:
            raise error.another(AUTHENTICATION_FAILED) from error
        if self._epoch is None:
            self._epoch = key.epoch
        elif key.epoch != self._epoch:
            raise AuthenticationError("another account has signed in: ask again under it")
        return key

    async def _try_once(self, key: Key, attempt: Attempt) -> None:
        """One request, to the end of its answer; raises what ended it early."""
        timeouts = self._settings.timeouts
        request = self._make_request(key, content=self._contents[0])
        first_token_by = trio.current_time() + (timeouts.first_token or inf)
        total_by = trio.current_time() + (inf if self._total_left is None else self._total_left)
        response: Response | None = None
        try:
            with self._time_limit("first token", first_token_by, total_by):
                response = await self._transport.send(request)
            if not 200 <= response.status < 300:
                raise self._response_error(response, await _read_error_body(response))
            content_type = response.headers.get("content-type", "text/event-stream")
            kind = content_type.partition(";")[0].strip().lower()
            if kind == "application/json":
                with self._time_limit("first token", first_token_by, total_by):
                    body = await _read_completion(response)
                decoder = ChatDecoder()
                self._take(decoder.decode_completion(body), key, attempt, len(body))
                self._finish(decoder)
                return
            if kind != "text/event-stream":
                raise ProtocolError(
                    "the gateway answered with something other than an event stream: is "
                    f"{self._origin} the base URL of an OpenAI-compatible API?",
                    status=response.status,
                )
            await self._receive(response, key, attempt, first_token_by, total_by)
        finally:
            if response is not None:
                await response.aclose()

    async def _receive(  # noqa: ASYNC910 - one, unless `receive` fails before its own
        self,
        response: Response,
        key: Key,
        attempt: Attempt,
        first_token_by: float,
        total_by: float,
    ) -> None:
        """The event stream of one response."""
        events = EventStreamDecoder()
        decoder = ChatDecoder()
        between_tokens = self._settings.timeouts.between_tokens or inf
        name, by = "first token", first_token_by
        done = False
        while not done:
            try:
                with self._time_limit(name, by, total_by):
                    data = await response.receive()
            except (APIConnectionError, StreamTimeout):
                if decoder.complete:
                    break  # all is there but the goodbye
                raise
            if not data:
                break
            name, by = "next token", trio.current_time() + between_tokens
            for event in events.feed(data):
                done = self._take(decoder.decode(event), key, attempt, len(event.data)) or done
            while self._buffered_bytes >= BUFFER_BYTES:
                self._room = trio.Event()
                await self._room.wait()
                by = trio.current_time() + between_tokens
        self._finish(decoder)
        if done:
            # The reader has its end. What remains is the end of the body, which comes with the
            # last event or not at all, and lets the connection be used again.
            with suppress(GatewayError), trio.move_on_after(GOODBYE_SECONDS):
                while await response.receive():
                    pass

    @contextmanager
    def _time_limit(self, name: str, by: float, total_by: float) -> Generator[None]:
        with trio.move_on_at(min(by, total_by)) as scope:
            yield
        if scope.cancelled_caught:
            timeouts = self._settings.timeouts
            if total_by < by:
                raise StreamTimeout(
                    f"the reply was not complete after {timeouts.total:g} s", retryable=False
                )
            seconds = timeouts.first_token if name == "first token" else timeouts.between_tokens
            raise StreamTimeout(f"no {name} came within {seconds:g} s", retryable=True)

    def _response_error(self, response: Response, body: bytes) -> Exception:
        error = error_from_response(response.status, response.headers, body, now=self._now())
        if (
            isinstance(error, BadRequestError)
            and len(self._contents) > 1
            and b"stream_options" in body
        ):
            return _AskForLess(error)
        if isinstance(error, NotFoundError):
            return error.another(
                f"the gateway at {self._origin} has no model {self._model!r}, or the base URL "
                "is not that of an OpenAI-compatible API"
            )
        return error

    def _take(self, items: tuple[ChatItem, ...], key: Key, attempt: Attempt, size: int) -> bool:
        """Give the reader what is new in `items`. Whether the stream said that it is done."""
        for item in items:
            if isinstance(item, GatewayError):
                raise _ErrorFrame(item)
            if item is DONE:
                return True
            if not attempt.accepted:
                attempt.accepted = True
                self._recovery.accepted()
                self._authenticator.accepted(key, origin=self._origin, model=self._model)
            if isinstance(item, RawEvent):
                if self._delivered.is_new(item):
                    self._give(item, size)
                continue
            attempt.deltas += 1
            if item.reasoning_details:
                self._details.feed(Delta(reasoning_details=item.reasoning_details))
            if self._may_restart and self._delivered.repeating:
                self._repeated.append(item)
            try:
                new = self._delivered.new_part(item)
            except Diverged:
                self._restart()
            else:
                if new is not None:
                    self._give_new(new, size)
        return False

    def _give_new(self, delta: Delta, size: int) -> None:
        now = trio.current_time()
        self._last_usage = delta.usage or self._last_usage
        if self._unpause(now):
            self._give(Resumed())
        if delta.text or delta.reasoning or delta.tool_calls:
            self._recovery.progressed()
            if self.timing.first_token is None:
                self.timing.first_token = now - self.timing.started
        self._give(delta, size)

    def _finish(self, decoder: ChatDecoder) -> None:
        """The response has ended: is the reply whole?"""
        if not decoder.complete:
            raise APIConnectionError("the connection was closed before the reply was complete")
        if not self._delivered.content and self._delivered.finish_reason == "stop":
            raise EmptyResponseError("the model's answer is empty: no text and no tool call")
        try:
            self._delivered.end_attempt()
        except Diverged:
            self._restart()
        self._give(Finished(self._delivered.finish_reason, self._last_usage))
        self._end(None)

    def _restart(self) -> None:
        """The second answer is another one: give it from its beginning, or end the reply."""
        if not self._may_restart or self._delivered.tool_calls:
            raise StreamInterrupted(
                "the reply broke, and when it was asked for again the answer was a different one"
            )
        self._delivered.restart()
        self._give(Restarted())
        repeated, self._repeated = self._repeated, []
        for delta in repeated:
            new = self._delivered.new_part(delta)
            if new is not None:
                self._give_new(new, len(delta.raw))

    # Pauses

    def _pause(self, event: Paused | RateLimited) -> None:
        if self._paused_at is None:
            self._paused_at = trio.current_time()
        self._give(event)

    def _unpause(self, now: float) -> bool:
        if self._paused_at is None:
            return False
        self.timing.paused += now - self._paused_at
        self._paused_at = None
        return True


class ReplyEvents:
    """Every event of one reply; see `Reply.events`."""

    def __init__(self, read: Callable[[], Awaitable[ReplyEvent | None]]) -> None:
        self._read = read

    def __aiter__(self) -> ReplyEvents:
        return self

    async def __anext__(self) -> ReplyEvent:
        """The next event. A checkpoint; cancelling it loses nothing."""
        event = await self._read()
        if event is None:
            raise StopAsyncIteration
        return event


class _ErrorFrame(Exception):
    """An error that came as a frame of the stream, not as a status."""

    def __init__(self, error: GatewayError) -> None:
        self.error = error


class _AskForLess(Exception):
    """The server does not know `stream_options`, an addition of ours."""

    def __init__(self, error: GatewayError) -> None:
        self.error = error


async def _read_error_body(response: Response) -> bytes:
    """The body as far as it comes: the status counts, whatever becomes of the rest."""
    body = bytearray()
    with suppress(GatewayError), trio.move_on_after(ERROR_BODY_SECONDS):
        while data := await response.receive():
            body += data
            if len(body) >= MAX_ERROR_BODY:
                break
    return bytes(body)  # noqa: ASYNC910 - one, unless `receive` fails before its own


async def _read_completion(response: Response) -> bytes:
    """The whole body of a server that ignores `stream`."""
    body = bytearray()
    while data := await response.receive():
        body += data
        if len(body) > MAX_COMPLETION_BODY:
            raise ProtocolError(f"the answer is longer than {MAX_COMPLETION_BODY >> 20} MiB")
    return bytes(body)
