"""One task reads all sockets: who gets what, and when nothing is read.

The sockets are pairs of Unix ones: what one end sends is there for the other at once, so that
`wait_all_tasks_blocked` returns when all of it has been handed over.
"""

# pyright: reportPrivateUsage=false
from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from itertools import pairwise
from time import perf_counter_ns
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from gz_trio._transport.demux import BATCH, Demux, DemuxedSocket, Poller, make_poller

# What stands beside a demultiplexer


class FakeKqueue:
    """`select.kqueue` as far as it is used, over this system's poller."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self.fileno = self._epoll.fileno
        self.close = self._epoll.close

    def control(
        self, changes: list[Any] | None, max_events: int, timeout: float | None = None
    ) -> list[Any]:
        for change in changes or []:
            assert change.filter == FAKE_KQUEUE.KQ_FILTER_READ
            if change.flags == FAKE_KQUEUE.KQ_EV_ADD:
                self._epoll.register(change.ident, select.EPOLLIN)
            else:
                assert change.flags == FAKE_KQUEUE.KQ_EV_DELETE
                self._epoll.unregister(change.ident)
        if not max_events:
            return []
        assert timeout == 0  # it must not wait here
        return [kevent(fd, flags=1) for fd, _ in self._epoll.poll(0, max_events)]


def kevent(ident: int, filter: int = -1, flags: int = 0) -> SimpleNamespace:
    return SimpleNamespace(ident=ident, filter=filter, flags=flags)


FAKE_KQUEUE = SimpleNamespace(
    kqueue=FakeKqueue, kevent=kevent, KQ_FILTER_READ=-1, KQ_EV_ADD=1, KQ_EV_DELETE=2
)

MODULES = {"the system's": select}
if hasattr(select, "epoll"):
    MODULES["kqueue"] = cast("ModuleType", FAKE_KQUEUE)


class CountingPoller:
    """A poller that tells what it was asked."""

    def __init__(self, poller: Poller) -> None:
        self.fileno = poller.fileno
        self.close = poller.close
        self.poller = poller
        self.polls = 0
        self.watched: set[int] = set()
        self.changes: list[tuple[str, int]] = []

    def poll(self) -> list[tuple[int, int]]:
        self.polls += 1
        return self.poller.poll()

    def register(self, fd: int) -> None:
        self.changes.append(("register", fd))
        self.watched.add(fd)
        self.poller.register(fd)

    def unregister(self, fd: int) -> None:
        self.changes.append(("unregister", fd))
        self.watched.remove(fd)
        self.poller.unregister(fd)


class Owner:
    """Keeps what it gets. `then` is called after it."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.arrived_ns: list[int] = []
        self.lost: list[BaseException | None] = []
        self.then: Callable[[], object] = lambda: None

    def data_received(self, data: bytes, arrived_ns: int) -> None:
        self.received.append(data)
        self.arrived_ns.append(arrived_ns)
        self.then()

    def connection_lost(self, error: BaseException | None) -> None:
        self.lost.append(error)


class End:
    """A demultiplexed socket, its owner and the other end of the pair."""

    def __init__(self, demux: Demux) -> None:
        ours, self.peer = socket.socketpair()
        ours.setblocking(False)
        self.peer.setblocking(False)
        self.fd = ours.fileno()
        self.owner = Owner()
        self.socket = DemuxedSocket(demux, ours, self.owner)

    def close(self) -> None:
        self.socket.close()
        self.peer.close()


class Bench:
    """A demultiplexer that runs, and the sockets that it reads."""

    def __init__(self, poller: Poller) -> None:
        self.poller = CountingPoller(poller)
        self.demux = Demux(self.poller)
        self.ends: list[End] = []

    def open(self, *, reading: bool = True) -> End:
        end = End(self.demux)
        self.ends.append(end)
        if reading:
            end.socket.start_reading()
        return end

    async def assert_idle(self) -> None:
        """The poller does not spin: nothing is told again and again."""
        await wait_all_tasks_blocked()
        before = self.poller.polls
        for _ in range(20):
            await trio.lowlevel.checkpoint()
        assert self.poller.polls == before


@asynccontextmanager
async def bench_with(poller: Poller | None) -> AsyncGenerator[Bench]:
    assert poller is not None
    bench = Bench(poller)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.demux.run)
        try:
            yield bench
        finally:
            nursery.cancel_scope.cancel()
            for end in bench.ends:
                end.close()


@pytest.fixture(params=list(MODULES))
async def bench(request: pytest.FixtureRequest) -> AsyncGenerator[Bench]:
    async with bench_with(make_poller(MODULES[request.param])) as bench:
        yield bench


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="the pollers stand on epoll here")
def test_the_poller_is_epoll_else_kqueue_else_there_is_none() -> None:
    asked: list[str] = []

    def kqueue() -> FakeKqueue:
        asked.append("kqueue")
        return FakeKqueue()

    def epoll() -> select.epoll:
        asked.append("epoll")
        return select.epoll()

    for system, expected in (
        ({"epoll": epoll, "EPOLLIN": 1, "kqueue": kqueue}, ["epoll"]),
        ({"kqueue": kqueue}, ["kqueue"]),
        ({"poll": None, "select": None}, []),
    ):
        asked.clear()
        poller = make_poller(cast("ModuleType", SimpleNamespace(**system)))
        assert asked == expected
        if poller is not None:
            poller.close()


# What comes


async def test_what_comes_is_handed_over_as_it_comes_with_its_time(bench: Bench) -> None:
    one, other = bench.open(), bench.open()
    before = perf_counter_ns()
    one.peer.send(b"Once")
    await wait_all_tasks_blocked()
    between = perf_counter_ns()
    other.peer.send(b"elsewhere")
    one.peer.send(b" upon")
    await wait_all_tasks_blocked()
    assert one.owner.received == [b"Once", b" upon"]
    assert other.owner.received == [b"elsewhere"]
    assert before < one.owner.arrived_ns[0] < between < one.owner.arrived_ns[1]


async def test_the_time_is_taken_before_the_bytes_are_looked_at(bench: Bench) -> None:
    end = bench.open()
    looked_at: list[int] = []
    end.owner.then = lambda: looked_at.append(perf_counter_ns())
    end.peer.send(b"x")
    await wait_all_tasks_blocked()
    assert end.owner.arrived_ns[0] <= looked_at[0]


async def test_more_than_one_read_holds_comes_in_order(bench: Bench) -> None:
    end = bench.open()
    sent = b""
    while len(sent) < 300_000:
        piece = os.urandom(100_000)
        sent += piece
        view = memoryview(piece)
        while view:
            try:
                view = view[end.peer.send(view) :]
            except BlockingIOError:
                await wait_all_tasks_blocked()
    await wait_all_tasks_blocked()
    assert b"".join(end.owner.received) == sent
    assert max(map(len, end.owner.received)) <= 64 * 1024


# Backpressure


async def test_nothing_is_read_once_reading_has_stopped(bench: Bench) -> None:
    end = bench.open()
    end.owner.then = end.socket.stop_reading
    end.peer.send(b"first")
    await wait_all_tasks_blocked()
    end.peer.send(b"second")
    await bench.assert_idle()
    assert end.owner.received == [b"first"]
    end.peer.send(b"third")
    end.owner.then = lambda: None
    end.socket.start_reading()
    await wait_all_tasks_blocked()
    assert end.owner.received == [b"first", b"secondthird"]


async def test_a_sender_is_slowed_down_by_a_socket_that_is_not_read(bench: Bench) -> None:
    end = bench.open()
    end.socket.stop_reading()
    with pytest.raises(BlockingIOError):
        for _ in range(100_000):
            end.peer.send(bytes(1024))
            await trio.lowlevel.checkpoint()
    assert end.owner.received == []


async def test_a_pause_in_which_nothing_comes_costs_no_system_call(bench: Bench) -> None:
    end = bench.open()
    for _ in range(3):
        end.peer.send(b"x")
        await wait_all_tasks_blocked()
        end.socket.stop_reading()
        end.socket.start_reading()
    assert bench.poller.changes == [("register", end.fd)]


async def test_what_comes_in_a_pause_takes_the_socket_out_of_the_poller(bench: Bench) -> None:
    end = bench.open()
    end.socket.stop_reading()
    await bench.assert_idle()
    assert bench.poller.watched == {end.fd}
    end.peer.send(b"x")
    await bench.assert_idle()
    assert bench.poller.watched == set()
    end.socket.start_reading()
    await bench.assert_idle()
    assert end.owner.received == [b"x"]
    assert bench.poller.changes == [
        ("register", end.fd),
        ("unregister", end.fd),
        ("register", end.fd),
    ]


async def test_a_hang_up_in_a_pause_does_not_keep_the_poller_busy(bench: Bench) -> None:
    # A poller tells it whatever it was asked to watch: a mask of nothing would not do.
    end = bench.open()
    end.socket.stop_reading()
    end.peer.send(b"last")
    end.peer.close()
    await bench.assert_idle()
    assert (end.owner.received, end.owner.lost) == ([], [])
    end.socket.start_reading()
    await bench.assert_idle()
    assert (end.owner.received, end.owner.lost) == ([b"last"], [None])


# Ends


async def test_the_end_comes_after_all_that_was_sent_and_the_poller_does_not_spin(
    bench: Bench,
) -> None:
    end = bench.open()
    end.peer.send(b"last")
    end.peer.shutdown(socket.SHUT_WR)
    await bench.assert_idle()
    assert end.owner.received == [b"last"]
    assert end.owner.lost == [None]
    assert bench.poller.watched == set()
    end.socket.send_now(bytearray(b"still open this way"))
    assert end.peer.recv(100) == b"still open this way"


async def test_a_reset_is_an_error_and_the_poller_does_not_spin(bench: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    ours.setblocking(False)
    owner = Owner()
    demuxed = DemuxedSocket(bench.demux, ours, owner)
    demuxed.start_reading()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    while not owner.lost:
        await trio.lowlevel.checkpoint()
    await bench.assert_idle()
    assert [type(error) for error in owner.lost] == [ConnectionResetError]
    assert bench.poller.watched == set()
    demuxed.close()


async def test_a_socket_that_was_ready_for_nothing_is_read_again(bench: Bench) -> None:
    end = bench.open()
    real = end.socket.receive

    def not_yet(size: int, flags: int = 0) -> bytes:
        end.socket.receive = real
        raise BlockingIOError

    end.socket.receive = not_yet
    end.peer.send(b"x")
    await wait_all_tasks_blocked()
    assert end.owner.received == [b"x"]
    assert end.owner.lost == []


# Descriptors


async def test_what_is_closed_within_a_batch_is_not_read_in_it(bench: Bench) -> None:
    ends = [bench.open() for _ in range(2)]
    for end, other in zip(ends, reversed(ends), strict=True):
        end.owner.then = other.socket.close
        end.peer.send(b"x")
    await bench.assert_idle()
    assert sorted(end.owner.received for end in ends) == [[], [b"x"]]
    assert [end.owner.lost for end in ends] == [[], []]


async def test_a_socket_may_close_itself_with_what_it_gets(bench: Bench) -> None:
    end = bench.open()
    end.owner.then = end.socket.close
    end.peer.send(b"x")
    end.peer.close()
    await bench.assert_idle()
    assert (end.owner.received, end.owner.lost) == ([b"x"], [])


@pytest.mark.parametrize("reading", [True, False])
async def test_a_descriptor_that_is_used_again_within_a_batch_is_the_new_socket_s(
    bench: Bench, reading: bool
) -> None:
    ends = [bench.open() for _ in range(2)]
    opened: list[End] = []

    def replace(end: End) -> None:
        end.close()
        new = bench.open(reading=reading)
        assert end.fd in (new.fd, new.peer.fileno())
        opened.append(new)

    for end, other in zip(ends, reversed(ends), strict=True):
        end.owner.then = partial(replace, other)
        end.peer.send(b"for another")
    await bench.assert_idle()
    (new,) = opened
    assert (new.owner.received, new.owner.lost) == ([], [])
    new.peer.send(b"for the new one")
    new.socket.start_reading()
    await bench.assert_idle()
    assert (new.owner.received, new.owner.lost) == ([b"for the new one"], [])


async def test_a_descriptor_that_is_used_again_later_is_the_new_socket_s(bench: Bench) -> None:
    old = bench.open()
    old.peer.send(b"unread")
    old.close()
    new = bench.open()
    assert old.fd in (new.fd, new.peer.fileno())
    new.peer.send(b"x")
    await bench.assert_idle()
    assert (old.owner.received, old.owner.lost) == ([], [])
    assert (new.owner.received, new.owner.lost) == ([b"x"], [])


async def test_a_copy_of_its_descriptor_does_not_keep_a_closed_socket_in_the_poller(
    bench: Bench,
) -> None:
    end = bench.open()
    copy = os.dup(end.fd)
    try:
        end.socket.close()
        new = bench.open()
        end.peer.send(b"x")
        end.peer.close()
        await bench.assert_idle()
        assert (end.owner.received, end.owner.lost) == ([], [])
        assert (new.owner.received, new.owner.lost) == ([], [])
    finally:
        os.close(copy)


async def test_a_socket_may_be_closed_any_number_of_times(bench: Bench) -> None:
    end = bench.open()
    end.socket.close()
    new = bench.open()  # with the same descriptor
    end.socket.close()
    new.peer.send(b"x")
    await wait_all_tasks_blocked()
    assert new.owner.received == [b"x"]
    with pytest.raises(trio.ClosedResourceError):
        end.socket.start_reading()
    with pytest.raises(trio.ClosedResourceError):
        await end.socket.wait()
    with pytest.raises(trio.ClosedResourceError):
        end.socket.send_now(bytearray(b"x"))


# A flood


FLOOD = 50_000
"""So often does a flood go on where nothing stops it; a test that fails does so then."""


class Flood:
    """Has a socket that is always ready again."""

    def __init__(self, end: End) -> None:
        self.rounds = 0
        self._end = end
        end.owner.then = self._again

    def start(self) -> None:
        self._end.peer.send(b"!")

    def _again(self) -> None:
        self.rounds += 1
        if self.rounds < FLOOD:
            self._end.peer.send(b"!")

    def stop(self) -> None:
        self._end.owner.then = lambda: None


async def test_a_flood_on_one_connection_starves_no_other_one(bench: Bench) -> None:
    flood = Flood(bench.open())
    other = bench.open()
    other.owner.then = flood.stop
    flood.start()
    other.peer.send(b"a token")
    await wait_all_tasks_blocked()
    assert other.owner.received == [b"a token"]
    assert flood.rounds < 10


@pytest.mark.parametrize("connections", [1, BATCH, 2 * BATCH])
async def test_a_flood_starves_no_other_task(bench: Bench, connections: int) -> None:
    floods = [Flood(bench.open()) for _ in range(connections)]
    for flood in floods:
        flood.start()
    for _ in range(100):
        await trio.lowlevel.checkpoint()
    assert 0 < max(flood.rounds for flood in floods) < 1000
    for flood in floods:
        flood.stop()


async def test_a_flood_does_not_keep_a_task_from_being_cancelled(
    bench: Bench, mock_clock: trio.testing.MockClock
) -> None:
    flood = Flood(bench.open())
    flood.start()
    waiting = bench.open()
    with trio.move_on_after(1) as scope:
        mock_clock.jump(2)
        await waiting.socket.wait()
    assert scope.cancelled_caught
    assert flood.rounds < 1000
    flood.stop()


async def test_a_flood_does_not_keep_the_demultiplexer_from_being_stopped() -> None:
    async with bench_with(make_poller()) as bench:
        floods = [Flood(bench.open()) for _ in range(BATCH)]
        for flood in floods:
            flood.start()
        while not floods[0].rounds:
            await trio.lowlevel.checkpoint()
    assert 0 < max(flood.rounds for flood in floods) < 1000


class Turns(trio.abc.Instrument):
    """Counts, after each turn of any task, what has been handed over."""

    def __init__(self, ends: list[End]) -> None:
        self.seen = [0]
        self._ends = ends

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.seen.append(sum(len(end.owner.received) for end in self._ends))


async def test_at_most_a_batch_is_read_before_other_tasks_have_their_turn(bench: Bench) -> None:
    ends = [bench.open() for _ in range(3 * BATCH + 1)]
    for end in ends:
        end.peer.send(b"x")
    turns = Turns(ends)
    trio.lowlevel.add_instrument(turns)
    await wait_all_tasks_blocked()
    trio.lowlevel.remove_instrument(turns)
    steps = [now - before for before, now in pairwise(turns.seen) if now > before]
    assert steps == [BATCH, BATCH, BATCH, 1]
    assert {len(end.owner.received) for end in ends} == {1}


# Exceptions


class _Exit(BaseException):
    """Not an `Exception`."""


@pytest.mark.parametrize("error", [ValueError("a sink's"), _Exit(), KeyboardInterrupt()])
async def test_what_an_owner_raises_comes_back_to_it_and_to_nobody_else(
    bench: Bench, error: BaseException
) -> None:
    ends = [bench.open() for _ in range(3)]

    def fail() -> None:
        raise error

    ends[1].owner.then = fail
    for end in ends:
        end.peer.send(b"x")
    await bench.assert_idle()
    assert [end.owner.lost for end in ends] == [[], [error], []]
    assert bench.poller.watched == {ends[0].fd, ends[2].fd}
    for end in ends:
        end.peer.send(b"y")
    await bench.assert_idle()
    assert [end.owner.received for end in ends] == [[b"x", b"y"], [b"x"], [b"x", b"y"]]
    assert [end.owner.lost for end in ends] == [[], [error], []]


async def test_an_owner_may_close_its_socket_and_then_raise(bench: Bench) -> None:
    end = bench.open()
    error = ValueError()

    def fail() -> None:
        end.socket.close()
        raise error

    end.owner.then = fail
    end.peer.send(b"x")
    await bench.assert_idle()
    assert end.owner.lost == [error]


# Waiting


async def test_a_wait_ends_when_it_is_told_to_and_what_comes_is_handed_over_meanwhile(
    bench: Bench,
) -> None:
    end = bench.open(reading=False)
    returned: list[int] = []

    async def wait() -> None:
        await end.socket.wait()
        returned.append(len(end.owner.received))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        for _ in range(3):
            end.peer.send(b"x")
            await wait_all_tasks_blocked()
        assert returned == []
        end.owner.then = end.socket.wake
        end.peer.send(b"x")
        await wait_all_tasks_blocked()
        end.peer.send(b"x")  # by then nobody waits
    assert returned == [4]


async def test_a_wake_without_anybody_who_waits_is_nothing(bench: Bench) -> None:
    end = bench.open()
    end.socket.wake()
    with trio.move_on_after(0) as scope:
        await end.socket.wait()
    assert scope.cancelled_caught
    end.socket.wake()
    await wait_all_tasks_blocked()


@pytest.mark.parametrize("checkpoints", range(6))
async def test_a_wait_can_be_cancelled_at_any_point(bench: Bench, checkpoints: int) -> None:
    end = bench.open()
    end.owner.then = end.socket.wake

    async def wait(scope: trio.CancelScope) -> None:
        with scope:
            while True:
                await end.socket.wait()

    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        nursery.start_soon(wait, scope)
        for number in range(checkpoints):
            end.peer.send(b"%d" % number)
            await trio.lowlevel.checkpoint()
        scope.cancel()
    # Nothing was taken out of the socket and lost, and there is another try.
    await wait_all_tasks_blocked()
    assert b"".join(end.owner.received) == b"".join(b"%d" % n for n in range(checkpoints))
    with trio.move_on_after(0) as again:
        end.peer.send(b"again")
        await end.socket.wait()
    assert again.cancelled_caught
    await wait_all_tasks_blocked()
    assert b"".join(end.owner.received).endswith(b"again")


async def test_a_wait_that_is_woken_and_cancelled_at_once_is_over_once(bench: Bench) -> None:
    end = bench.open()
    ended: list[str] = []

    async def wait(scope: trio.CancelScope) -> None:
        with scope:
            await end.socket.wait()
            ended.append("woken")
            return
        ended.append("cancelled")

    for first in ("wake", "cancel"):
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()
            nursery.start_soon(wait, scope)
            await wait_all_tasks_blocked()
            for step in (end.socket.wake, scope.cancel)[:: 1 if first == "wake" else -1]:
                step()
            end.socket.wake()
    assert ended == ["woken", "cancelled"]


# Sending


@contextmanager
def full(end: End) -> Generator[None]:
    """The system takes nothing more to be sent, until the block ends and it has gone out."""
    filling = bytes(64 * 1024)
    sent = 0
    sock = end.socket._sock
    try:
        while True:
            sent += sock.send(filling)
    except BlockingIOError:
        pass
    yield
    while sent:
        sent -= len(end.peer.recv(min(sent, 64 * 1024)))


async def test_what_is_sent_now_is_what_goes_without_waiting(bench: Bench) -> None:
    end = bench.open()
    data = bytearray(b"abc")
    with full(end):
        end.socket.send_now(data)
        assert data == b"abc"
    end.socket.send_now(data)
    assert data == b""
    assert end.peer.recv(100) == b"abc"


async def test_all_is_sent_by_and_by_and_what_is_added_meanwhile_too(bench: Bench) -> None:
    end = bench.open()
    sent = os.urandom(2_000_000)
    data = bytearray(sent)
    received = bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(end.socket.send_all, data)
        await wait_all_tasks_blocked()
        assert 0 < len(data) < len(sent)
        data += b"the end"
        while not received.endswith(b"the end"):
            received += end.peer.recv(64 * 1024)
            await wait_all_tasks_blocked()
    assert received == sent + b"the end"
    assert data == b""


async def test_sending_can_be_cancelled_and_keeps_what_was_not_sent(bench: Bench) -> None:
    end = bench.open()
    sent = os.urandom(2_000_000)
    data = bytearray(sent)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(end.socket.send_all, data)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    received = bytearray()
    while len(received) + len(data) < len(sent):
        received += end.peer.recv(64 * 1024)
    assert received + data == sent


async def test_a_socket_that_is_closed_while_it_sends_tells_who_sends(bench: Bench) -> None:
    end = bench.open()

    async def send() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await end.socket.send_all(bytearray(2_000_000))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        end.socket.close()


async def test_nothing_can_be_sent_to_a_peer_that_is_gone(bench: Bench) -> None:
    end = bench.open()
    end.peer.close()
    with pytest.raises(BrokenPipeError):
        end.socket.send_now(bytearray(b"x"))
    with pytest.raises(BrokenPipeError):
        await end.socket.send_all(bytearray(b"x"))


# The end of the task


async def test_whoever_is_still_read_is_told_when_the_task_is_stopped() -> None:
    poller = make_poller()
    assert poller is not None
    demux = Demux(poller)
    reading, stopped = End(demux), End(demux)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(demux.run)
        reading.socket.start_reading()
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert [type(error) for error in reading.owner.lost] == [trio.ClosedResourceError]
    assert stopped.owner.lost == []
    for end in (reading, stopped):
        with pytest.raises(trio.ClosedResourceError):
            end.socket.start_reading()
        end.close()
    with pytest.raises(ValueError, match="closed"):
        poller.fileno()  # its descriptor was given back


async def test_a_task_that_is_stopped_before_it_has_begun_gives_its_descriptor_back() -> None:
    poller = make_poller()
    assert poller is not None
    demux = Demux(poller)
    with trio.CancelScope() as scope:
        scope.cancel()
        await demux.run()
    with pytest.raises(ValueError, match="closed"):
        poller.fileno()


class BrokenPoller(CountingPoller):
    """Fails once it is told to, and then whatever is asked of it."""

    broken = False

    def poll(self) -> list[tuple[int, int]]:
        if self.broken:
            raise OSError(9, "Bad file descriptor")
        return super().poll()

    def unregister(self, fd: int) -> None:
        if self.broken:
            raise OSError(9, "Bad file descriptor")
        super().unregister(fd)


async def test_if_the_poller_fails_all_that_are_read_are_told() -> None:
    real = make_poller()
    assert real is not None
    poller = BrokenPoller(real)
    demux = Demux(poller)
    ends = [End(demux) for _ in range(3)]
    for end in ends:
        end.socket.start_reading()
    with pytest.RaisesGroup(pytest.RaisesExc(OSError, match="Bad file descriptor")):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(demux.run)
            await wait_all_tasks_blocked()
            poller.broken = True
            ends[0].peer.send(b"x")
    assert [[type(error) for error in end.owner.lost] for end in ends] == 3 * [[ConnectionError]]
    for end in ends:
        with pytest.raises(trio.ClosedResourceError):
            end.socket.start_reading()
        end.close()
    with pytest.raises(ValueError, match="closed"):
        real.fileno()


# Every order


@st.composite
def orders(draw: st.DrawFn) -> list[tuple[str, int]]:
    step = st.sampled_from(["send", "send", "pause", "read", "end", "reopen", "yield", "yield"])
    return draw(st.lists(st.tuples(step, st.integers(0, 2)), max_size=40))


@given(orders(), st.sampled_from(list(MODULES)))
def test_each_owner_gets_its_own_bytes_in_order_whatever_is_done(
    order: list[tuple[str, int]], module: str
) -> None:
    async def run() -> None:
        async with bench_with(make_poller(MODULES[module])) as bench:
            sent: dict[End, bytes] = {}
            ended: set[End] = set()
            closed: set[End] = set()
            names: Iterator[bytes] = (b"%d," % number for number in range(1000))

            def open_one() -> End:
                end = bench.open()
                sent[end] = b""
                return end

            ends = [open_one() for _ in range(3)]
            for step, index in order:
                end = ends[index]
                match step:
                    case "send" if end not in ended:
                        name = next(names)
                        end.peer.send(name)
                        sent[end] += name
                    case "pause":
                        end.socket.stop_reading()
                    case "read" if not end.owner.lost:
                        end.socket.start_reading()
                    case "end":
                        end.peer.close()
                        ended.add(end)
                    case "reopen":
                        end.close()
                        closed.add(end)
                        ends[index] = open_one()
                    case _:
                        await trio.lowlevel.checkpoint()
            for end in ends:
                if not end.owner.lost:
                    end.socket.start_reading()
            await bench.assert_idle()
            for end, data in sent.items():
                received = b"".join(end.owner.received)
                if end in closed:
                    assert data.startswith(received)
                else:
                    assert received == data
                    assert end.owner.lost == ([None] if end in ended else [])
            open_now = {end.fd for end in ends if not end.owner.lost}
            assert bench.poller.watched == open_now

    trio.run(run)
