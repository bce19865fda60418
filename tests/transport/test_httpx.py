"""The transport over httpx, and over httpx2: what comes of requests, whatever servers do."""

# pyright: reportPrivateUsage=false
from __future__ import annotations

import gzip
import importlib
import zlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from math import inf
from typing import TypeAlias, cast

import httpx
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from gz_trio import APIConnectionError, GatewayError, ProtocolError
from gz_trio._transport.content_coding import DECOMPRESSED_BYTES
from gz_trio._transport.httpx import REQUESTS_PER_CLIENT, HttpxTransport, open_httpx_transport
from gz_trio._transport.interface import Request, Response
from gz_trio.testing import Cut, Drip, FakeGateway, Reset, Stall, Status
from gz_trio.testing._memory import HttpxModule

Httpx: TypeAlias = HttpxModule[httpx.AsyncClient]

CHAT = b'{"model":"fake-model","stream":true,"messages":[]}'


@pytest.fixture(params=["httpx", "httpx2"])
def module(request: pytest.FixtureRequest) -> Httpx:
    return cast("Httpx", importlib.import_module(request.param))


def request_to(base_url: str, key: str, *, connect_timeout: float | None = None) -> Request:
    return Request(
        "POST",
        f"{base_url}/chat/completions",
        headers={"Authorization": f"Bearer {key}"},
        absent=frozenset({"x-api-key"}),
        content=CHAT,
        connect_timeout=connect_timeout,
    )


@asynccontextmanager
async def transport_to(fake: FakeGateway, module: Httpx) -> AsyncGenerator[HttpxTransport]:
    async with (
        fake.http_client(module) as client,
        open_httpx_transport(client) as transport,
    ):
        yield transport


async def read(response: Response) -> bytes:
    body = b""
    while data := await response.receive():
        body += data
    return body


async def test_a_response_streams_to_its_end_and_stays_ended(
    autojump_clock: MockClock, module: Httpx
) -> None:
    fake = FakeGateway(token_interval=1.0)
    async with transport_to(fake, module) as transport:
        response = await transport.send(request_to(fake.base_url, fake.key))
        assert response.status == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        first = await response.receive()
        assert trio.current_time() == 0  # it does not wait for the whole
        body = first + await read(response)
        assert body.endswith(b"data: [DONE]\n\n")
        assert await response.receive() == b""
        response.close()


@pytest.mark.parametrize(
    ("fault", "token", "error_class"),
    [
        (Cut(), None, APIConnectionError),
        (Reset(), None, APIConnectionError),
        (Cut(), 3, APIConnectionError),
        (Reset(), 3, APIConnectionError),
        (Status(200, headers={"content-encoding": "gzip"}, body=b"no gzip"), None, ProtocolError),
        (
            Status(200, headers={"content-encoding": "gzip"}, body=gzip.compress(b"text")[:-1]),
            None,
            APIConnectionError,
        ),
        (Status(200, headers={"content-encoding": "br"}, body=b"brotli"), None, ProtocolError),
    ],
)
async def test_what_breaks_is_an_error_of_ours_that_names_the_origin(
    autojump_clock: MockClock,
    module: Httpx,
    fault: Cut | Reset | Status,
    token: int | None,
    error_class: type[GatewayError],
) -> None:
    fake = FakeGateway()
    fake.fault(fault, token=token)

    async def exchange() -> None:
        response = await transport.send(request_to(fake.base_url, fake.key))
        try:
            await read(response)
        finally:
            response.close()

    async with transport_to(fake, module) as transport:
        with pytest.raises(error_class, match=r"http://gateway\.test") as caught:
            await exchange()
    assert type(caught.value) is error_class


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", gzip.compress(b"Once upon a time", mtime=0)),
        ("x-gzip", gzip.compress(b"Once upon a time", mtime=0)),
        ("deflate", zlib.compress(b"Once upon a time")),
        ("identity", b"Once upon a time"),
        ("Identity", b"Once upon a time"),
    ],
)
async def test_a_body_is_decompressed_however_it_is_cut(
    autojump_clock: MockClock, module: Httpx, coding: str, body: bytes
) -> None:
    fake = FakeGateway()
    fake.fault(Drip())
    fake.fault(Status(200, headers={"content-encoding": coding}, body=body))
    async with transport_to(fake, module) as transport:
        response = await transport.send(request_to(fake.base_url, fake.key))
        assert await read(response) == b"Once upon a time"
        response.close()
    assert fake.requests[0].headers["accept-encoding"] == "gzip"


async def test_what_a_few_bytes_decompress_to_comes_in_pieces(module: Httpx) -> None:
    body = b"Once upon a time" * 1_000_000
    fake = FakeGateway()
    fake.fault(
        Status(200, headers={"content-encoding": "gzip"}, body=gzip.compress(body)), times=None
    )
    async with transport_to(fake, module) as transport:
        response = await transport.send(request_to(fake.base_url, fake.key))
        pieces: list[bytes] = []
        while piece := await response.receive():
            pieces.append(piece)
        response.close()
    assert max(map(len, pieces)) <= DECOMPRESSED_BYTES
    assert b"".join(pieces) == body


async def test_no_connection_asks_for_the_base_url(
    autojump_clock: MockClock, module: Httpx
) -> None:
    fake = FakeGateway()
    fake.refuse_connections = True
    async with transport_to(fake, module) as transport:
        with pytest.raises(APIConnectionError, match="is the gateway up, and the base URL right"):
            await transport.send(request_to(fake.base_url, fake.key))


@pytest.mark.parametrize(
    "answer", [b"HELLO sk-1\r\n\r\n", b"HTTP/1.1 200 OK\r\nsk-1\r\n\r\n", b"\0" * 100]
)
async def test_what_is_no_http_is_a_broken_connection_and_is_not_quoted(answer: bytes) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        request = b""
        while not request.endswith(CHAT):  # what is left unread would reset the connection
            request += await stream.receive_some()
        await stream.send_all(answer)
        await stream.aclose()

    async with trio.open_nursery() as nursery, open_httpx_transport(None) as transport:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        port = listeners[0].socket.getsockname()[1]
        with pytest.raises(APIConnectionError, match="broke") as caught:
            await transport.send(request_to(f"http://127.0.0.1:{port}/v1", "sk-1"))
        nursery.cancel_scope.cancel()
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


async def test_closing_early_closes_the_connection(
    autojump_clock: MockClock, module: Httpx
) -> None:
    fake = FakeGateway(token_interval=10.0)
    async with transport_to(fake, module) as transport:
        response = await transport.send(request_to(fake.base_url, fake.key))
        await response.receive()
        assert fake.open_streams == 1
        response.close()
        await wait_all_tasks_blocked()
        assert fake.open_streams == 0


class BadConsumer:
    """Raises where it must not: when it is told of the end."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.told = trio.Event()

    def receive(self, data: bytes, arrived_ns: int) -> bool:
        return False

    def deadline(self) -> float:
        return inf

    def stopped(self, error: BaseException | None) -> None:
        self.told.set()
        raise self.error


async def test_a_consumer_that_raises_when_it_is_told_of_the_end_is_logged_and_harms_no_other(
    module: Httpx, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeGateway()
    consumer = BadConsumer(ValueError("sk-secret"))
    async with transport_to(fake, module) as transport:
        response = await transport.send(request_to(fake.base_url, fake.key))
        response.start(consumer)
        await consumer.told.wait()
        assert await read(await transport.send(request_to(fake.base_url, fake.key)))
    (record,) = (record for record in caplog.records if record.name == "gz_trio.transport")
    assert "ValueError" in record.getMessage()
    assert "sk-secret" not in caplog.text


async def test_what_is_meant_for_the_whole_program_comes_out_of_the_transport_s_block(
    module: Httpx,
) -> None:
    fake = FakeGateway()
    consumer = BadConsumer(SystemExit(3))
    with pytest.raises(SystemExit) as caught:
        async with transport_to(fake, module) as transport:
            response = await transport.send(request_to(fake.base_url, fake.key))
            response.start(consumer)
            await trio.sleep_forever()
    assert caught.value is consumer.error


@pytest.mark.parametrize("damage", [b"\x1f\x8b no gzip", b""])
async def test_closing_early_raises_nothing_whatever_is_left_of_the_body(
    autojump_clock: MockClock, module: Httpx, damage: bytes
) -> None:
    fake = FakeGateway()
    fake.fault(Status(200, headers={"content-encoding": "gzip"}, body=damage))
    async with transport_to(fake, module) as transport:
        response = await transport.send(request_to(fake.base_url, fake.key))
        response.close()


@pytest.mark.parametrize("token", [None, 3])
async def test_a_request_can_be_cancelled_wherever_it_waits(
    autojump_clock: MockClock, module: Httpx, token: int | None
) -> None:
    fake = FakeGateway()
    fake.fault(Stall(), token=token)

    async def exchange() -> None:
        response = await transport.send(request_to(fake.base_url, fake.key))
        try:
            await read(response)
        finally:
            response.close()

    async with transport_to(fake, module) as transport:
        with trio.move_on_after(5) as scope:
            await exchange()
        assert scope.cancelled_caught
        await wait_all_tasks_blocked()
        assert (fake.open_streams, trio.current_time()) == (0, 5)


async def test_absent_headers_are_not_sent_whoever_adds_them(
    autojump_clock: MockClock, module: Httpx
) -> None:
    fake = FakeGateway()
    async with fake.http_client(module) as client:
        client.headers["X-API-Key"] = "of-the-users"
        async with open_httpx_transport(client) as transport:
            response = await transport.send(request_to(fake.base_url, fake.key))
            response.close()
    assert "x-api-key" not in fake.requests[0].headers


async def test_a_client_of_the_users_is_not_closed(
    autojump_clock: MockClock, module: Httpx
) -> None:
    fake = FakeGateway()
    async with fake.http_client(module) as client:
        async with open_httpx_transport(client):
            pass
        assert not client.is_closed


async def test_no_client_of_our_own_gets_many_requests() -> None:
    fake = FakeGateway(token_interval=60.0)
    async with fake.listen() as base_url, open_httpx_transport(None) as transport:
        request = request_to(base_url, fake.key, connect_timeout=5)
        responses = [await transport.send(request) for _ in range(3 * REQUESTS_PER_CLIENT)]
        lanes = transport._lanes
        assert [lane.active for lane in lanes] == [REQUESTS_PER_CLIENT] * 3
        for response in responses:
            response.close()
        assert [lane.active for lane in lanes] == [0] * 3
        response = await transport.send(request)  # and they are used again
        assert len(lanes) == 3
        response.close()
    assert all(lane.client.is_closed for lane in lanes)


async def test_a_request_that_fails_gives_its_place_back() -> None:
    async with open_httpx_transport(None) as transport:
        for _ in range(2 * REQUESTS_PER_CLIENT):
            with pytest.raises(APIConnectionError):
                await transport.send(request_to("http://127.0.0.1:1/v1", "sk-1"))
        assert [lane.active for lane in transport._lanes] == [0]


def test_a_request_shows_neither_headers_nor_content() -> None:
    shown = repr(request_to("http://gateway.test/v1", "sk-secret"))
    assert "sk-secret" not in shown
    assert "fake-model" not in shown


async def test_httpx_and_httpx2_are_told_apart_by_the_class_of_the_client(
    module: Httpx,
) -> None:
    async with module.AsyncClient() as client, open_httpx_transport(client) as transport:
        assert transport.module is module
