"""Moments that something is done at, many of them in one task."""

# pyright: reportPrivateUsage=false
from __future__ import annotations

from functools import partial
from math import inf

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from gz_trio._transport.deadlines import FEW, Deadline, Deadlines


@pytest.fixture
async def deadlines(nursery: trio.Nursery) -> Deadlines:
    deadlines = Deadlines()
    nursery.start_soon(deadlines.run)
    await wait_all_tasks_blocked()
    return deadlines


class Calls:
    """Who was called, and when."""

    def __init__(self, deadlines: Deadlines) -> None:
        self.made: list[tuple[str, float]] = []
        self._deadlines = deadlines

    def at(self, at: float, name: str) -> Deadline | None:
        return self._deadlines.set(at, lambda: self.made.append((name, trio.current_time())))


async def test_each_is_called_once_when_it_comes(
    autojump_clock: MockClock, deadlines: Deadlines
) -> None:
    calls = Calls(deadlines)
    for at in (5, 2, 9, 2):
        calls.at(at, f"at {at}")
    await trio.sleep(100)
    assert calls.made == [("at 2", 2), ("at 2", 2), ("at 5", 5), ("at 9", 9)]


async def test_one_that_is_set_later_may_come_sooner(
    autojump_clock: MockClock, deadlines: Deadlines
) -> None:
    calls = Calls(deadlines)
    calls.at(9, "first")
    await trio.sleep(1)
    calls.at(3, "second")
    await trio.sleep(100)
    assert calls.made == [("second", 3), ("first", 9)]


async def test_what_is_in_the_past_is_called_at_once_but_not_by_who_sets_it(
    autojump_clock: MockClock, deadlines: Deadlines
) -> None:
    calls = Calls(deadlines)
    await trio.sleep(5)
    calls.at(3, "late")
    assert calls.made == []
    await wait_all_tasks_blocked()
    assert calls.made == [("late", 5)]


async def test_never_is_no_moment(autojump_clock: MockClock, deadlines: Deadlines) -> None:
    assert Calls(deadlines).at(inf, "never") is None


async def test_what_is_set_before_the_task_runs_comes_too(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    deadlines = Deadlines()
    calls = Calls(deadlines)
    calls.at(3, "early")
    nursery.start_soon(deadlines.run)
    await trio.sleep(10)
    assert calls.made == [("early", 3)]


async def test_one_that_is_called_may_set_and_cancel_others(
    autojump_clock: MockClock, deadlines: Deadlines
) -> None:
    calls = Calls(deadlines)

    def call() -> None:
        calls.at(7, "set within")
        assert same_time is not None
        deadlines.cancel(same_time)

    deadlines.set(5, call)
    same_time = calls.at(5, "cancelled within")
    await trio.sleep(100)
    assert calls.made == [("set within", 7)]


async def test_one_that_was_cancelled_is_not_called(
    autojump_clock: MockClock, deadlines: Deadlines
) -> None:
    calls = Calls(deadlines)
    first, second = calls.at(2, "first"), calls.at(3, "second")
    assert first is not None
    assert second is not None
    deadlines.cancel(first)
    deadlines.cancel(first)
    await trio.sleep(10)
    deadlines.cancel(second)  # it has come already
    assert calls.made == [("second", 3)]


async def test_those_that_were_cancelled_take_no_room_for_long(
    autojump_clock: MockClock, deadlines: Deadlines
) -> None:
    """Each request sets one, minutes away, and most are answered at once."""
    calls = Calls(deadlines)
    calls.at(300, "kept")
    for _ in range(10_000):
        deadline = calls.at(300, "cancelled")
        assert deadline is not None
        deadlines.cancel(deadline)
        assert len(deadlines._heap) <= 2 * FEW + 2
    await trio.sleep(301)
    assert calls.made == [("kept", 300)]
    assert deadlines._heap == []


@given(
    st.lists(
        st.tuples(st.sampled_from(["set", "set", "cancel", "sleep"]), st.integers(0, 20)),
        max_size=200,
    )
)
def test_whatever_is_done_each_comes_in_its_time_or_is_cancelled(
    steps: list[tuple[str, int]],
) -> None:
    async def main() -> None:
        deadlines = Deadlines()
        made: list[tuple[int, float]] = []

        def call(index: int) -> None:
            made.append((index, trio.current_time()))

        expected: dict[int, float] = {}
        handles: list[Deadline | None] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(deadlines.run)
            for step, number in steps:
                match step:
                    case "set":
                        index, at = len(handles), trio.current_time() + number
                        expected[index] = at
                        handles.append(deadlines.set(at, partial(call, index)))
                    case "cancel" if handles:
                        index = number % len(handles)
                        handle = handles[index]
                        assert handle is not None
                        if handle.call is not None:
                            del expected[index]
                        deadlines.cancel(handle)
                    case _:
                        await trio.sleep(number)
            await trio.sleep(100)
            nursery.cancel_scope.cancel()
        assert sorted(made) == sorted(expected.items())

    trio.run(main, clock=MockClock(autojump_threshold=0))
