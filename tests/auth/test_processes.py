"""One key store, several processes: one writes at a time, one refreshes, all see what one does."""

from __future__ import annotations

import errno
import math
import os
import random
import signal
import time
import warnings
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import trio
import trio.testing

from gz_trio import (
    AuthenticationError,
    Authenticator,
    FileKeyStore,
    Key,
    KeyStoreError,
    Record,
    RefreshError,
    open_authenticator,
)
from gz_trio._auth.stores import redis
from tests.auth.child import shorten_leases
from tests.children import Child, open_child, store_at

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")

RETRY = "gz_trio._auth.stores._lease.RETRY_SECONDS"
WATCHED_RETRY = "gz_trio._auth.stores._lease.WATCHED_RETRY_SECONDS"

pidfd = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="process descriptors are Linux's")


def child(*arguments: object) -> AbstractAsyncContextManager[Child]:
    """A process of `tests.auth.child`."""
    return open_child("tests.auth.child", *arguments)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def never_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for a lease is told when to try, or waits for ever."""
    monkeypatch.setattr(RETRY, math.inf)
    monkeypatch.setattr(WATCHED_RETRY, math.inf)


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """In Redis, where nobody is told that its holder has died. There and in the other processes."""
    for name in ("LEASE_SECONDS", "RENEW_SECONDS", "LEFT_SECONDS"):
        monkeypatch.setattr(redis, name, getattr(redis, name))
    shorten_leases()
    monkeypatch.setenv("SHORT_LEASE", "")


async def take_the_lease(path: Path) -> None:
    async with FileKeyStore(path).lease():
        pass


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
        nursery.start_soon(take_the_lease, path)
        await trio.testing.wait_all_tasks_blocked(0.1)
        await holder.go_on()


@pidfd
@pytest.mark.usefixtures("never_again")
async def test_the_lease_of_a_process_that_is_killed_is_free_at_once(path: Path) -> None:
    async with child("hold", path) as holder, trio.open_nursery() as nursery:
        assert await holder.line() == "held"
        nursery.start_soon(take_the_lease, path)
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
        nursery.start_soon(take_the_lease, path)
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
        nursery.start_soon(take_the_lease, path)
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


async def test_of_writers_in_several_processes_none_loses_a_write(place: str) -> None:
    async with trio.open_nursery() as nursery:

        async def count() -> None:
            async with child("count", place, 25) as counter:
                assert await counter.process.wait() == 0

        for _ in range(4):
            nursery.start_soon(count)
    record = await store_at(place).load()
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


async def test_a_sign_in_in_one_process_is_seen_in_another(place: str) -> None:
    store = store_at(place)
    async with child("follow", place) as follower:
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


# Refreshes


async def test_one_process_refreshes_and_the_others_take_its_key(place: str) -> None:
    await store_at(place).replace(0, Record(epoch=1, key=Key("sk-1")))
    keys: list[str] = []

    async def wait() -> None:
        keys.append((await authenticator.refresh("sk-1")).value)

    async with (
        child("refresh", place, "later") as refreshing,
        open_authenticator(store_at(place), never) as authenticator,
        trio.open_nursery() as nursery,
    ):
        assert await refreshing.line() == "refreshing"
        for _ in range(10):
            nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked(0.1)
        await refreshing.go_on()
    assert keys == ["sk-2"] * 10


async def never(_: Key | None) -> str:
    raise AssertionError("nobody else refreshes")


async def test_a_sign_out_during_the_refresh_of_another_process_wins(place: str) -> None:
    store = store_at(place)
    await store.replace(0, Record(epoch=1, key=Key("sk-1")))
    async with child("refresh", place, "later") as refreshing:
        assert await refreshing.line() == "refreshing"
        async with open_authenticator(store) as authenticator:
            await authenticator.sign_out()
            assert await refreshing.line() == "AuthenticationError: signed out: sign in first"
            await refreshing.go_on()
            assert await refreshing.process.wait() == 0
            assert await store.load() == Record(2, 2)
            assert authenticator.state.key is None


@pytest.mark.usefixtures("short_lease")
async def test_a_token_that_was_spent_by_a_process_that_died_ends_in_one_refusal_for_all(
    place: str, tmp_path: Path
) -> None:
    token = tmp_path / "TOKEN"
    token.touch()
    store = store_at(place)
    await store.replace(0, Record(epoch=1, key=Key("sk-1")))
    calls = 0
    told: list[str] = []

    async def spend(_: Key | None) -> str:
        nonlocal calls
        calls += 1
        raise AuthenticationError("it is spent")

    async def refresh(authenticator: Authenticator) -> None:
        with pytest.raises(RefreshError) as caught:
            await authenticator.refresh("sk-1")
        told.append(str(caught.value))

    async with (
        child("spend", place, token) as spender,
        open_authenticator(store, spend) as one,
        open_authenticator(store_at(place), spend) as two,
    ):
        assert await spender.line() == "spent"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refresh, one)
            nursery.start_soon(refresh, two)
            await trio.testing.wait_all_tasks_blocked(0.1)
            spender.process.send_signal(signal.SIGKILL)
    assert calls == 1
    assert len(told) == 2
    assert all("sign in again" in one for one in told)
    assert (await store.load()).refused


async def kill_a_refresh(place: str, moments: random.Random) -> None:
    """Another process refreshes, and is killed; this one, which waits for it, goes on."""
    store = store_at(place)
    before = (await store.load()).key
    assert before is not None
    number = int(before.value[3:])
    reading = True

    async def read() -> None:
        while reading:
            key = (await store.load()).key  # Raises where it is not readable.
            assert key is not None
            assert number <= int(key.value[3:]) <= number + 1

    async def repeat(rejected: Key | None) -> str:
        assert rejected == before
        return f"sk-{number + 1}"

    async with (
        child("refresh", place, 0.005) as victim,
        open_authenticator(store_at(place), repeat) as authenticator,
        trio.open_nursery() as nursery,
    ):
        assert await victim.line() == "refreshing"
        nursery.start_soon(read)
        with trio.move_on_after(moments.uniform(0, 0.03)):
            await authenticator.refresh(before)
        victim.process.send_signal(signal.SIGKILL)
        assert (await authenticator.refresh(before)).value == f"sk-{number + 1}"
        reading = False


@pytest.mark.usefixtures("short_lease")
@pytest.mark.parametrize("times", [5, pytest.param(200, marks=pytest.mark.slow)])
async def test_a_process_that_is_killed_while_it_refreshes_costs_no_key(
    place: str, times: int
) -> None:
    await store_at(place).replace(0, Record(epoch=1, key=Key("sk-0")))
    moments = random.Random(times)
    for _ in range(times):
        await kill_a_refresh(place, moments)
    record = await store_at(place).load()
    assert record.key is not None
    assert record.key.value == f"sk-{times}"
