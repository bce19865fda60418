"""When sessions begin in an open loop: over all shards just as over one."""

from __future__ import annotations

import statistics
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gz_trio.simulate._schedule import RatePoints, arrivals, expected

FLAT: RatePoints = [(0.0, 4.0)]


def of_shard(
    points: RatePoints,
    until: float,
    kind: str = "constant",
    *,
    seed: int = 0,
    shard: int = 0,
    shards: int = 1,
) -> list[float]:
    return list(arrivals(points, until, kind, seed=seed, shard=shard, shards=shards))


def of_all(
    points: RatePoints, until: float, kind: str = "constant", *, seed: int = 0, shards: int
) -> list[float]:
    shares = (
        of_shard(points, until, kind, seed=seed, shard=shard, shards=shards)
        for shard in range(shards)
    )
    return sorted(instant for share in shares for instant in share)


class TestHowManyAreExpected:
    """The integral of the rate."""

    @pytest.mark.parametrize(
        ("points", "until", "count"),
        [
            (FLAT, 0.0, 0.0),
            (FLAT, 2.5, 10.0),
            ([(0.0, 0.0), (10.0, 20.0)], 5.0, 25.0),
            ([(0.0, 0.0), (10.0, 20.0)], 10.0, 100.0),
            ([(0.0, 0.0), (10.0, 20.0)], 15.0, 200.0),
            ([(0.0, 10.0), (10.0, 0.0)], 30.0, 50.0),
            ([(0.0, 5.0), (10.0, 5.0), (10.0, 50.0)], 12.0, 150.0),
            ([(0.0, 0.0)], 100.0, 0.0),
        ],
    )
    def test_it_is_the_area_below_the_lines(
        self, points: RatePoints, until: float, count: float
    ) -> None:
        assert expected(points, until) == pytest.approx(count)


class TestEvenArrivals:
    def test_they_are_as_far_apart_as_the_rate_says(self) -> None:
        assert of_shard(FLAT, 1.5) == [0.0, 0.25, 0.5, 0.75, 1.0, 1.25]

    def test_on_a_ramp_each_comes_when_the_area_has_grown_by_one(self) -> None:
        ramp: RatePoints = [(0.0, 0.0), (10.0, 20.0)]
        begun = of_shard(ramp, 20.0)
        assert len(begun) == 300
        for number, instant in enumerate(begun):
            assert expected(ramp, instant) == pytest.approx(number, abs=1e-6)

    def test_a_stage_without_time_is_a_jump(self) -> None:
        jump: RatePoints = [(0.0, 1.0), (2.0, 1.0), (2.0, 10.0)]
        assert of_shard(jump, 2.35) == pytest.approx([0.0, 1.0, 2.0, 2.1, 2.2, 2.3])

    def test_a_pause_in_the_middle_is_silent(self) -> None:
        pause: RatePoints = [(0.0, 2.0), (1.0, 2.0), (1.0, 0.0), (5.0, 0.0), (5.0, 2.0)]
        assert of_shard(pause, 6.0) == pytest.approx([0.0, 0.5, 1.0, 5.5])

    def test_where_the_rate_falls_to_nothing_they_end(self) -> None:
        assert len(of_shard([(0.0, 10.0), (10.0, 0.0)], float("inf"))) in (50, 51)

    @pytest.mark.parametrize("shards", [2, 3, 7])
    def test_those_of_all_shards_together_are_those_of_one(self, shards: int) -> None:
        bent: RatePoints = [(0.0, 3.0), (5.0, 30.0), (8.0, 30.0), (8.0, 1.0)]
        assert of_all(bent, 12.0, shards=shards) == pytest.approx(of_shard(bent, 12.0))

    def test_the_shards_take_turns(self) -> None:
        assert of_shard(FLAT, 1.0, shard=0, shards=2) == [0.0, 0.5]
        assert of_shard(FLAT, 1.0, shard=1, shards=2) == [0.25, 0.75]


class TestRandomArrivals:
    """Poisson: gaps are exponential, counts of equal times have their mean as variance."""

    def test_one_process_has_the_rate_and_exponential_gaps(self) -> None:
        begun = of_shard([(0.0, 50.0)], 400.0, "poisson")
        assert len(begun) == pytest.approx(20_000, rel=0.03)
        gaps = [b - a for a, b in pairwise(begun)]
        assert statistics.fmean(gaps) == pytest.approx(0.02, rel=0.03)
        assert statistics.pstdev(gaps) == pytest.approx(0.02, rel=0.05)
        assert statistics.median(gaps) == pytest.approx(0.02 * 0.6931, rel=0.05)

    def test_shards_together_are_one_such_process_at_the_whole_rate(self) -> None:
        begun = of_all([(0.0, 50.0)], 400.0, "poisson", shards=5)
        assert len(begun) == pytest.approx(20_000, rel=0.03)
        gaps = [b - a for a, b in pairwise(begun)]
        assert statistics.pstdev(gaps) == pytest.approx(statistics.fmean(gaps), rel=0.05)

    def test_what_one_shard_does_says_nothing_of_another(self) -> None:
        def counts(shard: int) -> list[int]:
            begun = of_shard([(0.0, 20.0)], 1000.0, "poisson", shard=shard, shards=2)
            seconds = [0] * 1000
            for instant in begun:
                seconds[int(instant)] += 1
            return seconds

        one, other = counts(0), counts(1)
        assert abs(statistics.correlation(one, other)) < 0.1
        assert statistics.pvariance(one) == pytest.approx(statistics.fmean(one), rel=0.15)

    def test_no_two_of_them_come_at_the_same_instants(self) -> None:
        shares = [of_shard(FLAT, 100.0, "poisson", shard=n, shards=3) for n in range(3)]
        assert len({instant for share in shares for instant in share}) == sum(map(len, shares))

    def test_the_seed_decides(self) -> None:
        assert of_shard(FLAT, 50.0, "poisson") == of_shard(FLAT, 50.0, "poisson")
        assert of_shard(FLAT, 50.0, "poisson") != of_shard(FLAT, 50.0, "poisson", seed=1)

    def test_they_follow_a_ramp(self) -> None:
        begun = of_all([(0.0, 0.0), (100.0, 100.0)], 100.0, "poisson", shards=3)
        assert len(begun) == pytest.approx(5000, rel=0.05)
        assert sum(instant < 50 for instant in begun) == pytest.approx(1250, rel=0.1)


@st.composite
def rates(draw: st.DrawFn) -> RatePoints:
    stages = draw(
        st.lists(
            st.tuples(st.one_of(st.just(0.0), st.floats(0.01, 20)), st.floats(0, 50)), max_size=5
        )
    )
    points = [(0.0, draw(st.floats(0, 50)))]
    for took, rate in stages:
        points.append((points[-1][0] + took, rate))
    return points


@given(rates(), st.floats(0, 30), st.sampled_from(["constant", "poisson"]), st.integers(1, 4))
def test_they_are_in_order_and_in_time(
    points: RatePoints, until: float, kind: str, shards: int
) -> None:
    for shard in range(shards):
        begun = of_shard(points, until, kind, shard=shard, shards=shards)
        assert begun == sorted(begun)
        assert all(0 <= instant < until for instant in begun)


@given(rates(), st.floats(0, 30), st.integers(1, 4))
def test_even_ones_are_as_many_as_expected(points: RatePoints, until: float, shards: int) -> None:
    assert abs(len(of_all(points, until, shards=shards)) - expected(points, until)) <= 1 + 1e-6


@given(rates(), st.floats(0, 30), st.integers(0, 1000), st.integers(1, 4))
def test_random_ones_are_about_as_many_as_expected(
    points: RatePoints, until: float, seed: int, shards: int
) -> None:
    count = expected(points, until)
    begun = of_all(points, until, "poisson", seed=seed, shards=shards)
    assert abs(len(begun) - count) <= 6 * count**0.5 + 6
