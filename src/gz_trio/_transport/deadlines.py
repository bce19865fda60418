"""The deadlines of all responses of a transport, in one task.

A cancel scope for each would have to be kept by a task for each. And deadlines of streams move with
every token: so each is looked at only when it passes, and if it has moved on, is put off.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from math import inf

import trio

FEW = 64
"""So many that were cancelled may stay; more must not be the half of all."""


class Deadline:
    """A moment, in seconds on Trio's clock, and what is called when it comes."""

    __slots__ = ("at", "call")

    def __init__(self, at: float, call: Callable[[], None]) -> None:
        self.at = at
        self.call: Callable[[], None] | None = call

    def __lt__(self, other: Deadline) -> bool:
        """For the heap, which would hold a tuple a stream else."""
        return self.at < other.at


class Deadlines:
    """Deadlines, and the task (`run`) that they come in."""

    def __init__(self) -> None:
        self._heap: list[Deadline] = []
        self._cancelled = 0
        self._waiting = trio.CancelScope()
        self._fatal: BaseException | None = None

    def set(self, at: float, call: Callable[[], None]) -> Deadline | None:
        """Have `call` called at a moment; `None` where that is never. It must not raise."""
        if at == inf:
            return None
        deadline = Deadline(at, call)
        heapq.heappush(self._heap, deadline)
        if at < self._waiting.deadline:  # noqa: PLR1730 - setting it costs more than looking
            self._waiting.deadline = at
        return deadline

    def cancel(self, deadline: Deadline) -> None:
        """Forget a deadline that has not come."""
        if deadline.call is None:
            return
        deadline.call = None  # Whom it belongs to is free at once, its place in the heap later.
        self._cancelled += 1
        if self._cancelled > FEW and self._cancelled > len(self._heap) // 2:
            self._heap = [each for each in self._heap if each.call is not None]
            heapq.heapify(self._heap)
            self._cancelled = 0

    def fail(self, error: BaseException) -> None:
        """Have the task end by `error`, which is meant for the whole program."""
        self._fatal = error
        self._waiting.cancel()

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Call what is due, until cancelled."""
        try:
            await self._run()
        finally:
            if self._fatal is not None:
                raise self._fatal

    async def _run(self) -> None:  # noqa: ASYNC910 - one, unless it is to fail already
        while self._fatal is None:
            with trio.CancelScope() as self._waiting:
                if self._heap:
                    self._waiting.deadline = self._heap[0].at
                await trio.sleep_forever()
            now = trio.current_time()
            while self._heap and self._heap[0].at <= now:
                deadline = heapq.heappop(self._heap)
                call, deadline.call = deadline.call, None
                if call is None:
                    self._cancelled -= 1
                else:
                    call()
