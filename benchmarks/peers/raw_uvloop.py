"""Raw uvloop protocols with httptools and msgspec, as two programmers would write them.

`callback`: tokens are counted inside of `data_received`. That is the floor: nothing is woken.
`reader`: a deque and one Future a stream, consumed by `async for` in a task of the caller's.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from functools import partial
from typing import cast
from urllib.parse import urlsplit

import httptools

from ..tally import Tally
from . import OPENING, Load
from .wire import Chunk, EventStream, request

MAX_QUEUE = 1024
"""Chunks; reading is paused beyond."""


class Stream(asyncio.Protocol):
    """The HTTP part: one request, and the body of its answer."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._parser = httptools.HttpResponseParser(self)
        self._events = EventStream()
        self._error: Exception | None = None
        self._feed = self._parser.feed_data
        self.answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it.
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Parse."""
        self._feed(data)

    def on_headers_complete(self) -> None:
        """httptools: the status and the headers are there."""
        status = self._parser.get_status_code()
        if status != 200:
            self.connection_lost(ValueError(f"status {status}"))
        elif not self.answered.done():
            self.answered.set_result(None)

    def on_message_complete(self) -> None:
        """httptools: the body is whole."""
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits for the answer's head."""
        self._error = exc
        if not self.answered.done():
            self.answered.set_exception(exc or ConnectionResetError("no answer"))


class CallbackStream(Stream):
    """Counts where the data is received."""

    def __init__(self, request: bytes, tally: Tally) -> None:
        super().__init__(request)
        self._take = tally.take
        self.ended = asyncio.Event()

    def on_body(self, data: bytes) -> None:
        """httptools: a part of the body."""
        for chunk in self._events.feed(data):
            for choice in chunk.choices:
                if choice.delta.content:
                    self._take(choice.delta.content)

    def connection_lost(self, exc: Exception | None) -> None:
        """The stream has ended."""
        super().connection_lost(exc)
        self.ended.set()


class ReaderStream(Stream):
    """An async iterator of chunks."""

    def __init__(self, request: bytes) -> None:
        super().__init__(request)
        self._queue: deque[Chunk] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._paused = False
        self._ended = False
        self._create_future = asyncio.get_running_loop().create_future

    def data_received(self, data: bytes) -> None:
        """Parse, and wake the reader."""
        self._feed(data)
        if self._queue:
            self._wake()

    def on_body(self, data: bytes) -> None:
        """httptools: a part of the body."""
        self._queue.extend(self._events.feed(data))

    def connection_lost(self, exc: Exception | None) -> None:
        """The stream has ended."""
        super().connection_lost(exc)
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        if len(self._queue) > MAX_QUEUE and not self._paused:
            self._paused = True
            self.transport.pause_reading()
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def __aiter__(self) -> ReaderStream:
        return self

    async def __anext__(self) -> Chunk:
        """The next chunk."""
        while not self._queue:
            if self._paused:
                self._paused = False
                self.transport.resume_reading()
            if self._ended:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            self._waiter = self._create_future()
            await self._waiter
        return self._queue.popleft()


class CountingReaderStream(ReaderStream):
    """A reader that counts its reads too."""

    def __init__(self, request: bytes, tally: Tally) -> None:
        super().__init__(request)
        self._tally = tally

    def data_received(self, data: bytes) -> None:
        """Count, parse, and wake the reader."""
        self._tally.reads += 1
        self._feed(data)
        if self._queue:
            self._wake()


async def streams(load: Load, tally: Tally) -> None:
    """Open the streams, and read them until they end."""
    url = urlsplit(load.base_url)
    host, port = url.hostname, url.port
    assert host is not None
    assert port is not None
    context = ssl.create_default_context() if url.scheme == "https" else None
    loop = asyncio.get_running_loop()
    limiter = asyncio.Semaphore(OPENING)

    def make(number: int) -> CallbackStream | ReaderStream:
        content = request(load.base_url, number)
        if load.variant == "callback":
            return CallbackStream(content, tally)
        return CountingReaderStream(content, tally) if load.count_reads else ReaderStream(content)

    async def read(number: int) -> None:
        async with limiter:
            _, stream = await loop.create_connection(partial(make, number), host, port, ssl=context)
            await stream.answered
        if isinstance(stream, CallbackStream):
            await stream.ended.wait()
        else:
            async for chunk in stream:
                for choice in chunk.choices:
                    if choice.delta.content:
                        tally.take(choice.delta.content)

    async with asyncio.TaskGroup() as group:
        for number in range(load.streams):
            group.create_task(read(number))
