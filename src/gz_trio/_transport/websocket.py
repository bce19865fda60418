"""A transport over WebSocket, by trio-websocket: the Responses API's WebSocket mode.

To whoever sends it is a transport like the others: one request out, one streamed response back. It
keeps one connection, on which each request is a turn; what comes is handed on as the event stream
that HTTP would have brought. A connection is replaced when the key is another one, when it is about
to reach the age at which servers close it, or when it broke. What the server knows of the
conversation is not sent again.

For each connection there are three tasks: one of trio-websocket reads it, one hands its messages
to the turns, and one sees whether the other end is alive.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from math import inf
from time import perf_counter_ns

import trio
from trio.lowlevel import enable_ki_protection
from trio_websocket import ConnectionClosed, ConnectionRejected
from trio_websocket import WebSocketConnection as Connection
from wsproto.utilities import LocalProtocolError

from .._background import Background
from .._protocol.errors import APIConnectionError, GatewayError, ProtocolError
from .._protocol.keys import KEY_HEADERS
from .._protocol.websocket import (
    LIFETIME_SECONDS,
    LIMIT_REACHED,
    MAX_MESSAGE_BYTES,
    PREVIOUS_NOT_FOUND,
    Chain,
    Frame,
    as_event,
    create_frame,
    error_from_close,
    turn_of,
)
from . import consumers
from .interface import BodyConsumer, Request, Response, seconds_of
from .origin import parse_url
from .websocket_wire import ANOTHER_VIOLATION, Wire

PING_SECONDS = 20.0
"""Between two signs of life; and how long the answer to one may take."""

CLOSE_SECONDS = 1.0
"""For the closing handshake, which nobody needs."""

_RECEIVE_BYTES = 64 * 1024

Connect = Callable[[str, float | None], Awaitable[trio.abc.Stream]]
"""Opens what a connection goes over, from a URL and the seconds that it may take."""


class WebSocketTransport:
    """See `Transport`. Made by `open_websocket_transport`."""

    def __init__(self, nursery: trio.Nursery, connect: Connect) -> None:
        self._nursery = nursery
        self._connect = connect
        self._chain = Chain()
        self._socket: _Socket | None = None
        self._has_lanes = True
        self._opening = trio.Lock()
        self._turns = 0

    async def send(self, request: Request) -> Response:
        """Begin a turn; see `Transport.send`. The response's head is the turn's first frame."""
        turn = turn_of(request.content)
        may_repeat, shortened = True, True
        while True:
            socket, is_new = await self._get_socket(request)
            if isinstance(socket, _Answer):
                return socket
            self._turns += 1
            exchange = _Exchange(socket, self._turns, turn)
            try:
                await exchange.begin(
                    self._chain.shortened(turn) if shortened else turn, has_lanes=self._has_lanes
                )
                first = await exchange.first()
            except APIConnectionError:
                exchange.close()
                if is_new or not may_repeat:
                    raise
                may_repeat = False  # It had been closed, or was about to be.
                socket.retire()  # Which it may not have seen itself yet.
                continue
            except BaseException:
                exchange.close()
                raise
            if first.code == PREVIOUS_NOT_FOUND and shortened:
                self._chain.forget()
                shortened = False
            elif first.code == LIMIT_REACHED and may_repeat:
                may_repeat = False
                socket.retire()
            elif first.about_stream_id and exchange.stream_id is not None:
                self._has_lanes = False
            elif first.status is not None:
                if first.status == 401:
                    socket.retire()
                exchange.close()
                headers = {**first.headers, "content-type": "application/json"}
                return _Answer(first.status, headers, first.data)
            else:
                return exchange
            exchange.close()

    async def _get_socket(self, request: Request) -> tuple[_Socket | _Answer, bool]:
        """A connection for the next turn, and whether it is a new one; or why there is none."""
        async with self._opening:  # Turns at the same time share one.
            socket = self._socket
            if socket is not None and socket.serves(request):
                return socket, False
            if socket is not None:
                socket.retire()
            self._socket = None
            socket = _Socket(request, self._nursery, self._chain.completed)
            answer = await socket.open(self._connect)
            if answer is not None:
                return answer, True
            self._socket = socket
            return socket, True

    async def aclose(self) -> None:  # noqa: ASYNC910 - where there is a connection
        """Close the connection, in a bounded time."""
        if self._socket is not None:
            await self._socket.aclose()


@asynccontextmanager
@enable_ki_protection
async def open_websocket_transport(connect: Connect) -> AsyncGenerator[WebSocketTransport]:
    """A transport that keeps one connection, which is made when it is needed."""
    async with Background("WebSocket connection") as nursery:
        transport = WebSocketTransport(nursery, connect)
        try:
            yield transport
        finally:
            await transport.aclose()  # noqa: ASYNC102 - it is shielded, and bounded


class _Answer:
    """A response that is whole: a handshake that was rejected, or an error instead of a turn."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self._body = body

    async def receive(self) -> bytes:
        """See `Response`."""
        await trio.lowlevel.checkpoint()
        body, self._body = self._body, b""
        return body

    def start(self, consumer: BodyConsumer) -> None:
        """See `Response`."""
        if self._body:
            consumer.receive(self._body, perf_counter_ns())
        consumers.stop(consumer, None)

    def close(self) -> None:
        """See `Response`."""


class _Exchange:
    """One turn; see `Response`."""

    status = 200
    headers: Mapping[str, str] = {"content-type": "text/event-stream"}

    def __init__(self, socket: _Socket, number: int, turn: dict[str, object]) -> None:
        self.turn = turn
        self.number = number
        self.stream_id: str | None = None
        self.heard_at = trio.current_time()
        self._socket = socket
        self._consumer: BodyConsumer | None = None
        self._waiting: deque[tuple[bytes, int]] = deque()
        self._first: Frame | None = None
        self._came = trio.Event()
        self._complete = False
        self._closed = False
        self._error: BaseException | None = None

    async def begin(self, turn: Mapping[str, object], *, has_lanes: bool) -> None:
        """Send it. A checkpoint.

        Args:
            turn: What is sent of it.
            has_lanes: Whether turns at the same time are told apart by the server.
        """
        self.stream_id = await self._socket.add(self, has_lanes=has_lanes)
        await self._socket.send(create_frame(turn, self.stream_id))

    async def first(self) -> Frame:
        """Its first frame. A checkpoint."""
        await self._came.wait()
        if self._first is None:
            raise self._error or APIConnectionError("the connection broke")
        return self._first

    async def receive(self) -> bytes:
        """See `Response`: never of use, for it is an event stream."""
        raise RuntimeError("a turn is handed over by start()")  # noqa: ASYNC910 - nothing is awaited

    def start(self, consumer: BodyConsumer) -> None:
        """See `Response`."""
        self._consumer = consumer
        self._hand_over()
        self._socket.look_again()

    @property
    def waits(self) -> bool:
        """Whether there is more than its consumer wants now."""
        return self._consumer is None and bool(self._waiting)

    @property
    def deadline(self) -> float:
        """When the next message has to be here, in seconds on Trio's clock."""
        return inf if self._consumer is None else self._consumer.deadline()

    def deliver(self, frame: Frame, arrived_ns: int) -> None:
        """A frame of it came."""
        self.heard_at = trio.current_time()
        if self._first is None:
            self._first = frame
            self._came.set()
        self._complete = frame.terminal
        self._waiting.append((as_event(frame.data), arrived_ns))
        self._hand_over()

    def sign_of_life(self) -> None:
        """The other end is there, and has said nothing of it."""
        self.heard_at = trio.current_time()
        self._waiting.append((b": \n\n", perf_counter_ns()))
        self._hand_over()

    def _hand_over(self) -> None:
        while self._waiting and self._consumer is not None:
            data, arrived_ns = self._waiting.popleft()
            try:
                enough = self._consumer.receive(data, arrived_ns)
            except BaseException as error:  # noqa: ASYNC103 - it comes back by `stopped`
                self.stop(error)
                return  # noqa: ASYNC104 - likewise
            if enough:
                self._consumer = None
        if self._consumer is None or self._waiting:
            return
        if self._complete:
            self.stop(None)
        elif self._error is not None:
            self.stop(self._error)

    def break_off(self, error: BaseException) -> None:
        """The connection has ended; what came before is still the consumer's."""
        if self._error is None and not self._complete:
            self._error = error
            self._came.set()
            self._hand_over()

    def stop(self, error: BaseException | None) -> None:
        """No more comes."""
        consumer = self._consumer
        self.close()
        if consumer is not None:
            consumers.stop(consumer, error)

    def close(self) -> None:
        """See `Response`: of a turn that is not over, the connection goes too, if it can."""
        if self._closed:
            return
        self._closed = True
        self._consumer = None
        self._waiting.clear()
        self._socket.leave(self, over=self._complete)


class _Socket:
    """One connection.

    Args:
        request: The first one: its URL and its key are the connection's.
        nursery: Where its tasks run.
        completed: Called with each turn that was answered, and its terminal event.
    """

    def __init__(
        self,
        request: Request,
        nursery: trio.Nursery,
        completed: Callable[[Mapping[str, object], bytes], None],
    ) -> None:
        self._request = request
        self._origin, self._host, self._target = parse_url(request.url)
        self._nursery = nursery
        self._completed = completed
        self._wire = Wire()
        self._stream: _Stream
        self._connection: Connection | None = None  # Once the server has agreed to it.
        self._scope = trio.CancelScope()
        self._waiting = trio.CancelScope()  # For the next message.
        self._opened = trio.Event()  # Or ended.
        self._gone = trio.Event()
        self._ended: BaseException | None = None
        self._rejection: _Answer | None = None
        self._until = trio.current_time() + LIFETIME_SECONDS
        self._turns: list[_Exchange] = []
        self._abandoned: list[_Exchange] = []  # The server goes on with these.
        self._room = trio.Event()
        self._free = trio.Event()

    # For the transport

    def serves(self, request: Request) -> bool:
        """Whether the next turn may go over it."""
        return (
            self._ended is None
            and trio.current_time() < self._until
            and request.url == self._request.url
            and _key_of(request) == _key_of(self._request)
        )

    def retire(self) -> None:
        """No other turn goes over it; it is closed when the last one is over."""
        self._until = -inf
        self._close_if_unused()

    async def open(self, connect: Connect) -> _Answer | None:
        """Connect, and shake hands. A checkpoint.

        Returns:
            What the server answered, if it rejects that.

        Raises:
            GatewayError: There is no connection.
        """
        self._stream = _Stream(await connect(self._request.url, self._request.connect_timeout))
        self._nursery.start_soon(self._run)
        try:
            with trio.move_on_after(seconds_of(self._request.connect_timeout)) as scope:
                await self._opened.wait()
        except BaseException:
            self._scope.cancel()
            raise
        if scope.cancelled_caught:
            self._scope.cancel()
            raise APIConnectionError(
                f"no WebSocket connection to {self._origin} within "
                f"{self._request.connect_timeout:g} s: is it up, and the base URL right?"
            )
        if self._rejection is None:
            self._check()
        return self._rejection

    async def aclose(self) -> None:
        """Close it, in a bounded time even if cancelled."""
        self._end(trio.ClosedResourceError("the transport was closed"))
        if self._connection is not None:
            with trio.move_on_after(CLOSE_SECONDS, shield=True):
                await self._connection.aclose()
        self._scope.cancel()
        with trio.CancelScope(shield=True):
            await self._gone.wait()

    # Turns

    async def add(self, exchange: _Exchange, *, has_lanes: bool) -> str | None:
        """Have a turn told of what comes for it; its `stream_id`, if it needs one.

        A checkpoint. Waits for the other turns, where the server cannot tell them apart.
        """
        await trio.lowlevel.checkpoint()
        while not has_lanes and (self._turns or self._abandoned):
            self._check()
            if self._free.is_set():
                self._free = trio.Event()
            await self._free.wait()
        self._check()
        taken = {turn.stream_id for turn in (*self._abandoned, *self._turns)}
        self._turns.append(exchange)
        if not taken:
            return None
        names = (f"turn-{number}" for number in range(1, len(taken) + 2))
        return next(name for name in names if name not in taken)

    async def send(self, message: str) -> None:
        """Send a message. A checkpoint."""
        self._check()
        if self._connection is None:
            raise self._reason()
        try:
            await self._connection.send_message(message)
        except (ConnectionClosed, LocalProtocolError):
            raise self._reason() from None

    def leave(self, exchange: _Exchange, *, over: bool) -> None:
        """A turn is over; or nobody wants the rest of it."""
        if exchange in self._turns:
            self._turns.remove(exchange)
            if not over:
                self._abandoned.append(exchange)
        if self._abandoned and not self._turns:
            # There is no message that says so: who hangs up wants no more.
            self._scope.cancel()
        self._close_if_unused()
        self.look_again()
        self._free.set()

    def look_again(self) -> None:
        """A turn wants more, or has another deadline."""
        self._room.set()
        self._waiting.deadline = min(self._waiting.deadline, self._deadline)

    @property
    def _deadline(self) -> float:
        return min((turn.deadline for turn in self._turns), default=inf)

    def _check(self) -> None:
        if self._ended is not None:
            raise _another(self._ended)

    def _close_if_unused(self) -> None:
        if self._until == -inf and not self._turns:
            self._scope.cancel()

    # Its tasks

    async def _run(self) -> None:
        """All of it, from the handshake to its end."""
        try:
            with self._scope:
                await self._speak()
        finally:
            self._end(self._reason())
            try:
                await trio.aclose_forcefully(self._stream)  # noqa: ASYNC102 - it does not wait
            finally:
                self._gone.set()

    async def _speak(self) -> None:
        headers = [
            (name.encode("ascii"), value.encode("latin-1"))
            for name, value in self._request.headers.items()
            if name.lower() not in ("content-type", "accept")
        ]
        connection = Connection(
            self._stream,
            self._wire,
            host=self._host,
            path=self._target,
            client_extra_headers=headers,
            message_queue_size=1,
            max_message_size=2 * MAX_MESSAGE_BYTES,  # `Wire` is stricter, and says more.
            receive_buffer_size=_RECEIVE_BYTES,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._hand_on, connection, nursery.cancel_scope)
            # Not `wrap_client_stream`: it takes no wire of ours, and does not return where the
            # server closes the connection in place of an answer.
            try:
                await connection._reader_task()  # pyright: ignore[reportPrivateUsage]
            except Exception as error:  # What a server may send makes all three layers raise.
                self._broke_by(error)
                nursery.cancel_scope.cancel()
            if not connection._open_handshake.is_set():  # pyright: ignore[reportPrivateUsage]
                nursery.cancel_scope.cancel()

    async def _hand_on(self, connection: Connection, everything: trio.CancelScope) -> None:
        """Hand each message to its turn, until there are no more."""
        await connection._open_handshake.wait()  # pyright: ignore[reportPrivateUsage]
        self._connection = connection
        self._opened.set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._see_whether_it_lives, connection)
            with suppress(ConnectionClosed):
                while True:
                    await self._hand_on_one(connection)
            nursery.cancel_scope.cancel()
        everything.cancel()

    async def _hand_on_one(self, connection: Connection) -> None:
        while any(turn.waits for turn in self._turns):
            self._room = trio.Event()
            await self._room.wait()
        message = None
        with trio.move_on_at(self._deadline) as self._waiting:
            message = await connection.get_message()
        if message is None:
            self._look_at_deadlines()
            return
        frame = Frame.of(message.encode() if isinstance(message, str) else message)
        arrived_ns = self._wire.arrivals.popleft()
        if frame.code == LIMIT_REACHED:
            self._until = -inf
        turn = self._turn_of(frame)
        if turn in self._turns:
            if frame.kind in ("response.completed", "response.incomplete"):
                self._completed(turn.turn, frame.data)
            turn.deliver(frame, arrived_ns)
        elif turn is not None and frame.terminal:
            self._abandoned.remove(turn)
            self._free.set()

    def _turn_of(self, frame: Frame) -> _Exchange | None:
        """Whose frame it is; without a `stream_id`, the oldest one's: first in, first out."""
        turns = sorted((*self._abandoned, *self._turns), key=lambda turn: turn.number)
        if frame.about_stream_id and frame.stream_id is None:
            # A server that does not know it does not say it either.
            turns = [turn for turn in turns if turn.stream_id is not None]
        for turn in turns:
            if frame.stream_id is None or turn.stream_id == frame.stream_id:
                return turn
        return None

    def _look_at_deadlines(self) -> None:
        for turn in self._turns.copy():
            if turn.deadline > trio.current_time():
                continue
            if self._stream.received_at > turn.heard_at:  # A ping, say.
                turn.sign_of_life()
            else:
                turn.stop(trio.TooSlowError())

    async def _see_whether_it_lives(self, connection: Connection) -> None:
        while True:
            await trio.sleep(PING_SECONDS)
            if any(turn.waits for turn in self._turns):
                continue  # The answer would wait behind what nobody wants now.
            with (
                trio.move_on_after(PING_SECONDS) as scope,
                suppress(ConnectionClosed, LocalProtocolError),
            ):
                await connection.ping()
            if scope.cancelled_caught:
                self._end(
                    APIConnectionError(
                        f"the connection to {self._origin} broke: a ping was not answered within "
                        f"{PING_SECONDS:g} s"
                    )
                )
                self._scope.cancel()

    # Its end

    def _end(self, error: BaseException) -> None:
        """It has ended; the first reason counts."""
        if self._ended is not None:
            return
        self._ended = error
        for turn in self._turns.copy():
            turn.break_off(_another(error))
        self._opened.set()
        self._free.set()

    def _broke_by(self, error: Exception) -> None:
        match error:
            case ConnectionClosed() | LocalProtocolError():
                pass  # It broke while trio-websocket answered something.
            case ConnectionRejected() if error.status_code < 300:
                self._end(
                    ProtocolError(
                        f"{self._origin} does not speak WebSocket at {self._target}: does it have "
                        "the Responses API's WebSocket mode?",
                        status=error.status_code,
                    )
                )
            case ConnectionRejected():
                headers = {
                    name.decode("latin-1").lower(): value.decode("latin-1")
                    for name, value in error.headers or ()
                }
                self._rejection = _Answer(error.status_code, headers, error.body or b"")
            case _:
                self._wire.violation = self._wire.violation or ANOTHER_VIOLATION

    def _reason(self) -> BaseException:
        """Why it has ended."""
        if self._wire.violation:
            return ProtocolError(
                f"the connection to {self._origin} was closed here, for the server sent "
                f"{self._wire.violation}"
            )
        if self._connection is None:
            return APIConnectionError(
                f"no WebSocket connection to {self._origin}: the server closed it in place of an "
                "answer; is it up, and the base URL right?"
            )
        reason = self._connection.closed
        if reason is None:
            return APIConnectionError(f"the connection to {self._origin} broke")
        return error_from_close(reason.code, reason.reason or "", str(self._origin))


class _Stream(trio.abc.Stream):
    """A stream that knows when something came."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self.received_at = trio.current_time()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See `trio.abc.SendStream`."""
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """See `trio.abc.SendStream`."""
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """See `trio.abc.ReceiveStream`."""
        data = await self._stream.receive_some(max_bytes)
        self.received_at = trio.current_time()
        return data

    async def aclose(self) -> None:
        """See `trio.abc.AsyncResource`."""
        await self._stream.aclose()


def _key_of(request: Request) -> dict[str, str]:
    """What of its headers says who is asking; others differ from request to request."""
    return {name: value for name, value in request.headers.items() if name.lower() in KEY_HEADERS}


def _another(error: BaseException) -> BaseException:
    """For one of many who are told."""
    return error.another() if isinstance(error, GatewayError) else type(error)(*error.args)
