"""A run from its start to its result: the target, the shard, and what comes of it."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from time import perf_counter_ns
from typing import TypeVar

import trio

from .._background import Background
from ._child import Child, open_child
from ._errors import TargetError
from ._fake import Fake, FakePlan, open_fake_gateway
from ._intervals import Interval
from ._merging import Merge
from ._messages import Plan
from ._records import RequestRecord
from ._result import Result
from ._shard import groups_of, open_shard
from ._target import Target
from ._workload import Workload

T = TypeVar("T")

HEADSTART_NS = 200_000_000
"""Between the order to begin and the beginning: all have read it by then."""

SILENCE_SECONDS = 5.0
"""A shard that tells nothing for so long is lost."""

FAKE = "fake gateway"


@asynccontextmanager
async def open_target(
    workload: Workload, target: Target | None, shards: int
) -> AsyncGenerator[tuple[Target, Fake | None]]:
    """Where requests go: what is given, or else a fake gateway, for as long as the block runs."""
    if target is not None:
        yield target, None
        return
    groups = groups_of(workload, shards) * shards
    first_token, token_interval, auth_latency = workload.fake_seconds
    lifetime = workload.key_lifetime
    plan = FakePlan(
        groups=groups,
        first_token=first_token,
        token_interval=token_interval,
        auth_latency=auth_latency,
        on_rotation=workload.fake_on_rotation,
        faults=workload.fake_faults,
        rotations=tuple(workload.rotation_seconds),
        lifetime=None if lifetime is None else str(lifetime),
        seed=workload.seed,
    )
    async with open_fake_gateway(plan) as fake:
        tokens = tuple(fake.token(group) for group in range(groups))
        yield Target(base_url=fake.base_url, tokens=tokens, fake=True), fake


async def run(
    workload: Workload,
    *,
    key: str | None = None,
    identity_token: str | None = None,
    on_second: Callable[[Merge], object] | None = None,
) -> Result:
    """Do a workload to a gateway, in this process, and give what came out.

    For programs and tests; `gz-trio simulate` does it in processes of their own, which do nothing
    else. What else this process does makes requests late, which `Result.client_bound` tells.

    Args:
        workload: What to do. Without a `base_url` a fake gateway is started.
        key: The key of the gateway; not for the fake one.
        identity_token: In its place, what `POST /auth` gives keys for.
        on_second: Called once a second with the run as far as it has come.

    Returns:
        The result. Cancelled, there is none.

    Raises:
        ValueError: The workload's prompts cannot be used, or a key lacks.
        TargetError: The gateway cannot be used: the first request to it failed.

    >>> async def main() -> None:
    ...     workload = Workload(users=2, requests=4, output_tokens=5, fake_token_interval="1ms")
    ...     result = await run(workload)
    ...     print(result.ok, result.lost, result.doubled, result.good_fraction > 0.99)
    >>> trio.run(main)
    4 0 0 True
    """
    target = None
    if workload.base_url is not None:
        target = target_of(workload.base_url, key=key, identity_token=identity_token)
    async with open_target(workload, target, 1) as (where, fake):
        merge: list[Merge] = []

        def on_interval(interval: Interval) -> None:
            merge[0].take(interval)
            if on_second is not None:
                on_second(merge[0])

        async with open_shard(workload, where, on_interval) as shard:
            began = perf_counter_ns() + HEADSTART_NS
            merge.append(Merge(workload, workload.base_url or FAKE, time.time(), 1))
            if fake is not None:
                await fake.begin(began)
            await shard.run(began)
        return merge[0].result(rotations=await _rotations(workload, fake))


def target_of(
    base_url: str, *, key: str | None = None, identity_token: str | None = None
) -> Target:
    """A gateway and what it wants for a key.

    Raises:
        ValueError: There is neither a key nor an identity token, or there are both.
    """
    return Target(
        base_url=base_url,
        keys=() if key is None else (key,),
        tokens=() if identity_token is None else (identity_token,),
    )


async def run_in_processes(
    workload: Workload,
    target: Target | None,
    *,
    processes: int,
    scheduler: str | None,
    stop: trio.Event,
    on_second: Callable[[Merge], object],
    on_records: Callable[[Sequence[RequestRecord]], object],
) -> Result:
    """Do a workload in processes that do nothing else, and give what came out.

    Args:
        workload: What to do.
        target: To which gateway; `None`: a fake one, which is started.
        processes: How many.
        scheduler: The address of a Dask scheduler, whose workers start them; by default, where
            there is more than one, workers on this machine.
        stop: Ends the run before its time, when it is set.
        on_second: Called whenever a process has told of a second.
        on_records: Called with the requests that were over in it.

    Raises:
        TargetError: The gateway cannot be used, or a process cannot be started.
    """
    async with AsyncExitStack() as stack:
        where, fake = await stack.enter_async_context(open_target(workload, target, processes))
        plans = [
            Plan(workload=workload.settings, target=where, number=number, shards=processes)
            for number in range(processes)
        ]
        shards: Sequence[Child]
        if processes == 1 and scheduler is None:
            shards = [await stack.enter_async_context(open_child(plans[0]))]
        else:
            # It needs Dask, which only those have to install who use it.
            from ._distributed import open_remote_children  # noqa: PLC0415

            shards = await stack.enter_async_context(open_remote_children(plans, scheduler))
        await _all(shards, lambda shard: shard.ready())
        began = perf_counter_ns() + HEADSTART_NS
        merge = Merge(workload, workload.base_url or FAKE, time.time(), processes)
        if fake is not None:
            await fake.begin(began)
        await _all(shards, lambda shard: shard.start(began))

        async def read(number: int, shard: Child) -> None:
            while True:
                with trio.move_on_after(SILENCE_SECONDS) as patience:
                    interval = await shard.interval()
                    if interval is None:
                        merge.lose(number, f"it has died: {await shard.last_words()}")
                        return
                    on_records(interval.records)
                    merge.take(interval)
                    on_second(merge)
                    if interval.last:
                        return
                if patience.cancelled_caught:
                    merge.lose(number, f"it told nothing for {SILENCE_SECONDS:g} s")
                    return

        async def stop_all() -> None:
            await stop.wait()
            for shard in shards:
                await shard.stop()

        async with Background("run") as nursery:
            nursery.start_soon(stop_all)
            await _all(list(enumerate(shards)), lambda numbered: read(*numbered))
        result = merge.result(rotations=await _rotations(workload, fake))
        result.clock_error_ms = max(shard.clock_error_ms for shard in shards)
        return result


async def _all(items: Sequence[T], do: Callable[[T], Awaitable[object]]) -> None:
    """Do it to all at once; of failures the first one comes out, as itself."""

    async def one(item: T) -> None:
        await do(item)

    try:
        async with trio.open_nursery() as nursery:
            for item in items:
                nursery.start_soon(one, item)
    except* TargetError as group:
        raise _first_of(group) from None


def _first_of(group: BaseExceptionGroup[TargetError]) -> TargetError:
    """Any of them: one says as much as all."""
    error = group.exceptions[0]
    return _first_of(error) if isinstance(error, BaseExceptionGroup) else error


async def _rotations(workload: Workload, fake: Fake | None) -> list[float]:
    """When keys were replaced, in seconds from the start of the load."""
    if fake is None:
        return workload.rotation_seconds
    try:
        return [when for when, _ in (await fake.counts()).rotations]
    except TargetError:  # It has died, which every request after that tells.
        return workload.rotation_seconds
