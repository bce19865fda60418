"""A tap in the line from nginx to an engine: what the engine sent, which it never says again."""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import httptools
import httpx
import trio

from tests.interop import plain


@dataclass
class Exchange:
    """The bytes of a connection, which holds one request: nginx opens a new one for each."""

    request: bytearray = field(default_factory=bytearray)
    response: bytearray = field(default_factory=bytearray)

    @property
    def question(self) -> str:
        _, _, body = self.request.partition(b"\r\n\r\n")
        return str(json.loads(body)["messages"][-1]["content"])

    @property
    def answer(self) -> plain.Answer:
        """What came of it, to the end of an event."""
        body = bytearray()

        class Parts:
            def on_body(self, part: bytes) -> None:
                body.extend(part)

        parser = httptools.HttpResponseParser(Parts())
        parser.feed_data(bytes(self.response))
        events, end, _ = bytes(body).rpartition(b"\n\n")
        return plain.Answer(httpx.Response(parser.get_status_code()), events + end)


class Tap:
    """Relays to an upstream port, and keeps what it relays."""

    def __init__(self, upstream: int) -> None:
        self._upstream = upstream
        self._exchanges: list[Exchange] = []
        self._scopes: set[trio.CancelScope] = set()

    @asynccontextmanager
    async def listening(self) -> AsyncGenerator[int]:
        """Relay for as long as the block runs; gives the port."""
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self._relay, listeners)
            yield int(listeners[0].socket.getsockname()[1])
            nursery.cancel_scope.cancel()

    async def _relay(self, client: trio.SocketStream) -> None:
        exchange = Exchange()
        self._exchanges.append(exchange)
        server = await trio.open_tcp_stream("127.0.0.1", self._upstream)
        async with client, server, trio.open_nursery() as nursery:
            scope = nursery.cancel_scope
            self._scopes.add(scope)
            nursery.start_soon(self._pass_on, client, server, exchange.request, scope)
            nursery.start_soon(self._pass_on, server, client, exchange.response, scope)
        self._scopes.remove(scope)

    async def _pass_on(
        self,
        source: trio.SocketStream,
        sink: trio.SocketStream,
        record: bytearray,
        both: trio.CancelScope,
    ) -> None:
        with suppress(trio.BrokenResourceError):
            async for part in source:
                record += part
                await sink.send_all(part)
        both.cancel()

    def cut(self) -> None:
        """Close all connections, in the middle of whatever they carry."""
        for scope in self._scopes:
            scope.cancel()

    def answers(self, question: str) -> list[plain.Answer]:
        """All answers to a question: whole ones, and the beginnings of those that were cut."""
        return [
            exchange.answer
            for exchange in self._exchanges
            if exchange.response and exchange.question == question
        ]
