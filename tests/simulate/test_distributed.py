"""Shards on Dask's workers: one result of them all, and nothing is left, whatever dies."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import msgspec
import pytest
import trio

from gz_trio.simulate import Merge, Result, TargetError, Workload, _dask_worker
from gz_trio.simulate._dask_worker import Hidden, RemoteShard
from gz_trio.simulate._distributed import open_remote_children
from gz_trio.simulate._fake import Fake, FakePlan, open_fake_gateway
from gz_trio.simulate._messages import Plan
from gz_trio.simulate._run import run_in_processes
from gz_trio.simulate._target import Target
from tests.secrets_guard import secret

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are read from /proc")

SHARD = "gz_trio.simulate._worker"
PATIENCE = 60.0


def processes() -> dict[int, tuple[int, str]]:
    """All that run: of each its parent and its command."""
    found: dict[int, tuple[int, str]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            found[int(folder.name)] = int(parent), command
    return found


def below(ancestor: int) -> dict[int, tuple[int, str]]:
    """Those that it began, and those that they did."""
    everything = processes()
    found = {ancestor: (0, "")}
    while more := {
        pid: of for pid, of in everything.items() if of[0] in found and pid not in found
    }:
        found |= more
    del found[ancestor]
    return found


def shards() -> dict[int, int]:
    """The shards' processes, and the Dask worker of each."""
    return {
        pid: parent for pid, (parent, command) in below(os.getpid()).items() if SHARD in command
    }


def dask_workers() -> set[int]:
    return {pid for pid, (_, command) in below(os.getpid()).items() if "spawn_main" in command}


@contextmanager
def cluster() -> Generator[tuple[subprocess.Popen[str], str]]:
    """A Dask cluster of somebody else's, with two workers; gives its process and its address."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.simulate.dask_cluster"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()


@pytest.fixture(scope="module")
def scheduler() -> Generator[str]:
    with cluster() as (_, address):
        yield address


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110  it is another process's
            await trio.sleep(0.02)


@asynccontextmanager
async def nothing_left() -> AsyncGenerator[None]:
    """No process and no thread is there after the block that was not there before it."""
    before, threads = set(below(os.getpid())), set(threading.enumerate())
    seen: set[int] = set()

    async def look() -> None:
        while True:
            seen.update(below(os.getpid()))
            await trio.sleep(0.02)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        yield
        nursery.cancel_scope.cancel()
    # Trio keeps threads for a while that have nothing to do.
    left = {thread.name for thread in set(threading.enumerate()) - threads}
    assert {name for name in left if not name.startswith("Trio thread")} == set()
    assert seen - before
    # Where closing takes too long the client is killed, and what it began ends by itself.
    await until(lambda: not (seen - before) & set(processes()))


@asynccontextmanager
async def fake_target(groups: int) -> AsyncGenerator[tuple[Target, Fake]]:
    async with open_fake_gateway(FakePlan(groups=groups, token_interval=0.01)) as fake:
        tokens = tuple(fake.token(group) for group in range(groups))
        yield Target(base_url=fake.base_url, tokens=tokens, fake=True), fake


def plans(workload: Workload, target: Target, count: int) -> list[Plan]:
    return [
        Plan(workload=workload.settings, target=target, number=number, shards=count)
        for number in range(count)
    ]


async def run(
    workload: Workload,
    target: Target,
    *,
    scheduler: str | None = None,
    stop: trio.Event | None = None,
    on_second: Callable[[Merge], object] = lambda _: None,
) -> Result:
    with trio.fail_after(PATIENCE):
        return await run_in_processes(
            workload,
            target,
            processes=2,
            scheduler=scheduler,
            stop=trio.Event() if stop is None else stop,
            on_second=on_second,
            on_records=lambda _: None,
        )


async def test_two_shards_give_one_result_which_is_what_the_gateway_saw() -> None:
    # A spread that is given is not tried out by a request that does not count.
    workload = Workload(users=4, requests=20, turns=2, output_tokens=7, spread="50ms")
    async with nothing_left(), fake_target(2) as (target, fake):
        result = await run(workload, target)
        seen = await fake.counts()
    assert (result.shards, result.lost_shards) == (2, [])
    assert result.ok == seen.requests == 20
    assert result.tokens == seen.tokens == 140
    assert (result.lost, result.doubled) == (0, 0)
    assert result.clock_error_ms > 0


async def test_of_a_worker_that_is_killed_the_shard_is_lost_and_never_started_again() -> None:
    workload = Workload(users=4, duration="60s", output_tokens=7, spread="50ms")
    stop = trio.Event()
    seconds = 0

    def on_second(merge: Merge) -> None:
        nonlocal seconds
        seconds += merge.counts["ok"] > 0

    async def kill_a_worker() -> None:
        await until(lambda: seconds)
        both = shards()
        killed, survivor = sorted(both)
        workers = dask_workers()
        os.kill(both[killed], signal.SIGKILL)
        # Dask soon has another worker in its place.
        await until(lambda: len(dask_workers() - {both[killed]}) == len(workers))
        before = seconds
        await until(lambda: seconds > before + 2)
        assert set(shards()) == {survivor}
        stop.set()

    async with nothing_left(), fake_target(2) as (target, fake), trio.open_nursery() as nursery:
        nursery.start_soon(kill_a_worker)
        result = await run(workload, target, stop=stop, on_second=on_second)
        seen = await fake.counts()
    (lost,) = result.lost_shards
    assert re.fullmatch(r"shard [01]: it has died: the Dask worker at tcp://.+ is gone: .+", lost)
    assert 0 < result.ok < seen.requests


async def test_of_a_shard_whose_process_dies_the_last_words_are_told() -> None:
    workload = Workload(users=2, duration="60s", output_tokens=7, spread="50ms")
    async with (
        nothing_left(),
        fake_target(2) as (target, _),
        open_remote_children(plans(workload, target, 1), None) as (child,),
    ):
        with trio.fail_after(PATIENCE):
            await child.ready()
            (pid,) = shards()
            os.kill(pid, signal.SIGKILL)
            assert await child.interval() is None
        assert await child.last_words() == "its exit code is -9"


async def test_cancelled_while_the_cluster_starts_nothing_is_left() -> None:
    async with nothing_left(), fake_target(2) as (target, _), trio.open_nursery() as nursery:
        nursery.start_soon(run, Workload(users=2), target)
        await until(dask_workers)
        nursery.cancel_scope.cancel()


async def test_cancelled_while_the_load_goes_on_nothing_is_left() -> None:
    told = trio.Event()

    async def load(target: Target) -> None:
        workload = Workload(users=2, duration="60s", spread="50ms")
        await run(workload, target, on_second=lambda _: told.set())

    async with nothing_left(), fake_target(2) as (target, _), trio.open_nursery() as nursery:
        nursery.start_soon(load, target)
        await told.wait()
        nursery.cancel_scope.cancel()


class TestAClusterThatIsThere:
    async def test_it_does_the_load_and_lives_on(self, scheduler: str) -> None:
        workload = Workload(users=4, requests=10, output_tokens=7, spread="50ms")
        workers = dask_workers()
        async with fake_target(2) as (target, fake):
            result = await run(workload, target, scheduler=scheduler)
            assert result.ok == (await fake.counts()).requests == 10
        assert shards() == {}
        assert dask_workers() == workers

    async def test_with_too_few_workers_it_is_told_how_many_are_needed(
        self, scheduler: str
    ) -> None:
        target = Target(base_url="http://127.0.0.1:9", keys=(secret("key"),))
        three = plans(Workload(users=3), target, 3)
        async with open_remote_children(three, scheduler) as children:
            for child in children:
                with pytest.raises(
                    TargetError, match=r"too few worker processes, 2: .* 3 are needed"
                ):
                    await child.ready()

    async def test_when_its_scheduler_dies_all_shards_are_lost_and_end(self) -> None:
        workload = Workload(users=4, duration="60s", output_tokens=7, spread="50ms")
        began: set[int] = set()
        with cluster() as (process, scheduler):

            def kill_it(_: Merge) -> None:
                began.update(shards())
                process.kill()

            async with fake_target(2) as (target, _):
                result = await run(workload, target, scheduler=scheduler, on_second=kill_it)
            assert len(result.lost_shards) == len(began) == 2
            await until(lambda: not began & set(processes()))


async def test_a_scheduler_that_is_not_there_is_named() -> None:
    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        scheduler = f"tcp://127.0.0.1:{nobody_listens.getsockname()[1]}"
        target = Target(base_url="http://127.0.0.1:9", keys=(secret("key"),))
        with pytest.raises(
            TargetError, match=f"the Dask scheduler at {scheduler} cannot be reached"
        ):
            await run(Workload(users=2, requests=2), target, scheduler=scheduler)


async def end(shard: RemoteShard) -> str:
    """End it, and hear it out, so that nothing of it is left on the loop."""
    words = await shard.end()
    while await shard.hear() != b"":
        pass
    return words


class TestOnTheWorker:
    """What Dask has there; on a loop as that of a Dask worker."""

    def test_a_shard_is_begun_once(self) -> None:
        async def check() -> None:
            shard = RemoteShard()
            token = await shard.token()
            await shard.begin(token, Hidden(b""))
            with pytest.raises(RuntimeError, match="not started twice"):
                await shard.begin(token, Hidden(b""))
            await end(shard)
            with pytest.raises(RuntimeError, match="not started twice"):
                await shard.begin(token, Hidden(b""))

        asyncio.run(check())

    def test_one_that_dask_has_made_again_does_not_begin(self) -> None:
        async def check() -> None:
            token = await RemoteShard().token()
            with pytest.raises(RuntimeError, match="not started twice"):
                await RemoteShard().begin(token, Hidden(b""))

        asyncio.run(check())

    def test_it_ends_when_nobody_has_listened_for_a_while(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_dask_worker, "FORGOTTEN_SECONDS", 0.1)

        async def check(target: Target) -> None:
            (plan,) = plans(Workload(users=1), target, 1)
            shard = RemoteShard()
            await shard.begin(await shard.token(), Hidden(msgspec.json.encode(plan)))
            assert len(shards()) == 1
            async with asyncio.timeout(PATIENCE):
                while shards():  # noqa: ASYNC110  it is another process's
                    await asyncio.sleep(0.02)
            assert await end(shard) == "its exit code is -9"

        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            asyncio.run(check(Target(base_url=f"http://127.0.0.1:{port}", keys=("key",))))

    def test_the_plan_is_not_shown(self) -> None:
        assert secret("key") not in f"{Hidden(secret('key').encode())!r}"
