"""How a command runs, and how its failures are told: in one line, without a traceback."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterator

import trio
from rich.console import Console

from .. import GatewayError

INTERRUPTED = 128 + 2
"""The exit code of a program that Ctrl-C ended, as shells have it: 128 and the signal's number."""


class UsageError(Exception):
    """What the user gave cannot be used; the message says what to give instead."""


def run(command: Callable[[], Awaitable[int]]) -> int:
    """Run a command under Trio; gives the exit code."""
    try:
        return trio.run(command)
    except (KeyboardInterrupt, GatewayError, UsageError) as error:
        return _tell(error)
    except BaseExceptionGroup as group:
        leaves = list(_leaves(group))
        for kind in (KeyboardInterrupt, GatewayError | UsageError):
            for leaf in leaves:
                if isinstance(leaf, kind):
                    return _tell(leaf)
        raise


def complain(words: str) -> None:
    """Write one line to standard error, in red where there are colours."""
    console = Console(stderr=True, soft_wrap=True)
    console.print(f"gz-trio: {words}", style="red", markup=False, highlight=False)


def _tell(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    complain(str(error))
    return 1


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
