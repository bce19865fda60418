"""Runs the benchmarks, prints what it saw, and writes it to benchmarks/results/.

Without a command: all rows and, after them, what becomes of streams whose key dies or whose
reader pauses, the proxy, and the simulator. `cpu` compares some peers at one load, for whoever
works on the transport; `judge` holds the results of the last full run to the bounds as they are
now.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from . import figures, layers, plot, proxied, recovery, report, simulator, stats
from .certificates import make_certificates
from .measure import Bench, Pace, Window
from .peers import PEERS
from .rows import OURS, QUICK, ROWS, Row
from .run import OTHERS_ROUNDS, Judged, Result, Rounds, judge, run

PLAYED = {
    "proxy": (proxied.SCENARIOS, proxied.ROUNDS),
    "simulator": (simulator.SCENARIOS, simulator.ROUNDS),
}
"""Beside the rows: scenarios, and how many rounds of them; they are kept, each under its name."""

RESULTS = Path(__file__).parent / "results"
SLOPE_SECONDS = 5.0
SLOPE_TOKENS = 50_000
WARM_UP_SECONDS, QUICK_WARM_UP_SECONDS = 1.0, 0.5
ROUNDS, QUICK_ROUNDS = 10, 3


def main() -> int:
    """The exit code: 1 where a bound is missed, a peer of ours failed, or a stream lost text."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short run, as CI does it")
    parser.add_argument(
        "--rows", default="", help=f"of {', '.join((*(row.name for row in ROWS), *PLAYED))}"
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="put these rows into the results of the last full run, made on the same machine",
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seed", type=int, default=0, help="of orders and phases")
    commands = parser.add_subparsers(dest="command")
    cpu = commands.add_parser("cpu", help="compare peers at one load")
    cpu.add_argument("--peers", default="uvloop-reader,gz_trio", help=f"of {', '.join(PEERS)}")
    cpu.add_argument("--streams", type=int, default=200)
    cpu.add_argument("--interval", type=float, default=0.04, help="seconds; 0: flat out")
    cpu.add_argument("--per-write", type=int, default=1)
    cpu.add_argument("--in-step", action="store_true")
    cpu.add_argument("--tls", action="store_true")
    cpu.add_argument("--rounds", type=int, default=3)
    cpu.add_argument("--seconds", type=float, default=5)
    commands.add_parser("judge", help="judge the last full run again, by the bounds as they are")
    arguments = parser.parse_args()
    seed: int = arguments.seed
    rounds: int = arguments.rounds
    if arguments.command == "cpu":
        pace = Pace(
            streams=arguments.streams,
            interval=arguments.interval,
            per_write=arguments.per_write,
            tls=arguments.tls,
            in_step=arguments.in_step,
        )
        compare(arguments.peers.split(","), pace, rounds, arguments.seconds, seed)
        return 0
    if arguments.command == "judge":
        done, about = report.from_json((RESULTS / "streams.json").read_bytes())
        judged, tables = _tell(ROWS, done, about, "streams")
        print(tables)
        return 1 if any(_missed(one, quick=False) for one in judged) else 0
    if arguments.quick:
        sound = measure_rows(QUICK, QUICK_ROUNDS, seed, quick=True)
        sound = recovery.run(RESULTS / "recovery-quick.json", quick=True) and sound
        path = RESULTS / "proxy-quick.json"
        return 0 if figures.run(proxied.SCENARIOS, 1, path, quick=True) and sound else 1
    if arguments.rows:
        names: list[str] = arguments.rows.split(",")
        rows = [row for row in ROWS if row.name in names]
        sound = not rows or measure_rows(rows, rounds, seed, write=False, keep=arguments.keep)
    else:
        names = list(PLAYED)
        sound = measure_rows(ROWS, rounds, seed)
        sound = recovery.run(RESULTS / "recovery.json", quick=False) and sound
    for name, (scenarios, times) in PLAYED.items():
        if name in names:
            sound = figures.run(scenarios, times, RESULTS / f"{name}.json") and sound
    return 0 if sound else 1


def measure_rows(
    rows: Sequence[Row],
    rounds: int,
    seed: int,
    *,
    quick: bool = False,
    write: bool = True,
    keep: bool = False,
) -> bool:
    """Measure rows, and write what they gave; whether nothing is missed.

    Args:
        rows: Which.
        rounds: How often.
        seed: Of orders and phases.
        quick: Whether for a short time.
        write: Whether what they gave is all that is written.
        keep: Whether it takes its place among what the last full run gave.
    """
    cases = {case: rounds for row in rows for case in row.cases}
    for row in rows:
        for case in row.others:
            cases.setdefault(case, min(rounds, OTHERS_ROUNDS))
    minutes = sum(case.seconds * times for case, times in cases.items()) / 60
    print(f"{len(cases)} cases, {rounds} rounds: about {minutes:.0f} minutes", file=sys.stderr)
    began = time.monotonic()

    def progress(result: Result) -> None:
        seconds = time.monotonic() - began
        print(f"{seconds:6.0f} s  {_line(result)}", file=sys.stderr, flush=True)

    with make_certificates() as certificates:
        bench = Bench(
            certificates,
            SLOPE_SECONDS,
            0 if quick else SLOPE_TOKENS,
            QUICK_WARM_UP_SECONDS if quick else WARM_UP_SECONDS,
        )
        about = report.About(
            machine=report.machine(),
            seed=seed,
            shares=_shares(bench) if write and not quick else {},
        )
        stem = None if not write else "streams-quick" if quick else "streams"
        judged: list[Judged] = []
        done, tables = Rounds(), ""
        for done in run(bench, rows, rounds, seed, progress):
            # After each round: a long run that is broken off has not been for nothing.
            judged, tables = _tell(rows, done, about, stem)
    print(tables)
    if keep:
        stored, of_stored = report.from_json((RESULTS / "streams.json").read_bytes())
        stored.results.update(done.results)
        _tell(ROWS, stored, of_stored.with_packages_of(about), "streams")
    return not any(_missed(one, quick=quick) for one in judged)


def _tell(
    rows: Sequence[Row], done: Rounds, about: report.About, stem: str | None
) -> tuple[list[Judged], str]:
    """Judge, and write it all to files of that name; the verdicts, and the tables."""
    judged = [judge(row, bound, done) for row in rows for bound in row.bounds]
    tables = report.to_markdown(rows, done, judged, about)
    if stem is not None:
        RESULTS.mkdir(exist_ok=True)
        document = report.to_json(rows, done, judged, about)
        RESULTS.joinpath(f"{stem}.json").write_text(document, encoding="utf-8")
        if stem == "streams":
            RESULTS.joinpath(f"{stem}.md").write_text(tables, encoding="utf-8")
            plot.draw(done, RESULTS / f"{stem}.svg")
    return judged, tables


def _shares(bench: Bench) -> dict[str, dict[str, float]]:
    """Of each of ours, what each layer takes."""
    try:
        return {peer: layers.measure(bench, peer) for peer in OURS}
    except subprocess.CalledProcessError:
        print("no shares of layers: py-spy may not look into processes here", file=sys.stderr)
        return {}


def _missed(judged: Judged, *, quick: bool) -> bool:
    """Whether it shall fail the run: in a short one only what is clearly too much."""
    if judged.interval is None:
        return True
    if quick:
        bound = judged.bound
        return stats.clearly_missed(judged.interval, bound.held_to, at_most=bound.at_most)
    return judged.held == "missed"


def _line(result: Result) -> str:
    """What one measurement gave, while the rest runs."""
    name = f"round {result.round} {result.kind:8} {result.peer:18} {result.pace.streams:6} streams"
    if result.failed is not None:
        return f"{name}  FAILED: {result.failed[-300:]}"
    if result.held is not None:
        return f"{name}  {result.held.streams} held, then: {result.held.limit}"
    if result.window is not None:
        return f"{name}  {_described(result.window)}"
    return f"{name}  {result.memory:.1f} KiB"


def _described(window: Window) -> str:
    p99 = "" if window.delivery is None else f", delivery p99 {window.delivery.p99 / 1e3:.2f} ms"
    reads = window.tokens_per_read
    return (
        f"{window.cpu:8.2f} us, client {window.client:4.0%}, server {window.server:4.0%}, "
        f"others {window.others:4.0%}{p99}{'' if reads is None else f', {reads:.2f} tokens/read'}"
    )


def compare(peers: Sequence[str], pace: Pace, rounds: int, seconds: float, seed: int) -> None:
    """Compare peers at one load; ratios are to the first of them."""
    pick = random.Random(seed)
    figures: dict[str, list[Window]] = {peer: [] for peer in peers}
    with make_certificates() as certificates:
        bench = Bench(certificates, seconds, 0, WARM_UP_SECONDS)
        for number in range(rounds):
            for peer in pick.sample(peers, len(peers)):
                window = bench.steady(peer, pace, number)
                figures[peer].append(window)
                print(f"  round {number} {peer:20} {_described(window)}", flush=True)
    base = figures[peers[0]]
    for peer in peers:
        ratios = [ours.cpu / theirs.cpu for ours, theirs in zip(figures[peer], base, strict=True)]
        interval = stats.bootstrap(ratios)
        cpu = stats.geometric_mean([window.cpu for window in figures[peer]])
        print(
            f"{peer:20} {cpu:7.2f} us/token  {interval.middle:.3f} of {peers[0]} "
            f"({interval.low:.3f} to {interval.high:.3f})"
        )


if __name__ == "__main__":
    sys.exit(main())
