"""What a run says: tables for people, in Markdown, and every round's raw figures as JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from importlib.metadata import version

import msgspec

from .layers import ORDER
from .peers import PEERS
from .rows import Bound, Case, Kind, Row
from .run import Judged, Result, Rounds, client_of, figure_of, server_of, window_of


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


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What a run was, beside its results.

    Args:
        machine: See `machine`.
        seed: Of orders and phases.
        shares: Those of the layers, by peer.
    """

    machine: dict[str, str]
    seed: int
    shares: dict[str, dict[str, float]]

    def with_packages_of(self, other: About) -> About:
        """With what another run used besides.

        Raises:
            ValueError: It was on another machine, or with other versions of the same packages.
        """
        changed = {
            n for n, version in other.machine.items() if self.machine.get(n, version) != version
        }
        if changed:
            raise ValueError(
                f"the stored run had other {', '.join(sorted(changed))}: run it all anew"
            )
        return msgspec.structs.replace(self, machine=self.machine | other.machine)


class _Document(msgspec.Struct, frozen=True):
    machine: dict[str, str]
    seed: int
    layers: dict[str, dict[str, float]]
    results: list[Result]


def from_json(text: bytes) -> tuple[Rounds, About]:
    """What `to_json` has written; bounds are not read back, but to be judged anew."""
    document = msgspec.json.decode(text, type=_Document)
    rounds = Rounds()
    for result in document.results:
        kind = msgspec.convert(result.kind, Kind)
        rounds.add(Case(kind, result.peer, result.pace), result)
    about = About(machine=document.machine, seed=document.seed, shares=document.layers)
    return rounds, about


def to_json(
    rows: Sequence[Row],
    rounds: Rounds,
    judged: Sequence[Judged],
    run: About,
) -> str:
    """Everything, for whoever wants to check it."""
    document: dict[str, object] = {
        "machine": run.machine,
        "seed": run.seed,
        "bounds": [
            {
                "row": one.row,
                "ours": one.bound.ours,
                "peer": one.bound.peer,
                "figure": one.bound.figure,
                "limit": one.bound.limit,
                "at_most": one.bound.at_most,
                "reached": one.bound.reached,
                "interval": one.interval,
                "verdict": one.verdict,
                "held": one.held,
            }
            for one in judged
        ],
        "layers": run.shares,
        "rows": {row.name: row.title for row in rows},
        "results": [result for results in rounds.results.values() for result in results],
    }
    plain = json.loads(
        msgspec.json.encode(document),
        parse_float=lambda digits: round(float(digits), 6),  # A clock is not worth more.
    )
    return f"{json.dumps(plain, indent=1)}\n"


def to_markdown(
    rows: Sequence[Row],
    rounds: Rounds,
    judged: Sequence[Judged],
    run: About,
) -> str:
    """The tables."""
    shares, about = run.shares, run.machine
    parts: list[str] = []
    for row in rows:
        if not any(case in rounds.results for case in (*row.cases, *row.others)):
            continue  # The run was made before there was this row.
        bounds = [one for one in judged if one.row == row.name]
        parts += [f"### {row.title}", "", *_figures(row, rounds)]
        if bounds:
            parts += ["", *_verdicts(bounds)]
        parts.append("")
    if shares:
        parts += ["### Where gz_trio's CPU goes: 1,600 streams, every 40 ms", ""]
        lines = [
            [layer, *(_share(found.get(layer, 0.0)) for found in shares.values())]
            for layer in ORDER
            if any(layer in found for found in shares.values())
        ]
        parts += [*table(["", *(PEERS[peer].label for peer in shares)], lines), ""]
    parts += [
        f"Measured on {about['processor']}, {about['cores']} cores, {about['system']}, "
        f"{about['python']}; "
        + ", ".join(
            f"{name} {about[name]}"
            for name in ("trio", "uvloop", "aiohttp", "httpx", "httpx2", "openai", "httptools")
        )
        + ".",
        f"Of the client's core, others had {_share(_busiest(rounds))} at most.",
        "",
    ]
    return "\n".join(parts)


def _busiest(rounds: Rounds) -> float:
    """What others had of the client's core, where they had most."""
    shares = (_others(one) for results in rounds.results.values() for one in results)
    return max((share for share in shares if share is not None), default=0.0)


def _figures(row: Row, rounds: Rounds) -> list[str]:
    """A line for each case, with who was busy beside it; columns that nobody has are left out."""
    cases = [case for case in (*row.cases, *row.others) if not case.pace.in_step]
    several_paces = len({case.pace for case in cases}) > 1
    columns: dict[str, list[str]] = {"": [], row.unit: []}
    for case in cases:
        label = PEERS[case.peer].label
        if several_paces:
            label += f" ({case.pace.streams:,} streams)"
        columns[""].append(label)
        failed = any(one.failed is not None for one in rounds.of(case))
        figure = rounds.median(case, lambda one: figure_of(one, row.figure))
        columns[row.unit].append("failed" if failed else _number(figure))
        stepped = replace(case, pace=replace(case.pace, in_step=True))
        figure = rounds.median(stepped, lambda one: figure_of(one, row.figure))
        columns.setdefault("all in step", []).append(_number(figure))
        for name, get, show in COLUMNS:
            columns.setdefault(name, []).append(show(rounds.median(case, get)))
    kept = {head: cells for head, cells in columns.items() if any(cells)}
    return table(list(kept), list(zip(*kept.values(), strict=True)))


def _verdicts(judged: Iterable[Judged]) -> list[str]:
    lines: list[list[str]] = []
    for one in judged:
        interval = one.interval
        seen = (
            ""
            if interval is None
            else f"{interval.middle:.3g} ({interval.low:.3g} to {interval.high:.3g})"
        )
        reached = one.bound.reached
        instead = "" if reached is None else f"{_word(one.bound)} {reached:g}: {one.held}"
        lines.append([describe(one.bound), seen, one.verdict, instead])
    heads = ["bound", "seen, 95 % interval", "verdict", "held to instead"]
    if not any(line[-1] for line in lines):
        return table(heads[:-1], [line[:-1] for line in lines])
    return table(heads, lines)


def describe(bound: Bound) -> str:
    """A bound in words."""
    word = _word(bound)
    ours = _named(bound.ours, bound.peer)
    if bound.peer is None:
        return f"{ours}: {word} {bound.limit:g}"
    return f"{ours}: {word} {bound.limit:g} of {_named(bound.peer, bound.ours)}"


def _word(bound: Bound) -> str:
    return "at most" if bound.at_most else "at least"


def _named(case: Case, other: Case | None) -> str:
    if other is None or case.peer != other.peer:
        return PEERS[case.peer].label
    if case.kind != other.kind:
        return {"refresh": "taking up again", "opening": "fresh requests"}[case.kind]
    return f"{PEERS[case.peer].label}, {case.pace.streams:,} streams"


def table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown, line by line."""
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
    window = window_of(result)
    return None if window is None else window.tokens_per_read


def _others(result: Result) -> float | None:
    window = window_of(result)
    return None if window is None else window.others


def _delivery_p50(result: Result) -> float | None:
    window = window_of(result)
    return None if window is None or window.delivery is None else window.delivery.p50


def _delivery_p99(result: Result) -> float | None:
    window = window_of(result)
    return None if window is None or window.delivery is None else window.delivery.p99


def _arrival_p99(result: Result) -> float | None:
    window = window_of(result)
    return None if window is None or window.arrival is None else window.arrival.p99


def _lateness_p99(result: Result) -> float | None:
    window = window_of(result)
    return None if window is None or window.lateness is None else window.lateness.p99


COLUMNS: tuple[tuple[str, Callable[[Result], float | None], Callable[[float | None], str]], ...] = (
    ("client", client_of, _share),
    ("server", server_of, _share),
    ("delivery p50", _delivery_p50, _milliseconds),
    ("p99", _delivery_p99, _milliseconds),
    ("arrival p99", _arrival_p99, _milliseconds),
    ("server late p99", _lateness_p99, _milliseconds),
    ("tokens a read", _tokens_per_read, _number),
)
"""Beside the figure that a row is about: a head, which median over the rounds, how it is shown."""
