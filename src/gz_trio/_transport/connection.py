"""One HTTP/1.1 connection, with or without TLS, and one exchange after another on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from math import inf
from time import perf_counter_ns

import trio

from .._background import Background
from .._protocol.errors import APIConnectionError, GatewayError
from . import consumers
from .content_coding import ContentDecoder, content_decoder
from .deadlines import Deadline, Deadlines
from .http1 import ResponseReader
from .interface import BodyConsumer, Wait
from .link import Link, LinkOwner
from .origin import Origin
from .tls import TlsClient

UNSENT_BYTES = 64 * 1024
"""What TLS may have to answer to a peer that does not read; more ends the connection."""

EARLY_READS = 1024
"""So often a response is read, 64 KiB at most each time, before its request is sent whole."""


class Connection:
    """A connection, which owns its link.

    Args:
        origin: Where it leads.
        make_link: Gives the link, for its owner.
        tls: The TLS that is spoken over it, or `None`.
        release: Called with it when an exchange is left; see `reusable`.
        deadlines: Of the responses that come over it.
    """

    __slots__ = (
        "_closed", "_exchange", "_handshaking", "_outgoing", "_release", "_sending", "_tls",
        "_unsent_bytes", "deadlines", "idle_since", "link", "lost", "on_idle_end", "origin",
    )  # fmt: skip

    def __init__(
        self,
        origin: Origin,
        make_link: Callable[[LinkOwner], Link],
        tls: TlsClient | None,
        release: Callable[[Connection], None],
        deadlines: Deadlines,
    ) -> None:
        self.origin = origin
        self.deadlines = deadlines
        self._release = release
        self.idle_since = 0.0
        self.lost: BaseException | None = None
        self.on_idle_end: Callable[[Connection], None] | None = None
        self._tls = tls
        self._handshaking = tls is not None
        self._exchange: Exchange | None = None
        self._outgoing = bytearray()
        self._unsent_bytes = UNSENT_BYTES
        self._sending = False
        self._closed = False
        self.link = make_link(self)

    # What the link hands over

    def data_received(self, data: bytes, arrived_ns: int) -> None:
        """Bytes came; see `LinkOwner`."""
        if self._tls is None:
            raise self._unasked()
        self._tls.receive(data)
        self._read_tls(self._tls, arrived_ns)

    def _unasked(self) -> APIConnectionError:
        return APIConnectionError(f"{self.origin} sent something that nobody has asked for")

    def _read_tls(self, tls: TlsClient, arrived_ns: int) -> None:
        """Hand over the plaintext of what came, as far as it is wanted."""
        if self._handshaking:
            self.link.wake()
            return
        exchange = self._exchange
        while True:
            plaintext = tls.read()
            if plaintext:
                if self._exchange is None:
                    raise self._unasked()
                self._exchange.data_received(plaintext, arrived_ns)
            elif plaintext is not None:
                self._ended()
            if not tls.has_more or plaintext == b"" or (exchange is not None and exchange.enough):
                break
        if reply := tls.take_outgoing():
            self._outgoing += reply
            if not self._sending:
                self.link.send_now(self._outgoing)
            if len(self._outgoing) > self._unsent_bytes:
                raise APIConnectionError(f"{self.origin} does not read what TLS has to answer")

    def connection_lost(self, error: BaseException | None) -> None:
        """Nothing more comes; see `LinkOwner`."""
        if self.lost is not None:
            return
        if error is None and self._tls is not None:
            try:
                self._tls.receive(b"")
                self._read_tls(self._tls, perf_counter_ns())
            except BaseException as cut_off:  # noqa: ASYNC103 - raised by whoever waits
                error = cut_off
        if error is None:
            self._ended()
        else:
            self._lose(error)

    def _ended(self) -> None:
        if self.lost is not None:
            return
        try:
            if self._exchange is not None:
                self._exchange.ended()
        except BaseException as error:  # noqa: ASYNC103 - raised by whoever waits
            self._lose(error)
        else:
            self._lose(EOFError())

    def _lose(self, error: BaseException) -> None:
        self.lost = error
        if self._exchange is not None:
            try:
                self.check()
            except BaseException as told:  # noqa: ASYNC103 - raised by whoever wants the rest
                self._exchange.lost(told)
        self.link.wake()
        if self.on_idle_end is not None:
            self.on_idle_end(self)

    def check(self) -> None:
        """Raise what the connection was lost by, if it was."""
        match self.lost:
            case None:
                return
            case EOFError():
                raise APIConnectionError(f"the connection to {self.origin} was closed too early")
            case OSError() | trio.BrokenResourceError():
                raise APIConnectionError(f"the connection to {self.origin} broke") from self.lost
            case _:
                raise self.lost

    # What is done with it

    async def handshake(self) -> None:  # noqa: ASYNC910 - one, if there is anything to do
        """Begin to speak TLS, if it is to be spoken. A checkpoint, if it is.

        Raises:
            APIConnectionError: The server is not who it should be, or the connection broke.
            trio.BrokenResourceError, OSError: The connection broke.
        """
        tls = self._tls
        while tls is not None and self._handshaking:
            try:
                self._handshaking = not tls.handshake()
            except APIConnectionError:
                self._outgoing += tls.take_outgoing()
                with suppress(OSError):  # It is to be told why, but need not be there any more.
                    self.link.send_now(self._outgoing)
                raise
            self._outgoing += tls.take_outgoing()
            self.link.send_now(self._outgoing)
            if self._outgoing:
                await self.link.send_all(self._outgoing)
            if self._handshaking:
                self.check()
                await self.link.wait()
            else:
                self._read_tls(tls, perf_counter_ns())

    async def request(
        self, content: bytes, reader: ResponseReader, on_wait: Callable[[Wait], None]
    ) -> Exchange:
        """Send a request and wait for the head of its response. A checkpoint.

        Args:
            content: The request.
            reader: For the response.
            on_wait: See `Request`.

        Raises:
            APIConnectionError: The connection broke before a head came.
            ProtocolError: The bytes are not what HTTP allows.
        """
        exchange = self._exchange = Exchange(self, reader)
        if self._tls is None:
            self.link.owner = exchange
            self._outgoing += content
        else:
            self._tls.write(content)
            self._outgoing += self._tls.take_outgoing()
        self._unsent_bytes = len(self._outgoing) + UNSENT_BYTES
        self.link.start_reading()
        # A server may answer before it has read all, and even close then: what it said counts.
        with suppress(OSError):
            self.link.send_now(self._outgoing)
        if not self._outgoing:
            await exchange.until_head(on_wait)
        else:
            sent = trio.Event()
            async with Background("request") as nursery:
                nursery.start_soon(self._send_rest, on_wait, sent)
                await exchange.until_head(on_wait)
                if exchange.status < 300:  # Else it is refused: the rest need not be sent.
                    await self._until_sent(sent, reader)
        return exchange

    async def _until_sent(self, sent: trio.Event, reader: ResponseReader) -> None:
        """Wait for the rest of the request to be sent, or for what makes that useless.

        Meanwhile read: the server may want to be rid of its answer before it takes more.
        """
        for _ in range(EARLY_READS):
            if sent.is_set() or reader.complete or self.lost is not None:
                return  # noqa: ASYNC910 - the wait for the head was one
            await self.link.wait()
        await sent.wait()

    @property
    def unsent(self) -> bool:
        """Whether the server has yet to take some of what is for it."""
        return bool(self._outgoing)

    async def _send_rest(  # noqa: ASYNC910 - one, unless it is broken already
        self, on_wait: Callable[[Wait], None], sent: trio.Event
    ) -> None:
        self._sending = True
        try:
            await self.link.send_all(self._outgoing, partial(on_wait, "write"))
            on_wait("read")
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # Whoever waits for the response is told.
        finally:
            self._sending = False
            sent.set()
            self.link.wake()

    def resume(self, arrived_ns: int) -> bool:
        """Hand over what TLS holds already, of which the poller knows nothing; was there any?"""
        if self._tls is None or not self._tls.has_more or self.lost is not None:
            return False
        try:
            self._read_tls(self._tls, arrived_ns)
        except BaseException as error:  # noqa: ASYNC103 - raised by whoever waits
            self._lose(error)
        return True

    def leave(self, exchange: Exchange) -> None:
        """`exchange` is over: give the connection back, unless another one is under way."""
        if self._exchange is exchange:
            self._release(self)
            self._exchange = None
            self.link.owner = self

    @property
    def reusable(self) -> bool:
        """Whether there can be another exchange."""
        exchange = self._exchange
        return (
            exchange is not None
            and exchange.reader.reusable
            and self.lost is None
            and not self._outgoing
            and not (self._tls is not None and self._tls.has_more)
        )

    def close(self) -> None:
        """Close it at once. Any number of times."""
        if self._closed:
            return
        self._closed = True
        self.on_idle_end = None
        if self.lost is None:
            self._lose(trio.ClosedResourceError("the connection was closed here"))
        with suppress(OSError, GatewayError):
            if self._tls is not None and not self._handshaking and not self._sending:
                self._tls.close()
                self._outgoing += self._tls.take_outgoing()
                self.link.send_now(self._outgoing)
        self.link.close()


class Exchange:
    """A request that was sent, and its response; see `Response`.

    Args:
        connection: What it goes over.
        reader: Takes the response apart.
    """

    __slots__ = (
        "_arrived_ns", "_connection", "_consumer", "_deadline", "_decoder", "_fast",
        "_unheard", "enough", "reader",
    )  # fmt: skip

    def __init__(self, connection: Connection, reader: ResponseReader) -> None:
        self.reader = reader
        self.enough = False
        self._connection = connection
        self._consumer: BodyConsumer | None = None
        self._fast: BodyConsumer | None = None  # The same, where all is simply passed on to it.
        self._decoder: ContentDecoder | None = None
        self._deadline: Deadline | None = None
        self._unheard = True  # Since the consumer was given, nothing has come.
        self._arrived_ns = 0

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.reader.status

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers, names in lower case."""
        return self.reader.headers

    # What the connection hands over

    def data_received(self, data: bytes, arrived_ns: int) -> None:
        """Bytes of the response came; see `LinkOwner`."""
        reader, consumer = self.reader, self._fast
        reader.feed(data)
        if consumer is not None and not reader.complete:
            pieces = reader.pieces
            try:
                if pieces:
                    body = pieces.pop() if len(pieces) == 1 else reader.take_body()
                    if consumer.receive(body, arrived_ns):
                        self._stop_for_now(arrived_ns)
            except BaseException as error:  # noqa: ASYNC103 - told to the consumer
                self._stop(error)
            return
        if self._consumer is not None:
            self._hand_over(self._consumer, arrived_ns)
            return
        self._arrived_ns = arrived_ns
        if reader.head_complete:
            self._connection.link.stop_reading()  # Until somebody wants more.
        self._connection.link.wake()

    def connection_lost(self, error: BaseException | None) -> None:
        """Nothing more comes; see `LinkOwner`."""
        self._connection.connection_lost(error)

    def ended(self) -> None:
        """The server has ended the connection; raises where the response is not complete."""
        self.reader.feed_eof()
        if self._consumer is not None:
            self._hand_over(self._consumer, self._arrived_ns)

    def lost(self, error: BaseException) -> None:
        """The connection has ended, or broke."""
        if self._consumer is not None:
            self._stop(error)

    def _hand_over(self, consumer: BodyConsumer, arrived_ns: int) -> None:
        """Hand over what came, and was not taken out of the reader and the decoder yet."""
        body, decoder = self.reader.take_body(), self._decoder
        if decoder is not None:
            body = decoder.decode(body)
        while body:
            try:
                enough = consumer.receive(body, arrived_ns)
            except BaseException as error:  # noqa: ASYNC103 - told to the consumer
                self._stop(error)
                return  # noqa: ASYNC104 - it was told
            if self._consumer is None:
                return  # It has closed the response.
            if enough:
                self._stop_for_now(arrived_ns)
                return
            if self._unheard:
                self._unheard = False
                self._expect(consumer.deadline())
                if decoder is None:
                    self._fast = consumer
            body = b"" if decoder is None or not decoder.has_more else decoder.decode(b"")
        if self.reader.complete:
            if decoder is not None:
                decoder.finish()
            self._stop(None)

    def _stop_for_now(self, arrived_ns: int) -> None:
        self.enough = True
        self._consumer = self._fast = None
        self._arrived_ns = arrived_ns
        self._expect(inf)
        self._connection.link.stop_reading()

    def _stop(self, error: BaseException | None) -> None:
        consumer = self._consumer
        self.close()
        if consumer is not None:
            try:
                consumers.stop(consumer, error)
            except BaseException as fatal:  # noqa: ASYNC103 - raised by the deadlines' task
                # Whoever called would take it for the end of this connection.
                self._connection.deadlines.fail(fatal)

    def _expect(self, at: float) -> None:
        """More has to come until then. Whether it does is looked at then, and not before."""
        if self._deadline is not None:
            self._connection.deadlines.cancel(self._deadline)
        self._deadline = self._connection.deadlines.set(at, self._look)

    def _look(self) -> None:
        self._deadline = None
        if self._consumer is not None:
            try:
                at = self._consumer.deadline()
            except BaseException as error:  # noqa: ASYNC103 - told to the consumer
                self._stop(error)
                return  # noqa: ASYNC104 - it was told
            if at > trio.current_time():
                self._expect(at)
            else:
                self._stop(trio.TooSlowError())

    # What is done with it

    async def until_head(self, on_wait: Callable[[Wait], None]) -> None:
        """Wait for the status and the headers. A checkpoint."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self.reader.head_complete:
            self._connection.check()
            on_wait("write" if self._connection.unsent else "read")
            await self._connection.link.wait()
        coding = self.reader.headers.get("content-encoding", "")
        self._decoder = content_decoder(coding, self._connection.origin)

    def keep_coding(self) -> None:
        """Give the body as it comes, its content coding still on. Call it before any is taken."""
        self._decoder = None

    async def receive(self) -> bytes:
        """The next bytes of the body; see `Response.receive`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        waited = False
        while not (body := self._take()) and not self.reader.complete:
            if not self._connection.resume(self._arrived_ns):
                self._connection.check()
                await self._connection.link.wait()
                waited = True
        if not body and self._decoder is not None:
            self._decoder.finish()
        if not waited:
            await trio.lowlevel.cancel_shielded_checkpoint()
        return body

    def _take(self) -> bytes:
        body = self.reader.take_body()
        if self._decoder is None:
            return body
        return self._decoder.decode(body) if body or self._decoder.has_more else b""

    def start(self, consumer: BodyConsumer) -> None:
        """Hand the body over as it comes; see `Response.start`."""
        self.reader.forget_headers()
        self.enough = False
        self._consumer, self._fast = consumer, None
        self._unheard = True
        try:
            self._expect(consumer.deadline())
            self._hand_over(consumer, self._arrived_ns)
            if self._is_wanted():
                self._connection.resume(self._arrived_ns)
            if self._is_wanted():
                self._connection.check()
                self._connection.link.start_reading()
        except BaseException as error:  # noqa: ASYNC103 - told to the consumer
            self._stop(error)

    def _is_wanted(self) -> bool:
        return self._consumer is not None

    def close(self) -> None:
        """Give the connection back where the body was read to its end, else close it."""
        self._consumer = self._fast = None
        self._expect(inf)
        self._connection.leave(self)
