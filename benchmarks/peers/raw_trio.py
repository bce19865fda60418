"""A raw Trio stream with httptools and msgspec: one task a stream, which waits for its socket."""

from __future__ import annotations

import ssl
from urllib.parse import urlsplit

import httptools
import trio

from ..tally import Tally
from . import OPENING, Load
from .wire import Chunk, EventStream, request

READ_BYTES = 1 << 16


class Body:
    """What httptools tells of an answer."""

    def __init__(self) -> None:
        self.events = EventStream()
        self.chunks: list[Chunk] = []
        self.complete = False

    def on_body(self, data: bytes) -> None:
        """httptools: a part of the body."""
        self.chunks += self.events.feed(data)

    def on_message_complete(self) -> None:
        """httptools: the body is whole."""
        self.complete = True


async def streams(load: Load, tally: Tally) -> None:
    """Open the streams, and read them until they end."""
    limiter = trio.CapacityLimiter(OPENING)
    url = urlsplit(load.base_url)
    host, port = url.hostname, url.port
    assert host is not None
    assert port is not None
    context = ssl.create_default_context() if url.scheme == "https" else None

    async def connect() -> trio.abc.Stream:
        stream = await trio.open_tcp_stream(host, port)
        if context is None:
            return stream
        return trio.SSLStream(stream, context, server_hostname=host)

    async def read(number: int) -> None:
        async with limiter:
            stream = await connect()
            await stream.send_all(request(load.base_url, number))
            body = Body()
            parser = httptools.HttpResponseParser(body)
            parser.feed_data(await stream.receive_some(READ_BYTES))
            if parser.get_status_code() != 200:
                raise ValueError(f"status {parser.get_status_code()}")
        async with stream:
            while True:
                for chunk in body.chunks:
                    for choice in chunk.choices:
                        if choice.delta.content:
                            tally.take(choice.delta.content)
                body.chunks.clear()
                if body.complete:
                    return
                data = await stream.receive_some(READ_BYTES)
                if not data:
                    raise trio.BrokenResourceError("the answer was cut")
                parser.feed_data(data)

    async with trio.open_nursery() as nursery:
        for number in range(load.streams):
            nursery.start_soon(read, number)
