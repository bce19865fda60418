"""The search for how many streams a core holds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.capacity import GRID, Held, Outcome, Ratio, compare, find
from benchmarks.measure import Window


def window(cpu: float) -> Window:
    return Window(seconds=3.0, tokens=1000, cpu=cpu, client=0.9, server=0.5, others=0.0)


class Core:
    """Holds so many streams, over a server that serves so many; counts how often it is asked."""

    def __init__(self, holds: int, serves: int = 10**9) -> None:
        self.holds = holds
        self.serves = serves
        self.probes = 0

    def __call__(self, streams: int) -> tuple[Outcome, Window | None]:
        self.probes += 1
        if streams > self.holds:
            return "late", None
        return ("server" if streams > self.serves else "held"), window(10.0)


@given(st.integers(0, 10_000), st.none() | st.integers(1, 10_000))
def test_the_most_that_is_held_is_found_wherever_the_search_begins(
    holds: int, near: int | None
) -> None:
    found = find(Core(holds), near)
    assert found.streams == max((streams for streams in GRID if streams <= holds), default=0)


def test_a_search_near_the_answer_takes_few_probes() -> None:
    core = Core(1000)
    find(core)
    whole, core.probes = core.probes, 0
    assert find(core, near=1000).streams <= 1000
    assert core.probes <= 3 < whole


@pytest.mark.parametrize(
    ("holds", "serves", "limit"), [(1000, 2000, "late"), (2000, 1000, "server")]
)
def test_what_the_limit_was_is_told(holds: int, serves: int, limit: Outcome) -> None:
    found = find(Core(holds, serves))
    assert found.limit == limit
    assert 970 <= found.streams <= 1000


def test_where_nothing_is_held_none_are() -> None:
    assert find(Core(0)).streams == 0


def held(streams: int, limit: Outcome, cpu: float = 10.0) -> Held:
    return Held(streams=streams, window=window(cpu), limit=limit, probes=[])


@pytest.mark.parametrize(
    ("ours", "peer", "expected"),
    [
        (held(1200, "late"), held(1000, "late"), Ratio(1.2, at_least=False)),
        (held(1200, "server"), held(1000, "late"), Ratio(1.2, at_least=True)),
        (held(900, "late"), held(1000, "server"), Ratio(0.9, at_least=False)),
        (held(1000, "server", 8.0), held(1000, "server", 10.0), Ratio(1.25, at_least=False)),
    ],
    ids=["both late", "the server limits ours", "and the peer's", "and both: CPU decides"],
)
def test_streams_are_compared_by_what_limited_them(ours: Held, peer: Held, expected: Ratio) -> None:
    assert compare(ours, peer) == expected
