"""What waiting for a socket and reading it costs by itself: each read counts, and is dropped.

By gz_trio's demultiplexer, and by raw uvloop protocols. What a client on the one loop can be,
compared with one on the other, is no less than what these two are to each other.
"""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from typing import cast
from urllib.parse import urlsplit

import trio

from gz_trio._transport.demux import Demux, DemuxedSocket, make_poller

from ..tally import Tally
from . import OPENING, Load
from .wire import request


def _address(load: Load) -> tuple[str, int]:
    url = urlsplit(load.base_url)
    assert url.hostname is not None
    assert url.port is not None
    return url.hostname, url.port


class _Counting:
    """Owner of a demultiplexed socket."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def data_received(self, data: bytes, arrived_ns: int) -> None:
        """A read."""
        del data, arrived_ns
        self._tally.tokens += 1

    def connection_lost(self, error: BaseException | None) -> None:
        """The end, which comes with that of the client."""


async def streams(load: Load, tally: Tally) -> None:
    """Open the streams, and read them until the end of the client."""
    await {"trio": _on_trio, "uvloop": _on_uvloop}[load.variant](load, tally)


async def _on_trio(load: Load, tally: Tally) -> None:
    host, port = _address(load)
    poller = make_poller()
    assert poller is not None
    demux = Demux(poller)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(demux.run)
        for number in range(load.streams):
            await trio.lowlevel.checkpoint()  # Opening is not measured, and may block.
            sock = socket.create_connection((host, port))
            sock.sendall(request(load.base_url, number))
            sock.setblocking(False)
            DemuxedSocket(demux, sock, _Counting(tally)).start_reading()


class _CountingProtocol(asyncio.Protocol):
    def __init__(self, content: bytes, tally: Tally) -> None:
        self._content = content
        self._tally = tally

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        cast("asyncio.WriteTransport", transport).write(self._content)

    def data_received(self, data: bytes) -> None:
        """A read."""
        del data
        self._tally.tokens += 1


async def _on_uvloop(load: Load, tally: Tally) -> None:
    host, port = _address(load)
    loop = asyncio.get_running_loop()
    limiter = asyncio.Semaphore(OPENING)

    async def connect(number: int) -> None:
        make = partial(_CountingProtocol, request(load.base_url, number), tally)
        async with limiter:
            await loop.create_connection(make, host, port)

    async with asyncio.TaskGroup() as group:
        for number in range(load.streams):
            group.create_task(connect(number))
    await asyncio.Event().wait()
