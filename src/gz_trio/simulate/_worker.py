"""The process of one shard: it reads a plan, says when it is ready, begins when told, and tells.

On its standard input: a `Plan` as one line of JSON, then `start` with an instant of its own
`time.perf_counter_ns`, then, if the run is to end early, `stop`. The end of the input ends it,
whatever it does. On its standard output, as lines of JSON, `Ready` and then what it `Told`; or that
it `Failed`.
"""

from __future__ import annotations

import gc
import logging
import os
from math import inf

import msgspec
import trio

from .._open_files import allow_all_files
from ._errors import TargetError
from ._intervals import Interval
from ._messages import Failed, Message, Plan, Ready, Told
from ._process import LineReader
from ._shard import open_shard
from ._workload import Workload

FILES_BESIDES = 64
"""What a process has open besides the connections of its users."""


async def _main() -> None:
    lines = LineReader(trio.lowlevel.FdStream(os.dup(0)))
    line = await lines.next()
    if line is None:
        return
    plan = msgspec.json.decode(line, type=Plan)
    send, receive = trio.open_memory_channel[Message](inf)
    orders_in, orders = trio.open_memory_channel[bytes](inf)
    async with trio.open_nursery() as writing:
        writing.start_soon(_write, receive, writing.cancel_scope)
        async with send, trio.open_nursery() as nursery:
            nursery.start_soon(_listen, lines, orders_in, nursery.cancel_scope)
            try:
                await _run(plan, orders, send)
            except (TargetError, ValueError) as error:
                send.send_nowait(Failed(str(error)))
            nursery.cancel_scope.cancel()


async def _listen(
    lines: LineReader, orders: trio.MemorySendChannel[bytes], everything: trio.CancelScope
) -> None:
    """Pass on what is wanted, until the end, which ends everything."""
    while (line := await lines.next()) is not None:
        orders.send_nowait(line)
    everything.cancel()


async def _run(
    plan: Plan, orders: trio.MemoryReceiveChannel[bytes], send: trio.MemorySendChannel[Message]
) -> None:
    workload = Workload.of(plan.workload)

    def tell(interval: Interval) -> None:
        send.send_nowait(Told(interval))

    users = workload.users
    _allow_files(None if users is None else len(range(plan.number, users, plan.shards)))
    async with open_shard(
        workload, plan.target, tell, number=plan.number, shards=plan.shards
    ) as shard:
        send.send_nowait(Ready())
        _, instant = (await orders.receive()).split()
        # What is there now stays: looking through it for garbage would only make requests late.
        gc.collect()
        gc.freeze()
        # Replies leave no cycles behind, and errors few: hardly ever there is something to find.
        gc.set_threshold(500_000, 10, 10)
        async with trio.open_nursery() as nursery:

            async def obey() -> None:
                async for _ in orders:
                    shard.stop()

            nursery.start_soon(obey)
            await shard.run(int(instant))
            nursery.cancel_scope.cancel()


async def _write(
    messages: trio.MemoryReceiveChannel[Message], everything: trio.CancelScope
) -> None:
    """Write what there is to tell: the load does not wait for whoever reads it."""
    stream = trio.lowlevel.FdStream(os.dup(1))
    try:
        async for message in messages:
            await stream.send_all(msgspec.json.encode(message) + b"\n")
    except trio.BrokenResourceError:
        everything.cancel()  # Nobody reads: whoever began this is gone.


def _allow_files(users: int | None) -> None:
    """Let the process open as many files as the system allows.

    Raises:
        ValueError: They are too few for so many users.
    """
    most = allow_all_files()
    if users is not None and most is not None and users + FILES_BESIDES > most:
        raise ValueError(
            f"{users} users need as many connections, but this process may open {most} files: "
            "raise the limit (ulimit -Hn), or take fewer users, or more --processes"
        )


if __name__ == "__main__":
    # What happens to requests is in their records; logging it too would only cost time.
    logging.getLogger("gz_trio").setLevel(logging.CRITICAL)
    trio.run(_main)
