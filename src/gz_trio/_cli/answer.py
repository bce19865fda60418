"""An answer as it is printed, with the notices that come in between and go again."""

from __future__ import annotations

import os
import shutil
from typing import TextIO

from rich.cells import cell_len, set_cell_size

from .text import visible

# VT100, as every terminal has them since.
_DIM, _YELLOW, _PLAIN = "\x1b[2m", "\x1b[33m", "\x1b[0m"
_ROOM_BELOW = "\x1bD\x1b[A"  # scrolls if it must, and comes back to the same column
_SAVE, _RESTORE = "\x1b7", "\x1b8"
_LINE_BELOW = "\x1b[B\r"
_ERASE_LINE, _ERASE_BELOW = "\r\x1b[K", "\x1b[J"


class Answer:
    """One answer, printed as it comes. Control characters of the model's are made visible.

    On a terminal, a notice stands on the line below until the text goes on, and is then erased;
    elsewhere it goes to `errors`, as a line.

    Args:
        output: Where the text goes.
        errors: Where notices go if `output` is no terminal.
    """

    def __init__(self, output: TextIO, errors: TextIO) -> None:
        self._output = output
        self._errors = errors
        self._terminal = output.isatty() and os.environ.get("TERM") != "dumb"
        self._size = shutil.get_terminal_size()
        self._notice = ""
        self._thinking = False
        self._row = self._column = 0

    def add(self, text: str, *, reasoning: str = "") -> None:
        """Print what is new; reasoning dim, and on a terminal only."""
        self.go_on()
        if reasoning and self._terminal:
            self._thinking = True
            self._put(visible(reasoning), _DIM)
        if text:
            if self._thinking:
                self._thinking = False
                self._put("\n\n" if self._column else "\n")
            self._put(visible(text))
        self._output.flush()

    def wait(self, notice: str) -> None:
        """Say why nothing comes."""
        if notice == self._notice:
            return
        self.go_on()
        self._notice = notice
        if self._terminal:
            line = set_cell_size(notice, min(cell_len(notice), self._size.columns - 1))
            self._output.write(
                f"{_ROOM_BELOW}{_SAVE}{_LINE_BELOW}{_YELLOW}{line}{_PLAIN}",
            )
            self._output.flush()
        else:
            self.remark(notice)

    def go_on(self) -> None:
        """Erase the notice, if there is one; what follows goes on in the same line."""
        if self._notice and self._terminal:
            self._output.write(f"{_ERASE_LINE}{_RESTORE}")
            self._output.flush()
        self._notice = ""

    def start_over(self) -> None:
        """Erase what was printed, where it has not left the screen; else say what is up."""
        self.go_on()
        self._thinking = False
        if self._terminal and self._row < self._size.lines - 1:
            up = f"\x1b[{self._row}A" if self._row else ""
            self._output.write(f"\r{up}{_ERASE_BELOW}")
        else:
            self._output.write("\n" if self._column else "")
            self._output.write("(starting over)\n")
        self._row = self._column = 0
        self._output.flush()

    def end(self) -> None:
        """What comes next begins a line. Call it as often as you like."""
        self.go_on()
        if self._column:
            self._put("\n")
            self._output.flush()

    def remark(self, words: str) -> None:
        """Say something about the answer, to the user and not to what reads the output."""
        self._errors.write(f"{words}\n")
        self._errors.flush()

    def _put(self, text: str, style: str = "") -> None:
        self._output.write(f"{style}{text}{_PLAIN}" if style else text)
        for character in text:
            self._advance(character)

    def _advance(self, character: str) -> None:
        """Follow the terminal's cursor, as far as its idea of a character's width is ours."""
        columns = self._size.columns
        if character == "\n":
            self._row += 1
            self._column = 0
        elif character == "\t":
            self._column = min(self._column // 8 * 8 + 8, columns - 1)
        else:
            width = cell_len(character)
            if self._column + width > columns:
                self._row += 1
                self._column = 0
            self._column += width
