"""The command line as a user has it: a child process, at a pseudo-terminal or at pipes."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pyte
import trio

COMMAND = [sys.executable, "-m", "gz_trio.cli"]
PATIENCE_SECONDS = 60.0


def environment(changes: Mapping[str, str]) -> dict[str, str]:
    """This process's, without a key in it, or in the user's state folder."""
    without = {"GZ_API_KEY", "OPENAI_API_KEY", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"}
    kept = {name: value for name, value in os.environ.items() if name not in without}
    return {**kept, "TERM": "xterm-256color", "XDG_STATE_HOME": "/nonexistent", **changes}


async def run_piped(
    *arguments: str, stdin: bytes = b"", cwd: Path | str | None = None, **variables: str
) -> subprocess.CompletedProcess[bytes]:
    """Run a command whose input, output and errors are pipes."""
    with trio.fail_after(PATIENCE_SECONDS):
        return await trio.run_process(
            [*COMMAND, *arguments],
            stdin=stdin,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            cwd=cwd,
            env=environment(variables),
        )


async def run_without(package: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command as where a package is not installed."""
    program = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == sys.argv[1]:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "from gz_trio.cli import main\n"
        "sys.exit(main(sys.argv[2:]))\n"
    )
    command = [sys.executable, "-c", program, package, *arguments]
    return await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)


class Terminal:
    """A pseudo-terminal with a program at it."""

    def __init__(self, process: trio.Process, descriptor: int, columns: int, lines: int) -> None:
        self.process = process
        self.raw = b""
        self._descriptor = descriptor
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)

    @property
    def shown(self) -> list[str]:
        """The lines on the screen that are not blank, without the blanks at their ends."""
        return [line.rstrip() for line in self._screen.display if line.strip()]

    async def type(self, keys: str) -> None:
        """Press keys; Enter is `\\r`, Ctrl-C `\\x03`, Ctrl-D `\\x04`."""
        os.write(self._descriptor, keys.encode())
        await trio.lowlevel.checkpoint()

    async def until(self, reached: Callable[[], bool]) -> None:
        """Wait until the screen is as wanted."""
        with trio.move_on_after(PATIENCE_SECONDS):
            while not reached():
                if not await self._receive():
                    break
        assert reached(), "\n".join(["the screen shows:", *self.shown])

    async def until_shown(self, words: str) -> None:
        """Wait until these words are somewhere on the screen."""
        await self.until(lambda: words in " ".join(self.shown))

    async def ended(self) -> int:
        """Wait for the end of the program; gives its exit code."""
        with trio.fail_after(PATIENCE_SECONDS):
            while await self._receive():
                pass
            return await self.process.wait()

    def mode(self) -> list[object]:
        """The terminal's mode, as `termios` has it."""
        return list(termios.tcgetattr(self._descriptor))

    async def _receive(self) -> bool:
        await trio.lowlevel.wait_readable(self._descriptor)
        try:
            data = os.read(self._descriptor, 65_536)
        except OSError:  # EIO: on Linux the end, once no program has the terminal open
            return False
        self.raw += data
        self._stream.feed(data)
        return bool(data)


@asynccontextmanager
async def terminal(
    *arguments: str, columns: int = 80, lines: int = 24, **variables: str
) -> AsyncGenerator[Terminal]:
    """Run a command at a terminal of its own; it is killed after the block."""
    ours, theirs = pty.openpty()
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        process = await trio.lowlevel.open_process(
            # A session of its own, with the terminal as its controlling one, so that Ctrl-C
            # becomes a signal.
            [sys.executable, "-c", _AT_TERMINAL, *COMMAND, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env=environment(variables),
        )
        os.close(theirs)
        try:
            yield Terminal(process, ours, columns, lines)
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
    finally:
        os.close(ours)


_AT_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
