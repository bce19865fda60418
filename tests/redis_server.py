"""A Redis server of the tests' own: Debian's `redis-server`, on a free port of this machine."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

PROGRAM = shutil.which("redis-server") or shutil.which("valkey-server")


def require_server() -> None:
    """Skip the test where there is no server; never in CI."""
    if PROGRAM is None and not os.environ.get("CI"):
        pytest.skip("there is no redis-server (on Debian: apt-get install redis-server)")


class RedisServer:
    """A server that can be stopped, killed and started again, with nothing in it."""

    def __init__(self, folder: Path, *options: str) -> None:
        self._options = options
        self._folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: trio.Process | None = None

    async def start(self) -> None:
        """Start it, and wait until it serves."""
        assert PROGRAM is not None, "CI installs redis-server"
        self._process = await trio.lowlevel.open_process(
            [
                *(PROGRAM, "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""),
                *("--dir", str(self._folder), "--enable-debug-command", "yes", *self._options),
            ],
            stdout=subprocess.PIPE,
        )
        output = b""
        assert self._process.stdout is not None
        while b"Ready to accept connections" not in output:
            more = await self._process.stdout.receive_some()
            assert more, output.decode()
            output += more

    async def stop(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()
            await self._process.wait()
            assert self._process.stdout is not None
            await trio.aclose_forcefully(self._process.stdout)
            self._process = None

    def freeze(self) -> None:
        """Have it answer nothing, with its connections open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Have it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


@asynccontextmanager
async def redis_server(folder: Path, *options: str) -> AsyncGenerator[RedisServer]:
    """A server until the end of the block."""
    require_server()
    server = RedisServer(folder, *options)
    await server.start()
    try:
        yield server
    finally:
        with trio.move_on_after(10, shield=True):
            await server.stop()
