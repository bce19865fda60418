"""Figures that are held to bounds of their own, round by round, and what is told of them."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from . import stats
from .processes import SERVER_CORE, pin
from .report import machine, table

LOOK_SECONDS = 0.1


class ScenarioFailed(Exception):
    """A scenario cannot be played to its end."""


def until(reached: Callable[[], bool], what: str, seconds: float) -> None:
    """Wait until it is reached.

    Args:
        reached: Asked again and again.
        what: It is, for who is told that it was not.
        seconds: How long, at most.

    Raises:
        ScenarioFailed: It takes longer.
    """
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            raise ScenarioFailed(f"not {what} after {seconds:g} s")
        time.sleep(LOOK_SECONDS)  # Looking costs CPU.


class Figure(msgspec.Struct, kw_only=True):
    """A figure that is held to a bound, in each round.

    Attributes:
        what: It is.
        unit: Of it.
        limit: The bound.
        at_most: Whether it is one from above.
        values: Of the rounds that say something.
        left_out: Why others say nothing.
    """

    what: str
    unit: str
    limit: float
    at_most: bool = True
    values: list[float] = []
    left_out: list[str] = []

    def interval(self) -> stats.Interval | None:
        """Where it lies."""
        return stats.bootstrap(self.values) if self.values else None

    def verdict(self) -> str:
        """Whether the bound holds: `invalid` if no round says anything."""
        interval = self.interval()
        if interval is None:
            return "invalid"
        return stats.verdict(interval, self.limit, at_most=self.at_most)


class Row(msgspec.Struct, kw_only=True):
    """What one scenario gave.

    Attributes:
        title: What was done.
        figures: What it is held to.
        beside: What else was seen: the median of the rounds.
        broken: What must not be.
    """

    title: str
    figures: list[Figure] = []
    beside: dict[str, float] = {}
    broken: list[str] = []

    def held(self, *, quick: bool = False) -> bool:
        """Whether nothing is missed; in a short run a figure that says nothing is not."""
        failed = ("missed",) if quick else ("missed", "invalid")
        return not self.broken and not any(figure.verdict() in failed for figure in self.figures)


class Beside:
    """Collects what else is seen, round by round."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}

    def see(self, **values: float) -> None:
        """One round."""
        for name, value in values.items():
            self._values.setdefault(name.replace("_", " "), []).append(value)

    def medians(self) -> dict[str, float]:
        """Of each, rounded: a clock is not worth more."""
        return {
            name: round(sorted(values)[len(values) // 2], 4)
            for name, values in self._values.items()
        }


def run(
    scenarios: Sequence[Callable[[int], Row]], rounds: int, path: Path, *, quick: bool = False
) -> bool:
    """Run all of it, print what it gave, and write it beside each other as JSON and Markdown.

    Args:
        scenarios: Each plays so many rounds, if it compares anything, with its servers on their
            core.
        rounds: How many.
        path: The JSON file.
        quick: Whether it is a short run, perhaps on a machine that is not quiet.

    Returns:
        Whether nothing is missed.
    """
    rows: list[Row] = []
    cores = os.sched_getaffinity(0)
    pin(0, SERVER_CORE)
    for scenario in scenarios:
        began = time.monotonic()
        try:
            rows.append(scenario(rounds))
        except ScenarioFailed as error:
            rows.append(Row(title=(scenario.__doc__ or "").strip(), broken=[str(error)]))
        print(f"{time.monotonic() - began:6.0f} s  {rows[-1].title}", file=sys.stderr, flush=True)
        path.parent.mkdir(exist_ok=True)
        # After each row: a run that is broken off has not been for nothing.
        path.write_text(json.dumps(_document(rows), indent=1) + "\n", encoding="utf-8")
        path.with_suffix(".md").write_text(to_markdown(rows), encoding="utf-8")
    os.sched_setaffinity(0, cores)
    print(to_markdown(rows))
    return all(row.held(quick=quick) for row in rows)


def _document(rows: Sequence[Row]) -> dict[str, object]:
    return {
        "machine": machine(),
        "rows": [
            {
                **msgspec.to_builtins(row),
                "figures": [
                    {
                        **msgspec.to_builtins(figure),
                        "interval": msgspec.to_builtins(figure.interval()),
                        "verdict": figure.verdict(),
                    }
                    for figure in row.figures
                ],
            }
            for row in rows
        ],
    }


def to_markdown(rows: Sequence[Row]) -> str:
    """The tables."""
    return "\n".join(line for row in rows for line in _lines(row))


def _lines(row: Row) -> Iterator[str]:
    yield from (f"### {row.title}", "")
    if row.figures:
        cells = [
            [figure.what, _bound(figure), _seen(figure.interval()), figure.verdict()]
            for figure in row.figures
        ]
        yield from table(["", "bound", "seen, 95 % interval", "verdict"], cells)
        yield ""
    if row.beside:
        beside = "; ".join(f"{name} {value:,.4g}" for name, value in row.beside.items())
        yield from (f"Beside it, medians: {beside}.", "")
    for figure in row.figures:
        for why in figure.left_out:
            yield from (f"A round says nothing: {why}.", "")
    for what in row.broken:
        yield from (f"Broken: {what}.", "")


def _bound(figure: Figure) -> str:
    word = "at most" if figure.at_most else "at least"
    return f"{word} {figure.limit:g} {figure.unit}".strip()


def _seen(interval: stats.Interval | None) -> str:
    if interval is None:
        return "nothing"
    return f"{interval.middle:.3g} ({interval.low:.3g} to {interval.high:.3g})"
