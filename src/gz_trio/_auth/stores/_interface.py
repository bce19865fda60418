"""The protocol that every key store follows."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol, runtime_checkable

import trio

from ..._protocol.keys import Record


@runtime_checkable
class KeyStore(Protocol):
    """Where the key lives: the source of truth, for one process or for many.

    A store of one's own needs these four methods and nothing else.
    """

    async def load(self) -> Record:
        """What the store holds now; `Record()`, of version 0, where nothing was ever written.

        `Record.key.epoch` is that of the record; `Record.key.generation` is the version of the
        record that first held the key. A checkpoint.
        """
        ...

    async def replace(self, expected_version: int, record: Record) -> bool:
        """Write `record` in place of version `expected_version`: a compare-and-swap.

        The written record has the version `expected_version + 1`, whatever `record.version`
        says, and so has its key's generation; its key's epoch is `record.epoch`. A write that
        leaves the key's value and the epoch as they are (to mark the key as refused, say)
        leaves its generation alone: a generation names a key, not a write.

        A checkpoint. Where it raises `Cancelled`, nothing was written.

        Returns:
            Whether it was written. `False`: another version is there, nothing was changed.
        """
        ...

    def changes(self) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[None]]:
        """Tells of changes: armed once entered, any number of changes are one `None`.

        One's own writes are told too. The channel ends when the block is left.
        """
        ...

    def lease(self) -> AbstractAsyncContextManager[None]:
        """The right to refresh; entered once it is held, given back on exit, however it ends.

        Enter and leave it in one task; it cannot be entered twice.
        """
        ...
