"""What a run says: tables for people, in Markdown, and every round's raw figures as JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib.metadata import version

import msgspec

from .peers import PEERS
from .rows import Bound, Case, Row
from .run import Judged, Result, Rounds, client_of, figure_of, server_of


def machine() -> dict[str, str]:
    """What it ran on, and with what; nothing that tells whose machine it is."""
    packages = sorted({package for peer in PEERS.values() for package in peer.packages})
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        **{package: version(package) for package in packages},
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as cpuinfo:
            for line in cpuinfo:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()


def to_json(
    rows: Sequence[Row], rounds: Rounds, judged: Sequence[Judged], *, seed: int, seconds: float
) -> str:
    """Everything, for whoever wants to check it."""
    document: dict[str, object] = {
        "machine": machine(),
        "seed": seed,
        "slope_seconds": seconds,
        "bounds": [
            {
                "row": one.row,
                "ours": one.bound.ours,
                "peer": one.bound.peer,
                "figure": one.bound.figure,
                "limit": one.bound.limit,
                "at_most": one.bound.at_most,
                "interval": one.interval,
                "verdict": one.verdict,
            }
            for one in judged
        ],
        "rows": {row.name: row.title for row in rows},
        "results": [result for results in rounds.results.values() for result in results],
    }
    plain = json.loads(
        msgspec.json.encode(document),
        parse_float=lambda digits: round(float(digits), 6),  # A clock is not worth more.
    )
    return f"{json.dumps(plain, indent=1)}\n"


def to_markdown(rows: Sequence[Row], rounds: Rounds, judged: Sequence[Judged]) -> str:
    """The tables."""
    parts: list[str] = []
    for row in rows:
        bounds = [one for one in judged if one.row == row.name]
        parts += [f"### {row.title}", "", *_figures(row, rounds)]
        if bounds:
            parts += ["", *_verdicts(bounds)]
        parts.append("")
    about = machine()
    parts += [
        f"Measured on {about['processor']}, {about['cores']} cores, {about['system']}, "
        f"{about['python']}; "
        + ", ".join(
            f"{name} {about[name]}"
            for name in ("trio", "uvloop", "aiohttp", "httpx", "httpx2", "openai", "httptools")
        )
        + ".",
        "",
    ]
    return "\n".join(parts)


def _figures(row: Row, rounds: Rounds) -> list[str]:
    """A line for each case, with who was busy beside it."""
    cases = [case for case in (*row.cases, *row.others) if not case.pace.in_step]
    in_step = any(case.pace.in_step for case in row.others)
    heads = ["", row.unit, *(["all in step"] if in_step else []), "client", "server"]
    delays = any(case.kind == "steady" and case.pace.interval for case in cases)
    heads += ["delivery p50, p99"] if delays else []
    heads += ["server late p99"] if delays else []
    heads += ["arrival p99"] if delays else []
    reads = any(rounds.median(case, _tokens_per_read) is not None for case in cases)
    heads += ["tokens a read"] if reads else []
    several_paces = len({case.pace for case in cases}) > 1
    lines: list[list[str]] = []
    for case in cases:
        label = PEERS[case.peer].label
        if several_paces:
            label += f" ({case.pace.streams:,} streams)"
        failed = next((one.failed for one in rounds.of(case) if one.failed is not None), None)
        line = [label, _number(rounds.median(case, lambda one: figure_of(one, row.figure)))]
        if failed is not None:
            line[1] = "failed"
        if in_step:
            stepped = replace(case, pace=replace(case.pace, in_step=True))
            line.append(_number(rounds.median(stepped, lambda one: figure_of(one, row.figure))))
        line += [_share(rounds.median(case, get)) for get in (client_of, server_of)]
        if delays:
            quantiles = [rounds.median(case, get) for get in (_delivery_p50, _delivery_p99)]
            line.append(", ".join(map(_milliseconds, quantiles)))
            line.append(_milliseconds(rounds.median(case, _lateness_p99)))
            line.append(_milliseconds(rounds.median(case, _arrival_p99)))
        if reads:
            line.append(_number(rounds.median(case, _tokens_per_read)))
        lines.append(line)
    return _table(heads, lines)


def _verdicts(judged: Iterable[Judged]) -> list[str]:
    lines: list[list[str]] = []
    for one in judged:
        interval = one.interval
        seen = (
            ""
            if interval is None
            else f"{interval.middle:.3g} ({interval.low:.3g} to {interval.high:.3g})"
        )
        lines.append([describe(one.bound), seen, one.verdict])
    return _table(["bound", "seen, 95 % interval", "verdict"], lines)


def describe(bound: Bound) -> str:
    """A bound in words."""
    word = "at most" if bound.at_most else "at least"
    ours = _named(bound.ours, bound.peer)
    if bound.peer is None:
        return f"{ours}: {word} {bound.limit:g}"
    return f"{ours}: {word} {bound.limit:g} of {_named(bound.peer, bound.ours)}"


def _named(case: Case, other: Case | None) -> str:
    if other is None or case.peer != other.peer:
        return PEERS[case.peer].label
    if case.kind != other.kind:
        return {"refresh": "taking up again", "opening": "fresh requests"}[case.kind]
    return f"{PEERS[case.peer].label}, {case.pace.streams:,} streams"


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]

    def row(cells: Sequence[str]) -> str:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        return f"| {' | '.join(padded)} |"

    return [row(heads), row(["-" * width for width in widths]), *map(row, lines)]


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _milliseconds(microseconds: float | None) -> str:
    return "" if microseconds is None else f"{microseconds / 1e3:.3g} ms"


def _tokens_per_read(result: Result) -> float | None:
    return None if result.window is None else result.window.tokens_per_read


def _delivery_p50(result: Result) -> float | None:
    window = result.window
    return None if window is None or window.delivery is None else window.delivery.p50


def _delivery_p99(result: Result) -> float | None:
    window = result.window
    return None if window is None or window.delivery is None else window.delivery.p99


def _lateness_p99(result: Result) -> float | None:
    window = result.window
    return None if window is None or window.lateness is None else window.lateness.p99


def _arrival_p99(result: Result) -> float | None:
    window = result.window
    return None if window is None or window.arrival is None else window.arrival.p99
