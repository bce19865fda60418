"""Every key store keeps the promises of `KeyStore`: versions, compare-and-swap, changes, lease."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from gz_trio._auth.stores import FileKeyStore, KeyStore, MemoryKeyStore
from gz_trio._auth.stores._shared import replaced
from gz_trio._protocol.keys import Key, Record

MakeStore = Callable[[], KeyStore]


@pytest.fixture(params=["memory", "file"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStore:
    if request.param == "memory":
        return MemoryKeyStore
    return lambda: FileKeyStore(tmp_path / "keys.json")


@pytest.fixture
def store(make_store: MakeStore) -> KeyStore:
    return make_store()


async def put(store: KeyStore, value: str, *, epoch: int = 1) -> Record:
    """Write a key over whatever is there, and give back what the store then holds."""
    record = await store.load()
    assert await store.replace(record.version, Record(epoch=epoch, key=Key(value)))
    return await store.load()


def told(changes: trio.abc.ReceiveChannel[None]) -> bool:
    """Whether a change is waiting to be read; reads it."""
    assert isinstance(changes, trio.MemoryReceiveChannel)
    try:
        changes.receive_nowait()
    except trio.WouldBlock:
        return False
    return True


def test_the_stores_follow_the_protocol(store: KeyStore) -> None:
    assert isinstance(store, KeyStore)


async def test_a_new_store_holds_the_empty_record(store: KeyStore) -> None:
    assert await store.load() == Record()


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


async def test_a_write_raises_the_version_whatever_the_record_says(store: KeyStore) -> None:
    written = Record(version=77, epoch=3, key=Key("sk-1", 12.5, "rt-1", 55, 66), refused=True)
    assert await store.replace(0, written)
    assert await store.load() == Record(1, 3, Key("sk-1", 12.5, "rt-1", 1, 3), True)


@pytest.mark.parametrize("expected", [0, 2, 3, -1])
async def test_a_write_over_another_version_changes_nothing(store: KeyStore, expected: int) -> None:
    before = await put(store, "sk-1")
    assert before.version == 1
    async with store.changes() as changes:
        assert not await store.replace(expected, Record(epoch=1, key=Key("sk-2")))
        assert not told(changes)
    assert await store.load() == before


async def test_of_two_writers_that_read_the_same_version_one_wins(store: KeyStore) -> None:
    won: list[str] = []

    async def write(value: str) -> None:
        if await store.replace(0, Record(epoch=1, key=Key(value))):
            won.append(value)

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(write, f"sk-{number}")
    assert len(won) == 1
    record = await store.load()
    assert record.key is not None
    assert (record.version, record.key.value) == (1, won[0])


async def test_a_generation_names_a_key_and_not_a_write(store: KeyStore) -> None:
    first = await put(store, "sk-1")
    assert await store.replace(first.version, replace(first, refused=True))
    marked = await store.load()
    assert (marked.version, marked.refused) == (2, True)
    assert marked.key is not None
    assert marked.key.generation == 1
    renewed = await put(store, "sk-2")
    assert renewed.key is not None
    assert (renewed.version, renewed.key.generation, renewed.refused) == (3, 3, False)


async def test_the_same_key_in_another_epoch_is_another_generation(store: KeyStore) -> None:
    await put(store, "sk-1", epoch=1)
    record = await put(store, "sk-1", epoch=2)
    assert record.key is not None
    assert (record.key.generation, record.key.epoch) == (2, 2)


async def test_a_sign_out_leaves_a_tombstone_so_that_versions_go_on(store: KeyStore) -> None:
    await put(store, "sk-1")
    assert await store.replace(1, Record(epoch=2))
    assert await store.load() == Record(2, 2)
    assert await put(store, "sk-2", epoch=3) == Record(3, 3, Key("sk-2", None, None, 3, 3))


async def test_changes_tells_of_a_write_that_came_after_entry(store: KeyStore) -> None:
    await put(store, "sk-1")
    async with store.changes() as changes:
        await put(store, "sk-2")
        with trio.fail_after(5):
            await changes.receive()


async def test_many_changes_are_one_for_a_reader_who_did_not_look(store: KeyStore) -> None:
    async with store.changes() as changes:
        for number in range(3):
            await put(store, f"sk-{number}")
        assert told(changes)
        assert not told(changes)


async def test_every_subscriber_is_told(store: KeyStore) -> None:
    async with store.changes() as one, store.changes() as two:
        await put(store, "sk-1")
        with trio.fail_after(5):
            await one.receive()
            await two.receive()


async def test_a_reader_that_closed_its_channel_early_disturbs_nobody(store: KeyStore) -> None:
    async with store.changes() as gone, store.changes() as changes:
        await gone.aclose()
        await put(store, "sk-1")
        with trio.fail_after(5):
            await changes.receive()


async def test_the_channel_ends_with_its_block(store: KeyStore) -> None:
    async with store.changes() as changes:
        pass
    await put(store, "sk-1")
    with pytest.raises(trio.ClosedResourceError):
        await changes.receive()


async def test_an_iteration_over_changes_is_cancellable(store: KeyStore) -> None:
    with trio.move_on_after(0.01) as scope:
        async with store.changes() as changes:
            async for _ in changes:
                pass
    assert scope.cancelled_caught


async def test_the_lease_is_held_by_one_at_a_time(store: KeyStore) -> None:
    inside = 0
    entered = 0

    async def hold() -> None:
        nonlocal inside, entered
        async with store.lease():
            inside += 1
            entered += 1
            assert inside == 1
            await trio.testing.wait_all_tasks_blocked()
            inside -= 1

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(hold)
    assert entered == 4


async def test_the_lease_is_given_back_by_an_exception(store: KeyStore) -> None:
    with pytest.raises(LookupError):
        async with store.lease():
            raise LookupError
    with trio.fail_after(5):
        async with store.lease():
            pass


async def test_the_lease_is_given_back_by_cancellation_of_holder_and_of_waiter(
    store: KeyStore,
) -> None:
    async def hold(*, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        with trio.CancelScope() as scope:
            task_status.started(scope)
            async with store.lease():
                await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        holder: trio.CancelScope = await nursery.start(hold)
        await trio.testing.wait_all_tasks_blocked()
        waiter: trio.CancelScope = await nursery.start(hold)
        await trio.testing.wait_all_tasks_blocked()
        waiter.cancel()
        await trio.testing.wait_all_tasks_blocked()
        holder.cancel()
        with trio.fail_after(5):
            async with store.lease():
                pass


async def test_load_and_replace_are_checkpoints_and_a_cancelled_write_wrote_nothing(
    store: KeyStore,
) -> None:
    with trio.testing.assert_checkpoints():
        await store.load()
    with trio.testing.assert_checkpoints():
        await store.replace(7, Record())
    with trio.CancelScope() as scope:
        scope.cancel()
        await store.replace(0, Record(epoch=1, key=Key("sk-1")))
    assert scope.cancelled_caught
    assert await store.load() == Record()


def test_no_secret_shows_in_what_a_store_gives_out() -> None:
    assert "sk-secret" not in repr(replaced(Record(), 0, Record(key=Key("sk-secret"))))
    assert "sk-secret" not in repr(MemoryKeyStore("sk-secret"))


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
