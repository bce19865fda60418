"""The pool under clients of httpx and httpx2: what they get, and what is left of it."""

# pyright: reportPrivateUsage=false
from __future__ import annotations

import gzip
import importlib
import socket
import ssl
import struct
import sys
import threading
import traceback
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from functools import partial
from typing import Any, assert_type, cast

import httpx
import httpx2
import openai
import pytest
import trio
import trustme
from trio.testing import MockClock, wait_all_tasks_blocked

import gz_trio
import gz_trio._transport.httpx_transport
import gz_trio._transport.pool
from gz_trio import httpx_transport
from gz_trio._transport.link import StreamLink
from gz_trio._transport.origin import Origin
from gz_trio._transport.pool import open_pool
from gz_trio.testing import Cut, FakeGateway, Reset, Stall
from tests.secrets_guard import SECRET_MARK, secret
from tests.test_leftovers import nothing_left_behind
from tests.transport.test_tls import with_certificate
from tests.transports import socket_connection

Handler = Callable[[trio.abc.Stream], Awaitable[None]]
Opens = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


# Servers


async def read_request(stream: trio.abc.Stream) -> tuple[bytes, bytes]:
    """The head of the next request, without its last line break, and its body."""
    data = bytearray()
    while b"\r\n\r\n" not in data:
        data += await receive(stream)
    head, _, rest = bytes(data).partition(b"\r\n\r\n")
    if b"chunked" in head:
        while not rest.endswith(b"0\r\n\r\n"):
            rest += await receive(stream)
        return head, unchunked(rest)
    length = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    body = bytearray(rest)
    while len(body) < length:
        body += await receive(stream)
    return head, bytes(body)


async def receive(stream: trio.abc.Stream) -> bytes:
    data = bytes(await stream.receive_some())
    if not data:
        raise EOFError
    return data


def unchunked(data: bytes) -> bytes:
    body = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        body += data[: int(size, 16)]
        data = data[int(size, 16) + 2 :]
    return body


class Server:
    """What a test's server has seen. It answers every request with `answer`."""

    def __init__(self, answer: bytes = OK) -> None:
        self.answer = answer
        self.connections = 0
        self.open = 0
        self.requests: list[tuple[bytes, bytes]] = []

    async def handle(self, stream: trio.abc.Stream) -> None:
        while True:
            self.requests.append(await read_request(stream))
            await self.respond(stream)

    async def respond(self, stream: trio.abc.Stream) -> None:
        await stream.send_all(self.answer)

    async def serve(self, stream: trio.abc.Stream) -> None:
        self.connections += 1
        self.open += 1
        try:
            with suppress(EOFError, trio.BrokenResourceError):
                await self.handle(stream)
        finally:
            self.open -= 1
            await trio.aclose_forcefully(stream)

    @asynccontextmanager
    async def listen(self, ssl_context: ssl.SSLContext | None = None) -> AsyncGenerator[str]:
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            port = listeners[0].socket.getsockname()[1]

            async def serve(stream: trio.abc.Stream) -> None:
                if ssl_context is not None:
                    stream = trio.SSLStream(
                        stream, ssl_context, server_side=True, https_compatible=True
                    )
                await self.serve(stream)

            await nursery.start(trio.serve_listeners, serve, listeners)
            yield f"http{'s' if ssl_context else ''}://127.0.0.1:{port}"
            nursery.cancel_scope.cancel()


class Scripted(Server):
    """A server that does with each connection what `handler` does."""

    def __init__(self, handler: Handler) -> None:
        super().__init__()
        self._handler = handler

    async def handle(self, stream: trio.abc.Stream) -> None:
        await self._handler(stream)


@asynccontextmanager
async def in_memory(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    *,
    connect_seconds: float = 0,
    shielded: bool = False,
) -> AsyncGenerator[str]:
    """Sockets that a mock clock may jump with: what one end sends, the other end has at once."""
    async with trio.open_nursery() as nursery:

        async def connect(_origin: Origin) -> trio.abc.Stream:
            with trio.CancelScope(shield=shielded):
                await trio.sleep(connect_seconds)
            server_end, client_end = socket_connection()
            nursery.start_soon(server.serve, server_end)
            return client_end

        monkeypatch.setattr(
            gz_trio._transport.httpx_transport, "open_pool", partial(open_pool, connect=connect)
        )
        yield "http://gateway.test"
        nursery.cancel_scope.cancel()


# Clients


@pytest.fixture(params=["httpx", "httpx2"])
def module(request: pytest.FixtureRequest) -> Any:
    return importlib.import_module(request.param)


def open_client(module: Any = httpx, **arguments: Any) -> httpx.AsyncClient:
    return cast(
        "httpx.AsyncClient", module.AsyncClient(transport=httpx_transport(module), **arguments)
    )


def both(module: Any, **arguments: Any) -> list[tuple[str, httpx.AsyncClient]]:
    """A client with this library's transport, and one with its module's own."""
    return [
        ("ours", open_client(module, **arguments)),
        ("theirs", module.AsyncClient(trust_env=False, **arguments)),
    ]


# As with httpx's own transport


def test_it_is_a_transport_of_its_module_for_a_type_checker_too() -> None:
    assert_type(httpx_transport(), httpx.AsyncBaseTransport)
    assert_type(httpx_transport(httpx), httpx.AsyncBaseTransport)
    assert_type(httpx_transport(httpx2), httpx2.AsyncBaseTransport)
    assert isinstance(httpx_transport(), httpx.AsyncBaseTransport)
    assert isinstance(httpx_transport(httpx2), httpx2.AsyncBaseTransport)
    assert not isinstance(httpx_transport(httpx2), httpx.AsyncBaseTransport)


async def body_in_pieces() -> AsyncIterator[bytes]:
    yield b"Once upon"
    await trio.lowlevel.checkpoint()
    yield b" a time"


REQUESTS: dict[str, Callable[[str], dict[str, Any]]] = {
    "GET": lambda url: {"method": "GET", "url": f"{url}/a%20path?q=a%2Fb&q=%C3%A4"},
    "GET of a path that is not ASCII": lambda url: {"method": "GET", "url": f"{url}/ä ö?ü=ß"},
    "HEAD": lambda url: {"method": "HEAD", "url": url},
    "DELETE": lambda url: {"method": "DELETE", "url": url},
    "OPTIONS": lambda url: {"method": "OPTIONS", "url": url},
    "POST of JSON": lambda url: {"method": "POST", "url": url, "json": {"text": "ä"}},
    "POST of a form": lambda url: {"method": "POST", "url": url, "data": {"a": "1"}},
    "POST of a file": lambda url: {
        "method": "POST",
        "url": url,
        "files": {"file": ("name.txt", b"\x00\xff", "text/plain")},
        "headers": {"Content-Type": "multipart/form-data; boundary=b"},
    },
    "POST of nothing": lambda url: {"method": "POST", "url": url},
    "PUT of bytes": lambda url: {"method": "PUT", "url": url, "content": b"\x00\r\n\r\n\xff"},
    "PATCH of a stream": lambda url: {
        "method": "PATCH",
        "url": url,
        "content": body_in_pieces(),
    },
    "a method of one's own": lambda url: {"method": "PURGE", "url": url},
    "credentials in the URL": lambda url: {
        "method": "GET",
        "url": url.replace("//", f"//user:{secret('word')}@"),
    },
    "headers as bytes": lambda url: {
        "method": "GET",
        "url": url,
        "headers": [(b"X-Utf-8", "ä".encode()), (b"X-Latin-1", b"\xe4"), (b"x-Empty", b"")],
    },
    "another Host": lambda url: {"method": "GET", "url": url, "headers": {"Host": "a.test"}},
    "another Accept-Encoding": lambda url: {
        "method": "GET",
        "url": url,
        "headers": {"Accept-Encoding": "identity"},
    },
    "cookies": lambda url: {"method": "GET", "url": url, "headers": {"Cookie": "a=1; b=2"}},
}


def fields(head: bytes) -> list[bytes]:
    """The lines of a request's head but for its framing, which may differ, in a stable order."""
    request_line, *lines = head.split(b"\r\n")
    framing = (b"content-length:", b"transfer-encoding:")
    return [request_line, *sorted(line for line in lines if not line.lower().startswith(framing))]


@pytest.mark.parametrize("request_to", REQUESTS.values(), ids=REQUESTS.keys())
async def test_a_server_gets_what_httpx_s_own_transport_sends(
    module: Any, request_to: Callable[[str], dict[str, Any]]
) -> None:
    server = Server(b"HTTP/1.1 204 No Content\r\n\r\n")
    async with server.listen() as url:
        for _, client in both(module):
            async with client:
                response = await client.request(**request_to(url))
                assert response.status_code == 204
    (ours, our_body), (theirs, their_body) = server.requests
    assert fields(ours) == fields(theirs)
    assert our_body == their_body


async def test_several_headers_of_one_name_are_one(module: Any) -> None:
    server = Server()
    headers = [("X-A", "1"), ("X-A", "2"), ("Cookie", "a=1"), ("Cookie", "b=2")]
    async with server.listen() as url, open_client(module) as client:
        await client.get(url, headers=headers)
    assert {b"X-A: 1, 2", b"Cookie: a=1; b=2"} <= set(server.requests[0][0].split(b"\r\n"))


async def test_an_accept_encoding_that_was_taken_out_stays_out(module: Any) -> None:
    server = Server()
    async with server.listen() as url, open_client(module) as client:
        del client.headers["Accept-Encoding"]
        await client.get(url)
    assert b"accept-encoding" not in server.requests[0][0].lower()


TEXT = b"Once upon a time. " * 2000
DEFLATED = zlib.compress(TEXT)


def response(*lines: bytes, body: bytes = b"", status: bytes = b"200 OK") -> bytes:
    return b"\r\n".join([b"HTTP/1.1 " + status, *lines, b"", body])


def with_length(body: bytes, *lines: bytes) -> bytes:
    return response(b"Content-Length: %d" % len(body), *lines, body=body)


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (*pieces, b""))


RESPONSES = {
    "with a length": with_length(TEXT),
    "empty": with_length(b""),
    "in chunks": response(b"Transfer-Encoding: chunked", body=chunked(TEXT[:7], TEXT[7:])),
    "with trailers": response(
        b"Transfer-Encoding: chunked", body=chunked(TEXT)[:-2] + b"X-Sum: 1\r\n\r\n"
    ),
    "gzip": with_length(gzip.compress(TEXT), b"Content-Encoding: gzip"),
    "gzip, in chunks": response(
        b"Content-Encoding: gzip",
        b"Transfer-Encoding: chunked",
        body=chunked(gzip.compress(TEXT)[:20], gzip.compress(TEXT)[20:]),
    ),
    "deflate": with_length(DEFLATED, b"Content-Encoding: deflate"),
    "two codings": with_length(gzip.compress(DEFLATED), b"Content-Encoding: deflate, gzip"),
    "a coding that nobody knows": with_length(TEXT, b"Content-Encoding: x-none"),
    "204": response(status=b"204 No Content"),
    "304": response(b"Content-Length: 5", status=b"304 Not Modified"),
    "404": response(b"Content-Length: 4", body=b"gone", status=b"404 Not Found"),
    "a reason of its own": response(b"Content-Length: 0", status=b"299 Well \xfc, Then"),
    "no reason": response(b"Content-Length: 0", status=b"200 "),
    "after 100 and 103": response(status=b"100 Continue")
    + response(b"Link: </a>", status=b"103 Early Hints")
    + with_length(b"at last"),
    "cookies": with_length(b"", b"Set-Cookie: a=1; Path=/", b"Set-Cookie: b=2; Path=/"),
    "headers of one name": with_length(b"", b"X-A: 1", b"X-A: 2", b"x-a: \xe4"),
    "a charset": with_length("ä€".encode("cp1252"), b"Content-Type: text/plain; charset=cp1252"),
}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("answer", RESPONSES.values(), ids=RESPONSES.keys())
async def test_a_client_gets_what_httpx_s_own_transport_gives(
    module: Any, answer: bytes, method: str
) -> None:
    if method == "HEAD":
        head, _, _ = answer.rpartition(b"HTTP/1.1")[2].partition(b"\r\n\r\n")
        answer = answer[: answer.rindex(b"HTTP/1.1")] + b"HTTP/1.1" + head + b"\r\n\r\n"
    got: list[tuple[object, ...]] = []
    async with Server(answer).listen() as url:
        for _, client in both(module):
            async with client:
                reply = await client.request(method, url)
            got.append(
                (
                    reply.status_code,
                    reply.reason_phrase,
                    reply.http_version,
                    # Of several fields of one name we make one, which means the same.
                    {name.lower(): reply.headers[name] for name in reply.headers},
                    reply.headers.get_list("set-cookie"),
                    reply.content,
                    reply.text,
                    reply.num_bytes_downloaded,
                    dict(client.cookies),
                )
            )
    assert got[0] == got[1]


async def test_a_body_that_the_end_of_the_connection_ends_is_whole(module: Any) -> None:
    async def until_closed(stream: trio.abc.Stream) -> None:
        await read_request(stream)
        await stream.send_all(response(body=TEXT))

    async with Scripted(until_closed).listen() as url, open_client(module) as client:
        assert (await client.get(url)).content == TEXT


async def test_raw_bytes_have_their_coding_on_and_decoded_ones_do_not(module: Any) -> None:
    body = gzip.compress(TEXT)
    async with (
        Server(with_length(body, b"Content-Encoding: gzip")).listen() as url,
        open_client(module) as client,
    ):
        async with client.stream("GET", url) as raw:
            assert b"".join([piece async for piece in raw.aiter_raw()]) == body
        async with client.stream("GET", url) as decoded:
            assert b"".join([piece async for piece in decoded.aiter_bytes()]) == TEXT


async def test_redirects_cookies_and_authentication_are_the_client_s(module: Any) -> None:
    class Guarded(Server):
        async def respond(self, stream: trio.abc.Stream) -> None:
            head, _ = self.requests[-1]
            if head.startswith(b"POST /start "):
                await stream.send_all(
                    response(
                        b"Location: /end",
                        b"Set-Cookie: a=1; Path=/",
                        b"Content-Length: 5",
                        body=b"there",
                        status=b"307 Temporary Redirect",
                    )
                )
            elif b"Authorization: Digest " in head:
                await stream.send_all(OK)
            else:
                await stream.send_all(
                    response(
                        b'WWW-Authenticate: Digest realm="r", nonce="n", qop="auth"',
                        b"Content-Length: 0",
                        status=b"401 Unauthorized",
                    )
                )

    server = Guarded()
    async with (
        server.listen() as url,
        open_client(module, follow_redirects=True) as client,
    ):
        reply = await client.post(
            f"{url}/start",
            content=body_in_pieces(),
            auth=module.DigestAuth("user", secret("word")),
        )
    assert reply.status_code == 200
    assert server.connections == 1
    # Redirected and asked for the password, then once more with it.
    assert [head.split()[1] for head, _ in server.requests] == [b"/start", b"/end"] * 2
    assert [b"Cookie: a=1" in head for head, _ in server.requests] == [False, True] * 2
    assert {body for _, body in server.requests} == {b"Once upon a time"}


@pytest.mark.parametrize("size", [0, 1, 70_000, 8_000_000])
async def test_bodies_of_any_size_go_and_come(module: Any, size: int) -> None:
    class Echo(Server):
        async def respond(self, stream: trio.abc.Stream) -> None:
            await stream.send_all(with_length(self.requests[-1][1]))

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, size, 100_000):
            yield sent[start : start + 100_000]

    sent = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    server = Echo()
    async with server.listen() as url, open_client(module) as client:
        for content in (sent, pieces()):
            reply = await client.post(url, content=content)
            assert reply.content == sent
    assert server.connections == 1


async def test_pieces_come_as_they_arrive(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slowly(stream: trio.abc.Stream) -> None:
        await read_request(stream)
        await stream.send_all(response(b"Transfer-Encoding: chunked"))
        for _ in range(3):
            await trio.sleep(1)
            await stream.send_all(chunked(b"token")[:-5])
        await stream.send_all(chunked())

    async with (
        in_memory(Scripted(slowly), monkeypatch) as url,
        open_client() as client,
        client.stream("GET", url) as reply,
    ):
        assert trio.current_time() == 0
        times = [(piece, trio.current_time()) async for piece in reply.aiter_bytes()]
    assert times == [(b"token", 1), (b"token", 2), (b"token", 3)]


class Steps(trio.abc.Instrument):
    """Counts how often a task gets its turn."""

    def __init__(self, task: trio.lowlevel.Task) -> None:
        self.count = 0
        self._task = task

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += task is self._task


async def test_a_piece_that_is_waited_for_costs_one_turn_of_its_task(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slowly(stream: trio.abc.Stream) -> None:
        await read_request(stream)
        await stream.send_all(response(b"Transfer-Encoding: chunked"))
        for _ in range(100):
            await trio.sleep(1)
            await stream.send_all(chunked(b"token")[:-5])
        await stream.send_all(chunked())

    steps = Steps(trio.lowlevel.current_task())
    async with (
        in_memory(Scripted(slowly), monkeypatch) as url,
        open_client() as client,
        client.stream("GET", url) as reply,
    ):
        trio.lowlevel.add_instrument(steps)
        pieces = [piece async for piece in reply.aiter_raw()]
        trio.lowlevel.remove_instrument(steps)
    assert len(pieces) == 100
    assert steps.count <= 102  # one more for the end, another perhaps for the first piece


async def test_a_body_that_fails_sends_nothing(module: Any) -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield b"x"
        raise ZeroDivisionError

    server = Server()
    async with server.listen() as url, open_client(module) as client:
        with pytest.raises(ZeroDivisionError):
            await client.post(url, content=failing())
        await client.get(url)
    assert [head.split()[0] for head, _ in server.requests] == [b"GET"]


async def test_an_answer_that_comes_before_all_was_sent_does_not_stop_the_sending(
    module: Any,
) -> None:
    class Eager(Server):
        async def handle(self, stream: trio.abc.Stream) -> None:
            await stream.send_all(response(b"Transfer-Encoding: chunked"))
            _, body = await read_request(stream)
            await stream.send_all(chunked(b"%d" % len(body)))
            await stream.receive_some()

    async with Eager().listen() as url, open_client(module) as client:
        reply = await client.post(url, content=bytes(8_000_000))
        assert reply.content == b"8000000"


async def test_a_refusal_that_comes_before_all_was_sent_is_told_at_once(module: Any) -> None:
    async def refuse(stream: trio.abc.Stream) -> None:
        await receive(stream)
        await stream.send_all(response(b"Content-Length: 0", status=b"413 Content Too Large"))
        await trio.sleep_forever()

    async with Scripted(refuse).listen() as url, open_client(module, timeout=None) as client:
        reply = await client.post(url, content=bytes(8_000_000))
    assert reply.status_code == 413


# Connections


async def test_connections_are_used_again(module: Any) -> None:
    server = Server()
    async with server.listen() as url, open_client(module) as client:
        for _ in range(10):
            assert (await client.get(url)).text == "ok"
    assert server.connections == 1


async def test_a_response_that_is_left_early_takes_its_connection_along(module: Any) -> None:
    server = Server(with_length(bytes(20_000_000)))
    async with server.listen() as url, open_client(module) as client:
        async with client.stream("GET", url):
            pass
        async with client.stream("GET", url):
            await wait_all_tasks_blocked()
            assert (server.connections, server.open) == (2, 1)


async def test_many_at_once_get_each_its_own(module: Any) -> None:
    class Echo(Server):
        async def respond(self, stream: trio.abc.Stream) -> None:
            await stream.send_all(with_length(self.requests[-1][0].split()[1]))

    got: set[str] = set()

    async def get(number: int) -> None:
        got.add((await client.get(f"{url}/{number}", timeout=None)).text)

    async with Echo().listen() as url, open_client(module) as client:
        for _ in range(2):
            async with trio.open_nursery() as nursery:
                for number in range(300):
                    nursery.start_soon(get, number)
            assert got == {f"/{number}" for number in range(300)}
            got.clear()


def closing_on_the_second(first_bytes: bytes = b"") -> Server:
    """A server that ends a kept connection instead of answering what comes over it."""

    async def handle(stream: trio.abc.Stream) -> None:
        server.requests.append(await read_request(stream))
        await stream.send_all(OK)
        server.requests.append(await read_request(stream))
        await stream.send_all(first_bytes)

    server = Scripted(handle)
    return server


KEYED = {"Idempotency-Key": "1"}


@pytest.mark.parametrize(
    ("method", "headers", "repeated"),
    [
        *((method, {}, True) for method in ("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE")),
        *((method, {}, False) for method in ("POST", "PATCH", "PURGE")),
        *((method, KEYED, True) for method in ("POST", "PATCH")),
    ],
)
async def test_what_meets_the_end_of_a_kept_connection_is_repeated_where_it_does_no_harm(
    module: Any, method: str, headers: dict[str, str], repeated: bool
) -> None:
    server = closing_on_the_second()
    async with server.listen() as url, open_client(module) as client:
        await client.get(url)
        if repeated:
            assert (await client.request(method, url, headers=headers)).status_code == 200
        else:
            with pytest.raises(module.RemoteProtocolError):
                await client.request(method, url, headers=headers)
    sent = [head.split()[0].decode() for head, _ in server.requests]
    assert sent == ["GET", *[method] * (2 if repeated else 1)]


async def test_nothing_is_repeated_once_an_answer_has_begun(module: Any) -> None:
    server = closing_on_the_second(b"HTTP/1.1 2")
    async with server.listen() as url, open_client(module) as client:
        await client.get(url)
        with pytest.raises(module.RemoteProtocolError):
            await client.get(url)
    assert len(server.requests) == 2


async def test_a_connection_that_ended_while_the_program_was_busy_is_not_used(
    module: Any,
) -> None:
    answered, closed = threading.Event(), threading.Event()

    def accept_and_answer_twice() -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(OK)
                answered.wait()
            closed.set()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)  # where nobody connects any more
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with open_client(module) as client, trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, accept_and_answer_twice)
            await client.post(url)
            answered.set()
            closed.wait()  # No other task runs meanwhile.
            assert (await client.post(url)).text == "ok"


# Opening and closing


async def test_it_is_open_within_its_own_block(module: Any) -> None:
    server = Server()
    async with server.listen() as url:
        async with httpx_transport(module) as transport:
            client = module.AsyncClient(transport=transport)
            await client.get(url)
            await client.get(url)
        await wait_all_tasks_blocked()
    assert (server.connections, server.open) == (1, 0)


async def test_it_is_open_within_its_client_s_block(module: Any) -> None:
    server = Server()
    async with server.listen() as url:
        async with open_client(module) as client:
            await client.get(url)
        await wait_all_tasks_blocked()
        assert server.open == 0


async def test_the_outermost_block_counts_where_both_are_entered(module: Any) -> None:
    server = Server()
    async with server.listen() as url:
        async with httpx_transport(module) as transport:
            for _ in range(2):
                async with module.AsyncClient(transport=transport) as client:
                    await client.get(url)
            await module.AsyncClient(transport=transport).get(url)
        await wait_all_tasks_blocked()
    assert (server.connections, server.open) == (1, 0)


async def test_clients_in_many_tasks_may_share_it(module: Any) -> None:
    async def use() -> None:
        async with module.AsyncClient(transport=transport) as client:
            assert (await client.get(url)).text == "ok"

    async with Server().listen() as url, httpx_transport(module) as transport:
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(use)
        await use()


async def test_a_client_may_have_several_transports(module: Any) -> None:
    server = Server()
    async with server.listen() as url:
        for error in (None, ZeroDivisionError()):
            with pytest.raises(ZeroDivisionError) if error else nullcontext():
                async with open_client(
                    module, mounts={"all://localhost": httpx_transport(module)}
                ) as client:
                    await client.get(url)
                    await client.get(url.replace("127.0.0.1", "localhost"))
                    assert server.open == 2
                    if error:
                        raise error
            await wait_all_tasks_blocked()
            assert server.open == 0


async def test_one_that_is_left_takes_along_no_other_that_is_still_open(module: Any) -> None:
    first, second = httpx_transport(module), httpx_transport(module)
    async with Server().listen() as url:
        await first.__aenter__()
        await second.__aenter__()
        await first.__aexit__()
        reply = await module.AsyncClient(transport=second).get(url)
        assert reply.text == "ok"
        await second.__aexit__()


async def test_it_opens_without_a_wait_that_could_be_cancelled(module: Any) -> None:
    opened = False
    with trio.CancelScope() as scope:
        scope.cancel()
        async with open_client(module):
            opened = True
            await trio.lowlevel.checkpoint()
    assert opened
    assert scope.cancelled_caught


async def test_tasks_may_enter_it_at_the_same_time(module: Any) -> None:
    transport = httpx_transport(module)

    async def use() -> None:
        async with module.AsyncClient(transport=transport) as client:
            await client.get(url)
            done.append(client)
            if len(done) == 10:
                everybody.set()
            await everybody.wait()

    done: list[object] = []
    everybody = trio.Event()
    with trio.fail_after(5):
        async with Server().listen() as url, trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(use)


async def test_a_client_s_aclose_closes_no_connection(module: Any) -> None:
    server = Server()
    async with server.listen() as url, httpx_transport(module) as transport:
        for _ in range(2):
            client = module.AsyncClient(transport=transport)
            await client.get(url)
            await client.aclose()
    assert server.connections == 1


async def test_it_can_be_opened_again(module: Any) -> None:
    transport = httpx_transport(module)
    async with Server().listen() as url:
        for _ in range(2):
            async with transport, module.AsyncClient(transport=transport) as client:
                assert (await client.get(url)).text == "ok"


async def test_a_request_outside_of_a_block_says_what_to_write(module: Any) -> None:
    transport = httpx_transport(module)
    client = module.AsyncClient(transport=transport)
    hint = rf"not open: write `async with gz_trio\.httpx_transport.*`async with {module.__name__}\."
    with pytest.raises(RuntimeError, match=hint):
        await client.get("http://gateway.test")
    async with transport:
        pass
    with pytest.raises(RuntimeError, match=hint):
        await client.get("http://gateway.test")


@pytest.mark.parametrize("head_first", [False, True])
async def test_who_still_reads_when_it_is_closed_gets_an_error(
    module: Any, head_first: bool
) -> None:
    async def stall(stream: trio.abc.Stream) -> None:
        await read_request(stream)
        if head_first:
            await stream.send_all(response(b"Content-Length: 5"))
        await trio.sleep_forever()

    async def get() -> None:
        with pytest.raises(module.ReadError, match="closed"):
            await module.AsyncClient(transport=transport, timeout=None).get(url)

    async with (
        Scripted(stall).listen() as url,
        trio.open_nursery() as nursery,
        httpx_transport(module) as transport,
    ):
        nursery.start_soon(get)
        await wait_all_tasks_blocked(0.05)


async def test_an_exception_comes_out_as_it_is(module: Any) -> None:
    error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError) as caught:
        async with httpx_transport(module) as transport, module.AsyncClient(transport=transport):
            raise error
    assert caught.value is error


async def test_a_body_that_was_closed_cannot_be_read(module: Any) -> None:
    async with Server().listen() as url, httpx_transport(module) as transport:
        reply = await transport.handle_async_request(module.Request("GET", url))
        assert isinstance(reply.stream, module.AsyncByteStream)
        await reply.stream.aclose()
        await reply.stream.aclose()
        with pytest.raises(module.StreamClosed):
            await anext(aiter(reply.stream))


# Errors


async def close_at_once(stream: trio.abc.Stream) -> None:
    await read_request(stream)


async def reset(stream: trio.abc.Stream) -> None:
    assert isinstance(stream, trio.SocketStream)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def reset_at_once(stream: trio.abc.Stream) -> None:
    await read_request(stream)
    await reset(stream)


async def cut_the_head(stream: trio.abc.Stream) -> None:
    await read_request(stream)
    await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-")


async def cut_a_body_with_a_length(stream: trio.abc.Stream) -> None:
    await read_request(stream)
    await stream.send_all(response(b"Content-Length: 5", body=b"Once"))


async def cut_a_body_in_chunks(stream: trio.abc.Stream) -> None:
    await read_request(stream)
    await stream.send_all(response(b"Transfer-Encoding: chunked", body=b"5\r\nOnce "))


async def reset_within_the_body(stream: trio.abc.Stream) -> None:
    await read_request(stream)
    await stream.send_all(response(b"Content-Length: 5", body=b"Once"))
    await wait_all_tasks_blocked()
    await reset(stream)


async def speak_no_http(stream: trio.abc.Stream) -> None:
    await read_request(stream)
    await stream.send_all(b"220 mail.test ESMTP\r\n\r\n")


async def break_the_chunks(stream: trio.abc.Stream) -> None:
    await read_request(stream)
    await stream.send_all(response(b"Transfer-Encoding: chunked", body=b"no number\r\n"))


async def never_answer(stream: trio.abc.Stream) -> None:
    await read_request(stream)
    await trio.sleep_forever()


async def stall_within_the_body(stream: trio.abc.Stream) -> None:
    await read_request(stream)
    await stream.send_all(response(b"Content-Length: 5", body=b"Once"))
    await trio.sleep_forever()


async def never_read(stream: trio.abc.Stream) -> None:
    await trio.sleep_forever()


SHORT = {"timeout": 0.2}

ERRORS: dict[str, tuple[Handler, dict[str, Any], str]] = {
    "closed at once": (close_at_once, {}, "RemoteProtocolError"),
    "reset at once": (reset_at_once, {}, "ReadError"),
    "a head that is cut": (cut_the_head, {}, "RemoteProtocolError"),
    "a body that is cut": (cut_a_body_with_a_length, {}, "RemoteProtocolError"),
    "chunks that are cut": (cut_a_body_in_chunks, {}, "RemoteProtocolError"),
    "reset in the body": (reset_within_the_body, {}, "ReadError"),
    "no HTTP": (speak_no_http, {}, "RemoteProtocolError"),
    "no chunks": (break_the_chunks, {}, "RemoteProtocolError"),
    "no answer": (never_answer, SHORT, "ReadTimeout"),
    "no rest of the body": (stall_within_the_body, SHORT, "ReadTimeout"),
    "nobody reads": (
        never_read,
        {**SHORT, "method": "POST", "content": bytes(20_000_000)},
        "WriteTimeout",
    ),
    "a header with a newline": (
        close_at_once,
        {"headers": {"X-Key": f"{SECRET_MARK}\n"}},
        "LocalProtocolError",
    ),
    "another scheme": (close_at_once, {"url": "ftp://gateway.test"}, "UnsupportedProtocol"),
    "no scheme": (close_at_once, {"url": "//gateway.test"}, "UnsupportedProtocol"),
}


# httpx's own transport leaves the generator of the body behind that could not be written.
@pytest.mark.filterwarnings("ignore:Async generator 'httpx._content:ResourceWarning")
@pytest.mark.parametrize(("handler", "how", "name"), ERRORS.values(), ids=ERRORS.keys())
async def test_an_error_is_of_the_class_that_httpx_s_own_transport_raises(
    module: Any, handler: Handler, how: dict[str, Any], name: str
) -> None:
    server = Scripted(handler)
    async with server.listen() as url:
        request: dict[str, Any] = {"method": "GET", "url": url, **how}
        for whose, client in both(module):
            async with client:
                with pytest.raises(module.TransportError) as caught:
                    await client.request(**request)
            assert type(caught.value) is getattr(module, name), whose
            assert caught.value.request.method == request["method"]
            if whose == "ours":
                assert SECRET_MARK not in "".join(traceback.format_exception(caught.value))
                assert str(caught.value)


async def test_nobody_there_is_a_connect_error_without_what_the_url_keeps_secret(
    module: Any, unused_tcp_port: int
) -> None:
    url = f"http://user:{secret('word')}@127.0.0.1:{unused_tcp_port}/?key={secret('key')}"
    async with open_client(module) as client:
        with pytest.raises(module.ConnectError, match=rf"127\.0\.0\.1:{unused_tcp_port}") as caught:
            await client.get(url)
    assert SECRET_MARK not in "".join(traceback.format_exception(caught.value))


@pytest.fixture
def unused_tcp_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


async def test_a_host_that_speaks_no_tls_is_a_connect_error(module: Any) -> None:
    async def speak_plainly(stream: trio.abc.Stream) -> None:
        await stream.send_all(OK)
        await receive(stream)

    async with Scripted(speak_plainly).listen() as url, open_client(module) as client:
        with pytest.raises(module.ConnectError, match="does not speak TLS"):
            await client.get(url.replace("http:", "https:"))


async def test_a_handshake_that_is_not_answered_is_a_connect_timeout(module: Any) -> None:
    async with Scripted(never_read).listen() as url, open_client(module, timeout=0.2) as client:
        with pytest.raises(
            module.ConnectTimeout, match=r"no connection to https://.* within 0\.2 s"
        ):
            await client.get(url.replace("http:", "https:"))


# Timeouts, to the second


async def test_connecting_may_take_as_long_as_its_timeout(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server()
    async with in_memory(server, monkeypatch, connect_seconds=3) as url, open_client() as client:
        with pytest.raises(httpx.ConnectTimeout, match=r"no connection to .* within 2 s"):
            await client.get(url, timeout=httpx.Timeout(None, connect=2))
        assert trio.current_time() == 2
        assert (await client.get(url, timeout=httpx.Timeout(1, connect=4))).text == "ok"
        assert trio.current_time() == 5
    assert len(server.requests) == 1


async def test_a_connect_timeout_means_that_nothing_was_sent(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server()
    async with (
        # The connection is there at the moment when the time is up.
        in_memory(server, monkeypatch, connect_seconds=2, shielded=True) as url,
        open_client(timeout=httpx.Timeout(5, connect=1)) as client,
    ):
        with pytest.raises(httpx.TimeoutException) as caught:
            await client.get(url)
        await wait_all_tasks_blocked()
    assert (type(caught.value) is httpx.ConnectTimeout) == (not server.requests)


async def test_waiting_for_others_to_connect_may_take_as_long_as_its_timeout(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gz_trio._transport.pool, "CONNECTS_AT_ONCE", 1)

    async def fail() -> None:
        with pytest.raises(httpx.PoolTimeout, match="wait for other connects for 2 s"):
            await client.get(url, timeout=httpx.Timeout(1, pool=2, connect=4))
        assert trio.current_time() == 2

    async with (
        in_memory(Server(), monkeypatch, connect_seconds=3) as url,
        open_client(timeout=httpx.Timeout(1, pool=4, connect=4)) as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(client.get, url)
        await wait_all_tasks_blocked()
        nursery.start_soon(fail)
        await client.get(url)  # three seconds for its turn, three to connect
        assert trio.current_time() == 6


async def test_each_silence_may_be_as_long_as_the_timeout_of_reading(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slowly(stream: trio.abc.Stream) -> None:
        await read_request(stream)
        for piece in (
            response(status=b"102 Processing"),
            response(status=b"102 Processing"),
            b"HTTP/1.1 200 ",
            b"OK\r\nContent-Length: 15\r\n\r\n",
            b"token",
            b"token",
        ):
            await trio.sleep(3)
            await stream.send_all(piece)
        await trio.sleep_forever()

    pieces: list[bytes] = []
    async with in_memory(Scripted(slowly), monkeypatch) as url, open_client() as client:
        with pytest.raises(httpx.ReadTimeout, match="sent nothing for 4 s"):
            async with client.stream("GET", url, timeout=4) as reply:
                assert trio.current_time() == 12
                pieces.extend([piece async for piece in reply.aiter_raw()])
        assert trio.current_time() == 22


async def test_a_server_may_take_each_piece_of_a_request_as_slowly_as_the_timeout_of_writing(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at = 1_000_000

    async def slowly(stream: trio.abc.Stream) -> None:
        taken = 0
        while taken < stop_at:
            await trio.sleep(3)
            taken += len(await stream.receive_some(200_000) or b"x" * stop_at)
        if stop_at < 5_000_000:
            await trio.sleep_forever()
        await stream.send_all(OK)

    timeout = httpx.Timeout(None, write=4)
    async with in_memory(Scripted(slowly), monkeypatch) as url, open_client() as client:
        with pytest.raises(httpx.WriteTimeout, match="took nothing more of the request for 4 s"):
            await client.post(url, content=bytes(5_000_000), timeout=timeout)
        assert trio.current_time() > 10
        stop_at = 5_000_000
        reply = await client.post(url, content=bytes(5_000_000), timeout=timeout)
        assert reply.text == "ok"


async def test_no_timeout_is_none(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slowly(stream: trio.abc.Stream) -> None:
        await read_request(stream)
        await trio.sleep(10_000)
        await stream.send_all(response(b"Content-Length: 2"))
        await trio.sleep(10_000)
        await stream.send_all(b"ok")

    async with (
        in_memory(Scripted(slowly), monkeypatch, connect_seconds=10_000) as url,
        open_client(timeout=None) as client,
    ):
        assert (await client.get(url)).text == "ok"


# Cancellation


class CancelAt(trio.abc.Instrument):
    """Cancels `scope` when its task has been waiting for the n-th time."""

    def __init__(self, waits: int) -> None:
        self.left = waits
        self.scope = trio.CancelScope()
        self._task = trio.lowlevel.current_task()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self.left -= 1
            if self.left == 0:
                self.scope.cancel()


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_request_can_be_cancelled_wherever_it_waits(module: Any, scheme: str) -> None:
    class Halting(Server):
        async def respond(self, stream: trio.abc.Stream) -> None:
            await stream.send_all(response(b"Content-Length: 10"))
            for _ in range(5):
                await wait_all_tasks_blocked()
                await stream.send_all(b"ab")

    server, tls = Halting(), scheme == "https"
    context = server_context() if tls else None
    async with server.listen(context) as url:
        cancelled, waits, done = 0, 0, False
        while not done:
            waits += 1
            transport = httpx_transport(module, ssl_context=trusting_context())
            async with module.AsyncClient(transport=transport, timeout=30) as client:
                # Once on a new connection, and once on a kept one.
                for _ in range(2):
                    cancel = CancelAt(waits)
                    trio.lowlevel.add_instrument(cancel)
                    with cancel.scope:
                        reply = await client.post(url, content=bytes(3_000_000))
                        assert reply.text == "ab" * 5
                    trio.lowlevel.remove_instrument(cancel)
                    cancelled += cancel.scope.cancelled_caught
                    done = not cancel.scope.cancelled_caught
                    assert len(transport._pool._open) == sum(
                        map(len, transport._pool._idle.values())
                    )
                assert (await client.get(url)).text == "ab" * 5
            await wait_all_tasks_blocked()
            assert server.open == 0
    assert cancelled > 10


async def test_what_has_come_already_cannot_be_read_in_a_cancelled_scope(module: Any) -> None:
    async with (
        Server().listen() as url,
        open_client(module) as client,
        client.stream("GET", url) as reply,
    ):
        with trio.CancelScope() as scope:
            scope.cancel()
            await reply.aread()
    assert scope.cancelled_caught


# TLS

authority = trustme.CA()


def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    return with_certificate(
        context, authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem
    )


def trusting_context() -> ssl.SSLContext:
    return ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())


async def test_https_goes_where_the_context_trusts(module: Any) -> None:
    server = Server(with_length(TEXT))
    transport = httpx_transport(module, ssl_context=trusting_context())
    async with (
        server.listen(server_context()) as url,
        module.AsyncClient(transport=transport) as client,
    ):
        for _ in range(3):
            assert (await client.post(url, content=bytes(1_000_000))).content == TEXT
    assert server.connections == 1


async def test_https_goes_nowhere_else(module: Any) -> None:
    async with Server().listen(server_context()) as url, open_client(module) as client:
        with pytest.raises(module.ConnectError, match="not signed by an authority"):
            await client.get(url)


# The OpenAI SDK, which never enters its client


@asynccontextmanager
async def openai_client(
    module: Any, url: str, key: str, *, max_retries: int = 0, timeout: float | None = None
) -> AsyncGenerator[openai.AsyncOpenAI]:
    async with httpx_transport(module) as transport:
        yield openai.AsyncOpenAI(
            base_url=url,
            api_key=key,
            max_retries=max_retries,
            timeout=timeout,
            http_client=module.AsyncClient(transport=transport),
        )


async def stream_a_story(client: openai.AsyncOpenAI) -> str:
    text = ""
    stream = await client.chat.completions.create(
        model="fake-model",
        messages=[{"role": "user", "content": "Tell me a story."}],
        stream=True,
    )
    async for chunk in stream:
        text += chunk.choices[0].delta.content or "" if chunk.choices else ""
    return text


# The SDK leaves generators of its own, and of httpx, where they are.
leaves_generators = pytest.mark.filterwarnings(
    "ignore:Async generator '(openai|httpx|httpx2)\\.:ResourceWarning"
)


@leaves_generators
async def test_the_openai_sdk_streams_over_it(module: Any) -> None:
    fake = FakeGateway()
    async with (
        fake.listen() as url,
        openai_client(module, url, fake.key) as client,
        trio.open_nursery() as nursery,
    ):
        stories: list[str] = []

        async def stream() -> None:
            stories.append(await stream_a_story(client))

        for _ in range(20):
            nursery.start_soon(stream)
    assert stories == [fake.intended(fake.requests[0].body or {})] * 20


@leaves_generators
@pytest.mark.parametrize("fault", [Cut(), Reset()])
async def test_the_openai_sdk_retries_what_broke(module: Any, fault: Cut | Reset) -> None:
    fake = FakeGateway()
    fake.fault(fault)
    async with (
        fake.listen() as url,
        openai_client(module, url, fake.key, max_retries=1) as client,
    ):
        assert await stream_a_story(client) == fake.intended(fake.requests[0].body or {})


@leaves_generators
async def test_the_openai_sdk_knows_its_errors(module: Any, unused_tcp_port: int) -> None:
    fake = FakeGateway()
    async with fake.listen() as url:
        async with openai_client(module, f"http://127.0.0.1:{unused_tcp_port}", "k") as client:
            with pytest.raises(openai.APIConnectionError):
                await stream_a_story(client)
        async with openai_client(module, url, fake.key, timeout=0.2) as client:
            fake.fault(Stall())
            with pytest.raises(openai.APITimeoutError):
                await stream_a_story(client)
        async with openai_client(module, url, "rejected") as client:
            with pytest.raises(openai.AuthenticationError):
                await stream_a_story(client)


# Where there is no poller


async def test_it_works_where_the_system_has_no_poller(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gz_trio._transport.pool, "make_poller", lambda: None)
    links: list[StreamLink] = []
    made = StreamLink.__init__

    def noting(self: StreamLink, *arguments: Any) -> None:
        links.append(self)
        made(self, *arguments)

    monkeypatch.setattr(StreamLink, "__init__", noting)
    async with Server().listen() as url, open_client(module) as client:
        for _ in range(3):
            assert (await client.post(url, content=bytes(1_000_000))).text == "ok"
    assert links


# What is left behind


async def read_to_the_end(client: httpx.AsyncClient, url: str) -> None:
    await client.get(url)


async def leave_unread(client: httpx.AsyncClient, url: str) -> None:
    async with client.stream("GET", url):
        pass


async def never_close(client: httpx.AsyncClient, url: str) -> None:
    await client.send(client.build_request("GET", url), stream=True)


async def stop_in_the_middle(client: httpx.AsyncClient, url: str) -> None:
    # Not by `aiter_raw`: of httpx's own generators, those that are left are left.
    reply = await client._transport.handle_async_request(client.build_request("GET", url))
    assert isinstance(reply.stream, httpx.AsyncByteStream | httpx2.AsyncByteStream)
    async for _ in reply.stream:
        break
    await reply.stream.aclose()


async def cancel_in_the_middle(client: httpx.AsyncClient, url: str) -> None:
    with trio.CancelScope() as scope:
        async with client.stream("GET", url) as reply:
            async for _ in reply.aiter_bytes():
                scope.cancel()


async def time_out(client: httpx.AsyncClient, url: str) -> None:
    with suppress(httpx.ReadTimeout, httpx2.ReadTimeout):
        await client.get(f"{url}/stall", timeout=0.05)


async def fail(client: httpx.AsyncClient, url: str) -> None:
    async with client.stream("GET", url):
        raise ZeroDivisionError


@pytest.mark.skipif(sys.platform != "linux", reason="descriptors are read from /proc")
@pytest.mark.parametrize(
    "use",
    [
        read_to_the_end,
        leave_unread,
        never_close,
        stop_in_the_middle,
        cancel_in_the_middle,
        time_out,
        fail,
    ],
)
def test_nothing_is_left_behind(
    module: Any, use: Callable[[httpx.AsyncClient, str], Awaitable[None]]
) -> None:
    class Large(Server):
        async def respond(self, stream: trio.abc.Stream) -> None:
            if b"/stall" in self.requests[-1][0]:
                await receive(stream)
            await stream.send_all(with_length(bytes(20_000_000)))

    async def main() -> None:
        server = Large()
        async with server.listen() as url:
            await wait_all_tasks_blocked()
            before = trio.lowlevel.current_statistics().tasks_living
            with suppress(ZeroDivisionError):
                async with open_client(module) as client:
                    await use(client, url)
            await wait_all_tasks_blocked(0.01)
            assert server.open == 0
            assert trio.lowlevel.current_statistics().tasks_living == before

    with nothing_left_behind():
        trio.run(main)
