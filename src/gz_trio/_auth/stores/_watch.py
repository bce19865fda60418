"""Tells when files change, without polling: by inotify, on Linux. Elsewhere it tells nothing."""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import trio
from trio.lowlevel import enable_ki_protection

from ..._background import Background

_log = logging.getLogger("gz_trio.auth")


@asynccontextmanager
@enable_ki_protection
async def watching(
    files: set[Path], changed: Callable[[], Awaitable[None]]
) -> AsyncGenerator[None]:
    """Calls `changed` after one of `files` was written, replaced, made or removed.

    Their folders are watched, since a file that is replaced is another file; a folder that does
    not exist is not. Several changes in short succession may be one call. Entering is no
    checkpoint; changes count from then on.

    Where the system has no watch left to give (it counts them by user), or does not let this
    user watch the folder, it tells nothing, and says so in the log.
    """
    if sys.platform != "linux":
        yield
        return
    from inotify_simple import INotify, flags  # noqa: PLC0415 - there is one on Linux only

    events = flags.CLOSE_WRITE | flags.MOVED_TO | flags.MOVED_FROM | flags.CREATE | flags.DELETE
    names = {file.name for file in files}

    async def watch(inotify: INotify) -> None:
        while True:
            await trio.lowlevel.wait_readable(inotify.fileno())
            if names & {event.name for event in inotify.read(timeout=0)}:
                await changed()

    async with AsyncExitStack() as stack:
        try:
            inotify = stack.enter_context(INotify(nonblocking=True))
            for folder in {file.parent for file in files if file.parent.is_dir()}:
                inotify.add_watch(folder, events)
        except OSError as error:
            _log.warning("the key file's changes are not noticed: %s", error.strerror)
        else:
            nursery = await stack.enter_async_context(Background("key file's watch"))
            nursery.start_soon(watch, inotify)
        yield
