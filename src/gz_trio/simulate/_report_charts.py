"""The charts of a report, as plotly.js takes them: plain data, which the page holds as JSON."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, NamedTuple

from hdrh.histogram import HdrHistogram

from ._result import Result, Second

Figure = dict[str, object]

_BLUE, _ORANGE, _GREEN, _RED, _VIOLET = "#3b82c4", "#d97706", "#2a9d6f", "#d1495b", "#8b6fc9"

MARKS = {
    "not counted": "rgba(128,128,128,0.2)",
    "client-bound": "rgba(209,73,91,0.3)",
    "rotation": _VIOLET,
}
"""The colours of what stands behind the lines."""

_BINS = 60
# HdrHistogram keeps three digits: bins that are narrower than its own steps would have gaps.
_LEAST_BIN = math.log(1.005)


@dataclass(frozen=True)
class Chart:
    """One chart.

    Args:
        id: Of its element in the page.
        kind: Where it belongs in the page.
        title: What it shows, in words.
        figure: Its `data` and `layout`.
        height: In pixels.
    """

    id: str
    kind: Literal["time", "histogram", "percentiles"]
    title: str
    figure: Figure
    height: int


class _Line(NamedTuple):
    name: str
    field: str
    colour: str
    area: bool = False


class _Row(NamedTuple):
    title: str
    lines: tuple[_Line, ...]
    logarithmic: bool = False


_ROWS = (
    _Row("tokens/s", (_Line("tokens", "tokens", _BLUE),)),
    _Row(
        "requests/s",
        (
            _Line("sent", "sent", _BLUE),
            _Line("ended well", "ok", _GREEN),
            _Line("failed", "failed", _RED),
        ),
    ),
    _Row("active", (_Line("requests under way", "active", _VIOLET),)),
    _Row(
        "keys",
        (
            _Line("paused replies", "paused", _ORANGE, area=True),
            _Line("401s", "rejected", _RED),
        ),
    ),
    _Row(
        "ms",
        (
            _Line("ttft p50", "ttft_p50", _BLUE),
            _Line("ttft p99", "ttft_p99", _VIOLET),
            _Line("latency p99", "latency_p99", _ORANGE),
        ),
        logarithmic=True,
    ),
    _Row(
        "ms",
        (_Line("icl p50", "icl_p50", _BLUE), _Line("icl p99", "icl_p99", _VIOLET)),
        logarithmic=True,
    ),
)
_KEYS_ROW = 3

# Between two rows, of the height of all: a legend goes there, on a narrow screen of two lines.
_GAP = 0.06


def charts(result: Result) -> list[Chart]:
    """All that there is something to show in."""
    drawn: list[Chart] = []
    if result.series:
        drawn.append(Chart("time", "time", "Second by second", _time(result), 170 * len(_ROWS)))
    histograms = {
        figure: histogram
        for figure, encoded in result.histograms.items()
        if (histogram := HdrHistogram.decode(encoded)).get_total_count()
    }
    for figure in ("ttft", "latency", "icl", "itl"):
        if shown := _since(figure, histograms):
            name = f"histogram-{figure}"
            drawn.append(Chart(name, "histogram", figure, _distribution(shown), 300))
    for figure in ("ttft", "latency", "icl"):
        if shown := _since(figure, histograms):
            name = f"percentiles-{figure}"
            drawn.append(Chart(name, "percentiles", figure, _percentiles(shown), 340))
    return drawn


def seconds_in_a_row(seconds: Sequence[int]) -> list[tuple[int, int]]:
    """The first and the last second of each run of them.

    >>> seconds_in_a_row([7, 3, 8, 9])
    [(3, 3), (7, 9)]
    """
    runs: list[tuple[int, int]] = []
    # In a run, a second and its place in the order grow alike.
    for _, run in groupby(enumerate(sorted(set(seconds))), lambda pair: pair[1] - pair[0]):
        found = [second for _, second in run]
        runs.append((found[0], found[-1]))
    return runs


# Over time


def _time(result: Result) -> Figure:
    """Rows of lines over one time axis, so that what happens together stands together."""
    pitch = (1 + _GAP) / len(_ROWS)
    traces: list[Figure] = []
    layout: Figure = {
        "xaxis": {
            "title": {"text": "seconds from the start of the load"},
            "anchor": _axis("y", len(_ROWS) - 1),
            "range": [result.series[0].second, result.series[-1].second + 1],
            "ticksuffix": " s",
            "showspikes": True,
            "spikemode": "across",
            "spikethickness": 1,
        },
        "showlegend": True,
        "hovermode": "x unified",
        "hoversubplots": "axis",
        "hoverlabel": {"namelength": -1},
        "margin": {"t": 30, "r": 10, "b": 50},
    }
    for number, row in enumerate(_ROWS):
        top = 1 - number * pitch
        layout[f"yaxis{number + 1 if number else ''}"] = {
            "title": {"text": row.title},
            "domain": [max(0, top - pitch + _GAP), top],
            "type": "log" if row.logarithmic else "linear",
            "rangemode": "tozero",
            "nticks": 3 if row.logarithmic else 5,
            "hoverformat": ",.4~r",
            "fixedrange": True,  # Zooming is about time, in all rows at once.
        }
        layout[f"legend{number + 1 if number else ''}"] = {
            "orientation": "h",
            "x": 0,
            "y": top,
            "yanchor": "bottom",
            "bgcolor": "rgba(0,0,0,0)",
        }
        traces += [_line(result.series, line, number) for line in row.lines]
    if result.rotations:
        traces.append(
            {
                "name": "key rotated",
                "x": result.rotations,
                "y": [0] * len(result.rotations),
                "mode": "markers",
                "marker": {"symbol": "triangle-up", "size": 11, "color": MARKS["rotation"]},
                "cliponaxis": False,
                "yaxis": _axis("y", _KEYS_ROW),
                "legend": _axis("legend", _KEYS_ROW),
            }
        )
    layout["shapes"] = _shades(result) + [
        {
            "type": "line",
            "name": "key rotated",
            "yref": "paper",
            "x0": instant,
            "x1": instant,
            "y0": 0,
            "y1": 1,
            "line": {"color": MARKS["rotation"], "width": 1.5, "dash": "dash"},
        }
        for instant in result.rotations
    ]
    return {"data": traces, "layout": layout}


def _line(series: Sequence[Second], line: _Line, row: int) -> Figure:
    return {
        "name": line.name,
        "x": [second.second for second in series],
        "y": [getattr(second, line.field) for second in series],
        # A percentile may stand alone between seconds in which no reply ended.
        "mode": "lines+markers" if _ROWS[row].logarithmic else "lines",
        "marker": {"size": 3},
        "line": {"shape": "hv", "width": 1.5, "color": line.colour},
        "fill": "tozeroy" if line.area else "none",
        "yaxis": _axis("y", row),
        "legend": _axis("legend", row),
    }


def _axis(name: str, row: int) -> str:
    return f"{name}{row + 1}" if row else name


def _shades(result: Result) -> list[Figure]:
    """Bands over all rows: what does not count, and what is not the gateway's doing."""
    window_ends = result.warm_up + result.seconds
    load_ends = result.series[-1].second + 1
    bands: list[tuple[str, str, float, float]] = []
    if result.warm_up:
        bands.append(("warm-up", "not counted", 0, result.warm_up))
    if load_ends > window_ends:
        bands.append(("grace", "not counted", window_ends, load_ends))
    bands += [
        ("client-bound", "client-bound", first, last + 1)
        for first, last in seconds_in_a_row([bound.second for bound in result.client_bound])
    ]
    return [
        {
            "type": "rect",
            "name": name,
            "yref": "paper",
            "x0": starts,
            "x1": ends,
            "y0": 0,
            "y1": 1,
            "fillcolor": MARKS[mark],
            "line": {"width": 0},
            "layer": "below",
        }
        for name, mark, starts, ends in bands
    ]


# Over all requests


class _Shown(NamedTuple):
    name: str
    line: Figure
    histogram: HdrHistogram


def _since(figure: str, histograms: dict[str, HdrHistogram]) -> list[_Shown]:
    """What there is of a figure. The second line is dotted: often it covers the first."""
    sent, intended = histograms.get(figure), histograms.get(f"{figure}_intended")
    shown: list[_Shown] = []
    if sent is not None:
        name = figure if intended is None else "from sent"
        shown.append(_Shown(name, {"shape": "hv", "width": 1.5, "color": _BLUE}, sent))
    if intended is not None:
        line: Figure = {"shape": "hv", "width": 2, "color": _ORANGE, "dash": "dot"}
        shown.append(_Shown("from intended", line, intended))
    return shown


def _distribution(shown: Sequence[_Shown]) -> Figure:
    traces: list[Figure] = []
    for name, line, histogram in shown:
        edges, counts = _bins(histogram)
        traces.append(
            {
                "name": name,
                "x": edges,
                "y": [*counts, 0],
                "mode": "lines",
                "line": line,
                "fill": "none" if traces else "tozeroy",
                "hovertemplate": "from %{x:.4~r} ms: %{y:,}",
            }
        )
    return {
        "data": traces,
        "layout": _layout(
            {"type": "log", "title": {"text": "ms"}},
            {"title": {"text": "how many"}, "rangemode": "tozero"},
        ),
    }


def _bins(histogram: HdrHistogram) -> tuple[list[float], list[int]]:
    """Edges in milliseconds, each so many times the one before, and what is between them."""
    found = [
        (math.log(max(1, step.value_iterated_to)), step.count_added_in_this_iter_step)
        for step in histogram.get_recorded_iterator()
    ]
    least, most = found[0][0], found[-1][0]
    width = max((most - least) / _BINS, _LEAST_BIN)
    counts: Counter[int] = Counter()
    for value, count in found:
        counts[int((value - least) / width)] += count
    bins = max(counts) + 1
    edges = [math.exp(least + number * width) / 1000 for number in range(bins + 1)]
    return edges, [counts[number] for number in range(bins)]


def _percentiles(shown: Sequence[_Shown]) -> Figure:
    """Percentiles over their distance to 100 %, so that each further nine has the same room."""
    traces: list[Figure] = []
    for name, line, histogram in shown:
        # Nothing is known beyond one in all of them.
        total = int(histogram.get_total_count())
        steps = [
            (step.percentile_level_iterated_to, step.value_iterated_to / 1000)
            for step in histogram.get_percentile_iterator(10)
        ]
        traces.append(
            {
                "name": name,
                "x": [min(total, 100 / max(100 - percent, 1e-9)) for percent, _ in steps],
                "y": [value for _, value in steps],
                "text": [f"p{percent:.7g}" for percent, _ in steps],
                "mode": "lines",
                "line": line,
                "hovertemplate": "%{text}: %{y:,.4~r} ms",
            }
        )
    ticks = {2: "50 %", 10: "90 %", 100: "99 %", 1_000: "99.9 %", 10_000: "99.99 %"}
    axis: Figure = {
        "type": "log",
        "title": {"text": "percentile"},
        "tickvals": list(ticks),
        "ticktext": list(ticks.values()),
    }
    return {
        "data": traces,
        "layout": _layout(axis, {"title": {"text": "ms"}, "rangemode": "tozero"}),
    }


def _layout(xaxis: Figure, yaxis: Figure) -> Figure:
    return {
        "xaxis": xaxis,
        "yaxis": yaxis,
        "hovermode": "closest",
        "showlegend": True,
        "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
        "margin": {"t": 30, "r": 10, "b": 50},
    }
