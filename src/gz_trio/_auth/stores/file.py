"""The key store that lives in a file: JSON that this store writes, or one bare key that it reads.

Processes agree by two locks beside the file: a short one around each write, so that a write meets
the version that it expects, and the lease, which is held while a key is refreshed. Reading and
writing happen in a thread: a home folder may lie on a network, and an `fsync` can take longer than
a thousand streams care to wait.
"""

from __future__ import annotations

import os
import shlex
import stat
import tempfile
import warnings
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote

import platformdirs
import trio

from ..._protocol.errors import KeyStoreError
from ..._protocol.keys import Record
from ._key_file import LIMIT, Content, parse, serialize
from ._lease import FileLease
from ._locks import Lock
from ._shared import Changes, replaced
from ._watch import FileWatch

LOCK_SECONDS = 10.0
"""How long a write waits for another process's, which takes milliseconds."""


class _Profile:
    """One profile, as all stores of this run that have it open see it.

    Versions never go back for as long as the run lasts, whatever is done to the file by hand.

    Args:
        name: The profile's.
        file: The key file.
        watch: Of that file.
    """

    def __init__(self, name: str, file: Path, watch: FileWatch) -> None:
        self.lease_file = _beside(file, f"{quote(name, safe='')}.lease")
        # What is refreshed in memory is refreshed by each process for itself.
        self.lease = FileLease(self.lease_file, file, watch, alone=lambda: self._bare)
        self.changes = Changes()
        self.paths: set[Path] = set()
        self._content: Content | None = None
        self._record = Record()

    @property
    def _bare(self) -> bool:
        return self._content is not None and self._content.bare

    def record(self, content: Content) -> Record:
        """The record that `content` means, after all that was seen of this profile before.

        Unchanged content means what it meant: for a bare file, which is never rewritten, that
        is the last write in memory.
        """
        said = content.record
        if self._content is None or said.version > self._record.version:
            return said
        if content == self._content:
            return self._record
        # Changed by hand, or removed. A bare key is a key that somebody rotated; a JSON file
        # with an older version is another history, perhaps another account's.
        epoch = max(said.epoch, self._record.epoch)
        if not content.bare and said.version > 0:
            epoch = self._record.epoch + 1
        changed = Record(epoch=epoch, key=said.key, refused=said.refused)
        return replaced(self._record, self._record.version, changed) or self._record

    def observe(self, content: Content) -> Record:
        """What `content`, which was just read, means; tells the others, if it is news to them."""
        self.settle(content, self.record(content))
        return self._record

    def settle(self, content: Content, record: Record) -> None:
        """From now on `content` means `record`; tells the others, if it is news to them."""
        news = record != self._record
        self._content, self._record = content, record
        if news:
            self.changes.notify()


class _SharedFile:
    """What the stores of one run that have one file open share.

    Args:
        file: The file, links followed.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        # A read or a write, and the bookkeeping that follows it, are one step.
        self.lock = trio.Lock()
        # Of its own: threads that wait for a key may have taken all of Trio's default limiter.
        # One thread, which may go on with a read that nobody waits for any more.
        self.limiter = trio.CapacityLimiter(1)
        self.watch = FileWatch(self._look, self._touched)
        self._profiles: dict[str, _Profile] = {}

    def profile(self, name: str, path: Path) -> _Profile:
        """The profile of that name, which a store reads at `path`."""
        if name not in self._profiles:
            self._profiles[name] = _Profile(name, self._file, self.watch)
        self._profiles[name].paths.add(path)
        self.watch.paths |= {path, self._file}
        return self._profiles[name]

    async def load(self, path: Path, name: str) -> tuple[Content, Record]:
        """What the file says now, and what that means. A checkpoint."""
        async with self.lock:
            content = await trio.to_thread.run_sync(
                _read,
                path,
                name,
                limiter=self.limiter,
                # A read changes nothing, and may hang for ever on a network that is gone.
                abandon_on_cancel=True,
            )
            return content, self._profiles[name].observe(content)

    async def _look(self) -> None:  # noqa: ASYNC910 - one for each that there is
        for name, profile in list(self._profiles.items()):
            for path in list(profile.paths):
                # Half written? The end of the writing is a change too.
                with suppress(KeyStoreError):
                    await self.load(path, name)

    def _touched(self, name: str) -> None:
        for profile in self._profiles.values():
            if profile.lease_file.name == name:
                profile.lease.released.notify()


# By run and not by process: trio's locks and channels belong to one run.
_shared_files: trio.lowlevel.RunVar[dict[str, _SharedFile]] = trio.lowlevel.RunVar("gz_trio files")


class FileKeyStore:
    """A `KeyStore` in a file, for any number of processes; several profiles can share the file.

    The file is written whole or not at all: to a temporary file beside it, which then takes its
    name; only its owner can read it. Any number of stores, in one process or in many, work
    together on one file: a write by one is seen, and told, by the others, and one of them
    refreshes for all. The files that their locks need are beside it and begin with a dot; they
    hold no secret.

    A file of one bare line, which is just a key, is read and *never* rewritten: a refreshed key
    then lives in memory, until the file is changed; what the file says then wins. A file that
    cannot be read, or is damaged, is an error and is never overwritten.

    Args:
        path: The file, which need not exist; `~` is the home folder. By default `keys.json` in
            the user's state folder for gz-trio (`platformdirs.user_state_dir`).
        profile: Which of the keys in the file.

    Attributes:
        path: The file, as an absolute path.
        profile: Which of the keys in it.

    Every method that touches the file raises `KeyStoreError` where it is damaged, empty, from a
    newer gz-trio, no regular file, or where the system does not let it be read or written. The
    first one warns (`UserWarning`) where other users can read the file.

    >>> from gz_trio import Key
    >>> async def main():
    ...     with tempfile.TemporaryDirectory() as folder:
    ...         store = FileKeyStore(Path(folder, "keys.json"))
    ...         print(await store.replace(0, Record(epoch=1, key=Key("sk-1"))))
    ...         print(await FileKeyStore(Path(folder, "keys.json")).load())
    >>> trio.run(main)
    True
    Record(version=1, epoch=1, key=<Key generation=1 epoch=1>, refused=False)
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, profile: str = "default"
    ) -> None:
        if path is None:
            path = Path(platformdirs.user_state_dir("gz-trio"), "keys.json")
        self.path: Final = Path(path).expanduser().absolute()
        self.profile: Final = profile
        # A link may be made to point elsewhere (Kubernetes rotates secrets so): it names the
        # file at first, and is followed anew by every read and write.
        self._name = os.path.realpath(self.path)
        self._warned = False

    def __repr__(self) -> str:
        return f"<FileKeyStore {str(self.path)!r} profile={self.profile!r}>"

    async def load(self) -> Record:
        """What the store holds now. A checkpoint.

        Raises:
            KeyStoreError: The file cannot be used; the message says why and what to do.
        """
        file, _ = self._shared()
        content, record = await file.load(self.path, self.profile)
        self._warn_if_open_to_others(content)
        return record

    async def replace(self, expected_version: int, record: Record) -> bool:
        """Write `record` in place of version `expected_version`; see `KeyStore.replace`.

        A checkpoint. Once begun, a write cannot be cancelled: it takes as long as the disk does.

        Raises:
            KeyStoreError: The file cannot be used or written, and is as it was.
        """
        file, profile = self._shared()
        async with file.lock:
            content, current, written = await trio.to_thread.run_sync(
                _swap,
                self.path,
                self.profile,
                profile,
                expected_version,
                record,
                limiter=file.limiter,
            )
            profile.settle(content, current)
            if written is not None:
                after = content if content.bare else Content(written)
                profile.settle(after, written)
        self._warn_if_open_to_others(content)
        return written is not None

    @asynccontextmanager
    async def changes(self) -> AsyncGenerator[trio.abc.ReceiveChannel[None]]:
        """Tells of changes; see `KeyStore.changes`.

        Of a change that somebody else made to the file, by hand or from another process, it tells
        when it is made, by what the operating system tells of; on a network file system, which
        tells of nothing, it looks each second, and says so in the log.
        """
        file, profile = self._shared()
        async with profile.changes.subscribe() as channel, file.watch.watching():
            yield channel

    def lease(self) -> AbstractAsyncContextManager[None]:
        """The right to refresh; entering is a checkpoint, leaving is not.

        It falls with its process, however that ends. Of a file of one bare key each process has
        one of its own.

        Raises:
            KeyStoreError: On entry: this user may not write to the file's folder.
            RuntimeError: On entry, by a task that holds the lease already.
        """
        _, profile = self._shared()
        return profile.lease.held()

    def _shared(self) -> tuple[_SharedFile, _Profile]:
        try:
            files = _shared_files.get()
        except LookupError:
            files = dict[str, _SharedFile]()
            _shared_files.set(files)
        if self._name not in files:
            files[self._name] = _SharedFile(Path(self._name))
        file = files[self._name]
        return file, file.profile(self.profile, self.path)

    def _warn_if_open_to_others(self, content: Content) -> None:
        if content.open_to_others and not self._warned:
            self._warned = True
            warnings.warn(
                f"other users can read the key file {self.path}: "
                f"chmod 600 {shlex.quote(str(self.path))}",
                stacklevel=3,
            )


# In the thread


def _swap(
    path: Path, name: str, profile: _Profile, expected_version: int, record: Record
) -> tuple[Content, Record, Record | None]:
    """The file's content before, what it meant, and what was written, if anything."""
    content = _read(path, name)
    current = profile.record(content)
    if content.bare or current.version != expected_version:
        return content, current, replaced(current, expected_version, record)
    # The file that a link points to is replaced, not the link.
    target = Path(os.path.realpath(path))
    lock = Lock(_beside(target, "lock"), path)
    try:
        if not lock.acquire(LOCK_SECONDS):
            raise KeyStoreError(
                f"the key file {path} could not be written: another process has been writing to "
                f"it for {LOCK_SECONDS:g} seconds"
            )
        content = _read(path, name)
        current = profile.record(content)
        written = replaced(current, expected_version, record)
        if written is not None:
            _write(target, serialize(content, name, written))
    except OSError as error:
        raise KeyStoreError(
            f"the key file {path} could not be written ({error.strerror}) and is as it was: "
            "make room, or let this user write to its folder"
        ) from error
    finally:
        lock.release()
    return content, current, written


def _beside(file: Path, suffix: str) -> Path:
    return file.with_name(f".{file.name}.{suffix}")


def _read(path: Path, name: str) -> Content:
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            mode = os.fstat(file.fileno()).st_mode
            # A pipe can be read only once, and a device may never end.
            data = file.read(LIMIT + 1) if stat.S_ISREG(mode) else None
    except FileNotFoundError:
        return Content()
    except IsADirectoryError:
        data, mode = None, 0
    except OSError as error:
        raise KeyStoreError(
            f"the key file {path} cannot be read ({error.strerror}): give this user the right "
            "to read it, or give another file"
        ) from error
    if data is None:
        raise KeyStoreError(
            f"the key file {path} is a folder, a pipe or a device: give the path of a file"
        )
    open_to_others = os.name == "posix" and bool(mode & 0o077)
    return parse(path, name, data, open_to_others=open_to_others)


def _open_without_waiting(path: str, flags: int) -> int:
    # To open a pipe that nobody writes to would wait for a writer.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _write(target: Path, data: bytes) -> None:
    # Made with mode 0600.
    descriptor, temporary = tempfile.mkstemp(".tmp", f".{target.name}.", target.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    if os.name == "posix":
        # The file is whole and in its place. That its name also survives a power cut is more
        # than some file systems promise: they refuse to sync a folder.
        with suppress(OSError):
            folder = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
