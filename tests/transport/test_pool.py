"""Connections that are kept, and those that are not: reuse, limits, cancellation, and the end."""

# pyright: reportPrivateUsage=false
from __future__ import annotations

import errno
import os
import resource
import signal
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from math import inf
from typing import TypeAlias

import pytest
import trio
import trio.abc
from trio.testing import MockClock, wait_all_tasks_blocked

import gz_trio._transport.pool
from gz_trio import APIConnectionError, GatewayError, ProtocolError
from gz_trio._transport.connection import Exchange
from gz_trio._transport.demux import DemuxedSocket, Poller, make_poller
from gz_trio._transport.interface import Request
from gz_trio._transport.origin import Origin
from gz_trio._transport.pool import IDLE_SECONDS, Pool, open_pool
from gz_trio.testing._memory import MemoryStream, _Wire, memory_connection
from tests.transport.wire import (
    OK,
    SECONDS,
    Peer,
    Wire,
    answered,
    answered_and_read,
    asking,
    read,
    without_poller,
)
from tests.transports import socket_connection

CLOSE_DELIMITED = b"HTTP/1.1 200 OK\r\n\r\n"

Make = Callable[[], tuple[MemoryStream, trio.abc.Stream]]

KINDS: dict[str, Make] = {
    "sockets": socket_connection,
    "sockets, no poller": socket_connection,
    "streams": memory_connection,
}
"""What connections go over."""

over_sockets = pytest.mark.parametrize("kind", ["sockets", "sockets, no poller"], indirect=True)
over_sockets_that_are_watched = pytest.mark.parametrize("kind", ["sockets"], indirect=True)


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Over what connections go; and what Trio makes of a system that has no poller."""
    name = str(request.param)
    without_poller(name, monkeypatch)
    return name


@pytest.fixture
async def wire(kind: str) -> AsyncGenerator[Wire]:
    wire = Wire(KINDS[kind])
    yield wire
    await wire.close()


@pytest.fixture
async def pool(wire: Wire) -> AsyncGenerator[Pool]:
    async with open_pool(connect=wire.connect) as pool:
        yield pool


def assert_nothing_is_under_way(pool: Pool) -> None:
    """No connection is open but the idle ones, and none is being made."""
    idle = {connection for kept in pool._idle.values() for connection in kept}
    assert pool._open == idle
    assert pool._connects.borrowed_tokens == 0
    assert pool._connects.statistics().tasks_waiting == 0


Outcome: TypeAlias = list[Exchange | GatewayError]


@asynccontextmanager
async def sending(pool: Pool, request: Request) -> AsyncGenerator[Outcome]:
    """A request under way during the block; afterwards, what came of it."""
    outcome: Outcome = []

    async def send() -> None:
        try:
            outcome.append(await pool.send(request))
        except GatewayError as error:
            outcome.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        yield outcome


async def body_of(outcome: Outcome) -> bytes:
    (response,) = outcome
    assert isinstance(response, Exchange)
    return await read(response)


def error_of(outcome: Outcome) -> APIConnectionError:
    (error,) = outcome
    assert isinstance(error, APIConnectionError)
    return error


class FailingPoller:
    """The system's poller, which fails when it is told to."""

    def __init__(self) -> None:
        poller = make_poller()
        assert poller is not None
        self._poller: Poller = poller
        self.fileno = poller.fileno
        self.unregister = poller.unregister
        self.close = poller.close
        self.broken = False
        self.full = False

    def poll(self) -> list[tuple[int, int]]:
        if self.broken:
            raise OSError(errno.EBADF, "Bad file descriptor")
        return self._poller.poll()

    def register(self, fd: int) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        self._poller.register(fd)


@pytest.fixture
def poller(monkeypatch: pytest.MonkeyPatch) -> FailingPoller:
    """Of the pools that are opened."""
    poller = FailingPoller()
    monkeypatch.setattr(gz_trio._transport.pool, "make_poller", lambda: poller)
    return poller


# Reuse


async def test_a_connection_whose_response_was_read_to_its_end_is_used_again(
    pool: Pool, wire: Wire
) -> None:
    peer, body = await answered_and_read(pool, wire)
    assert body == b"ok"
    for _ in range(3):
        _, body = await answered_and_read(pool, wire, by=peer)
        assert body == b"ok"
    assert len(wire.origins) == 1


async def test_the_response_need_not_be_asked_for_its_end(pool: Pool, wire: Wire) -> None:
    peer, exchange = await answered(pool, wire)
    assert await exchange.receive() == b"ok"
    exchange.close()
    await answered_and_read(pool, wire, by=peer)


async def test_a_connection_serves_one_response_at_a_time(pool: Pool, wire: Wire) -> None:
    first, exchange = await answered(pool, wire, CLOSE_DELIMITED)
    second, body = await answered_and_read(pool, wire)
    assert second is not first
    assert body == b"ok"
    await first.send(b"later")
    assert await exchange.receive() == b"later"
    exchange.close()


async def test_the_connection_that_was_used_last_is_used_first(pool: Pool, wire: Wire) -> None:
    first, first_exchange = await answered(pool, wire)
    second, second_exchange = await answered(pool, wire)
    second_exchange.close()
    first_exchange.close()
    for exchange in (first_exchange, second_exchange):
        assert await exchange.receive() == b"ok"  # it came with the head
    third, third_exchange = await answered(pool, wire, by=first)
    await answered_and_read(pool, wire, by=second)
    assert third is first
    third_exchange.close()


@pytest.mark.parametrize(
    "url", ["https://gateway.test/", "http://gateway.test:81/", "http://other.test/"]
)
async def test_another_origin_gets_another_connection(pool: Pool, wire: Wire, url: str) -> None:
    await answered_and_read(pool, wire)
    async with sending(pool, asking(url=url)):
        await (await wire.accept()).close()
    assert wire.origins == [Origin.of("http://gateway.test/"), Origin.of(url)]


async def test_the_same_origin_may_be_written_in_other_ways(pool: Pool, wire: Wire) -> None:
    peer, _ = await answered_and_read(pool, wire)
    for url in ("HTTP://gateway.TEST:80/other?query#fragment", "http://user:word@gateway.test/"):
        await answered_and_read(pool, wire, by=peer, request=asking(url=url))


REUSABLE = {
    "by its length": OK,
    "in chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "in chunks, with trailers": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"2\r\nok\r\n0\r\nExpires: never\r\n\r\n",
    "after 103": b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK,
    "after 100": b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "304": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n",
    "empty": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "an error": b"HTTP/1.1 500 Oh No\r\nContent-Length: 2\r\n\r\nno",
    "HTTP/1.0, kept alive": b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n"
    b"Content-Length: 2\r\n\r\nok",
}

NOT_REUSABLE = {
    "Connection: close": b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
    "Connection: close among others": b"HTTP/1.1 200 OK\r\nConnection: x, Close\r\n"
    b"Content-Length: 2\r\n\r\nok",
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "bytes behind the end": OK + b"H",
    "another response behind it": OK + OK,
    "bytes behind chunks": REUSABLE["in chunks"] + b"\r\n",
    "bytes behind 204": b"HTTP/1.1 204 No Content\r\n\r\nok",
    "204 that is closed": b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
}


@pytest.mark.parametrize("answer", REUSABLE.values(), ids=REUSABLE)
async def test_whatever_says_where_it_ends_leaves_a_connection_for_the_next_request(
    pool: Pool, wire: Wire, answer: bytes
) -> None:
    peer, _ = await answered_and_read(pool, wire, answer)
    _, body = await answered_and_read(pool, wire, by=peer)
    assert body == b"ok"


@pytest.mark.parametrize("answer", NOT_REUSABLE.values(), ids=NOT_REUSABLE)
async def test_what_may_not_be_used_again_is_closed(pool: Pool, wire: Wire, answer: bytes) -> None:
    peer, body = await answered_and_read(pool, wire, answer)
    assert body in (b"ok", b"")
    assert_nothing_is_under_way(pool)
    await peer.closed()
    other, _ = await answered_and_read(pool, wire)
    assert other is not peer


async def test_the_answer_to_head_has_no_body_and_leaves_the_connection(
    pool: Pool, wire: Wire
) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
    peer, body = await answered_and_read(pool, wire, head, request=asking("HEAD"))
    assert body == b""
    await answered_and_read(pool, wire, by=peer)


async def test_a_redirect_is_an_answer_like_any_other(pool: Pool, wire: Wire) -> None:
    answer = b"HTTP/1.1 307 Go There\r\nLocation: http://evil.test/\r\nContent-Length: 0\r\n\r\n"
    _, exchange = await answered(pool, wire, answer)
    assert exchange.status == 307
    assert wire.origins == [Origin.of("http://gateway.test/")]
    exchange.close()


# What is read half, or closed twice


async def test_a_response_that_is_left_early_closes_its_connection(pool: Pool, wire: Wire) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"
    peer, exchange = await answered(pool, wire, answer)
    assert await exchange.receive() == b"half"
    exchange.close()
    await peer.closed()
    assert_nothing_is_under_way(pool)
    with pytest.raises(trio.ClosedResourceError):
        await exchange.receive()


async def test_a_response_may_be_closed_twice(pool: Pool, wire: Wire) -> None:
    peer, exchange = await answered(pool, wire, CLOSE_DELIMITED)
    exchange.close()
    exchange.close()
    await peer.closed()


async def test_closing_a_response_again_does_not_touch_the_next_one(pool: Pool, wire: Wire) -> None:
    peer, first = await answered(pool, wire)
    first.close()
    first.close()
    _, second = await answered(pool, wire, CLOSE_DELIMITED, by=peer)
    first.close()
    await peer.send(b"text")
    assert await second.receive() == b"text"
    await peer.close()
    assert await read(second) == b""


# Limit and age


async def test_so_many_idle_connections_are_kept_and_the_oldest_goes(
    pool: Pool, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gz_trio._transport.pool, "IDLE_CONNECTIONS", 2)
    open_ones = [await answered(pool, wire) for _ in range(3)]
    for _, exchange in open_ones:
        exchange.close()
    peers = [peer for peer, _ in open_ones]
    await peers[0].closed()
    assert len(pool._open) == 2
    _, first = await answered(pool, wire, by=peers[2])
    _, second = await answered(pool, wire, by=peers[1])
    first.close()
    second.close()


async def test_the_limit_is_for_each_origin(
    pool: Pool, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gz_trio._transport.pool, "IDLE_CONNECTIONS", 1)
    one, _ = await answered_and_read(pool, wire, request=asking(url="http://one.test/"))
    other, _ = await answered_and_read(pool, wire, request=asking(url="http://other.test/"))
    await answered_and_read(pool, wire, request=asking(url="http://one.test/"), by=one)
    await answered_and_read(pool, wire, request=asking(url="http://other.test/"), by=other)


async def test_an_idle_connection_is_not_used_after_its_time(
    mock_clock: MockClock, pool: Pool, wire: Wire
) -> None:
    peer, _ = await answered_and_read(pool, wire)
    mock_clock.jump(IDLE_SECONDS - 1)
    await answered_and_read(pool, wire, by=peer)
    mock_clock.jump(IDLE_SECONDS - 1)  # since it was used last
    await answered_and_read(pool, wire, by=peer)
    mock_clock.jump(IDLE_SECONDS)
    other, _ = await answered_and_read(pool, wire)
    assert other is not peer
    await peer.closed()


async def test_idle_connections_are_closed_when_their_time_has_come_whatever_else_is_done(
    mock_clock: MockClock, pool: Pool, wire: Wire
) -> None:
    one, other = "http://one.test/", "http://other.test/"
    idle: dict[int, tuple[Peer, Exchange]] = {}
    for at, url in enumerate((one, other, one)):
        peer, exchange = await answered(pool, wire, request=asking(url=url))
        idle[at] = peer, exchange
    for _, exchange in idle.values():
        exchange.close()
        mock_clock.jump(1)
    mock_clock.jump(IDLE_SECONDS - 3.5)
    for at, (peer, _) in idle.items():
        await wait_all_tasks_blocked()
        assert len(pool._open) == len(idle) - at
        mock_clock.jump(1)
        await wait_all_tasks_blocked()
        assert len(pool._open) == len(idle) - at - 1
        await peer.closed()
    assert pool._idle == {}


async def test_a_connection_that_is_used_meanwhile_gets_its_time_anew(
    mock_clock: MockClock, pool: Pool, wire: Wire
) -> None:
    peer, _ = await answered_and_read(pool, wire)
    mock_clock.jump(IDLE_SECONDS - 1)
    _, exchange = await answered(pool, wire, by=peer)
    mock_clock.jump(2)
    await wait_all_tasks_blocked()
    assert await read(exchange) == b"ok"
    mock_clock.jump(IDLE_SECONDS - 1)
    await wait_all_tasks_blocked()
    await answered_and_read(pool, wire, by=peer)
    mock_clock.jump(IDLE_SECONDS)
    await wait_all_tasks_blocked()
    assert pool._open == set()


# Idle connections


@pytest.mark.parametrize("last_words", [b"", b"HTTP/1.1 408 Request Timeout\r\n\r\n", b"\r\n"])
async def test_an_idle_connection_that_the_server_closes_is_closed_at_once(
    pool: Pool, wire: Wire, last_words: bytes
) -> None:
    peer, _ = await answered_and_read(pool, wire)
    if last_words:
        await peer.send(last_words)
    else:
        await peer.stream._stream.send_eof()
    await wait_all_tasks_blocked()
    assert pool._open == set()
    await peer.closed()
    other, body = await answered_and_read(pool, wire)
    assert (other is not peer, body) == (True, b"ok")


async def test_an_idle_connection_that_breaks_is_closed_at_once(pool: Pool, wire: Wire) -> None:
    peer, _ = await answered_and_read(pool, wire)
    await peer.stream.reset()
    await wait_all_tasks_blocked()
    assert pool._open == set()


# A connection that turns out to be stale


@pytest.mark.parametrize("how", ["close", "reset", "read, then close", "read, then reset"])
async def test_a_request_that_finds_its_connection_stale_is_sent_again(
    pool: Pool, wire: Wire, how: str
) -> None:
    peer, _ = await answered_and_read(pool, wire)
    request = asking("POST", content=b"{}", repeatable=True)
    async with sending(pool, request) as outcome:
        if how.startswith("read"):
            assert (await peer.request()).endswith(b"{}")
        await (peer.stream.reset() if how.endswith("reset") else peer.close())
        other = await wire.accept()
        assert (await other.request()).endswith(b"{}")
        await other.send(OK)
    assert await body_of(outcome) == b"ok"
    assert_nothing_is_under_way(pool)


async def test_it_is_sent_again_over_a_new_connection_not_over_one_that_may_be_stale_too(
    pool: Pool, wire: Wire
) -> None:
    idle = [await answered(pool, wire) for _ in range(3)]
    for _, exchange in idle:
        exchange.close()
    async with sending(pool, asking(repeatable=True)) as outcome:
        await idle[-1][0].request()
        await idle[-1][0].close()
        other = await wire.accept()
        await other.request()
        await other.send(OK)
    assert await body_of(outcome) == b"ok"


async def test_it_is_not_sent_a_third_time(pool: Pool, wire: Wire) -> None:
    peer, _ = await answered_and_read(pool, wire)
    async with sending(pool, asking(repeatable=True)) as outcome:
        await peer.request()
        await peer.close()
        other = await wire.accept()
        await other.request()
        await other.close()
    assert "http://gateway.test" in str(error_of(outcome))
    assert not wire.connected()
    assert_nothing_is_under_way(pool)


async def test_it_is_not_sent_again_where_the_connection_was_a_new_one(
    pool: Pool, wire: Wire
) -> None:
    async with sending(pool, asking(repeatable=True)) as outcome:
        peer = await wire.accept()
        await peer.request()
        await peer.close()
    error_of(outcome)
    assert not wire.connected()


@pytest.mark.parametrize("begun", [b"H", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\n"])
async def test_it_is_not_sent_again_where_any_byte_of_a_response_came(
    pool: Pool, wire: Wire, begun: bytes
) -> None:
    peer, _ = await answered_and_read(pool, wire)
    async with sending(pool, asking(repeatable=True)) as outcome:
        await peer.request()
        await peer.send(begun)
        await peer.close()
    error_of(outcome)
    assert not wire.connected()


async def test_what_may_be_done_only_once_is_not_sent_again(pool: Pool, wire: Wire) -> None:
    peer, _ = await answered_and_read(pool, wire)
    async with sending(pool, asking("POST")) as outcome:
        await peer.request()
        await peer.close()
    error_of(outcome)
    assert not wire.connected()


@over_sockets_that_are_watched
async def test_what_may_be_done_only_once_goes_over_no_connection_that_is_closed_already(
    pool: Pool, wire: Wire
) -> None:
    peers = [await answered(pool, wire) for _ in range(2)]
    for peer, exchange in peers:
        exchange.close()
        stream = peer.stream._stream
        assert isinstance(stream, trio.SocketStream)
        stream.socket.close()  # no other task runs meanwhile
    async with sending(pool, asking("POST")) as outcome:
        other = await wire.accept()
        await other.request()
        await other.send(OK)
    assert await body_of(outcome) == b"ok"


# Cancellation


async def forever() -> None:
    await trio.sleep_forever()


async def accepted(wire: Wire) -> Peer:
    await wait_all_tasks_blocked()
    return await wire.accept()


async def connecting(wire: Wire) -> None:
    await wait_all_tasks_blocked()
    assert wire.connecting == 1


async def handshaking(wire: Wire) -> None:
    peer = await wire.accept()
    assert await peer.receive()  # the ClientHello
    await wait_all_tasks_blocked()


async def sending_the_request(wire: Wire) -> None:
    await wire.accept()
    await wait_all_tasks_blocked()


async def waiting_for_the_head(wire: Wire) -> None:
    peer = await wire.accept()
    await peer.request()
    await peer.send(b"HTTP/1.1 200 OK\r\n")
    await wait_all_tasks_blocked()


async def in_the_body(wire: Wire) -> None:
    peer = await wire.accept()
    await peer.request()
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
    await wait_all_tasks_blocked()


LARGE = bytes(8_000_000)

STAGES: dict[str, tuple[Request, Callable[[Wire], Awaitable[None]]]] = {
    "in connect": (asking(), connecting),
    "in the TLS handshake": (asking(url="https://gateway.test/"), handshaking),
    "while it is sent": (asking("POST", content=LARGE), sending_the_request),
    "waiting for the head": (asking(), waiting_for_the_head),
    "in the body": (asking(), in_the_body),
}


@pytest.mark.parametrize("stage", STAGES)
async def test_a_request_that_is_cancelled_closes_its_connection_and_keeps_no_place(
    pool: Pool, wire: Wire, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """Whenever that is: as in encode/httpcore's issue 961, a race between cancellation and pool."""
    pool._connects.total_tokens = 1
    request, until = STAGES[stage]
    if stage == "in connect":
        wire.before_connect = forever
    async with trio.open_nursery() as nursery:

        async def send_and_read() -> None:
            await read(await pool.send(request))

        nursery.start_soon(send_and_read)
        await until(wire)
        assert len(pool._open) == (stage != "in connect")
        nursery.cancel_scope.cancel()
    assert pool._open == set()
    assert_nothing_is_under_way(pool)
    for peer in wire.peers:
        await peer.closed()
    wire.before_connect = trio.lowlevel.checkpoint
    _, body = await answered_and_read(pool, wire)
    assert body == b"ok"


async def test_a_request_that_is_cancelled_before_it_begins_connects_nowhere(
    pool: Pool, wire: Wire
) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await pool.send(asking())
    assert scope.cancelled_caught
    assert wire.origins == []
    assert_nothing_is_under_way(pool)


async def test_a_request_over_a_kept_connection_that_is_cancelled_closes_it(
    pool: Pool, wire: Wire
) -> None:
    peer, _ = await answered_and_read(pool, wire)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.send, asking(repeatable=True))
        await peer.request()
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    await peer.closed()
    assert pool._open == set()
    assert not wire.connected()


class CancelAfter(trio.abc.Instrument):
    """Cancels a scope when a task has had so many turns."""

    def __init__(self, task_name: str, turns: int, scope: trio.CancelScope) -> None:
        self.turns = turns
        self._name = task_name
        self._scope = scope

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task.name == self._name:
            if self.turns == 0:
                self._scope.cancel()
            self.turns -= 1


@pytest.mark.parametrize("kept", [False, True], ids=["new connection", "kept connection"])
@pytest.mark.parametrize("turns", range(12))
async def test_no_turn_of_a_task_is_the_wrong_one_to_be_cancelled_in(
    pool: Pool, wire: Wire, turns: int, kept: bool
) -> None:
    """The windows of encode/httpcore's issue 961 and of pull request 1099, and every other one.

    There, a request that is cancelled once it was given a connection which does not stand yet, or
    which stands but does not serve it yet, leaves a connection in the pool that nobody can use or
    close. Here the pool has one place for connects, so that one that is lost stops it.
    """
    pool._connects.total_tokens = 1
    if kept:
        await answered_and_read(pool, wire)

    async def send_and_read() -> None:
        await read(await pool.send(asking(repeatable=True)))

    if kept:
        await wait_all_tasks_blocked()
    async with trio.open_nursery() as servers:
        servers.start_soon(wire.serve)
        async with trio.open_nursery() as nursery:
            instrument = CancelAfter("the request", turns, nursery.cancel_scope)
            trio.lowlevel.add_instrument(instrument)
            nursery.start_soon(send_and_read, name="the request")
        trio.lowlevel.remove_instrument(instrument)
        assert_nothing_is_under_way(pool)
        assert len(pool._open) <= 1  # it may have come to its end
        with trio.fail_after(SECONDS):
            assert await read(await pool.send(asking(repeatable=True))) == b"ok"
        servers.cancel_scope.cancel()


async def test_a_hundred_requests_that_are_cancelled_with_the_first_answer_leave_the_pool_whole(
    pool: Pool, wire: Wire
) -> None:
    """encode/httpcore's issue 785: a pool that connects and reads nothing more after a few rounds.

    A hundred requests at once, all cancelled as soon as one of them is answered, again and again.
    """
    pool._connects.total_tokens = 10

    async with trio.open_nursery() as servers:
        servers.start_soon(wire.serve)
        for _ in range(10):
            async with trio.open_nursery() as nursery:
                answered = trio.Event()

                async def send_and_read(answered: trio.Event) -> None:
                    exchange = await pool.send(asking(connect_timeout=5, repeatable=True))
                    assert await read(exchange) == b"ok"
                    answered.set()

                for _ in range(100):
                    nursery.start_soon(send_and_read, answered)
                with trio.fail_after(SECONDS):
                    await answered.wait()
                nursery.cancel_scope.cancel()
            assert_nothing_is_under_way(pool)
        servers.cancel_scope.cancel()


@pytest.mark.parametrize("cancelled", ["in connect", "in its turn"])
async def test_requests_that_are_cancelled_before_they_have_a_connection_take_no_place(
    pool: Pool, wire: Wire, cancelled: str
) -> None:
    """encode/httpcore's pull request 1099: such requests, one after another, fill the pool."""
    pool._connects.total_tokens = 2
    wire.before_connect = forever
    for _ in range(5):
        async with trio.open_nursery() as nursery:
            for _ in range(2 if cancelled == "in connect" else 4):
                nursery.start_soon(pool.send, asking())
            await wait_all_tasks_blocked()
            assert wire.connecting == 2
            nursery.cancel_scope.cancel()
        assert_nothing_is_under_way(pool)
    wire.before_connect = trio.lowlevel.checkpoint
    await answered_and_read(pool, wire)


# Connects


async def test_so_many_connects_are_under_way_at_once(pool: Pool, wire: Wire) -> None:
    pool._connects.total_tokens = 3
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(pool.send, asking())
        for _ in range(10):
            peer = await wire.accept()
            await peer.request()
            await peer.send(OK)
    assert wire.most_connecting == 3
    assert len(wire.origins) == 10
    assert len(pool._open) == 10


async def test_one_that_is_cancelled_in_its_turn_leaves_its_place_to_the_next(
    pool: Pool, wire: Wire
) -> None:
    pool._connects.total_tokens = 1
    gate = trio.Event()
    wire.before_connect = gate.wait
    done: list[str] = []

    async def send(name: str, scope: trio.CancelScope) -> None:
        with scope:
            await read(await pool.send(asking()))
            done.append(name)

    scopes = [trio.CancelScope() for _ in range(3)]
    async with trio.open_nursery() as nursery:
        for name, scope in zip("abc", scopes, strict=True):
            nursery.start_soon(send, name, scope)
            await wait_all_tasks_blocked()
        assert wire.connecting == 1
        scopes[1].cancel()
        await wait_all_tasks_blocked()
        gate.set()
        for _ in range(2):
            peer = await wire.accept()
            await peer.request()
            await peer.send(OK)
    assert done == ["a", "c"]


async def test_a_connect_ends_after_its_time(
    autojump_clock: MockClock, pool: Pool, wire: Wire
) -> None:
    wire.before_connect = forever
    with pytest.raises(APIConnectionError) as caught:
        await pool.send(asking(connect_timeout=10))
    assert trio.current_time() == 10
    assert str(caught.value) == (
        "no connection to http://gateway.test within 10 s: is the gateway up, and the base URL "
        "right?"
    )
    assert caught.value.retryable
    assert_nothing_is_under_way(pool)


async def test_a_handshake_counts_as_part_of_the_connect(
    autojump_clock: MockClock, pool: Pool, wire: Wire
) -> None:
    with pytest.raises(APIConnectionError, match="within 10 s"):
        await pool.send(asking(url="https://gateway.test/", connect_timeout=10))
    assert trio.current_time() == 10
    assert pool._open == set()
    assert_nothing_is_under_way(pool)
    await (await wire.accept()).closed()


async def test_the_time_of_a_connect_begins_when_it_is_its_turn(
    autojump_clock: MockClock, pool: Pool, wire: Wire
) -> None:
    pool._connects.total_tokens = 1

    async def six_seconds() -> None:
        await trio.sleep(6)

    wire.before_connect = six_seconds
    ends: list[float] = []

    async def send() -> None:
        await read(await pool.send(asking(connect_timeout=10)))
        ends.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(send)
        for _ in range(3):
            peer = await wire.accept()
            await peer.request()
            await peer.send(OK)
            await peer.send(b"")
    assert ends == [6, 12, 18]


async def test_a_scope_of_the_caller_s_that_ends_is_no_connect_timeout(
    autojump_clock: MockClock, pool: Pool, wire: Wire
) -> None:
    wire.before_connect = forever
    with trio.move_on_after(5) as scope:
        await pool.send(asking(connect_timeout=10))
    assert scope.cancelled_caught
    assert trio.current_time() == 5


# No connection


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
async def test_where_no_file_may_be_opened_any_more_the_message_says_so(
    pool: Pool, wire: Wire, number: int
) -> None:
    async def fail() -> None:
        raise OSError(number, os.strerror(number))

    wire.before_connect = fail
    with pytest.raises(APIConnectionError, match=r"as many files open as it may \(`ulimit -n`\)"):
        await pool.send(asking())


@contextmanager
def no_further_files() -> Generator[None]:
    """No descriptor is left, as for a program with many streams."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_it_says_so_over_tcp_too() -> None:
    async with open_pool() as pool:
        with no_further_files(), pytest.raises(APIConnectionError, match="ulimit"):
            await pool.send(asking(url="http://127.0.0.1:9/"))
        assert_nothing_is_under_way(pool)


async def test_it_says_so_too_where_a_pool_is_opened() -> None:
    with no_further_files(), pytest.raises(APIConnectionError, match="ulimit") as caught:
        async with open_pool():
            pass
    assert isinstance(caught.value.__cause__, OSError)


@over_sockets_that_are_watched
async def test_where_the_system_watches_no_further_connection_the_message_says_so(
    wire: Wire, poller: FailingPoller
) -> None:
    async with open_pool(connect=wire.connect) as pool:
        peer, exchange = await answered(pool, wire, CLOSE_DELIMITED)
        await peer.send(b"Once")
        await wait_all_tasks_blocked()  # Nobody reads it: so it is watched no more.
        poller.full = True
        for waits in (lambda: pool.send(asking()), exchange.receive):
            with pytest.raises(APIConnectionError, match="max_user_watches") as caught:
                await waits()
            assert isinstance(caught.value.__cause__, OSError)
        exchange.close()
        assert_nothing_is_under_way(pool)
        await (await wire.accept()).closed()
        poller.full = False
        await answered_and_read(pool, wire)


@over_sockets_that_are_watched
async def test_a_connection_that_cannot_be_watched_while_it_is_idle_is_closed(
    wire: Wire, poller: FailingPoller
) -> None:
    async with open_pool(connect=wire.connect) as pool:
        peer, exchange = await answered(pool, wire)
        await peer.send(b"not asked for")
        await wait_all_tasks_blocked()  # As above.
        poller.full = True
        exchange.close()
        assert pool._open == set()


def refused_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def test_a_connection_that_is_refused_is_an_error_that_asks_about_the_gateway() -> None:
    url = f"http://127.0.0.1:{refused_port()}"
    async with open_pool() as pool:
        with pytest.raises(APIConnectionError) as caught:
            await pool.send(asking(url=f"{url}/v1/models?secret=1"))
    assert (
        str(caught.value) == f"no connection to {url}: is the gateway up, and the base URL right?"
    )
    assert caught.value.retryable
    assert isinstance(caught.value.__cause__, OSError)


class Resolver(trio.abc.HostnameResolver):
    """Knows no name, or fails in its own way."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def getaddrinfo(self, *_args: object, **_kwargs: object) -> list[object]:  # type: ignore[override]
        raise self._error

    async def getnameinfo(self, sockaddr: object, flags: int) -> tuple[str, str]:
        raise self._error


@pytest.mark.parametrize(
    ("host", "error"),
    [
        ("gateway.test", socket.gaierror(socket.EAI_NONAME, "Name or service not known")),
        ("gateway.test", socket.gaierror(socket.EAI_AGAIN, "Temporary failure")),
        ("a" * 64 + ".test", None),  # no label may be that long
        ("gateway..test", None),
    ],
)
async def test_a_host_that_has_no_address_is_an_error_that_names_it(
    host: str, error: Exception | None
) -> None:
    previous = trio.socket.set_custom_hostname_resolver(Resolver(error) if error else None)
    try:
        async with open_pool() as pool:
            with pytest.raises(APIConnectionError, match=f"no connection to http://{host}: is"):
                await pool.send(asking(url=f"http://{host}/"))
            assert_nothing_is_under_way(pool)
    finally:
        trio.socket.set_custom_hostname_resolver(previous)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "gateway.test/v1",
        "/v1",
        "ftp://gateway.test/",
        "ws://gateway.test/",
        "http://",
        "http:///v1",
        "http://gateway.test:port/",
        "http://gateway.test:0/",
        "http://gateway.test:65536/",
        "http://[::1/",
        "http://\ud800/",
        "http://gateway.test/\x00",
        "http://gateway.test\r\nX-Other: 1/",
    ],
)
async def test_a_url_that_is_none_is_an_error_before_anything_is_connected(
    pool: Pool, wire: Wire, url: str
) -> None:
    with pytest.raises((ProtocolError, APIConnectionError)) as caught:
        await pool.send(asking(url=url))
    assert isinstance(caught.value, ProtocolError)
    assert not caught.value.retryable
    assert wire.origins == []


async def test_a_request_that_cannot_be_sent_by_http_leaves_the_pool_alone(
    pool: Pool, wire: Wire
) -> None:
    peer, _ = await answered_and_read(pool, wire)
    with pytest.raises(ProtocolError, match="cannot be sent"):
        await pool.send(Request("GET", "http://gateway.test/", headers={"X": "a\r\nY: b"}))
    await answered_and_read(pool, wire, by=peer)


# Over TCP


@asynccontextmanager
async def tcp_server(answer: bytes = OK) -> AsyncGenerator[str]:
    """An HTTP server on the loopback interface: its URL."""

    async def serve(stream: trio.SocketStream) -> None:
        await Peer(MemoryStream(stream, _Wire())).serve(answer)

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}/"
        nursery.cancel_scope.cancel()


def only_socket(pool: Pool) -> socket.socket:
    (connection,) = pool._open
    assert isinstance(connection.link, DemuxedSocket)
    return connection.link._sock


@over_sockets
async def test_over_tcp_a_request_is_answered_and_another_one(kind: str) -> None:
    async with tcp_server() as url, open_pool() as pool:
        for _ in range(2):
            assert await read(await pool.send(asking(url=url))) == b"ok"
            assert len(pool._open) == 1


@over_sockets_that_are_watched
async def test_small_requests_are_not_held_back(kind: str) -> None:
    async with tcp_server() as url, open_pool() as pool:
        await read(await pool.send(asking(url=url)))
        assert only_socket(pool).getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@over_sockets_that_are_watched
async def test_the_application_s_default_timeout_of_sockets_does_not_make_ours_wait(
    kind: str,
) -> None:
    socket.setdefaulttimeout(60)
    try:
        async with tcp_server() as url, open_pool() as pool:
            await read(await pool.send(asking(url=url)))
            assert only_socket(pool).gettimeout() == 0
    finally:
        socket.setdefaulttimeout(None)


# The end of a pool


async def test_the_end_of_a_pool_closes_idle_connections_and_those_of_open_responses(
    wire: Wire,
) -> None:
    async with open_pool(connect=wire.connect) as pool:
        idle, _ = await answered_and_read(pool, wire)
        busy, exchange = await answered(pool, wire, CLOSE_DELIMITED, by=idle)
        other, _ = await answered_and_read(pool, wire)
    await busy.closed()
    await other.closed()
    assert pool._open == set()
    with pytest.raises(trio.ClosedResourceError):
        await exchange.receive()
    exchange.close()
    exchange.close()


@pytest.mark.parametrize("waits_for", ["the head", "the body"])
async def test_whoever_still_waits_when_the_pool_ends_is_told(wire: Wire, waits_for: str) -> None:
    told: list[str] = []

    async def wait(pool: Pool) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await read(await pool.send(asking()))
        told.append("closed")

    async with trio.open_nursery() as nursery:
        async with open_pool(connect=wire.connect) as pool:
            nursery.start_soon(wait, pool)
            peer = await wire.accept()
            await peer.request()
            if waits_for == "the body":
                await peer.send(CLOSE_DELIMITED)
            await wait_all_tasks_blocked()
        with trio.move_on_after(SECONDS):
            await wait_all_tasks_blocked()
        assert told == ["closed"]


async def test_a_large_request_that_is_being_sent_when_the_pool_ends_is_over(wire: Wire) -> None:
    told: list[BaseException] = []

    async def send(pool: Pool) -> None:
        try:
            await pool.send(asking("POST", content=LARGE))
        except trio.ClosedResourceError as error:
            told.append(error)

    async with trio.open_nursery() as nursery:
        async with open_pool(connect=wire.connect) as pool:
            nursery.start_soon(send, pool)
            await wire.accept()
            await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
        assert len(told) == 1


async def test_a_connect_that_is_under_way_when_the_pool_ends_is_closed(wire: Wire) -> None:
    gate = trio.Event()
    wire.before_connect = gate.wait

    async def send(pool: Pool) -> None:
        with pytest.raises(trio.ClosedResourceError, match="the transport was closed"):
            await pool.send(asking())

    async with trio.open_nursery() as nursery:
        async with open_pool(connect=wire.connect) as pool:
            nursery.start_soon(send, pool)
            await wait_all_tasks_blocked()
        gate.set()
        peer = await wire.accept()
        await peer.closed()
    assert pool._open == set()


async def test_a_pool_that_has_ended_sends_nothing(wire: Wire) -> None:
    async with open_pool(connect=wire.connect) as pool:
        await answered_and_read(pool, wire)
    with pytest.raises(trio.ClosedResourceError, match="the transport was closed"):
        await pool.send(asking())


async def test_a_block_that_is_cancelled_ends_its_pool(wire: Wire) -> None:
    with trio.CancelScope() as scope:
        async with open_pool(connect=wire.connect) as pool:
            _, exchange = await answered(pool, wire, CLOSE_DELIMITED)
            scope.cancel()
            await exchange.receive()
    assert scope.cancelled_caught
    await wire.peers[0].closed()


async def test_a_response_may_still_be_read_in_a_cancelled_block_that_is_shielded(
    wire: Wire,
) -> None:
    with trio.CancelScope() as scope:
        async with open_pool(connect=wire.connect) as pool:
            peer, exchange = await answered(pool, wire, CLOSE_DELIMITED)
            scope.cancel()
            with trio.CancelScope(shield=True):
                await wait_all_tasks_blocked()
                await peer.send(b"goodbye")
                assert await exchange.receive() == b"goodbye"


async def test_an_exception_of_the_block_comes_out_as_it_is(wire: Wire) -> None:
    error = ValueError("the block's")
    with pytest.raises(ValueError, match="the block's") as caught:
        async with open_pool(connect=wire.connect) as pool:
            await answered(pool, wire, CLOSE_DELIMITED)
            raise error
    assert caught.value is error


@over_sockets_that_are_watched
async def test_if_the_poller_fails_readers_are_told_and_the_block_ends(
    wire: Wire, poller: FailingPoller
) -> None:
    errors: list[GatewayError] = []
    exchanges: list[Exchange] = []

    async def receive(exchange: Exchange) -> None:
        with pytest.raises(APIConnectionError) as caught:
            await exchange.receive()
        errors.append(caught.value)
        exchange.close()

    async with trio.open_nursery() as outside:
        with pytest.raises(GatewayError, match="the connections stopped") as caught:
            async with open_pool(connect=wire.connect) as pool:
                peer, exchange = await answered(pool, wire, CLOSE_DELIMITED)
                exchanges.append((await answered(pool, wire))[1])
                outside.start_soon(receive, exchange)
                await wait_all_tasks_blocked()
                poller.broken = True
                await peer.send(b"x")
                await trio.sleep_forever()
        exchanges[0].close()
    assert isinstance(caught.value.__cause__, OSError)
    assert [str(error) for error in errors] == ["the connection to http://gateway.test broke"]
    for peer in wire.peers:
        await peer.closed()


async def test_if_a_task_fails_all_connections_are_closed_and_the_block_s_error_comes_out(
    wire: Wire,
) -> None:
    error = ValueError("the block's")
    left: list[Pool] = []

    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ValueError, match="the block's") as caught:
        async with open_pool(connect=wire.connect) as pool:
            left.append(pool)
            await answered(pool, wire, CLOSE_DELIMITED)
            await answered_and_read(pool, wire)
            pool._deadlines.set(0, fail)
            try:
                await trio.sleep_forever()
            finally:
                raise error
    assert caught.value is error
    assert left[0]._open == set()
    for peer in wire.peers:
        await peer.closed()


# Ctrl-C


class InterruptedSink:
    """Gets Ctrl-C while it takes the first bytes."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.over = trio.Event()
        self.error: BaseException | None = None

    def stopped(self, error: BaseException | None) -> None:
        self.error = error
        self.over.set()

    @trio.lowlevel.disable_ki_protection
    def receive(self, data: bytes, arrived_ns: int) -> bool:
        if not self.received:
            signal.raise_signal(signal.SIGINT)
        self.received.append(data)
        return False

    def deadline(self) -> float:
        return inf


@pytest.mark.parametrize("name", KINDS)
def test_ctrl_c_in_a_sink_ends_the_program_and_closes_the_connections(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_poller(name, monkeypatch)
    sink = InterruptedSink()
    wire = Wire(KINDS[name])
    left: list[Pool] = []

    async def main() -> None:
        try:
            async with open_pool(connect=wire.connect) as pool:
                left.append(pool)
                peer, exchange = await answered(pool, wire, CLOSE_DELIMITED)
                exchange.start(sink)
                await peer.send(b"first")
                await sink.over.wait()
                assert sink.error is not None
                raise sink.error
        finally:
            with trio.CancelScope(shield=True):
                await wire.close()

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert sink.received == []
    assert left[0]._open == set()
