"""Clients that the proxy does not trust: strangers, other pages, those that are slow or gone."""

import re
import socket
import tracemalloc
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager

import httpx
import pytest
import trio
from starlette.types import Message
from trio.testing import wait_all_tasks_blocked

from gz_trio.proxy import _connections, _exchange, _forwarding, _metrics, loopback_address
from gz_trio.testing import Cut, FakeGateway
from tests.proxy.fronts import BODY, Front, Stalling, open_front

CHAT = "/v1/chat/completions"


def head(front: Front, *lines: str, method: str = "POST", path: str = CHAT) -> bytes:
    """The head of a request, with the local token."""
    lines = (f"Host: 127.0.0.1:{front.port}", f"Authorization: Bearer {front.token}", *lines)
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode()


@asynccontextmanager
async def connected(front: Front) -> AsyncGenerator[trio.SocketStream]:
    stream = await trio.open_tcp_stream("127.0.0.1", front.port)
    async with stream:
        yield stream


async def read_all(stream: trio.SocketStream) -> bytes:
    """All that comes until the proxy closes the connection."""
    with trio.fail_after(30):
        return b"".join([bytes(piece) async for piece in stream])


def ask_in_bytes(front: Front, body: bytes, *lines: str) -> bytes:
    return head(front, f"Content-Length: {len(body)}", *lines) + body


STREAM = b'{"model":"fake-model","messages":[],"stream":true}'


# Strangers and other pages


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"host": "rebound.example:8399"}, 421, "wrong_host"),
        ({"origin": "https://evil.example"}, 403, "foreign_origin"),
        ({"origin": "null"}, 403, "foreign_origin"),
        ({"sec-fetch-site": "cross-site"}, 403, "foreign_site"),
        ({"authorization": "Bearer wrong"}, 401, "local_token"),
        ({"authorization": ""}, 401, "local_token"),
    ],
)
async def test_what_is_refused_never_reaches_the_gateway(
    headers: dict[str, str], status: int, code: str
) -> None:
    fake = FakeGateway()
    async with open_front(fake) as front, front.client(**headers) as client:
        answer = await client.post(CHAT, json=BODY)
        preflight = await client.options(CHAT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert preflight.status_code == status
    assert not any(name.startswith("access-control-") for name in answer.headers)
    assert fake.requests == []
    assert re.fullmatch(rf"POST {CHAT} {status} \d+\.\d\d s {code}", front.log[0])


async def test_to_anthropic_s_sdk_a_refusal_is_told_in_its_shape() -> None:
    async with open_front(FakeGateway()) as front, front.stranger() as client:
        answer = await client.post("/v1/messages", json=BODY)
    assert answer.json()["type"] == "error"
    assert answer.json()["error"]["type"] == "authentication_error"
    assert "local token" in answer.json()["error"]["message"]


async def test_without_the_local_token_wanted_any_key_will_do_but_no_other_page() -> None:
    async with open_front(FakeGateway(), local_token=False) as front, front.stranger() as client:
        assert (await client.post(CHAT, json=BODY)).status_code == 200
        assert (await client.get("/")).status_code == 200
        foreign = await client.post(CHAT, json=BODY, headers={"origin": "http://localhost:1"})
        assert foreign.status_code == 403


async def test_a_path_that_leads_out_of_the_gateway_s_base_url_is_refused() -> None:
    fake = FakeGateway()
    async with open_front(fake) as front, connected(front) as stream:
        await stream.send_all(
            head(front, "Connection: close", method="GET", path="/v1/%2e%2e/auth")
        )
        assert (await read_all(stream)).startswith(b"HTTP/1.1 400 ")
    assert fake.requests == []


async def test_a_path_outside_the_api_says_where_the_api_is() -> None:
    async with open_front(FakeGateway()) as front, front.client() as client:
        answer = await client.post("/chat/completions", json=BODY)
    assert answer.status_code == 404
    assert "/v1" in answer.json()["error"]["message"]


# The page's cookie


async def test_a_one_time_link_lets_a_browser_in_once() -> None:
    async with open_front(FakeGateway()) as front, front.stranger() as browser:
        assert (await browser.get("/")).status_code == 401
        link = front.proxy.new_page_url()
        first = await browser.get(link)
        assert (first.status_code, first.headers["location"]) == (303, "/")
        assert (await browser.get("/")).status_code == 200
        own = {"origin": front.proxy.url}
        assert (await browser.get("/v1/models", headers=own)).status_code == 200
        assert (await browser.get("/v1/models")).status_code == 401
        async with front.stranger() as other:
            again = await other.get(link)
            assert again.status_code == 401
            assert "link" in again.text
            assert (await other.get("/")).status_code == 401
    assert link.partition("code=")[2] not in "".join(front.log)


async def test_the_local_token_gets_a_new_link_which_ends_the_one_before() -> None:
    async with open_front(FakeGateway()) as front, front.client() as client:
        before = front.proxy.new_page_url()
        link = (await client.post("/page/link")).json()["url"]
        async with front.stranger() as browser:
            assert (await browser.post("/page/link")).status_code == 401
            assert (await browser.get(before)).status_code == 401
            assert (await browser.get(link)).status_code == 303


async def test_the_cookie_is_of_no_use_to_pages_at_other_ports() -> None:
    async with open_front(FakeGateway()) as front, front.stranger() as browser:
        await browser.get(front.proxy.new_page_url())
        for path in ("/v1/models", "/page/sessions"):
            led = await browser.get(path, headers={"sec-fetch-site": "same-site"})
            assert led.status_code == 403
        assert (await browser.post("/page/sign-out")).status_code == 401


# What it tells of itself


async def test_whether_it_is_well_everybody_may_ask_but_for_the_figures_the_token_is_wanted() -> (
    None
):
    fake = FakeGateway()
    async with open_front(fake) as front, front.client() as client, front.stranger() as stranger:
        health = await stranger.get("/healthz")
        assert health.json() == {"status": "ok", "auth": "authenticated"}
        assert (await stranger.get("/metrics")).status_code == 401
        await client.post(CHAT, json=BODY)
        fake.fault(Cut(), token=2, times=None)
        fake.rotate()
        await client.post(CHAT, json={**BODY, "stream": False})
        text = (await client.get("/metrics")).text
    figures = dict(re.findall(r"^(gz_trio_proxy_\S+) (\S+)$", text, re.MULTILINE))
    assert figures['gz_trio_proxy_requests_total{route="chat",status="200"}'] == "2.0"
    assert figures['gz_trio_proxy_requests_total{route="proxy",status="401"}'] == "1.0"
    assert figures['gz_trio_proxy_head_seconds_count{route="chat"}'] == "2.0"
    assert figures["gz_trio_proxy_keys_total"] == "1.0"
    assert figures["gz_trio_proxy_open_requests"] == "0.0"
    assert figures["gz_trio_proxy_signed_in"] == "1.0"
    assert float(figures["gz_trio_proxy_forwarded_bytes_total"]) > 0
    assert "gw_test" not in text


# Clients that go, or are slow


async def test_a_client_that_hangs_up_ends_the_gateway_s_work() -> None:
    fake = Stalling(token=3)
    async with open_front(fake) as front:
        async with connected(front) as stream:
            await stream.send_all(ask_in_bytes(front, STREAM))
            assert b" 200 " in await stream.receive_some()
            assert front.proxy.open_requests == 1
        with trio.fail_after(10):
            await fake.over.wait()
        assert fake.open_streams == 0
        assert front.proxy.open_requests == 0
    assert front.log[-1].endswith("hung up")


async def test_so_does_one_that_hangs_up_before_there_is_an_answer() -> None:
    fake = Stalling(token=0)
    async with open_front(fake) as front:
        async with connected(front) as stream:
            await stream.send_all(ask_in_bytes(front, STREAM))
            await fake.asked.wait()
        with trio.fail_after(10):
            await fake.over.wait()
    assert " no answer " in front.log[-1]


def large(body: Mapping[str, object], attempt: int) -> Sequence[str]:
    """25 MiB of tokens."""
    return ["x" * 65_536] * 400


async def test_a_client_that_is_slow_slows_its_gateway_and_gets_all_of_it() -> None:
    sent = 0
    fake = FakeGateway(answer=large)
    async with open_front(fake) as front:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        with client:
            slow = trio.socket.from_stdlib_socket(client)
            client.setblocking(False)
            await slow.connect(("127.0.0.1", front.port))
            await slow.send(ask_in_bytes(front, STREAM, "Connection: close"))
            async with front.client() as other:

                async def forwarded() -> float:
                    text = (await other.get("/metrics")).text
                    (figure,) = re.findall(
                        r"^gz_trio_proxy_forwarded_bytes_total (\S+)$", text, re.MULTILINE
                    )
                    return float(figure)

                # As long as it takes nothing, no more is forwarded than the system holds for it.
                before = 0.0
                while (now := await forwarded()) == 0 or now != before:
                    before = now
                    await trio.sleep(0.2)
                assert 0 < now < 2 * 2**20
                while data := await slow.recv(2**20):
                    sent += len(data)
                assert await forwarded() > 400 * 65_536
    assert sent > 400 * 65_536


async def test_a_client_that_takes_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_connections, "STALL_SECONDS", 0.1)
    over = trio.Event()
    fake = FakeGateway(answer=large, on_request=lambda _: over.set())
    async with open_front(fake) as front, connected(front) as stream:
        await stream.send_all(ask_in_bytes(front, STREAM))
        with trio.fail_after(30):
            await over.wait()
    assert not fake.requests[0].complete


async def test_a_body_of_100_mb_is_refused_and_not_kept() -> None:
    fake = FakeGateway()
    piece = b"x" * 2**20

    async def body() -> AsyncGenerator[bytes]:
        for _ in range(100):
            yield piece

    async with open_front(fake) as front, front.client() as client:
        with_length = await client.post(
            CHAT, content=body(), headers={"content-length": str(100 * len(piece))}
        )
        chunked = await client.post(CHAT, content=body())
        assert (await client.get("/healthz")).status_code == 200
    for answer in (with_length, chunked):
        assert answer.status_code == 413
        assert "64 MiB" in answer.json()["error"]["message"]
    assert fake.requests == []


def exchange_with(mebibytes: int) -> _exchange.Exchange:
    """A request with a body of so many pieces."""
    left = mebibytes

    async def receive() -> Message:
        nonlocal left
        left -= 1
        return {"type": "http.request", "body": bytes(2**20), "more_body": left > 0}

    async def send(_: Message) -> None:
        raise AssertionError

    scope: dict[str, object] = {"type": "http", "method": "POST", "raw_path": b"/"}
    scope |= {"query_string": b"", "headers": []}
    return _exchange.Exchange(scope, receive, send)


@pytest.mark.parametrize(
    ("mebibytes", "keep", "status", "held"),
    [(64, True, None, 64), (64, False, None, 0), (65, True, 413, 0), (200, False, 413, 0)],
)
async def test_no_more_of_a_body_is_held_than_is_wanted_and_allowed(
    mebibytes: int, keep: bool, status: int | None, held: int
) -> None:
    exchange = exchange_with(mebibytes)
    tracemalloc.start()
    try:
        refusal = await exchange.read_body(keep=keep)
        now, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (None if refusal is None else refusal.status) == status
    assert len(exchange.body) == held * 2**20
    assert now < (held + 1) * 2**20
    assert most < (2 * 64 + 1 if keep else 3) * 2**20


async def test_a_body_without_an_end_is_not_read_for_ever() -> None:
    refusal = await exchange_with(10**9).read_body()
    assert refusal is not None
    assert refusal.status == 413


async def test_a_head_that_does_not_come_to_its_end_ends_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_connections, "HEAD_SECONDS", 0.1)
    async with open_front(FakeGateway()) as front, connected(front) as stream:
        await stream.send_all(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127")
        assert await read_all(stream) == b""


@pytest.mark.parametrize("token", ["right", "wrong"])
async def test_a_body_that_does_not_come_to_its_end_is_refused(
    token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_exchange, "BODY_SECONDS", 0.1)
    async with open_front(FakeGateway()) as front, connected(front) as stream:
        wrong = ["Authorization: Bearer x"] if token == "wrong" else []
        request = head(front, "Content-Length: 100", *wrong) + b"{"
        await stream.send_all(request.replace(front.token.encode(), b"x") if wrong else request)
        answer = await read_all(stream)
    assert answer.startswith(b"HTTP/1.1 401 " if token == "wrong" else b"HTTP/1.1 408 ")


async def test_a_body_that_comes_for_ever_is_refused_and_its_connection_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_exchange, "BODY_SECONDS", 0.1)
    async with open_front(FakeGateway()) as front, connected(front) as stream:
        await stream.send_all(head(front, "Content-Length: 1000000000"))
        with trio.fail_after(30), pytest.raises(trio.BrokenResourceError):
            while True:
                await stream.send_all(bytes(2**20))
    assert " 408 " in front.log[-1]


async def test_a_head_that_is_too_large_is_refused() -> None:
    async with open_front(FakeGateway()) as front, connected(front) as stream:
        await stream.send_all(head(front, f"X-Large: {'x' * 200_000}"))
        assert (await read_all(stream)).startswith(b"HTTP/1.1 431 ")


BAD_UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade, http2-settings\r\n"
    b"Upgrade: h2c\r\nHTTP2-Settings: AAAA\r\n\r\n"
)


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"HTTP/1.1 400 "),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"HTTP/1.1 400 "),
        (b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 400 "),
        (b"GET / HTTP/1.0\r\n\r\n", b"HTTP/1.1 421 "),
        (b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 400 "),
        (b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n", b"HTTP/1.1 421 "),
        (b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n", b"HTTP/1.1 421 "),
        # Hypercorn fails at these settings; nobody else is to notice.
        (BAD_UPGRADE, b"HTTP/1.1 101 "),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"x" * 100, b""),
    ],
)  # fmt: skip
async def test_whatever_comes_ends_no_other_s_connection(request_: bytes, answer: bytes) -> None:
    fake = FakeGateway()
    async with open_front(fake) as front:
        async with connected(front) as stream:
            await stream.send_all(request_)
            with trio.move_on_after(10):
                assert (await stream.receive_some()).startswith(answer)
        async with front.client() as client:
            assert (await client.post(CHAT, json=BODY)).status_code == 200
    assert not any("internal" in line for line in front.log)


async def test_a_websocket_is_refused() -> None:
    async with open_front(FakeGateway()) as front, connected(front) as stream:
        await stream.send_all(
            head(
                front,
                "Connection: Upgrade",
                "Upgrade: websocket",
                "Sec-WebSocket-Version: 13",
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
                method="GET",
                path="/v1/responses",
            )
        )
        assert (await read_all(stream)).startswith(b"HTTP/1.1 403 ")


async def test_http_2_is_refused() -> None:
    async with open_front(FakeGateway()) as front:
        curl = ["curl", "-s", "--http2-prior-knowledge", f"{front.proxy.url}/healthz"]
        done = await trio.run_process(curl, capture_stdout=True, check=False)
    assert b"HTTP/1.1" in done.stdout


async def test_a_bug_of_the_proxy_s_is_one_line_and_no_answer_looks_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fail(*_: object) -> None:
        raise ZeroDivisionError("with a secret in it")

    async with open_front(FakeGateway()) as front, front.client() as client:
        with monkeypatch.context() as patch:
            patch.setattr(_forwarding.Forwarding, "_relay", fail)
            answer = await client.post(CHAT, json=BODY)
        with monkeypatch.context() as patch:
            patch.setattr(_metrics.Metrics, "forwarded", fail_at_once)
            with pytest.raises(httpx.RemoteProtocolError):
                await client.post(CHAT, json=BODY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    first, second = front.log
    assert re.search(r" 500 .* internal error: ZeroDivisionError at test_clients.py:\d+$", first)
    assert re.search(r" 200 .* internal error: ZeroDivisionError at test_clients.py:\d+$", second)
    assert "secret" not in first + second


def fail_at_once(*_: object) -> None:
    raise ZeroDivisionError("with a secret in it")


# The end


async def test_a_stream_that_is_open_may_end_when_the_proxy_is_left() -> None:
    fake = FakeGateway(tokens=10, token_interval=0.02)
    async with trio.open_nursery() as nursery:
        async with open_front(fake) as front:
            body: list[bytes] = []
            first = trio.Event()

            async def read() -> None:
                async with (
                    front.client() as client,
                    client.stream("POST", CHAT, json=BODY) as response,
                ):
                    async for piece in response.aiter_raw():
                        body.append(piece)
                        first.set()

            nursery.start_soon(read)
            await first.wait()
        with pytest.raises(OSError, match=r"refused|failed"):
            await trio.open_tcp_stream("127.0.0.1", front.port)
    assert body[-1].endswith(b"data: [DONE]\n\n")


async def test_a_connection_that_waits_for_a_request_does_not_keep_it_from_ending() -> None:
    async with open_front(FakeGateway()) as front:
        idle = await trio.open_tcp_stream("127.0.0.1", front.port)
        async with front.client() as client:
            await client.get("/healthz")
    with trio.fail_after(10):
        assert await idle.receive_some() == b""
    await idle.aclose()


async def test_the_page_s_event_stream_ends_at_once() -> None:
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery, open_front(FakeGateway()) as front:
            first = trio.Event()

            async def read() -> None:
                async with (
                    front.client() as client,
                    client.stream("GET", "/page/events") as response,
                ):
                    async for _ in response.aiter_raw():
                        first.set()

            nursery.start_soon(read)
            await first.wait()


async def test_told_to_end_now_it_waits_for_no_stream() -> None:
    fake = Stalling(token=3)
    with trio.fail_after(10):
        async with open_front(fake) as front, connected(front) as stream:
            await stream.send_all(ask_in_bytes(front, STREAM))
            await fake.asked.wait()
            front.proxy.end_now()


async def test_nor_for_a_client_that_takes_nothing() -> None:
    fake = FakeGateway(answer=large)
    with trio.fail_after(10):
        async with open_front(fake) as front:
            stream = await trio.open_tcp_stream("127.0.0.1", front.port)
            await stream.send_all(ask_in_bytes(front, STREAM))
            await wait_all_tasks_blocked(0.1)
            assert front.proxy.open_requests == 1
            front.proxy.end_now()
    await stream.aclose()


async def test_a_failure_of_the_block_s_own_comes_out_as_it_is() -> None:
    fake = Stalling(token=3)
    with trio.fail_after(10), pytest.raises(ZeroDivisionError):
        async with open_front(fake) as front, connected(front) as stream:
            await stream.send_all(ask_in_bytes(front, STREAM))
            await fake.asked.wait()
            raise ZeroDivisionError


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", ""])
def test_it_listens_to_this_machine_alone(host: str) -> None:
    with pytest.raises(ValueError, match="no loopback address"):
        loopback_address(host)
