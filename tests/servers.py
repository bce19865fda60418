"""Commands that serve until they are told to end, as processes: what they print, and their end."""

from __future__ import annotations

import re
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio

from tests.cli.terminal import COMMAND, PATIENCE_SECONDS, environment


class Server:
    """A running command."""

    def __init__(self, process: trio.Process, stdout: trio.abc.ReceiveStream) -> None:
        self.process = process
        self.printed = ""
        self._stdout = stdout

    async def until_printed(self, pattern: str) -> re.Match[str]:
        """Wait for what matches in its output, errors included."""
        with trio.fail_after(PATIENCE_SECONDS):
            while (match := re.search(pattern, self.printed, re.MULTILINE)) is None:
                data = await self._stdout.receive_some()
                assert data, self.printed
                self.printed += data.decode()
        return match

    @property
    def log(self) -> list[str]:
        """The lines for requests, without the time."""
        return re.findall(r"^\d\d:\d\d:\d\d (.*)$", self.printed, re.MULTILINE)

    async def ended(self) -> int:
        """Wait for its end; gives the exit code."""
        with trio.fail_after(PATIENCE_SECONDS):
            return await self.process.wait()


@asynccontextmanager
async def open_server(*arguments: str, **variables: str) -> AsyncGenerator[Server]:
    """Run a command; it is killed after the block."""
    process = await trio.lowlevel.open_process(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(variables),
    )
    assert process.stdout is not None
    try:
        async with process.stdout:
            yield Server(process, process.stdout)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
