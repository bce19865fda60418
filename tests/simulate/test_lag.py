"""How the simulator watches itself: the time between two looks at its sockets, and its CPU."""

from __future__ import annotations

import time

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from gz_trio.simulate import _lag
from gz_trio.simulate._lag import Lag, limit_ms, p99


class Clocks:
    """Of the wall and of the process, which stand still unless they are moved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall = 1_000_000_000
        self.cpu = 0
        monkeypatch.setattr(_lag, "perf_counter_ns", lambda: self.wall)
        monkeypatch.setattr(time, "process_time_ns", lambda: self.cpu)


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    return Clocks(monkeypatch)


def turn(lag: Lag, clocks: Clocks, *, worked_us: int, waited_us: int) -> None:
    """One turn of Trio's loop."""
    clocks.wall += worked_us * 1000
    clocks.cpu += worked_us * 1000
    lag.before_io_wait(1.0)
    clocks.wall += waited_us * 1000
    lag.after_io_wait(1.0)


def test_what_counts_is_the_time_between_two_looks_not_that_of_a_look(clocks: Clocks) -> None:
    lag = Lag()
    for _ in range(3):
        turn(lag, clocks, worked_us=700, waited_us=5_000)
    assert lag.take()[0] == 0.7


def test_the_share_of_cpu_is_that_of_all_the_time(clocks: Clocks) -> None:
    lag = Lag()
    for _ in range(10):
        turn(lag, clocks, worked_us=300, waited_us=700)
    assert lag.take()[1] == pytest.approx(0.3)


def test_what_was_taken_is_forgotten(clocks: Clocks) -> None:
    lag = Lag()
    turn(lag, clocks, worked_us=90_000, waited_us=0)
    lag.take()
    turn(lag, clocks, worked_us=100, waited_us=900)
    lag_ms, cpu = lag.take()
    assert lag_ms == 0.1
    assert cpu == pytest.approx(0.1)


def test_of_no_time_at_all_there_is_nothing_to_tell(clocks: Clocks) -> None:
    assert Lag().take() == (0.0, 0.0)


def test_one_in_a_hundred_may_be_slow(clocks: Clocks) -> None:
    lag = Lag()
    for slow in (1, 2):
        for number in range(100):
            turn(lag, clocks, worked_us=5_000 if number < slow else 10, waited_us=0)
        assert lag.take()[0] == (0.01 if slow == 1 else 5.0)


async def test_trio_tells_it_of_each_look() -> None:
    lag = Lag()
    trio.lowlevel.add_instrument(lag)
    try:
        for _ in range(5):
            await trio.lowlevel.checkpoint()
    finally:
        trio.lowlevel.remove_instrument(lag)
    assert lag.take()[0] > 0


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=300))
def test_the_99th_percentile_is_one_of_the_values_and_few_are_greater(values: list[int]) -> None:
    assert p99(values) in values
    assert sum(value > p99(values) for value in values) <= 0.01 * len(values) + 1


@pytest.mark.parametrize(
    ("limits", "milliseconds"),
    [
        ({}, 1.0),
        ({"ttft": 0.5}, 1.0),
        ({"ttft": 0.5, "itl": 0.01}, 0.5),
        ({"itl": 0.0}, 0.0),
    ],
)
def test_the_limit_is_a_millisecond_or_a_twentieth_of_the_tightest(
    limits: dict[str, float], milliseconds: float
) -> None:
    assert limit_ms(limits) == pytest.approx(milliseconds)
