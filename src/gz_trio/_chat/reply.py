"""A reply as its one reader has it: the deltas and events, and what they add up to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from trio.lowlevel import disable_ki_protection

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

    __slots__ = (
        "_buffer", "_finish_reason", "_message", "_model", "_receiver", "_usage",
    )  # fmt: skip

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
        """The assistant message of the first choice, as the next turn sends it back.

        Of the Responses API, whose answer may be more than one message, in the form that chat
        completions have; `output` is all of it.
        """
        return self._receiver.taking.message(self._message.message)

    @property
    def output(self) -> list[dict[str, object]]:
        """All that the next turn sends back, in the form of the API that was asked.

        Of the Responses API the output items, as the server sent them; of the others `message`,
        with content blocks of the Messages API as the server sent them, thinking and its
        signatures too.
        """
        return self._receiver.taking.answer(self._message.message)

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
        return self._receiver.taking.timing

    def __aiter__(self) -> Reply:
        return self

    async def __anext__(self) -> Delta:
        """The next delta. A checkpoint; cancelling it loses nothing."""
        while True:
            event = await self._buffer.get()
            if isinstance(event, Delta):
                self._note_delta(event)
                return event
            self._note(event)
            if event is None:
                raise StopAsyncIteration

    def events(self) -> ReplyEvents:
        """Everything that happens, as an async iterator: deltas, pauses, and the end.

        Reads from where the reply was read to; what the one iterator took, the other misses.
        """
        return ReplyEvents(self._read)

    async def drain(
        self,
        sink: Callable[[Delta, int], object],
        *,
        on_event: Callable[[ReplyEvent], object] | None = None,
    ) -> None:
        """Give each delta to `sink` as soon as it is there, without waking a task for it.

        For those who hold very many replies: a simulator, a relay. `sink` is called by the task
        that reads the connections of all replies, so it has to be quick, and cannot wait. Returns
        when the reply is complete. A checkpoint; cancelled, it leaves the rest to another call, or
        to iteration.

        Args:
            sink: Called with each delta, and with when its bytes came, in nanoseconds on the clock
                of `time.perf_counter_ns`. If it raises, the reply ends, and that comes out here.
            on_event: Called with every other event: pauses, restarts, the end. As for `sink`.

        Raises:
            GatewayError: The reply failed; as for iteration.
            trio.BusyResourceError: Another task is reading.

        >>> async def main() -> None:
        ...     fake = FakeGateway(key="sk-1")
        ...     async with (
        ...         fake.http_client() as client,
        ...         open_gateway(fake.base_url, "sk-1", http_client=client) as gateway,
        ...         gateway.stream({"model": "fake-model", "messages": []}) as reply,
        ...     ):
        ...         arrivals = []
        ...         await reply.drain(lambda delta, arrived_ns: arrivals.append(arrived_ns))
        ...         print(len(arrivals) > 1, arrivals == sorted(arrivals), reply.complete)
        >>> trio.run(main)
        True True True
        """
        try:
            await self._buffer.drain(_NotingSink(self._note, self._message, sink, on_event))
        finally:
            if self._buffer.raised is not None:
                self._receiver.leave(self._buffer.raised)
        if self._buffer.error is not None:
            raise self._reader_error(self._buffer.error)

    async def _read(self) -> ReplyEvent | None:
        """The next event, `None` after the last. Always a checkpoint."""
        event = await self._buffer.get()
        self._note(event)
        return event

    def _note(self, event: ReplyEvent | None) -> None:
        """What is handed over now; raises what the reply ended by, if it is that."""
        match event:
            case Delta():
                self._note_delta(event)
            case None:
                if self._buffer.error is not None:
                    raise self._reader_error(self._buffer.error)
            case Restarted():
                self._message.clear()
                self._finish_reason = self._usage = None
            case _:
                pass

    def _note_delta(self, delta: Delta) -> None:
        self._message.feed(delta)
        if delta.choice == 0 and delta.finish_reason is not None:
            self._finish_reason = delta.finish_reason
        self._usage = delta.usage or self._usage

    def _reader_error(self, error: BaseException) -> BaseException:
        if not isinstance(error, GatewayError) or error is self._buffer.raised:
            return error
        copy = error.another()
        copy.partial = self.text
        return copy


class _NotingSink:
    """A sink of a buffer: what is drained is read."""

    __slots__ = ("_note", "_on_event", "_sink", "_texts")

    def __init__(
        self,
        note: Callable[[ReplyEvent], None],
        message: MessageBuilder,
        sink: Callable[[Delta, int], object],
        on_event: Callable[[ReplyEvent], object] | None,
    ) -> None:
        self._note = note
        self._texts = message.texts
        self._sink = sink
        self._on_event = on_event

    @disable_ki_protection
    def take(self, event: ReplyEvent, arrived_ns: int) -> None:
        """See `buffer.Sink`."""
        self._note(event)
        if isinstance(event, Delta):
            self._sink(event, arrived_ns)
        elif self._on_event is not None:
            self._on_event(event)

    @disable_ki_protection
    def take_texts(self, deltas: Sequence[Delta], arrived_ns: int) -> None:
        """See `buffer.Sink`."""
        texts, sink = self._texts, self._sink
        for delta in deltas:
            texts.append(delta.text)
            sink(delta, arrived_ns)


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
