"""The bounded buffer between the task that receives a reply and the one that reads it.

Cancelling a read takes nothing out of it, and leaves the receiving alone. A sink takes the place of
a reader: what comes goes to it at once, and no task is woken for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import trio
from outcome import Value
from trio.lowlevel import (
    Abort,
    RaiseCancelT,
    Task,
    checkpoint,
    checkpoint_if_cancelled,
    current_task,
    enable_ki_protection,
    wait_task_rescheduled,
)

from .._protocol.events import Delta, ReplyEvent

BUFFER_BYTES = 256 * 1024
"""A reader that has this much waiting for it stops the receiving."""

CHECKPOINT_EVERY = 64


class Sink(Protocol):
    """Takes what comes, at once. What it raises ends the reply."""

    def take(self, event: ReplyEvent, arrived_ns: int) -> None:
        """Take an event; see `EventBuffer.put`."""
        ...

    def take_texts(self, deltas: Sequence[Delta], arrived_ns: int) -> None:
        """Take more text; see `EventBuffer.put_texts`."""
        ...


class SinkRaised(BaseException):
    """The sink raised; its reply ends with that exception, of whichever kind."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def _nothing() -> None: ...


class EventBuffer:
    """Events on their way from one task to another, and how they end."""

    __slots__ = (
        "_came", "_next", "_parked", "_reading", "_reads", "_sink", "buffered_bytes", "ended",
        "error", "on_room", "raised",
    )  # fmt: skip

    def __init__(self) -> None:
        # Two lists, the one that is read reversed: an empty deque takes ten times their memory.
        self._came: list[tuple[ReplyEvent, int, int]] = []
        self._next: list[tuple[ReplyEvent, int, int]] = []
        self.buffered_bytes = 0
        """The size of what waits for the reader, in bytes as the server sent it."""
        self.on_room: Callable[[], None] = _nothing
        """Called when it is no longer full, by who reads."""
        self._reading = False
        self._parked: Task | None = None
        self._reads = 0
        self._sink: Sink | None = None
        self.ended = False
        self.error: BaseException | None = None
        self.raised: BaseException | None = None
        """What a sink raised: nothing is given to anybody after that."""

    @property
    def empty(self) -> bool:
        """Whether all that was put in has been read."""
        return not (self._next or self._came)

    # Receiving

    def put(self, event: ReplyEvent, arrived_ns: int = 0, size: int = 0) -> None:
        """Add an event.

        Args:
            event: The event.
            arrived_ns: When its data came, by `time.perf_counter_ns`.
            size: Of its data, in bytes.

        Raises:
            SinkRaised: The sink did, now or before.
        """
        if self.raised is not None:
            raise SinkRaised(self.raised)
        if self._sink is not None:
            try:
                self._sink.take(event, arrived_ns)
            except BaseException as error:
                self.raised = error
                raise SinkRaised(error) from None  # noqa: ASYNC104 - it comes out of `drain`
            return
        if self._parked is not None:
            self._wake(event)
            return
        self._came.append((event, arrived_ns, size))
        self.buffered_bytes += size

    def put_texts(self, deltas: Sequence[Delta], arrived_ns: int) -> bool:
        """Add deltas that came at once, and hold text of the first choice, nothing else.

        Returns:
            Whether that is `full` now.

        Raises:
            SinkRaised: As for `put`.
        """
        if self.raised is not None:
            raise SinkRaised(self.raised)
        if self._sink is not None:
            try:
                self._sink.take_texts(deltas, arrived_ns)
            except BaseException as error:
                self.raised = error
                raise SinkRaised(error) from None  # noqa: ASYNC104 - it comes out of `drain`
            return False
        if self._parked is not None and deltas:
            self._wake(deltas[0])
            if len(deltas) == 1:
                return False
            deltas = deltas[1:]
        for delta in deltas:
            size = len(delta.raw)
            self._came.append((delta, arrived_ns, size))
            self.buffered_bytes += size
        return self.buffered_bytes >= BUFFER_BYTES

    @property
    def full(self) -> bool:
        """Whether the reader is so far behind that the receiving has to wait."""
        return self.buffered_bytes >= BUFFER_BYTES

    def end(self, error: BaseException | None) -> bool:
        """Nothing comes after this. Whether it is the first end, which alone counts."""
        if self.ended:
            return False
        self.ended = True
        self.error = error
        self._wake()
        return True

    def _wake(self, event: ReplyEvent | None = None) -> None:
        """Let who waits go on: the reader with `event`, for which it found nothing in the way."""
        if self._parked is not None:
            task, self._parked = self._parked, None
            trio.lowlevel.reschedule(task, Value(event))

    # Reading

    @enable_ki_protection
    async def get(self) -> ReplyEvent | None:
        """The next event, `None` after the last, whatever the end was. Always a checkpoint.

        Raises:
            trio.BusyResourceError: Another task is reading.
        """
        if self._reading:
            raise trio.BusyResourceError("another task is reading this reply")
        self._reading = True
        try:
            if not (self._came or self._next or self.ended):
                # One reschedule, no event object a token; what came is in it, so that a
                # cancellation which comes later cannot lose it.
                self._parked = current_task()
                event: ReplyEvent | None = await wait_task_rescheduled(self._abort)
                if event is not None:
                    return event
            else:
                self._reads += 1
                if self._reads % CHECKPOINT_EVERY:
                    await checkpoint_if_cancelled()
                else:
                    await checkpoint()
        finally:
            self._reading = False
        if self._came or self._next:
            return self._take()[0]
        self._reads = CHECKPOINT_EVERY - 1  # Who reads on behind the end lets others run.
        return None

    def _take(self) -> tuple[ReplyEvent, int]:
        if not self._next:
            self._next, self._came = self._came, self._next
            self._next.reverse()
        event, arrived_ns, size = self._next.pop()
        before = self.buffered_bytes
        self.buffered_bytes = before - size
        if before >= BUFFER_BYTES > self.buffered_bytes:
            self.on_room()
        return event, arrived_ns

    @enable_ki_protection
    async def drain(self, sink: Sink) -> None:  # noqa: ASYNC910 - the first thing it does
        """Give `sink` all that is there, and all that comes until the end. A checkpoint.

        What `sink` raises comes out, here or of an earlier one, and what there is left is dropped.

        Raises:
            trio.BusyResourceError: Another task is reading.
        """
        if self._reading:
            raise trio.BusyResourceError("another task is reading this reply")
        self._reading = True
        try:
            await checkpoint()
            try:
                while not self.empty:
                    sink.take(*self._take())
            except BaseException as error:
                self.raised = self.error = error
                self._came.clear()
                self._next.clear()
                self.buffered_bytes = 0
                raise
            if not self.ended:
                self._sink = sink
                self._parked = current_task()
                await wait_task_rescheduled(self._abort)
        except trio.Cancelled:  # noqa: ASYNC103 - the sink had raised before
            if self.raised is None:
                raise
        finally:
            self._sink = None
            self._reading = False
        if self.raised is not None:
            raise self.raised

    def _abort(self, _raise_cancel: RaiseCancelT) -> Abort:
        self._parked = None
        return Abort.SUCCEEDED
