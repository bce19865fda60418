"""Connections of which a test holds the servers' ends, for a pool to go over."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from math import inf

import pytest
import trio

import gz_trio._transport.pool
from gz_trio._transport.connection import Exchange
from gz_trio._transport.interface import Request
from gz_trio._transport.origin import Origin
from gz_trio._transport.pool import Pool
from gz_trio.testing._memory import MemoryStream

SECONDS = 10
"""A server's end waits no longer for what a test expects, so that it fails instead of hanging."""

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

HOST = "gateway.test"


def without_poller(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the system without a poller, if the name of what connections go over says so."""
    if name.endswith("no poller"):
        monkeypatch.setattr(gz_trio._transport.pool, "make_poller", lambda: None)


class Peer:
    """The server's end of a connection."""

    def __init__(self, stream: MemoryStream) -> None:
        self.stream = stream
        self._buffer = bytearray()

    async def receive(self) -> bytes:
        """What comes next; nothing at the end, be it a proper one or not."""
        with trio.fail_after(SECONDS):
            try:
                return bytes(await self.stream.receive_some())
            except trio.BrokenResourceError:
                return b""

    async def request(self) -> bytes:
        """The next request, its body included."""
        await self._fill(lambda: self._buffer.find(b"\r\n\r\n") >= 0)
        head, _, body = self._buffer.partition(b"\r\n\r\n")
        fields = bytes(head).lower().split(b"\r\n")
        size = sum(int(field[15:]) for field in fields if field.startswith(b"content-length:"))
        end = len(self._buffer) - len(body) + size
        await self._fill(lambda: len(self._buffer) >= end)
        request = bytes(self._buffer[:end])
        del self._buffer[:end]
        return request

    async def _fill(self, is_enough: Callable[[], bool]) -> None:
        while not is_enough():
            data = await self.receive()
            assert data, f"the client has closed the connection, after {self._buffer[:100]!r}"
            self._buffer += data

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def send_raw(self, data: bytes) -> None:
        """Send what TLS has made already."""
        if data:
            await self.stream.send_all(data)

    async def begin(self) -> None:
        """Do what comes before a request."""

    async def end(self) -> None:
        """Say that nothing more comes, and close the connection."""
        await self.close()

    async def serve(self, answer: bytes = OK) -> None:
        """Answer whatever comes, until the client closes the connection."""
        with suppress(trio.BrokenResourceError, ssl.SSLError, EOFError):
            await self.begin()
            while await self.receive():
                await self.send(answer)

    async def closed(self) -> None:
        """Wait until the client has closed the connection."""
        while await self.receive():
            pass

    async def close(self) -> None:
        await self.stream.aclose()


class TlsPeer(Peer):
    """The server's end of a connection with TLS."""

    def __init__(self, stream: MemoryStream, context: ssl.SSLContext) -> None:
        super().__init__(stream)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    async def begin(self) -> None:
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.send_raw(self._outgoing.read())
                if not await self._receive_raw():
                    raise EOFError from None
            except ssl.SSLError:
                await self.send_raw(self._outgoing.read())  # an alert
                raise
            else:
                await self.send_raw(self._outgoing.read())
                return

    async def receive(self) -> bytes:
        while True:
            try:
                data = self.tls.read()
            except ssl.SSLWantReadError:
                if not await self._receive_raw():
                    return b""
            except ssl.SSLZeroReturnError:
                return b""
            else:
                await self.send_raw(self._outgoing.read())
                return data

    async def _receive_raw(self) -> bool:
        data = await super().receive()
        self._incoming.write(data)
        return bool(data)

    async def send(self, data: bytes) -> None:
        await self.send_raw(self.records(data))

    def records(self, *texts: bytes) -> bytes:
        """The ciphertext of `texts`, a record each."""
        for text in texts:
            self.tls.write(text)
        return self._outgoing.read()

    def goodbye(self) -> bytes:
        """The ciphertext of a close_notify."""
        with suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        return self._outgoing.read()

    async def end(self) -> None:
        await self.send_raw(self.goodbye())
        await self.close()

    async def closed(self) -> None:
        while await self._receive_raw():
            pass


class Wire:
    """Where the connections of a pool lead: `open_pool(connect=wire.connect)`.

    Args:
        make: Gives both ends of a connection, the server's first.
        tls: For servers that speak TLS.
    """

    def __init__(
        self,
        make: Callable[[], tuple[MemoryStream, trio.abc.Stream]],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.make = make
        self.tls = tls
        self.url = f"{'http' if tls is None else 'https'}://{HOST}/v1/models"
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
        peer = Peer(server) if self.tls is None else TlsPeer(server, self.tls)
        self.peers.append(peer)
        self._send.send_nowait(peer)
        return client

    async def accept(self) -> Peer:
        """The next connection's other end."""
        with trio.fail_after(SECONDS):
            peer = await self._accept.receive()
        await peer.begin()
        return peer

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
    url: str = f"http://{HOST}/v1/models",
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
        exchanges.append(await pool.send(request or asking(url=wire.url)))

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
        exchange.close()


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
