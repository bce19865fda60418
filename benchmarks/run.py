"""Runs the rows round by round, and judges."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from . import capacity, stats
from .capacity import Held
from .measure import Bench, Failed, Pace, Window
from .rows import Bound, Case, Figure, Row
from .stats import Interval, Verdict

OTHERS_ROUNDS = 3
"""Of cases that no bound asks for."""

PROBE_SECONDS = 3.0
SERVER_BUSY = capacity.SERVER_BUSY
CLIENT_BUSY = 0.95
"""At least, of a flat-out row."""


class Result(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one case gave in one round; one of the last four is there.

    Args:
        kind: As in `Case`.
        peer: As in `Case`.
        pace: As in `Case`.
        round: Counted from 0.
        window: Of a steady load, an opening, requests or a refresh.
        held: Of a search for the capacity.
        memory: KiB a stream.
        failed: Why there is none of these.
    """

    kind: str
    peer: str
    pace: Pace
    round: int
    window: Window | None = None
    held: Held | None = None
    memory: float | None = None
    failed: str | None = None


@dataclass(frozen=True)
class Judged:
    """One bound, and what became of it.

    Args:
        row: The row's name.
        bound: The bound.
        interval: What was seen.
        verdict: On the bound.
        held: On what is held to, if that is another.
    """

    row: str
    bound: Bound
    interval: Interval | None
    verdict: Verdict
    held: Verdict


@dataclass
class Rounds:
    """All results, by case."""

    results: dict[Case, list[Result]] = field(default_factory=dict[Case, list[Result]])

    def add(self, case: Case, result: Result) -> None:
        """One more."""
        self.results.setdefault(case, []).append(result)

    def of(self, case: Case) -> list[Result]:
        """Those of one case, by round."""
        return self.results.get(case, [])

    def median(self, case: Case, get: Callable[[Result], float | None]) -> float | None:
        """Over the rounds that have it."""
        values = [value for result in self.of(case) if (value := get(result)) is not None]
        return statistics.median(values) if values else None


def run(
    bench: Bench,
    rows: Sequence[Row],
    rounds: int,
    seed: int,
    progress: Callable[[Result], None],
) -> Iterator[Rounds]:
    """Measure each case once a round, in an order of the round's own; what is there after each."""
    bound = list(dict.fromkeys(case for row in rows for case in row.cases))
    others = list(dict.fromkeys(case for row in rows for case in row.others if case not in bound))
    pick = random.Random(seed)
    done = Rounds()
    for number in range(rounds):
        cases = bound + others if number < OTHERS_ROUNDS else list(bound)
        pick.shuffle(cases)
        # What is compared is measured close together: cases of one kind and pace in one go.
        order = {group: place for place, group in enumerate(dict.fromkeys(map(_group, cases)))}
        for case in sorted(cases, key=lambda case: order[_group(case)]):
            result = measure(bench, case, number, done)
            done.add(case, result)
            progress(result)
        yield done


def _group(case: Case) -> tuple[object, ...]:
    pace = case.pace
    return (pace.streams, pace.tls, pace.per_write, pace.in_step, pace.tick, case.kind)


def measure(bench: Bench, case: Case, number: int, done: Rounds) -> Result:
    """One case, once."""
    result = Result(kind=case.kind, peer=case.peer, pace=case.pace, round=number)
    replace = msgspec.structs.replace
    pace = case.pace
    try:
        match case.kind:
            case "steady":
                return replace(result, window=bench.steady(case.peer, pace, number))
            case "opening":
                window = bench.opening(case.peer, pace.streams, tls=pace.tls)
                return replace(result, window=window)
            case "request":
                return replace(result, window=bench.request(case.peer))
            case "memory":
                return replace(result, memory=bench.memory(case.peer))
            case "refresh":
                return replace(result, window=bench.refresh(case.peer, pace.streams))
            case "capacity":
                return replace(result, held=_hold(bench, case, number, done))
    except (Failed, RuntimeError) as error:
        return replace(result, failed=str(error))


def _hold(bench: Bench, case: Case, number: int, done: Rounds) -> Held:
    def probe(streams: int) -> tuple[capacity.Outcome, Window | None]:
        pace = Pace(streams=streams)
        try:
            window = bench.steady(case.peer, pace, number, seconds=PROBE_SECONDS)
        except Failed:
            return "late", None
        if window.delivery is None or window.delivery.p99 > capacity.DELIVERY_P99_US:
            return "late", window
        return ("server" if window.server > SERVER_BUSY else "held"), window

    before = [result.held.streams for result in done.of(case) if result.held is not None]
    return capacity.find(probe, before[-1] if before and before[-1] else None)


def figure_of(result: Result, figure: Figure) -> float | None:
    """The figure that a row is about; `None` where the case failed."""
    if figure == "memory":
        return result.memory
    if figure == "capacity":
        return None if result.held is None else float(result.held.streams)
    window = result.window
    if window is None:
        return None
    match figure:
        case "cpu":
            return window.cpu
        case "rate":
            return window.tokens / window.seconds
        case "delivery":
            return None if window.delivery is None else window.delivery.p99 / 1e3


def window_of(result: Result) -> Window | None:
    """What was seen, if anything: with the most streams that were held, where that was sought."""
    return result.window if result.held is None else result.held.window


def client_of(result: Result) -> float | None:
    """How busy the client was."""
    window = window_of(result)
    return None if window is None else window.client


def server_of(result: Result) -> float | None:
    """How busy the server was."""
    window = window_of(result)
    return None if window is None else window.server


def judge(row: Row, bound: Bound, rounds: Rounds) -> Judged:
    """Whether a bound holds, from the rounds that are there."""
    values: list[float] = []
    at_least = False
    peers = rounds.of(bound.peer) if bound.peer is not None else rounds.of(bound.ours)
    for ours, peer in zip(rounds.of(bound.ours), peers, strict=True):
        if ours.held is not None and peer.held is not None:
            ratio = capacity.compare(ours.held, peer.held)
            at_least |= ratio.at_least
            values.append(ratio.value)
            continue
        figure, base = figure_of(ours, bound.figure), figure_of(peer, bound.figure)
        if figure is None or base is None:
            return Judged(row.name, bound, None, "failed", "failed")
        values.append(figure if bound.peer is None else figure / base)
    if not values:
        return Judged(row.name, bound, None, "failed", "failed")
    interval = stats.bootstrap(values)
    server_bound = _server_bound(bound, rounds)

    def verdict(limit: float) -> Verdict:
        found = stats.verdict(interval, limit, at_most=bound.at_most)
        return "server-bound" if server_bound or (at_least and found != "met") else found

    return Judged(row.name, bound, interval, verdict(bound.limit), verdict(bound.held_to))


def _server_bound(bound: Bound, rounds: Rounds) -> bool:
    for case in (bound.ours, bound.peer):
        if case is None or case.kind != "steady":
            continue
        if case.pace.interval:
            server = rounds.median(case, server_of)
            if server is not None and server >= SERVER_BUSY:
                return True
        else:
            client = rounds.median(case, client_of)
            if client is not None and client <= CLIENT_BUSY:
                return True
    return False
