"""What carries a connection's bytes: a socket that a demultiplexer reads, or any Trio stream."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from time import perf_counter_ns
from typing import Protocol

import trio
from trio.lowlevel import Abort, RaiseCancelT

RECEIVE_BYTES = 64 * 1024
SEND_BYTES = 64 * 1024


class LinkOwner(Protocol):
    """Whose link it is: what is read goes there."""

    def data_received(self, data: bytes, arrived_ns: int) -> None:
        """Bytes came, never none.

        Whatever it raises comes back to it as `connection_lost`, and to nobody else.

        Args:
            data: At most `RECEIVE_BYTES`.
            arrived_ns: When, in nanoseconds on the clock of `time.perf_counter_ns`.
        """
        ...

    def connection_lost(self, error: BaseException | None) -> None:
        """Nothing more comes: the peer has ended the connection, or `error` has. Never raises."""
        ...


class Link:
    """Reads for its owner whenever it wants to; a task may wait meanwhile."""

    __slots__ = ("_waiting", "owner")

    def __init__(self, owner: LinkOwner) -> None:
        self.owner = owner
        self._waiting: trio.lowlevel.Task | None = None

    def start_reading(self) -> None:
        """Hand over what comes from now on.

        Raises:
            trio.ClosedResourceError: It was closed here, or nobody reads any more.
            APIConnectionError: The system cannot watch it too.
        """
        raise NotImplementedError

    def stop_reading(self) -> None:
        """Leave what comes where it is, which slows the sender down."""
        raise NotImplementedError

    def send_now(self, data: bytearray) -> None:
        """Send what goes without waiting, and take it out of `data`.

        Raises:
            OSError: The connection is broken.
            trio.ClosedResourceError: It was closed here.
        """
        raise NotImplementedError

    async def send_all(self, data: bytearray, on_wait: Callable[[], None] | None = None) -> None:
        """Send all of `data` and take it out; always a checkpoint.

        `on_wait` is called before each wait for the peer to take more.

        Raises:
            OSError, trio.BrokenResourceError: The connection is broken.
            trio.ClosedResourceError: It was closed here.
        """
        raise NotImplementedError

    def has_unread(self) -> bool:
        """Whether something came, or the end, and was not handed over yet; as far as it knows."""
        raise NotImplementedError

    def close(self) -> None:
        """Close it at once; what is under way is left. Any number of times."""
        raise NotImplementedError

    @trio.lowlevel.enable_ki_protection  # or `wake` may find a task that is no longer waiting
    async def wait(self) -> None:
        """Hand over what comes until `wake` is called. A checkpoint.

        Raises:
            trio.ClosedResourceError, APIConnectionError: As for `start_reading`.
            trio.BusyResourceError: Another task waits already.
        """
        if self._waiting is not None:
            raise trio.BusyResourceError("another task is receiving this response already")
        self.start_reading()
        self._waiting = trio.lowlevel.current_task()

        def abort(_raise_cancel: RaiseCancelT) -> Abort:
            self._waiting = None
            return Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def wake(self) -> None:
        """Let `wait` return, if anybody waits."""
        if self._waiting is not None:
            task, self._waiting = self._waiting, None
            trio.lowlevel.reschedule(task)


class Starter(Protocol):
    """Where tasks run: a nursery, say."""

    def start_soon(self, run: Callable[[], Awaitable[object]], /) -> None:
        """Have `run` run in a task."""
        ...


class StreamLink(Link):
    """A Trio stream, read by a task of its own.

    Args:
        stream: The stream.
        owner: Who gets what is read.
        nursery: Where that task runs, and the stream is closed.
    """

    __slots__ = ("_closed", "_held", "_nursery", "_reading", "_running", "_stream")

    def __init__(self, stream: trio.abc.Stream, owner: LinkOwner, nursery: Starter) -> None:
        super().__init__(owner)
        self._stream = stream
        self._nursery = nursery
        self._reading = False
        self._running = False
        self._held: bytes | None = None  # Read when nobody wanted it any more.
        self._closed = False

    def start_reading(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError
        self._reading = True
        if not self._running:
            self._running = True
            self._nursery.start_soon(self._read)

    def stop_reading(self) -> None:
        self._reading = False

    @trio.lowlevel.enable_ki_protection
    async def _read(self) -> None:  # noqa: ASYNC910 - a task of its own, whose end is one
        try:
            while self._reading:
                data, self._held = self._held, None
                if data is None:
                    data = bytes(await self._stream.receive_some(RECEIVE_BYTES))
                    if not self._reading:
                        self._held = data
                        break
                arrived_ns = perf_counter_ns()
                if not data:
                    self.owner.connection_lost(None)
                    break
                self.owner.data_received(data, arrived_ns)
        except trio.Cancelled:
            self.owner.connection_lost(trio.ClosedResourceError("the transport was closed"))
            raise
        except BaseException as error:  # noqa: ASYNC103 - raised by whoever waits
            self.owner.connection_lost(error)
        finally:
            self._running = False

    def send_now(self, data: bytearray) -> None:  # noqa: ARG002 - nothing goes without waiting
        if self._closed:
            raise trio.ClosedResourceError

    async def send_all(  # noqa: ASYNC910 - there is something to send
        self, data: bytearray, on_wait: Callable[[], None] | None = None
    ) -> None:
        while data:
            if on_wait is not None:
                on_wait()
            sending = bytes(data[:SEND_BYTES])
            await self._stream.send_all(sending)
            del data[: len(sending)]

    def has_unread(self) -> bool:
        return self._held is not None

    def close(self) -> None:
        self._reading = False
        if not self._closed:
            self._closed = True
            self._nursery.start_soon(partial(trio.aclose_forcefully, self._stream))
