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


class LineReader:
    """The lines that come out of a stream."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self._stream = stream
        self._read = b""

    async def next(self) -> bytes | None:
        """The next one; `None` at the end."""
        while b"\n" not in self._read:
            data = await self._stream.receive_some(READ_BYTES)
            if not data:
                return None
            self._read += data
        line, _, self._read = self._read.partition(b"\n")
        return line


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
        self._lines = LineReader(process.stdout)
        self._errors = errors

    async def send(self, line: bytes) -> None:
        """Write a line to it. That it has died is told by `line` alone."""
        with suppress(trio.BrokenResourceError):
            await self._stdin.send_all(line + b"\n")

    async def line(self) -> bytes | None:
        """The next line that it writes; `None`: it has ended."""
        return await self._lines.next()

    async def last_words(self) -> str:
        """Why it has ended, when it has."""
        with trio.move_on_after(END_SECONDS):
            await self.process.wait()
        return why_it_ended(self.process.returncode, self._errors)

    async def end(self) -> None:
        """End it as it wants to be ended, by the end of its input; or by force."""
        with trio.CancelScope(shield=True):
            for pipe in (self._stdin, self._stdout):
                await trio.aclose_forcefully(pipe)
            with trio.move_on_after(END_SECONDS):
                await self.process.wait()
            self.process.kill()
            await self.process.wait()


def why_it_ended(code: int | None, errors: IO[bytes]) -> str:
    """What is told of a process that has ended.

    Args:
        code: Its exit code.
        errors: What it wrote to its standard error.
    """
    errors.seek(0)
    lines = errors.read().decode(errors="replace").splitlines()[-LAST_LINES:]
    return "\n".join([f"its exit code is {code}", *lines])


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
