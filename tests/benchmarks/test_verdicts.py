"""From the results of all rounds to what is said of a bound."""

from typing import Any

import pytest

from benchmarks import report
from benchmarks.measure import Failed, Pace, Window
from benchmarks.rows import QUICK, ROWS, Bound, Case, Row
from benchmarks.run import Result, Rounds, judge, run
from benchmarks.stats import Verdict

OURS = Case("steady", "gz_trio")
PEER = Case("steady", "aiohttp")
FLAT = Pace(streams=100, interval=0.0)
FLAT_OUT = Case("steady", "aiohttp", FLAT)
MACHINE: dict[str, str] = dict.fromkeys(
    (
        *("processor", "cores", "system", "python"),
        *("trio", "uvloop", "aiohttp", "httpx", "httpx2", "openai", "httptools"),
    ),
    "1",
)
ABOUT = report.About(machine=MACHINE, seed=3, shares={"gz_trio": {"poll": 0.5}})


def row_of(*bounds: Bound) -> Row:
    return Row("a row", "A row", "µs", bounds)


def window(cpu: float, *, client: float = 0.5, server: float = 0.2) -> Window:
    return Window(seconds=5.0, tokens=50_000, cpu=cpu, client=client, server=server, others=0.0)


def rounds_of(results: dict[Case, list[Window | None]]) -> Rounds:
    rounds = Rounds()
    for case, windows in results.items():
        for number, one in enumerate(windows):
            failed = "it broke" if one is None else None
            rounds.add(
                case,
                Result(
                    kind=case.kind,
                    peer=case.peer,
                    pace=case.pace,
                    round=number,
                    window=one,
                    failed=failed,
                ),
            )
    return rounds


def test_a_ratio_is_that_of_one_round_whatever_the_machine_did_between() -> None:
    slow = [1.0, 3.0, 2.0]
    rounds = rounds_of(
        {OURS: [window(12 * by) for by in slow], PEER: [window(10 * by) for by in slow]}
    )
    judged = judge(row_of(), Bound(OURS, PEER, 1.3), rounds)
    assert judged.interval is not None
    assert judged.interval.low == pytest.approx(judged.interval.high) == pytest.approx(1.2)
    assert judged.verdict == "met"


@pytest.mark.parametrize(("server", "expected"), [(0.59, "met"), (0.60, "server-bound")])
def test_a_paced_row_has_no_verdict_where_the_server_was_too_busy(
    server: float, expected: Verdict
) -> None:
    rounds = rounds_of({OURS: [window(10)] * 3, PEER: [window(10, server=server)] * 3})
    assert judge(row_of(), Bound(OURS, PEER, 1.3), rounds).verdict == expected


@pytest.mark.parametrize(("client", "expected"), [(0.96, "met"), (0.94, "server-bound")])
def test_a_flat_out_row_has_no_verdict_where_the_client_was_idle(
    client: float, expected: Verdict
) -> None:
    ours, peer = Case("steady", "gz_trio", FLAT), Case("steady", "aiohttp", FLAT)
    rounds = rounds_of(
        {ours: [window(10, client=client, server=0.9)] * 3, peer: [window(10, client=1.0)] * 3}
    )
    assert judge(row_of(), Bound(ours, peer, 1.3), rounds).verdict == expected


def test_a_peer_that_failed_in_one_round_leaves_no_verdict() -> None:
    rounds = rounds_of({OURS: [window(10)] * 3, PEER: [window(10), None, window(10)]})
    assert judge(row_of(), Bound(OURS, PEER, 1.3), rounds).verdict == "failed"


def test_a_figure_without_a_peer_is_held_to_the_bound_itself() -> None:
    case = Case("memory", "gz_trio")
    rounds = Rounds()
    for number, kib in enumerate((8.0, 9.0, 8.5)):
        rounds.add(
            case,
            Result(kind="memory", peer="gz_trio", pace=case.pace, round=number, memory=kib),
        )
    assert judge(row_of(), Bound(case, None, 10.0, "memory"), rounds).verdict == "met"
    assert judge(row_of(), Bound(case, None, 7.0, "memory"), rounds).verdict == "missed"


def test_what_is_held_to_instead_is_judged_beside_the_bound() -> None:
    rounds = rounds_of({OURS: [window(12)] * 3, PEER: [window(10)] * 3})
    judged = judge(row_of(), Bound(OURS, PEER, 1.1, reached=1.3), rounds)
    assert (judged.verdict, judged.held) == ("missed", "met")
    judged = judge(row_of(), Bound(OURS, PEER, 1.3), rounds)
    assert (judged.verdict, judged.held) == ("met", "met")
    row = row_of(judged.bound, Bound(OURS, PEER, 1.1, reached=1.15))
    table = report.to_markdown(
        [row], rounds, [judge(row, one, rounds) for one in row.bounds], ABOUT
    )
    assert "| missed  | at most 1.15: missed |" in table


def test_what_was_written_can_be_judged_again() -> None:
    rounds = rounds_of({OURS: [window(12), None], PEER: [window(10)] * 2})
    rounds.add(FLAT_OUT, Result(kind="steady", peer="aiohttp", pace=FLAT, round=0, memory=3.25))
    text = report.to_json([row_of()], rounds, [], ABOUT)
    assert report.from_json(text.encode()) == (rounds, ABOUT)


class FakeBench:
    """Takes no measurements; writes down which were asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Pace, int]] = []

    def steady(self, peer: str, pace: Pace, seed: int) -> Window:
        self.asked.append((peer, pace, seed))
        if peer == "openai":
            raise Failed("it cannot open them")
        return window(10)


def test_each_case_is_measured_once_a_round_in_orders_of_their_own() -> None:
    bench: Any = FakeBench()
    cases = [Case("steady", f"peer-{number}") for number in range(6)]
    bounds = [Bound(case, cases[0], 1.0) for case in cases[1:]]
    row = row_of(*bounds, *bounds)
    *_, done = run(bench, [row, row], 4, 0, lambda _: None)
    orders = [[peer for peer, _, seed in bench.asked if seed == number] for number in range(4)]
    assert all(sorted(order) == sorted(case.peer for case in cases) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert all(len(done.of(case)) == 4 for case in cases)


def test_what_is_compared_is_measured_close_together() -> None:
    bench: Any = FakeBench()
    paces = [Pace(streams=streams) for streams in (1, 2, 3)]
    bounds = [
        Bound(Case("steady", "ours", pace), Case("steady", "theirs", pace), 1.0) for pace in paces
    ]
    for _ in run(bench, [row_of(*bounds)], 5, 0, lambda _: None):
        pass
    for at in range(0, len(bench.asked), 2):
        (_, one, _), (_, other, _) = bench.asked[at : at + 2]
        assert one == other


def test_a_case_without_a_bound_is_measured_in_three_rounds() -> None:
    bench: Any = FakeBench()
    row = Row("a row", "A row", "µs", (Bound(OURS, PEER, 1.0),), (Case("steady", "openai"),))
    *_, done = run(bench, [row], 5, 0, lambda _: None)
    assert [result.failed for result in done.of(row.others[0])] == ["it cannot open them"] * 3
    assert len(done.of(OURS)) == 5


def test_the_short_run_has_three_peers_and_two_rows() -> None:
    assert len(QUICK) == 2
    assert len({case.peer for row in QUICK for case in row.cases}) == 3


def test_the_full_run_stays_under_two_hours() -> None:
    cases = {case: 10 for row in ROWS for case in row.cases}
    for row in ROWS:
        for case in row.others:
            cases.setdefault(case, 3)
    assert sum(case.seconds * rounds for case, rounds in cases.items()) < 2 * 3600
