"""The frames of a WebSocket connection, by wsproto, and what there may not be in them."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from time import perf_counter_ns

from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import BytesMessage, CloseConnection, Event, TextMessage
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import RemoteProtocolError

from .._protocol.websocket import BYTES_A_FRAGMENT, MAX_FRAGMENTS, MAX_MESSAGE_BYTES

MAX_HANDSHAKE_BYTES = 1024 * 1024
"""Of what a server answers to the handshake, if it rejects it."""

ANOTHER_VIOLATION = "what WebSocket does not allow (RFC 6455)"


class Wire(WSConnection):
    """The frames of a connection, and what there may not be in them.

    Attributes:
        arrivals: When each message that was not handed on yet was whole, in nanoseconds on the
            clock of `time.perf_counter_ns`.
        violation: What the server sent that it may not.
    """

    def __init__(self) -> None:
        super().__init__(ConnectionType.CLIENT)
        self.arrivals: deque[int] = deque()
        self.violation = ""
        self._arrived_ns = 0
        self._bytes = 0  # Of the message that is under way.
        self._fragments = 0

    def receive_data(self, data: bytes | None) -> None:
        """Take bytes.

        Raises:
            RemoteProtocolError: They are not what WebSocket allows, or too many.
        """
        self._arrived_ns = perf_counter_ns()
        self._bytes += len(data or b"")
        if self.state is not ConnectionState.OPEN and self._bytes > MAX_HANDSHAKE_BYTES:
            raise self._violated("an answer to the handshake that is too long", None)
        if self._bytes > MAX_MESSAGE_BYTES + MAX_HANDSHAKE_BYTES:
            mebibytes = MAX_MESSAGE_BYTES // 2**20
            raise self._violated(f"a message of more than {mebibytes} MiB", 1009)
        super().receive_data(data)

    def events(self) -> Generator[Event]:
        """What came.

        Raises:
            RemoteProtocolError: As for `receive_data`.
        """
        for event in super().events():
            if isinstance(event, TextMessage | BytesMessage):
                self._count(event)
            elif isinstance(event, CloseConnection) and self.state is ConnectionState.OPEN:
                # Not the server's: wsproto's, which cannot read on.
                is_text = event.code == CloseReason.INVALID_FRAME_PAYLOAD_DATA
                self.violation = "text that is no UTF-8" if is_text else ANOTHER_VIOLATION
            yield event

    def _count(self, event: TextMessage | BytesMessage) -> None:
        if event.message_finished:
            self.arrivals.append(self._arrived_ns)
            self._bytes = self._fragments = 0
            return
        self._fragments += event.frame_finished
        if self._fragments > MAX_FRAGMENTS + self._bytes // BYTES_A_FRAGMENT:
            raise self._violated("a message in fragments without end", 1008)

    def _violated(self, what: str, code: int | None) -> RemoteProtocolError:
        self.violation = what
        return RemoteProtocolError(what, None if code is None else CloseConnection(code=code))
