"""A program of this package in a process of its own, which is spoken with line by line."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import IO

import trio

from ._errors import TargetError

READ_BYTES = 1 << 16
END_SECONDS = 5.0
LAST_LINES = 10
"""So many of what it wrote to its standard error tell why it has ended."""


class LineProcess:
    """A process that answers lines with lines. Made by `open_line_process`.

    Attributes:
        process: The process.
    """

    def __init__(self, process: trio.Process, errors: IO[bytes]) -> None:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("a process of lines has pipes")
        self.process = process
        self._stdin, self._stdout = process.stdin, process.stdout
        self._errors = errors
        self._read = b""

    async def send(self, line: bytes) -> None:
        """Write a line to it. That it has died is told by `line` alone."""
        with suppress(trio.BrokenResourceError):
            await self._stdin.send_all(line + b"\n")

    async def line(self) -> bytes | None:
        """The next line that it writes; `None`: it has ended."""
        while b"\n" not in self._read:
            data = await self._stdout.receive_some(READ_BYTES)
            if not data:
                return None
            self._read += data
        line, _, self._read = self._read.partition(b"\n")
        return line

    async def last_words(self) -> str:
        """Why it has ended, when it has."""
        with trio.move_on_after(END_SECONDS):
            await self.process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").splitlines()[-LAST_LINES:]
        return "\n".join([f"its exit code is {self.process.returncode}", *lines])

    async def end(self) -> None:
        """End it as it wants to be ended, by the end of its input; or by force."""
        with trio.CancelScope(shield=True):
            for pipe in (self._stdin, self._stdout):
                await trio.aclose_forcefully(pipe)
            with trio.move_on_after(END_SECONDS):
                await self.process.wait()
            self.process.kill()
            await self.process.wait()


@asynccontextmanager
async def open_line_process(module: str, *arguments: str) -> AsyncGenerator[LineProcess]:
    """A module of this package as a process; it is ended when the block is left.

    Raises:
        TargetError: It cannot be started.
    """
    # A file, not a pipe: nobody has to read it meanwhile.
    with tempfile.TemporaryFile() as errors:
        try:
            process = await trio.lowlevel.open_process(
                [sys.executable, "-m", f"gz_trio.simulate.{module}", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,  # Ctrl-C is for whoever began it, and tells it what to do.
            )
        except OSError as error:
            raise TargetError(
                f"a process of the simulator cannot be started: {error.strerror or error}"
            ) from error
        lines = LineProcess(process, errors)
        try:
            yield lines
        finally:
            await lines.end()  # noqa: ASYNC102 - it shields itself, and is bounded
