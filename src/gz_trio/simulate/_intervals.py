"""What a shard tells once a second; made of it, when all have told it: the result."""

from __future__ import annotations

from typing import Literal

import msgspec

from ._histograms import Counts
from ._records import RequestRecord


class Interval(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What one shard did in one second.

    Attributes:
        shard: Which one.
        number: Counts the shard's intervals from 0: one that lacks, or comes twice, is seen.
        second: Which second of the load it is.
        histograms: Of the requests that ended well in it and count, each figure's values.
        outside: Of those that ended well and do not count: in the warm-up.
        out_of_range: Values that no histogram can hold, by figure.
        tokens: Chunks that came.
        tokens_in_window: Those of them that came within the window.
        sent: Requests that were sent.
        active: Requests under way at its end.
        paused: Those of them that wait for a key.
        refreshes: Keys that were refreshed.
        late_ms: p99 of sent minus intended, in milliseconds.
        polls_ms: p99 of the time between two looks at the sockets, in milliseconds.
        cpu: The share of a core that was used.
        records: The requests that were over in it.
        skipped: Lines of the prompts' file that were left out, by reason; told once.
        last: Whether the shard is done.
        ended: How the run ended: at its own end, or stopped before.
    """

    shard: int
    number: int
    second: int
    histograms: dict[str, Counts] = {}
    outside: dict[str, Counts] = {}
    out_of_range: dict[str, int] = {}
    tokens: int = 0
    tokens_in_window: int = 0
    sent: int = 0
    active: int = 0
    paused: int = 0
    refreshes: int = 0
    late_ms: float = 0.0
    polls_ms: float = 0.0
    cpu: float = 0.0
    records: list[RequestRecord] = []
    skipped: dict[str, int] = {}
    last: bool = False
    ended: Literal["", "complete", "interrupted"] = ""
