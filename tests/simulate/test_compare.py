"""Two sides of runs go in; what changed, how sure that is, and what may be said of it come out."""

import csv
import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from gz_trio.simulate._compare import (
    Change,
    Comparison,
    Run,
    Verdict,
    compare,
    read_requests,
    read_runs,
    table,
)
from gz_trio.simulate._files import RunFolder
from gz_trio.simulate._histograms import Percentiles
from gz_trio.simulate._records import RequestRecord, TokensBy
from gz_trio.simulate._result import ClientBound, Result, Second
from gz_trio.simulate._workload import Workload

SETTINGS: dict[str, object] = {"users": 10, "slo": ["ttft=500ms"]}
DURATIONS = ("ttft", "ttft_intended", "ttfo", "ttfo_intended", "latency", "latency_intended",
             "itl", "icl")  # fmt: skip
RATES = ("goodput", "tokens_per_second", "requests_per_second")
MS = 1_000_000


def result(
    ms: float = 100.0,
    rate: float = 10.0,
    good: float = 0.99,
    *,
    settings: dict[str, object] | None = None,
    tokens_by: TokensBy = "usage",
    seconds: float = 60.0,
) -> Result:
    """Of a run in which everything took so long, or came so often."""
    return Result(
        workload=SETTINGS | (settings or {}),
        target="fake gateway",
        began=0.0,
        machine={},
        closed_loop=True,
        warm_up=0.0,
        seconds=seconds,
        figures={name: Percentiles(count=1000, p50=ms, p99=3 * ms) for name in DURATIONS},
        goodput=rate,
        tokens_per_second=rate,
        requests_per_second=rate,
        good_fraction=good,
        tokens_by=tokens_by,
    )


def side(name: str, results: Sequence[Result], first: int = 1) -> list[Run]:
    """Runs that were repeated so, without their requests."""
    return [Run(Path(name, str(n)), result, n) for n, result in enumerate(results, first)]


def of(comparison: Comparison, figure: str) -> Change:
    return next(change for change in comparison.changes if change.figure == figure)


def verdicts(comparison: Comparison) -> dict[str, Verdict]:
    return {change.figure: change.verdict for change in comparison.changes}


# Reading


def test_a_folder_holds_a_run_or_its_repeats_in_their_order(tmp_path: Path) -> None:
    for number in ("1", "2", "10", "notes"):
        (tmp_path / number).mkdir()
    for number in ("1", "2", "10"):
        (tmp_path / number / "result.json").write_bytes(result(float(number)).json())
    repeats = read_runs(tmp_path)
    assert [run.number for run in repeats] == [1, 2, 10]
    assert [run.result.figures["ttft"].p50 for run in repeats] == [1.0, 2.0, 10.0]
    alone = read_runs(str(tmp_path / "2"))
    assert alone == read_runs(tmp_path / "2" / "result.json")
    assert [(run.folder, run.number) for run in alone] == [(tmp_path / "2", 1)]


def test_where_there_is_no_run_that_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no run: neither result\.json nor 1/result\.json"):
        read_runs(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_runs(tmp_path / "nowhere")
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(ValueError, match="is no result of a simulation"):
        read_runs(tmp_path)


RECORDS = [
    RequestRecord(session=0, turn=0, model="m", intended=1, sent=2, ended=9, outcome="unfinished"),
    RequestRecord(
        shard=1, session=2, turn=3, group=4, model="a,b", intended=5, sent=6, first=7,
        first_output=8, last=9, ended=10, outcome="error", error="APIError", window=False,
        chunks=11, output_tokens=0, tokens_by="tokenizer", input_tokens=12, asked_tokens=13,
        rejected=14, pauses=15, paused=16, taken_up="replay+cursor", restarts=17, longest_gap=18,
        lost=0, doubled=19,
    ),
]  # fmt: skip


def test_requests_are_read_as_they_were_written(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", Workload(users=1)) as folder:
        folder.add(RECORDS)
    assert read_requests(tmp_path / "run" / "requests.csv") == RECORDS


@pytest.mark.parametrize(
    ("line", "what"),
    [("0,0,m,1,2,3,fine", "Invalid enum value"), ("0,0,m,,2,3,ok", "intended"), ("x", "session")],
)
def test_a_line_that_is_no_request_is_named(tmp_path: Path, line: str, what: str) -> None:
    path = tmp_path / "requests.csv"
    path.write_text(
        f"session,turn,model,intended,sent,ended,outcome\n0,0,m,1,2,3,ok\n{line}\n",
        encoding="utf-8",
    )
    with pytest.raises(ValueError, match=f"line 3: that is no request of a simulation: .*{what}"):
        read_requests(path)


# What is not compared


def changed(**fields: object) -> Callable[[Result], Result]:
    return lambda result: msgspec.structs.replace(result, **fields)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            changed(workload=SETTINGS | {"users": 20}),
            "the workloads differ: users is 10 in a/1, but 20 in b/1",
        ),
        (
            changed(workload=SETTINGS | {"turns": 3, "slo": ["itl=1s"]}),
            (
                "the workloads differ: slo is ['ttft=500ms'] in a/1, but ['itl=1s'] in b/1\n"
                "the workloads differ: turns is 1 in a/1, but 3 in b/1"
            ),
        ),
        (
            changed(
                client_bound=[
                    ClientBound(second=second, shard=0, why="cpu", value=0.95, limit=0.9)
                    for second in (7, 3, 7)
                ]
            ),
            (
                "b/1: the simulator itself was the limit (client-bound) in seconds 3, 7: "
                "run it with more processes"
            ),
        ),
        (
            changed(
                client_bound=[
                    ClientBound(second=second, shard=0, why="late", value=2.0, limit=1.0)
                    for second in range(12)
                ]
            ),
            "in seconds 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more: ",
        ),
        (
            changed(lost_shards=["shard 1: silent for 5 s"]),
            "b/1: a part of the load was lost (shard 1: silent for 5 s): run it again",
        ),
        (changed(interrupted=True), "b/1: it was interrupted before its end: run it again"),
    ],
    ids=["a setting", "two settings", "client-bound", "for long", "lost shards", "interrupted"],
)
def test_runs_that_cannot_be_compared_are_refused(
    fault: Callable[[Result], Result], message: str
) -> None:
    with pytest.raises(ValueError, match="these runs cannot be compared") as refused:
        compare(side("a", [result()] * 5), side("b", [fault(result()), *[result()] * 4]))
    assert message in str(refused.value)


def test_all_that_is_wrong_is_told_at_once() -> None:
    a = side("a", [changed(interrupted=True)(result())] * 5)
    b = side("b", [changed(lost_shards=["shard 0: dead"])(result(settings={"turns": 2}))] * 5)
    with pytest.raises(ValueError, match="cannot") as refused:
        compare(a, b)
    assert len(str(refused.value).splitlines()) == 1 + 5 + 5 + 1


def test_a_side_without_runs_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to compare"):
        compare(side("a", [result()]), [])


@pytest.mark.parametrize(
    "settings",
    [
        {"seed": 1},
        {"base_url": "https://gateway.example/v1"},
        {"model": ["small=3", "large"]},
        {"fake_first_token": "1s", "fake_faults": ["cut"]},
        {"turns": 1, "think_time": 0, "rotations": []},
    ],
    ids=["the seed", "the gateway", "the model", "the fake gateway", "a default that is written"],
)
def test_the_seed_and_what_people_compare_may_differ(settings: dict[str, object]) -> None:
    b = side("b", [result(settings=settings)] * 5)
    assert set(verdicts(compare(side("a", [result()] * 5), b)).values()) == {"undecided"}


def test_among_the_runs_of_a_side_only_the_seed_may_differ() -> None:
    a = side("a", [result()] * 5)
    compare(a, side("b", [result(settings={"seed": seed}) for seed in range(5)]))
    mixed = [result(settings={"model": [model]}) for model in "mmmmn"]
    with pytest.raises(ValueError, match=r"model is \['m'\] in b/1, but \['n'\] in b/5"):
        compare(a, side("b", mixed))


# The run is the unit


def test_every_figure_is_compared() -> None:
    comparison = compare(side("a", [result()] * 5), side("b", [result(110, 9, 0.9)] * 5))
    assert [(change.figure, change.kind) for change in comparison.changes] == [
        *((f"{name} {percent}", "ratio") for name in DURATIONS for percent in ("p50", "p99")),
        ("goodput", "ratio"),
        ("good_fraction", "difference"),
        ("tokens_per_second", "ratio"),
        ("requests_per_second", "ratio"),
    ]
    ttft = of(comparison, "ttft p99")
    assert (ttft.a, ttft.b, ttft.change) == pytest.approx((300, 330, 1.1))
    assert (ttft.low, ttft.high) == pytest.approx((1.1, 1.1))
    good = of(comparison, "good_fraction")
    assert (good.a, good.b, good.change) == pytest.approx((0.99, 0.9, -0.09))


def test_less_time_is_better_and_more_of_everything_else() -> None:
    comparison = compare(side("a", [result()] * 5), side("b", [result(90, 9, 0.9)] * 5))
    assert verdicts(comparison) == {
        **{f"{name} {percent}": "better" for name in DURATIONS for percent in ("p50", "p99")},
        **dict.fromkeys(RATES, "worse"),
        "good_fraction": "worse",
    }
    other_way = compare(side("a", [result(90, 9, 0.9)] * 5), side("b", [result()] * 5))
    opposite = {"better": "worse", "worse": "better"}
    assert verdicts(other_way) == {
        figure: opposite[verdict] for figure, verdict in verdicts(comparison).items()
    }


def test_a_verdict_is_what_the_whole_interval_says() -> None:
    a = side("a", [result(100 + n) for n in (-10, -5, 0, 5, 10)], first=11)
    little = of(compare(a, side("b", [result(104 + n) for n in (-10, 5, 0, -5, 10)])), "ttft p50")
    much = of(compare(a, side("b", [result(140 + n) for n in (-10, 5, 0, -5, 10)])), "ttft p50")
    assert little.low is not None
    assert little.high is not None
    assert little.change is not None
    assert little.low < 1 < little.change < little.high
    assert little.verdict == "undecided"
    assert much.low is not None
    assert much.low > 1
    assert much.verdict == "worse"


def test_runs_of_the_same_numbers_are_paired_for_they_ran_next_to_each_other() -> None:
    disturbed = [80.0, 100.0, 150.0, 90.0, 120.0]
    a = side("a", [result(ms) for ms in disturbed])
    slower = [result(1.05 * ms) for ms in disturbed]
    paired = compare(a, side("b", slower))
    assert paired.paired
    assert of(paired, "latency p99").verdict == "worse"
    assert "5 of a and 5 of b, paired by their numbers" in paired.label
    shuffled = side("b", slower)[::-1]
    assert of(compare(a, shuffled), "latency p99") == of(paired, "latency p99")
    for b in (side("b", slower, first=2), side("b", [*slower, result(113.4)])):
        unpaired = compare(a, b)
        assert not unpaired.paired
        assert unpaired.unit == "run"
        assert of(unpaired, "latency p99").verdict == "undecided"


def test_equal_sides_differ_in_no_more_figures_than_chance_allows() -> None:
    dice = random.Random(9)
    wrong = figures = 0
    for _ in range(5):
        sides: list[list[Run]] = []
        for name in "ab":
            results = [
                changed(
                    figures={
                        figure: Percentiles(
                            count=1000, p50=dice.gauss(100, 10), p99=dice.gauss(100, 10)
                        )
                        for figure in DURATIONS
                    }
                )(result(1, dice.gauss(100, 10), dice.gauss(0.9, 0.01)))
                for _ in range(6)
            ]
            sides.append(side(name, results))
        given = list(verdicts(compare(*sides)).values())[: 2 * len(DURATIONS)]
        wrong += len(given) - given.count("undecided")
        figures += len(given)
    assert wrong <= 0.1 * figures


def test_the_same_runs_compare_the_same() -> None:
    a, b = ([result(100 + n * scale) for n in range(7)] for scale in (1, 2))
    assert compare(side("a", a), side("b", b)) == compare(side("a", a), side("b", b))


def test_requests_are_not_read_where_runs_are_enough(tmp_path: Path) -> None:
    assert compare(side(f"{tmp_path}/a", [result()] * 5), side("b", [result()] * 5)).unit == "run"
    with pytest.raises(FileNotFoundError, match=r"requests\.csv"):
        compare(side(f"{tmp_path}/a", [result()] * 4), side("b", [result()] * 5))


@pytest.mark.parametrize(
    ("a", "b", "change", "verdict"),
    [
        (10.0, 0.0, 0.0, "worse"),
        (0.0, 10.0, math.inf, "better"),
        (0.0, 0.0, 1.0, "undecided"),
    ],
)
def test_what_falls_to_0_or_rises_from_it_is_compared(
    a: float, b: float, change: float, verdict: Verdict
) -> None:
    comparison = compare(side("a", [result(rate=a)] * 5), side("b", [result(rate=b)] * 5))
    goodput = of(comparison, "goodput")
    assert (goodput.change, goodput.low, goodput.high) == (change, change, change)
    assert goodput.verdict == verdict


def test_a_figure_that_a_run_does_not_have_is_not_compared() -> None:
    without = changed(figures={})(result())
    comparison = compare(side("a", [result()] * 5), side("b", [*[result(50)] * 4, without]))
    ttft = of(comparison, "ttft p50")
    assert (ttft.a, ttft.b, ttft.low, ttft.verdict) == (100.0, None, None, "undecided")
    assert ttft.why == "some run has no such figure"


def test_time_per_token_is_not_compared_where_tokens_are_not_the_same() -> None:
    b = side("b", [result(50, tokens_by="chunks")] * 5)
    comparison = compare(side("a", [result()] * 5), b)
    itl = of(comparison, "itl p50")
    assert (itl.low, itl.verdict) == (None, "undecided")
    assert itl.why == "tokens were counted differently: by chunks, usage"
    assert of(comparison, "icl p50").verdict == "better"


# Within one run


def write(folder: Path, records: Sequence[RequestRecord]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "requests.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(RequestRecord.__struct_fields__)
        for record in records:
            rows.writerow(
                [
                    "" if value is None else str(value).lower() if value in (True, False) else value
                    for value in msgspec.structs.astuple(record)
                ]
            )


def ran(
    folder: Path,
    seed: int,
    *,
    ms: Callable[[float], float] = lambda second: 100.0,
    rate: float = 20.0,
    seconds: int = 60,
    failing: float = 0.0,
    number: int = 1,
) -> Run:
    """A run whose requests come at random and take so many milliseconds, by when, and by chance.

    Args:
        ms: The median time to the first token, by the second.
        failing: The share of requests that fail.
    """
    dice = random.Random(seed)
    records: list[RequestRecord] = []
    series = [Second(second=second) for second in range(seconds + 5)]
    now = 0.0
    while (now := now + dice.expovariate(rate)) < seconds:
        intended = int(now * 1e9)
        sent = intended + dice.randrange(100_000)
        first = sent + int(dice.lognormvariate(math.log(ms(now)), 0.3) * MS)
        last = first + int(dice.uniform(180, 220) * MS)
        failed = dice.random() < failing
        records.append(
            RequestRecord(
                session=len(records),
                turn=0,
                model="m",
                intended=intended,
                sent=sent,
                first=first,
                first_output=first,
                last=last,
                ended=last,
                outcome="error" if failed else "ok",
                chunks=5,
                output_tokens=5,
            )
        )
        series[min(int(last / 1e9), seconds + 4)].ok += not failed
        series[min(int(last / 1e9), seconds + 4)].tokens += 5
    write(folder, records)
    well = [record for record in records if record.outcome == "ok"]
    good = sum(record.ttft is not None and record.ttft <= 500 * MS for record in well)

    def percentiles(values: Sequence[float | None]) -> Percentiles:
        known = sorted(value / MS for value in values if value is not None)
        return Percentiles(
            count=len(known), p50=known[len(known) // 2], p99=known[99 * len(known) // 100]
        )

    figures = {
        "ttft": percentiles([record.ttft for record in well]),
        "ttfo": percentiles([record.ttfo for record in well]),
        "latency": percentiles([record.latency for record in well]),
        "itl": percentiles([record.itl for record in well]),
        "icl": Percentiles(count=1, p50=1.0, p99=1.0),
    }
    for name in ("ttft", "ttfo", "latency"):
        figures[f"{name}_intended"] = figures[name]
    whole = msgspec.structs.replace(
        result(seconds=seconds),
        figures=figures,
        series=series,
        goodput=good / seconds,
        good_fraction=good / len(records),
        tokens_per_second=sum(second.tokens for second in series[:seconds]) / seconds,
        requests_per_second=sum(second.ok for second in series[:seconds]) / seconds,
    )
    return Run(folder, whole, number)


def test_fewer_than_five_runs_are_compared_within_and_that_is_said(tmp_path: Path) -> None:
    a, b = ran(tmp_path / "a", 1), ran(tmp_path / "b", 2)
    comparison = compare([a], [b])
    assert (comparison.unit, comparison.paired) == ("within one run", False)
    assert comparison.label == (
        "Within one run: the intervals say nothing of how runs differ. That takes 5 runs of each "
        "side (--repeat 5)."
    )
    assert comparison == compare([a], [b])
    for change in comparison.changes:
        if not change.figure.startswith("icl"):
            assert not change.why
            assert change.low is not None
            assert change.high is not None
            assert change.change is not None
            assert change.low <= change.change <= change.high


def test_gaps_have_no_interval_there_for_the_file_does_not_hold_them(tmp_path: Path) -> None:
    icl = of(compare([ran(tmp_path / "a", 1)], [ran(tmp_path / "b", 2)]), "icl p99")
    assert (icl.a, icl.b, icl.change) == (1.0, 1.0, 1.0)
    assert (icl.low, icl.high, icl.verdict) == (None, None, "undecided")
    assert icl.why == "the requests' file does not hold it: 5 runs of each side would"


def test_a_true_difference_is_found_there(tmp_path: Path) -> None:
    a = ran(tmp_path / "a", 1)
    b = ran(tmp_path / "b", 2, ms=lambda second: 130.0, failing=0.1)
    found = verdicts(compare([a], [b]))
    worse = {"ttft p50", "ttft p99", "ttft_intended p50", "ttfo p50", "latency p50"}
    assert worse <= {figure for figure, verdict in found.items() if verdict == "worse"}
    assert found["good_fraction"] == "worse"
    assert found["itl p50"] == "undecided"


def test_equal_runs_differ_in_no_more_figures_than_chance_allows_there(tmp_path: Path) -> None:
    wrong = figures = 0
    for pair in range(4):
        a, b = (ran(tmp_path / f"{name}{pair}", 2 * pair + n) for n, name in enumerate("ab"))
        given = [change for change in compare([a], [b]).changes if change.low is not None]
        wrong += sum(change.verdict != "undecided" for change in given)
        figures += len(given)
    assert wrong <= 0.1 * figures


def test_one_disturbance_decides_nothing_however_many_requests_it_was_of(tmp_path: Path) -> None:
    a = ran(tmp_path / "a", 1, rate=100)
    b = ran(tmp_path / "b", 2, rate=100, ms=lambda second: 1500.0 if 30 < second < 35 else 100.0)
    ttft = of(compare([a], [b]), "ttft p99")
    assert ttft.change is not None
    assert ttft.change > 5
    assert ttft.verdict == "undecided"


def test_a_few_runs_of_a_side_count_alike(tmp_path: Path) -> None:
    a = [ran(tmp_path / "a" / str(n), n, number=n) for n in (1, 2)]
    b = [
        ran(tmp_path / "b" / str(n), 2 + n, number=n, ms=lambda second: 150.0, rate=5 + 20 * n)
        for n in (1, 2, 3)
    ]
    ttft = of(compare(a, b), "ttft p50")
    assert ttft.verdict == "worse"
    assert ttft.change == pytest.approx(1.5, rel=0.05)
    assert ttft.low is not None
    assert ttft.low > 1.4


def test_a_run_that_is_short_for_its_longest_request_has_no_intervals(tmp_path: Path) -> None:
    a = ran(tmp_path / "a", 1)
    b = ran(tmp_path / "b", 2)
    stuck = msgspec.structs.replace(b.requests[50], outcome="unfinished")
    stuck.ended = stuck.sent + 14 * 1_000_000_000
    write(b.folder, [*b.requests, stuck])
    comparison = compare([a], [Run(b.folder, b.result)])
    assert {change.verdict for change in comparison.changes} == {"undecided"}
    assert of(comparison, "ttft p50").why == (
        "too short: 4 blocks as long as the longest request, but 5 needed"
    )


def test_percentiles_of_few_requests_have_no_interval(tmp_path: Path) -> None:
    a, b = (ran(tmp_path / name, seed, rate=5) for seed, name in enumerate("ab"))
    comparison = compare([a], [b])
    fewest = min(len(a.requests), len(b.requests))
    assert of(comparison, "ttft p99").why == f"too few: {fewest} requests, but 500 needed"
    assert of(comparison, "ttft p50").low is not None


def test_requests_of_the_warm_up_and_those_that_users_left_do_not_count(tmp_path: Path) -> None:
    a, b = ran(tmp_path / "a", 1), ran(tmp_path / "b", 2)
    before = compare([a], [b])
    slow = [
        msgspec.structs.replace(
            record, first=record.sent + 9_000 * MS, ended=record.sent + 50_000 * MS
        )
        for record in b.requests
    ]
    early = [msgspec.structs.replace(record, window=False) for record in slow]
    left = [msgspec.structs.replace(record, outcome="cancelled") for record in slow]
    write(b.folder, [*b.requests, *early, *left])
    assert compare([a], [Run(b.folder, b.result)]) == before


# What is shown


def test_the_table_has_a_row_for_each_figure_and_says_why_there_is_no_interval() -> None:
    a = side("a", [result(1000 * n, 1000 + n, 0.99) for n in (1, 2, 3, 4, 5)])
    b = side("b", [result(1100 * n, 0, 0.9, tokens_by="chunks") for n in (1, 2, 3, 4, 5)])
    rows = {row[0]: row[1:] for row in table(compare(a, b))}
    assert len(rows) == 1 + 20
    assert rows["figure"] == ("a", "b", "change", "95 % interval", "verdict")
    assert rows["ttft p50"] == (
        "3,000 ms", "3,300 ms", "+10.0 %", "+10.0 % to +10.0 %", "worse"
    )  # fmt: skip
    assert rows["good fraction"] == (
        "99.00 %", "90.00 %", "-9.00 points", "-9.00 points to -9.00 points", "worse"
    )  # fmt: skip
    assert rows["goodput"] == ("1,003/s", "0/s", "-100.0 %", "-100.0 % to -100.0 %", "worse")
    assert rows["itl p50"] == (
        "3,000 ms", "3,300 ms", "+10.0 %",
        "tokens were counted differently: by chunks, usage", "undecided",
    )  # fmt: skip
    from_nothing = {row[0]: row[1:] for row in table(compare(b, a))}
    assert from_nothing["goodput"][2:] == ("from 0", "from 0 to from 0", "better")
    missing = compare(a, side("b", [changed(figures={})(result())] * 5))
    assert table(missing)[1] == (
        "ttft p50", "3,000 ms", "-", "-", "some run has no such figure", "undecided"
    )  # fmt: skip


def test_the_json_holds_all_of_it() -> None:
    comparison = compare(side("a", [result(rate=0)] * 5), side("b", [result(110)] * 5))
    decoded = json.loads(comparison.json())
    assert (decoded["a"][0], decoded["unit"], decoded["paired"]) == ("a/1", "run", True)
    assert decoded["changes"][0] == {
        "figure": "ttft p50",
        "kind": "ratio",
        "lower_is_better": True,
        "a": 100.0,
        "b": 110.0,
        "change": 1.1,
        "low": 1.1,
        "high": 1.1,
        "verdict": "worse",
        "why": "",
    }
    goodput = next(change for change in decoded["changes"] if change["figure"] == "goodput")
    assert goodput["change"] is None  # JSON knows no infinity.
