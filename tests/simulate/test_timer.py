"""Waiting for an instant: to the nanosecond as far as the system is told, and never too early."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator
from time import perf_counter_ns
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gz_trio.simulate._timer import Timer, open_timer

MS = 1_000_000
HOUR = 3_600_000 * MS
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has timerfds")


@pytest.fixture(params=[pytest.param("linux", marks=LINUX), "darwin"])
async def timer(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncGenerator[Timer]:
    """By a timerfd, and by Trio's own clock."""
    monkeypatch.setattr(sys, "platform", request.param)
    async with open_timer() as timer:
        yield timer


class TestWaking:
    async def test_nobody_is_woken_before_its_instant(self, timer: Timer) -> None:
        for microseconds in (1, 300, 999, 1_001, 2_500):
            instant = perf_counter_ns() + microseconds * 1000
            await timer.sleep_until(instant)
            assert perf_counter_ns() >= instant

    async def test_everybody_is_woken_in_whichever_order_they_came(self, timer: Timer) -> None:
        now = perf_counter_ns()

        async def sleep(milliseconds: int) -> None:
            await timer.sleep_until(now + milliseconds * MS)
            assert perf_counter_ns() >= now + milliseconds * MS

        async with trio.open_nursery() as nursery:
            for milliseconds in (15, 30, 5, 25, 10, 20):
                nursery.start_soon(sleep, milliseconds)
                await wait_all_tasks_blocked()

    async def test_many_at_the_same_instant_are_woken_together(self, timer: Timer) -> None:
        instant = perf_counter_ns() + 5 * MS
        async with trio.open_nursery() as nursery:
            for _ in range(1000):
                nursery.start_soon(timer.sleep_until, instant)

    @pytest.mark.parametrize("ago", [0, 1, HOUR, 10**30])
    async def test_for_an_instant_that_has_passed_only_a_cancellation_is_looked_for(
        self, timer: Timer, ago: int
    ) -> None:
        await timer.sleep_until(perf_counter_ns() - ago)
        with trio.CancelScope() as scope:
            scope.cancel()
            await timer.sleep_until(perf_counter_ns() - ago)
        assert scope.cancelled_caught

    async def test_an_earlier_instant_comes_first_though_it_was_named_later(
        self, timer: Timer
    ) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(timer.sleep_until, perf_counter_ns() + HOUR)
            await wait_all_tasks_blocked()
            await timer.sleep_until(perf_counter_ns() + 2 * MS)
            nursery.cancel_scope.cancel()


class TestCancelling:
    async def test_it_leaves_the_others_alone(self, timer: Timer) -> None:
        instant = perf_counter_ns() + 20 * MS
        async with trio.open_nursery() as nursery:
            nursery.start_soon(timer.sleep_until, instant)
            nursery.start_soon(timer.sleep_until, instant + MS)
            with trio.move_on_after(0):
                await timer.sleep_until(instant - MS)
        assert perf_counter_ns() >= instant + MS

    async def test_what_is_left_of_it_does_not_pile_up(self, timer: Timer) -> None:
        async with trio.open_nursery() as nursery:
            for hours in range(1, 4):
                nursery.start_soon(timer.sleep_until, perf_counter_ns() + hours * HOUR)
            await wait_all_tasks_blocked()
            for _ in range(1000):
                with trio.move_on_after(0):
                    await timer.sleep_until(perf_counter_ns() + HOUR)
            assert len(timer._heap) <= 6
            nursery.cancel_scope.cancel()
        assert timer._heap == []


class Libc:
    """In place of the system: notes what it is told, and never wakes anybody."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []

    def timerfd_settime(self, _fd: int, flags: int, value: Any, _old: None) -> int:
        when = value._obj.value
        self.told.append((flags, when.seconds * 1_000_000_000 + when.nanoseconds))
        return 0


@LINUX
class TestWhatTheSystemIsTold:
    async def test_the_instant_itself_not_a_number_of_milliseconds(self) -> None:
        instant = perf_counter_ns() + HOUR + 123_456_789
        async with open_timer() as timer, trio.open_nursery() as nursery:
            timer._libc = libc = Libc()  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]
            nursery.start_soon(timer.sleep_until, instant)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        absolute = 1
        assert libc.told == [(absolute, instant)]

    async def test_only_the_first_of_all_instants(self) -> None:
        begin = perf_counter_ns() + HOUR
        async with open_timer() as timer, trio.open_nursery() as nursery:
            timer._libc = libc = Libc()  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]
            for place in (5, 7, 3, 9, 3, 1):
                nursery.start_soon(timer.sleep_until, begin + place)
                await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert [instant - begin for _, instant in libc.told] == [5, 3, 1]

    async def test_when_one_has_come_the_next(self) -> None:
        far = perf_counter_ns() + HOUR
        async with open_timer() as timer, trio.open_nursery() as nursery:
            nursery.start_soon(timer.sleep_until, far)
            await wait_all_tasks_blocked()
            assert remaining(timer) > HOUR // 2
            await timer.sleep_until(perf_counter_ns() + MS)
            await wait_all_tasks_blocked()
            assert remaining(timer) > HOUR // 2
            nursery.cancel_scope.cancel()

    async def test_its_file_is_closed_at_the_end(self) -> None:
        before = os.listdir("/proc/self/fd")
        async with open_timer():
            assert len(os.listdir("/proc/self/fd")) > len(before)
        assert os.listdir("/proc/self/fd") == before

    async def test_what_the_block_raises_comes_out_as_it_is(self) -> None:
        with pytest.raises(KeyError):
            async with open_timer():
                raise KeyError


async def test_elsewhere_there_is_no_such_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.delattr(os, "O_NONBLOCK", raising=False)
    async with open_timer() as timer:
        assert timer._fd is None
        await timer.sleep_until(perf_counter_ns() + MS)


def remaining(timer: Timer) -> int:
    """Until the system wakes it, in nanoseconds."""
    with open(f"/proc/self/fdinfo/{timer._fd}", encoding="ascii") as file:
        (line,) = [line for line in file if line.startswith("it_value")]
    seconds, _, nanoseconds = line.partition("(")[2].rstrip(")\n").partition(",")
    return int(seconds) * 1_000_000_000 + int(nanoseconds)
