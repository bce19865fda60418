"""What tests of the simulator share: a load in this process, and all that came of it."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter_ns

import trio

from gz_trio.simulate import Merge, RequestRecord, Result, Workload
from gz_trio.simulate._intervals import Interval
from gz_trio.simulate._shard import Shard, open_shard
from gz_trio.simulate._target import Target
from gz_trio.testing import FakeGateway
from tests.test_leftovers import nothing_left_behind

PATIENCE = 30.0
HEADSTART_NS = 20_000_000


@dataclass
class Load:
    """What came of a load."""

    workload: Workload
    shards: int
    intervals: list[Interval] = field(default_factory=list[Interval])

    @property
    def records(self) -> list[RequestRecord]:
        """All requests, in the order in which they were intended."""
        records = [record for interval in self.intervals for record in interval.records]
        return sorted(records, key=lambda record: (record.intended, record.session))

    def outcomes(self) -> list[str]:
        return [record.outcome for record in self.records]

    def result(self) -> Result:
        merge = Merge(self.workload, "a test's", 0.0, self.shards)
        for interval in self.intervals:
            merge.take(interval)
        return merge.result()


async def _nothing(_load: Load, _shards: list[Shard]) -> None:
    await trio.lowlevel.checkpoint()


async def do(
    workload: Workload,
    target: Target,
    *,
    shards: int = 1,
    meanwhile: Callable[[Load, list[Shard]], Awaitable[object]] = _nothing,
) -> Load:
    """Do a load with so many shards in this process.

    Args:
        workload: What.
        target: To which gateway.
        shards: How many.
        meanwhile: Done while it goes on, with what has come of it, and with the shards.
    """
    load = Load(workload, shards)
    with trio.fail_after(PATIENCE):
        async with AsyncExitStack() as stack:
            opened = [
                await stack.enter_async_context(
                    open_shard(
                        workload, target, load.intervals.append, number=number, shards=shards
                    )
                )
                for number in range(shards)
            ]
            began = perf_counter_ns() + HEADSTART_NS
            async with trio.open_nursery() as nursery:
                nursery.start_soon(meanwhile, load, opened)
                for shard in opened:
                    nursery.start_soon(shard.run, began)
    return load


@asynccontextmanager
async def listening(gateway: FakeGateway) -> AsyncGenerator[Target]:
    """A gateway of the test's own as the target, with its key."""
    async with gateway.listen() as base_url:
        yield Target(base_url=base_url, keys=(gateway.key,))


def bodies(gateway: FakeGateway) -> list[dict[str, object]]:
    """What it was asked, in order."""
    return [seen.body for seen in gateway.requests if seen.body is not None]


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110 - a gateway tells nobody
            await trio.sleep(0.005)


@contextmanager
def closed_port() -> Generator[int]:
    """A port of this machine on which nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def children() -> set[int]:
    """The processes that this one has started and that are still there."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        found.update(map(int, (task / "children").read_text().split()))
    return found


@contextmanager
def nothing_left() -> Generator[None]:
    """No process, no descriptor, nothing to close for the garbage collector."""
    before = children()
    with nothing_left_behind():
        yield
    assert children() == before
