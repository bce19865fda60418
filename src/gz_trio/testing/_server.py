"""One HTTP/1.1 connection of the fake gateway: h11 between a Trio stream and a handler."""

from __future__ import annotations

import re
import socket
import struct
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import h11
import trio

from ._faults import Close
from ._memory import MemoryStream

Framing: TypeAlias = Literal["chunked", "plain", "gzip"]
"""How the body of an answer travels; `FakeGateway` says what each is."""

_RECEIVE_BYTES = 65_536


class HangUp(Exception):
    """The server leaves the connection in the middle of an answer."""

    def __init__(self, *, reset: bool = False, close: Close | None = None) -> None:
        super().__init__("the connection is left in the middle of an answer")
        self.reset = reset
        self.close = close


@dataclass(slots=True, eq=False)
class Interruptible:
    """An answer that another task may end, but only while it waits between two sends.

    A send that was cancelled halfway would leave half a frame on the wire.
    """

    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: bool = False
    waiting: bool = False

    def end(self) -> None:
        """Make the answer stop at once, or when the send that is under way is done."""
        self.ended = True
        if self.waiting:
            self.scope.cancel()


class _Gzip:
    """A body in gzip, of which the client can read each piece as soon as it comes."""

    def __init__(self) -> None:
        self._stream = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)  # 16: gzip's head and trailer

    def piece(self, data: bytes) -> bytes:
        return self._stream.compress(data) + self._stream.flush(zlib.Z_SYNC_FLUSH)

    def end(self) -> bytes:
        return self._stream.flush()


class Exchange:
    """One request, and the writer of its answer.

    Attributes:
        drip: Seconds between two bytes, each sent alone; `None` sends them together.
        running: What may end the answer.
        framing: How its body travels.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        connection: h11.Connection,
        request: h11.Request,
        body: bytes,
    ) -> None:
        self.method = request.method.decode("ascii")
        self.target = request.target.decode("ascii")
        self.headers = [
            (name.decode("ascii"), value.decode("latin-1")) for name, value in request.headers
        ]
        self.body = body
        self.drip: float | None = None
        self.running: Interruptible | None = None
        self.framing: Framing = "chunked"
        self._stream = stream
        self._connection = connection
        self._unsent = bytearray()
        self._bytes_left: int | None = None
        self._reset = False
        self._bodiless = False
        self._gzip: _Gzip | None = None

    def put_head(self, status: int, headers: list[tuple[str, str]]) -> None:
        """Put the status line and the header fields into the outbound buffer."""
        # RFC 9110 section 6.4.1: these have no body, whatever their length says.
        self._bodiless = self.method == "HEAD" or status in (204, 304)
        if self.framing != "chunked" and not self._bodiless:
            headers = self._reframed(headers)
        self._put(h11.Response(status_code=status, headers=headers))

    def _reframed(self, headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
        names = {name for name, _ in headers}
        if self.framing == "plain":
            # h11 leaves a body to the end of the connection only where the client speaks HTTP/1.0.
            self._connection.their_http_version = b"1.0"
        elif "content-encoding" in names or not _accepts_gzip(self.headers):
            return headers
        else:
            self._gzip = _Gzip()
            headers = [*headers, ("content-encoding", "gzip")]
        # Without either, h11 puts in what is left: chunked coding, or `connection: close`.
        framing = ("content-length", "transfer-encoding")
        return [(name, value) for name, value in headers if name not in framing]

    def put_body(self, data: bytes) -> None:
        """Put a piece of the body into the outbound buffer."""
        if self._gzip is not None and data:
            data = self._gzip.piece(data)
        self._put_encoded(data)

    def _put_encoded(self, data: bytes) -> None:
        if self._bodiless:
            return
        if self._bytes_left is not None:
            data = data[: self._bytes_left]
            self._bytes_left -= len(data)
        if data:
            self._put(h11.Data(data=data))

    def put_end(self) -> None:
        """Put the end of the body into the outbound buffer."""
        if self._gzip is not None:
            self._put_encoded(self._gzip.end())
        if self._bytes_left != 0:
            self._put(h11.EndOfMessage())

    def hang_up_after(self, size: int, *, reset: bool) -> None:
        """Leave the connection once so many more bytes of the body are sent."""
        self._bytes_left = size
        self._reset = reset

    async def flush(self) -> None:
        """Send the outbound buffer; a checkpoint if there is anything in it.

        Raises:
            HangUp: The answer was to be left here.
            trio.BrokenResourceError: The client is gone.
        """
        while self._unsent:
            size = len(self._unsent) if self.drip is None else 1
            data = bytes(self._unsent[:size])
            del self._unsent[:size]
            await self._stream.send_all(data)
            if self.drip is not None and self._unsent:
                await self.wait(self.drip)
        if self._bytes_left == 0:
            raise HangUp(reset=self._reset)

    async def wait(self, seconds: float) -> None:
        """Sleep; what `running.end()` interrupts."""
        if self.running is None:
            await trio.sleep(seconds)
            return
        if self.running.ended:  # while a send was under way
            self.running.scope.cancel()
        self.running.waiting = True
        try:
            await trio.sleep(seconds)
        finally:
            self.running.waiting = False

    def _put(self, event: h11.Event) -> None:
        self._unsent += self._connection.send(event) or b""


def _accepts_gzip(headers: list[tuple[str, str]]) -> bool:
    """Whether the request asks for gzip (RFC 9110 section 12.5.3)."""
    accepted: dict[str, str] = {}
    for value in (value for name, value in headers if name == "accept-encoding"):
        for coding in value.replace(" ", "").lower().split(","):
            name, _, weight = coding.partition(";")
            accepted[name] = weight
    weight = accepted.get("gzip", accepted.get("*", "q=0"))
    return re.fullmatch(r"q=0(\.0*)?", weight) is None


Upgrade: TypeAlias = Callable[[Exchange, bytes], Awaitable[bool]]
"""Speaks WebSocket from here on, if that is what a request wants, and it may.

Called with the request and the bytes that came behind it. `False`: it is to be answered by HTTP.
"""


async def serve(
    stream: trio.abc.Stream, handle: Callable[[Exchange], Awaitable[None]], upgrade: Upgrade
) -> None:
    """Serve one connection until its end; closes the stream.

    Raises:
        Exception: What `handle` raised, but for `HangUp` and the client's going away.
    """
    connection = h11.Connection(h11.SERVER)
    async with stream:
        try:
            while (exchange := await _next_exchange(stream, connection)) is not None:
                if await upgrade(exchange, connection.trailing_data[0]):
                    return
                await _answer(stream, connection, exchange, handle)
                if connection.our_state is not h11.DONE:  # the last answer, or half of one
                    return
                connection.start_next_cycle()
        except HangUp as exc:
            await leave(stream, reset=exc.reset)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass


async def _next_exchange(stream: trio.abc.Stream, connection: h11.Connection) -> Exchange | None:
    request: h11.Request | None = None
    body = bytearray()
    while True:  # noqa: ASYNC913 - h11 has few events without more data, which is waited for
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError as exc:
            await _refuse(stream, connection, exc.error_status_hint)
            return None
        if event is h11.NEED_DATA:
            if connection.they_are_waiting_for_100_continue:
                go_on = h11.InformationalResponse(status_code=100, headers=[])
                await stream.send_all(connection.send(go_on) or b"")
            connection.receive_data(bytes(await stream.receive_some(_RECEIVE_BYTES)))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage) and request is not None:
            return Exchange(stream, connection, request, bytes(body))
        else:
            return None


async def _refuse(stream: trio.abc.Stream, connection: h11.Connection, status: int) -> None:
    """Answer what is not HTTP, as far as h11 allows an answer."""
    if connection.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
        return
    headers = [("content-length", "0"), ("connection", "close")]
    data = connection.send(h11.Response(status_code=status, headers=headers)) or b""
    await stream.send_all(data + (connection.send(h11.EndOfMessage()) or b""))


async def _answer(
    stream: trio.abc.Stream,
    connection: h11.Connection,
    exchange: Exchange,
    handle: Callable[[Exchange], Awaitable[None]],
) -> None:
    """Answer one request, or stop in the middle of it if the client goes away."""
    failure: Exception | None = None

    async def watch_for_hang_up() -> None:
        # Without it, an answer that stalls would not notice that nobody waits for it.
        try:
            while data := await stream.receive_some(_RECEIVE_BYTES):
                connection.receive_data(bytes(data))  # the next request, sent ahead
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch_for_hang_up)
        try:
            await handle(exchange)
        except Exception as exc:  # raised below, outside the nursery, lest it come in a group
            failure = exc
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def leave(stream: trio.abc.Stream, *, reset: bool) -> None:
    """Close a connection at once, in the middle of whatever it was at."""
    if reset and isinstance(stream, MemoryStream):
        await stream.reset()
        return
    if reset:
        transport: trio.abc.Stream = getattr(stream, "transport_stream", stream)  # beneath TLS
        if isinstance(transport, trio.SocketStream):
            # SO_LINGER with a time of 0: close sends RST instead of FIN.
            transport.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await trio.aclose_forcefully(stream)
