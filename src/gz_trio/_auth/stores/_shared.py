"""What key stores do alike: the compare-and-swap step, telling of changes, asking for an extra."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from importlib.util import find_spec

import trio

from ..._protocol.keys import Record


def replaced(current: Record, expected_version: int, record: Record) -> Record | None:
    """The record that a write of `record` leaves behind, or `None` where it lost the race.

    A generation names a key, not a write: a write that leaves the key's value and the epoch as
    they are (to mark it as refused, say) leaves the key's generation alone. Otherwise a stream
    that was just rejected would take the very same key for a newer one.

    >>> replaced(Record(version=3), 2, Record()) is None
    True
    >>> replaced(Record(version=3), 3, Record(epoch=1))
    Record(version=4, epoch=1, key=None, refused=False)
    """
    if current.version != expected_version:
        return None
    version = expected_version + 1
    key = record.key
    if key is not None:
        same = (
            current.key is not None
            and current.key.value == key.value
            and current.epoch == record.epoch
        )
        generation = current.key.generation if same and current.key is not None else version
        key = replace(key, generation=generation, epoch=record.epoch)
    return Record(version, record.epoch, key, record.refused)


def require(package: str, extra: str, *, of: str) -> None:
    """See to it that a package is installed, which comes with an extra, for the class `of`.

    Raises:
        ModuleNotFoundError: It is not; the message says what to install.
    """
    if find_spec(package) is None:
        raise ModuleNotFoundError(
            f"{of} needs the package {package}, which comes with the extra {extra}: "
            f"pip install 'gz-trio[{extra}]'",
            name=package,
        )


class Changes:
    """Tells any number of subscribers that something changed, without ever waiting for one."""

    __slots__ = ("_subscribers",)

    def __init__(self) -> None:
        # A dict and not a set, to tell them in the order in which they came.
        self._subscribers: dict[trio.MemorySendChannel[None], None] = {}

    def notify(self) -> None:
        """Tell everybody; for a subscriber who was told and has not looked yet, do nothing."""
        for channel in self._subscribers:
            # Told already, or its reader has closed its end before it left the block.
            with suppress(trio.WouldBlock, trio.BrokenResourceError):
                channel.send_nowait(None)

    @asynccontextmanager
    async def subscribe(self) -> AsyncGenerator[trio.abc.ReceiveChannel[None]]:
        """A channel that has one `None` for any number of changes since it was last read.

        Neither entering nor leaving is a checkpoint: from entry on no change is missed.
        """
        send, receive = trio.open_memory_channel[None](1)
        with send, receive:
            self._subscribers[send] = None
            try:
                yield receive
            finally:
                del self._subscribers[send]
