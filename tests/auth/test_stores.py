"""Every key store keeps what `KeyStore` promises, and `check_key_store` finds out what does not."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from gz_trio import FileKeyStore, Key, KeyStore, MemoryKeyStore, Record
from gz_trio._auth.stores._shared import replaced
from gz_trio.testing import check_key_store


@pytest.mark.parametrize("held", [None, "sk-1"])
async def test_a_memory_store_keeps_the_promises(held: str | None) -> None:
    store = MemoryKeyStore(held)
    assert isinstance(store, KeyStore)
    await check_key_store(store)


async def test_a_file_store_keeps_the_promises(tmp_path: Path) -> None:
    store = FileKeyStore(tmp_path / "folder" / "keys.json", profile="a/b c")
    assert isinstance(store, KeyStore)
    await check_key_store(store)


async def test_a_new_store_holds_the_empty_record(tmp_path: Path) -> None:
    assert await MemoryKeyStore().load() == Record()
    assert await FileKeyStore(tmp_path / "keys.json").load() == Record()


async def test_a_memory_store_begins_with_its_key_as_version_1_of_epoch_1() -> None:
    given_key = Key("sk-1", expires_at=5.0, refresh_token="rt", generation=9, epoch=9)
    record = await MemoryKeyStore(given_key).load()
    assert record == Record(1, 1, replace(given_key, generation=1, epoch=1))
    assert await MemoryKeyStore("sk-1").load() == Record(1, 1, Key("sk-1", None, None, 1, 1))


@pytest.mark.parametrize("value", ["", " ", "\n", "sk 1", "sk-1\nX-Evil: 1"])
def test_a_memory_store_takes_no_key_that_cannot_be_sent(value: str) -> None:
    with pytest.raises(ValueError, match="the API key") as caught:
        MemoryKeyStore(value)
    assert "Evil" not in str(caught.value)


async def test_whoever_holds_the_lease_cannot_wait_for_it(tmp_path: Path) -> None:
    for store in (MemoryKeyStore(), FileKeyStore(tmp_path / "keys.json")):
        async with store.lease():
            with pytest.raises(RuntimeError):
                async with store.lease():
                    pass


def test_no_secret_shows_in_what_a_store_gives_out() -> None:
    assert "sk-secret" not in repr(replaced(Record(), 0, Record(key=Key("sk-secret"))))


# Stores that break a promise


class Store:
    """A store that keeps every promise, until a subclass breaks one."""

    def __init__(self) -> None:
        self.good = MemoryKeyStore()

    async def load(self) -> Record:
        return await self.good.load()

    async def replace(self, expected_version: int, record: Record) -> bool:
        return await self.good.replace(expected_version, record)

    @asynccontextmanager
    async def changes(self) -> AsyncGenerator[trio.abc.ReceiveChannel[None]]:
        async with self.good.changes() as changes:
            yield changes

    @asynccontextmanager
    async def lease(self) -> AsyncGenerator[None]:
        async with self.good.lease():
            yield


class GivesNoRecord(Store):
    async def load(self) -> Record:
        await super().load()
        return None  # type: ignore[return-value]


class LosesTheExpiry(Store):
    async def replace(self, expected_version: int, record: Record) -> bool:
        key = record.key and replace(record.key, expires_at=None)
        return await super().replace(expected_version, replace(record, key=key))


class TheLastWriterWins(Store):
    async def replace(self, expected_version: int, record: Record) -> bool:
        while not await super().replace((await self.load()).version, record):
            pass
        return True


class SaysThatItWroteWhatItDidNot(Store):
    async def replace(self, expected_version: int, record: Record) -> bool:
        await super().replace(expected_version, record)
        return True


class ReadsAndWritesInTwoSteps(Store):
    async def replace(self, expected_version: int, record: Record) -> bool:
        if (await self.load()).version != expected_version:
            return False
        await trio.lowlevel.checkpoint()
        while not await super().replace((await self.load()).version, record):
            pass
        return True


class GivesEachWriteAGeneration(Store):
    async def load(self) -> Record:
        record = await super().load()
        return replace(record, key=record.key and replace(record.key, generation=record.version))


class BeginsAnewAfterASignOut(Store):
    async def replace(self, expected_version: int, record: Record) -> bool:
        written = await super().replace(expected_version, record)
        if written and record.key is None and not record.refused:
            self.good = MemoryKeyStore()
        return written


class LoadsWithoutACheckpoint(Store):
    async def load(self) -> Record:
        return self.good._record  # pyright: ignore[reportPrivateUsage]


class WritesAlthoughItIsCancelled(Store):
    async def replace(self, expected_version: int, record: Record) -> bool:
        written = False
        with trio.CancelScope(shield=True):
            written = await super().replace(expected_version, record)
        await trio.lowlevel.checkpoint()
        return written


class TellsNobody(Store):
    @asynccontextmanager
    async def changes(self) -> AsyncGenerator[trio.abc.ReceiveChannel[None]]:
        send, receive = trio.open_memory_channel[None](0)
        with send, receive:
            yield receive


class TellsOfEachWrite(Store):
    """With as much room for words to a subscriber as a subclass says."""

    room = 1000

    def __init__(self) -> None:
        super().__init__()
        self.sends: list[trio.MemorySendChannel[None]] = []

    @asynccontextmanager
    async def changes(self) -> AsyncGenerator[trio.abc.ReceiveChannel[None]]:
        send, receive = trio.open_memory_channel[None](self.room)
        self.sends.append(send)
        try:
            yield receive
        finally:
            self.leave(send)

    def leave(self, send: trio.MemorySendChannel[None]) -> None:
        self.sends.remove(send)
        send.close()

    async def replace(self, expected_version: int, record: Record) -> bool:
        written = await super().replace(expected_version, record)
        for send in self.sends if written else ():
            with suppress(trio.BrokenResourceError):
                await self.tell(send)
        return written

    async def tell(self, send: trio.MemorySendChannel[None]) -> None:
        await send.send(None)


class WaitsForWhoeverDoesNotRead(TellsOfEachWrite):
    room = 1


class LeavesTheChannelOpen(TellsOfEachWrite):
    room = 1

    async def tell(self, send: trio.MemorySendChannel[None]) -> None:
        with suppress(trio.WouldBlock):
            send.send_nowait(None)

    def leave(self, send: trio.MemorySendChannel[None]) -> None:
        pass


class LeasesToEverybody(Store):
    @asynccontextmanager
    async def lease(self) -> AsyncGenerator[None]:
        await trio.lowlevel.checkpoint()
        yield


class KeepsTheLeaseOfWhoFails(Store):
    def __init__(self) -> None:
        super().__init__()
        self.lock = trio.Semaphore(1)

    @asynccontextmanager
    async def lease(self) -> AsyncGenerator[None]:
        await self.lock.acquire()
        yield
        self.lock.release()


class NeedsTheLeaseToWrite(Store):
    def __init__(self) -> None:
        super().__init__()
        self.lock = trio.Semaphore(1)

    @asynccontextmanager
    async def lease(self) -> AsyncGenerator[None]:
        async with self.lock:
            yield

    async def replace(self, expected_version: int, record: Record) -> bool:
        async with self.lock:
            return await super().replace(expected_version, record)


class ShowsItsKey(Store):
    def __repr__(self) -> str:
        key = self.good._record.key  # pyright: ignore[reportPrivateUsage]
        return f"<Store {key and key.value}>"


@pytest.mark.parametrize(
    ("make_store", "complaint"),
    [
        (GivesNoRecord, "what load() gives"),
        (LosesTheExpiry, "load() after replace()"),
        (TheLastWriterWins, "replace("),
        (SaysThatItWroteWhatItDidNot, "while it holds version"),
        (ReadsAndWritesInTwoSteps, "writers of one version that won"),
        (GivesEachWriteAGeneration, "load() after replace()"),
        (BeginsAnewAfterASignOut, "load() after replace()"),
        (LoadsWithoutACheckpoint, "load() is no checkpoint"),
        (WritesAlthoughItIsCancelled, "replace() that was cancelled"),
        (TellsNobody, "changes() told of no write"),
        (TellsOfEachWrite, "any number of changes are to be one"),
        (WaitsForWhoeverDoesNotRead, "waits for somebody who does not read"),
        (LeavesTheChannelOpen, "has not ended with its block"),
        (LeasesToEverybody, "holders of the lease at one time"),
        (KeepsTheLeaseOfWhoFails, "the lease is not free"),
        (NeedsTheLeaseToWrite, "who signs out has to wait"),
        (ShowsItsKey, "shows the key"),
    ],
)
async def test_a_store_that_breaks_a_promise_is_told_which(
    make_store: Callable[[], KeyStore], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gz_trio.testing._key_store.PATIENCE_SECONDS", 0.3)
    with pytest.raises(AssertionError, match=re.escape(complaint)):
        await check_key_store(make_store())


async def test_a_store_that_breaks_none_is_not_complained_of() -> None:
    await check_key_store(Store())


# Versions and generations


keys = st.none() | st.builds(Key, st.sampled_from(["sk-1", "sk-2", "sk-3"]))


@given(st.lists(st.tuples(st.integers(-1, 1), st.integers(0, 2), keys, st.booleans())))
def test_versions_only_rise_and_a_generation_never_means_two_keys(
    writes: list[tuple[int, int, Key | None, bool]],
) -> None:
    current = Record()
    owners: dict[int, tuple[str, int]] = {}
    for offset, epoch, key, refused in writes:
        written = replaced(current, current.version + offset, Record(0, epoch, key, refused))
        assert (written is None) == (offset != 0)
        if written is None:
            continue
        assert written.version == current.version + 1
        assert (written.epoch, written.refused) == (epoch, refused)
        if written.key is not None:
            assert key is not None
            assert written.key.value == key.value
            owner = owners.setdefault(written.key.generation, (key.value, epoch))
            assert owner == (key.value, epoch)
            assert written.key.generation <= written.version
            assert written.key.epoch == epoch
        current = written
