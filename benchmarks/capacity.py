"""How many streams a core holds: the most of which 99 in 100 tokens are delivered in time.

Found by bisection over a grid of 3 % steps. A round begins where the one before ended, and takes a
few probes; the first one halves the whole grid. A load that keeps the server busier than it may be
for a verdict counts as one that was not held, for another reason: then CPU per token decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import msgspec

from .measure import Window

DELIVERY_P99_US = 5_000.0
LEAST, MOST = 100, 6_000
STEP = 1.03
GRID = tuple(sorted({round(LEAST * STEP**k) for k in range(int(math.log(MOST / LEAST, STEP)) + 1)}))
SERVER_BUSY = 0.60

Outcome = Literal["held", "late", "server"]
"""Of a probe: the client kept up; it did not; the server was busier than it may be."""


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """How many streams a core held.

    Args:
        streams: The most that were held; 0: not even the fewest that were tried.
        window: What was seen there.
        limit: What the next load failed by.
        probes: All that were tried, in that order: streams and outcome.
    """

    streams: int
    window: Window | None
    limit: Outcome
    probes: list[tuple[int, Outcome]]


def find(probe: Callable[[int], tuple[Outcome, Window | None]], near: int | None = None) -> Held:
    """Search the grid.

    Args:
        probe: Tries a number of streams: what came of it, and what was seen.
        near: Where to begin, from an earlier search.
    """
    outcomes: dict[int, Outcome] = {-1: "held", len(GRID): "server"}
    windows: dict[int, Window | None] = {-1: None}

    def held(place: int) -> bool:
        if place not in outcomes:
            outcomes[place], windows[place] = probe(GRID[place])
        return outcomes[place] == "held"

    low, high = -1, len(GRID)  # `low` is held, `high` is not.
    if near is not None:
        place = min(range(len(GRID)), key=lambda place: abs(GRID[place] - near))
        stride = 1
        if held(place):
            low = place
            while low + stride < len(GRID) and held(low + stride):
                low, stride = low + stride, stride * 2
            high = min(low + stride, len(GRID))
        else:
            high = place
            while high - stride > -1 and not held(high - stride):
                high, stride = high - stride, stride * 2
            low = max(high - stride, -1)
    while high - low > 1:
        middle = (low + high) // 2
        if held(middle):
            low = middle
        else:
            high = middle
    return Held(
        streams=GRID[low] if low >= 0 else 0,
        window=windows[low],
        limit=outcomes[high],
        probes=[(GRID[place], outcomes[place]) for place in outcomes if 0 <= place < len(GRID)],
    )


@dataclass(frozen=True)
class Ratio:
    """How many times as many streams as a peer.

    Args:
        value: The ratio.
        at_least: The server was the limit for these streams, but not for the peer's: they might
            have been more.
    """

    value: float
    at_least: bool


def compare(ours: Held, peer: Held) -> Ratio:
    """Streams held over the peer's; where the server limited both, CPU a token decides."""
    if ours.limit == peer.limit == "server" and ours.window and peer.window:
        return Ratio(peer.window.cpu / ours.window.cpu, at_least=False)
    return Ratio(max(ours.streams, 1) / max(peer.streams, 1), at_least=ours.limit == "server")
