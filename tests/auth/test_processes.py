"""One key file, several processes: one writes at a time, one refreshes, all see what one does."""

from __future__ import annotations

import errno
import math
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from gz_trio import FileKeyStore, Key, KeyStoreError, Record

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")

RETRY = "gz_trio._auth.stores._lease.RETRY_SECONDS"
WATCHED_RETRY = "gz_trio._auth.stores._lease.WATCHED_RETRY_SECONDS"

pidfd = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="process descriptors are Linux's")


class Child:
    """A process of `tests.auth.child`."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self._output = b""

    async def line(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        while b"\n" not in self._output:
            more = await self.process.stdout.receive_some()
            assert more, "the child has ended"
            self._output += more
        line, _, self._output = self._output.partition(b"\n")
        return line.decode()

    async def go_on(self) -> None:
        """Let it do what comes next."""
        assert self.process.stdin is not None
        await self.process.stdin.send_all(b"\n")


@asynccontextmanager
async def child(*arguments: object) -> AsyncGenerator[Child]:
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "tests.auth.child", *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    try:
        with trio.fail_after(60):
            yield Child(process)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            await trio.aclose_forcefully(pipe)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def never_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for a lease is told when to try, or waits for ever."""
    monkeypatch.setattr(RETRY, math.inf)
    monkeypatch.setattr(WATCHED_RETRY, math.inf)


async def free_at_once(store: FileKeyStore) -> bool:
    with trio.move_on_after(0.2) as scope:
        async with store.lease():
            pass
    return not scope.cancelled_caught


async def test_the_lease_is_held_by_one_process_at_a_time(path: Path) -> None:
    async with child("hold", path) as holder:
        assert await holder.line() == "held"
        assert not await free_at_once(FileKeyStore(path))
        assert await free_at_once(FileKeyStore(path, profile="work")), "each profile has its own"
        await holder.go_on()
        assert await holder.line() == "released"
        assert await free_at_once(FileKeyStore(path))


@pytest.mark.usefixtures("never_again", "source")
async def test_whoever_waits_is_told_when_the_lease_is_given_back(path: Path) -> None:
    async with child("hold", path) as holder, trio.open_nursery() as nursery:
        assert await holder.line() == "held"

        async def take_it() -> None:
            async with FileKeyStore(path).lease():
                pass

        nursery.start_soon(take_it)
        await trio.testing.wait_all_tasks_blocked(0.1)
        await holder.go_on()


@pidfd
@pytest.mark.usefixtures("never_again")
async def test_the_lease_of_a_process_that_is_killed_is_free_at_once(path: Path) -> None:
    async with child("hold", path) as holder, trio.open_nursery() as nursery:
        assert await holder.line() == "held"

        async def take_it() -> None:
            async with FileKeyStore(path).lease():
                pass

        nursery.start_soon(take_it)
        await trio.testing.wait_all_tasks_blocked(0.1)
        holder.process.send_signal(signal.SIGKILL)


@pytest.mark.parametrize("signed", [b"", b"1\n", b"\xff", b"1 another-system\n", b"x y\n"])
async def test_where_nothing_tells_of_the_holders_end_a_waiter_tries_again(
    path: Path, signed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RETRY, 0.05)
    monkeypatch.setattr(WATCHED_RETRY, math.inf)
    async with child("hold", path) as holder, trio.open_nursery() as nursery:
        assert await holder.line() == "held"
        path.with_name(".keys.json.default.lease").write_bytes(signed)

        async def take_it() -> None:
            async with FileKeyStore(path).lease():
                pass

        nursery.start_soon(take_it)
        await trio.testing.wait_all_tasks_blocked()
        holder.process.send_signal(signal.SIGKILL)


async def test_where_the_system_watches_no_process_a_waiter_tries_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on macOS and Windows."""
    monkeypatch.delattr("os.pidfd_open", raising=False)
    monkeypatch.setattr(RETRY, 0.05)
    async with child("hold", path) as holder, trio.open_nursery() as nursery:
        assert await holder.line() == "held"

        async def take_it() -> None:
            async with FileKeyStore(path).lease():
                pass

        nursery.start_soon(take_it)
        await trio.testing.wait_all_tasks_blocked()
        holder.process.send_signal(signal.SIGKILL)


async def test_where_there_are_no_locks_each_process_goes_on_and_the_log_says_so(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """NFS without its lock service; filelock's own way out, marker files, outlives a process."""

    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    store = FileKeyStore(path)
    async with store.lease():
        assert await store.replace(0, Record(key=Key("sk-1")))
    assert caplog.text.count("without locks") == 1
    assert str(path) in caplog.text


async def test_a_process_that_was_stopped_keeps_the_lease(path: Path) -> None:
    """It may go on in the middle of its refresh; whoever waits has his 30 seconds."""
    async with child("hold", path) as holder:
        assert await holder.line() == "held"
        holder.process.send_signal(signal.SIGSTOP)
        assert not await free_at_once(FileKeyStore(path))
        holder.process.send_signal(signal.SIGCONT)


async def test_a_child_that_was_forked_does_not_keep_the_lease_of_its_parent(path: Path) -> None:
    store = FileKeyStore(path)
    async with store.lease():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Trio has threads.
            forked = os.fork()
        if forked == 0:
            time.sleep(30)  # noqa: ASYNC251 - the child's
            os._exit(0)
    try:
        async with child("hold", path) as other:
            assert await other.line() == "held"
    finally:
        os.kill(forked, signal.SIGKILL)
        os.waitpid(forked, 0)  # noqa: ASYNC222 - it was killed


async def test_of_writers_in_several_processes_none_loses_a_write(path: Path) -> None:
    async with trio.open_nursery() as nursery:

        async def count() -> None:
            async with child("count", path, 25) as counter:
                assert await counter.process.wait() == 0

        for _ in range(4):
            nursery.start_soon(count)
    record = await FileKeyStore(path).load()
    assert record.version == 100
    assert record.key is not None
    assert record.key.value == "100"


async def test_a_write_waits_for_another_process_and_not_for_ever(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gz_trio._auth.stores.file.LOCK_SECONDS", 0.05)
    async with child("lock", path) as holder:
        assert await holder.line() == "held"
        with pytest.raises(KeyStoreError, match="another process has been writing to it"):
            await FileKeyStore(path).replace(0, Record(key=Key("sk-1")))
    assert await FileKeyStore(path).replace(0, Record(key=Key("sk-1")))


async def test_a_sign_in_in_one_process_is_seen_in_another(path: Path) -> None:
    store = FileKeyStore(path)
    async with child("follow", path) as follower:
        assert await follower.line() == "none"
        for version in range(3):
            assert await store.replace(version, Record(epoch=version, key=Key(f"sk-{version}")))
            assert await follower.line() == f"sk-{version}"


async def test_a_change_is_seen_in_a_folder_that_did_not_exist(tmp_path: Path) -> None:
    path = tmp_path / "not" / "yet" / "keys.json"
    async with child("follow", path) as follower:
        assert await follower.line() == "none"
        assert not (tmp_path / "not").exists(), "reading makes no folders"
        assert await FileKeyStore(path).replace(0, Record(key=Key("sk-1")))
        assert await follower.line() == "sk-1"
        assert await FileKeyStore(path).replace(1, Record(key=Key("sk-2")))
        assert await follower.line() == "sk-2"
