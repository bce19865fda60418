"""What becomes of streams whose key dies or whose reader pauses, and of a sign-in elsewhere."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from .paused import gz_trio_many_paused, gz_trio_paused
from .processes import CLIENT_CORE, pin
from .report import machine
from .rotation import Load, Row, gz_trio_rotation, openai_rotation
from .sign_ins import key_file_sign_ins, redis_sign_ins

SCENARIOS: tuple[Callable[[Load], Awaitable[Row]], ...] = (
    gz_trio_rotation,
    openai_rotation,
    gz_trio_paused,
    gz_trio_many_paused,
    key_file_sign_ins,
    redis_sign_ins,
)

QUICK = Load(streams=1000, tokens=14, token_interval=0.5, paused_token_characters=10_000)
FULL = Load(streams=1000, tokens=120, token_interval=0.5, paused_token_characters=30)


def run(path: Path, *, quick: bool) -> bool:
    """Run all of it, print what it gave and write it to `path`; whether every stream was whole."""
    load = QUICK if quick else FULL
    cores = os.sched_getaffinity(0)
    pin(0, CLIENT_CORE)
    rows: list[Row] = []
    for scenario in SCENARIOS:
        rows.append(trio.run(scenario, load))
        _show(rows[-1])
    os.sched_setaffinity(0, cores)
    result = {
        "machine": machine(),
        "load": {"streams": load.streams, "token_interval": load.token_interval},
        "rows": {row.name: row.figures for row in rows},
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    return not any(row.broken for row in rows)


def _show(row: Row) -> None:
    print(row.name)
    for name, figure in row.figures.items():
        print(f"    {name:32} {figure:10.1f}")
    for line in row.broken[:10]:
        print(f"    BROKEN: {line}")
