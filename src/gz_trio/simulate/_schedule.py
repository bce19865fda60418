"""When sessions begin in an open loop: at rates that change in straight lines, evenly or not."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from itertools import pairwise

RatePoints = Sequence[tuple[float, float]]
"""Points (seconds, sessions a second), joined by straight lines; the last rate stays."""


def expected(rate_at: RatePoints, until: float) -> float:
    """How many sessions begin until then, on average.

    >>> expected([(0.0, 0.0), (10.0, 20.0)], 15.0)
    200.0
    """
    total = 0.0
    for (start, rate), (end, next_rate) in pairwise([*rate_at, (math.inf, rate_at[-1][1])]):
        if start >= until:
            break
        stop = min(end, until)
        if stop == start:
            continue
        slope = (next_rate - rate) / (end - start)
        total += (stop - start) * (rate + slope * (stop - start) / 2)
    return total


def arrivals(
    rate_at: RatePoints, until: float, kind: str, *, seed: int, shard: int, shards: int
) -> Iterator[float]:
    """The instants at which a shard's sessions begin, in seconds from the start.

    Even arrivals are dealt out to the shards in turn, so that together they are even. Random ones
    are split by rate: Poisson processes add up to one.

    Args:
        rate_at: The rate of all shards together.
        until: When the last one may begin; not after it.
        kind: `"constant"` or `"poisson"`.
        seed: Of the random ones.
        shard: Which shard, from 0.
        shards: How many there are.

    >>> list(arrivals([(0.0, 4.0)], 1.0, "constant", seed=0, shard=1, shards=2))
    [0.25, 0.75]
    """
    dice = random.Random(f"arrivals/{seed}/{shard}/{shards}")
    # How many sessions of all shards should have begun: each arrival is a step of it.
    begun = float(shard) if kind == "constant" else dice.expovariate(1.0) * shards
    for start, end, rate, slope in _pieces(rate_at):
        if start >= until:
            return
        before = expected(rate_at, start)
        while (offset := _time_for(begun - before, rate, slope)) <= end - start:
            instant = start + offset
            if instant >= until or math.isinf(instant):  # Or the rate is 0 for ever.
                return
            yield instant
            begun += shards if kind == "constant" else dice.expovariate(1.0) * shards


def _pieces(rate_at: RatePoints) -> Iterator[tuple[float, float, float, float]]:
    """Start, end, rate at the start, and slope of each straight line that takes time."""
    for (start, rate), (end, next_rate) in pairwise([*rate_at, (math.inf, rate_at[-1][1])]):
        if end > start:
            yield start, end, rate, (next_rate - rate) / (end - start)


def _time_for(count: float, rate: float, slope: float) -> float:
    """How long it takes until so many have begun: the root of slope / 2 t² + rate t = count."""
    if count <= 0:
        return 0.0
    if slope == 0:
        return count / rate if rate else math.inf
    root = rate * rate + 2 * slope * count
    return 2 * count / (rate + math.sqrt(root)) if root >= 0 else math.inf
