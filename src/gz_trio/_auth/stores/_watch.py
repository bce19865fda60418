"""Tells when files change, without polling: by inotify, on Linux. Elsewhere it tells nothing."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from ..._background import Background


@asynccontextmanager
async def watching(
    files: set[Path], changed: Callable[[], Awaitable[None]]
) -> AsyncGenerator[None]:
    """Calls `changed` after one of `files` was written, replaced, made or removed.

    Their folders are watched, since a file that is replaced is another file; a folder that does
    not exist is not. Several changes in short succession may be one call. Entering is no
    checkpoint; changes count from then on.
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

    with INotify(nonblocking=True) as inotify:
        for folder in {file.parent for file in files if file.parent.is_dir()}:
            inotify.add_watch(folder, events)
        async with Background("key file's watch") as nursery:
            nursery.start_soon(watch, inotify)
            yield
