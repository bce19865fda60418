"""Two sides compared: for each figure how much it changed, an interval, and what may be said of it.

The unit is the run: requests of one run have a machine, a minute and a neighbour in common, so
that many of them tell little of how another run would have come out. With at least five runs on
each side, runs are drawn again (paired by number where both sides have the same numbers: runs of
one number ran next to each other). With fewer, consecutive pieces of each run are drawn again (the
circular block bootstrap, Politis and Romano 1992): that tells how certain the figures of these very
runs are, and nothing of how runs differ.

Intervals are bootstrap percentiles, moved out for few units (Hesterberg 2015), or they would be too
narrow. Each is right in 95 of 100 cases: of twenty figures of equal sides, one may seem to differ.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from statistics import NormalDist, fmean
from typing import Literal, cast

import msgspec

from ._records import RequestRecord
from ._result import Result
from ._slices import Slices
from ._workload import Workload

CONFIDENCE = 0.95
LEAST_UNITS = 5
"""Runs a side, or else blocks a side: fewer say too little."""

LEAST_BEYOND = 5
"""So many requests must lie beyond a percentile, or it is the luck of a few."""

RUN_RESAMPLES, BLOCK_RESAMPLES = 10_000, 1_000
REPEATS_DIFFER = ("seed",)
SIDES_DIFFER = ("seed", "base_url", "model", "fake_")
"""How settings begin that may differ: between the runs of a side, and between a and b."""

Unit = Literal["run", "within one run"]
Verdict = Literal["better", "worse", "undecided"]


@dataclass(frozen=True)
class Run:
    """One run of a workload.

    Args:
        folder: Where its files are.
        result: What came out of it.
        number: Which of the repeats.
    """

    folder: Path
    result: Result
    number: int = 1

    @cached_property
    def requests(self) -> list[RequestRecord]:
        """Its requests, read when they are asked for; see `read_requests`."""
        return read_requests(self.folder / "requests.csv")


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One figure, on both sides.

    Attributes:
        figure: Its name, like `"ttft p99"`.
        kind: Whether `change` is b over a, or b minus a.
        lower_is_better: Whether it is.
        a: The mean over the runs of a; durations in milliseconds. `None`: some run has none.
        b: Likewise.
        change: The ratio or difference. The ratio to 0 is infinite, which JSON writes as null.
        low: Where that lies at least, with 95 % confidence; `None` if that cannot be told.
        high: Where it lies at most.
        verdict: Of b: only what the whole interval says is said.
        why: Why there is no interval, or `""`.
    """

    figure: str
    kind: Literal["ratio", "difference"]
    lower_is_better: bool
    a: float | None = None
    b: float | None = None
    change: float | None = None
    low: float | None = None
    high: float | None = None
    verdict: Verdict = "undecided"
    why: str = ""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Two sides, compared.

    Attributes:
        a: The folders of its runs.
        b: Likewise.
        unit: What was drawn again for the intervals.
        paired: Whether runs were, by their numbers.
        changes: Figure by figure.
    """

    a: list[str]
    b: list[str]
    unit: Unit
    paired: bool
    changes: list[Change]

    @property
    def label(self) -> str:
        """What the intervals are about, in a sentence for people."""
        if self.unit == "run":
            paired = ", paired by their numbers" if self.paired else ""
            return f"The unit is the run: {len(self.a)} of a and {len(self.b)} of b{paired}."
        return (
            "Within one run: the intervals say nothing of how runs differ. "
            f"That takes {LEAST_UNITS} runs of each side (--repeat {LEAST_UNITS})."
        )

    def json(self) -> bytes:
        """For other programs."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1)


@dataclass(frozen=True)
class _Figure:
    """Of what, where in a result it is, and where in a slice of its requests."""

    name: str
    of_result: Callable[[Result], float | None]
    of_slices: Callable[[Slices, Sequence[int]], float | None] | None
    percent: float | None = None
    kind: Literal["ratio", "difference"] = "ratio"

    @property
    def lower_is_better(self) -> bool:
        return self.percent is not None


# Reading


def read_runs(path: str | Path) -> list[Run]:
    """The runs in a folder: `result.json` if it holds one, else `1/result.json` and so on.

    Raises:
        OSError: One of them cannot be read.
        ValueError: There is none, or one is no result.
    """
    path = Path(path)
    if not path.is_dir() or (path / "result.json").exists():
        return [Run(path if path.is_dir() else path.parent, Result.read(path))]
    numbered = [folder for folder in path.iterdir() if folder.is_dir() and folder.name.isdecimal()]
    if not numbered:
        raise ValueError(f"{path} holds no run: neither result.json nor 1/result.json")
    numbered.sort(key=lambda folder: int(folder.name))
    return [Run(folder, Result.read(folder), int(folder.name)) for folder in numbered]


def read_requests(path: str | Path) -> list[RequestRecord]:
    """The requests of a run, from its `requests.csv`.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no such file; the message names the line.
    """
    with Path(path).open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        try:
            return [
                # What is empty is as by default: None, or no text.
                msgspec.convert(
                    {name: value for name, value in row.items() if value},
                    RequestRecord,
                    strict=False,
                )
                for row in rows
            ]
        except (msgspec.ValidationError, csv.Error, UnicodeDecodeError) as error:
            raise ValueError(
                f"{path}, line {rows.line_num}: that is no request of a simulation: {error}"
            ) from None


# Comparing


def compare(a: Sequence[Run], b: Sequence[Run]) -> Comparison:
    """Compare two sides, each with the runs of one workload.

    The same runs always compare the same. With fewer than five runs on a side, their requests are
    read.

    Raises:
        OSError: The requests cannot be read.
        ValueError: They cannot be compared: the workloads differ, the simulator itself was the
            limit of a run, a run is not whole, or its requests are no such file. The message is for
            people.
    """
    _refuse(a, b)
    numbers = sorted(run.number for run in a), sorted(run.number for run in b)
    whole = min(len(a), len(b)) >= LEAST_UNITS
    paired = whole and numbers[0] == numbers[1]
    resampled = _Runs(a, b, paired=paired) if whole else _Blocks(a, b)
    return Comparison(
        a=[str(run.folder) for run in a],
        b=[str(run.folder) for run in b],
        unit="run" if whole else "within one run",
        paired=paired,
        changes=[_change(figure, a, b, resampled) for figure in _figures()],
    )


def _refuse(a: Sequence[Run], b: Sequence[Run]) -> None:
    """Say all that keeps these runs from being compared."""
    if not a or not b:
        raise ValueError("there is nothing to compare: a side has no runs")
    faults = [fault for run in (*a, *b) for fault in _faults(run)]
    for side in (a, b):
        for run in side[1:]:
            faults += _differences(side[0], run, REPEATS_DIFFER)
    faults += _differences(a[0], b[0], SIDES_DIFFER)
    if faults:
        raise ValueError("\n".join(["these runs cannot be compared:", *faults]))


def _faults(run: Run) -> Iterable[str]:
    """What keeps a run from being compared with any other."""
    if run.result.client_bound:
        seconds = sorted({bound.second for bound in run.result.client_bound})
        more = f" and {len(seconds) - 10} more" if len(seconds) > 10 else ""
        yield (
            f"{run.folder}: the simulator itself was the limit (client-bound) in "
            f"second{'s' * (len(seconds) > 1)} {', '.join(map(str, seconds[:10]))}{more}: "
            "run it with more processes"
        )
    if run.result.lost_shards:
        yield (
            f"{run.folder}: a part of the load was lost ({', '.join(run.result.lost_shards)}): "
            "run it again"
        )
    if run.result.interrupted:
        yield f"{run.folder}: it was interrupted before its end: run it again"


def _differences(one: Run, other: Run, may_differ: tuple[str, ...]) -> Iterable[str]:
    """In which settings two runs are not of one workload."""
    ours, others = _settings(one.result), _settings(other.result)
    for name in sorted(ours | others):
        if ours.get(name) != others.get(name) and not name.startswith(may_differ):
            yield (
                f"the workloads differ: {name} is {ours.get(name)!r} in {one.folder}, "
                f"but {others.get(name)!r} in {other.folder}"
            )


def _settings(result: Result) -> dict[str, object]:
    """All settings, as a file holds them, those by default too."""
    by_default: dict[str, object] = {}
    for field in dataclasses.fields(Workload):
        default: object = field.default
        if isinstance(default, tuple):
            default = list(cast("tuple[object, ...]", default))
        by_default[field.name] = default
    return by_default | result.workload


def _figures() -> list[_Figure]:
    durations = ("ttft", "ttfo", "latency")
    names = [name for of in durations for name in (of, f"{of}_intended")]
    return [
        *(_percentile(name, percent) for name in (*names, "itl", "icl") for percent in (50, 99)),
        _Figure("goodput", attrgetter("goodput"), Slices.goodput),
        _Figure(
            "good_fraction",
            attrgetter("good_fraction"),
            Slices.good_fraction,
            kind="difference",
        ),
        _Figure("tokens_per_second", attrgetter("tokens_per_second"), Slices.tokens_per_second),
        _Figure(
            "requests_per_second", attrgetter("requests_per_second"), Slices.requests_per_second
        ),
    ]


def _percentile(name: str, percent: int) -> _Figure:
    def of_result(result: Result) -> float | None:
        return getattr(result.figures.get(name), f"p{percent}", None)

    def of_slices(slices: Slices, weights: Sequence[int]) -> float | None:
        return slices.percentile(name, percent, weights)

    known = name != "icl"  # The requests' file holds no gaps.
    return _Figure(f"{name} p{percent}", of_result, of_slices if known else None, percent)


def _change(
    figure: _Figure, a: Sequence[Run], b: Sequence[Run], resampled: _Runs | _Blocks
) -> Change:
    values_a = [figure.of_result(run.result) for run in a]
    values_b = [figure.of_result(run.result) for run in b]
    change = Change(
        figure=figure.name,
        kind=figure.kind,
        lower_is_better=figure.lower_is_better,
        a=_mean(values_a),
        b=_mean(values_b),
    )
    if change.a is None or change.b is None:
        return msgspec.structs.replace(change, why="some run has no such figure")
    compared = _ratio if figure.kind == "ratio" else _difference
    change = msgspec.structs.replace(change, change=compared(change.a, change.b))
    counted = {run.result.tokens_by for run in (*a, *b)}
    if figure.name.startswith("itl") and len(counted) > 1:
        why = f"tokens were counted differently: by {', '.join(sorted(counted))}"
        return msgspec.structs.replace(change, why=why)
    pairs = resampled.pairs(figure)
    if isinstance(pairs, str):
        return msgspec.structs.replace(change, why=pairs)
    changes = sorted(compared(*pair) for pair in pairs)
    cut = int(len(changes) * _tail(resampled.units))
    low, high = changes[cut], changes[-1 - cut]
    neutral = 1.0 if figure.kind == "ratio" else 0.0
    verdict: Verdict = "undecided"
    if low > neutral:
        verdict = "worse" if figure.lower_is_better else "better"
    elif high < neutral:
        verdict = "better" if figure.lower_is_better else "worse"
    return msgspec.structs.replace(change, low=low, high=high, verdict=verdict)


def _mean(values: Iterable[float | None]) -> float | None:
    known: list[float] = []
    for value in values:
        if value is None:
            return None
        known.append(value)
    return fmean(known)


def _ratio(a: float, b: float) -> float:
    if a:
        return b / a
    return math.inf if b else 1.0


def _difference(a: float, b: float) -> float:
    return b - a


def _tail(units: int) -> float:
    """Which share of the resamples to cut at either end.

    As many as bring the width of a normal statistic's interval to that of Student's t.
    """
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    freedom = units - 1
    t = (  # Student's, from the normal quantile (Abramowitz and Stegun, 26.7.5)
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
    return NormalDist().cdf(-t * math.sqrt(units / freedom))


# Drawing again


class _Runs:
    """Whole runs, drawn again."""

    def __init__(self, a: Sequence[Run], b: Sequence[Run], *, paired: bool) -> None:
        dice = random.Random(0)
        self.units = min(len(a), len(b))
        self._a = sorted(a, key=attrgetter("number"))
        self._b = sorted(b, key=attrgetter("number"))
        self._picks_a = _picks(dice, len(a))
        self._picks_b = self._picks_a if paired else _picks(dice, len(b))

    def pairs(self, figure: _Figure) -> list[tuple[float, float]]:
        """The figure of both sides, in each resample. Every run has it."""
        of_a = [figure.of_result(run.result) or 0.0 for run in self._a]
        of_b = [figure.of_result(run.result) or 0.0 for run in self._b]
        return [
            (
                sum(map(of_a.__getitem__, pick_a)) / len(of_a),
                sum(map(of_b.__getitem__, pick_b)) / len(of_b),
            )
            for pick_a, pick_b in zip(self._picks_a, self._picks_b, strict=True)
        ]


def _picks(dice: random.Random, count: int) -> list[list[int]]:
    return [dice.choices(range(count), k=count) for _ in range(RUN_RESAMPLES)]


class _Blocks:
    """Consecutive pieces of each run, drawn again; the runs stay what they are."""

    def __init__(self, a: Sequence[Run], b: Sequence[Run]) -> None:
        dice = random.Random(0)
        self._sides = [[Slices(run.result, run.requests) for run in side] for side in (a, b)]
        self.units = min(sum(slices.blocks for slices in side) for side in self._sides)
        self._weights = [
            [[slices.draw(dice) for _ in range(BLOCK_RESAMPLES)] for slices in side]
            for side in self._sides
        ]

    def pairs(self, figure: _Figure) -> list[tuple[float, float]] | str:
        """The figure of both sides, in each resample; or why there are none."""
        if figure.of_slices is None:
            return f"the requests' file does not hold it: {LEAST_UNITS} runs of each side would"
        if self.units < LEAST_UNITS:
            return (
                f"too short: {self.units} blocks as long as the longest request, "
                f"but {LEAST_UNITS} needed"
            )
        if figure.percent is not None:
            beyond = 1 - figure.percent / 100
            name = figure.name.split()[0]
            fewest = min(slices.values(name) for side in self._sides for slices in side)
            if fewest * beyond < LEAST_BEYOND:
                return f"too few: {fewest} requests, but {math.ceil(LEAST_BEYOND / beyond)} needed"
        sides: list[list[float]] = []
        for side, weights in zip(self._sides, self._weights, strict=True):
            runs: list[list[float]] = []
            for slices, of_run in zip(side, weights, strict=True):
                values: list[float] = []
                for of_resample in of_run:
                    value = figure.of_slices(slices, of_resample)
                    if value is None:
                        return "too few: they lie in only some parts of the run"
                    values.append(value)
                runs.append(values)
            sides.append([fmean(values) for values in zip(*runs, strict=True)])
        return list(zip(*sides, strict=True))


# Showing


def table(comparison: Comparison) -> list[tuple[str, ...]]:
    """Rows to print, the heading first: figure, a, b, change, its interval, verdict."""
    rows: list[tuple[str, ...]] = [("figure", "a", "b", "change", "95 % interval", "verdict")]
    for change in comparison.changes:
        if change.low is None or change.high is None:
            interval = change.why
        else:
            interval = (
                f"{_shown_change(change, change.low)} to {_shown_change(change, change.high)}"
            )
        rows.append(
            (
                change.figure.replace("_", " "),
                _shown(change, change.a),
                _shown(change, change.b),
                "-" if change.change is None else _shown_change(change, change.change),
                interval,
                change.verdict,
            )
        )
    return rows


def _shown(change: Change, value: float | None) -> str:
    if value is None:
        return "-"
    if change.kind == "difference":
        return f"{100 * value:.2f} %"
    return f"{value:,.4g} ms" if change.lower_is_better else f"{value:,.4g}/s"


def _shown_change(change: Change, value: float) -> str:
    if change.kind == "difference":
        return f"{100 * value:+.2f} points"
    return "from 0" if math.isinf(value) else f"{100 * (value - 1):+.1f} %"
