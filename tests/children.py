"""Processes that tests start: each runs a module of the tests, and prints lines."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from gz_trio import FileKeyStore, KeyStore, RedisKeyStore


def store_at(place: str) -> KeyStore:
    """The key store that processes share: at a path, or at the URL of a Redis server."""
    return RedisKeyStore(place) if place.startswith("redis:") else FileKeyStore(place)


def say(line: str) -> None:
    """In the process: print a line for whoever has started it."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


class Child:
    """A process that tells of itself in lines."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self._output = b""

    async def line(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        with trio.fail_after(60):
            while b"\n" not in self._output:
                more = await self.process.stdout.receive_some()
                assert more, "the child has ended"
                self._output += more
        line, _, self._output = self._output.partition(b"\n")
        return line.decode()

    async def go_on(self) -> None:
        """Let it do what comes next."""
        assert self.process.stdin is not None
        await self.process.stdin.send_all(b"\n")


@asynccontextmanager
async def open_child(module: str, *arguments: object) -> AsyncGenerator[Child]:
    """A process that runs a module of the tests, until the end of the block."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", module, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    )
    try:
        yield Child(process)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            await trio.aclose_forcefully(pipe)
