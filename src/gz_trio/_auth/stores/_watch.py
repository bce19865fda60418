"""Tells when a key file changes: by inotify on Linux, elsewhere by watchfiles, else by looking.

On Linux nothing runs while nothing changes. File systems that tell of no change, those of a
network, are looked at each second.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import trio
from trio.lowlevel import enable_ki_protection

from ..._background import Background
from ._network import network_file_system

if TYPE_CHECKING:
    from watchfiles._rust_notify import RustNotify

LOOK_SECONDS = 1.0
"""Between two looks at a file of which the system tells nothing."""

_STEP_MILLISECONDS = 50
"""Between two looks of watchfiles' at what the system has told it."""

_MOST_LINKS = 40
"""As many as Linux follows."""

_log = logging.getLogger("gz_trio.auth")


class FileWatch:
    """Watches a file for all who listen in one run; one of them does the work for all.

    Args:
        changed: Called after the file may have been written, replaced, made or removed. Several
            changes in short succession may be one call.
        touched: Called with the name of a file beside it whose times were set (`os.utime`).
    """

    def __init__(
        self, changed: Callable[[], Awaitable[None]], touched: Callable[[str], None]
    ) -> None:
        self.paths: set[Path] = set()
        """The file, by all the names that it is known under here; links are followed."""
        self._changed = changed
        self._touched = touched
        self._listeners = 0
        self._leader = trio.Lock()
        self._source: Source | None = None
        self._steps: set[Path] = set()

    @asynccontextmanager
    @enable_ki_protection
    async def watching(self) -> AsyncGenerator[None]:
        """Changes count from entry on, which is no checkpoint."""
        self._listeners += 1
        if self._listeners == 1:
            self._source = self._arm()
        elif self._source is not None:
            self._aim_again(self._source)  # Whoever has come may know the file by another name.
        try:
            async with Background("key file's watch") as nursery:
                nursery.start_soon(self._follow)
                yield
        finally:
            self._listeners -= 1
            if not self._listeners and self._source is not None:
                self._source.close()
                self._source = None

    def _arm(self) -> Source | None:
        """`None` where the file has to be looked at; the log says why."""
        for path in self.paths:
            if kind := network_file_system(path):
                _log.warning(
                    "the key file %s is on a network (%s), which tells of no changes: it is "
                    "looked at each second",
                    path,
                    kind,
                )
                return None
        source = None
        try:
            source = open_source()
            self._aim(source)
        except OSError as error:  # Linux counts them by user, and has an end of them.
            _log.warning(
                "the system tells of no changes to the key file (%s): it is looked at each second",
                error.strerror,
            )
            if source is not None:
                source.close()
            return None
        return source

    def _aim(self, source: Source) -> None:
        """Watch what decides now what the paths lead to."""
        aimed: set[Path] | None = None
        # What changes while it is being aimed is not told; so it is looked at once more.
        while aimed != (steps := {step for path in self.paths for step in _steps(path)}):
            aimed = steps
            source.watch({step.parent for step in steps})
        self._steps = steps

    def _aim_again(self, source: Source) -> None:
        try:
            self._aim(source)
        except OSError as error:
            _log.warning(
                "a folder on the way to the key file cannot be watched (%s): changes there are not "
                "noticed",
                error.strerror,
            )

    @enable_ki_protection
    async def _follow(self) -> None:
        async with self._leader:  # When this one leaves, the next one goes on.
            source = self._source
            while source is None:
                await trio.sleep(LOOK_SECONDS)
                await self._changed()
            while True:
                changed, touched = await source.changes()
                for path in touched:
                    self._touched(path.name)
                if changed is None or (changed | touched) & self._steps:
                    self._aim_again(source)
                    await self._changed()


def _steps(path: Path) -> set[Path]:
    """What decides what `path` leads to: each link on the way, the end, and where it ends early.

    A folder that is missing, or is a link itself (so Kubernetes rotates secrets), counts too.
    """
    found: set[Path] = set()
    todo = list(reversed(path.absolute().parts))
    here = Path(todo.pop())
    while todo:
        part = todo.pop()
        if part == "..":
            here = here.parent
            continue
        here = here / part
        try:
            if here.is_symlink() and len(found) < _MOST_LINKS:
                found.add(here)
                target = Path(os.readlink(here))
                here = Path(target.anchor) if target.is_absolute() else here.parent
                todo += reversed(target.parts[1:] if target.is_absolute() else target.parts)
            elif not here.exists():
                break
        except OSError:  # This user may not look any further; reading the file says so.
            break
    return found | {here}


class Source(Protocol):
    """Tells what happens in folders."""

    def watch(self, folders: set[Path]) -> None:
        """Tell of these from now on, and of no others; one that is missing is left out.

        Raises:
            OSError: The system does not let it.
        """
        ...

    async def changes(self) -> tuple[set[Path] | None, set[Path]]:
        """Wait until something happens. A checkpoint.

        Returns:
            What was written, replaced, made or removed, `None` where that may be anything; and
            whose times or rights were set.
        """
        ...

    def close(self) -> None:
        """Tell nothing more."""
        ...


class Inotify:
    """By Linux's inotify(7), which is a descriptor that is readable when there is something.

    Raises:
        OSError: The user has as many of them as the system gives.
    """

    def __init__(self) -> None:
        from inotify_simple import INotify, flags  # noqa: PLC0415 - there is one on Linux only

        self._touched = flags.ATTRIB
        self._anything = flags.Q_OVERFLOW | flags.DELETE_SELF | flags.MOVE_SELF | flags.UNMOUNT
        self._told = (
            flags.CLOSE_WRITE | flags.MOVED_TO | flags.MOVED_FROM | flags.CREATE | flags.DELETE
            | flags.ATTRIB | flags.DELETE_SELF | flags.MOVE_SELF
        )  # fmt: skip
        self._inotify = INotify(nonblocking=True)
        self._folders: dict[int, Path] = {}
        self.close = self._inotify.close

    def watch(self, folders: set[Path]) -> None:
        """See `Source`."""
        watched: dict[int, Path] = {}
        for folder in folders:
            with suppress(FileNotFoundError, NotADirectoryError):
                watched[self._inotify.add_watch(folder, self._told)] = folder
        for watch in self._folders.keys() - watched.keys():
            with suppress(OSError):  # It has ended with its folder.
                self._inotify.rm_watch(watch)
        self._folders = watched

    async def changes(self) -> tuple[set[Path] | None, set[Path]]:
        """See `Source`."""
        await trio.lowlevel.wait_readable(self._inotify.fileno())
        changed: set[Path] | None = set()
        touched: set[Path] = set()
        for event in self._inotify.read(timeout=0):
            folder = self._folders.get(event.wd)
            if event.mask & self._anything:
                changed = None
            elif folder is not None and event.mask & self._touched:
                touched.add(folder / event.name)
            elif folder is not None and changed is not None:
                changed.add(folder / event.name)
        return changed, touched


class Watchfiles:
    """By watchfiles, which knows what each system has; it looks every 50 ms, in a thread."""

    def __init__(self) -> None:
        from watchfiles._rust_notify import RustNotify  # noqa: PLC0415 - it is not there on Linux

        self._rust_notify = RustNotify
        self._notify: RustNotify | None = None

    def watch(self, folders: set[Path]) -> None:
        """See `Source`."""
        self.close()
        self._notify = self._rust_notify(
            [str(folder) for folder in folders if folder.is_dir()],
            debug=False,
            force_polling=False,
            poll_delay_ms=0,
            recursive=False,
            ignore_permission_denied=True,
        )

    async def changes(self) -> tuple[set[Path] | None, set[Path]]:
        """See `Source`."""
        notify, ended = self._notify, threading.Event()
        assert notify is not None  # noqa: S101 - it was told what to watch

        async def end_when_cancelled() -> None:
            try:
                await trio.sleep_forever()
            finally:
                ended.set()

        told: set[tuple[int, str]] | str = ""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end_when_cancelled)
            with trio.CancelScope(shield=True):  # It ends within a step.
                told = await trio.to_thread.run_sync(
                    notify.watch, _STEP_MILLISECONDS, _STEP_MILLISECONDS, 0, ended
                )
            nursery.cancel_scope.cancel()
        changed = set[Path]() if isinstance(told, str) else {Path(path) for _, path in told}
        return changed, changed

    def close(self) -> None:
        """See `Source`."""
        if self._notify is not None:
            self._notify.close()
            self._notify = None


if sys.platform == "linux":
    open_source: Callable[[], Source] = Inotify
else:
    open_source = Watchfiles
