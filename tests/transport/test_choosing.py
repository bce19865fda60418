"""By which way requests go: the library's own, or an httpx client's, and through what proxy."""

from __future__ import annotations

import os
import ssl
import sys
import traceback
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import httpx
import httpx2
import pytest
import trio

import gz_trio
import gz_trio._transport.choosing
from gz_trio import APIConnectionError, ProtocolError
from gz_trio._transport.choosing import goes_by_proxy, open_transport
from gz_trio._transport.httpx import HttpxTransport, open_httpx_transport
from gz_trio._transport.interface import Transport
from gz_trio._transport.pool import Pool
from gz_trio.testing import FakeGateway
from tests.transport.test_tls import authority, client_context, with_certificate


@pytest.fixture(autouse=True)
def as_users_have_it(transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the ways of the tests, nor the proxies of this machine."""
    monkeypatch.setattr(gz_trio._transport.choosing, "open_httpx_transport", open_httpx_transport)
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


PROXY = "http://proxy.test:3128"


@pytest.mark.parametrize(
    ("environment", "url", "expected"),
    [
        ({}, "http://gateway.test/v1", False),
        ({}, "https://gateway.test/v1", False),
        ({"HTTP_PROXY": PROXY}, "http://gateway.test/v1", True),
        ({"HTTP_PROXY": PROXY}, "https://gateway.test/v1", False),
        ({"HTTPS_PROXY": PROXY}, "https://gateway.test/v1", True),
        ({"HTTPS_PROXY": PROXY}, "http://gateway.test/v1", False),
        ({"https_proxy": PROXY}, "https://gateway.test/v1", True),
        ({"HTTPS_PROXY": ""}, "https://gateway.test/v1", False),
        ({"ALL_PROXY": PROXY}, "http://gateway.test/v1", True),
        ({"ALL_PROXY": PROXY}, "https://gateway.test/v1", True),
        ({"all_proxy": PROXY}, "https://gateway.test/v1", True),
        ({"FTP_PROXY": PROXY}, "https://gateway.test/v1", False),
        ({"NO_PROXY": "gateway.test"}, "https://gateway.test/v1", False),
        ({"ALL_PROXY": PROXY, "NO_PROXY": "gateway.test"}, "https://gateway.test/v1", False),
        ({"ALL_PROXY": PROXY, "NO_PROXY": "gateway.test"}, "https://gateway.test:8443/", False),
        ({"ALL_PROXY": PROXY, "no_proxy": ".test"}, "https://gateway.test/v1", False),
        ({"ALL_PROXY": PROXY, "no_proxy": "a.test, test"}, "https://gateway.test/v1", False),
        ({"ALL_PROXY": PROXY, "NO_PROXY": "other.test"}, "https://gateway.test/v1", True),
        ({"ALL_PROXY": PROXY, "NO_PROXY": "way.test"}, "https://gateway.test/v1", True),
        ({"ALL_PROXY": PROXY, "NO_PROXY": "*"}, "https://gateway.test/v1", False),
        ({"ALL_PROXY": PROXY, "NO_PROXY": "127.0.0.1"}, "http://127.0.0.1:8000/v1", False),
        ({"ALL_PROXY": PROXY}, "http://127.0.0.1:8000/v1", True),
    ],
)
def test_the_environment_says_what_goes_by_a_proxy(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], url: str, expected: bool
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert goes_by_proxy(url) is expected


async def class_of(opening: AbstractAsyncContextManager[Transport]) -> type:
    async with opening as transport:
        return type(transport)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_by_default_requests_go_by_the_pool(scheme: str) -> None:
    assert await class_of(open_transport(f"{scheme}://gateway.test/v1", None, None)) is Pool


async def test_a_proxy_in_the_environment_makes_them_go_the_httpx_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", PROXY)
    assert await class_of(open_transport("https://gateway.test/", None, None)) is HttpxTransport
    assert await class_of(open_transport("http://gateway.test/", None, None)) is Pool


async def test_a_client_of_the_user_s_is_used_and_left_open() -> None:
    for client in (httpx.AsyncClient(), httpx2.AsyncClient()):
        async with client:
            opening = open_transport("https://gateway.test/", client, None)  # type: ignore[arg-type]
            assert await class_of(opening) is HttpxTransport
            assert not client.is_closed


async def test_a_client_and_a_context_cannot_both_be_given() -> None:
    async with httpx.AsyncClient() as client:
        with pytest.raises(ValueError, match="give ssl_context to the http_client"):
            open_transport("https://gateway.test/", client, client_context())
        with pytest.raises(ValueError, match="give ssl_context to the http_client"):
            async with gz_trio.open_gateway(
                "https://gateway.test/v1", "sk-1", http_client=client, ssl_context=client_context()
            ):
                pass


@pytest.mark.parametrize("url", ["gateway.test/v1", "ftp://gateway.test/v1", ""])
def test_a_url_that_is_none_goes_no_way(url: str) -> None:
    with pytest.raises(ProtocolError, match="only URLs with http:// or https://"):
        open_transport(url, None, None)


# Through real ones


class Proxy:
    """A forward proxy (RFC 9110 sections 7.7 and 9.3.6): CONNECT, and requests in absolute form."""

    def __init__(self) -> None:
        self.url = ""
        self.heads: list[bytes] = []

    async def _serve(self, client: trio.SocketStream) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = await client.receive_some(1)
            if not byte:
                return
            head += byte
        self.heads.append(head)
        line, _, fields = head.partition(b"\r\n")
        method, target, version = line.split(b" ")
        if method == b"CONNECT":
            host, _, port = target.decode().rpartition(":")
            first = b""
        else:
            url = httpx.URL(target.decode())
            host, port = url.host, str(url.port or 80)
            first = b" ".join((method, url.raw_path, version)) + b"\r\n" + fields
        server = await trio.open_tcp_stream(host, int(port))
        await server.send_all(first)
        if method == b"CONNECT":
            await client.send_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._relay, client, server)
            await self._relay(server, client)
            nursery.cancel_scope.cancel()
        await trio.aclose_forcefully(server)

    async def _relay(self, source: trio.SocketStream, target: trio.SocketStream) -> None:
        try:
            while data := await source.receive_some():
                await target.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    @asynccontextmanager
    async def listen(self) -> AsyncGenerator[str]:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self._serve, [listener])
            yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def tls_gateway(fake: FakeGateway) -> AsyncGenerator[str]:
    """The fake gateway with a certificate of a private authority: its base URL."""
    certificate = authority.issue_cert("localhost").private_key_and_cert_chain_pem
    context = with_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), certificate)

    async def serve(stream: trio.SSLStream[trio.SocketStream]) -> None:
        try:
            await fake.serve_stream(stream)
        except trio.BrokenResourceError:
            await trio.aclose_forcefully(stream)

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [trio.SSLListener(listener, context)])
        yield f"https://localhost:{listener.socket.getsockname()[1]}/v1"
        nursery.cancel_scope.cancel()


async def ask(
    base_url: str,
    key: str,
    *,
    http_client: httpx.AsyncClient | None = None,
    ssl_context: ssl.SSLContext | None = None,
) -> str:
    async with (
        gz_trio.open_gateway(
            base_url,
            key,
            retry=gz_trio.RetryPolicy(max_retries=0),
            http_client=http_client,
            ssl_context=ssl_context,
        ) as gateway,
        gateway.open_session("fake-model") as session,
    ):
        return await session.ask("Tell me a story.")


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
async def test_a_reply_comes_through_a_proxy_in_absolute_form(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    fake, proxy = FakeGateway(), Proxy()
    async with proxy.listen() as proxy_url, fake.listen() as base_url:
        monkeypatch.setenv(variable, proxy_url)
        assert await ask(base_url, fake.key)
    (head,) = proxy.heads
    assert head.startswith(f"POST {base_url}/chat/completions HTTP/1.1\r\n".encode())


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "ALL_PROXY"])
async def test_a_reply_comes_through_a_tunnel_and_the_proxy_sees_no_key(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    fake, proxy = FakeGateway(), Proxy()
    async with proxy.listen() as proxy_url, tls_gateway(fake) as base_url:
        monkeypatch.setenv(variable, proxy_url)
        assert await ask(base_url, fake.key, ssl_context=client_context())
        (head,) = proxy.heads
        assert head.startswith(f"CONNECT {httpx.URL(base_url).netloc.decode()} HTTP/".encode())
        assert fake.key.encode() not in head
        # Nor is the gateway trusted because a proxy leads to it.
        with pytest.raises(APIConnectionError):
            await ask(base_url, fake.key)


async def test_what_needs_no_proxy_goes_past_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, proxy = FakeGateway(), Proxy()
    async with proxy.listen() as proxy_url, fake.listen() as base_url:
        monkeypatch.setenv("ALL_PROXY", proxy_url)
        monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
        assert await ask(base_url, fake.key)
    assert proxy.heads == []


async def test_a_proxy_that_is_down_is_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeGateway()
    async with Proxy().listen() as proxy_url:
        pass
    async with fake.listen() as base_url:
        monkeypatch.setenv("HTTP_PROXY", proxy_url)
        with pytest.raises(APIConnectionError, match="no connection to http://127"):
            await ask(base_url, fake.key)


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
async def test_a_proxy_that_needs_what_is_not_installed_is_told_when_the_gateway_is_opened(
    monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", f"{scheme}://user:word@proxy.test:1080")
    monkeypatch.setitem(sys.modules, "socksio", None)
    with pytest.raises(ValueError, match=r"pip install 'httpx\[socks\]'") as caught:
        async with gz_trio.open_gateway("https://gateway.test/v1", "sk-1"):
            pass
    assert "word" not in "".join(traceback.format_exception(caught.value))


async def test_a_client_of_the_user_s_gets_the_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its own hooks, say; and its own proxy, not the environment's."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    fake, proxy = FakeGateway(), Proxy()
    seen: list[str] = []

    async def hook(request: httpx.Request) -> None:
        seen.append(str(request.url))

    async with (
        proxy.listen() as proxy_url,
        fake.listen() as base_url,
        httpx.AsyncClient(
            proxy=proxy_url, trust_env=False, event_hooks={"request": [hook]}
        ) as client,
    ):
        assert await ask(base_url, fake.key, http_client=client)
    assert seen == [f"{base_url}/chat/completions"]
    assert len(proxy.heads) == 1
