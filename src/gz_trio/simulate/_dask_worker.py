"""What is on a Dask worker: the process of a shard, and what is said to it and by it.

It is one of Dask's actors, and all of its methods are quick, so that no thread of the worker is
taken and its profiler has nothing to look at while the load goes on in a process of its own.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import IO

from ._process import why_it_ended

READ_BYTES = 1 << 20
HEAR_SECONDS = 1.0
END_SECONDS = 3.0
FORGOTTEN_SECONDS = 10.0
"""If nobody has asked for so long what a shard says, whoever began it is gone."""


@dataclass(frozen=True)
class Hidden:
    """What Dask must not show in its logs and on its dashboard, for it holds keys."""

    value: bytes = field(repr=False)


class RemoteShard:
    """A shard's process on a Dask worker. Dask makes this, `begin` the process.

    Dask does a task again when it has lost the worker that did it. Then there is another of
    these, whose token is another, so that nobody can begin the same shard on it.
    """

    def __init__(self) -> None:
        self._token = secrets.token_hex(8)
        self._used = False
        self._changing = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._stdin: asyncio.StreamWriter
        self._stdout: asyncio.StreamReader
        self._errors: IO[bytes]
        self._patience: asyncio.TimerHandle
        self._last_words: str | None = None

    async def token(self) -> str:
        """What `begin` wants to be given."""
        return self._token

    async def begin(self, token: str, plan: Hidden) -> None:
        """Start the process.

        Args:
            token: Of this one, from `token`.
            plan: The `Plan`, encoded.

        Raises:
            RuntimeError: It has been started before, here or elsewhere, or ended.
        """
        async with self._changing:
            if self._used or token != self._token:
                raise RuntimeError("a shard is not started twice")
            self._used = True
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115  as long as the process
            # Dask asks this of its own processes, to save memory; here it would only cost time.
            environment = {
                name: value
                for name, value in os.environ.items()
                if name != "MALLOC_TRIM_THRESHOLD_"
            }
            self._process = process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "gz_trio.simulate._worker",
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=environment,
                limit=READ_BYTES,
            )
            assert process.stdin is not None  # noqa: S101  it was asked for
            assert process.stdout is not None  # noqa: S101  likewise
            self._stdin, self._stdout = process.stdin, process.stdout
            self._patience = self._end_later(process)
        await self.say(plan.value)

    async def now(self) -> int:
        """The process's `time.perf_counter_ns`: all processes of a machine have the same one."""
        return perf_counter_ns()

    async def say(self, line: bytes) -> None:
        """Write a line to it. That it has ended is told by `hear` alone."""
        self._stdin.write(line + b"\n")

    async def hear(self) -> bytes | None:
        """What it wrote next: `None` if it is silent for a while, nothing if it has ended."""
        assert self._process is not None  # noqa: S101  it was begun
        self._patience.cancel()
        self._patience = self._end_later(self._process)
        try:
            async with asyncio.timeout(HEAR_SECONDS):
                return await self._stdout.read(READ_BYTES)
        except TimeoutError:
            return None

    async def end(self) -> str:
        """Close its input, which ends it, or kill it; gives its last words.

        One that has not begun never will.
        """
        async with self._changing:
            self._used = True
            if self._process is None:
                return ""
            if self._last_words is not None:
                return self._last_words
            self._patience.cancel()
            self._stdin.close()
            try:
                async with asyncio.timeout(END_SECONDS):
                    await self._process.wait()
            except TimeoutError:
                _kill(self._process)
            with self._errors as errors:
                self._last_words = why_it_ended(self._process.returncode, errors)
            return self._last_words

    def _end_later(self, process: asyncio.subprocess.Process) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(FORGOTTEN_SECONDS, _kill, process)


def _kill(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()
