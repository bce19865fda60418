"""How a command runs, and how its failures are told: in one line, without a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable
from typing import cast

import trio
from rich.console import Console

from .. import GatewayError

INTERRUPTED = 128 + 2
"""The exit code of a program that Ctrl-C ended, as shells have it: 128 and the signal's number."""


class UsageError(Exception):
    """What the user gave cannot be used; the message says what to give instead."""


def run(command: Callable[[], Awaitable[int]]) -> int:
    """Run a command under Trio; gives the exit code."""
    code = 1
    try:
        # Elsewhere Ctrl-C could fall into the start of a task, which its nursery then waits for.
        code = trio.run(command, restrict_keyboard_interrupt_to_checkpoints=True)
    except* KeyboardInterrupt:
        code = INTERRUPTED
    except* BrokenPipeError:
        # Nobody reads the output any more. What is left in its buffer must not fail at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except* (GatewayError, UsageError) as group:
        complain(str(_first(group)))
    return code


def complain(words: str) -> None:
    """Write one line to standard error, in red where there are colours."""
    console = Console(stderr=True, soft_wrap=True)
    console.print(f"gz-trio: {words}", style="red", markup=False, highlight=False)


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    return error
