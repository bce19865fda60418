"""The fake gateway's WebSocket mode: wsproto on the stream of a connection that was upgraded."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import msgspec
import trio
import wsproto
from wsproto.events import AcceptConnection, CloseConnection, Ping, Request, TextMessage
from wsproto.utilities import ProtocolError

from .._protocol.sse import EventStreamDecoder
from ._faults import Close
from ._server import Exchange, HangUp
from ._stored import StoredResponses

_RECEIVE_BYTES = 65_536


class WebSocket:
    """The server's end of a connection.

    Args:
        stream: What it goes over.
        exchange: The request that asked for it.
        behind: The bytes that came behind that.
        stored: The responses that other connections know too.
        lifetime: Seconds after which it takes no further turn.

    Attributes:
        headers: Of the request, names in lower case.
        stored: The responses that its turns may go on from.
        until: When it takes no further turn, in seconds on Trio's clock.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        exchange: Exchange,
        behind: bytes,
        *,
        stored: StoredResponses,
        lifetime: float,
    ) -> None:
        self.stream = stream
        self.headers = {name.lower(): value for name, value in exchange.headers}
        self.stored = StoredResponses(stored)
        self.until = trio.current_time() + lifetime
        self.sending = trio.Lock()
        self._wire = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
        headers = [(name.encode(), value.encode("latin-1")) for name, value in exchange.headers]
        self._wire.initiate_upgrade_connection(headers, exchange.target)
        self._behind = behind
        self._text = ""

    async def accept(self) -> None:
        """Agree to it."""
        for event in self._wire.events():
            if isinstance(event, Request):
                await self.stream.send_all(self._wire.send(AcceptConnection()))

    async def receive(self) -> list[str] | None:
        """Messages that came; `None` at the end. Answers pings."""
        try:
            return await self._receive()
        except (ProtocolError, trio.BrokenResourceError, trio.ClosedResourceError):
            return None

    async def _receive(self) -> list[str] | None:
        data, self._behind = self._behind, b""
        data = data or bytes(await self.stream.receive_some(_RECEIVE_BYTES))
        if not data:
            return None
        messages: list[str] = []
        self._wire.receive_data(data)
        for event in self._wire.events():
            match event:
                case TextMessage():
                    self._text += event.data
                    if event.message_finished:
                        messages.append(self._text)
                        self._text = ""
                case Ping() | CloseConnection():
                    async with self.sending:
                        await self.stream.send_all(self._wire.send(event.response()))
                    if isinstance(event, CloseConnection):
                        return None
                case _:
                    pass
        return messages

    def encode(self, event: TextMessage | Ping) -> bytes:
        """A message or a ping as it goes over the stream.

        Raises:
            trio.BrokenResourceError: The client has closed the connection.
        """
        try:
            return self._wire.send(event)
        except ProtocolError as error:
            raise trio.BrokenResourceError from error

    async def close(self, close: Close) -> None:
        """Say goodbye."""
        code = None if close.code == 1005 else close.code
        event = CloseConnection(code=code or 1000, reason=close.reason or None)
        data = self._wire.send(event) if code is not None else b"\x88\x00"
        async with self.sending:
            await self.stream.send_all(data)


class Turn(Exchange):
    """The writer of the answer to one turn, whose body goes out as messages."""

    def __init__(self, websocket: WebSocket) -> None:
        self.drip = None
        self.running = None
        self._websocket = websocket
        self._stream = websocket.stream
        self._unsent = bytearray()
        self._bytes_left = None
        self._reset = False
        self._events = EventStreamDecoder()

    def put_head(self, status: int, headers: list[tuple[str, str]]) -> None:
        """See `Exchange`: there is none."""

    def put_body(self, data: bytes) -> None:
        """See `Exchange`: events become messages, comments pings."""
        wire = b""
        if data.startswith(b":"):
            wire = self._websocket.encode(Ping(payload=b"alive"))
        for event in self._events.feed(data):
            text = event.data.decode("utf-8", "replace")
            wire += self._websocket.encode(TextMessage(data=text))
        if self._bytes_left is not None:
            wire = wire[: self._bytes_left]
            self._bytes_left -= len(wire)
        self._unsent += wire

    def put_end(self) -> None:
        """See `Exchange`: there is none."""

    async def flush(self) -> None:
        """See `Exchange`."""
        async with self._websocket.sending:
            await super().flush()


async def serve_turns(
    websocket: WebSocket, answer: Callable[[dict[str, object], str | None], Awaitable[None]]
) -> None:
    """Have turns answered, those of one `stream_id` one after another, until the client leaves.

    Args:
        websocket: The connection, which was agreed to.
        answer: Answers one, from its body.

    Raises:
        HangUp: `answer` did.
        Exception: Likewise.
    """
    lanes: dict[str | None, trio.MemorySendChannel[dict[str, object]]] = {}
    failure: Exception | None = None

    async def lane(
        stream_id: str | None, turns: trio.MemoryReceiveChannel[dict[str, object]]
    ) -> None:
        nonlocal failure
        try:
            async for body in turns:
                await answer(body, stream_id)
        except Exception as error:  # raised below, lest it come in a group
            failure = failure or error
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        while (messages := await websocket.receive()) is not None:
            for message in messages:
                try:
                    body = msgspec.json.decode(message, type=dict[str, object])
                except msgspec.DecodeError:
                    body = {}
                given = body.get("stream_id")
                stream_id = given if isinstance(given, str) else None
                if stream_id not in lanes:
                    lanes[stream_id], turns = trio.open_memory_channel[dict[str, object]](64)
                    nursery.start_soon(partial(lane, stream_id, turns))
                await lanes[stream_id].send(body)
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def hang_up(websocket: WebSocket, hang_up: HangUp) -> None:
    """Close the connection as it was said to be."""
    if hang_up.close is not None:
        await websocket.close(hang_up.close)
        with trio.move_on_after(1):  # for the client's own close frame
            while await websocket.receive() is not None:
                pass
