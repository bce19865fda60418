"""Connections of which a test holds the servers' ends, for a pool to go over."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from math import inf

import trio

from gz_trio._transport.connection import Exchange
from gz_trio._transport.interface import Request
from gz_trio._transport.origin import Origin
from gz_trio._transport.pool import Pool
from gz_trio.testing._memory import MemoryStream

SECONDS = 10
"""A server's end waits no longer for what a test expects, so that it fails instead of hanging."""

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

URL = "http://gateway.test/v1/models"


class Peer:
    """The server's end of a connection."""

    def __init__(self, stream: MemoryStream) -> None:
        self.stream = stream
        self._buffer = b""

    async def receive(self) -> bytes:
        """What comes next; nothing at the end, be it a proper one or not."""
        with trio.fail_after(SECONDS):
            try:
                return bytes(await self.stream.receive_some())
            except trio.BrokenResourceError:
                return b""

    async def request(self) -> bytes:
        """The next request, its body included."""
        while True:
            head, found, rest = self._buffer.partition(b"\r\n\r\n")
            fields = head.lower().split(b"\r\n")
            sizes = [int(field[15:]) for field in fields if field.startswith(b"content-length:")]
            size = sizes[0] if sizes else 0
            if found and len(rest) >= size:
                self._buffer = rest[size:]
                return head + found + rest[:size]
            data = await self.receive()
            assert data, f"the client has closed the connection, after {self._buffer[:100]!r}"
            self._buffer += data

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def serve(self, answer: bytes = OK) -> None:
        """Answer whatever comes, until the client closes the connection."""
        with suppress(trio.BrokenResourceError):
            while await self.receive():
                await self.send(answer)

    async def closed(self) -> bytes:
        """Wait until the client has closed the connection; what it sent before."""
        while data := await self.receive():
            self._buffer += data
        return self._buffer

    async def close(self) -> None:
        await self.stream.aclose()


class Wire:
    """Where the connections of a pool lead: `open_pool(connect=wire.connect)`.

    Args:
        make: Gives both ends of a connection, the server's first.
    """

    def __init__(self, make: Callable[[], tuple[MemoryStream, trio.abc.Stream]]) -> None:
        self.make = make
        self.origins: list[Origin] = []
        """Of the connects so far."""
        self.connecting = 0
        """How many connects are under way."""
        self.most_connecting = 0
        self.before_connect: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        self.peers: list[Peer] = []
        self._send, self._accept = trio.open_memory_channel[Peer](inf)

    async def connect(self, origin: Origin) -> trio.abc.Stream:
        self.origins.append(origin)
        self.connecting += 1
        self.most_connecting = max(self.most_connecting, self.connecting)
        try:
            await self.before_connect()
        finally:
            self.connecting -= 1
        server, client = self.make()
        peer = Peer(server)
        self.peers.append(peer)
        self._send.send_nowait(peer)
        return client

    async def accept(self) -> Peer:
        """The next connection's other end."""
        with trio.fail_after(SECONDS):
            return await self._accept.receive()

    async def serve(self) -> None:
        """Answer whatever comes, over each connection there is and will be, until cancelled."""
        known = list(self.peers)
        async with trio.open_nursery() as nursery:
            for peer in known:
                nursery.start_soon(peer.serve)
            async for peer in self._accept:
                if peer not in known:
                    nursery.start_soon(peer.serve)

    def connected(self) -> bool:
        """Whether there is another connection that was not accepted."""
        return self._accept.statistics().current_buffer_used > 0

    async def close(self) -> None:
        for peer in self.peers:
            with suppress(trio.BrokenResourceError):
                await trio.aclose_forcefully(peer.stream)


def asking(
    method: str = "GET",
    url: str = URL,
    *,
    content: bytes = b"",
    connect_timeout: float | None = None,
    repeatable: bool = False,
) -> Request:
    """A request."""
    return Request(
        method,
        url,
        headers={},
        content=content,
        connect_timeout=connect_timeout,
        repeatable=repeatable,
    )


async def answered(
    pool: Pool,
    wire: Wire,
    answer: bytes = OK,
    *,
    by: Peer | None = None,
    request: Request | None = None,
) -> tuple[Peer, Exchange]:
    """A request and its answer: over a new connection, or over a kept one whose end is `by`."""
    exchanges: list[Exchange] = []

    async def send() -> None:
        exchanges.append(await pool.send(request or asking()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        peer = by or await wire.accept()
        await peer.request()
        await peer.send(answer)
    assert not wire.connected()
    return peer, exchanges[0]


async def read(exchange: Exchange) -> bytes:
    """The body to its end; then the response is closed."""
    try:
        body = b""
        while data := await exchange.receive():
            body += data
        return body
    finally:
        await exchange.aclose()


async def answered_and_read(
    pool: Pool,
    wire: Wire,
    answer: bytes = OK,
    *,
    by: Peer | None = None,
    request: Request | None = None,
) -> tuple[Peer, bytes]:
    """As `answered`; the other end, and the body."""
    peer, exchange = await answered(pool, wire, answer, by=by, request=request)
    return peer, await read(exchange)
