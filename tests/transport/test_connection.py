"""What a connection hands over, and when: with TLS and without, demultiplexed or by streams."""

# pyright: reportPrivateUsage=false
from __future__ import annotations

import gzip
import ssl
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from itertools import pairwise
from math import inf
from time import perf_counter_ns

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

import gz_trio
import gz_trio._transport.connection
from gz_trio import APIConnectionError, GatewayError, ProtocolError
from gz_trio._transport.connection import Exchange
from gz_trio._transport.content_coding import DECOMPRESSED_BYTES
from gz_trio._transport.demux import DemuxedSocket
from gz_trio._transport.link import StreamLink
from gz_trio._transport.pool import Pool, open_pool
from gz_trio.testing import FakeGateway
from tests.transport.test_demux import Owner
from tests.transport.test_pool import (
    KINDS,
    CancelAfter,
    assert_nothing_is_under_way,
    body_of,
    error_of,
    sending,
)
from tests.transport.test_tls import (
    TLS_1_2,
    TLS_1_3,
    authority,
    client_context,
    server_context,
    speaking_only,
    with_certificate,
)
from tests.transport.wire import (
    HOST,
    OK,
    SECONDS,
    Peer,
    TlsPeer,
    Wire,
    answered,
    answered_and_read,
    asking,
    read,
    without_poller,
)

VERSIONS = {"plain": None, "TLS 1.2": TLS_1_2, "TLS 1.3": TLS_1_3}

WAYS = [f"{version} over {kind}" for kind in KINDS for version in VERSIONS]


def wire_for(way: str) -> Wire:
    version, _, kind = way.partition(" over ")
    tls = VERSIONS[version]
    return Wire(KINDS[kind], None if tls is None else speaking_only(server_context(), tls))


def only(*parts: str) -> pytest.MarkDecorator:
    """Only the ways whose names have all these parts."""
    ways = [way for way in WAYS if all(part in way for part in parts)]
    return pytest.mark.parametrize("way", ways, indirect=True)


over_tls = only("TLS")
over_tls_1_3 = only("TLS 1.3")


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name = str(request.param)
    without_poller(name, monkeypatch)
    return name


@pytest.fixture
async def wire(way: str) -> AsyncGenerator[Wire]:
    wire = wire_for(way)
    yield wire
    await wire.close()


@pytest.fixture
async def pool(wire: Wire) -> AsyncGenerator[Pool]:
    async with open_pool(client_context(), connect=wire.connect) as pool:
        yield pool


class Consumer:
    """Keeps what it gets; has enough whenever `enough` says so."""

    def __init__(self, enough: Callable[[], bool] = lambda: False) -> None:
        self.received: list[bytes] = []
        self.arrived_ns: list[int] = []
        self.by = inf
        self.ended = False
        self.error: BaseException | None = None
        self.enough = enough
        self._waiting = trio.Event()

    def receive(self, data: bytes, arrived_ns: int) -> bool:
        assert data
        assert not self.ended
        self.received.append(data)
        self.arrived_ns.append(arrived_ns)
        if self.enough():
            self._waiting.set()
            return True
        return False

    def deadline(self) -> float:
        return self.by

    def has_seconds_between(self, seconds: float) -> None:
        """Each piece moves the deadline: the next one has so many seconds."""

        def moved() -> bool:
            self.by = trio.current_time() + seconds
            return False

        self.enough = moved

    def stopped(self, error: BaseException | None) -> None:
        assert not self.ended
        self.ended = True
        self.error = error
        self._waiting.set()

    @property
    def body(self) -> bytes:
        return b"".join(self.received)

    async def wait(self) -> bool:
        """Until it has enough, or the response has ended: whether that; or what it ended by."""
        with trio.fail_after(SECONDS):
            await self._waiting.wait()
        if self.error is not None:
            raise self.error
        return self.ended

    async def feed_on(self, exchange: Exchange) -> bool:
        """Start the response, and wait."""
        self._waiting = trio.Event()
        exchange.start(self)
        return await self.wait()

    async def feed_to_the_end(self, exchange: Exchange) -> int:
        """However often it has enough; how often that was."""
        times = 0
        while not await self.feed_on(exchange):
            times += 1
        return times


def always() -> bool:
    return True


def length(body: bytes, *fields: bytes) -> bytes:
    head = b"".join(field + b"\r\n" for field in fields)
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%s\r\n%s" % (len(body), head, body)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
CLOSE_DELIMITED = b"HTTP/1.1 200 OK\r\n\r\n"


# What comes is handed over


async def test_a_body_comes_as_it_is_sent(pool: Pool, wire: Wire) -> None:
    peer, exchange = await answered(pool, wire, CHUNKED)
    assert exchange.status == 200
    assert exchange.headers == {"transfer-encoding": "chunked"}
    for token in (b"Once", b" upon", b" a time"):
        await peer.send(chunk(token))
        assert await exchange.receive() == token
    await peer.send(LAST_CHUNK)
    assert await exchange.receive() == b""
    assert await exchange.receive() == b""
    exchange.close()
    await answered_and_read(pool, wire, by=peer)


async def test_a_consumer_gets_each_piece_when_it_comes(pool: Pool, wire: Wire) -> None:
    peer, exchange = await answered(pool, wire, CHUNKED + chunk(b"Once"))
    consumer = Consumer()
    started = perf_counter_ns()
    exchange.start(consumer)
    assert consumer.received == [b"Once"]  # it came with the head
    assert consumer.arrived_ns[0] < started
    for token in (b" upon", b" a time"):
        before = perf_counter_ns()
        await peer.send(chunk(token))
        await wait_all_tasks_blocked()
        assert consumer.received[-1] == token
        assert before < consumer.arrived_ns[-1] < perf_counter_ns()
    assert not consumer.ended
    await peer.send(LAST_CHUNK)
    assert await consumer.wait()
    assert consumer.body == b"Once upon a time"
    await answered_and_read(pool, wire, by=peer)


async def test_a_body_may_end_with_the_connection(pool: Pool, wire: Wire) -> None:
    """Over TLS it ends with the server's close_notify (RFC 9112 section 9.8)."""
    peer, exchange = await answered(pool, wire, CLOSE_DELIMITED + b"Once")
    consumer = Consumer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(consumer.feed_on, exchange)
        await wait_all_tasks_blocked()
        await peer.send(b" upon a time")
        await peer.end()
    assert consumer.body == b"Once upon a time"
    assert await exchange.receive() == b""
    exchange.close()
    assert_nothing_is_under_way(pool)
    other, _ = await answered_and_read(pool, wire)
    assert other is not peer


async def test_the_last_bytes_and_the_end_may_come_at_once(pool: Pool, wire: Wire) -> None:
    peer, exchange = await answered(pool, wire, CLOSE_DELIMITED)
    if isinstance(peer, TlsPeer):
        await peer.send_raw(peer.records(b"Once", b" upon a time") + peer.goodbye())
    else:
        await peer.send(b"Once upon a time")
    await peer.close()
    consumer = Consumer()
    assert await consumer.feed_to_the_end(exchange) == 0
    assert consumer.body == b"Once upon a time"
    exchange.close()


@pytest.mark.parametrize("by", ["receive", "feed"])
async def test_a_body_that_is_cut_is_an_error_after_all_that_came(
    pool: Pool, wire: Wire, by: str
) -> None:
    peer, exchange = await answered(pool, wire, CHUNKED + chunk(b"Once"))
    await peer.send(chunk(b" upon"))
    await peer.end()
    consumer = Consumer()
    with pytest.raises(APIConnectionError, match=HOST) as caught, trio.fail_after(SECONDS):
        if by == "feed":
            await consumer.feed_on(exchange)
        while data := await exchange.receive():
            consumer.receive(data, 0)
    assert caught.value.retryable
    assert consumer.body == b"Once upon"
    exchange.close()
    assert_nothing_is_under_way(pool)


@over_tls
@pytest.mark.parametrize("by", ["receive", "feed"])
async def test_a_truncated_tls_stream_is_an_error_and_no_end(
    pool: Pool, wire: Wire, by: str
) -> None:
    """Anybody on the way can end a TCP connection; only the server can say close_notify."""
    peer, exchange = await answered(pool, wire, CLOSE_DELIMITED + b"Once")
    await peer.send(b" upon")
    await peer.close()
    consumer = Consumer()
    with pytest.raises(APIConnectionError, match="cut off"), trio.fail_after(SECONDS):
        if by == "feed":
            await consumer.feed_on(exchange)
        while data := await exchange.receive():
            consumer.receive(data, 0)
    assert consumer.body == b"Once upon"
    exchange.close()
    assert_nothing_is_under_way(pool)


@over_tls
async def test_a_body_that_says_where_it_ends_needs_no_close_notify(pool: Pool, wire: Wire) -> None:
    peer, exchange = await answered(pool, wire, b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
    await peer.send(b"Once")
    await peer.close()
    assert await read(exchange) == b"Once"


@over_tls
async def test_half_a_record_is_waited_for(pool: Pool, wire: Wire) -> None:
    peer, exchange = await answered(pool, wire, CHUNKED)
    assert isinstance(peer, TlsPeer)
    records = peer.records(chunk(b"Once"), chunk(b" upon"), LAST_CHUNK)
    consumer = Consumer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(consumer.feed_on, exchange)
        for byte in records:
            await peer.send_raw(bytes([byte]))
            await wait_all_tasks_blocked()
    assert consumer.received == [b"Once", b" upon"]
    exchange.close()


async def test_a_stream_is_not_read_on_for_an_owner_who_wants_no_more(
    nursery: trio.Nursery,
) -> None:
    """What was being received by then is kept for when he does."""
    stream, peer = trio.testing.memory_stream_pair()
    owner = Owner()
    link = StreamLink(stream, owner, nursery)
    link.start_reading()
    await wait_all_tasks_blocked()
    link.stop_reading()
    await peer.send_all(b"Once")
    await wait_all_tasks_blocked()
    await peer.send_all(b" upon")
    await peer.send_eof()
    await wait_all_tasks_blocked()
    assert (owner.received, link.has_unread()) == ([], True)
    link.start_reading()
    await wait_all_tasks_blocked()
    assert (owner.received, owner.lost) == ([b"Once", b" upon"], [None])
    link.close()


# Who has had enough, and goes on


@over_tls
@pytest.mark.parametrize("and_then", ["feed", "receive"])
async def test_what_tls_holds_comes_before_anything_is_waited_for(
    pool: Pool, wire: Wire, and_then: str
) -> None:
    """Many records in one `recv`: the poller knows nothing of those that were not taken."""
    peer, exchange = await answered(pool, wire, CHUNKED)
    assert isinstance(peer, TlsPeer)
    tokens = [b"%d " % number for number in range(20)]
    await peer.send_raw(peer.records(*map(chunk, tokens), LAST_CHUNK))
    consumer = Consumer(always)
    with trio.fail_after(SECONDS):
        assert not await consumer.feed_on(exchange)
    assert consumer.received == tokens[:1]
    if and_then == "receive":
        assert await read(exchange) == b"".join(tokens[1:])
    else:
        assert await consumer.feed_to_the_end(exchange) == len(tokens) - 1
        assert consumer.received == tokens
        exchange.close()
    await answered_and_read(pool, wire, by=peer)


@over_tls
async def test_an_end_that_only_tls_has_seen_leaves_the_connection_for_the_next_request(
    pool: Pool, wire: Wire
) -> None:
    """`[DONE]` is enough; the last chunk came with it, in another record."""
    peer, exchange = await answered(pool, wire, CHUNKED)
    assert isinstance(peer, TlsPeer)
    await peer.send_raw(peer.records(chunk(b"[DONE]"), LAST_CHUNK))
    with trio.fail_after(SECONDS):
        assert not await Consumer(always).feed_on(exchange)
        assert await exchange.receive() == b""
    exchange.close()
    await answered_and_read(pool, wire, by=peer)


@over_tls
async def test_what_was_left_in_tls_closes_the_connection(pool: Pool, wire: Wire) -> None:
    peer, exchange = await answered(pool, wire, CHUNKED)
    assert isinstance(peer, TlsPeer)
    await peer.send_raw(peer.records(chunk(b"[DONE]"), LAST_CHUNK))
    assert not await Consumer(always).feed_on(exchange)
    exchange.close()
    await peer.closed()


@over_tls
async def test_what_tls_holds_behind_the_end_closes_the_connection(pool: Pool, wire: Wire) -> None:
    """It would be taken for the answer to the next request."""
    peer, exchange = await answered(pool, wire, b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
    assert isinstance(peer, TlsPeer)
    await peer.send_raw(peer.records(b"Once", OK))
    consumer = Consumer(always)
    assert not await consumer.feed_on(exchange)
    exchange.close()
    await peer.closed()
    assert pool._open == set()


async def test_what_the_decoder_holds_comes_before_anything_is_waited_for(
    pool: Pool, wire: Wire
) -> None:
    body = bytes(10 * DECOMPRESSED_BYTES)
    answer = length(gzip.compress(body), b"Content-Encoding: gzip")
    peer, exchange = await answered(pool, wire, answer)
    consumer = Consumer(always)
    with trio.fail_after(SECONDS):
        for number in range(1, 4):
            assert not await consumer.feed_on(exchange)
            assert len(consumer.received) == number
        assert await exchange.receive() == bytes(DECOMPRESSED_BYTES)
        consumer.received.append(bytes(DECOMPRESSED_BYTES))
        await consumer.feed_to_the_end(exchange)
    assert consumer.body == body
    assert max(map(len, consumer.received)) <= DECOMPRESSED_BYTES
    exchange.close()
    await answered_and_read(pool, wire, by=peer)


async def test_a_consumer_that_has_enough_with_the_last_bytes_is_told_of_the_end_later(
    pool: Pool, wire: Wire
) -> None:
    peer, exchange = await answered(pool, wire, length(b"Once"))
    consumer = Consumer(always)
    assert not await consumer.feed_on(exchange)
    assert await consumer.feed_on(exchange)
    assert consumer.received == [b"Once"]
    exchange.close()
    await answered_and_read(pool, wire, by=peer)


@only("over sockets")
async def test_nothing_is_read_for_a_consumer_that_has_enough(pool: Pool, wire: Wire) -> None:
    peer, exchange = await answered(pool, wire, CLOSE_DELIMITED)
    consumer = Consumer(always)
    sent = 0

    async def flood() -> None:
        nonlocal sent
        while True:
            await peer.send(bytes(16 * 1024))
            sent += 16 * 1024

    async with trio.open_nursery() as nursery:
        nursery.start_soon(flood)
        assert not await consumer.feed_on(exchange)
        taken = len(consumer.body)
        await wait_all_tasks_blocked()
        assert len(consumer.body) == taken <= 64 * 1024
        assert exchange.reader.take_body() == b""
        before = sent
        await wait_all_tasks_blocked()
        assert sent == before  # the server has to wait
        while len(consumer.body) < before:
            assert not await consumer.feed_on(exchange)
        nursery.cancel_scope.cancel()
    exchange.close()


async def test_a_response_that_nobody_reads_is_not_read_further_than_its_head(
    pool: Pool, wire: Wire
) -> None:
    peer, exchange = await answered(pool, wire, CLOSE_DELIMITED)
    async with trio.open_nursery() as nursery:

        async def flood() -> None:
            for _ in range(100):
                await peer.send(bytes(16 * 1024))

        nursery.start_soon(flood)
        await wait_all_tasks_blocked()
        assert len(exchange.reader.take_body()) <= 64 * 1024
        nursery.cancel_scope.cancel()
    exchange.close()


async def test_an_end_that_came_while_nobody_read_is_told_to_who_reads_then(
    pool: Pool, wire: Wire
) -> None:
    peer, exchange = await answered(pool, wire, CHUNKED + chunk(b"Once"))
    assert await exchange.receive() == b"Once"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(exchange.receive)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    await peer.close()
    await wait_all_tasks_blocked()
    with pytest.raises(APIConnectionError, match=HOST):
        await Consumer().feed_on(exchange)


async def test_a_response_that_is_closed_tells_its_consumer_nothing_more(
    pool: Pool, wire: Wire
) -> None:
    peer, exchange = await answered(pool, wire, CHUNKED)
    consumer = Consumer()
    exchange.start(consumer)
    await peer.send(chunk(b"x"))
    await wait_all_tasks_blocked()
    exchange.close()
    await peer.closed()
    await wait_all_tasks_blocked()
    assert (consumer.received, consumer.ended) == ([b"x"], False)


@pytest.mark.parametrize("comes", ["with its head", "later"])
async def test_a_consumer_may_close_its_response(pool: Pool, wire: Wire, comes: str) -> None:
    body = bytes(3 * DECOMPRESSED_BYTES)
    answer = length(gzip.compress(body), b"Content-Encoding: gzip")
    head, end, rest = answer.partition(b"\r\n\r\n")
    at_once = comes == "with its head"
    peer, exchange = await answered(pool, wire, answer if at_once else head + end)

    def close() -> bool:
        exchange.close()
        return False

    consumer = Consumer(close)
    exchange.start(consumer)
    if not at_once:
        await peer.send(rest)
        await wait_all_tasks_blocked()
    assert consumer.received == [bytes(DECOMPRESSED_BYTES)]
    assert not consumer.ended
    assert_nothing_is_under_way(pool)


async def test_a_consumer_is_told_when_the_pool_ends(wire: Wire) -> None:
    consumer = Consumer()
    async with open_pool(client_context(), connect=wire.connect) as pool:
        _, exchange = await answered(pool, wire, CHUNKED)
        exchange.start(consumer)
    with pytest.raises(trio.ClosedResourceError):
        await consumer.wait()


async def test_a_response_may_be_started_when_its_connection_is_lost_already(
    pool: Pool, wire: Wire
) -> None:
    peer, exchange = await answered(pool, wire, CHUNKED + chunk(b"Once"))
    pool.close()
    consumer = Consumer()
    with pytest.raises(trio.ClosedResourceError):
        await consumer.feed_on(exchange)
    assert consumer.body == b"Once"
    await peer.closed()


async def test_one_task_at_a_time_receives_a_response(pool: Pool, wire: Wire) -> None:
    peer, exchange = await answered(pool, wire, CHUNKED)
    received: list[bytes] = []

    async def receive() -> None:
        received.append(await exchange.receive())

    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await exchange.receive()
            await peer.send(chunk(b"Once"))
    assert received == [b"Once"]
    exchange.close()


async def test_a_receive_that_is_cancelled_can_be_repeated_and_has_lost_nothing(
    pool: Pool, wire: Wire
) -> None:
    peer, exchange = await answered(pool, wire, CHUNKED)
    received = b""
    tokens = [b"%d " % number for number in range(5)]
    for token in tokens:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(exchange.receive)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        await peer.send(chunk(token))
        received += await exchange.receive()
    assert received == b"".join(tokens)
    exchange.close()


# Deadlines


async def test_a_response_is_closed_when_its_consumer_s_deadline_has_passed(
    autojump_clock: MockClock, pool: Pool, wire: Wire
) -> None:
    peer, exchange = await answered(pool, wire, CHUNKED)
    consumer = Consumer()
    consumer.by = trio.current_time() + 5
    exchange.start(consumer)
    with pytest.raises(trio.TooSlowError):
        await consumer.wait()
    assert trio.current_time() == 5
    assert pool._open == set()
    await peer.closed()


async def test_the_deadline_moves_with_what_comes(
    autojump_clock: MockClock, pool: Pool, wire: Wire
) -> None:
    peer, exchange = await answered(pool, wire, CHUNKED)
    consumer = Consumer()
    consumer.has_seconds_between(5)
    consumer.by = 4
    exchange.start(consumer)
    for _ in range(4):
        await trio.sleep(3)
        await peer.send(chunk(b"x"))
    with pytest.raises(trio.TooSlowError):
        await consumer.wait()
    assert trio.current_time() == 12 + 5
    assert consumer.body == b"xxxx"


async def test_the_first_bytes_may_bring_the_deadline_nearer(
    autojump_clock: MockClock, pool: Pool, wire: Wire
) -> None:
    """A first token has five minutes, the next one two."""
    peer, exchange = await answered(pool, wire, CHUNKED)
    consumer = Consumer()
    consumer.has_seconds_between(2)
    consumer.by = 300
    exchange.start(consumer)
    await trio.sleep(1)
    await peer.send(chunk(b"x"))
    with pytest.raises(trio.TooSlowError):
        await consumer.wait()
    assert trio.current_time() == 3


async def test_a_consumer_that_has_enough_has_no_deadline(
    autojump_clock: MockClock, pool: Pool, wire: Wire
) -> None:
    peer, exchange = await answered(pool, wire, CHUNKED + chunk(b"x"))
    consumer = Consumer(always)
    consumer.by = 5
    assert not await consumer.feed_on(exchange)
    await trio.sleep(100)
    assert not consumer.ended
    consumer.by = inf
    await peer.send(chunk(b"y") + LAST_CHUNK)
    await consumer.feed_to_the_end(exchange)
    assert consumer.received == [b"x", b"y"]


async def test_each_response_has_its_own_deadline(
    autojump_clock: MockClock, pool: Pool, wire: Wire
) -> None:
    ended: list[tuple[int, float]] = []

    async def late(number: int, by: float) -> None:
        _, exchange = await answered(pool, wire, CHUNKED)
        consumer = Consumer()
        consumer.by = by
        started.append(number)
        with pytest.raises(trio.TooSlowError):
            await consumer.feed_on(exchange)
        ended.append((number, trio.current_time()))

    started: list[int] = []
    async with trio.open_nursery() as nursery:
        for number, by in enumerate((9, 3, 6)):
            nursery.start_soon(late, number, by)
            while len(started) <= number:
                await trio.lowlevel.checkpoint()
    assert ended == [(1, 3), (2, 6), (0, 9)]


async def test_what_is_there_already_is_not_too_late(
    autojump_clock: MockClock, pool: Pool, wire: Wire
) -> None:
    _, exchange = await answered(pool, wire, length(b"Once"))
    await trio.sleep(10)
    consumer = Consumer()
    consumer.by = 5
    assert await consumer.feed_on(exchange)
    assert consumer.received == [b"Once"]
    exchange.close()


# Errors


class _Exit(BaseException):
    """Not an `Exception`."""


@pytest.mark.parametrize("when", ["at once", "later"])
@pytest.mark.parametrize(
    "error", [ValueError(), BrokenPipeError(), EOFError(), trio.BrokenResourceError(), _Exit()]
)
async def test_what_a_consumer_raises_comes_back_to_it_and_to_no_other(
    pool: Pool, wire: Wire, when: str, error: BaseException
) -> None:

    def fail() -> bool:
        raise error

    peer, exchange = await answered(pool, wire, CHUNKED + chunk(b"x") * (when == "at once"))
    other_peer, other = await answered(pool, wire, CHUNKED)
    consumer, other_consumer = Consumer(fail), Consumer()

    other.start(other_consumer)
    exchange.start(consumer)
    if when == "later":
        await peer.send(chunk(b"x"))
    await other_peer.send(chunk(b"y"))
    await wait_all_tasks_blocked()
    await other_peer.send(LAST_CHUNK)
    await other_consumer.wait()
    assert other_consumer.received == [b"y"]
    assert consumer.received == [b"x"]
    assert consumer.error is error
    await peer.closed()


class BadConsumer(Consumer):
    """Raises where it must not: when it is told of the end."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.raises = error

    def stopped(self, error: BaseException | None) -> None:
        super().stopped(error)
        raise self.raises


def unheard_of() -> bool:
    raise LookupError


async def end_of_body(exchange: Exchange, peer: Peer, consumer: Consumer) -> None:
    exchange.start(consumer)
    await peer.send(chunk(b"Once") + LAST_CHUNK)


async def end_there_already(exchange: Exchange, peer: Peer, consumer: Consumer) -> None:
    await peer.send(chunk(b"Once") + LAST_CHUNK)
    exchange.start(consumer)


async def cut(exchange: Exchange, peer: Peer, consumer: Consumer) -> None:
    exchange.start(consumer)
    await peer.end()


async def reset(exchange: Exchange, peer: Peer, consumer: Consumer) -> None:
    exchange.start(consumer)
    await peer.stream.reset()


async def no_http(exchange: Exchange, peer: Peer, consumer: Consumer) -> None:
    exchange.start(consumer)
    await peer.send(b"no chunk")


async def too_late(exchange: Exchange, peer: Peer, consumer: Consumer) -> None:
    consumer.by = trio.current_time()
    exchange.start(consumer)


async def own_bug(exchange: Exchange, peer: Peer, consumer: Consumer) -> None:
    consumer.enough = unheard_of
    exchange.start(consumer)
    await peer.send(chunk(b"Once"))


ENDS = (end_of_body, end_there_already, cut, reset, no_http, too_late, own_bug)

whatever_it_ends_by = pytest.mark.parametrize("end", ENDS, ids=[end.__name__ for end in ENDS])


@whatever_it_ends_by
async def test_a_consumer_that_raises_when_it_is_told_of_the_end_is_logged_and_harms_no_other(
    pool: Pool,
    wire: Wire,
    end: Callable[[Exchange, Peer, Consumer], Awaitable[None]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    peer, exchange = await answered(pool, wire, CHUNKED)
    other_peer, other = await answered(pool, wire, CHUNKED)
    consumer, other_consumer = BadConsumer(ValueError("sk-secret")), Consumer()
    other.start(other_consumer)
    await end(exchange, peer, consumer)
    await wait_all_tasks_blocked()
    assert consumer.ended
    await other_peer.send(chunk(b"y") + LAST_CHUNK)
    assert await other_consumer.wait()
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("gz_trio.transport", "ERROR")
    assert "ValueError" in record.getMessage()
    assert "raise self.raises" in record.getMessage()
    assert "sk-secret" not in caplog.text
    await answered_and_read(pool, wire, by=other_peer)


async def test_so_does_one_that_raises_when_it_is_asked_for_its_deadline(
    mock_clock: MockClock, pool: Pool, wire: Wire
) -> None:
    """It is told of its own error, though."""

    class Undecided(Consumer):
        def deadline(self) -> float:
            if self.by <= trio.current_time():
                raise LookupError
            return self.by

    _, exchange = await answered(pool, wire, CHUNKED)
    consumer = Undecided()
    consumer.by = 1.0
    exchange.start(consumer)
    mock_clock.jump(1)
    await wait_all_tasks_blocked()
    assert isinstance(consumer.error, LookupError)
    await answered_and_read(pool, wire)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)], ids=["Ctrl-C", "exit"])
@pytest.mark.parametrize("end", [*ENDS, None])
def test_what_is_meant_for_the_whole_program_comes_out_of_the_pool_s_block(
    way: str,
    end: Callable[[Exchange, Peer, Consumer], Awaitable[None]] | None,
    error: BaseException,
) -> None:
    async def main() -> None:
        wire = wire_for(way)
        consumer = BadConsumer(error)
        try:
            async with open_pool(client_context(), connect=wire.connect) as pool:
                peer, exchange = await answered(pool, wire, CHUNKED)
                if end is None:
                    exchange.start(consumer)
                else:
                    await end(exchange, peer, consumer)
                    with trio.fail_after(SECONDS):
                        await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await wire.close()

    with pytest.raises(type(error)) as caught:
        trio.run(main)
    assert caught.value is error


async def test_a_consumer_that_raises_at_the_last_bytes_is_heard(pool: Pool, wire: Wire) -> None:
    def fail() -> bool:
        raise ValueError("a sink's")

    peer, exchange = await answered(pool, wire, b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
    consumer = Consumer(fail)
    exchange.start(consumer)
    await peer.send(b"Once")
    with pytest.raises(ValueError, match="a sink's"):
        await consumer.wait()


BAD_BODIES: dict[str, tuple[bytes, bytes, type[GatewayError]]] = {
    "a coding that was not asked for": (b"br", b"\x0b\x02\x80Once\x03", ProtocolError),
    "what is no gzip": (b"gzip", b"Once upon a time", ProtocolError),
    "gzip that is spoilt": (b"gzip", gzip.compress(b"Once")[:-8] + bytes(8), ProtocolError),
    "gzip that is cut": (b"gzip", gzip.compress(b"Once")[:-1], APIConnectionError),
    "deflate that is cut": (b"deflate", zlib.compress(b"Once")[:-1], APIConnectionError),
}


@pytest.mark.parametrize("bad", BAD_BODIES)
@pytest.mark.parametrize("comes", ["with its head", "later", "later, to its reader"])
@pytest.mark.parametrize("by", ["receive", "feed"])
async def test_a_body_that_cannot_be_decoded_is_never_a_whole_one(
    pool: Pool, wire: Wire, bad: str, comes: str, by: str
) -> None:
    coding, body, error_class = BAD_BODIES[bad]
    answer = length(body, b"Content-Encoding: " + coding)
    head, _, _ = answer.partition(b"\r\n\r\n")
    head += b"\r\n\r\n"
    peer, exchange = await answered(pool, wire, answer if comes == "with its head" else head)
    if comes == "later":
        await peer.send(body)
    caught: list[GatewayError] = []

    async def take() -> None:
        try:
            if by == "feed":
                await Consumer().feed_on(exchange)
            else:
                while await exchange.receive():
                    pass
        except GatewayError as error:
            caught.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        if comes == "later, to its reader":
            await wait_all_tasks_blocked()
            await peer.send(body)
    assert [type(error) for error in caught] == [error_class]
    assert f"http{'s' * isinstance(peer, TlsPeer)}://{HOST}" in str(caught[0])
    exchange.close()


async def test_what_is_no_http_is_an_error_that_says_so(pool: Pool, wire: Wire) -> None:
    async with sending(pool, asking(url=wire.url)) as outcome:
        peer = await wire.accept()
        await peer.request()
        await peer.send(b"SSH-2.0-OpenSSH\r\n")
    message = str(error_of(outcome))
    assert "what came is no HTTP" in message
    assert "SSH" not in message
    assert_nothing_is_under_way(pool)


async def test_chunks_that_are_none_are_an_error_after_what_came(pool: Pool, wire: Wire) -> None:
    peer, exchange = await answered(pool, wire, CHUNKED + chunk(b"Once"))
    await peer.send(b"no size\r\n")
    consumer = Consumer()
    with pytest.raises(APIConnectionError, match="what came is no HTTP"):
        await consumer.feed_on(exchange)
    assert consumer.body == b"Once"
    exchange.close()
    await peer.closed()


async def test_a_connection_that_breaks_before_the_head_is_an_error_that_names_the_origin(
    pool: Pool, wire: Wire
) -> None:
    async with sending(pool, asking(url=wire.url)) as outcome:
        peer = await wire.accept()
        await peer.request()
        await peer.stream.reset()
    assert wire.url.partition("/v1")[0] in str(error_of(outcome))
    assert_nothing_is_under_way(pool)


# Requests


LARGE = bytes(range(256)) * 8_000


async def test_a_large_request_goes_out_whole_however_little_the_server_takes_at_once(
    pool: Pool, wire: Wire
) -> None:
    """The socket's buffers hold a small part of it."""
    async with sending(pool, asking("POST", wire.url, content=LARGE)) as outcome:
        peer = await wire.accept()
        await wait_all_tasks_blocked()
        assert (await peer.request()).endswith(b"\r\n\r\n" + LARGE)
        await peer.send(OK)
    assert await body_of(outcome) == b"ok"
    await answered_and_read(pool, wire, by=peer)


@only("over sockets")
async def test_a_server_may_write_its_answer_before_it_reads_all_of_a_large_request(
    pool: Pool, wire: Wire
) -> None:
    """Else both would wait for the other to read."""
    async with sending(pool, asking("POST", wire.url, content=LARGE)) as outcome:
        peer = await wire.accept()
        await wait_all_tasks_blocked()
        with trio.fail_after(SECONDS):
            await peer.send(length(LARGE)[:-1])
        assert not outcome
        assert (await peer.request()).endswith(b"\r\n\r\n" + LARGE)
        await wait_all_tasks_blocked()
        assert outcome
        await peer.send(LARGE[-1:])
    assert await body_of(outcome) == LARGE
    await answered_and_read(pool, wire, by=peer)


@only("over sockets")
async def test_before_its_request_is_sent_no_more_than_so_much_of_an_answer_is_read(
    pool: Pool, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gz_trio._transport.connection, "EARLY_READS", 3)
    wrote: list[Peer] = []

    async def write(peer: Peer) -> None:
        await peer.send(length(LARGE))
        wrote.append(peer)

    async with trio.open_nursery() as nursery:
        async with sending(pool, asking("POST", wire.url, content=LARGE)) as outcome:
            peer = await wire.accept()
            await wait_all_tasks_blocked()
            nursery.start_soon(write, peer)
            await wait_all_tasks_blocked()
            assert not wrote
            assert (await peer.request()).endswith(b"\r\n\r\n" + LARGE)
        assert await body_of(outcome) == LARGE
    await answered_and_read(pool, wire, by=peer)


@pytest.mark.parametrize("close", [False, True], ids=["kept alive", "closed"])
async def test_a_refusal_counts_even_before_the_request_is_sent(
    pool: Pool, wire: Wire, close: bool
) -> None:
    """413 Content Too Large, say: a server need not read what it does not want."""
    answer = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 9\r\n"
    answer += b"Connection: close\r\n" * close
    async with sending(pool, asking("POST", wire.url, content=LARGE)) as outcome:
        peer = await wire.accept()
        await wait_all_tasks_blocked()
        await peer.send(answer + b"\r\ntoo large")
        if close:
            await wait_all_tasks_blocked()
            await peer.close()
    assert await body_of(outcome) == b"too large"
    assert_nothing_is_under_way(pool)


@only("over sockets")
async def test_a_connection_on_which_part_of_a_request_was_left_unsent_is_closed(
    pool: Pool, wire: Wire
) -> None:
    async with sending(pool, asking("POST", wire.url, content=LARGE)) as outcome:
        peer = await wire.accept()
        await wait_all_tasks_blocked()
        await peer.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 9\r\n\r\ntoo large")
    assert await body_of(outcome) == b"too large"
    assert pool._open == set()
    other, _ = await answered_and_read(pool, wire)
    assert other is not peer


async def test_a_connection_that_breaks_while_a_request_is_sent_is_an_error(
    pool: Pool, wire: Wire
) -> None:
    async with sending(pool, asking("POST", wire.url, content=LARGE)) as outcome:
        peer = await wire.accept()
        await wait_all_tasks_blocked()
        await peer.stream.reset()
    assert HOST in str(error_of(outcome))
    assert_nothing_is_under_way(pool)


# TLS: whom it trusts


async def refused(wire: Wire, context: ssl.SSLContext | None) -> tuple[APIConnectionError, str]:
    """What becomes of a request to a server whose handshake fails, and what the server hears."""
    heard = ""
    async with open_pool(context, connect=wire.connect) as pool:
        async with sending(pool, asking(url=wire.url)) as outcome:
            try:
                peer = await wire.accept()
                await peer.closed()
            except ssl.SSLError as alert:
                heard = alert.reason.lower()
            except EOFError:
                heard = "the end"
        assert pool._open == set()
        assert_nothing_is_under_way(pool)
    await wire.close()
    return error_of(outcome), heard


kinds = pytest.mark.parametrize("kind", list(KINDS))


@kinds
async def test_without_a_context_only_authorities_that_are_known_are_trusted(kind: str) -> None:
    # TLS 1.2, in which the server waits for our last words.
    error, heard = await refused(Wire(KINDS[kind], speaking_only(server_context(), TLS_1_2)), None)
    assert "not signed by an authority that is trusted" in str(error)
    assert not error.retryable
    if kind == "sockets":
        assert heard == "tlsv1_alert_unknown_ca"


@kinds
async def test_a_certificate_for_another_host_is_not_taken(kind: str) -> None:
    other = server_context(authority.issue_cert("other.test"))
    error, _ = await refused(Wire(KINDS[kind], other), client_context())
    assert "its certificate is for another host" in str(error)
    assert not error.retryable


@kinds
async def test_no_common_version_of_tls_is_an_error(kind: str) -> None:
    wire = Wire(KINDS[kind], speaking_only(server_context(), TLS_1_2))
    error, _ = await refused(wire, client_context(TLS_1_3))
    assert "no version of TLS is spoken by both sides" in str(error)


@kinds
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "the server closed it during the handshake"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "what answers there does not speak TLS"),
        (b"\x15\x03\x03\x00\x02\x02\x28", "the server broke it off"),
    ],
)
async def test_a_handshake_that_fails_is_an_error_and_no_task_s_end(
    kind: str, answer: bytes, message: str
) -> None:
    wire = Wire(KINDS[kind])
    async with open_pool(connect=wire.connect) as pool:
        async with sending(pool, asking(url=f"https://{HOST}/")) as outcome:
            peer = await wire.accept()
            assert await peer.receive()
            await peer.send(answer)
            await peer.close()
        assert pool._open == set()
        assert_nothing_is_under_way(pool)
    assert message in str(error_of(outcome))


@kinds
async def test_a_connection_that_breaks_in_the_handshake_is_an_error(kind: str) -> None:
    wire = Wire(KINDS[kind])
    async with open_pool(connect=wire.connect) as pool:
        async with sending(pool, asking(url=f"https://{HOST}/")) as outcome:
            peer = await wire.accept()
            assert await peer.receive()
            await peer.stream.reset()
        assert f"https://{HOST}" in str(error_of(outcome))
        assert_nothing_is_under_way(pool)


@kinds
async def test_why_a_handshake_failed_is_told_even_where_the_server_is_gone(kind: str) -> None:
    """What we would say to it then cannot be sent, and is not what matters."""
    wire = Wire(KINDS[kind], speaking_only(server_context(), TLS_1_2))
    async with open_pool(connect=wire.connect) as pool:
        async with sending(pool, asking(url=wire.url)) as outcome:
            with trio.fail_after(SECONDS):
                peer = await wire._accept.receive()
            assert isinstance(peer, TlsPeer)
            assert await peer._receive_raw()
            with pytest.raises(ssl.SSLWantReadError):
                peer.tls.do_handshake()
            await peer.send_raw(peer._outgoing.read())
            await peer.close()
        assert "not signed by an authority that is trusted" in str(error_of(outcome))


@over_tls
async def test_both_sides_agree_on_http_1_1(pool: Pool, wire: Wire) -> None:
    assert wire.tls is not None
    wire.tls.set_alpn_protocols(["h2", "http/1.1"])
    context = client_context()
    context.set_alpn_protocols(["http/1.1"])
    async with open_pool(context, connect=wire.connect) as pool_with_alpn:
        peer, _ = await answered_and_read(pool_with_alpn, wire)
        assert isinstance(peer, TlsPeer)
        assert peer.tls.selected_alpn_protocol() == "http/1.1"


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
async def test_a_gateway_with_a_certificate_of_a_private_authority_is_spoken_to(name: str) -> None:
    fake = FakeGateway()
    server = with_certificate(
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER),
        authority.issue_cert(name).private_key_and_cert_chain_pem,
    )
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]

    async def serve(stream: trio.SSLStream[trio.SocketStream]) -> None:
        try:
            await fake.serve_stream(stream)
        except trio.BrokenResourceError:
            await trio.aclose_forcefully(stream)

    async def ask(context: ssl.SSLContext | None) -> str:
        retry = gz_trio.RetryPolicy(max_retries=0)
        async with (
            gz_trio.open_gateway(
                f"https://{name}:{port}/v1", fake.key, ssl_context=context, retry=retry
            ) as gateway,
            gateway.open_session("fake-model") as session,
        ):
            return str(await session.ask("Tell me a story."))

    async with trio.open_nursery() as nursery:
        listeners = [trio.SSLListener(listener, server)]
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        assert await ask(client_context())
        with pytest.raises(APIConnectionError, match="give `ssl_context=` a context that knows it"):
            await ask(None)
        nursery.cancel_scope.cancel()


# TLS: what it says for itself


@over_tls_1_3
async def test_session_tickets_on_an_idle_connection_do_not_end_it(pool: Pool, wire: Wire) -> None:
    assert wire.tls is not None
    wire.tls.num_tickets = 10
    peer, _ = await answered_and_read(pool, wire)
    await wait_all_tasks_blocked()
    await answered_and_read(pool, wire, by=peer)


@pytest.fixture
async def asked_for_certificates(way: str) -> AsyncGenerator[tuple[Pool, Wire]]:
    """A server that may ask for a client's certificate after the handshake, and a pool for it."""
    wire = wire_for(way)
    assert wire.tls is not None
    wire.tls.verify_mode = ssl.CERT_OPTIONAL
    wire.tls.load_verify_locations(cadata=authority.cert_pem.bytes().decode())
    wire.tls.post_handshake_auth = True
    context = client_context()
    context.post_handshake_auth = True
    async with open_pool(context, connect=wire.connect) as pool:
        yield pool, wire
    await wire.close()


@only("TLS 1.3", "over sockets")
async def test_what_tls_asks_on_an_idle_connection_is_answered_and_does_not_end_it(
    asked_for_certificates: tuple[Pool, Wire],
) -> None:
    pool, wire = asked_for_certificates
    peer, _ = await answered_and_read(pool, wire)
    assert isinstance(peer, TlsPeer)
    peer.tls.verify_client_post_handshake()
    await peer.send_raw(peer.records(b""))
    if isinstance(next(iter(pool._open)).link, DemuxedSocket):
        with trio.fail_after(SECONDS):
            assert await peer._receive_raw()  # the answer, though nothing else is sent
    await answered_and_read(pool, wire, by=peer)


@only("TLS 1.3")
async def test_what_tls_asks_while_a_request_is_sent_is_answered_behind_it(
    asked_for_certificates: tuple[Pool, Wire],
) -> None:
    """However much of the request is not sent yet: that is not what the server leaves unread."""
    pool, wire = asked_for_certificates
    async with sending(pool, asking("POST", wire.url, content=LARGE)) as outcome:
        peer = await wire.accept()
        assert isinstance(peer, TlsPeer)
        await wait_all_tasks_blocked()
        peer.tls.verify_client_post_handshake()
        await peer.send_raw(peer.records(b""))
        await wait_all_tasks_blocked()
        assert (await peer.request()).endswith(b"\r\n\r\n" + LARGE)
        await peer.send(OK)
    assert await body_of(outcome) == b"ok"


@only("TLS 1.3 over sockets")
async def test_a_server_that_does_not_read_what_tls_has_to_answer_is_left(
    asked_for_certificates: tuple[Pool, Wire], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gz_trio._transport.connection, "UNSENT_BYTES", 10)
    pool, wire = asked_for_certificates
    peer, _ = await answered_and_read(pool, wire)
    assert isinstance(peer, TlsPeer)
    (connection,) = pool._open
    connection._unsent_bytes = 10

    def deaf(link: DemuxedSocket, data: bytearray) -> None:
        pass

    monkeypatch.setattr(DemuxedSocket, "send_now", deaf)
    peer.tls.verify_client_post_handshake()
    await peer.send_raw(peer.records(b""))
    await wait_all_tasks_blocked()
    assert pool._open == set()


@over_tls
async def test_a_close_notify_on_an_idle_connection_ends_it(pool: Pool, wire: Wire) -> None:
    peer, _ = await answered_and_read(pool, wire)
    assert isinstance(peer, TlsPeer)
    await peer.send_raw(peer.goodbye())
    await wait_all_tasks_blocked()
    assert pool._open == set()
    await peer.closed()
    other, _ = await answered_and_read(pool, wire)
    assert other is not peer


@only("TLS", "over sockets")
async def test_text_on_an_idle_connection_ends_it_however_much_there_is(
    pool: Pool, wire: Wire
) -> None:
    peer, _ = await answered_and_read(pool, wire)
    assert isinstance(peer, TlsPeer)
    await peer.send_raw(peer.records(*[b"x"] * 2000))
    await wait_all_tasks_blocked()
    assert pool._open == set()


@only("TLS 1.2")
async def test_what_comes_with_the_end_of_the_handshake_and_was_not_asked_for_is_an_error(
    pool: Pool, wire: Wire
) -> None:
    """An answer to a request that was not sent yet is somebody else's."""
    async with sending(pool, asking(url=wire.url)) as outcome:
        with trio.fail_after(SECONDS):
            peer = await wire._accept.receive()
        assert isinstance(peer, TlsPeer)
        assert await peer._receive_raw()
        with pytest.raises(ssl.SSLWantReadError):
            peer.tls.do_handshake()
        await peer.send_raw(peer._outgoing.read())
        assert await peer._receive_raw()
        peer.tls.do_handshake()
        await peer.send_raw(peer._outgoing.read() + peer.records(OK))
    assert "sent something that nobody has asked for" in str(error_of(outcome))
    assert pool._open == set()


# Cancellation


@over_tls
@pytest.mark.parametrize("turns", range(14))
async def test_no_turn_of_a_task_is_the_wrong_one_to_be_cancelled_in(
    pool: Pool, wire: Wire, turns: int
) -> None:
    """With a handshake; see the test of this name without."""
    pool._connects.total_tokens = 1

    async def send_and_read() -> None:
        await read(await pool.send(asking(url=wire.url)))

    async with trio.open_nursery() as servers:
        servers.start_soon(wire.serve)
        async with trio.open_nursery() as nursery:
            instrument = CancelAfter("the request", turns, nursery.cancel_scope)
            trio.lowlevel.add_instrument(instrument)
            nursery.start_soon(send_and_read, name="the request")
        trio.lowlevel.remove_instrument(instrument)
        assert_nothing_is_under_way(pool)
        with trio.fail_after(SECONDS):
            assert await read(await pool.send(asking(url=wire.url, repeatable=True))) == b"ok"
        servers.cancel_scope.cancel()


# Every cut


def cut_at(data: bytes, places: Iterable[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in pairwise(edges)]


@given(
    way=st.sampled_from([way for way in WAYS if "no poller" not in way]),
    pieces=st.lists(st.binary(min_size=1, max_size=300), max_size=8),
    framing=st.sampled_from(["chunks", "length", "end"]),
    coding=st.sampled_from(["", "gzip", "deflate"]),
    record_places=st.lists(st.integers(0, 4000), max_size=8),
    places=st.lists(st.integers(0, 6000), max_size=8),
    takes=st.lists(st.sampled_from(["feed", "receive"]), max_size=12),
    patience=st.lists(st.booleans(), min_size=1, max_size=12),
)
def test_the_body_comes_once_and_in_order_however_it_is_cut_and_taken(  # noqa: PLR0917
    way: str,
    pieces: list[bytes],
    framing: str,
    coding: str,
    record_places: list[int],
    places: list[int],
    takes: list[str],
    patience: list[bool],
) -> None:
    """Records, reads, chunks, members of gzip, and a consumer that has enough now and then."""
    body = b"".join(pieces)
    match coding:
        case "gzip":
            encoded = b"".join(map(gzip.compress, pieces))  # a member for each
        case "deflate":
            encoded = zlib.compress(body)
        case _:
            encoded = body
    fields = f"Content-Encoding: {coding}\r\n".encode() if coding else b""
    if framing == "chunks":
        chunks = b"".join(map(chunk, cut_at(encoded, record_places))) + LAST_CHUNK
        answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n%s\r\n" % fields + chunks
    elif framing == "length":
        answer = length(encoded, *([fields.strip()] if fields else []))
    else:
        answer = b"HTTP/1.1 200 OK\r\n%s\r\n%s" % (fields, encoded)
    turns = iter(patience * 1000)
    consumer = Consumer(lambda: next(turns))

    async def serve(wire: Wire) -> None:
        peer = await wire.accept()
        await peer.request()
        texts = cut_at(answer, record_places)
        raw = peer.records(*texts) if isinstance(peer, TlsPeer) else b"".join(texts)
        if framing == "end" and isinstance(peer, TlsPeer):
            raw += peer.goodbye()
        for piece in cut_at(raw, places):
            await peer.send_raw(piece)
            await trio.lowlevel.checkpoint()
        if framing == "end":
            await peer.close()

    async def main() -> None:
        wire = wire_for(way)
        async with open_pool(client_context(), connect=wire.connect) as pool:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve, wire)
                exchange = await pool.send(asking(url=wire.url))
                with trio.fail_after(SECONDS):
                    for take in takes:
                        if consumer.ended:
                            break
                        if take == "feed":
                            await consumer.feed_on(exchange)
                        elif data := await exchange.receive():
                            consumer.received.append(data)
                    if not consumer.ended:
                        await consumer.feed_to_the_end(exchange)
                exchange.close()
            assert_nothing_is_under_way(pool)
            assert len(pool._open) == (framing != "end")
        await wire.close()

    trio.run(main)
    assert consumer.body == body
