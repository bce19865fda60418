"""Over which transport the tests of replies run: `pytest --transport=sockets|streams|httpx`.

Tests connect to a fake gateway in memory, by way of `fake.http_client()`, which is an httpx client.
Left as it is, that tests the httpx way. Otherwise the connections go into the library's own
transport: over sockets, as users have it, or over in-memory streams. The sockets are a pair of Unix
ones: what one end sends, the other end has at once, so that a mock clock may jump meanwhile.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio

import gz_trio._transport.choosing
import gz_trio.testing._gateway
from gz_trio._transport.httpx import open_httpx_transport
from gz_trio._transport.interface import Transport
from gz_trio._transport.origin import Origin
from gz_trio._transport.pool import open_pool
from gz_trio.testing._memory import (
    MemoryStream,
    _NetworkBackend,  # pyright: ignore[reportPrivateUsage]
    _Wire,  # pyright: ignore[reportPrivateUsage]
)

TRANSPORTS = ("sockets", "streams", "httpx")


class _ServerEnd(MemoryStream):
    """A server's end of a pair of sockets, which can break the connection as TCP can."""

    def __init__(self, sock: socket.socket, peer: socket.socket) -> None:
        super().__init__(trio.SocketStream(trio.socket.from_stdlib_socket(sock)), _Wire())
        self._peer = peer.fileno()
        self._inode = os.fstat(self._peer).st_ino

    async def reset(self) -> None:
        with suppress(OSError):
            if os.fstat(self._peer).st_ino == self._inode:
                # Closing with something unread is what breaks a Unix socket's connection.
                os.write(self._peer, b"!")
        await trio.aclose_forcefully(self)


def socket_connection() -> tuple[MemoryStream, trio.SocketStream]:
    """The server's and the client's end of a new connection."""
    server, client = socket.socketpair()
    server_end = _ServerEnd(server, client)
    return server_end, trio.SocketStream(trio.socket.from_stdlib_socket(client))


@asynccontextmanager
async def _open_own_transport(client: Any) -> AsyncGenerator[Transport]:
    """Our transport over the connections of an in-memory client; any other one is left alone."""
    pool = getattr(getattr(client, "_transport", None), "_pool", None)
    backend = getattr(pool, "_network_backend", None)
    if not isinstance(backend, _NetworkBackend):
        async with open_httpx_transport(client) as transport:
            yield transport
        return

    async def connect(origin: Origin) -> trio.abc.Stream:
        return await backend.connect(origin.host)

    async with open_pool(connect=connect) as own:
        yield own


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--transport", choices=TRANSPORTS, default="sockets")


@pytest.fixture(autouse=True)
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of the transport that the test runs over."""
    name = str(request.config.getoption("--transport"))
    if name != "httpx":
        monkeypatch.setattr(
            gz_trio._transport.choosing, "open_httpx_transport", _open_own_transport
        )
    if name == "sockets":
        monkeypatch.setattr(gz_trio.testing._gateway, "memory_connection", socket_connection)
    return name
