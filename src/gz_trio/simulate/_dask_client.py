"""The process that speaks with Dask: between the run, on Trio, and the workers with their shards.

It is a process, so that the threads, the log and the workers that Dask begins end with it. On its
standard input, as lines of JSON: an `Order`, then `Command`s. The end of the input ends it. On its
standard output: `Heard`, and `Ended` of each shard.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from time import perf_counter_ns
from typing import IO, TypeVar

import dask.config
import msgspec
from distributed import Client, LocalCluster

from ._dask_worker import Hidden, RemoteShard
from ._distributed import Command, Ended, Heard, Order
from ._errors import TargetError
from ._messages import Failed, Message, Plan, Ready

T = TypeVar("T")

CONNECT_SECONDS = 5
BEGIN_SECONDS = 30.0
ANSWER_SECONDS = 10.0
END_SECONDS = 4.0
ROUND_TRIPS = 10
MOST_BYTES = 1 << 30
"""So long may a line be: all keys are in one."""

Tell = Callable[[Heard | Ended], None]


class _Shard:
    """A shard on its worker."""

    def __init__(self, number: int, address: str, tell: Tell) -> None:
        self._number = number
        self._address = address
        self._tell = tell
        self._actor: RemoteShard
        self._offset: int | None = None
        self._in_turn = asyncio.Lock()

    async def run(self, client: Client, plan: Plan) -> None:
        """Begin it, and tell what it says until it ends."""
        try:
            async with asyncio.timeout(BEGIN_SECONDS):
                await self._make_actor(client)
        except TimeoutError:
            self._fail(f"it did not begin a shard within {BEGIN_SECONDS:g} s: is it busy?")
            return
        except Exception as error:  # Whatever it was, it came from elsewhere.
            self._fail(
                f"it cannot begin a shard: {error}; is the same version of gz-trio[simulate] there?"
            )
            return
        try:
            self._tell(Ended(self._number, await self._follow(plan)))
        finally:
            with suppress(Exception):
                async with asyncio.timeout(END_SECONDS):
                    await self._actor.end()

    async def say(self, line: str) -> None:
        """Pass a line on to it. That it has died is told by `run` alone."""
        match line.split():
            case ["start", instant]:
                line = f"start {int(instant) + (self._offset or 0)}"
            case _:
                pass
        async with self._in_turn:
            with suppress(Exception):
                await _answer(self._actor.say(line.encode()))

    async def _make_actor(self, client: Client) -> None:
        # An actor is lost with its worker, never made anew elsewhere. Where Dask does the task
        # again before there was one, it has another token: see `RemoteShard`.
        self._actor = await client.submit(
            RemoteShard,
            actor=True,
            workers=[self._address],
            allow_other_workers=False,
            retries=0,
            pure=False,
        )

    async def _follow(self, plan: Plan) -> str:
        """Start its process, and tell what it says; gives why it has ended."""
        rest = b""
        try:
            token = await _answer(self._actor.token())
            await _answer(self._actor.begin(token, Hidden(msgspec.json.encode(plan))))
            while (data := await _answer(self._actor.hear())) != b"":
                *lines, rest = (rest + (data or b"")).split(b"\n")
                for line in lines:
                    await self._pass_on(line)
            return await _answer(self._actor.end())
        except Exception as error:  # Likewise.
            return (
                f"the Dask worker at {self._address} is gone: {str(error) or type(error).__name__}"
            )

    async def _pass_on(self, line: bytes) -> None:
        """Tell what it says; when it is ready, its clock is compared."""
        if self._offset is None:  # It is the first one.
            message = msgspec.json.decode(line, type=Message)
            if isinstance(message, Ready):
                message.clock_error_ms = await self._compare_clocks()
                line = msgspec.json.encode(message)
        self._tell(Heard(self._number, msgspec.Raw(line)))

    async def _compare_clocks(self) -> float:
        """Measure what its clock is ahead of this one; gives the greatest error, in ms."""
        least = float("inf")
        for _ in range(ROUND_TRIPS):
            sent = perf_counter_ns()
            there = await _answer(self._actor.now())
            took = perf_counter_ns() - sent
            if took < least:
                least, self._offset = took, there - sent - took // 2
        return least / 2e6

    def _fail(self, what: str) -> None:
        """Tell why it cannot begin."""
        self._tell(_failed(self._number, f"the Dask worker at {self._address}: {what}"))


async def _answer(coming: Awaitable[T]) -> T:
    """What the worker says; some failures of Dask's would never be told."""
    async with asyncio.timeout(ANSWER_SECONDS):
        return await coming


def _failed(shard: int, why: str) -> Heard:
    """What a shard's process would have said that cannot begin."""
    return Heard(shard, msgspec.Raw(msgspec.json.encode(Failed(why))))


@asynccontextmanager
async def _open_client(scheduler: str | None, shards: int) -> AsyncGenerator[Client]:
    """A client of the cluster, or of one that lives as long as the block runs.

    Raises:
        TargetError: It cannot be reached, or started.
    """
    async with AsyncExitStack() as stack:
        cluster: LocalCluster | str
        if scheduler is None:
            # The workers' cores are for the load.
            dask.config.set(
                {
                    "distributed.worker.profile.enabled": False,
                    "distributed.admin.tick.interval": "1s",
                    "distributed.admin.system-monitor.interval": "5s",
                }
            )
            try:
                cluster = await stack.enter_async_context(
                    LocalCluster(
                        n_workers=shards,
                        processes=True,
                        threads_per_worker=1,
                        dashboard_address=None,
                        asynchronous=True,
                    )
                )
            except (OSError, RuntimeError) as error:
                raise TargetError(f"the local Dask cluster cannot be started: {error}") from error
        else:
            cluster = scheduler
        try:
            client = Client(cluster, asynchronous=True, timeout=CONNECT_SECONDS)
            await stack.enter_async_context(client)
        # What is wrong with an address, or lacks for TLS, Dask tells by the last two.
        except (OSError, ValueError, TypeError) as error:
            raise TargetError(
                f"the Dask scheduler at {scheduler} cannot be reached: {error}"
            ) from error
        yield client


async def _workers(client: Client, shards: int) -> list[str]:
    """The addresses of so many workers.

    Raises:
        TargetError: There are fewer.
    """
    addresses = sorted(await client.nthreads())
    if len(addresses) < shards:
        raise TargetError(
            f"the Dask cluster has too few worker processes, {len(addresses)}: each takes one "
            f"shard, and {shards} are needed; start more of them, or ask for fewer --processes"
        )
    return addresses[:shards]


async def _run(order: Order, shards: list[_Shard], tell: Tell) -> None:
    """Begin all shards, and tell what they say."""
    count = len(order.plans)
    try:
        async with _open_client(order.scheduler, count) as client:
            addresses = await _workers(client, count)
            shards += [_Shard(number, address, tell) for number, address in enumerate(addresses)]
            async with asyncio.TaskGroup() as tasks:
                for shard, plan in zip(shards, order.plans, strict=True):
                    tasks.create_task(shard.run(client, plan))
    except TargetError as error:
        for number in range(count):
            tell(_failed(number, str(error)))


async def _main(commands: IO[bytes], output: IO[bytes]) -> None:
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader(limit=MOST_BYTES)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), commands)
    writing, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, output)

    def tell(what: Heard | Ended) -> None:
        writing.write(msgspec.json.encode(what) + b"\n")

    order = msgspec.json.decode(await lines.readline(), type=Order)
    shards: list[_Shard] = []
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(_run(order, shards, tell))
        while line := await lines.readline():
            command = msgspec.json.decode(line, type=Command)
            tasks.create_task(shards[command.shard].say(command.line))
        running.cancel()


def main() -> None:
    """Do what the standard input says."""
    output = os.fdopen(os.dup(1), "wb")
    # Whatever prints, Dask's workers among them, prints to the standard error.
    os.dup2(2, 1)
    asyncio.run(_main(os.fdopen(0, "rb"), output))


if __name__ == "__main__":
    main()
