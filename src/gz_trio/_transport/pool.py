"""Connections that are kept for the next request, and the transport over them."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from math import inf
from typing import TypeVar, cast

import trio

from .._background import Background
from .._protocol.errors import APIConnectionError
from .connection import Connection, Exchange
from .deadlines import Deadline, Deadlines
from .demux import Demux, DemuxedSocket, make_poller
from .http1 import ResponseReader, encode_request
from .interface import Request, Wait, seconds_of, untold
from .link import Link, LinkOwner, StreamLink
from .origin import Origin, parse_url
from .tls import TlsClient, certificate_name, default_ssl_context, tls_error

CONNECTS_AT_ONCE = 100
"""More would overrun the queue in which most servers keep connections until they accept them."""

IDLE_CONNECTIONS = 1000
"""Kept for each origin."""

IDLE_SECONDS = 60.0
"""Longer is none kept: most servers close them about then."""

_TOO_MANY_FILES = "this process has as many files open as it may (`ulimit -n`)"

T = TypeVar("T")

Connect = Callable[[Origin], Awaitable[trio.abc.Stream]]


async def connect_tcp(origin: Origin) -> trio.SocketStream:
    """A TCP connection; raises `OSError` where there is none."""
    return await trio.open_tcp_stream(origin.host, origin.port)


class Tasks:
    """Tasks in a nursery that run until they are stopped, not until they are cancelled.

    Whoever is about to leave may have something to finish, and needs its connections for it.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._scopes: set[trio.CancelScope] = set()
        self._stopped = False

    def start_soon(self, run: Callable[[], Awaitable[object]]) -> None:
        """As a nursery's."""
        self._nursery.start_soon(self._shelter, run, name=run)

    @trio.lowlevel.enable_ki_protection
    async def _shelter(self, run: Callable[[], Awaitable[object]]) -> None:
        with trio.CancelScope(shield=True) as scope:
            self._scopes.add(scope)
            if self._stopped:
                scope.cancel()
            try:
                await run()
            finally:
                self._scopes.discard(scope)

    def stop(self) -> None:
        """Let them end."""
        self._stopped = True
        for scope in self._scopes:
            scope.cancel()


class Pool:
    """A transport whose connections are kept. Made by `open_pool`."""

    def __init__(
        self,
        tasks: Tasks,
        *,
        demux: Demux | None,
        deadlines: Deadlines,
        ssl_context: ssl.SSLContext | None,
        connect: Connect,
    ) -> None:
        self._tasks = tasks
        self._demux = demux
        self._deadlines = deadlines
        self._ssl_context = ssl_context
        self._connect_link = connect
        self._connects = trio.CapacityLimiter(CONNECTS_AT_ONCE)
        self._on_left = self._release  # Once for all connections: each of them keeps it.
        self._closed = False
        self._open: set[Connection] = set()
        self._idle: dict[Origin, dict[Connection, None]] = {}  # Those used last come last.
        self._aging: Deadline | None = None  # There, if any is idle.

    @trio.lowlevel.enable_ki_protection  # or Ctrl-C may strike where nobody has a new socket yet
    async def send(self, request: Request) -> Exchange:
        """Send `request`; see `Transport.send`. Redirects are not followed: they carry the key."""
        origin, host, target = parse_url(request.url)
        content = encode_request(
            request.method, target, host, request.headers, request.content, absent=request.absent
        )
        kept = self._take_idle(origin, surely=not request.repeatable)
        if kept is not None:
            reader = ResponseReader(method=request.method, origin=origin)
            try:
                return await self._request(kept, content, reader, request.on_wait)
            except APIConnectionError:
                if reader.begun or not request.repeatable:
                    raise
        connection = await self._connect(
            origin, request.connect_timeout, request.on_wait, self._open_connection
        )
        request.on_wait("write")  # From here on the server may have got it.
        reader = ResponseReader(method=request.method, origin=origin)
        return await self._request(connection, content, reader, request.on_wait)

    async def _request(
        self,
        connection: Connection,
        content: bytes,
        reader: ResponseReader,
        on_wait: Callable[[Wait], None],
    ) -> Exchange:
        try:
            return await connection.request(content, reader, on_wait)
        except BaseException:
            self._close(connection)
            raise

    # Connections

    async def open_stream(self, url: str, timeout: float | None) -> trio.abc.Stream:
        """What a connection of another kind goes over, which is its opener's. A checkpoint.

        Args:
            url: Where it leads.
            timeout: Seconds until it stands, or `None`.

        Raises:
            APIConnectionError: There is none.
            ProtocolError: `url` is no URL of HTTP.
        """
        return await self._connect(Origin.of(url), timeout, untold, self._open_stream)

    async def _open_stream(self, origin: Origin) -> trio.abc.Stream:
        stream = await self._connect_link(origin)
        if origin.scheme == "http":
            return stream
        context = self._ssl_context or default_ssl_context()
        secured = trio.SSLStream(
            stream, context, server_hostname=certificate_name(origin.host), https_compatible=True
        )
        try:
            await secured.do_handshake()
        except trio.BrokenResourceError as error:
            await trio.aclose_forcefully(stream)
            if isinstance(error.__cause__, ssl.SSLError):
                raise tls_error(error.__cause__, origin.host, in_handshake=True) from error
            raise
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return secured

    async def _connect(
        self,
        origin: Origin,
        timeout: float | None,
        on_wait: Callable[[Wait], None],
        open_: Callable[[Origin], Awaitable[T]],
    ) -> T:
        on_wait("pool")
        async with self._connects:
            on_wait("connect")
            with trio.move_on_after(seconds_of(timeout)):
                try:
                    return await open_(origin)
                except (OSError, UnicodeError, trio.BrokenResourceError) as error:
                    if not {errno.EMFILE, errno.ENFILE}.isdisjoint(_errnos(error)):
                        message = f"no connection to {origin}: {_TOO_MANY_FILES}"
                        raise APIConnectionError(message) from error
                    raise APIConnectionError(_no_connection(origin)) from error
            raise APIConnectionError(_no_connection(origin, f" within {timeout:g} s"))

    async def _open_connection(self, origin: Origin) -> Connection:
        tls = None
        if origin.scheme == "https":
            tls = TlsClient(self._ssl_context or default_ssl_context(), origin.host)
        stream = await self._connect_link(origin)
        if self._closed:
            await trio.aclose_forcefully(stream)
            raise trio.ClosedResourceError("the transport was closed")
        make_link: Callable[[LinkOwner], Link] = partial(self._link, stream)
        connection = Connection(origin, make_link, tls, self._on_left, self._deadlines)
        self._open.add(connection)
        try:
            await connection.handshake()
        except BaseException:
            self._close(connection)
            raise
        return connection

    def _link(self, stream: trio.abc.Stream, owner: LinkOwner) -> Link:
        if self._demux is None or not isinstance(stream, trio.SocketStream):
            return StreamLink(stream, owner, self._tasks)
        sock = stream.socket
        family, kind, protocol = sock.family, sock.type, sock.proto
        bare = socket.socket(family, kind, protocol, fileno=sock.detach())
        bare.setblocking(False)  # It is already, but `socket.setdefaulttimeout` may say otherwise.
        return DemuxedSocket(self._demux, bare, owner)

    def _take_idle(self, origin: Origin, *, surely: bool) -> Connection | None:
        """The connection that was used last: the server has had the least time to close it.

        Args:
            origin: Where it leads.
            surely: Not one that the server has closed, even if the task that would have noticed
                has not run since: the program may have been busy.
        """
        kept = self._idle.get(origin, {})
        self._close_old(kept)
        while kept:
            connection, _ = kept.popitem()
            connection.on_idle_end = None
            if not (surely and connection.link.has_unread()):
                return connection
            self._close(connection)
        self._idle.pop(origin, None)
        return None

    def _release(self, connection: Connection) -> None:
        """An exchange on `connection` was left: keep it, or close it."""
        if not connection.reusable or connection not in self._open:
            self._close(connection)
            return
        kept = self._idle.setdefault(connection.origin, {})
        if len(kept) >= IDLE_CONNECTIONS:
            self._close(next(iter(kept)))
        connection.idle_since = now = trio.current_time()
        connection.on_idle_end = self._close
        kept[connection] = None
        if self._aging is None:
            self._aging = self._deadlines.set(now + IDLE_SECONDS, self._close_all_old)
        try:
            connection.link.start_reading()  # to be told when the server closes it
        except (trio.ClosedResourceError, APIConnectionError):  # Nobody can read it.
            self._close(connection)

    def _close_old(self, kept: dict[Connection, None]) -> float:
        """Close those whose time has come; when that of the next one does."""
        now = trio.current_time()
        while kept:
            oldest = next(iter(kept))
            until = oldest.idle_since + IDLE_SECONDS
            if until > now:
                return until
            self._close(oldest)
        return inf

    def _close_all_old(self) -> None:
        next_at = min(map(self._close_old, self._idle.values()), default=inf)
        self._idle = {origin: kept for origin, kept in self._idle.items() if kept}
        self._aging = self._deadlines.set(next_at, self._close_all_old)

    def _close(self, connection: Connection) -> None:
        self._open.discard(connection)
        self._idle.get(connection.origin, {}).pop(connection, None)
        connection.close()

    def close(self) -> None:
        """Close all connections, those with a response that is being read too."""
        self._closed = True
        for connection in list(self._open):
            self._close(connection)
        self._tasks.stop()


@asynccontextmanager
@trio.lowlevel.enable_ki_protection
async def open_pool(
    ssl_context: ssl.SSLContext | None = None, connect: Connect = connect_tcp
) -> AsyncGenerator[Pool]:
    """A transport with a task that reads its connections.

    Args:
        ssl_context: For `https://`; `None`: the certificates that httpx trusts.
        connect: Opens what connections go over. A socket is read by the one task, any other
            stream by a task of its own.

    Raises:
        APIConnectionError: This process has as many files open as it may.
    """
    async with Background("connections") as nursery:
        # Nothing is waited for before the `yield`: whoever opens it may be cancelled already, and
        # tasks that share it may open it at once.
        tasks = Tasks(nursery)
        try:
            poller = make_poller()
        except OSError as error:
            raise APIConnectionError(f"no connection can be read: {_TOO_MANY_FILES}") from error
        demux = None
        if poller is not None:
            demux = Demux(poller)
            tasks.start_soon(demux.run)
        deadlines = Deadlines()
        tasks.start_soon(deadlines.run)
        pool = Pool(
            tasks, demux=demux, deadlines=deadlines, ssl_context=ssl_context, connect=connect
        )
        try:
            yield pool
        finally:
            pool.close()


def _errnos(error: BaseException) -> set[int | None]:
    """Why there is no connection: for each address that was tried (`trio.open_tcp_stream`)."""
    tried = error.__cause__
    if not isinstance(tried, BaseExceptionGroup):
        return {getattr(error, "errno", None)}
    group = cast("BaseExceptionGroup[BaseException]", tried)
    return {getattr(each, "errno", None) for each in group.exceptions}


def _no_connection(origin: Origin, within: str = "") -> str:
    return f"no connection to {origin}{within}: is the gateway up, and the base URL right?"
