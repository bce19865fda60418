"""Whether the simulator itself is too slow: how seldom it looks at its sockets, and its CPU."""

from __future__ import annotations

import time
from array import array
from collections.abc import Sequence
from heapq import nlargest
from time import perf_counter_ns

import trio

LIMIT_MS = 1.0
LIMIT_SHARE = 0.05
"""Of the tightest limit that requests have to keep to."""

LIMIT_CPU = 0.9


class Lag(trio.abc.Instrument):
    """Takes the time between two looks at the sockets, in which what came has to wait."""

    def __init__(self) -> None:
        self._looked = perf_counter_ns()
        self._waits = array("q")
        self._cpu = time.process_time_ns()
        self._since = self._looked

    def before_io_wait(self, timeout: float) -> None:  # noqa: ARG002 - Trio gives it
        """See `trio.abc.Instrument`."""
        self._waits.append(perf_counter_ns() - self._looked)

    def after_io_wait(self, timeout: float) -> None:  # noqa: ARG002 - likewise
        """See `trio.abc.Instrument`."""
        self._looked = perf_counter_ns()

    def take(self) -> tuple[float, float]:
        """Since it was last asked: p99 of those times in milliseconds, and the share of CPU."""
        waits, self._waits = self._waits, array("q")
        now, cpu = perf_counter_ns(), time.process_time_ns()
        share = (cpu - self._cpu) / max(now - self._since, 1)
        self._since, self._cpu = now, cpu
        return p99(waits) / 1e6, share


def p99(values: Sequence[int]) -> float:
    """The 99th percentile, 0 of nothing. Of few values it is not the largest: one may be chance.

    >>> p99(range(1, 101)), p99([3, 1, 2]), p99([])
    (99, 2, 0.0)
    """
    if not values:
        return 0.0
    above = len(values) - 1 - int(0.99 * (len(values) - 1))
    return nlargest(above + 1, values)[-1]  # To sort all would take longer than it may.


def limit_ms(limits: dict[str, float]) -> float:
    """What the lag must not exceed, in milliseconds, under these limits in seconds.

    >>> limit_ms({}), limit_ms({"ttft": 0.5, "itl": 0.01})
    (1.0, 0.5)
    """
    return min([LIMIT_MS, *(LIMIT_SHARE * limit * 1000 for limit in limits.values())])
