"""The key store that lives in memory and ends with the process."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import replace

import trio

from ..._protocol.keys import Key, Record
from ._shared import Changes, replaced


class MemoryKeyStore:
    """A `KeyStore` in memory, for one process and one run of Trio at a time.

    `load` and `replace` are checkpoints; a `replace` that was cancelled has changed nothing.

    Args:
        key: The key to begin with, as version 1 of epoch 1; `None` for an empty store.

    Raises:
        ValueError: `key` is empty or cannot be sent in a header.

    >>> async def main():
    ...     store = MemoryKeyStore("sk-old")
    ...     record = await store.load()
    ...     async with store.changes() as changes:
    ...         new = Record(epoch=record.epoch, key=Key("sk-new"))
    ...         print(await store.replace(record.version, new))
    ...         print(await store.replace(record.version, new))
    ...         await changes.receive()
    ...     print(await store.load())
    >>> trio.run(main)
    True
    False
    Record(version=2, epoch=1, key=<Key generation=2 epoch=1>, refused=False)
    """

    def __init__(self, key: Key | str | None = None) -> None:
        self._record = Record()
        if key is not None:
            key = Key(key) if isinstance(key, str) else key
            self._record = Record(1, 1, replace(key, generation=1, epoch=1))
        self._changes = Changes()
        self._lease = trio.Lock()

    async def load(self) -> Record:
        """What the store holds now."""
        await trio.lowlevel.checkpoint()
        return self._record

    async def replace(self, expected_version: int, record: Record) -> bool:
        """Write `record` in place of version `expected_version`; see `KeyStore.replace`."""
        # Before the write, so that a caller who sees Cancelled knows that nothing was written.
        await trio.lowlevel.checkpoint()
        written = replaced(self._record, expected_version, record)
        if written is None:
            return False
        self._record = written
        self._changes.notify()
        return True

    def changes(self) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[None]]:
        """Tells of changes; see `KeyStore.changes`. Entering and leaving are no checkpoints."""
        return self._changes.subscribe()

    def lease(self) -> AbstractAsyncContextManager[None]:
        """The right to refresh; entering is a checkpoint, leaving is not.

        Raises:
            RuntimeError: On entry, by a task that holds the lease already.
        """
        return self._lease
