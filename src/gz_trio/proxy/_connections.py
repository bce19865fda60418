"""The connections of the proxy's clients, each served by hypercorn's Trio worker.

Not by its `serve`: there one malformed request (`Upgrade: h2c` with settings that are none) ends
the server, for everybody, and a client that takes nothing keeps it from ending.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import cast

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, ConnectionState
from starlette.types import ASGIApp

from .._background import leaves

HEAD_SECONDS = 60.0
"""For the head of a request, and between two on one connection."""

STALL_SECONDS = 60.0
"""After so long a client that takes nothing of what is sent to it is gone."""

MOST_HEAD_BYTES = 65_536
BACKLOG = 1_024

# What the system holds for a client that is slow; more is not read from the gateway.
_SEND_BUFFER_BYTES = 65_536
_SEND_BYTES = 65_536


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
        host: An address.
        port: 0 takes any that is free.

    Raises:
        OSError: It cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    # Those of its connections are the same.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setblocking(False)
    return listener


class Connections:
    """All connections of one server.

    Args:
        app: Answers their requests.
        log: Called with a line for each connection that failed.

    Attributes:
        over: Set when no more are accepted, and the last one is closed.
    """

    def __init__(self, app: ASGIApp, log: Callable[[str], object]) -> None:
        self._app = ASGIWrapper(cast("ASGIFramework", app))
        self._log = log
        self._context = WorkerContext(None)
        self._open: set[_ClientStream] = set()
        self._accepting = trio.CancelScope()
        self.over = trio.Event()
        config = self._config = Config()
        config.errorlog = None  # The application tells what happens.
        config.include_date_header = config.include_server_header = False
        config.h11_max_incomplete_size = MOST_HEAD_BYTES
        config.keep_alive_timeout = HEAD_SECONDS

    async def run(self, listener: socket.socket) -> None:
        """Accept connections and serve them, until `accept_no_more` and the last one's end.

        Cancelled, it closes all of them at once.
        """
        accept = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._close_all_when_cancelled)
            async with trio.open_nursery() as serving:
                with self._accepting:
                    await trio.serve_listeners(self._serve_one, [accept], handler_nursery=serving)
                await self._context.terminated.set()  # It ends those that wait for a request.
            nursery.cancel_scope.cancel()
        self.over.set()

    def accept_no_more(self) -> None:
        """Let those go on that are there, each until its answer is sent."""
        self._accepting.cancel()

    async def _serve_one(self, stream: trio.SocketStream) -> None:
        client = _ClientStream(stream)
        self._open.add(client)
        try:
            await TCPServer(
                self._app,
                self._config,
                self._context,
                ConnectionState({}),
                cast("trio.SSLStream[trio.SocketStream]", client),
            ).run()
        except* Exception as group:
            kinds = {type(leaf).__name__ for leaf in leaves(group)}
            self._log(f"a connection failed: {', '.join(sorted(kinds))}")
        finally:
            self._open.discard(client)

    async def _close_all_when_cancelled(self) -> None:
        """Hypercorn shields what it sends: only the end of its socket ends a send."""
        try:
            await trio.sleep_forever()
        finally:
            for client in self._open:
                client.socket.close()


class _ClientStream:
    """A connection as hypercorn uses one; it breaks when its client takes nothing for too long."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.socket = stream.socket
        self._stream = stream

    async def send_all(self, data: bytes) -> None:
        with memoryview(data) as whole:
            for start in range(0, len(whole), _SEND_BYTES):
                with trio.move_on_after(STALL_SECONDS) as patience:
                    await self._stream.send_all(whole[start : start + _SEND_BYTES])
                if patience.cancelled_caught:
                    self.socket.close()
                    raise trio.BrokenResourceError("the client takes nothing")

    async def receive_some(self, max_bytes: int) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()
