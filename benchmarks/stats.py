"""From rounds to a verdict: paired ratios, an interval by the bootstrap, and the bound.

Each round measures all peers of a row one after another in an order of its own. What disturbs the
machine for longer than that disturbs both sides of a round's ratio, and is gone from it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

RESAMPLES = 10_000
CONFIDENCE = 0.95
QUICK_TOLERANCE = 1.15

Verdict = Literal["met", "missed", "undecided", "server-bound", "failed"]


@dataclass(frozen=True)
class Interval:
    """A figure, and where it lies with the confidence above."""

    low: float
    middle: float
    high: float


def geometric_mean(values: Sequence[float]) -> float:
    """The mean for ratios: that of the inverse is the inverse. All values are above 0."""
    return math.exp(sum(map(math.log, values)) / len(values))


def bootstrap(values: Sequence[float], seed: int = 0) -> Interval:
    """The geometric mean of rounds, with its percentile interval.

    Args:
        values: One a round, all above 0.
        seed: Of the resampling; the same values have the same interval.

    >>> bootstrap([2.0, 2.0, 2.0])
    Interval(low=2.0, middle=2.0, high=2.0)
    """
    logarithms = [math.log(value) for value in values]
    pick = random.Random(seed)
    count = len(logarithms)
    means = sorted(sum(pick.choices(logarithms, k=count)) / count for _ in range(RESAMPLES))
    tail = int(RESAMPLES * (1 - CONFIDENCE) / 2)
    return Interval(
        math.exp(means[tail]),
        math.exp(sum(logarithms) / count),
        math.exp(means[RESAMPLES - 1 - tail]),
    )


def verdict(interval: Interval, bound: float, *, at_most: bool) -> Verdict:
    """Whether a bound holds: only what the whole interval says is said."""
    if at_most:
        met, missed = interval.high <= bound, interval.low > bound
    else:
        met, missed = interval.low >= bound, interval.high < bound
    return "met" if met else "missed" if missed else "undecided"


def clearly_missed(interval: Interval, bound: float, *, at_most: bool) -> bool:
    """Whether even a short run shows a bound to be missed: by 15 %, in the middle."""
    if at_most:
        return interval.middle > bound * QUICK_TOLERANCE
    return interval.middle < bound / QUICK_TOLERANCE
