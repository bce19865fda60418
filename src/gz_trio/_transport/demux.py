"""One task that waits for all sockets of a transport, and reads each as soon as it is readable.

Waiting for one socket per task costs Trio a system call to arm the wait and a failed `recv`, both
for each token. Here one task waits, for a poller that holds all the sockets: the system's epoll or
kqueue, which can itself be waited for. When it wakes, it reads every socket that is ready, once,
and hands over what came. The poller is level-triggered: what was left unread is told again.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from time import perf_counter_ns
from types import ModuleType
from typing import Protocol

import trio

from .._protocol.errors import APIConnectionError
from .link import RECEIVE_BYTES, Link, LinkOwner

BATCH = 64
"""So many sockets are read before every other task, and cancellation, gets its turn."""


class Poller(Protocol):
    """The system's means to wait for many sockets at once."""

    def poll(self) -> list[tuple[int, int]]:
        """Up to `BATCH` sockets that are readable, ended or broken; descriptors come first."""
        ...

    def fileno(self) -> int:
        """Its own descriptor, which is readable while any socket is."""
        ...

    def register(self, fd: int) -> None:
        """Watch a socket from now on."""
        ...

    def unregister(self, fd: int) -> None:
        """Watch it no more."""
        ...

    def close(self) -> None:
        """Give its own descriptor back."""
        ...


class _Epoll:
    def __init__(self, module: ModuleType) -> None:
        self._epoll = module.epoll()
        self.poll: Callable[[], list[tuple[int, int]]] = partial(self._epoll.poll, 0, BATCH)
        self._readable = module.EPOLLIN  # Hang-ups and errors are told with any mask.
        self.fileno = self._epoll.fileno
        self.unregister = self._epoll.unregister
        self.close = self._epoll.close

    def register(self, fd: int) -> None:
        self._epoll.register(fd, self._readable)


class _Kqueue:
    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self._kqueue = module.kqueue()
        self.fileno = self._kqueue.fileno
        self.close = self._kqueue.close

    def poll(self) -> list[tuple[int, int]]:
        return [(event.ident, event.flags) for event in self._kqueue.control(None, BATCH, 0)]

    def register(self, fd: int) -> None:
        self._change(fd, self._module.KQ_EV_ADD)

    def unregister(self, fd: int) -> None:
        self._change(fd, self._module.KQ_EV_DELETE)

    def _change(self, fd: int, flags: int) -> None:
        module = self._module
        self._kqueue.control([module.kevent(fd, module.KQ_FILTER_READ, flags)], 0)


def make_poller(module: ModuleType = select) -> Poller | None:
    """The best poller that the system has; `None` where it has none that can be waited for."""
    if hasattr(module, "epoll"):
        return _Epoll(module)
    if hasattr(module, "kqueue"):
        return _Kqueue(module)
    return None


class DemuxedSocket(Link):
    """A connected, non-blocking socket that a `Demux` reads for its owner, whenever it wants to.

    Args:
        demux: Who reads it.
        sock: The socket, which is closed with this object.
        owner: Who gets what is read.
    """

    __slots__ = ("_demux", "_fd", "_registered", "_sock", "reading", "receive")

    def __init__(self, demux: Demux, sock: socket.socket, owner: LinkOwner) -> None:
        super().__init__(owner)
        self._demux = demux
        self._sock = sock
        self._fd = sock.fileno()
        self._registered = False
        self.receive = sock.recv
        self.reading = False

    def start_reading(self) -> None:
        """Hand over what comes from now on.

        Raises:
            trio.ClosedResourceError: The socket was closed here, or nobody reads any more.
            APIConnectionError: The system watches as many sockets as it may.
        """
        if not self._registered:
            if self._fd < 0:
                raise trio.ClosedResourceError
            self._demux.register(self._fd, self)
            self._registered = True
        self.reading = True

    def stop_reading(self) -> None:
        """Leave what comes in the system's buffer, which slows the sender down.

        The poller keeps the socket until something does come: usually it is read on before that.
        """
        self.reading = False

    def unregister(self) -> None:
        """Have the poller tell of it no more."""
        self.reading = False
        if self._registered:
            self._registered = False
            self._demux.unregister(self._fd)

    def has_unread(self) -> bool:
        """Whether something came, or the end, and was not handed over yet."""
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            pass
        return True

    def send_now(self, data: bytearray) -> None:
        """Send what goes without waiting, and take it out of `data`.

        Raises:
            OSError: The connection is broken.
            trio.ClosedResourceError: It was closed here.
        """
        if self._fd < 0:
            raise trio.ClosedResourceError
        with suppress(BlockingIOError, InterruptedError):
            while data:
                del data[: self._sock.send(data)]

    async def send_all(self, data: bytearray, on_wait: Callable[[], None] | None = None) -> None:
        """Send all of `data` and take it out; always a checkpoint. As `send_now` else.

        `on_wait` is called before each wait for the peer to take more.
        """
        await trio.lowlevel.checkpoint()
        self.send_now(data)
        while data:
            if on_wait is not None:
                on_wait()
            await trio.lowlevel.wait_writable(self._sock)
            self.send_now(data)

    def close(self) -> None:
        """Close the socket; what is under way in it is left. Any number of times."""
        if self._fd >= 0:
            # Before the descriptor is free for another socket. A copy of it, in a child process
            # say, would keep a closed one in the poller for ever.
            self.unregister()
            self._fd = -1
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()


class Demux:
    """Reads sockets in one task, `run`."""

    def __init__(self, poller: Poller) -> None:
        self._poller = poller
        self._sockets: dict[int, DemuxedSocket] = {}
        self._closed = False

    def register(self, fd: int, demuxed: DemuxedSocket) -> None:
        """Read a socket from now on.

        Raises:
            trio.ClosedResourceError: Nobody reads any more.
            APIConnectionError: The system watches as many sockets as it may.
        """
        if self._closed:
            raise trio.ClosedResourceError("the transport was closed")
        try:
            self._poller.register(fd)
        except OSError as error:
            raise APIConnectionError(
                "the system cannot watch another connection: keep fewer open, or raise its limit "
                "(on Linux, `sysctl fs.epoll.max_user_watches`)"
            ) from error
        self._sockets[fd] = demuxed

    def unregister(self, fd: int) -> None:
        """Read it no more."""
        del self._sockets[fd]
        if not self._closed:  # else the poller is gone, or broken
            self._poller.unregister(fd)

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Read until cancelled; what is still open is lost then, and its owners are told."""
        why: Exception = ConnectionError("the task that reads the connections has failed")
        try:
            await self._read_all()
        except trio.Cancelled:
            why = trio.ClosedResourceError("the transport was closed")
            raise
        finally:
            self._closed = True
            for demuxed in list(self._sockets.values()):
                demuxed.unregister()
                demuxed.owner.connection_lost(why)
            self._poller.close()

    async def _read_all(self) -> None:
        poll = self._poller.poll
        get = self._sockets.get
        fileno = self._poller.fileno()
        while True:
            ready = poll()
            for fd, _ in ready:
                demuxed = get(fd)
                if demuxed is None:
                    continue  # Closed since, by what was handed over before in this batch.
                if not demuxed.reading:
                    demuxed.unregister()
                    continue
                try:
                    data = demuxed.receive(RECEIVE_BYTES)
                except (BlockingIOError, InterruptedError):
                    continue
                except OSError as error:
                    demuxed.unregister()
                    demuxed.owner.connection_lost(error)
                    continue
                arrived_ns = perf_counter_ns()
                if not data:
                    demuxed.unregister()
                    demuxed.owner.connection_lost(None)
                    continue
                try:
                    demuxed.owner.data_received(data, arrived_ns)
                except BaseException as error:  # noqa: ASYNC103 - of a sink: its reply's to raise
                    demuxed.unregister()
                    demuxed.owner.connection_lost(error)
            if len(ready) == BATCH:
                await trio.lowlevel.checkpoint()
            else:
                await trio.lowlevel.wait_readable(fileno)
