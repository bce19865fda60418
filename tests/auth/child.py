"""Another process that uses a key store: what it is to do comes as arguments, and lines tell of it.

PLACE is a file or the URL of a Redis server, where leases last a second with `SHORT_LEASE` set.

python -m tests.auth.child hold PLACE           has the lease until a line comes, or for good
python -m tests.auth.child follow PLACE         prints the key at first, and with each change
python -m tests.auth.child count PLACE TIMES    raises the number that is the key, so many times
python -m tests.auth.child lock FILE            has the lock for a write until a line comes
python -m tests.auth.child refresh PLACE WHEN   refreshes; its new key comes after so many seconds,
                                                or with `later` when a line does
python -m tests.auth.child spend PLACE TOKEN    refreshes by a token that can be spent once, the
                                                file TOKEN, and never gets a key
"""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import filelock
import trio

from gz_trio import AuthenticationError, Key, KeyStore, Record, open_authenticator
from gz_trio._auth.stores import redis
from tests.children import say, store_at


def shorten_leases() -> None:
    """Seconds become tenths."""
    redis.LEASE_SECONDS, redis.RENEW_SECONDS, redis.LEFT_SECONDS = 1.0, 0.3, 0.6


async def hold(store: KeyStore) -> None:
    async with store.lease():
        say("held")
        await trio.to_thread.run_sync(sys.stdin.readline)
    say("released")


async def follow(store: KeyStore) -> None:
    async with store.changes() as changes:
        while True:
            key = (await store.load()).key
            say("none" if key is None else key.value)
            await changes.receive()


async def count(store: KeyStore, times: int) -> None:
    while times:
        record = await store.load()
        number = 0 if record.key is None else int(record.key.value)
        new = Record(epoch=record.epoch, key=Key(str(number + 1)))
        times -= await store.replace(record.version, replace(new, version=record.version))


async def refresh(store: KeyStore, answer: Callable[[Key | None], Awaitable[str]]) -> None:
    async with open_authenticator(store, answer) as authenticator:
        try:
            say((await authenticator.refresh()).value)
        except AuthenticationError as error:
            say(f"{type(error).__name__}: {error}")


async def answer_in_time(seconds: str, rejected: Key | None) -> str:
    say("refreshing")
    if seconds == "later":
        await trio.to_thread.run_sync(sys.stdin.readline)
    else:
        await trio.sleep(float(seconds))
    return "sk-0" if rejected is None else f"sk-{int(rejected.value[3:]) + 1}"


async def spend(token: trio.Path, rejected: Key | None) -> str:
    try:
        await token.unlink()
    except FileNotFoundError:
        raise AuthenticationError("it is spent") from None
    say("spent")
    await trio.sleep_forever()


def main() -> None:
    command, place, *rest = sys.argv[1:]
    if "SHORT_LEASE" in os.environ:
        shorten_leases()
    store = store_at(place)
    match command:
        case "hold":
            trio.run(hold, store)
        case "follow":
            trio.run(follow, store)
        case "count":
            trio.run(count, store, int(rest[0]))
        case "refresh":
            trio.run(refresh, store, partial(answer_in_time, rest[0]))
        case "spend":
            trio.run(refresh, store, partial(spend, trio.Path(rest[0])))
        case "lock":
            with filelock.FileLock(Path(place).with_name(f".{Path(place).name}.lock")):
                say("held")
                sys.stdin.readline()
        case _:
            raise SystemExit(f"no such command: {command}")


if __name__ == "__main__":
    main()
