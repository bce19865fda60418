"""The right to refresh, among the tasks of one run and among processes.

The operating system's lock on a file beside the key file is the lease: it falls with the process
that has it. Nobody polls for it. Whoever gives it back sets the lock file's times, of which those
who wait are told (a try that fails does not do so); and they watch the process that has it, by the
id that it wrote into the lock file. Where neither can be had, they try again each second.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from functools import cache
from pathlib import Path

import trio
from trio.lowlevel import enable_ki_protection

from ..._background import Background
from ..._protocol.errors import KeyStoreError
from ._locks import Lock
from ._shared import Changes
from ._watch import FileWatch

RETRY_SECONDS = 1.0
"""Where nothing tells of the holder's end."""

WATCHED_RETRY_SECONDS = 5.0
"""Where the system does; a process id can be given to another process."""


class FileLease:
    """One lease; see above.

    Args:
        path: The lock file.
        key_file: Whose lease it is; messages name it.
        watch: Tells of the folder in which both are.
        alone: Whether other processes have no use for the lease: then none is asked for it.
    """

    def __init__(
        self, path: Path, key_file: Path, watch: FileWatch, alone: Callable[[], bool]
    ) -> None:
        self._path = path
        self._key_file = key_file
        self._watch = watch
        self._alone = alone
        self._turn = trio.Lock()
        self.released = Changes()
        """To be notified when the lock file's times were set."""

    @asynccontextmanager
    @enable_ki_protection
    async def held(self) -> AsyncGenerator[None]:
        """Entered once it is held. Entering is a checkpoint, leaving is not.

        Raises:
            KeyStoreError: The lock file cannot be made or opened.
            RuntimeError: On entry, by a task that holds it already.
        """
        async with self._turn:
            if self._alone():
                yield
                return
            lock = Lock(self._path, self._key_file, _sign)
            try:
                if not self._try(lock):
                    await self._wait_for(lock)
                yield
            finally:
                if lock.release():
                    with suppress(OSError):
                        os.utime(self._path)

    def _try(self, lock: Lock) -> bool:
        try:
            return lock.acquire(0)
        except OSError as error:
            raise KeyStoreError(
                f"the key file {self._key_file} cannot be locked ({error.strerror}), so its key "
                "cannot be refreshed: let this user write to its folder"
            ) from error

    async def _wait_for(self, lock: Lock) -> None:
        # Armed before the next try, or a release between the two would be missed.
        async with self._watch.watching(), self.released.subscribe() as released:
            while not self._try(lock):
                await self._until_it_may_be_free(released)

    async def _until_it_may_be_free(self, released: trio.abc.ReceiveChannel[None]) -> None:
        process = _process_that_signed(self._path)
        if process is None:
            with trio.move_on_after(RETRY_SECONDS):
                await released.receive()
            return
        try:
            async with Background("lease") as nursery:
                nursery.start_soon(self._tell_of_the_end_of, process)
                with trio.move_on_after(WATCHED_RETRY_SECONDS):
                    await released.receive()
        finally:
            os.close(process)

    async def _tell_of_the_end_of(self, process: int) -> None:
        await trio.lowlevel.wait_readable(process)
        self.released.notify()


def _sign(descriptor: int) -> None:
    """Write into the lock file who holds it."""
    with suppress(OSError):  # A full disk: those who wait try again each second.
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, f"{os.getpid()} {_where_its_id_counts()}\n".encode())


def _process_that_signed(path: Path) -> int | None:
    """A descriptor that is readable once the process has ended, if it is one of this system."""
    with suppress(OSError, ValueError, AttributeError):  # Windows, an old Linux; it has ended
        holder, _, place = path.read_text("utf-8").strip().partition(" ")
        if place == _where_its_id_counts() and int(holder) != os.getpid():
            return os.pidfd_open(int(holder))
    return None


@cache
def _where_its_id_counts() -> str:
    """Which system, since it was started, and which container: elsewhere an id is another's."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot}:{os.stat('/proc/self/ns/pid').st_ino}"
    return ""
