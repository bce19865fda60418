"""The refresh callable that runs a program which prints the key."""

from __future__ import annotations

import math
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Annotated

import msgspec
import trio

from .._protocol import lenient_json
from .._protocol.errors import RefreshError
from .._protocol.keys import Key, bare_key, jwt_expiry
from .shield import FINISH_SECONDS, shielded_after_cancel


class CommandRefresh:
    """Refreshes by running a program that prints a key, as AWS's `credential_process` does.

    On its standard output the program prints either the key alone on a line, or a JSON object: the
    key as `api_key`, `key` or `access_token`; when it ends, if that is known, as `expires_at`
    (seconds of Unix time, or RFC 3339) or `expires_in` (seconds from now), else what the key itself
    says, if it is a JWT; and `refresh_token` where there is one. Its standard error goes to this
    process's own, for the user to see; its standard input is empty. It is told nothing of the
    rejected key.

    It runs in this process's group, so that it can ask for a password at the terminal and ends
    with it on Ctrl-C. When it is cancelled it has 10 seconds to finish, then it is asked to end
    (SIGTERM), after 5 more it is killed. Programs that it has started itself are not.

    Args:
        command: The program and its arguments, as a sequence or as one string, which is split as
            a POSIX shell does (`shlex`). There is no shell: no variables, pipes or `~`.
        now: Unix time in seconds, for `expires_in`.

    Raises:
        ValueError: `command` is empty, holds an unclosed quote, or begins with `NAME=value`.

    >>> refresh = CommandRefresh("echo sk-new")
    >>> refresh
    <CommandRefresh 'echo'>
    >>> trio.run(refresh, None).value
    'sk-new'
    """

    def __init__(
        self, command: str | Sequence[str], *, now: Callable[[], float] = time.time
    ) -> None:
        self._argv = _argv(command)
        self._now = now

    def __repr__(self) -> str:
        # The arguments may hold secrets.
        return f"<CommandRefresh {self._argv[0]!r}>"

    async def __call__(self, rejected: Key | None) -> Key:  # noqa: ARG002 - no place for it
        """Run the program once. A checkpoint.

        Raises:
            RefreshError: It could not be started, failed, or printed no key.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        output = await shielded_after_cancel(FINISH_SECONDS, self._run)
        return _printed_key(output, self._name, self._now())

    @property
    def _name(self) -> str:
        return f"the refresh command {self._argv[0]!r}"

    @trio.lowlevel.enable_ki_protection  # it would leave the program running
    async def _run(self) -> bytes:
        """What the program printed."""
        try:
            process = await trio.lowlevel.open_process(
                self._argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
            )
        except OSError as error:
            raise RefreshError(
                f"{self._name} could not be started ({error.strerror}): is it installed, "
                "executable, and in the PATH?"
            ) from error
        try:
            output = await _read_output(process)
            if len(output) > _OUTPUT_LIMIT:
                raise RefreshError(
                    f"{self._name} printed more than {_OUTPUT_LIMIT >> 10} KiB, which is no key: "
                    "only the key may go to its standard output"
                )
            status = await process.wait()
        except BaseException:
            with trio.move_on_after(2 * _TERMINATE_SECONDS, shield=True):
                await _end(process)
            raise
        if status != 0:
            how = f"exit status {status}" if status > 0 else f"signal {_signal_name(-status)}"
            raise RefreshError(
                f"{self._name} ended with {how}: run it by hand to see why; what it wrote to "
                "standard error may say"
            )
        return output


_OUTPUT_LIMIT = 64 << 10  # bytes
_DRAIN_SECONDS = 1.0
_TERMINATE_SECONDS = 5.0
_ASSIGNMENT = re.compile(r"\w+=")


def _argv(command: str | Sequence[str]) -> list[str]:
    if isinstance(command, str):
        argv = None
        with suppress(ValueError):  # its own message is raised without it, as a clear one
            argv = shlex.split(command)
        if argv is None:
            raise ValueError("the refresh command has a quote or a backslash that nothing closes")
    else:
        argv = list(command)
    if not argv or not argv[0].strip():
        raise ValueError("the refresh command is empty: give a program, and its arguments")
    if _ASSIGNMENT.match(argv[0]):
        # Would be named in messages as the program, with its value.
        raise ValueError(
            "the refresh command begins with NAME=value, which only a shell understands: write "
            "env NAME=value PROGRAM"
        )
    if any("\0" in argument for argument in argv):
        raise ValueError("the refresh command holds a NUL character, which no argument can")
    return argv


async def _read_output(process: trio.Process) -> bytes:
    """All that the program prints, up to a little over the limit; its end of the pipe is closed."""
    output = bytearray()
    stdout = process.stdout
    assert stdout is not None  # noqa: S101  it was asked for
    async with stdout, trio.open_nursery() as nursery:

        async def stop_at_exit() -> None:
            # A child of the program's may hold the pipe open for as long as it lives. What the
            # program itself has printed is in the pipe when it exits.
            await process.wait()
            await trio.sleep(_DRAIN_SECONDS)
            nursery.cancel_scope.cancel()

        nursery.start_soon(stop_at_exit)
        async for chunk in stdout:
            output += chunk
            if len(output) > _OUTPUT_LIMIT:
                break
        nursery.cancel_scope.cancel()
    return bytes(output)


async def _end(process: trio.Process) -> None:
    """Leaves no process and no zombie."""
    for end in (process.terminate, process.kill):
        # A program that has taken another user's rights cannot be signalled.
        with suppress(PermissionError):
            end()
        with trio.move_on_after(_TERMINATE_SECONDS):
            await process.wait()
            return


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


class _Printed(msgspec.Struct, frozen=True):
    api_key: str | None = None
    key: str | None = None
    access_token: str | None = None
    expires_at: float | Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    expires_in: float | None = None
    refresh_token: str | None = None


def _printed_key(output: bytes, name: str, now: float) -> Key:
    """The key that the program `name` printed; its output is never quoted, by a cause neither."""
    key: Key | None = None
    problem = (
        "printed something that is no key: it must print the key alone, or a JSON object with "
        "api_key, key or access_token (and expires_at, in seconds or as RFC 3339 says)"
    )
    with suppress(*lenient_json.MSGSPEC_ERRORS, ValueError):
        text = output.decode().strip()
        if not text:
            problem = "printed nothing: it must print the key to its standard output"
        elif text.startswith("{"):
            key = _key_of_object(text, now)
        elif len(text.splitlines()) > 1:
            problem = (
                "printed several lines: only the key may go to its standard output, messages "
                "go to standard error"
            )
        elif text[0] not in "\"'[":  # as `jq` prints a string; no key begins so
            key = bare_key(text)
    if key is None:
        raise RefreshError(f"{name} {problem}")
    return key


def _key_of_object(text: str, now: float) -> Key:
    """Raises `ValueError`, or what msgspec raises, where there is none."""
    printed = msgspec.json.decode(text, type=_Printed)
    expires_at = printed.expires_at
    if isinstance(expires_at, datetime):
        expires_at = expires_at.timestamp()
    elif expires_at is None and printed.expires_in is not None:
        expires_at = now + printed.expires_in
    if expires_at is not None and not math.isfinite(expires_at):
        raise ValueError("no time")
    value = printed.api_key or printed.key or printed.access_token or ""
    return Key(
        value,
        expires_at=jwt_expiry(value) if expires_at is None else expires_at,
        refresh_token=printed.refresh_token or None,
    )
