"""Runs the benchmarks, prints a table, and writes what it saw to benchmarks/results/."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path

import trio

from .paused import gz_trio_many_paused, gz_trio_paused
from .rotation import CLIENT_CORE, Load, Row, gz_trio_rotation, gz_trio_steady, httpx_steady, pin

RESULTS = Path(__file__).parent / "results"

SCENARIOS: tuple[Callable[[Load], Awaitable[Row]], ...] = (
    httpx_steady,
    gz_trio_steady,
    gz_trio_rotation,
    gz_trio_paused,
    gz_trio_many_paused,
)

QUICK = Load(
    streams=1000, tokens=40, token_interval=0.5, slope_seconds=5, paused_token_characters=10_000
)
FULL = Load(
    streams=1000, tokens=120, token_interval=0.5, slope_seconds=30, paused_token_characters=30
)


def machine() -> dict[str, str]:
    """What it ran on."""
    packages = ("trio", "httpx", "httpcore", "msgspec")
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "processor": platform.machine(),
        "cores": str(os.cpu_count()),
        **{name: version(name) for name in packages},
    }


def show(row: Row) -> None:
    """Print one row."""
    print(row.name)
    for name, figure in row.figures.items():
        print(f"    {name:32} {figure:10.1f}")
    for line in row.broken[:10]:
        print(f"    BROKEN: {line}")


def main() -> int:
    """The exit code: 1 where a stream lost text, or something took more than it may."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short run, as CI does it")
    quick: bool = parser.parse_args().quick
    pin(0, CLIENT_CORE)
    load = QUICK if quick else FULL
    rows: list[Row] = []
    for scenario in SCENARIOS:
        rows.append(trio.run(scenario, load))
        show(rows[-1])
    RESULTS.mkdir(exist_ok=True)
    result = {
        "machine": machine(),
        "load": {"streams": load.streams, "token_interval": load.token_interval},
        "rows": {row.name: row.figures for row in rows},
    }
    path = RESULTS / ("rotation-quick.json" if quick else "rotation.json")
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {path.relative_to(Path.cwd())}", file=sys.stderr)
    return 1 if any(row.broken for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
