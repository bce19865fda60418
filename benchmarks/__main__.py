"""Runs the benchmarks."""

from __future__ import annotations

import argparse
import random
import sys

from . import measure, stats
from .certificates import make_certificates
from .load_server import Plan
from .peers import PEERS


def compare(arguments: argparse.Namespace) -> None:
    """Compare peers at one load; ratios are to the first of them."""
    peers: list[str] = arguments.peers.split(",")
    seconds: float = arguments.seconds
    pick = random.Random(arguments.seed)
    figures: dict[str, list[measure.Window]] = {peer: [] for peer in peers}
    with make_certificates() as certificates:
        for number, peer in (
            (number, peer)
            for number in range(arguments.rounds)
            for peer in pick.sample(peers, len(peers))
        ):
            plan = Plan(
                streams=arguments.streams,
                interval=arguments.interval,
                per_write=arguments.per_write,
                in_step=arguments.in_step,
                seed=number,
                certificate=certificates.server if arguments.tls else None,
            )
            window = measure.steady(peer, plan, seconds, 0, certificates.authority)
            figures[peer].append(window)
            delivery = window.delivery.p99 if window.delivery else 0
            print(
                f"  round {number} {peer:20} {window.cpu:7.2f} us/token, "
                f"client {window.client:4.0%}, server {window.server:4.0%}, "
                f"delivery p99 {delivery / 1e3:7.2f} ms, "
                f"tokens/read {window.tokens_per_read or 0:.2f}",
                flush=True,
            )
    base = figures[peers[0]]
    for peer in peers:
        ratios = [a.cpu / b.cpu for a, b in zip(figures[peer], base, strict=True)]
        interval = stats.bootstrap(ratios)
        cpu = stats.geometric_mean([window.cpu for window in figures[peer]])
        print(
            f"{peer:20} {cpu:7.2f} us/token  {interval.middle:.3f} of {peers[0]} "
            f"({interval.low:.3f} to {interval.high:.3f})"
        )


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True)
    cpu = commands.add_parser("cpu", help="compare peers at one load")
    cpu.add_argument("--peers", default="uvloop-reader,gz_trio", help=f"of {', '.join(PEERS)}")
    cpu.add_argument("--streams", type=int, default=200)
    cpu.add_argument("--interval", type=float, default=0.04, help="0: flat out")
    cpu.add_argument("--per-write", type=int, default=1)
    cpu.add_argument("--in-step", action="store_true")
    cpu.add_argument("--tls", action="store_true")
    cpu.add_argument("--rounds", type=int, default=3)
    cpu.add_argument("--seconds", type=float, default=5)
    cpu.add_argument("--seed", type=int, default=0)
    compare(parser.parse_args())
    return 0


if __name__ == "__main__":
    sys.exit(main())
