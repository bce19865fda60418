"""One HTTP/1.1 connection, with or without TLS, and one exchange after another on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from time import perf_counter_ns
from typing import Protocol

import trio

from .._background import Background
from .._protocol.errors import APIConnectionError, GatewayError
from .content_coding import ContentDecoder, content_decoder
from .demux import RECEIVE_BYTES, SocketOwner
from .http1 import ResponseReader
from .interface import BodyConsumer, Wait
from .origin import Origin
from .tls import TlsClient

SEND_BYTES = 64 * 1024
"""So much goes into a Trio stream at once."""

UNSENT_BYTES = 64 * 1024
"""What TLS may have to answer to a peer that does not read; more ends the connection."""


class Link(Protocol):
    """What carries a connection's bytes: a socket that a demultiplexer reads, or a Trio stream."""

    owner: SocketOwner

    def start_reading(self) -> None:
        """Hand over what comes from now on, where that needs no waiting."""
        ...

    def stop_reading(self) -> None:
        """Leave what comes where it is."""
        ...

    async def wait(self) -> None:
        """Hand over what comes; until `wake` is called, or for a while. A checkpoint."""
        ...

    def wake(self) -> None:
        """Let `wait` return."""
        ...

    def has_unread(self) -> bool:
        """Whether something came, or the end, and was not handed over yet; as far as it knows."""
        ...

    def send_now(self, data: bytearray) -> None:
        """Send what goes without waiting, and take it out of `data`."""
        ...

    async def send_all(self, data: bytearray, on_wait: Callable[[], None] | None = None) -> None:
        """Send all, and take it out of `data`; `on_wait` comes before each wait. A checkpoint."""
        ...

    def close(self) -> None:
        """Close it at once."""
        ...


class StreamLink:
    """A Trio stream, which is read by whoever waits for it.

    Args:
        stream: The stream.
        owner: Who gets what is read.
        nursery: Where it is closed.
    """

    def __init__(self, stream: trio.abc.Stream, owner: SocketOwner, nursery: trio.Nursery) -> None:
        self._stream = stream
        self._nursery = nursery
        self._closed = False
        self.owner = owner

    def start_reading(self) -> None:
        pass

    def stop_reading(self) -> None:
        pass

    async def wait(self) -> None:
        try:
            data = bytes(await self._stream.receive_some(RECEIVE_BYTES))
        except trio.BrokenResourceError as error:
            self.owner.connection_lost(error)
            return
        try:
            if data:
                self.owner.data_received(data, perf_counter_ns())
            else:
                self.owner.connection_lost(None)
        except BaseException as error:  # noqa: ASYNC103 - raised by whoever waits
            self.owner.connection_lost(error)

    def wake(self) -> None:
        pass

    def has_unread(self) -> bool:
        return False

    def send_now(self, data: bytearray) -> None:
        pass

    async def send_all(  # noqa: ASYNC910 - there is something to send
        self, data: bytearray, on_wait: Callable[[], None] | None = None
    ) -> None:
        while data:
            if on_wait is not None:
                on_wait()
            sending = bytes(data[:SEND_BYTES])
            await self._stream.send_all(sending)
            del data[: len(sending)]

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._nursery.start_soon(trio.aclose_forcefully, self._stream)


class Connection:
    """A connection, which owns its link.

    Args:
        origin: Where it leads.
        make_link: Gives the link, for its owner.
        tls: The TLS that is spoken over it, or `None`.
        release: Called with it when an exchange is left; see `end_exchange`.
    """

    __slots__ = (
        "_closed", "_exchange", "_handshaking", "_outgoing", "_sending", "_tls", "_unsent_bytes",
        "idle_since", "link", "lost", "on_idle_end", "origin", "release",
    )  # fmt: skip

    def __init__(
        self,
        origin: Origin,
        make_link: Callable[[SocketOwner], Link],
        tls: TlsClient | None,
        release: Callable[[Connection], None],
    ) -> None:
        self.origin = origin
        self.release = release
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
        """Bytes came; see `SocketOwner`."""
        if self._tls is not None:
            self._tls.receive(data)
            self._read_tls(self._tls, arrived_ns)
        else:
            self._plaintext_received(data, arrived_ns)

    def _plaintext_received(self, data: bytes, arrived_ns: int) -> None:
        if self._exchange is not None:
            self._exchange.data_received(data, arrived_ns)
        else:
            raise APIConnectionError(f"{self.origin} sent something that nobody has asked for")

    def _read_tls(self, tls: TlsClient, arrived_ns: int) -> None:
        """Hand over the plaintext of what came, as far as it is wanted."""
        if self._handshaking:
            self.link.wake()
            return
        exchange = self._exchange
        while True:
            plaintext = tls.read()
            if plaintext:
                self._plaintext_received(plaintext, arrived_ns)
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
        """Nothing more comes; see `SocketOwner`."""
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

    async def handshake(self) -> None:
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
                if exchange.status < 300 and not reader.complete:
                    await sent.wait()  # It is not refused, and may be read while it is answered.
        return exchange

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
            self.release(self)

    def end_exchange(self) -> bool:
        """Leave the exchange that is under way; whether there can be another one."""
        exchange, self._exchange = self._exchange, None
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
            self.lost = trio.ClosedResourceError("the connection was closed here")
        self.link.wake()
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
        "_arrived_ns", "_connection", "_consumer", "_decoder", "_raised", "enough", "reader",
    )  # fmt: skip

    def __init__(self, connection: Connection, reader: ResponseReader) -> None:
        self.reader = reader
        self.enough = False
        self._connection = connection
        self._consumer: BodyConsumer | None = None
        self._decoder: ContentDecoder | None = None
        self._arrived_ns = 0
        self._raised: BaseException | None = None  # By the consumer, or by the decoder.

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
        """Bytes of the response came; see `SocketOwner`."""
        reader, consumer = self.reader, self._consumer
        reader.feed(data)
        if consumer is not None:
            if self._decoder is None and not reader.complete:  # the usual case, at its fastest
                body = reader.take_body()
                if not body or not self._give(consumer, body, arrived_ns):
                    return
            self._hand_over(consumer, arrived_ns)
            return
        self._arrived_ns = arrived_ns
        if self.reader.head_complete:
            self._connection.link.stop_reading()  # Until somebody wants more.
        self._connection.link.wake()

    def ended(self) -> None:
        """The server has ended the connection; raises where the response is not complete."""
        self.reader.feed_eof()
        if self._consumer is not None:
            self._hand_over(self._consumer, self._arrived_ns)

    def _hand_over(self, consumer: BodyConsumer, arrived_ns: int) -> None:
        body = self.reader.take_body()
        decoder = self._decoder
        if decoder is None:
            if body:
                self._give(consumer, body, arrived_ns)
        else:
            body = self._decode(decoder, body)
            while body:
                self._give(consumer, body, arrived_ns)
                if self.enough:
                    break
                body = self._decode(decoder, b"")
        if self.enough or self.reader.complete:
            self._arrived_ns = arrived_ns
            self._connection.link.stop_reading()
            self._connection.link.wake()

    def _give(self, consumer: BodyConsumer, body: bytes, arrived_ns: int) -> bool:
        try:
            self.enough = consumer.receive(body, arrived_ns)
        except BaseException as error:
            self._raised = error
            raise
        return self.enough

    def _decode(self, decoder: ContentDecoder, data: bytes) -> bytes:
        try:
            return decoder.decode(data) if data or decoder.has_more else b""
        except BaseException as error:
            # The response may be complete by now, and not look as if it had failed.
            self._raised = error
            raise

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
        await trio.lowlevel.checkpoint()
        while True:
            if body := self._take():
                return body
            if self.reader.complete:
                self._finish()
                return b""
            if not self._connection.resume(self._arrived_ns):
                self._connection.check()
                await self._connection.link.wait()

    def _take(self) -> bytes:
        body = self.reader.take_body()
        return body if self._decoder is None else self._decode(self._decoder, body)

    def _finish(self) -> None:
        if self._decoder is not None:
            self._decoder.finish()

    async def feed(self, consumer: BodyConsumer) -> bool:
        """Hand the body over as it comes; see `Response.feed`."""
        connection, link = self._connection, self._connection.link
        self.enough = False
        self._consumer = consumer
        try:
            self._hand_over(consumer, self._arrived_ns)
            if not self.enough:
                connection.resume(self._arrived_ns)
            while self._raised is None and not (self.enough or self.reader.complete):
                connection.check()
                with trio.move_on_at(consumer.deadline()) as scope:
                    await link.wait()
                if scope.cancelled_caught and consumer.deadline() <= trio.current_time():
                    raise trio.TooSlowError
            if self._raised is not None:
                raise self._raised
            if not self.enough:
                self._finish()
            return not self.enough
        finally:
            self._consumer = None

    @trio.lowlevel.enable_ki_protection
    async def aclose(self) -> None:
        """Give the connection back where the body was read to its end, else close it.

        Any number of times.
        """
        self._connection.leave(self)
