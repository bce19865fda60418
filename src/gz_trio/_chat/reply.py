"""A reply as its one reader has it: the deltas and events, and what they add up to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from .._protocol.chat import MessageBuilder
from .._protocol.errors import GatewayError
from .._protocol.events import Delta, ReplyEvent, Restarted, Usage
from .attempts import Attempt, Timing
from .buffer import EventBuffer
from .receiving import Receiver


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

    def __init__(self, model: str | None, buffer: EventBuffer, receiver: Receiver) -> None:
        self._model = model
        self._buffer = buffer
        self._receiver = receiver
        self._message = MessageBuilder()
        self._finish_reason: str | None = None
        self._usage: Usage | None = None

    def __repr__(self) -> str:
        state = "ended" if self._buffer.ended else "streaming"
        return f"<Reply model={self._model!r} {state}, {len(self.text)} characters>"

    @property
    def text(self) -> str:
        """The text of the first choice, as far as it was read."""
        return self._message.text

    @property
    def message(self) -> dict[str, object]:
        """The assistant message of the first choice, as the next turn sends it back."""
        message = self._message.message
        details = self._receiver.details.message.get("reasoning_details")
        # All of one answer: signatures in them hold for that one alone.
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
        return self._buffer.ended and self._buffer.error is None and self._buffer.empty

    @property
    def attempts(self) -> list[Attempt]:
        """The requests that it took, the first one first."""
        return self._receiver.attempts

    @property
    def timing(self) -> Timing:
        """How long it took."""
        return self._receiver.timing

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
        event = await self._buffer.get()
        if event is not None:
            self._note(event)
        elif self._buffer.error is not None:
            raise self._reader_error(self._buffer.error)
        return event

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
