"""The process of a shard, as whoever has started it speaks with it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Protocol

import msgspec

from ._errors import TargetError
from ._intervals import Interval
from ._messages import Failed, Message, Plan, Ready, Told
from ._process import open_line_process


class Lines(Protocol):
    """What a process says and is told; see `_process.LineProcess`."""

    async def send(self, line: bytes) -> None:
        """Tell it a line."""
        ...

    async def line(self) -> bytes | None:
        """The next line that it says; `None`: it has ended."""
        ...

    async def last_words(self) -> str:
        """Why it has ended, when it has."""
        ...


class Child:
    """One shard's process, which has been given its plan. Made by `open_child`.

    Args:
        process: How it is spoken with.

    Attributes:
        clock_error_ms: How far its clock may be off, in milliseconds, once it is ready.
    """

    def __init__(self, process: Lines) -> None:
        self._process = process
        self.clock_error_ms = 0.0

    async def ready(self) -> None:
        """Wait until it is signed in.

        Raises:
            TargetError: It cannot begin; the message says why.
        """
        message = await self._message()
        if isinstance(message, Ready):
            self.clock_error_ms = message.clock_error_ms
            return
        raise TargetError(f"the process of a shard has died: {await self._process.last_words()}")

    async def start(self, instant: int) -> None:
        """Begin the load, at this instant of the caller's `time.perf_counter_ns`."""
        await self._process.send(b"start %d" % instant)

    async def stop(self) -> None:
        """End the load before its time: what is under way is left unfinished."""
        await self._process.send(b"stop")

    async def interval(self) -> Interval | None:
        """What it tells next; `None` if it has died.

        Raises:
            TargetError: The load has failed.
        """
        message = await self._message()
        return message.interval if isinstance(message, Told) else None

    async def last_words(self) -> str:
        """Why it has died, when it has."""
        return await self._process.last_words()

    async def _message(self) -> Message | None:
        line = await self._process.line()
        if line is None:
            return None
        message: Message = msgspec.json.decode(line, type=Message)
        if isinstance(message, Failed):
            raise TargetError(message.why)
        return message


@asynccontextmanager
async def open_child(plan: Plan) -> AsyncGenerator[Child]:
    """A process that does a shard's part; leaving the block ends it."""
    async with open_line_process("_worker") as process:
        await process.send(msgspec.json.encode(plan))
        yield Child(process)
