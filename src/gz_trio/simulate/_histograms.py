"""Histograms of durations: counted by the microsecond, kept by HdrHistogram, merged, never sampled.

A process counts what it sees in plain counters, which is cheap for each value, and once a second
tells them, rounded: making histograms of them takes milliseconds, in which every token would be
late, so that is left to who merges them. Percentiles come from merged histograms alone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import accumulate, pairwise

import msgspec
from hdrh.histogram import HdrHistogram

LEAST_US, MOST_US, DIGITS = 1, 3_600_000_000, 3
"""A microsecond to an hour, to three significant digits."""

EXACT_US = 2048
"""Below it, HdrHistogram tells each microsecond from the next; above, as many in each octave."""

Counts = dict[int, int]
"""How often there was each value, in microseconds, rounded as HdrHistogram rounds."""


class Percentiles(msgspec.Struct, frozen=True, kw_only=True):
    """One figure over many requests, or gaps, in milliseconds.

    Attributes:
        count: How many there are, those that have no end included.
        mean: Of those that have one; `None` if there is none.
        least: The smallest.
        p50: The median. A percentile that falls among those that have no end is `None`.
        p90: As it says; so the rest.
        p95: ...
        p99: ...
        p999: The 99.9th.
        most: The largest.
        endless: How many have no end, because their request failed.
        out_of_range: How many were longer than an hour, and are not among `count`.
    """

    count: int
    mean: float | None = None
    least: float | None = None
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    p999: float | None = None
    most: float | None = None
    endless: int = 0
    out_of_range: int = 0


class Samples:
    """What one process saw of several figures since it was last asked.

    Attributes:
        out_of_range: How many values no histogram can hold, by figure.
    """

    def __init__(self) -> None:
        self._counters: dict[str, Counter[int]] = {}
        self.out_of_range: Counter[str] = Counter()

    def add(self, figure: str, ns: float) -> None:
        """Count one value, in nanoseconds."""
        self._counter(figure)[int(ns) // 1000] += 1

    def add_gaps(self, figure: str, instants: Iterable[int]) -> None:
        """Count the time from each of these instants to the next, in nanoseconds."""
        self._counter(figure).update([(b - a) // 1000 for a, b in pairwise(instants)])

    def _counter(self, figure: str) -> Counter[int]:
        counter = self._counters.get(figure)
        if counter is None:
            counter = self._counters[figure] = Counter()
        return counter

    def take(self) -> dict[str, Counts]:
        """All that was counted, by figure; and forget it."""
        taken: dict[str, Counts] = {}
        for figure, counter in self._counters.items():
            counts = taken[figure] = {}
            for value, count in counter.items():
                if value > MOST_US:
                    self.out_of_range[figure] += count
                    continue
                # A request may be sent microseconds before its time: that is on time.
                place = max(value, 0)
                if place >= EXACT_US:
                    shift = place.bit_length() - EXACT_US.bit_length() + 1
                    place = place >> shift << shift
                counts[place] = counts.get(place, 0) + count
        self._counters.clear()
        return taken


class Histograms:
    """Merged histograms, by figure.

    Attributes:
        out_of_range: As of `Samples`, merged.
    """

    def __init__(self) -> None:
        self._histograms: dict[str, HdrHistogram] = {}
        self.out_of_range: Counter[str] = Counter()

    def merge(self, taken: Mapping[str, Counts], out_of_range: Mapping[str, int]) -> None:
        """Add what a process saw; see `Samples.take`."""
        for figure, counts in taken.items():
            if figure not in self._histograms:
                self._histograms[figure] = _empty()
            histogram = self._histograms[figure]
            for value, count in counts.items():
                histogram.record_value(value, count)
        self.out_of_range.update(out_of_range)

    def figures(self) -> list[str]:
        """Those of which there is something."""
        return list(self._histograms)

    def percentiles(self, figure: str, *, endless: int = 0, also: str | None = None) -> Percentiles:
        """Of a figure, in milliseconds.

        Args:
            figure: Its name.
            endless: So many more have no end.
            also: Another figure, whose values are added.
        """
        histogram = self._histograms.get(figure) or _empty()
        if also is not None and also in self._histograms:
            both = _empty()
            both.add(histogram)
            both.add(self._histograms[also])
            histogram = both
        out_of_range = self.out_of_range[figure] + (self.out_of_range[also] if also else 0)
        # Not by its own methods: each of them looks at all of 24,000 places, for each percentile.
        recorded = [(place, times) for place, times in enumerate(histogram.counts) if times]
        ended = sum(times for _, times in recorded)
        count = ended + endless
        if not ended:
            return Percentiles(count=count, endless=endless, out_of_range=out_of_range)
        values = [histogram.get_value_from_index(place) for place, _ in recorded]
        up_to = list(accumulate(times for _, times in recorded))
        total = sum(
            _middle(histogram, value) * times
            for value, (_, times) in zip(values, recorded, strict=True)
        )

        def percentile(percent: float) -> float | None:
            rank = max(1, int(percent * count / 100 + 0.5))
            if rank > ended:
                return None
            return _most(histogram, values[bisect_left(up_to, rank)]) / 1000

        return Percentiles(
            count=count,
            mean=total / ended / 1000,
            least=values[0] / 1000,
            p50=percentile(50),
            p90=percentile(90),
            p95=percentile(95),
            p99=percentile(99),
            p999=percentile(99.9),
            most=None if endless else _most(histogram, values[-1]) / 1000,
            endless=endless,
            out_of_range=out_of_range,
        )

    def encoded(self) -> dict[str, str]:
        """Each as HdrHistogram writes it (V2, compressed, base64), for other programs to read."""
        return {figure: h.encode().decode() for figure, h in self._histograms.items()}


def _most(histogram: HdrHistogram, value: int) -> int:
    """The largest value that is counted at the same place."""
    return int(histogram.get_highest_equivalent_value(value))


def _middle(histogram: HdrHistogram, value: int) -> float:
    """Half way between the values that are counted at the same place."""
    return (value + _most(histogram, value)) / 2


def _empty() -> HdrHistogram:
    return HdrHistogram(LEAST_US, MOST_US, DIGITS)
