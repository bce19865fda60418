"""The bounded buffer between the task that receives a reply and the one that reads it.

Cancelling a read takes nothing out of it, and leaves the receiving alone.
"""

from __future__ import annotations

from collections import deque

import trio
from trio.lowlevel import Abort, RaiseCancelT, Task, checkpoint, checkpoint_if_cancelled

from .._protocol.events import ReplyEvent

BUFFER_BYTES = 256 * 1024
"""A reader that has this much waiting for it stops the receiving."""

CHECKPOINT_EVERY = 64


class EventBuffer:
    """Events on their way from one task to another, and how they end."""

    def __init__(self) -> None:
        self._events: deque[tuple[ReplyEvent, int]] = deque()
        self._bytes = 0
        self._room = trio.Event()
        self._busy = False
        self._parked: Task | None = None
        self._reads = 0
        self.ended = False
        self.error: Exception | None = None

    @property
    def empty(self) -> bool:
        """Whether all that was put in has been read."""
        return not self._events

    @property
    def buffered_bytes(self) -> int:
        """The size of what waits for the reader, in bytes as the server sent it."""
        return self._bytes

    # Receiving

    def put(self, event: ReplyEvent, size: int = 0) -> None:
        """Add an event, whose data were so many bytes."""
        self._events.append((event, size))
        self._bytes += size
        self._wake()

    @property
    def full(self) -> bool:
        """Whether the reader is so far behind that the receiving has to wait."""
        return self._bytes >= BUFFER_BYTES

    async def wait_for_room(self) -> None:
        """Wait until it is no longer full. A checkpoint."""
        self._room = trio.Event()
        await self._room.wait()

    def end(self, error: Exception | None) -> bool:
        """Nothing comes after this. Whether it is the first end, which alone counts."""
        if self.ended:
            return False
        self.ended = True
        self.error = error
        self._wake()
        return True

    def _wake(self) -> None:
        if self._parked is not None:
            task, self._parked = self._parked, None
            trio.lowlevel.reschedule(task)

    # Reading

    async def get(self) -> ReplyEvent | None:
        """The next event, `None` after the last, whatever the end was. Always a checkpoint.

        Raises:
            trio.BusyResourceError: Another task is reading.
        """
        if self._busy:
            raise trio.BusyResourceError("another task is reading this reply")
        self._busy = True
        try:
            if self._events or self.ended:
                self._reads += 1
                if self._reads % CHECKPOINT_EVERY and self._events:
                    await checkpoint_if_cancelled()
                else:
                    await checkpoint()
            else:
                await self._park()
        finally:
            self._busy = False
        if not self._events:
            return None
        event, size = self._events.popleft()
        self._bytes -= size
        if not self.full:
            self._room.set()
        return event

    async def _park(self) -> None:
        """Wait for an event or the end: one reschedule, no event object a token."""

        def abort(_raise_cancel: RaiseCancelT) -> Abort:
            self._parked = None
            return Abort.SUCCEEDED

        self._parked = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)
