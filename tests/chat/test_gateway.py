"""A gateway and its sessions: what is sent, to whom, and what is refused before it is."""

from __future__ import annotations

import json
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import cast

import httpx
import pytest
import trio
from trio.testing import MockClock

from gz_trio import (
    BadRequestError,
    GatewayError,
    Key,
    Timeouts,
    open_gateway,
    open_session,
)
from gz_trio._chat.requests import KeyHeader
from gz_trio.testing import Cut, FakeGateway
from tests.chats import BODY, open_over, tell

KEY = "gw_live_secret"
ANSWER = (
    b'data: {"choices":[{"delta":{"content":"Hi"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
)


@dataclass
class Recorder(httpx.AsyncBaseTransport):
    """An httpx transport that keeps the requests, headers as sent, and answers them."""

    status: int = 200
    location: str = ""
    requests: list[httpx.Request] = field(default_factory=list[httpx.Request])

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await trio.lowlevel.checkpoint()
        self.requests.append(request)
        headers = {"content-type": "text/event-stream"}
        if self.location:
            headers["location"] = self.location
        return httpx.Response(self.status, headers=headers, content=ANSWER)

    @property
    def sent(self) -> list[tuple[str, str]]:
        """The headers of the one request, names in lower case."""
        (request,) = self.requests
        return [(name.lower(), value) for name, value in request.headers.multi_items()]


@pytest.mark.parametrize(
    ("key_header", "expected"),
    [
        ("Authorization", ("authorization", f"Bearer {KEY}")),
        ("authorization", ("authorization", f"Bearer {KEY}")),
        ("x-api-key", ("x-api-key", KEY)),
        ("api-key", ("api-key", KEY)),
    ],
)
async def test_the_key_goes_into_one_header_and_no_other_key_header_is_sent(
    key_header: KeyHeader, expected: tuple[str, str]
) -> None:
    foreign = {"AUTHORIZATION": "Bearer of-the-users", "X-Api-Key": "of-the-users", "Api-Key": "x"}
    recorder = Recorder()
    async with (
        httpx.AsyncClient(
            transport=recorder, headers=foreign, auth=("user", "password"), follow_redirects=True
        ) as client,
        open_gateway(
            FakeGateway.base_url, KEY, headers=foreign, key_header=key_header, http_client=client
        ) as gateway,
    ):
        assert (await tell(gateway)).text == "Hi"
    names = {"authorization", "x-api-key", "api-key"}
    assert [header for header in recorder.sent if header[0] in names] == [expected]


async def test_the_users_headers_are_sent_and_ours_are_sent_once() -> None:
    recorder = Recorder()
    headers = {"X-Title": "My app", "content-type": "text/plain", "accept": "text/html"}
    async with (
        httpx.AsyncClient(transport=recorder) as client,
        open_gateway(FakeGateway.base_url, KEY, headers=headers, http_client=client) as gateway,
    ):
        await tell(gateway)
    sent = recorder.sent
    assert ("x-title", "My app") in sent
    assert [v for n, v in sent if n == "content-type"] == ["application/json"]
    assert [v for n, v in sent if n == "accept"] == ["text/event-stream"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed_with_the_key(status: int) -> None:
    recorder = Recorder(status=status, location="https://elsewhere.test/v1/chat/completions")
    async with (
        httpx.AsyncClient(transport=recorder, follow_redirects=True) as client,
        open_gateway(FakeGateway.base_url, KEY, http_client=client) as gateway,
    ):
        told = await tell(gateway)
    assert isinstance(told.error, BadRequestError)
    assert "redirect" in str(told.error)
    assert [str(request.url.host) for request in recorder.requests] == ["gateway.test"]


async def test_the_body_is_sent_as_it_is_but_streamed(autojump_clock: MockClock) -> None:
    fake = FakeGateway()
    body = {**BODY, "stream": False, "temperature": 0.5, "logit_bias": {"50256": -100}}
    async with open_over(fake) as gateway:
        await tell(gateway, body)
    assert fake.requests[0].body == {**body, "stream": True}
    assert body["stream"] is False


async def test_a_body_that_json_cannot_hold_is_a_type_error(autojump_clock: MockClock) -> None:
    async with open_over(FakeGateway()) as gateway:
        with pytest.raises(TypeError):
            async with gateway.stream({"model": object()}):
                pass


@pytest.mark.parametrize("base_url", [FakeGateway.base_url, FakeGateway.base_url + "/"])
async def test_a_slash_at_the_end_of_the_base_url_makes_no_difference(base_url: str) -> None:
    recorder = Recorder()
    async with (
        httpx.AsyncClient(transport=recorder) as client,
        open_gateway(base_url, KEY, http_client=client) as gateway,
    ):
        await tell(gateway)
    assert str(recorder.requests[0].url) == "http://gateway.test/v1/chat/completions"


@pytest.mark.parametrize(
    ("of_gateway", "of_stream", "connect"),
    [
        (None, None, 10.0),
        (Timeouts(connect=3.0), None, 3.0),
        (Timeouts(connect=3.0), Timeouts(connect=2.0), 2.0),
    ],
)
async def test_a_streams_own_timeouts_come_before_the_gateways(
    of_gateway: Timeouts | None, of_stream: Timeouts | None, connect: float
) -> None:
    recorder = Recorder()
    async with (
        httpx.AsyncClient(transport=recorder, timeout=99) as client,
        open_gateway(
            FakeGateway.base_url,
            KEY,
            http_client=client,
            timeouts=of_gateway,
        ) as gateway,
        gateway.stream(BODY, timeouts=of_stream) as reply,
    ):
        async for _ in reply:
            pass
    # Ours are the only others: the client's are not used.
    timeout = recorder.requests[0].extensions["timeout"]
    assert timeout == {"connect": connect, "read": None, "write": None, "pool": None}


# Bad input


@pytest.mark.parametrize(
    ("base_url", "words"),
    [
        ("api.gatewayz.ai/v1", "must begin with https:// or http://"),
        ("", "must begin with https:// or http://"),
        ("ftp://api.gatewayz.ai", "must begin with https:// or http://"),
        ("http://[x", "must begin with https:// or http://"),
        ("https://", "name a host"),
        ("//api.gatewayz.ai", "must begin with https:// or http://"),
        (f"https://user:{KEY}@api.gatewayz.ai/v1", "give the key apart"),
        (f"https://{KEY}@api.gatewayz.ai/v1", "give the key apart"),
        (f"user:{KEY}@api.gatewayz.ai/v1", "must begin with"),
        (f"ftp://{KEY}@api.gatewayz.ai/v1", "must begin with"),
        (f"https://api.gatewayz.ai/v1?key={KEY}", "query"),
        (f"api.gatewayz.ai/v1?key={KEY}", "must begin with"),
        (f"https://api.gatewayz.ai/v1#{KEY}", "fragment"),
        ("https://api.gatewayz.ai:port/v1", "is no URL"),
        ("https://api.gatewayz.ai:65536/v1", "is no URL: ports are 1 to 65535"),
        ("https://api.gatewayz.ai:0/v1", "is no URL: ports are 1 to 65535"),
    ],
)
async def test_a_bad_base_url_is_a_clear_error_that_shows_no_key(base_url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        async with open_session(base_url, model="m", key="sk-1"):
            pass
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("key", ["", " ", "\t\n", f"{KEY}\n", f"{KEY}\r\nX: y", f" {KEY}", "gw_ß"])
@pytest.mark.parametrize("door", ["open_session", "open_gateway"])
async def test_a_key_that_can_be_none_is_a_clear_error_that_does_not_show_it(
    key: str, door: str
) -> None:
    opened: AbstractAsyncContextManager[object] = (
        open_session(FakeGateway.base_url, model="m", key=key)
        if door == "open_session"
        else open_gateway(FakeGateway.base_url, key)
    )
    with pytest.raises(ValueError, match="the API key") as caught:
        async with opened:
            pass
    assert KEY not in str(caught.value)
    assert "gw_ß" not in str(caught.value)


async def test_a_key_header_that_is_none_is_a_clear_error() -> None:
    bad = cast("KeyHeader", "X-Key")
    with pytest.raises(ValueError, match="Authorization, x-api-key or api-key"):
        async with open_gateway(FakeGateway.base_url, KEY, key_header=bad):
            pass


async def refresh(_: Key | None) -> str:
    return KEY


async def test_something_that_is_no_httpx_client_is_a_type_error() -> None:
    client = cast("httpx.AsyncClient", object())
    with pytest.raises(TypeError, match=r"httpx\.AsyncClient"):
        async with open_gateway(FakeGateway.base_url, KEY, http_client=client):
            pass


# Sessions


async def test_the_messages_given_to_a_session_are_not_changed(autojump_clock: MockClock) -> None:
    given: list[dict[str, object]] = []
    async with (
        open_over(FakeGateway()) as gateway,
        gateway.open_session("fake-model", messages=given) as session,
    ):
        await session.ask("Hello")
    assert given == []


async def test_ask_raises_what_a_reply_raises_with_the_text_so_far(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway()
    fake.fault(Cut(), token=3, times=None)
    async with open_over(fake) as gateway, gateway.open_session("fake-model") as session:
        with pytest.raises(GatewayError) as caught:
            await session.ask("Hello")
    assert caught.value.partial
    assert fake.intended(fake.requests[0].body or {}).startswith(caught.value.partial)


async def test_what_gateways_and_sessions_show_of_themselves() -> None:
    async with (
        open_gateway("https://api.gatewayz.ai/v1", KEY) as gateway,
        gateway.open_session("m") as session,
    ):
        assert repr(gateway) == "<Gateway https://api.gatewayz.ai/v1>"
        assert repr(session) == "<Session model='m', 0 messages>"
        assert repr(session.authenticator) == "<Authenticator authenticated>"
        assert session.authenticator is gateway.authenticator


async def test_the_ten_lines_of_the_readme_work_over_tcp() -> None:
    fake = FakeGateway(key="sk-2")
    async with (
        fake.listen() as base_url,
        open_session(base_url, model="fake-model", key="sk-1", refresh=fake.refresh) as session,
    ):
        async with session.stream("Tell me a story.") as reply:
            text = "".join([delta.text async for delta in reply])
        assert text == fake.intended({"messages": session.messages[:1]})
        assert json.dumps(reply.message)
    assert (fake.refreshes, fake.rejected) == (1, 1)
