"""Another process that uses a key file: what it is to do comes as arguments, and lines tell of it.

python -m tests.auth.child hold FILE            has the lease until a line comes, or for good
python -m tests.auth.child follow FILE          prints the key at first, and with each change
python -m tests.auth.child count FILE TIMES     raises the number that is the key, so many times
python -m tests.auth.child lock FILE            has the lock for a write until a line comes
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import filelock
import trio

from gz_trio import FileKeyStore, Key, Record


def say(line: str) -> None:
    """To whoever has started this process."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def hold(store: FileKeyStore) -> None:
    async with store.lease():
        say("held")
        await trio.to_thread.run_sync(sys.stdin.readline)
    say("released")


async def follow(store: FileKeyStore) -> None:
    async with store.changes() as changes:
        while True:
            key = (await store.load()).key
            say("none" if key is None else key.value)
            await changes.receive()


async def count(store: FileKeyStore, times: int) -> None:
    while times:
        record = await store.load()
        number = 0 if record.key is None else int(record.key.value)
        new = Record(epoch=record.epoch, key=Key(str(number + 1)))
        times -= await store.replace(record.version, replace(new, version=record.version))


def main() -> None:
    command, path, *rest = sys.argv[1:]
    store = FileKeyStore(path)
    match command:
        case "hold":
            trio.run(hold, store)
        case "follow":
            trio.run(follow, store)
        case "count":
            trio.run(count, store, int(rest[0]))
        case "lock":
            with filelock.FileLock(Path(path).with_name(f".{Path(path).name}.lock")):
                say("held")
                sys.stdin.readline()
        case _:
            raise SystemExit(f"no such command: {command}")


if __name__ == "__main__":
    main()
