"""A shard in a process of its own: it is told what to do, tells what it did, and never stays."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from time import perf_counter_ns

import msgspec
import pytest
import trio

from gz_trio.simulate import Merge, RequestRecord, Result, TargetError, Workload, _process
from gz_trio.simulate._child import Child, open_child
from gz_trio.simulate._messages import Plan
from gz_trio.simulate._process import LineProcess, open_line_process
from gz_trio.simulate._run import run_in_processes
from gz_trio.simulate._target import Target
from gz_trio.testing import FakeGateway, Stall
from tests.secrets_guard import secret
from tests.simulate.loads import PATIENCE, children, closed_port, listening, nothing_left, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are read from /proc")

ENDLESS = Workload(users=3, think_time="5ms", output_tokens=5, spread=0)


def plan_of(workload: Workload, target: Target) -> Plan:
    return Plan(workload=workload.settings, target=target, number=0, shards=1)


@asynccontextmanager
async def under_load(gateway: FakeGateway) -> AsyncGenerator[Child]:
    """A shard that has told of its first second."""
    async with listening(gateway) as target, open_child(plan_of(ENDLESS, target)) as child:
        await child.ready()
        await child.start(perf_counter_ns())
        assert await child.interval() is not None
        yield child


async def run(
    workload: Workload,
    target: Target | None,
    *,
    stop: trio.Event | None = None,
    on_second: Callable[[Merge], object] = lambda _: None,
) -> tuple[Result, list[RequestRecord]]:
    records: list[RequestRecord] = []
    with trio.fail_after(PATIENCE):
        result = await run_in_processes(
            workload,
            target,
            processes=1,
            scheduler=None,
            stop=trio.Event() if stop is None else stop,
            on_second=on_second,
            on_records=records.extend,
        )
    return result, records


class TestARun:
    async def test_what_it_tells_is_what_the_gateway_saw(self) -> None:
        gateway = FakeGateway()
        with nothing_left():
            async with listening(gateway) as target:
                workload = Workload(users=3, requests=20, turns=2, output_tokens=5, spread=0)
                result, records = await run(workload, target)
        assert result.ok == len(records) == len(gateway.requests) == 20
        assert result.tokens == sum(seen.tokens for seen in gateway.requests)
        assert (result.shards, result.lost_shards, result.interrupted) == (1, [], False)
        assert (result.clock_error_ms, result.client_bound) == (0, result.client_bound)

    async def test_against_the_fake_gateway_it_is_known_what_was_lost(self) -> None:
        workload = Workload(users=2, requests=6, output_tokens=5, fake_token_interval="1ms")
        with nothing_left():
            result, _ = await run(workload, None)
        assert (result.ok, result.target, result.lost, result.doubled) == (6, "fake gateway", 0, 0)

    async def test_it_is_stopped_when_that_is_wanted(self) -> None:
        gateway = FakeGateway()
        gateway.fault(Stall(), token=2, times=None)
        stop = trio.Event()
        with nothing_left():
            async with listening(gateway) as target, trio.open_nursery() as nursery:

                async def stop_in_the_middle() -> None:
                    await until(lambda: gateway.open_streams == 3)
                    stop.set()

                nursery.start_soon(stop_in_the_middle)
                result, records = await run(ENDLESS, target, stop=stop)
        assert (result.interrupted, result.unfinished) == (True, 3)
        assert [record.outcome for record in records] == ["unfinished"] * 3

    async def test_cancelled_it_leaves_nothing(self) -> None:
        gateway = FakeGateway()
        with nothing_left():
            async with listening(gateway) as target, trio.open_nursery() as nursery:

                def cancel(_: Merge) -> None:
                    nursery.cancel_scope.cancel()

                nursery.start_soon(partial(run, ENDLESS, target, on_second=cancel))
        assert gateway.open_streams == 0

    async def test_a_worker_that_dies_is_told_with_what_it_had_told_before(self) -> None:
        gateway = FakeGateway()

        def kill(_: Merge) -> None:
            for pid in children():
                os.kill(pid, signal.SIGKILL)

        with nothing_left():
            async with listening(gateway) as target:
                result, records = await run(ENDLESS, target, on_second=kill)
        assert result.lost_shards == ["shard 0: it has died: its exit code is -9"]
        assert 0 < result.ok == sum(record.outcome == "ok" for record in records)

    async def test_a_worker_that_falls_silent_is_given_up(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gz_trio.simulate._run.SILENCE_SECONDS", 1.5)
        monkeypatch.setattr(_process, "END_SECONDS", 0.1)
        gateway = FakeGateway()

        def freeze(_: Merge) -> None:
            for pid in children():
                os.kill(pid, signal.SIGSTOP)

        with nothing_left():
            async with listening(gateway) as target:
                result, _ = await run(ENDLESS, target, on_second=freeze)
        assert result.lost_shards == ["shard 0: it told nothing for 1.5 s"]
        assert result.ok > 0


class TestTheEnd:
    """The end of its input ends it, whatever it does."""

    async def said(self, lines: LineProcess, plan: Plan) -> None:
        await lines.send(msgspec.json.encode(plan))
        assert await lines.line() == b'{"type":"ready","clock_error_ms":0.0}'

    async def test_before_it_has_a_plan(self) -> None:
        async with open_line_process("_worker") as lines:
            pass
        assert lines.process.returncode == 0

    async def test_before_it_is_told_to_begin(self) -> None:
        async with listening(FakeGateway()) as target, open_line_process("_worker") as lines:
            await self.said(lines, plan_of(ENDLESS, target))
        assert lines.process.returncode == 0

    @pytest.mark.parametrize("stalls", [False, True])
    async def test_in_the_middle_of_a_load(self, stalls: bool) -> None:
        gateway = FakeGateway()
        if stalls:
            gateway.fault(Stall(), token=2, times=None)
        async with listening(gateway) as target:
            async with open_line_process("_worker") as lines:
                await self.said(lines, plan_of(ENDLESS, target))
                await lines.send(b"start %d" % perf_counter_ns())
                await until(lambda: len(gateway.requests) >= 3)
            assert lines.process.returncode == 0
            await until(lambda: not gateway.open_streams)

    async def test_while_it_tries_out_its_target(self) -> None:
        gateway = FakeGateway()
        gateway.fault(Stall(), token=0)
        async with listening(gateway) as target:
            async with open_line_process("_worker") as lines:
                await lines.send(msgspec.json.encode(plan_of(Workload(users=1), target)))
                await until(lambda: gateway.requests)
            assert lines.process.returncode == 0

    async def test_at_the_end_of_its_load_it_ends_by_itself_without_a_word(self) -> None:
        workload = Workload(users=1, requests=2, output_tokens=5, spread=0)
        async with listening(FakeGateway()) as target, open_line_process("_worker") as lines:
            await self.said(lines, plan_of(workload, target))
            await lines.send(b"start %d" % perf_counter_ns())
            while await lines.line() is not None:
                pass
            assert await lines.last_words() == "its exit code is 0"


class TestWhatCannotBe:
    async def ready(self, plan: Plan) -> None:
        with trio.fail_after(PATIENCE):
            async with open_child(plan) as child:
                await child.ready()

    async def test_a_workload_that_is_none(self) -> None:
        target = Target(base_url="http://127.0.0.1:9", keys=(secret("key"),))
        plan = Plan(workload={"users": 0}, target=target, number=0, shards=1)
        with pytest.raises(TargetError, match=r"^users is 0, but must be at least 1$"):
            await self.ready(plan)

    async def test_a_target_that_is_down(self) -> None:
        with closed_port() as port:
            base_url = f"http://127.0.0.1:{port}/v1"
            target = Target(base_url=base_url, tokens=(secret("token"),))
            with nothing_left(), pytest.raises(TargetError, match=r"^signing in failed: no conn"):
                await run(Workload(users=1), target)

    async def test_prompts_that_are_not_there(self) -> None:
        target = Target(base_url="http://127.0.0.1:9", keys=(secret("key"),))
        with pytest.raises(TargetError, match=r"^nowhere cannot be read: No such file"):
            await self.ready(plan_of(Workload(users=1, prompts="nowhere"), target))

    async def test_more_users_than_files(self) -> None:
        import resource  # there is none on Windows

        async with listening(FakeGateway()) as target, open_line_process("_worker") as lines:
            resource.prlimit(lines.process.pid, resource.RLIMIT_NOFILE, (128, 128))
            await lines.send(msgspec.json.encode(plan_of(Workload(users=1000), target)))
            complaint = "1000 users need as many connections, but this process may open 128 files"
            with pytest.raises(TargetError, match=f"^{complaint}: raise the limit"):
                await Child(lines).ready()

    async def test_a_plan_that_is_none_is_told_in_its_last_words(self) -> None:
        async with open_line_process("_worker") as lines:
            await lines.send(b'{"target": {}}')
            complaint = r"(?s)^the process of a shard has died: its exit code is 1\n.*Validation"
            with pytest.raises(TargetError, match=complaint):
                await Child(lines).ready()

    async def test_python_that_cannot_be_started(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "executable", "/nowhere/python")
        target = Target(base_url="http://127.0.0.1:9", keys=(secret("key"),))
        with pytest.raises(TargetError, match=r"cannot be started: No such file"):
            await self.ready(plan_of(ENDLESS, target))


async def test_its_keys_are_not_to_be_seen_and_ctrl_c_is_not_for_it() -> None:
    gateway = FakeGateway(key=secret("key"))
    async with under_load(gateway):
        (pid,) = children()
        process = trio.Path(f"/proc/{pid}")
        command = await (process / "cmdline").read_bytes()
        environment = await (process / "environ").read_bytes()
        assert os.getpgid(pid) == pid != os.getpgid(0)
    assert b"_worker" in command
    assert secret("key").encode() not in command + environment


async def test_its_plan_does_not_show_its_keys() -> None:
    target = Target(base_url="http://x", keys=(secret("key"),), tokens=())
    assert secret("key") not in repr(plan_of(ENDLESS, target))
