"""Waiting for an instant, to the microsecond where the system can.

Python's epoll takes its time-out in whole milliseconds, rounded up, so a task that sleeps in Trio
wakes up to a millisecond late: as late as a simulator may be at all. On Linux a timerfd says to the
same epoll when the next instant has come; elsewhere Trio's own clock does.
"""

from __future__ import annotations

import ctypes
import heapq
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from itertools import count
from time import perf_counter_ns

import trio

from .._background import Background

_CLOCK_MONOTONIC = 1
_TFD_TIMER_ABSTIME = 1


class _TimeSpec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


class _ITimerSpec(ctypes.Structure):
    _fields_ = [("interval", _TimeSpec), ("value", _TimeSpec)]


class Timer:
    """Wakes tasks at instants of `time.perf_counter_ns`. Made by `open_timer`."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        if fd is not None:
            self._libc = ctypes.CDLL(None, use_errno=True)
        self._heap: list[tuple[int, int, trio.Event]] = []
        self._numbers = count()
        self._left = 0
        self._earlier = trio.Event()

    async def sleep_until(self, instant: int) -> None:
        """Wait until this instant, in nanoseconds.

        If it has passed, only a cancellation is looked for: who is late is not made later.
        """
        if instant <= perf_counter_ns():
            await trio.lowlevel.checkpoint_if_cancelled()
            return
        event = trio.Event()
        heapq.heappush(self._heap, (instant, next(self._numbers), event))
        if self._heap[0][2] is event:
            if self._fd is None:
                self._earlier.set()
            else:
                self._set(instant)
        try:
            await event.wait()
        finally:
            if not event.is_set():
                self._forget_who_left()

    def _forget_who_left(self) -> None:
        """Those who were cancelled stay in the heap until they are half of it."""
        self._left += 1
        if 2 * self._left > len(self._heap):
            self._heap = [one for one in self._heap if one[2].statistics().tasks_waiting]
            heapq.heapify(self._heap)
            self._left = 0

    async def run(self) -> None:
        """Wake the others, for ever."""
        while True:
            if self._fd is not None:
                await trio.lowlevel.wait_readable(self._fd)
                try:
                    os.read(self._fd, 8)
                except BlockingIOError:
                    continue  # It has been set anew meanwhile.
            else:
                await self._wait_for_the_first()
            now = perf_counter_ns()
            while self._heap and self._heap[0][0] <= now:
                heapq.heappop(self._heap)[2].set()
            if self._heap and self._fd is not None:
                self._set(self._heap[0][0])

    async def _wait_for_the_first(self) -> None:
        self._earlier = trio.Event()
        seconds = (self._heap[0][0] - perf_counter_ns()) / 1e9 if self._heap else float("inf")
        with trio.move_on_after(max(seconds, 0.0)):
            await self._earlier.wait()

    def _set(self, instant: int) -> None:
        seconds, nanoseconds = divmod(instant, 1_000_000_000)
        when = _ITimerSpec(_TimeSpec(0, 0), _TimeSpec(seconds, nanoseconds))
        if self._libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, ctypes.byref(when), None) < 0:
            raise OSError(ctypes.get_errno(), "the timer cannot be set")


@asynccontextmanager
async def open_timer() -> AsyncGenerator[Timer]:
    """A timer, for as long as the block runs.

    >>> async def main() -> None:
    ...     async with open_timer() as timer:
    ...         await timer.sleep_until(perf_counter_ns() + 1_000_000)
    >>> trio.run(main)
    """
    fd = None
    if sys.platform == "linux":  # Its perf_counter is CLOCK_MONOTONIC.
        libc = ctypes.CDLL(None, use_errno=True)
        fd = libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if fd < 0:
            raise OSError(ctypes.get_errno(), "the system gives no timer")
    try:
        timer = Timer(fd)
        async with Background("timer") as nursery:
            nursery.start_soon(timer.run)
            yield timer
    finally:
        if fd is not None:
            os.close(fd)
