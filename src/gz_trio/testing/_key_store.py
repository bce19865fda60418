"""Whether a key store keeps what `KeyStore` promises: one function for each promise."""

from __future__ import annotations

from dataclasses import replace

import trio
import trio.testing

from .. import Key, KeyStore, Record

PATIENCE_SECONDS = 10.0
"""For what has to happen at once: a change that is told, a lease that is free."""

BRIEF_SECONDS = 0.1
"""For what must not happen: a second holder of the lease."""


async def check_key_store(store: KeyStore) -> None:
    """Try all that `KeyStore` promises on `store`, which takes a second or two.

    It writes keys to the store, over whatever is there, and leaves a signed-out record behind: give
    it a store of its own, with nobody else writing to it.

    Args:
        store: The store, of which one instance has to serve.

    Raises:
        AssertionError: A promise is not kept; the message says which one, and what came instead.

    >>> from gz_trio.testing import check_key_store
    >>> trio.run(check_key_store, MemoryKeyStore())
    """
    for check in _CHECKS:
        await check(store)


async def _put(store: KeyStore, value: str | None, *, new_epoch: bool = False) -> Record:
    """Write a key over whatever is there; what the store holds then."""
    record = await store.load()
    new = Record(epoch=record.epoch + new_epoch, key=None if value is None else Key(value))
    _agree(await store.replace(record.version, new), True, "replace() of the version that it holds")
    return await store.load()


def _agree(seen: object, promised: object, what: str) -> None:
    if seen != promised:
        raise AssertionError(f"{what}: {promised!r} was promised, and {seen!r} is what came")


async def _is_told(changes: trio.abc.ReceiveChannel[None]) -> None:
    with trio.move_on_after(PATIENCE_SECONDS) as scope:
        await changes.receive()
    if scope.cancelled_caught:
        raise AssertionError(
            f"changes() told of no write within {PATIENCE_SECONDS:g} seconds: it is to be armed "
            "once it is entered, and to tell of one's own writes too"
        )


async def _what_is_written_is_what_is_read(store: KeyStore) -> None:
    before = await store.load()
    _agree(type(before), Record, "what load() gives")
    _agree(await store.load(), before, "load() with nothing written meanwhile")
    version, epoch = before.version + 1, before.epoch + 1
    for given in (
        Key("sk-check-1", 1_800_000_000.5, "rt-check-1", generation=77, epoch=88),
        Key("sk-check-2"),
        None,
    ):
        for refused in (False, True):
            record = Record(version=99, epoch=epoch, key=given, refused=refused)
            _agree(await store.replace(version - 1, record), True, "replace()")
            # To mark a key as refused is no new generation of it.
            key = given and replace(given, generation=version - refused, epoch=epoch)
            expected = Record(version, epoch, key, refused)
            _agree(await store.load(), expected, "load() after replace()")
            version += 1


async def _a_write_over_another_version_changes_nothing(store: KeyStore) -> None:
    before = await _put(store, "sk-check")
    for version in (before.version - 1, before.version + 1, before.version + 2, -1):
        written = await store.replace(version, Record(epoch=before.epoch, key=Key("sk-lost")))
        _agree(written, False, f"replace({version}, ...) while it holds version {before.version}")
        _agree(await store.load(), before, "load() after a replace() that wrote nothing")


async def _of_many_writers_one_wins(store: KeyStore) -> None:
    before = await store.load()
    won: list[str] = []

    async def write(value: str) -> None:
        if await store.replace(before.version, Record(epoch=before.epoch, key=Key(value))):
            won.append(value)

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(write, f"sk-check-{number}")
    _agree(len(won), 1, "writers of one version that won")
    record = await store.load()
    key = record.key
    _agree(
        (record.version, key and key.value), (before.version + 1, won[0]), "load() after that race"
    )


async def _a_generation_names_a_key(store: KeyStore) -> None:
    first = await _put(store, "sk-check-1")
    same = await _put(store, "sk-check-1")
    _agree(_generation(same), _generation(first), "the generation of a key that is written again")
    second = await _put(store, "sk-check-2")
    _agree(_generation(second), second.version, "the generation of another key")
    another = await _put(store, "sk-check-2", new_epoch=True)
    _agree(_generation(another), another.version, "the generation of that key in another epoch")
    gone = await _put(store, None)
    again = await _put(store, "sk-check-2")
    _agree(again.version, gone.version + 1, "the version after a sign-out")
    _agree(_generation(again), again.version, "the generation of that key after a sign-out")


def _generation(record: Record) -> int | None:
    return None if record.key is None else record.key.generation


async def _loading_and_writing_are_checkpoints(store: KeyStore) -> None:
    before = await _put(store, "sk-check")
    stale = before.version + 5
    for name, call in (
        ("load()", store.load),
        ("replace()", lambda: store.replace(stale, Record())),
    ):
        try:
            with trio.testing.assert_checkpoints():
                await call()
        except AssertionError:
            raise AssertionError(f"{name} is no checkpoint") from None
    with trio.CancelScope() as scope:
        scope.cancel()
        await store.replace(before.version, Record(epoch=before.epoch, key=Key("sk-lost")))
    _agree(await store.load(), before, "load() after a replace() that was cancelled")


async def _a_subscriber_who_does_not_read_holds_nobody_up(store: KeyStore) -> None:
    async with store.changes() as gone, store.changes(), store.changes() as changes:
        await gone.aclose()
        with trio.move_on_after(PATIENCE_SECONDS) as scope:
            for number in range(3):
                await _put(store, f"sk-check-{number}")
        if scope.cancelled_caught:
            raise AssertionError("replace() waits for somebody who does not read changes()")
        await _is_told(changes)


async def _every_subscriber_is_told_of_every_write(store: KeyStore) -> None:
    await _put(store, "sk-check")
    async with store.changes() as one, store.changes() as two:
        for number in range(3):
            await _put(store, f"sk-check-{number}")
            await _is_told(one)
            await _is_told(two)
    async with store.changes() as changes:
        for number in range(100):
            await _put(store, f"sk-check-{number}")
        told = 0
        with trio.move_on_after(BRIEF_SECONDS):
            while True:
                await changes.receive()
                told += 1
        if not 1 <= told <= 10:
            raise AssertionError(
                f"changes() told {told} times of 100 writes that nobody had asked about meanwhile: "
                "any number of changes are to be one"
            )
    await _put(store, "sk-check")
    try:
        with trio.move_on_after(BRIEF_SECONDS):
            await changes.receive()
    except (trio.ClosedResourceError, trio.EndOfChannel):
        return
    raise AssertionError("the channel of changes() has not ended with its block")


async def _the_lease_is_held_by_one_at_a_time(store: KeyStore) -> None:
    inside = most = entered = 0

    async def hold() -> None:
        nonlocal inside, most, entered
        async with store.lease():
            inside += 1
            entered += 1
            most = max(most, inside)
            await trio.sleep(BRIEF_SECONDS / 4)
            inside -= 1

    with trio.move_on_after(PATIENCE_SECONDS) as scope:
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(hold)
    _agree(most, 1, "holders of the lease at one time")
    _agree((entered, scope.cancelled_caught), (4, False), "those who got the lease, one by one")


async def _the_lease_is_given_back_however_its_block_ends(store: KeyStore) -> None:
    class Left(Exception):
        pass

    async def hold(*, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        with trio.CancelScope() as scope:
            task_status.started(scope)
            async with store.lease():
                await trio.sleep_forever()

    try:
        async with store.lease():
            raise Left
    except Left:
        pass
    async with trio.open_nursery() as nursery:
        holder: trio.CancelScope = await nursery.start(hold)
        await trio.sleep(BRIEF_SECONDS)
        waiter: trio.CancelScope = await nursery.start(hold)
        await trio.sleep(BRIEF_SECONDS)
        waiter.cancel()
        await trio.sleep(BRIEF_SECONDS)
        holder.cancel()
    with trio.move_on_after(PATIENCE_SECONDS) as scope:
        async with store.lease():
            pass
    if scope.cancelled_caught:
        raise AssertionError("the lease is not free after its holder and a waiter were cancelled")


async def _who_signs_out_need_not_have_the_lease(store: KeyStore) -> None:
    async with store.lease():
        with trio.move_on_after(PATIENCE_SECONDS) as scope:
            await _put(store, None, new_epoch=True)
        if scope.cancelled_caught:
            raise AssertionError("replace() waits for the lease: who signs out has to wait, too")


async def _no_secret_shows(store: KeyStore) -> None:
    await _put(store, "sk-check-secret")
    if "sk-check-secret" in f"{store!r}{store}":
        raise AssertionError("repr() or str() of the store shows the key")
    await _put(store, None, new_epoch=True)


_CHECKS = (
    _what_is_written_is_what_is_read,
    _a_write_over_another_version_changes_nothing,
    _of_many_writers_one_wins,
    _a_generation_names_a_key,
    _loading_and_writing_are_checkpoints,
    _a_subscriber_who_does_not_read_holds_nobody_up,
    _every_subscriber_is_told_of_every_write,
    _the_lease_is_held_by_one_at_a_time,
    _the_lease_is_given_back_however_its_block_ends,
    _who_signs_out_need_not_have_the_lease,
    _no_secret_shows,
)
