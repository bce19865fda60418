"""Shards on Dask's workers, on this machine or on many, as a run speaks with them."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib.util import find_spec

import msgspec
import trio

from .._background import Background
from ._child import Child
from ._errors import TargetError
from ._messages import Plan
from ._process import LineProcess, open_line_process


class Order(msgspec.Struct, kw_only=True):
    """What the process that speaks with Dask is to do.

    Attributes:
        scheduler: The address of Dask's; `None`: start one, with workers on this machine.
        plans: Of each shard.
    """

    scheduler: str | None
    plans: list[Plan]


class Command(msgspec.Struct):
    """A line for a shard's process. An instant in it is one of this machine's."""

    shard: int
    line: str


class Heard(msgspec.Struct, tag="heard"):
    """A line from a shard's process."""

    shard: int
    line: msgspec.Raw


class Ended(msgspec.Struct, tag="ended"):
    """A shard's process is no more, and why."""

    shard: int
    why: str


class _RemoteLines:
    """What a shard's process says and is told, by way of Dask."""

    def __init__(self, number: int, client: LineProcess, in_turn: trio.Lock) -> None:
        self._number = number
        self._client = client
        self._in_turn = in_turn
        self.why = ""
        self.send_in, self._lines = trio.open_memory_channel[bytes](math.inf)

    async def send(self, line: bytes) -> None:
        """Tell it a line. That it has died is told by `line` alone."""
        command = Command(self._number, line.decode())
        async with self._in_turn:
            await self._client.send(msgspec.json.encode(command))

    async def line(self) -> bytes | None:
        """The next line that it says; `None`: it has ended."""
        try:
            return await self._lines.receive()
        except trio.EndOfChannel:
            return None

    async def last_words(self) -> str:
        """Why it has ended, when it has."""
        return self.why


async def _deal_out(client: LineProcess, shards: list[_RemoteLines]) -> None:
    """Give each shard what its process says, until the client ends."""
    while (line := await client.line()) is not None:
        message: Heard | Ended = msgspec.json.decode(line, type=Heard | Ended)
        shard = shards[message.shard]
        if isinstance(message, Heard):
            shard.send_in.send_nowait(bytes(message.line))
        else:
            shard.why = message.why
            shard.send_in.close()
    words = await client.last_words()
    for shard in shards:
        shard.why = shard.why or f"the process that speaks with Dask has died: {words}"
        shard.send_in.close()


@asynccontextmanager
async def open_remote_children(
    plans: list[Plan], scheduler: str | None
) -> AsyncGenerator[list[Child]]:
    """A process for each shard, on a Dask worker of its own; leaving the block ends them.

    What is wrong with the cluster, `Child.ready` tells.

    Args:
        plans: What each is to do.
        scheduler: The address of a Dask scheduler; `None`: a cluster on this machine, which lives
            as long as the block runs.

    Raises:
        TargetError: Dask is not installed.
    """
    if find_spec("distributed") is None:
        raise TargetError(
            "more than one process needs the package distributed, which comes with the extra "
            "simulate: pip install 'gz-trio[simulate]'"
        )
    async with open_line_process("_dask_client") as client, Background("shards") as nursery:
        in_turn = trio.Lock()
        shards = [_RemoteLines(number, client, in_turn) for number in range(len(plans))]
        nursery.start_soon(_deal_out, client, shards)
        await client.send(msgspec.json.encode(Order(scheduler=scheduler, plans=plans)))
        yield [Child(shard) for shard in shards]
