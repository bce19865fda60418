"""The refresh callable that is the gateway's own sign-in."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import httpx
import pytest
import trio
import trio.testing

from gz_trio import GatewayRefresh, testing
from gz_trio._protocol.errors import (
    APIConnectionError,
    AuthenticationError,
    GatewayError,
    PermissionDeniedError,
    RateLimitError,
    RefreshError,
)
from gz_trio._protocol.keys import Key
from gz_trio._protocol.refresh import (
    RefreshFailure,
    RefreshOutcomeUnknown,
    classify_refresh_failure,
)
from gz_trio.testing._memory import memory_client
from tests.auth.quoting import assert_quotes_nothing

posix = pytest.mark.skipif(os.name != "posix", reason="signals, FIFOs and modes are POSIX's")

REJECTED = Key("sk-rejected", generation=3, epoch=1)


# The gateway's sign-in

TOKEN = "jwt-secret-token"
BASE_URL = "https://gateway.test/v1"

Handler = Callable[[httpx.Request], httpx.Response]


def answering(answer: Handler | httpx.Response) -> GatewayRefresh:
    """A refresh whose requests get `answer`."""

    def handle(request: httpx.Request) -> httpx.Response:
        return answer if isinstance(answer, httpx.Response) else answer(request)

    client = httpx.AsyncClient(
        transport=httpx.MockTransport(handle), follow_redirects=True, auth=("user", "password")
    )
    return GatewayRefresh(BASE_URL, token=TOKEN, http_client=client, now=lambda: 1_000_000.0)


async def failure_of(refresh: GatewayRefresh) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        await refresh(REJECTED)
    assert_quotes_nothing(caught.value, TOKEN)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert "gateway.test" in str(caught.value)
    return caught.value


def json_of(request: httpx.Request) -> object:
    return json.loads(request.content)


async def test_the_request_is_the_one_of_the_contract() -> None:
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"success": True, "api_key": "gw_live_1"})

    client = httpx.AsyncClient(transport=httpx.MockTransport(handle))
    refresh = GatewayRefresh(
        BASE_URL,
        token=TOKEN,
        user={"id": "did:1", "linked_accounts": [{"type": "email"}]},
        email="a@example.org",
        is_new_user=True,
        environment_tag="test",
        auto_create_api_key=False,
        http_client=client,
    )
    assert await refresh(REJECTED) == Key("gw_live_1")
    (request,) = seen
    assert (request.method, str(request.url)) == ("POST", "https://gateway.test/auth")
    assert request.headers["content-type"] == "application/json"
    assert "sk-rejected" not in f"{request.headers}{request.content!r}"
    assert json_of(request) == {
        "user": {"id": "did:1", "linked_accounts": [{"type": "email"}]},
        "token": TOKEN,
        "email": "a@example.org",
        "is_new_user": True,
        "environment_tag": "test",
        "auto_create_api_key": False,
    }


async def test_what_is_not_given_has_the_contracts_defaults() -> None:
    seen: list[object] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(json_of(request))
        return httpx.Response(200, json={"api_key": "gw_live_1"})

    await answering(handle)(None)
    assert seen == [
        {
            "user": {},
            "token": TOKEN,
            "email": None,
            "is_new_user": False,
            "environment_tag": "live",
            "auto_create_api_key": True,
        }
    ]


@pytest.mark.parametrize(
    ("base_url", "url"),
    [
        ("https://gateway.test/v1", "https://gateway.test/auth"),
        ("https://gateway.test/v1/", "https://gateway.test/auth"),
        ("https://gateway.test", "https://gateway.test/auth"),
        ("http://gateway.test:8000/proxy/v1", "http://gateway.test:8000/proxy/auth"),
        ("https://gateway.test/api/v2", "https://gateway.test/api/v2/auth"),
    ],
)
async def test_the_address_is_the_base_url_without_its_v1(base_url: str, url: str) -> None:
    seen: list[str] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(str(request.url))
        return httpx.Response(200, json={"api_key": "gw_live_1"})

    client = httpx.AsyncClient(transport=httpx.MockTransport(handle))
    await GatewayRefresh(base_url, token=TOKEN, http_client=client)(None)
    assert seen == [url]


@pytest.mark.parametrize(
    "base_url",
    [
        "",
        "gateway.test/v1",
        "ftp://gateway.test",
        "https:///v1",
        "https://gateway.test:port/v1",
        "https://user:hunter2@gateway.test/v1",
        "https://gateway.test/v1?key=hunter2",
    ],
)
def test_a_base_url_that_can_be_none_is_refused_at_once(base_url: str) -> None:
    with pytest.raises(ValueError, match="the base URL must") as caught:
        GatewayRefresh(base_url, token=TOKEN)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("token", ["", "  \n"])
async def test_a_blank_token_is_never_sent(token: str) -> None:
    with pytest.raises(ValueError, match="identity token is empty"):
        GatewayRefresh(BASE_URL, token=token)

    async def get_token() -> str:
        return token

    with pytest.raises(RefreshError, match="identity token is empty"):
        await GatewayRefresh(BASE_URL, token=get_token)(None)


async def test_a_token_that_is_no_text_is_not_quoted() -> None:
    with pytest.raises(RefreshError, match="sign in again") as caught:
        await GatewayRefresh(BASE_URL, token=TOKEN + "\ud800")(None)
    assert caught.value.__context__ is None


async def test_a_function_gives_a_current_token_for_each_exchange() -> None:
    tokens = iter(["jwt-1", "jwt-2"])
    seen: list[object] = []

    async def get_token() -> str:
        await trio.lowlevel.checkpoint()
        return next(tokens)

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(json.loads(request.content)["token"])
        return httpx.Response(200, json={"api_key": "gw_live_1"})

    client = httpx.AsyncClient(transport=httpx.MockTransport(handle))
    refresh = GatewayRefresh(BASE_URL, token=get_token, http_client=client)
    await refresh(None)
    await refresh(None)
    assert seen == ["jwt-1", "jwt-2"]


async def test_an_error_of_the_token_function_comes_out_as_it_is() -> None:
    error = AuthenticationError("signed out")

    async def get_token() -> str:
        raise error

    with pytest.raises(AuthenticationError) as caught:
        await GatewayRefresh(BASE_URL, token=get_token)(None)
    assert caught.value is error


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"api_key": None},
        {"api_key": ""},
        {"api_key": " \n"},
        {"api_key": 17},
        {"success": False, "message": "no key for jwt-secret-token", "api_key": None},
    ],
)
async def test_an_answer_without_a_key_is_a_failed_refresh(answer: dict[str, object]) -> None:
    error = await failure_of(answering(httpx.Response(200, json=answer)))
    assert type(error) is RefreshError
    assert "no API key" in str(error)
    assert classify_refresh_failure(error) is RefreshFailure.BROKEN


async def test_a_key_that_cannot_be_sent_is_a_failed_refresh_and_not_quoted() -> None:
    response = httpx.Response(200, json={"api_key": "sk-secret\nX-Evil: 1"})
    error = await failure_of(answering(response))
    assert type(error) is RefreshError
    assert_quotes_nothing(error, "sk-secret")


HTML = b"<html><body>jwt-secret-token</body></html>"
REFUSED, UNREACHABLE = RefreshFailure.REFUSED, RefreshFailure.UNREACHABLE
UNKNOWN, BROKEN = RefreshFailure.UNKNOWN, RefreshFailure.BROKEN


@pytest.mark.parametrize(
    ("status", "body", "kind", "failure"),
    [
        (401, b'{"detail": "Invalid jwt-secret-token"}', AuthenticationError, REFUSED),
        (401, HTML, AuthenticationError, REFUSED),
        (403, b'{"detail": "Forbidden"}', PermissionDeniedError, REFUSED),
        (403, HTML, APIConnectionError, UNREACHABLE),
        (403, b"", APIConnectionError, UNREACHABLE),
        (400, b'{"error": "invalid_grant"}', AuthenticationError, REFUSED),
        (400, b'{"error": "invalid_client"}', AuthenticationError, REFUSED),
        (400, b'{"error": "unauthorized_client"}', AuthenticationError, REFUSED),
        (400, b'{"error": "invalid_scope"}', AuthenticationError, REFUSED),
        (400, b'{"error": "unsupported_grant_type"}', AuthenticationError, REFUSED),
        (500, b'{"error": "invalid_grant"}', AuthenticationError, REFUSED),
        (200, b'{"error": "invalid_grant"}', AuthenticationError, REFUSED),
        (400, b'{"error": "invalid_request"}', RefreshError, BROKEN),
        (429, b'{"detail": "Slow down"}', RateLimitError, UNREACHABLE),
        (429, HTML, RateLimitError, UNREACHABLE),
        (503, b'{"detail": "Maintenance"}', APIConnectionError, UNREACHABLE),
        (503, HTML, APIConnectionError, UNREACHABLE),
        (408, HTML, RefreshOutcomeUnknown, UNKNOWN),
        (500, b'{"detail": "Internal"}', RefreshOutcomeUnknown, UNKNOWN),
        (502, HTML, RefreshOutcomeUnknown, UNKNOWN),
        (504, b"", RefreshOutcomeUnknown, UNKNOWN),
        (200, b"", RefreshOutcomeUnknown, UNKNOWN),
        (200, HTML, RefreshOutcomeUnknown, UNKNOWN),
        (200, b'{"api_key": "sk-secr', RefreshOutcomeUnknown, UNKNOWN),
        (200, b'["sk-secret"]', RefreshOutcomeUnknown, UNKNOWN),
        (302, b"", RefreshError, BROKEN),
        (404, HTML, RefreshError, BROKEN),
        (422, b'{"detail": [{"msg": "field required"}]}', RefreshError, BROKEN),
    ],
)
async def test_rule_6_what_an_answer_says_of_the_token(
    status: int, body: bytes, kind: type[GatewayError], failure: RefreshFailure
) -> None:
    headers = {"location": "https://gateway.test/elsewhere", "x-request-id": "req-1"}
    error = await failure_of(answering(httpx.Response(status, content=body, headers=headers)))
    assert type(error) is kind
    assert classify_refresh_failure(error) is failure
    assert error.status == status
    assert_quotes_nothing(error, "sk-secr")


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (429, {"retry-after": "7"}, 7.0),
        (503, {"retry-after-ms": "1500"}, 1.5),
        (503, {"retry-after": "Mon, 12 Jan 1970 13:46:45 GMT"}, 5.0),
        (403, {"retry-after": "2"}, 2.0),
        (429, {}, None),
    ],
)
async def test_how_long_to_wait_is_what_the_server_says(
    status: int, headers: dict[str, str], seconds: float | None
) -> None:
    error = await failure_of(answering(httpx.Response(status, headers=headers)))
    assert error.hints.retry_after == seconds


async def test_the_servers_own_words_are_in_the_body_and_the_request_has_its_name() -> None:
    response = httpx.Response(422, content=b"words", headers={"x-request-id": "req-1"})
    error = await failure_of(answering(response))
    assert (error.body, error.request_id) == (b"words", "req-1")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_never_followed(status: int) -> None:
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(status, headers={"location": "https://evil.test/"})

    error = await failure_of(answering(handle))
    assert len(seen) == 1
    assert "redirect" in str(error)
    assert "evil" not in str(error)


async def test_the_clients_own_credentials_are_not_sent() -> None:
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"api_key": "gw_live_1"})

    await answering(handle)(None)
    assert "authorization" not in seen[0].headers


@pytest.mark.parametrize(
    ("kind", "failure"),
    [
        (httpx.ConnectError, UNREACHABLE),
        (httpx.ConnectTimeout, UNREACHABLE),
        (httpx.PoolTimeout, UNREACHABLE),
        (httpx.ProxyError, UNREACHABLE),
        (httpx.ReadError, UNKNOWN),
        (httpx.ReadTimeout, UNKNOWN),
        (httpx.WriteError, UNKNOWN),
        (httpx.WriteTimeout, UNKNOWN),
        (httpx.CloseError, UNKNOWN),
        (httpx.RemoteProtocolError, UNKNOWN),
        (httpx.DecodingError, UNKNOWN),
        (httpx.LocalProtocolError, BROKEN),
    ],
)
async def test_rule_6_what_failed_before_the_first_byte_spent_nothing(
    kind: type[httpx.RequestError], failure: RefreshFailure
) -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        raise kind(f"the server said {TOKEN}", request=request)

    error = await failure_of(answering(handle))
    assert classify_refresh_failure(error) is failure
    assert ("took too long" in str(error)) == (kind in (httpx.ReadTimeout, httpx.WriteTimeout))


async def test_an_answer_without_end_is_not_read_to_the_end() -> None:
    class Endless(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            while True:
                await trio.lowlevel.checkpoint()
                yield b" " * 4096

    error = await failure_of(answering(httpx.Response(200, stream=Endless())))
    assert type(error) is RefreshOutcomeUnknown


async def test_a_bug_in_a_client_is_not_taken_for_an_answer() -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await answering(handle)(None)


def test_the_repr_of_a_gateway_refresh_shows_no_token() -> None:
    assert repr(GatewayRefresh(BASE_URL, token=TOKEN)) == "<GatewayRefresh https://gateway.test>"


# The gateway's sign-in, over a connection


@pytest.fixture
def sign_in(
    fake_gateway: testing.FakeGateway, fake_gateway_client: httpx.AsyncClient
) -> GatewayRefresh:
    return GatewayRefresh(fake_gateway.base_url, token=TOKEN, http_client=fake_gateway_client)


async def test_a_gateway_gives_its_new_key(
    fake_gateway: testing.FakeGateway, sign_in: GatewayRefresh
) -> None:
    fake_gateway.expire()
    key = await sign_in(REJECTED)
    assert key == Key(fake_gateway.key)
    assert fake_gateway.refreshes == 1


async def test_a_gateway_on_a_socket_is_reached_without_a_client_of_the_users(
    fake_gateway: testing.FakeGateway, fake_gateway_url: str
) -> None:
    refresh = GatewayRefresh(fake_gateway_url, token=TOKEN)
    assert await refresh(None) == Key(fake_gateway.key)
    with suppress(AuthenticationError):
        fake_gateway.refuse_refresh = True
        await refresh(None)
    assert fake_gateway.refreshes == 2


async def test_a_gateway_that_refuses_is_a_refusal(
    fake_gateway: testing.FakeGateway, sign_in: GatewayRefresh
) -> None:
    fake_gateway.refuse_refresh = True
    with pytest.raises(AuthenticationError, match="refuses the sign-in") as caught:
        await sign_in(REJECTED)
    assert classify_refresh_failure(caught.value) is REFUSED


async def test_a_gateway_that_takes_no_connection_has_spent_nothing(
    fake_gateway: testing.FakeGateway, sign_in: GatewayRefresh
) -> None:
    fake_gateway.refuse_connections = True
    with pytest.raises(APIConnectionError, match="no connection to"):
        await sign_in(REJECTED)


@pytest.mark.parametrize(
    "fault",
    [
        testing.Cut(),
        testing.Cut(after_bytes=10),
        testing.Reset(),
        testing.Reset(after_bytes=10),
        testing.Stall(),
    ],
)
async def test_a_gateway_that_breaks_off_leaves_the_outcome_unknown(
    fake_gateway: testing.FakeGateway,
    sign_in: GatewayRefresh,
    fault: testing.Fault,
    autojump_clock: trio.testing.MockClock,
) -> None:
    fake_gateway.fault(fault, path="/auth")
    with pytest.raises(RefreshOutcomeUnknown) as caught:
        await sign_in(REJECTED)
    assert_quotes_nothing(caught.value, TOKEN)
    assert trio.current_time() == (60 if isinstance(fault, testing.Stall) else 0)


async def test_a_client_of_httpx2_serves_too(
    fake_gateway: testing.FakeGateway, autojump_clock: trio.testing.MockClock
) -> None:
    httpx2 = pytest.importorskip("httpx2")
    async with fake_gateway.http_client(httpx2) as client:
        refresh = GatewayRefresh(fake_gateway.base_url, token=TOKEN, http_client=client)
        assert await refresh(None) == Key(fake_gateway.key)
        fake_gateway.fault(testing.Cut(), path="/auth")
        with pytest.raises(RefreshOutcomeUnknown):
            await refresh(None)
        fake_gateway.fault(testing.Stall(), path="/auth")
        with pytest.raises(RefreshOutcomeUnknown, match="took too long"):
            await refresh(None)
        fake_gateway.refuse_connections = True
        with pytest.raises(APIConnectionError):
            await refresh(None)


@pytest.mark.parametrize(("latency", "kept"), [(39.0, True), (41.0, False)])
async def test_rule_7_an_exchange_that_was_sent_may_finish_for_10_seconds(
    fake_gateway: testing.FakeGateway,
    sign_in: GatewayRefresh,
    autojump_clock: trio.testing.MockClock,
    latency: float,
    kept: bool,
) -> None:
    fake_gateway.auth_latency = latency
    key = None
    with trio.move_on_after(30) as scope:
        key = await sign_in(REJECTED)
        await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert key == (Key(fake_gateway.key) if kept else None)
    assert trio.current_time() == min(latency, 40)


async def test_rule_7_the_end_of_a_connection_of_its_own_does_not_cost_the_key() -> None:
    kept: list[Key] = []
    scope = trio.CancelScope()

    async def answer(stream: trio.SocketStream) -> None:
        request = b""
        while TOKEN.encode() not in request:
            request += await stream.receive_some()
        scope.cancel()
        await stream.send_all(
            b'HTTP/1.1 200 OK\r\nContent-Length: 22\r\n\r\n{"api_key": "sk-paid"}'
        )

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, answer, listeners)
        port = listeners[0].socket.getsockname()[1]
        with trio.fail_after(20), scope:
            kept.append(await GatewayRefresh(f"http://127.0.0.1:{port}", token=TOKEN)(REJECTED))
        nursery.cancel_scope.cancel()
    assert kept == [Key("sk-paid")]


async def test_rule_7_an_exchange_that_was_not_sent_ends_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def connect() -> trio.abc.Stream:
        await trio.sleep_forever()

    client = memory_client(httpx, "http://gateway.test", "gateway.test", connect)
    refresh = GatewayRefresh("http://gateway.test", token=TOKEN, http_client=client)
    with trio.move_on_after(5) as scope:
        await refresh(REJECTED)
    assert scope.cancelled_caught
    assert trio.current_time() == 5
    await client.aclose()


async def test_a_cancellation_between_connection_and_request_sends_nothing(
    fake_gateway: testing.FakeGateway, autojump_clock: trio.testing.MockClock
) -> None:
    scope = trio.CancelScope()
    async with fake_gateway.connect() as stream:

        async def connect() -> trio.abc.Stream:
            scope.cancel()
            return stream

        client = memory_client(httpx, "http://gateway.test", "gateway.test", connect)
        refresh = GatewayRefresh("http://gateway.test", token=TOKEN, http_client=client)
        with scope:
            await refresh(REJECTED)
        assert scope.cancelled_caught
        assert trio.current_time() == 0
        await client.aclose()
    assert fake_gateway.requests == []
