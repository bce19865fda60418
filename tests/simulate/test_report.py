"""The report: a page about a run that needs no network, warns when it must, and shows figures."""

import json
import random
import re
from functools import cache
from html.parser import HTMLParser
from typing import Any

import msgspec
import plotly.graph_objects
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gz_trio.simulate._histograms import Histograms, Percentiles, Samples
from gz_trio.simulate._report import report
from gz_trio.simulate._report_charts import charts
from gz_trio.simulate._result import ClientBound, Result, Second

MS = 1_000_000

WARNINGS = {
    "client-bound": "The simulator itself was the limit: these figures are not the gateway's.",
    "lost": "and what was done there is not in these figures",
    "interrupted": "The run was stopped before its end",
    "out of range": "Some durations were longer than an hour",
}


def a_result(**changes: Any) -> Result:
    """A run as it may well have been, but for these changes."""
    return msgspec.structs.replace(realistic_result(), **changes)


@cache
def realistic_result() -> Result:
    """A run of 80 s with a rotation of keys in its middle."""
    dice = random.Random(9)
    samples = Samples()
    for _ in range(2_000):
        ttft = dice.lognormvariate(5, 0.4)  # Around 150 ms.
        late = dice.expovariate(5)
        gaps = [dice.normalvariate(40, 3) for _ in range(49)]
        waited = dice.uniform(300, 900) if dice.random() < 0.05 else 0.0
        gaps[dice.randrange(49)] += waited
        latency = ttft + sum(gaps)
        samples.add("ttft", ttft * MS)
        samples.add("ttft_intended", (ttft + late) * MS)
        samples.add("latency", latency * MS)
        samples.add("latency_intended", (latency + late) * MS)
        samples.add("itl", (latency - ttft) / 49 * MS)
        samples.add("late", late * MS)
        for gap in gaps:
            samples.add("icl", gap * MS)
        if waited:
            samples.add("icl_paused", max(gaps) * MS)
    histograms = Histograms()
    histograms.merge(samples.take(), samples.out_of_range)
    return Result(
        workload={
            "base_url": "https://gateway.test/v1",
            "model": ["small=3", "large=1"],
            "users": 100,
            "warm_up": "10s",
            "rotations": ["40s"],
            "slo": ["ttft=500ms", "itl=50ms"],
        },
        target="https://gateway.test/v1",
        began=1_800_000_000.0,
        machine={"host": "bench-1", "python": "3.13.1", "gz_trio": "0.1.0"},
        shards=2,
        closed_loop=False,
        warm_up=10.0,
        seconds=60.0,
        intended=2_040,
        ok=2_000,
        errors=23,
        timeouts=10,
        unfinished=7,
        cancelled=31,
        error_kinds={"APIConnectionError": 23, "StreamTimeout": 10},
        figures={name: histograms.percentiles(name) for name in histograms.figures()},
        with_failures={
            name: histograms.percentiles(name, endless=33)
            for name in ("ttft", "ttft_intended", "latency", "latency_intended")
        },
        tokens=100_000,
        tokens_by="usage",
        tokens_per_second=1_666.7,
        requests_per_second=33.33,
        goodput=31.5,
        good_fraction=0.9265,
        rejected=104,
        refreshes=1,
        pauses=97,
        paused_seconds=58.2,
        taken_up={"replay": 90, "continue": 7},
        restarts=3,
        lost=0,
        doubled=12,
        wrong_lengths=17,
        series=[a_second(number, dice) for number in range(80)],
        rotations=[40.25],
        skipped={"no messages": 4},
        histograms=histograms.encoded(),
    )


def a_second(number: int, dice: random.Random) -> Second:
    after = number - 40
    return Second(
        second=number,
        tokens=0
        if number == 40
        else max(0, round(1_660 + dice.gauss(0, 40)) if number < 70 else 0),
        sent=33 if number < 70 else 0,
        ok=max(0, min(number, 33) if number < 72 else 0),
        failed=7 if number in (40, 41) else 0,
        active=max(0, min(10 * number, 75 - 25 * max(0, number - 69))),
        paused={0: 75, 1: 22}.get(after, 0),
        rejected={0: 97, 1: 7}.get(after, 0),
        ttft_p50=150 + dice.gauss(0, 5) if number > 1 else None,
        ttft_p99=380 + dice.gauss(0, 30) if number > 1 else None,
        latency_p99=2_500 + (900 if 0 <= after < 3 else 0) if number > 3 else None,
        icl_p50=40.0,
        icl_p99=47 + (600 if 0 <= after < 3 else 0),
    )


class Page(HTMLParser):
    """What a browser would see of a page.

    Attributes:
        text: What can be read, by a reader who sees no charts.
        tags: Each, with its attributes.
        styles: The style sheets.
        scripts: Those in the page, the library's included.
        cells: Of all tables, row by row.
        opened: Tags that are not closed.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text = ""
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.styles: list[str] = []
        self.scripts: list[str] = []
        self.cells: list[list[str]] = []
        self.opened: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "br"):
            self.opened.append(tag)
        if tag == "tr":
            self.cells.append([])
        elif tag in ("td", "th"):
            self.cells[-1].append("")
        elif tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.opened.pop() == tag

    def handle_data(self, data: str) -> None:
        inside = self.opened[-1] if self.opened else ""
        if inside == "script":
            self.scripts[-1] += data
        elif inside == "style":
            self.styles.append(data)
        else:
            self.text += data
            if inside in ("td", "th"):
                self.cells[-1][-1] += data

    @property
    def figures(self) -> dict[str, Any]:
        """What the charts are drawn from."""
        figures: dict[str, Any] = json.loads(
            next(script for script in self.scripts if script.startswith("{"))
        )
        return figures

    def row(self, *headings: str) -> list[str]:
        """The cells after these headings."""
        (cells,) = (row for row in self.cells if row[: len(headings)] == list(headings))
        return cells[len(headings) :]


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(report(a_result()))


# It stands alone


def test_nothing_in_the_page_is_loaded_from_anywhere(page: Page) -> None:
    assert {tag for tag, _ in page.tags}.isdisjoint(
        {"link", "img", "iframe", "object", "embed", "base", "form", "a", "audio", "video"}
    )
    for tag, attributes in page.tags:
        assert not {"src", "href", "srcset", "action"} & attributes.keys(), tag
        assert not re.search(r"url\(|//", attributes.get("style") or "")
    for style in page.styles:
        assert not re.search(r"url\(|@import|//", style)


def test_the_browser_is_told_to_allow_no_network_whatever_a_script_tries(page: Page) -> None:
    (policy,) = (
        attributes["content"] or ""
        for tag, attributes in page.tags
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    )
    directives = dict(directive.strip().split(" ", 1) for directive in policy.split(";"))
    assert directives.pop("default-src") == "'none'"
    sources = {source for words in directives.values() for source in words.split()}
    assert sources == {"'unsafe-inline'", "'none'", "data:", "blob:"}


def test_no_button_of_a_chart_sends_the_figures_to_the_maker_of_the_library(page: Page) -> None:
    assert "showSendToCloud: false" in page.scripts[-1]
    assert 'plotlyServerURL: ""' in page.scripts[-1]


def test_the_library_of_the_charts_is_in_the_page_once_and_ends_no_script_early(
    page: Page,
) -> None:
    assert sum("plotly.js v" in script for script in page.scripts) == 1
    assert len(page.scripts) == 3
    assert page.opened == []


# What comes from outside


def test_whatever_comes_from_outside_is_text_and_no_markup() -> None:
    evil = "</script></pre><script>alert(1)</script>&amp;\"'"
    page = Page(
        report(
            a_result(
                target=evil,
                workload={"model": [evil], "slo": [evil]},
                machine={evil: evil},
                error_kinds={evil: 1},
                taken_up={evil: 2},
                skipped={evil: 3},
                lost_shards=[evil],
            )
        )
    )
    assert len(page.scripts) == 3
    assert page.opened == []
    assert page.text.count(evil) == 9  # In TOML, its quotes look otherwise.


def test_a_name_in_the_data_of_a_chart_cannot_end_its_script() -> None:
    assert "</" not in Page(report(a_result())).scripts[1]


# Warnings


CLIENT_BOUND = [
    ClientBound(second=12, shard=0, why="late", value=3.21, limit=1.0),
    ClientBound(second=14, shard=1, why="late", value=7.25, limit=1.0),
    ClientBound(second=15, shard=1, why="late", value=2.0, limit=1.0),
    ClientBound(second=15, shard=1, why="polls", value=4.0, limit=2.5),
    ClientBound(second=41, shard=0, why="cpu", value=0.97, limit=0.9),
]
OUT_OF_RANGE = msgspec.structs.replace(a_result().figures["ttft"], out_of_range=5)


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({}, set[str]()),
        ({"client_bound": CLIENT_BOUND}, {"client-bound"}),
        ({"lost_shards": ["process 1 on bench-2: silent for 5 s"]}, {"lost"}),
        ({"interrupted": True}, {"interrupted"}),
        ({"figures": {"ttft": OUT_OF_RANGE}}, {"out of range"}),
        ({"interrupted": True, "client_bound": CLIENT_BOUND}, {"interrupted", "client-bound"}),
    ],
)
def test_a_reader_is_warned_when_and_only_when_there_is_a_reason(
    changes: dict[str, Any], warned: set[str]
) -> None:
    page = Page(report(a_result(**changes)))
    assert {name for name, words in WARNINGS.items() if words in page.text} == warned
    boxes = [attributes.get("class") for _, attributes in page.tags]
    assert boxes.count("warning") == len(warned)


def test_warnings_come_before_any_figure() -> None:
    text = Page(report(a_result(client_bound=CLIENT_BOUND))).text
    assert text.index(WARNINGS["client-bound"]) < text.index("Figures")


def test_client_bound_seconds_are_listed_with_why_how_bad_and_where() -> None:
    text = Page(report(a_result(client_bound=CLIENT_BOUND))).text
    assert "in 4 seconds (12, 14-15, 41)" in text
    assert (
        "requests were sent up to 7.25 ms late, at p99, where 1 ms is the limit "
        "(seconds 12, 14-15; process 0, 1)" in text
    )
    assert "for up to 4 ms, at p99, where 2.5 ms is the limit (seconds 15; process 1)" in text
    assert "up to 97 % of a core was used, where 90 % is the limit (seconds 41;" in text


def test_lost_processes_are_named() -> None:
    text = Page(report(a_result(lost_shards=["1 on bench-2", "2 on bench-2"]))).text
    assert "2 processes were lost" in text
    assert "1 on bench-2; 2 on bench-2" in text


@pytest.mark.parametrize("closed_loop", [True, False])
def test_of_a_closed_loop_the_report_says_that_it_slows_down_with_its_server(
    closed_loop: bool,
) -> None:
    text = Page(report(a_result(closed_loop=closed_loop))).text
    assert ("it slows down with its server" in text) == closed_loop


@pytest.mark.parametrize("tokens_by", ["usage", "tokenizer", "chunks", "mixed"])
def test_chunks_that_stand_for_tokens_are_labelled(tokens_by: str) -> None:
    text = Page(report(a_result(tokens_by=tokens_by))).text
    assert ("a chunk counts as one" in text) == (tokens_by in ("chunks", "mixed"))


# Figures


def test_the_figures_of_the_result_are_in_the_tables(page: Page) -> None:
    assert page.row("Tokens a second") == ["1,666.7"]
    assert page.row("Requests a second") == ["33.33"]
    assert page.row("Goodput, good requests a second") == ["31.50"]
    assert page.row("Good fraction, of the intended") == ["92.65 %"]
    assert page.row("Good is what") == ["keeps to ttft=500ms, itl=50ms"]
    assert page.row("Output tokens") == ["100,000, as the server counted them"]
    assert page.row("Answers of another length than asked for") == ["17"]
    assert page.row("intended") == ["2,040", ""]
    assert page.row("ended well") == ["2,000", "98.04 %"]
    assert page.row("failed") == ["23", "1.13 %"]
    assert page.row("timed out") == ["10", "0.49 %"]
    assert page.row("unfinished at the end of the grace") == ["7", "0.34 %"]
    assert page.row("left by their users, apart from these") == ["31", ""]
    assert page.row("APIConnectionError") == ["23"]
    assert page.row("StreamTimeout") == ["10"]
    assert page.row("401s") == ["104"]
    assert page.row("Refreshes") == ["1"]
    assert page.row("Pauses") == ["97"]
    assert page.row("Time paused, over all replies") == ["58.2 s"]
    assert page.row("Taken up again by replay") == ["90"]
    assert page.row("Taken up again by continue") == ["7"]
    assert page.row("Begun anew by a second answer") == ["3"]
    assert page.row("Characters lost") == ["0"]
    assert page.row("Characters doubled") == ["12"]
    assert page.row("no messages") == ["4"]
    assert page.row("host") == ["bench-1"]
    assert "2027-01-15 08:00:00 UTC: 60 s counted, after 10 s of warm-up" in page.text
    assert 'base_url = "https://gateway.test/v1"' in page.text


def test_characters_that_nobody_can_compare_are_not_said_to_be_there() -> None:
    page = Page(report(a_result(lost=None, doubled=None)))
    assert page.row("Characters lost") == page.row("Characters doubled")
    assert page.row("Characters lost") == ["not known of this gateway"]


def test_durations_from_sent_and_from_intended_stand_together() -> None:
    figures = {
        "ttft": percentiles(0.1234, 1.234, 12.34, 123.4, 1234.5, 12345.6, 123456.7),
        "ttft_intended": percentiles(1, 2, 3, 4, 5, 6, 7),
        "itl": percentiles(8, 9, 10, 11, 12, 13, 14),
    }
    cells = Page(report(a_result(figures=figures, with_failures={}))).cells
    place = next(number for number, row in enumerate(cells) if row[0] == "ttft")
    assert cells[place - 1 : place + 3] == [
        ["figure", "measured", "count", "mean", "p50", "p90", "p95", "p99", "p99.9", "max"],
        ["ttft", "from sent", "10", "0.123", "1.23", "12.3", "123", "1,234", "12,346", "123,457"],
        ["from intended", "10", "1.00", "2.00", "3.00", "4.00", "5.00", "6.00", "7.00"],
        ["itl", "", "10", "8.00", "9.00", "10.0", "11.0", "12.0", "13.0", "14.0"],
    ]


def percentiles(*values: float) -> Percentiles:
    mean, p50, p90, p95, p99, p999, most = values
    return Percentiles(
        count=10, mean=mean, p50=p50, p90=p90, p95=p95, p99=p99, p999=p999, most=most
    )


def test_a_percentile_among_requests_that_have_no_end_is_never() -> None:
    failures = {"ttft": Percentiles(count=10, mean=5.0, p50=4.0, endless=3)}
    page = Page(report(a_result(figures={}, with_failures=failures)))
    assert page.row("ttft", "") == ["10", "5.00", "4.00", *["never"] * 5]


def test_a_percentile_of_nothing_is_a_dash() -> None:
    page = Page(report(a_result(figures={"ttft": Percentiles(count=0)}, with_failures={})))
    assert page.row("ttft", "") == ["0", *["-"] * 7]


def test_every_table_has_a_caption_and_headings(page: Page) -> None:
    tags = [tag for tag, _ in page.tags]
    assert tags.count("table") == tags.count("caption") == tags.count("thead")
    assert all(
        attributes.get("scope") in ("row", "col", "rowgroup")
        for tag, attributes in page.tags
        if tag == "th"
    )


# Charts


def test_every_chart_is_one_that_the_library_knows_and_has_its_place_in_the_page(
    page: Page,
) -> None:
    places = {
        attributes["id"] for tag, attributes in page.tags if tag == "div" if "id" in attributes
    }
    assert places == page.figures.keys()
    assert list(page.figures) == sorted(
        [
            "time",
            *(f"histogram-{figure}" for figure in ("ttft", "latency", "icl", "itl")),
            *(f"percentiles-{figure}" for figure in ("ttft", "latency", "icl")),
        ]
    )
    for figure in page.figures.values():
        plotly.graph_objects.Figure(figure)  # It refuses what there is not.


def test_the_series_is_drawn_with_a_point_a_second() -> None:
    result = a_result()
    lines = traces(result)["time"]
    assert len(lines) == 13
    for name, line in lines.items():
        if name != "key rotated":
            assert line["x"] == list(range(80)), name
            assert len(line["y"]) == 80, name
    assert lines["tokens"]["y"] == [second.tokens for second in result.series]
    assert lines["failed"]["y"] == [second.failed for second in result.series]
    assert lines["paused replies"]["y"] == [second.paused for second in result.series]
    assert lines["ttft p99"]["y"] == [second.ttft_p99 for second in result.series]


def test_rotations_and_shaded_seconds_stand_on_the_same_axis_of_time() -> None:
    page = Page(report(a_result(client_bound=CLIENT_BOUND)))
    shapes = page.figures["time"]["layout"]["shapes"]
    assert [(shape["name"], shape["x0"], shape["x1"]) for shape in shapes] == [
        ("warm-up", 0, 10.0),
        ("grace", 70.0, 80),
        ("client-bound", 12, 13),
        ("client-bound", 14, 16),
        ("client-bound", 41, 42),
        ("key rotated", 40.25, 40.25),
    ]
    assert traces(a_result())["time"]["key rotated"]["x"] == [40.25]


def test_a_histogram_holds_every_value_once_between_the_least_and_the_largest() -> None:
    result = a_result()
    for chart, lines in traces(result).items():
        _, _, figure = chart.partition("histogram-")
        for name, line in lines.items() if figure else ():
            found = result.figures[figure + "_intended" * (name == "from intended")]
            assert found.least is not None
            assert found.most is not None
            assert sum(line["y"]) == found.count
            assert len(line["x"]) == len(line["y"]) <= 62
            assert line["x"] == sorted(line["x"])
            assert line["x"][0] == pytest.approx(found.least, rel=0.002)
            assert line["x"][-1] >= found.most * 0.998


@settings(max_examples=max(20, settings().max_examples // 5))
@given(st.lists(st.integers(0, 3_600_000_000), min_size=1, max_size=50))
def test_a_histogram_of_whatever_values_holds_them_all(microseconds: list[int]) -> None:
    samples = Samples()
    for value in microseconds:
        samples.add("icl", value * 1000)
    histograms = Histograms()
    histograms.merge(samples.take(), {})
    drawn = traces(a_result(histograms=histograms.encoded(), series=[]))
    assert sum(drawn["histogram-icl"]["icl"]["y"]) == len(microseconds)
    assert drawn["percentiles-icl"]["icl"]["y"][-1] == pytest.approx(
        max(microseconds) / 1000, rel=0.002, abs=0.001
    )


def test_the_curves_of_percentiles_agree_with_the_tables_and_end_at_one_in_all() -> None:
    result = a_result()
    curves = traces(result)["percentiles-latency"]
    assert list(curves) == ["from sent", "from intended"]
    line = curves["from sent"]
    found = result.figures["latency"]
    assert line["x"] == sorted(line["x"])
    assert line["x"][0] == pytest.approx(1)
    assert line["x"][-1] == found.count
    for nines, value in ((2, found.p50), (10, found.p90), (100, found.p99)):
        at = next(y for x, y in zip(line["x"], line["y"], strict=True) if x >= nines)
        assert at == pytest.approx(value, rel=0.02)
    assert line["y"][-1] == pytest.approx(found.most, rel=0.002)


def traces(result: Result) -> dict[str, dict[str, Any]]:
    """The traces of each chart, by name."""
    return {
        chart.id: {trace["name"]: trace for trace in chart.figure["data"]}  # type: ignore[attr-defined]
        for chart in charts(result)
    }


# Nothing came


def test_a_run_in_which_nothing_came_has_a_page_too() -> None:
    result = Result(
        workload={},
        target="fake gateway",
        began=0.0,
        machine={},
        closed_loop=False,
        warm_up=0.0,
        seconds=0.0,
    )
    page = Page(report(result))
    assert "No request counts, so there are no figures." in page.text
    assert page.row("intended") == ["0", ""]
    assert page.scripts == []
    assert page.opened == []


def test_seconds_in_which_nothing_ended_are_drawn_all_the_same() -> None:
    series = [Second(second=0, sent=1, active=1), Second(second=1, active=1)]
    drawn = traces(a_result(series=series, histograms={}))
    assert list(drawn) == ["time"]
    assert drawn["time"]["ttft p50"]["y"] == [None, None]
