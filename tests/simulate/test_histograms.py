"""Histograms: merged ones know what one that saw everything would know."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import given
from hypothesis import strategies as st

from gz_trio.simulate._histograms import MOST_US, Histograms, Percentiles, Samples

HOUR_US = 3_600_000_000
PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
DIGITS = 1e-3
"""To three significant digits."""


def merged(*processes: Sequence[int], figure: str = "ttft") -> Histograms:
    """Of values in microseconds that several processes saw."""
    histograms = Histograms()
    for values in processes:
        samples = Samples()
        for value in values:
            samples.add(figure, value * 1000)
        histograms.merge(samples.take(), samples.out_of_range)
    return histograms


def nearest_rank(values: Sequence[float], percent: float) -> float | None:
    """The value of which so many percent are no greater; `inf` becomes `None`."""
    rank = max(1, int(percent * len(values) / 100 + 0.5))
    value = sorted(values)[rank - 1]
    return None if value == math.inf else value / 1000


def shown(percentiles: Percentiles) -> list[float | None]:
    return [percentiles.p50, percentiles.p90, percentiles.p95, percentiles.p99, percentiles.p999]


def agree(ours: float | None, truth: float | None) -> bool:
    if ours is None or truth is None:
        return ours is truth
    return ours == pytest.approx(truth, rel=DIGITS)


VALUES = st.lists(st.integers(0, HOUR_US) | st.integers(0, 100_000), max_size=60)


class TestPercentiles:
    def test_of_nothing_there_is_nothing(self) -> None:
        assert Histograms().percentiles("ttft") == Percentiles(count=0)

    def test_of_one_value_all_are_that_one(self) -> None:
        percentiles = merged([1500]).percentiles("ttft")
        assert shown(percentiles) == [1.5] * 5
        assert (percentiles.least, percentiles.mean, percentiles.most) == (1.5, 1.5, 1.5)

    def test_they_are_milliseconds(self) -> None:
        percentiles = merged(range(1, 1001)).percentiles("ttft")
        assert shown(percentiles) == [0.5, 0.9, 0.95, 0.99, 0.999]
        assert percentiles.mean == pytest.approx(0.5005)
        assert percentiles.count == 1000

    @given(st.lists(VALUES, min_size=1, max_size=5))
    def test_merged_they_are_those_of_all_values_together(self, processes: list[list[int]]) -> None:
        values = [value for process in processes for value in process]
        percentiles = merged(*processes).percentiles("ttft")
        assert percentiles.count == len(values)
        if values:
            truth = [nearest_rank(values, percent) for percent in PERCENTILES]
            assert all(map(agree, shown(percentiles), truth))
            assert agree(percentiles.least, min(values) / 1000)
            assert agree(percentiles.most, max(values) / 1000)
            assert agree(percentiles.mean, sum(values) / len(values) / 1000)

    @given(st.data(), VALUES)
    def test_the_split_and_the_order_do_not_matter(
        self, data: st.DataObject, values: list[int]
    ) -> None:
        in_order = data.draw(st.permutations(values))
        cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=4)))
        pieces = [in_order[a:b] for a, b in zip([0, *cuts], [*cuts, len(values)], strict=True)]
        assert merged(*pieces).percentiles("ttft") == merged(values).percentiles("ttft")

    def test_other_figures_are_kept_apart(self) -> None:
        histograms = merged([1000])
        samples = Samples()
        samples.add("itl", 5_000_000)
        histograms.merge(samples.take(), {})
        assert histograms.percentiles("ttft").most == 1
        assert histograms.percentiles("itl").most == pytest.approx(5, rel=DIGITS)
        assert histograms.figures() == ["ttft", "itl"]


class TestEndlessOnes:
    """Requests that failed have no end: they are longer than any other."""

    def test_a_percentile_that_falls_among_them_is_none(self) -> None:
        percentiles = merged(range(1, 91)).percentiles("ttft", endless=10)
        assert percentiles.count == 100
        assert percentiles.endless == 10
        assert shown(percentiles) == [0.05, 0.09, None, None, None]
        assert percentiles.most is None
        assert percentiles.least == 0.001

    def test_if_all_are_nothing_else_is_known(self) -> None:
        assert merged([]).percentiles("ttft", endless=3) == Percentiles(count=3, endless=3)

    @given(VALUES, st.integers(0, 60))
    def test_they_are_ranked_above_all_others(self, values: list[int], endless: int) -> None:
        percentiles = merged(values).percentiles("ttft", endless=endless)
        assert percentiles.count == len(values) + endless
        if percentiles.count:
            everything = [*map(float, values), *[math.inf] * endless]
            truth = [nearest_rank(everything, percent) for percent in PERCENTILES]
            assert all(map(agree, shown(percentiles), truth))

    @given(VALUES, VALUES, st.integers(0, 9))
    def test_another_figure_can_be_added(
        self, values: list[int], ages: list[int], endless: int
    ) -> None:
        histograms = merged(values)
        samples = Samples()
        for age in ages:
            samples.add("age", age * 1000)
        histograms.merge(samples.take(), {})
        together = merged(values + ages).percentiles("ttft", endless=endless)
        assert histograms.percentiles("ttft", endless=endless, also="age") == together
        assert histograms.percentiles("ttft") == merged(values).percentiles("ttft")


class TestWhatNoHistogramHolds:
    def test_more_than_an_hour_is_counted_apart(self) -> None:
        assert MOST_US == HOUR_US
        values = [1000, HOUR_US, HOUR_US + 1, 65 * 60_000_000, 10**15]
        percentiles = merged(values, [HOUR_US * 2]).percentiles("ttft")
        assert (percentiles.count, percentiles.out_of_range) == (2, 4)
        assert percentiles.most == pytest.approx(3_600_000, rel=DIGITS)

    def test_it_is_told_of_both_figures_that_are_added_up(self) -> None:
        histograms = merged([HOUR_US + 1])
        histograms.merge({}, {"age": 2, "itl": 7})
        assert histograms.percentiles("ttft", also="age").out_of_range == 3

    def test_a_microsecond_too_early_is_on_time(self) -> None:
        samples = Samples()
        samples.add("late", -1)
        samples.add("late", -5_000)
        histograms = Histograms()
        histograms.merge(samples.take(), samples.out_of_range)
        percentiles = histograms.percentiles("late")
        assert (percentiles.count, percentiles.most, percentiles.out_of_range) == (2, 0, 0)


class TestSamples:
    def test_what_was_taken_is_forgotten(self) -> None:
        samples = Samples()
        samples.add("ttft", 1000)
        assert set(samples.take()) == {"ttft"}
        assert samples.take() == {}

    def test_gaps_are_the_times_between_instants(self) -> None:
        samples = Samples()
        samples.add_gaps("icl", [5_000, 7_000, 7_000, 17_000])
        samples.add_gaps("icl", [99_000])
        samples.add_gaps("icl", [])
        histograms = Histograms()
        histograms.merge(samples.take(), {})
        percentiles = histograms.percentiles("icl")
        assert (percentiles.count, percentiles.least, percentiles.most) == (3, 0, 0.01)

    def test_other_programs_can_read_them(self) -> None:
        (encoded,) = merged([1000, 2000, 2_000_000]).encoded().values()
        assert re.fullmatch(r"HIST[A-Za-z0-9+/=]+", encoded)
        histogram = HdrHistogram.decode(encoded)
        assert histogram.get_total_count() == 3
        recorded = [item.value_iterated_to for item in histogram.get_recorded_iterator()]
        assert recorded[:2] == [1000, 2000]
