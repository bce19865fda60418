"""How soon a sign-in in one process is seen in another, and what waiting for one costs."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import trio

import gz_trio

from .rotation import Load, Row

SIGN_INS = 200
PAUSE_SECONDS = 0.02
IDLE_SECONDS = 5.0
FILE_BOUND_MS, REDIS_BOUND_MS = 100.0, 20.0


def store_at(place: str) -> gz_trio.KeyStore:
    """A Redis URL, or a file."""
    return (gz_trio.RedisKeyStore if "://" in place else gz_trio.FileKeyStore)(place)


async def follow(place: str) -> None:
    """In the other process: print each key that is seen, and when."""
    async with (
        gz_trio.open_authenticator(store_at(place)) as authenticator,
        authenticator.subscribe() as states,
    ):
        async for state in states:
            if state.key is not None:
                print(state.key.value, time.perf_counter_ns(), flush=True)


async def key_file_sign_ins(_: Load) -> Row:
    """Sign in over and over, in a file that another process watches."""
    with tempfile.TemporaryDirectory() as folder:
        return await _measure("the key file", str(Path(folder, "keys.json")), FILE_BOUND_MS)


async def redis_sign_ins(_: Load) -> Row:
    """The same by a Redis server, where one is installed."""
    program = shutil.which("redis-server")
    if program is None:
        return Row("no redis-server: nothing measured", {})
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    async with trio.open_nursery() as nursery:
        server: trio.Process = await nursery.start(
            partial(trio.run_process, command, stdout=subprocess.PIPE, check=False)
        )
        assert server.stdout is not None
        output = b""
        while b"Ready to accept connections" not in output:
            output += await server.stdout.receive_some()
        row = await _measure("Redis", f"redis://127.0.0.1:{port}", REDIS_BOUND_MS)
        nursery.cancel_scope.cancel()
    return row


async def _measure(name: str, place: str, bound_ms: float) -> Row:
    async with gz_trio.open_authenticator(store_at(place)) as authenticator:
        await authenticator.sign_in("sk-0")
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", __name__, place], stdout=subprocess.PIPE
        )
        try:
            seen_ms, wake_ups = await _sign_in_over_and_over(authenticator, process)
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
    seen_ms.sort()
    p99 = seen_ms[int(len(seen_ms) * 0.99)]
    broken = [f"seen after {p99:.1f} ms, p99, and not {bound_ms:g}"] if p99 > bound_ms else []
    return Row(
        f"A sign-in is seen in another process, by {name}",
        {
            "sign-ins": SIGN_INS,
            "seen after, ms, p50": seen_ms[len(seen_ms) // 2],
            "seen after, ms, p99": p99,
            "wake-ups a second while idle": wake_ups,
        },
        tuple(broken),
    )


async def _sign_in_over_and_over(
    authenticator: gz_trio.Authenticator, process: trio.Process
) -> tuple[list[float], float]:
    """Milliseconds from each sign-in's begin until it was seen; wake-ups a second before them."""
    stdout = process.stdout
    assert stdout is not None
    began: dict[str, int] = {}
    seen_ms: list[float] = []
    buffer = b""

    async def next_line() -> tuple[str, int]:
        nonlocal buffer
        while b"\n" not in buffer:
            buffer += await stdout.receive_some()
        line, _, buffer = buffer.partition(b"\n")
        value, _, when = line.decode().partition(" ")
        return value, int(when)

    async with stdout:
        await next_line()
        await trio.sleep(1)  # What starting took is over by then.
        before = _wake_ups(process.pid)
        await trio.sleep(IDLE_SECONDS)
        wake_ups = (_wake_ups(process.pid) - before) / IDLE_SECONDS
        for number in range(1, SIGN_INS + 1):
            value = f"sk-{number}"
            began[value] = time.perf_counter_ns()
            await authenticator.sign_in(value)
            seen, when = await next_line()
            while seen != value:
                seen, when = await next_line()
            seen_ms.append((when - began[value]) / 1e6)
            await trio.sleep(PAUSE_SECONDS)
    return seen_ms, wake_ups


def _wake_ups(pid: int) -> int:
    """How often the process, all its threads, has waited for something and gone on."""
    total = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        for line in status.read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                total += int(line.split()[1])
    return total


if __name__ == "__main__":
    trio.run(follow, sys.argv[1])
