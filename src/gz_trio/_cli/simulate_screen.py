"""What a simulation shows: a live screen on a terminal, plain lines elsewhere, and the summary."""

from __future__ import annotations

from typing import cast

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from ..simulate import ClientBound, Merge, Percentiles, Result, Workload

SHOWN = ("ttft", "ttfo", "itl", "icl", "latency")


class Screen:
    """A run as something that rich draws anew for each frame."""

    def __init__(self, workload: Workload, title: str) -> None:
        self._workload = workload
        self._title = title
        self._merge: Merge | None = None
        self._second = 0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[of]}"),
        )
        self._task = self._bar.add_task("signing in", total=None, of="")

    def take(self, merge: Merge) -> bool:
        """A process has told of a second; gives whether there is something new to see."""
        new = self._merge is None or merge.last.second != self._second
        self._merge, self._second = merge, merge.last.second
        return new

    def __rich_console__(self, console: Console, options: object) -> list[RenderableType]:
        merge = self._merge
        if merge is None:
            return [Panel(self._bar, title=self._title, title_align="left")]
        last, counts = merge.last, merge.counts
        done, total, description = self._progress(merge)
        self._bar.update(
            self._task, completed=done, total=total, description=description, of=f"{last.second} s"
        )
        rates = Text(
            f"{last.active} requests under way, {last.paused} paused   "
            f"{last.tokens} tokens/s   {last.ok} replies/s"
        )
        sums = Text(
            f"{counts['ok']} ok   {counts['error']} errors   {counts['timeout']} timeouts   "
            f"{counts['cancelled']} left   401s {merge.rejected}   refreshes {merge.refreshes}"
        )
        figures = figures_table({name: merge.percentiles(name) for name in SHOWN})
        lines: list[RenderableType] = [self._bar, rates, sums, Text(), figures]
        if merge.client_bound:
            lines += [Text(), client_bound_text(list(merge.client_bound))]
        return [Panel(Group(*lines), title=self._title, title_align="left")]

    def _progress(self, merge: Merge) -> tuple[float, float | None, str]:
        """How much is done, of how much, and what goes on."""
        workload, second = self._workload, merge.last.second
        over = sum(merge.counts[name] for name in ("intended", "cancelled"))
        warm_up, duration = workload.warm_up_seconds, workload.duration_seconds
        if second < warm_up:
            return second, warm_up, "warm-up"
        if duration is None:
            return over, workload.requests, "requests"
        if second < warm_up + duration:
            return second - warm_up, duration, "measuring"
        return duration, duration, "waiting for the last replies"


def line_of(merge: Merge) -> str:
    """The last second in one line, for where there is no terminal."""
    last = merge.last
    return (
        f"{last.second} s: {last.active} under way, {last.paused} paused, {last.tokens} tokens/s, "
        f"{last.ok} replies/s, {last.failed} failed, 401s {merge.rejected}, "
        f"refreshes {merge.refreshes}"
    )


def figures_table(figures: dict[str, Percentiles]) -> Table:
    """Percentiles in milliseconds."""
    table = Table(box=None, pad_edge=False)
    table.add_column("ms", style="dim")
    for name in ("mean", "p50", "p90", "p95", "p99", "p99.9", "max"):
        table.add_column(name, justify="right")
    for name, of in figures.items():
        if not of.count:
            continue
        values = (of.mean, of.p50, of.p90, of.p95, of.p99, of.p999, of.most)
        table.add_row(name, *(_milliseconds(value) for value in values))
    return table


def _milliseconds(value: float | None) -> str:
    return "never" if value is None else f"{value:,.1f}"


def client_bound_text(seconds: list[ClientBound]) -> Text:
    """A warning: the figures are not the gateway's."""
    numbers = sorted({bound.second for bound in seconds})
    shown = ", ".join(map(str, numbers[:20])) + (", ..." if len(numbers) > 20 else "")
    reasons = {
        "late": "requests were sent late",
        "polls": "it looked at its sockets too seldom",
        "cpu": "its core was busy",
    }
    why = "; ".join(words for name, words in reasons.items() if any(b.why == name for b in seconds))
    return Text(
        f"client-bound in {len(numbers)} seconds ({shown}): {why}. What is measured then is the "
        "simulator, not the gateway: take fewer users, or more --processes.",
        "bold yellow",
    )


def summary(result: Result, folder: str) -> RenderableType:
    """What came out, in words and figures."""
    parts: list[RenderableType] = [
        Text(
            f"{result.target}: {result.intended} requests in {result.seconds:g} s, "
            f"{result.ok} ok, {result.errors} errors, {result.timeouts} timeouts, "
            f"{result.unfinished} unfinished, {result.cancelled} left by their users"
        ),
        Text("\nRequests that ended well"),
        figures_table(
            {
                name: result.figures[name]
                for base in SHOWN
                for name in (base, f"{base}_intended")
                if name in result.figures
            }
        ),
        Text("\nAll requests: failed ones never end, unfinished ones are as old as they were"),
        figures_table(
            {
                name: result.with_failures[name]
                for name in ("latency", "latency_intended")
                if name in result.with_failures
            }
        ),
    ]
    counts = Table.grid(padding=(0, 2))
    counts.add_column()
    counts.add_column(justify="right")
    slo = ", ".join(str(limit) for limit in _list(result.workload.get("slo")))
    for name, value in (
        ("tokens a second", f"{result.tokens_per_second:,.1f}"),
        ("requests a second", f"{result.requests_per_second:,.2f}"),
        (f"goodput ({slo or 'ended well'})", f"{result.goodput:,.2f} requests a second"),
        ("good of the intended", f"{100 * result.good_fraction:.2f} %"),
        ("output tokens", f"{result.tokens:,} (by {result.tokens_by})"),
        ("answers of another length than asked", f"{result.wrong_lengths:,}"),
        ("401s, refreshes", f"{result.rejected:,}, {result.refreshes:,}"),
        ("pauses", f"{result.pauses:,}, {result.paused_seconds:,.1f} s in all"),
        ("taken up again", ", ".join(f"{n} by {way}" for way, n in result.taken_up.items()) or "0"),
        ("restarted with another answer", f"{result.restarts:,}"),
        ("characters lost, doubled", f"{_known(result.lost)}, {_known(result.doubled)}"),
    ):
        counts.add_row(name, value)
    parts += [Text(), counts]
    parts += [Text(f"{kind}: {count}", "red") for kind, count in result.error_kinds.items()]
    parts += [Text(f"skipped, {why}: {n}", "yellow") for why, n in result.skipped.items()]
    parts += [Text(f"lost: {shard}", "bold red") for shard in result.lost_shards]
    out_of_range = {n: p.out_of_range for n, p in result.figures.items() if p.out_of_range}
    parts += [Text(f"{n} of {name} were over an hour", "red") for name, n in out_of_range.items()]
    if result.closed_loop:
        parts.append(
            Text(
                "A closed loop slows down with its server: users who wait ask less often, and the "
                "figures look better than arrivals that do not wait would see them.",
                "dim",
            )
        )
    if result.client_bound:
        parts.append(client_bound_text(result.client_bound))
    if result.interrupted:
        parts.append(Text("The run was stopped before its end.", "bold yellow"))
    parts.append(
        Text(f"written to {folder}: report.html, result.json, requests.csv, workload.toml")
    )
    return Group(*parts)


def _list(value: object) -> list[object]:
    return cast("list[object]", value) if isinstance(value, list) else []


def _known(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"
