"""The commands and their options, as `--help` shows them."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter
from cyclopts.validators import Number

from . import demo_screen
from .run import run as run_command

app = App(
    name="gz-trio",
    version=version("gz-trio"),
    help_format="markdown",
    suppress_keyboard_interrupt=False,
    help="""
Chat with an OpenAI-compatible LLM gateway, over keys that expire in the middle of an answer.
""",
)

Flag = Parameter(negative="")


@app.command
def demo(
    *,
    sessions: Annotated[int, Parameter(validator=Number(gte=1))] = 50,
    rotations: Annotated[int, Parameter(validator=Number(gte=0))] = 3,
    json: Annotated[bool, Flag] = False,
) -> int:
    """Rotate a key under many streams, and see each of them go on.

    Starts a fake gateway on a free port of this machine, opens chats that share one key, streams
    replies in all of them, and rotates the key while they stream. Each rotation waits until all
    chats have got over the one before. Needs no network, no account and no key.

    What the chats were handed is compared with what the gateway meant to send. The exit code is
    1 if a character was lost or doubled, if a stream was interrupted, or if there was more than
    one refresh for one rotation.

    Args:
        sessions: How many chats.
        rotations: How often the key is rotated.
        json: Print only the figures, as one JSON object: sessions, streams, tokens, rejected
            (401s met), refreshes, interrupted (streams), lost and doubled (characters),
            paused_ms_p50 and paused_ms_max (milliseconds), seconds.
    """
    return run_command(partial(demo_screen.demo, sessions, rotations, as_json=json))


def run(arguments: Sequence[str]) -> int:
    """Run one command line; gives the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show a character shows "?": no reason to end.
            stream.reconfigure(errors="replace")
    warnings.formatwarning = _one_line
    try:
        code = app(arguments, exit_on_error=False, result_action="return_value")
    except CycloptsError:  # it has been printed
        return 2
    return code if isinstance(code, int) else 0


def _one_line(message: Warning | str, *_: object) -> str:
    return f"gz-trio: {message}\n"
