"""Many shards' seconds become one run: what is seen of it while it goes on, and its result."""

from __future__ import annotations

import platform
import sys
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from typing import Literal

from ._histograms import Histograms, Percentiles
from ._intervals import Interval
from ._lag import LIMIT_CPU, limit_ms
from ._records import RequestRecord, TokensBy
from ._result import ClientBound, Result, Second
from ._workload import Workload

NS = 1_000_000_000
ENDLESS = ("ttft", "ttfo", "latency", "ttft_intended", "ttfo_intended", "latency_intended")
"""The figures that a failed request has no end of."""

_NO_END = 1 << 62
"""Of a shard that tells no more: nobody waits for it."""


class Merge:
    """A run as far as it has come.

    Args:
        workload: What is done.
        target: How the result names what it is done to.
        began: When the load began, Unix time in seconds.
        shards: How many processes do it.

    Attributes:
        counts: Of the requests that count: `intended` (without those that users left), `ok`,
            `error`, `timeout`, `unfinished`, `cancelled`, `good`.
        second: The last one that every shard has told of.
        tokens: Chunks so far.
        last: The last second that is whole.
    """

    def __init__(self, workload: Workload, target: str, began: float, shards: int) -> None:
        self.counts: Counter[str] = Counter()
        self.tokens = 0
        self.last = Second(second=0)
        self._workload = workload
        self._target = target
        self._began = began
        self._shards = shards
        self._merged = Histograms()
        self._seconds: dict[int, Second] = {}
        self._pending: dict[int, Histograms] = {}
        self._next: dict[int, int] = dict.fromkeys(range(shards), 0)
        self._at: dict[int, int] = dict.fromkeys(range(shards), -1)
        self._error_kinds: Counter[str] = Counter()
        self._taken_up: Counter[str] = Counter()
        self._skipped: Counter[str] = Counter()
        self._client_bound: list[ClientBound] = []
        self._lost_shards: list[str] = []
        self._counted_by: set[TokensBy] = set()
        self._output_tokens = 0
        self._wrong_lengths = 0
        self._rejected = 0
        self._refreshes = 0
        self._pauses = 0
        self._paused_ns = 0
        self._restarts = 0
        self._lost: int | None = None
        self._doubled: int | None = None
        self._tokens_in_window = 0
        self._ok_in_window = 0
        self._last_ended = 0
        self._interrupted = False
        self._limit_ms = limit_ms(workload.limits)

    def take(self, interval: Interval) -> None:
        """Add what a shard did in a second; one that was added before is left out."""
        shard = interval.shard
        if interval.number < self._next[shard]:
            return
        if interval.number > self._next[shard]:
            self.lose(shard, f"{interval.number - self._next[shard]} seconds of it did not arrive")
        self._next[shard] = interval.number + 1
        self._at[shard] = _NO_END if interval.last else interval.second
        self._merged.merge(interval.histograms, interval.out_of_range)
        for histograms in (interval.histograms, interval.outside):
            self._pending.setdefault(interval.second, Histograms()).merge(histograms, {})
        second = self._seconds.setdefault(interval.second, Second(second=interval.second))
        second.tokens += interval.tokens
        second.sent += interval.sent
        second.active += interval.active
        second.paused += interval.paused
        self.tokens += interval.tokens
        self._refreshes += interval.refreshes
        self._tokens_in_window += interval.tokens_in_window
        self._skipped.update(interval.skipped)
        self._interrupted |= interval.ended == "interrupted"
        for record in interval.records:
            self._count(record, second)
        if not interval.last:  # It is no whole second.
            self._watch(interval)
        self._settle(min(self._at.values()))

    def lose(self, shard: int, why: str) -> None:
        """A shard, or a part of it, is lost."""
        self._lost_shards.append(f"shard {shard}: {why}")
        self._at[shard] = _NO_END

    def percentiles(self, figure: str) -> Percentiles:
        """Of a figure, so far."""
        return self._merged.percentiles(figure)

    @property
    def client_bound(self) -> Sequence[ClientBound]:
        """When the simulator itself was the limit, so far."""
        return self._client_bound

    @property
    def refreshes(self) -> int:
        """Keys that were refreshed, so far."""
        return self._refreshes

    @property
    def rejected(self) -> int:
        """401s, so far."""
        return self._rejected

    def _count(self, record: RequestRecord, second: Second) -> None:
        self._last_ended = max(self._last_ended, record.ended)
        self._rejected += record.rejected
        self._pauses += record.pauses
        self._paused_ns += record.paused
        self._restarts += record.restarts
        second.rejected += record.rejected
        if record.taken_up:
            self._taken_up.update(record.taken_up.split("+"))
        if record.lost is not None and record.doubled is not None:
            self._lost = (self._lost or 0) + record.lost
            self._doubled = (self._doubled or 0) + record.doubled
        if record.outcome == "ok":
            second.ok += 1
            self._ok_in_window += self._in_window(record.ended)
        elif record.outcome in ("error", "timeout"):
            second.failed += 1
        if not record.window:
            return
        self.counts[record.outcome] += 1
        if record.outcome == "cancelled":
            return
        self.counts["intended"] += 1
        if record.outcome in ("error", "timeout"):
            self._error_kinds[record.error] += 1
        if record.outcome != "ok":
            return
        self.counts["good"] += record.keeps_to(self._workload.limits)
        self._output_tokens += record.tokens
        self._counted_by.add(record.tokens_by)
        counted = record.output_tokens is not None
        self._wrong_lengths += counted and record.output_tokens != record.asked_tokens

    def _in_window(self, instant: int) -> bool:
        since = instant - self._workload.warm_up_seconds * NS
        duration = self._workload.duration_seconds
        return since >= 0 and (duration is None or since < duration * NS)

    def _watch(self, interval: Interval) -> None:
        """Note a second in which the shard was too slow."""
        seen: tuple[tuple[Literal["late", "polls", "cpu"], float, float], ...] = (
            ("late", interval.late_ms, self._limit_ms),
            ("polls", interval.polls_ms, self._limit_ms),
            ("cpu", interval.cpu, LIMIT_CPU),
        )
        for why, value, limit in seen:
            if value > limit:
                self._client_bound.append(
                    ClientBound(
                        second=interval.second,
                        shard=interval.shard,
                        why=why,
                        value=round(value, 3),
                        limit=limit,
                    )
                )

    def _settle(self, until: int) -> None:
        """Make up the seconds that every shard has told of."""
        for number in sorted(self._pending):
            if number > until:
                return
            histograms, second = self._pending.pop(number), self._seconds[number]
            ttft, icl = histograms.percentiles("ttft"), histograms.percentiles("icl")
            second.ttft_p50, second.ttft_p99 = ttft.p50, ttft.p99
            second.icl_p50, second.icl_p99 = icl.p50, icl.p99
            second.latency_p99 = histograms.percentiles("latency").p99
            self.last = second

    def result(self, *, rotations: Sequence[float] = ()) -> Result:
        """The result, of what there is.

        Args:
            rotations: When keys were replaced, seconds from the start of the load.
        """
        self._settle(_NO_END)
        workload, counts = self._workload, self.counts
        seconds = workload.duration_seconds
        ended = self._last_ended / NS - workload.warm_up_seconds
        if seconds is None or self._interrupted:
            seconds = ended if seconds is None else min(ended, seconds)
        seconds = max(seconds, 0.0)
        rate = 1 / seconds if seconds else 0.0
        failed = counts["error"] + counts["timeout"]
        return Result(
            workload=workload.settings,
            target=self._target,
            began=self._began,
            machine=machine(),
            shards=self._shards,
            closed_loop=not workload.open_loop,
            warm_up=workload.warm_up_seconds,
            seconds=round(seconds, 3),
            intended=counts["intended"],
            ok=counts["ok"],
            errors=counts["error"],
            timeouts=counts["timeout"],
            unfinished=counts["unfinished"],
            cancelled=counts["cancelled"],
            error_kinds=dict(self._error_kinds),
            figures={
                figure: self._merged.percentiles(figure)
                for figure in self._merged.figures()
                if not figure.startswith("age")
            },
            with_failures={
                figure: self._merged.percentiles(
                    figure,
                    endless=failed,
                    also="age_intended" if figure.endswith("_intended") else "age",
                )
                for figure in ENDLESS
            },
            tokens=self._output_tokens,
            tokens_by=self._tokens_by(),
            tokens_per_second=round(self._tokens_in_window * rate, 3),
            requests_per_second=round(self._ok_in_window * rate, 3),
            goodput=round(counts["good"] * rate, 3),
            good_fraction=counts["good"] / counts["intended"] if counts["intended"] else 0.0,
            rejected=self._rejected,
            refreshes=self._refreshes,
            pauses=self._pauses,
            paused_seconds=round(self._paused_ns / NS, 3),
            taken_up=dict(self._taken_up),
            restarts=self._restarts,
            lost=self._lost,
            doubled=self._doubled,
            wrong_lengths=self._wrong_lengths,
            client_bound=self._client_bound,
            series=[self._seconds[number] for number in sorted(self._seconds)],
            rotations=sorted(rotations),
            skipped=dict(self._skipped),
            lost_shards=self._lost_shards,
            interrupted=self._interrupted,
            histograms=self._merged.encoded(),
        )

    def _tokens_by(self) -> TokensBy | Literal["mixed"]:
        if len(self._counted_by) > 1:
            return "mixed"
        (by,) = self._counted_by or {"chunks"}
        return by


def machine() -> dict[str, str]:
    """What a run runs on, and with which versions."""
    return {
        "gz_trio": version("gz-trio"),
        "trio": version("trio"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "processor": platform.processor() or platform.machine(),
        "implementation": sys.implementation.name,
    }
