"""Lines that the user types or a pipe brings, read in a thread so that Trio goes on meanwhile.

A thread that reads cannot be stopped. It is left behind when the chat ends, so it must hold
nothing that the end of the process needs: neither the lock of `sys.stdin`, nor the mode of the
terminal.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager, suppress
from importlib import import_module

import trio

_READ_BYTES = 65_536


class TypedLines:
    """Lines typed at a terminal, with line editing and history where `readline` is there."""

    def __init__(self, prompt: str) -> None:
        self._prompt = prompt
        with suppress(ImportError):
            import_module("readline")  # `input` uses it once it is imported

    async def next(self) -> str | None:
        """The next line, `None` at the end (Ctrl-D). A checkpoint."""
        with _mode_restored():
            try:
                return await trio.to_thread.run_sync(input, self._prompt, abandon_on_cancel=True)
            except EOFError:
                sys.stdout.write("\n")
                return None
            except trio.Cancelled:
                sys.stdout.write("\n")
                raise


class PipedLines:
    """Lines from a pipe or a file; what is not UTF-8 in them becomes U+FFFD."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lines: deque[bytes] = deque()
        self._begun = b""
        self._ended = False

    async def next(self) -> str | None:
        """The next line, `None` at the end. A checkpoint."""
        await trio.lowlevel.checkpoint()
        while not self._lines and not self._ended:
            data = await trio.to_thread.run_sync(
                os.read, self._descriptor, _READ_BYTES, abandon_on_cancel=True
            )
            *lines, self._begun = (self._begun + data).split(b"\n")
            self._lines += lines
            if not data:
                self._ended = True
                if self._begun:
                    self._lines.append(self._begun)
        return self._lines.popleft().decode(errors="replace") if self._lines else None


@contextmanager
def _mode_restored() -> Generator[None]:
    """The terminal as it was: readline puts it into a mode of its own while it reads."""
    if sys.platform == "win32":
        yield
        return
    import termios  # noqa: PLC0415  there is none on Windows

    before = termios.tcgetattr(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
