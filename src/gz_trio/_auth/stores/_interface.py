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

        `Record.key.generation` and `.epoch` are those of the record.
        """
        ...

    async def replace(self, expected_version: int, record: Record) -> bool:
        """Write `record` in place of version `expected_version`: a compare-and-swap.

        The written record has the version `expected_version + 1`, whatever `record.version`
        says, and so has its key's generation.

        Returns:
            Whether it was written. `False`: another version is there, nothing was changed.
        """
        ...

    def changes(self) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[None]]:
        """Tells of changes: armed once entered, any number of changes are one `None`."""
        ...

    def lease(self) -> AbstractAsyncContextManager[None]:
        """The right to refresh; entered once it is held, given back on exit."""
        ...
