"""The report of a run: one HTML file, with all that it needs in it, to look at without a network.

The page is `report.html.jinja`, which escapes all that it is given; here is what is said in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from typing import NamedTuple, cast

import tomli_w

from ._histograms import Percentiles
from ._report_charts import MARKS, charts, seconds_in_a_row
from ._result import ClientBound, Result

_MEANING = {
    "ttft": "time to the first chunk with content, reasoning or a tool call",
    "ttfo": "time to the first chunk of the output: reasoning is none",
    "latency": "time to the last chunk",
    "itl": "mean time between two tokens of a request",
    "icl": "time between two chunks, every gap",
    "icl_paused": "of these gaps, those that a pause was in",
    "late": "sent minus intended: how late the simulator was",
}

_WHY = {
    "late": ("requests were sent up to {} late, at p99", "ms"),
    "polls": ("sockets were left alone for up to {}, at p99", "ms"),
    "cpu": ("up to {} of a core was used", "%"),
}

_WITH_FAILURES = (
    "All requests, in ms: failed ones never end, unfinished ones are as old as they were. Means "
    "are of those that ended"
)

_TOKENS_BY = {
    "usage": "as the server counted them",
    "tokenizer": "as a tokenizer counted them",
    "chunks": "chunks, because nobody counted tokens",
    "mixed": "counted by the server for some requests, otherwise for others",
}


class _Durations(NamedTuple):
    """One figure of a table: for each instant that it is measured from, its cells."""

    figure: str
    meaning: str
    rows: list[tuple[str, list[str]]]


class _Table(NamedTuple):
    caption: str
    headings: tuple[str, ...]
    rows: list[tuple[str, ...]]


def report(result: Result) -> str:
    """A page about a run, with its figures as tables and charts.

    Args:
        result: The run's result.

    Returns:
        HTML of some megabytes, most of which is the library that draws the charts.
    """
    # Here, because a simulation without a report need not load them.
    from jinja2 import Environment, StrictUndefined  # noqa: PLC0415 - see above
    from markupsafe import Markup  # noqa: PLC0415 - likewise
    from plotly.offline import get_plotlyjs  # noqa: PLC0415 - likewise

    drawn = charts(result)
    template = files("gz_trio.simulate").joinpath("report.html.jinja").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(template).render(
        target=result.target,
        began=f"{datetime.fromtimestamp(result.began, UTC):%Y-%m-%d %H:%M:%S} UTC",
        spans=_spans(result),
        warnings=_warnings(result),
        notes=_notes(result),
        percentiles=("mean", "p50", "p90", "p95", "p99", "p99.9", "max"),
        durations=[
            ("Requests that ended well, in ms", _durations(result.figures)),
            (_WITH_FAILURES, _durations(result.with_failures)),
        ],
        tables=_tables(result),
        workload=tomli_w.dumps(result.workload),
        machine=_Table("Machine", ("", ""), list(result.machine.items())),
        charts=drawn,
        marks=MARKS,
        figures={chart.id: chart.figure for chart in drawn},
        # The library is no text of others, and holds nothing that would end a script.
        plotly=Markup(get_plotlyjs()),  # noqa: S704
    )


# What a reader must know first


def _spans(result: Result) -> str:
    words = [f"{result.seconds:,.4g} s counted"]
    if result.warm_up:
        words.append(f"after {result.warm_up:,.4g} s of warm-up")
    words.append(f"from {_plural(result.shards, 'process', 'processes')}")
    return ", ".join(words)


def _warnings(result: Result) -> list[str]:
    """What makes figures wrong, or not those of the gateway."""
    warnings: list[str] = []
    if result.client_bound:
        bound = [second.second for second in result.client_bound]
        warnings.append(
            "The simulator itself was the limit: these figures are not the gateway's. This "
            f"was so in {_plural(len(set(bound)), 'second', 'seconds')} ({_seconds(bound)}): "
            f"{'; '.join(_reasons(result.client_bound))}."
        )
    if result.lost_shards:
        warnings.append(
            f"{_plural(len(result.lost_shards), 'process was', 'processes were')} lost, and what "
            f"was done there is not in these figures: {'; '.join(result.lost_shards)}."
        )
    if result.interrupted:
        warnings.append(
            "The run was stopped before its end: the figures are of what was measured until then."
        )
    out_of_range = {
        figure: found.out_of_range for figure, found in result.figures.items() if found.out_of_range
    }
    if out_of_range:
        listed = ", ".join(f"{figure} {_count(count)}" for figure, count in out_of_range.items())
        warnings.append(
            f"Some durations were longer than an hour, and are in no percentile: {listed}."
        )
    return warnings


def _reasons(client_bound: Sequence[ClientBound]) -> list[str]:
    reasons: list[str] = []
    for why, (words, unit) in _WHY.items():
        found = [second for second in client_bound if second.why == why]
        if not found:
            continue
        worst = max(found, key=lambda second: second.value)
        factor = 100 if unit == "%" else 1
        shards = ", ".join(str(shard) for shard in sorted({second.shard for second in found}))
        seconds = _seconds([second.second for second in found])
        reasons.append(
            f"{words.format(f'{worst.value * factor:,.3g} {unit}')}, where "
            f"{worst.limit * factor:,.3g} {unit} is the limit (seconds {seconds}; process {shards})"
        )
    return reasons


def _notes(result: Result) -> list[str]:
    """What a reader should keep in mind of a run in which nothing went wrong."""
    notes: list[str] = []
    if not result.intended:
        notes.append("No request counts, so there are no figures.")
    if result.closed_loop:
        notes.append(
            "This was a closed loop: users wait for their reply, so it slows down with its "
            "server. Of arrivals that do not wait, a slow server would have more to bear, and "
            "its figures would be worse than these."
        )
    if result.tokens and result.tokens_by in ("chunks", "mixed"):
        notes.append(
            "The server did not count all tokens: where it did not, a chunk counts as one, unless "
            "a tokenizer was given."
        )
    return notes


# Tables


def _durations(figures: Mapping[str, Percentiles]) -> list[_Durations]:
    tables: list[_Durations] = []
    for figure, meaning in _MEANING.items():
        names = (("from sent", figure), ("from intended", f"{figure}_intended"))
        rows = [(since, _cells(figures[name])) for since, name in names if name in figures]
        if len(rows) == 1:  # It is not measured from an instant.
            rows = [("", rows[0][1])]
        if rows:
            tables.append(_Durations(figure, meaning, rows))
    return tables


def _cells(found: Percentiles) -> list[str]:
    percentiles = (found.p50, found.p90, found.p95, found.p99, found.p999, found.most)
    never = "never" if found.endless else "-"
    return [
        _count(found.count),
        "-" if found.mean is None else _milliseconds(found.mean),
        *(never if value is None else _milliseconds(value) for value in percentiles),
    ]


def _tables(result: Result) -> list[_Table]:
    limits = ", ".join(cast("list[str]", result.workload.get("slo", [])))
    of = max(1, result.intended)
    outcomes = {
        "ended well": result.ok,
        "failed": result.errors,
        "timed out": result.timeouts,
        "unfinished at the end of the grace": result.unfinished,
    }
    tables = [
        _Table(
            "Rates",
            ("", ""),
            [
                ("Tokens a second", f"{result.tokens_per_second:,.1f}"),
                ("Requests a second", f"{result.requests_per_second:,.2f}"),
                ("Goodput, good requests a second", f"{result.goodput:,.2f}"),
                ("Good fraction, of the intended", _share(result.good_fraction)),
                ("Good is what", f"keeps to {limits}" if limits else "ends well"),
                ("Output tokens", f"{_count(result.tokens)}, {_TOKENS_BY[result.tokens_by]}"),
                ("Answers of another length than asked for", _count(result.wrong_lengths)),
            ],
        ),
        _Table(
            "Requests by outcome",
            ("outcome", "requests", "share"),
            [
                ("intended", _count(result.intended), ""),
                *((name, _count(found), _share(found / of)) for name, found in outcomes.items()),
                ("left by their users, apart from these", _count(result.cancelled), ""),
            ],
        ),
        _Table(
            "Keys, and replies that met a dead one",
            ("", ""),
            [
                ("401s", _count(result.rejected)),
                ("Refreshes", _count(result.refreshes)),
                ("Pauses", _count(result.pauses)),
                ("Time paused, over all replies", f"{result.paused_seconds:,.1f} s"),
                *(
                    (f"Taken up again by {how}", _count(count))
                    for how, count in result.taken_up.items()
                ),
                ("Begun anew by a second answer", _count(result.restarts)),
                ("Characters lost", _known(result.lost)),
                ("Characters doubled", _known(result.doubled)),
            ],
        ),
    ]
    by_kind = (
        ("Errors by kind", "error", result.error_kinds),
        ("Left out of the prompts' file", "reason", result.skipped),
    )
    tables += [
        _Table(
            caption,
            (heading, "count"),
            [
                (kind, _count(count))
                for kind, count in sorted(counts.items(), key=lambda pair: -pair[1])
            ],
        )
        for caption, heading, counts in by_kind
        if counts
    ]
    return tables


# In words


def _milliseconds(value: float) -> str:
    """Three digits, which is what a histogram keeps; whole milliseconds are never cut."""
    digits = next((count for count, least in enumerate((100, 10, 1)) if value >= least), 3)
    return f"{value:,.{digits}f}"


def _count(count: int) -> str:
    return f"{count:,}"


def _known(count: int | None) -> str:
    return "not known of this gateway" if count is None else _count(count)


def _share(share: float) -> str:
    return f"{100 * share:.2f} %"


def _plural(count: int, one: str, many: str) -> str:
    return f"{_count(count)} {one if count == 1 else many}"


def _seconds(seconds: Sequence[int]) -> str:
    return ", ".join(
        str(first) if first == last else f"{first}-{last}"
        for first, last in seconds_in_a_row(seconds)
    )
