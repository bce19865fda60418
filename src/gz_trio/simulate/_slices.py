"""One run in slices of time, so that pieces of it can be drawn again and its figures taken anew."""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from operator import mul

from ._histograms import LEAST_US
from ._records import RequestRecord
from ._result import Result
from ._workload import Workload

SLICES = 60
"""A run is cut into at most so many, of whole seconds each."""


class Slices:
    """The requests of one run, by the slice of time that they were intended in.

    A resample is a weight for each slice: how often it was drawn. `Slices.draw` draws blocks of
    consecutive ones (the circular block bootstrap, Politis and Romano 1992).

    Args:
        result: Of the run.
        requests: All of them.

    Attributes:
        blocks: How many blocks the run is long.
    """

    def __init__(self, result: Result, requests: Iterable[RequestRecord]) -> None:
        limits = Workload.of(result.workload).limits
        begin, end = result.warm_up, result.warm_up + result.seconds
        first = math.floor(begin)
        size = max(1, math.ceil((math.ceil(end) - first) / SLICES))
        self._count = max(1, math.ceil((math.ceil(end) - first) / size))

        def place(second: float) -> int:
            return min(max(0, int(second - first) // size), self._count - 1)

        empty = [0.0] * self._count
        self._intended, self._good, self._seconds = empty.copy(), empty.copy(), empty.copy()
        self._tokens, self._ended, self._whole_seconds = empty.copy(), empty.copy(), empty.copy()
        durations: dict[str, list[tuple[float, int]]] = {}
        longest = 0
        for record in requests:
            if not record.window or record.outcome == "cancelled":
                continue
            where = place(record.intended / 1e9)
            longest = max(longest, record.ended - record.sent)
            self._intended[where] += 1
            if record.outcome == "ok":
                self._good[where] += record.keeps_to(limits)
                for name, value in _durations(record):
                    durations.setdefault(name, []).append((value, where))
        for number in range(self._count):
            since = first + number * size
            self._seconds[number] = max(0.0, min(end, since + size) - max(begin, since))
        for second in result.series:
            if begin <= second.second <= end - 1:
                where = place(second.second)
                self._tokens[where] += second.tokens
                self._ended[where] += second.ok
                self._whole_seconds[where] += 1
        self._ranked = {name: _Ranked(values, self._count) for name, values in durations.items()}
        # Requests that overlap share their fate. The cube root is the order of the best length of a
        # block where that is all that is known (Hall, Horowitz and Jing 1995).
        self._block = max(round(self._count ** (1 / 3)), math.ceil(longest / 1e9 / size))
        self.blocks = self._count // self._block

    def draw(self, dice: random.Random) -> list[int]:
        """Blocks that begin anywhere, and go on from the start where the run ends."""
        weights = [0] * self._count
        drawn = 0
        while drawn < self._count:
            begin = dice.randrange(self._count)
            length = min(self._block, self._count - drawn)
            for place in range(begin, begin + length):
                weights[place % self._count] += 1
            drawn += length
        return weights

    def values(self, name: str) -> int:
        """How many replies have this figure."""
        return self._ranked[name].count if name in self._ranked else 0

    def percentile(self, name: str, percent: float, weights: Sequence[int]) -> float | None:
        """Of a duration, in milliseconds."""
        return self._ranked[name].percentile(percent, weights)

    def goodput(self, weights: Sequence[int]) -> float:
        """Good requests a second."""
        return _share(self._good, self._seconds, weights)

    def good_fraction(self, weights: Sequence[int]) -> float:
        """The good of the intended."""
        return _share(self._good, self._intended, weights)

    def tokens_per_second(self, weights: Sequence[int]) -> float:
        """Of those seconds that lie wholly in the window."""
        return _share(self._tokens, self._whole_seconds, weights)

    def requests_per_second(self, weights: Sequence[int]) -> float:
        """Likewise."""
        return _share(self._ended, self._whole_seconds, weights)


def _share(part: Sequence[float], whole: Sequence[float], weights: Sequence[int]) -> float:
    of = sum(map(mul, whole, weights))
    return sum(map(mul, part, weights)) / of if of else 0.0


def _durations(record: RequestRecord) -> Iterable[tuple[str, float]]:
    """What is known of a request, in milliseconds, as fine as a histogram would have it."""
    late = record.sent - record.intended
    for name, value in (
        ("ttft", record.ttft),
        ("ttfo", record.ttfo),
        ("latency", record.latency),
    ):
        if value is not None:
            yield name, _rounded(value)
            yield f"{name}_intended", _rounded(value + late)
    if record.itl is not None:
        yield "itl", _rounded(record.itl)


def _rounded(ns: float) -> float:
    return math.exp(round(1000 * math.log(max(ns / 1000, LEAST_US))) / 1000) / 1000


class _Ranked:
    """Values in order, and for each how many that are no greater lie in each slice.

    So a percentile of a resample takes a bisection: it is asked for some ten thousand times.
    """

    def __init__(self, values: Sequence[tuple[float, int]], slices: int) -> None:
        self.count = len(values)
        self._values: list[float] = []
        self._below: list[tuple[int, ...]] = []
        below = [0] * slices
        in_order = sorted(values)
        for number, (value, place) in enumerate(in_order, 1):
            below[place] += 1
            if number == self.count or in_order[number][0] != value:
                self._values.append(value)
                self._below.append(tuple(below))

    def percentile(self, percent: float, weights: Sequence[int]) -> float | None:
        """The nearest rank's value; `None`: no value has a weight."""

        def weight(below: tuple[int, ...]) -> int:
            return sum(map(mul, below, weights))

        count = weight(self._below[-1])
        rank = max(1, int(percent * count / 100 + 0.5))
        return self._values[bisect_left(self._below, rank, key=weight)] if count else None
