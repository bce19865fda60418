"""`Gateway.http_client`: what a client of httpx or httpx2 gets, and what the gateway gets of it."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import httpx
import httpx2
import pytest
import trio
from trio.testing import MockClock

from gz_trio import (
    AuthenticationError,
    Gateway,
    RetryPolicy,
    StreamInterrupted,
    StreamTimeout,
    Timeouts,
    open_gateway,
)
from gz_trio.testing import Comment, Cut, FakeGateway, Insert, Stall, Status
from tests.chats import BODY, open_over

STREAMED = {**BODY, "stream": True}


async def lines(client: httpx.AsyncClient) -> list[str]:
    # Not by `aiter_lines`, which takes U+2028 in a text for the end of a line.
    return (await client.post("/chat/completions", json=STREAMED)).text.split("\n")


def text_in(stream: list[str]) -> str:
    data = [line.removeprefix("data: ") for line in stream if line.startswith("data: {")]
    choices = [choice for event in data for choice in json.loads(event)["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


@pytest.mark.parametrize("module", [httpx, httpx2])
async def test_it_is_a_client_of_the_module_that_is_named(
    module: Any, autojump_clock: MockClock
) -> None:
    fake = FakeGateway()
    async with open_over(fake, key="dead") as gateway:
        client = gateway.http_client(module)
        assert isinstance(client, module.AsyncClient)
        assert str(client.base_url) == f"{fake.base_url}/"
        assert text_in(await lines(client)) == fake.intended(BODY)
        for elsewhere in ("http://elsewhere.test/v1", "https://gateway.test/v1", "ftp://a.test"):
            with pytest.raises(module.UnsupportedProtocol):
                await client.get(elsewhere)
    assert fake.refreshes == 1


async def test_what_is_read_are_events_and_nothing_but_events(autojump_clock: MockClock) -> None:
    fake = FakeGateway(tokens=3, event_ids=True)
    fake.fault(Comment("PROCESSING"), token=1)
    fake.fault(Insert(b"retry: 5\n\ndata: \n\nid: x\n\n"), token=1)
    fake.fault(Insert(b'event: odd\ndata: {"a":\ndata: 1}\n\n'), token=2)
    async with (
        open_over(fake) as gateway,
        gateway.http_client().stream("POST", "/chat/completions", json=STREAMED) as response,
    ):
        pieces = [piece async for piece in response.aiter_raw()]
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-request-id"]
    assert all(piece.endswith(b"\n\n") and piece.count(b"\n\n") == 1 for piece in pieces)
    assert b'event: odd\ndata: {"a":\ndata: 1}\n\n' in pieces
    assert pieces[-1] == b"data: [DONE]\n\n"
    rest = [piece for piece in pieces if b"odd" not in piece]
    assert all(piece.startswith(b"data: ") for piece in rest)


async def test_the_data_of_the_events_is_the_gateways_byte_by_byte(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(tokens=8)
    async with open_over(fake) as gateway, fake.http_client() as direct:
        ours = await lines(gateway.http_client())
        direct.headers["authorization"] = f"Bearer {fake.key}"
        theirs = await lines(direct)

    def of_any_answer(stream: list[str]) -> list[str]:
        """Without what differs from one answer to the next."""
        ids = {json.loads(line[6:])["id"] for line in stream if line.startswith("data: {")}
        (only,) = ids
        return [line.replace(only, "chatcmpl") for line in stream if line]

    assert of_any_answer(ours) == of_any_answer(theirs)


async def test_no_key_of_the_callers_reaches_the_gateway_and_his_other_headers_do(
    autojump_clock: MockClock,
) -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"choices": [{"message": {"content": "Hi"}}]})

    async with (
        httpx.AsyncClient(transport=httpx.MockTransport(answer)) as inner,
        open_gateway(
            "https://gateway.test/v1",
            "sk-ours",
            http_client=inner,
            headers={"X-Title": "ours", "User-Agent": "gateway's"},
        ) as gateway,
    ):
        client = gateway.http_client()
        headers = {
            "Authorization": "Bearer sk-theirs",
            "X-Api-Key": "sk-theirs",
            "api-key": "sk-theirs",
            "user-agent": "caller's",
            "OpenAI-Beta": "x=1",
            "Connection": "close",
        }
        for body in (BODY, STREAMED):
            await client.post(
                "/chat/completions", json=body, headers=headers, params={"api-version": "3"}
            )
        await client.get("/files", headers=headers, params={"after": "f 1"})
    assert [str(request.url) for request in seen] == [
        "https://gateway.test/v1/chat/completions?api-version=3",
        "https://gateway.test/v1/chat/completions?api-version=3",
        "https://gateway.test/v1/files?after=f+1",
    ]
    for request in seen:
        assert "sk-theirs" not in str(request.headers.raw)
        assert request.headers.get_list("authorization") == ["Bearer sk-ours"]
        assert request.headers.get_list("user-agent") == ["caller's"]
        assert request.headers["x-title"] == "ours"
        assert request.headers["openai-beta"] == "x=1"
        assert request.headers.get("connection") != "close"


@pytest.mark.parametrize("key_header", ["x-api-key", "api-key"])
async def test_the_key_is_in_the_header_that_the_gateway_has_it_in(
    key_header: Any, autojump_clock: MockClock
) -> None:
    seen: list[httpx.Headers] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers)
        return httpx.Response(200)

    async with (
        httpx.AsyncClient(transport=httpx.MockTransport(answer)) as inner,
        open_gateway(
            "https://gateway.test/v1", "sk-ours", http_client=inner, key_header=key_header
        ) as gateway,
    ):
        await gateway.http_client().get("/models", headers={"Authorization": "Bearer sk-theirs"})
    assert seen[0][key_header] == "sk-ours"
    assert "authorization" not in seen[0]


@pytest.mark.parametrize(
    ("base_url", "path"),
    [
        ("http://gateway.test/v1", "http://gateway.test/v1/messages"),
        ("http://gateway.test", "http://gateway.test/v1/messages"),
        ("http://gateway.test/v1", "http://gateway.test/v1/messages?beta=true"),
    ],
)
async def test_an_sdk_may_have_another_base_url_than_the_gateway(
    base_url: str, path: str, autojump_clock: MockClock
) -> None:
    fake = FakeGateway()
    fake.fault(Cut(), path="/v1/messages", token=2)
    async with (
        fake.http_client() as inner,
        open_gateway(base_url, fake.key, http_client=inner) as gateway,
    ):
        body = {**STREAMED, "max_tokens": 9}
        response = await gateway.http_client().post(path, json=body)
    assert response.text.count("event: message_stop") == 1
    assert len(fake.requests) == 2


async def test_routes_that_look_like_them_are_others(autojump_clock: MockClock) -> None:
    # Saving a message twice would double it.
    fake = FakeGateway()
    async with open_over(fake) as gateway:
        client = gateway.http_client()
        made = await client.post("/chat/sessions", json={"title": "A", "model": "fake-model"})
        path = f"/chat/sessions/{made.json()['data']['id']}/messages"
        fake.fault(Status(503), path="/v1/chat/sessions/{id}/messages")
        response = await client.post(path, json={"role": "user", "content": "Hi"})
    assert response.status_code == 503
    assert "x-should-retry" not in response.headers


# Other requests


async def test_any_request_is_sent_again_after_the_one_refresh(autojump_clock: MockClock) -> None:
    fake = FakeGateway()
    async with open_over(fake, key="dead") as gateway:
        client = gateway.http_client()
        statuses: list[int] = []

        async def ask() -> None:
            statuses.append((await client.get("/models")).status_code)

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ask)
    assert statuses == [200] * 20
    assert fake.refreshes == 1


async def test_a_body_that_can_be_read_once_is_sent_again(autojump_clock: MockClock) -> None:
    fake = FakeGateway()

    async def content() -> AsyncGenerator[bytes]:
        for piece in (b'{"title": "A",', b' "model": "fake-model"}'):
            await trio.lowlevel.checkpoint()
            yield piece

    async with open_over(fake, key="dead") as gateway:
        response = await gateway.http_client().post("/chat/sessions", content=content())
    assert response.status_code in (200, 201)
    assert [request.status for request in fake.requests] == [401, response.status_code]
    assert fake.requests[1].body == {"title": "A", "model": "fake-model"}


async def test_what_the_gateway_says_of_other_requests_is_handed_on_as_it_comes(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(framing="gzip")
    async with open_over(fake) as gateway:
        client = gateway.http_client()
        missing = await client.get("/chat/sessions/12345")
        assert missing.status_code == 404
        assert "detail" in missing.json()
        models = await client.get("/models", headers={"accept-encoding": "br"})
        assert models.json()["data"]
        broken = await client.post("/chat/completions", content=b'{"model":')
        assert broken.status_code in (400, 422)


# Failures


async def test_a_400_is_handed_on_as_the_gateway_said_it(autojump_clock: MockClock) -> None:
    fake = FakeGateway()
    said = b'{"error": {"message": "max_tokens is too large", "code": "too_large"}}'
    fake.fault(Status(400, body=said, headers={"x-mark": "1"}), times=None)
    async with open_over(fake) as gateway:
        for body in (BODY, STREAMED):
            response = await gateway.http_client().post("/chat/completions", json=body)
            assert (response.status_code, response.content) == (400, said)
            assert response.headers["x-mark"] == "1"
            assert response.headers["x-should-retry"] == "false"
    assert len(fake.requests) == 2


@pytest.mark.parametrize("body", [BODY, STREAMED])
async def test_where_no_key_can_be_had_a_401_says_what_to_do(
    body: Mapping[str, object], autojump_clock: MockClock
) -> None:
    fake = FakeGateway()
    async with open_over(fake) as gateway:
        await gateway.authenticator.sign_out()
        fake.refuse_refresh = True
        response = await gateway.http_client().post("/chat/completions", json=body)
    assert response.status_code == 401
    assert response.json()["type"] == "error"
    assert response.json()["error"]["type"] == "authentication_error"
    assert response.json()["error"]["message"]
    assert response.headers["x-should-retry"] == "false"
    assert not fake.requests


async def test_a_stream_that_breaks_for_good_is_a_read_error(autojump_clock: MockClock) -> None:
    fake = FakeGateway()
    fake.fault(Cut(), token=3, times=None)
    stream = b""
    async with open_over(fake, retry=RetryPolicy(max_retries=2)) as gateway:
        with pytest.raises(httpx.ReadError) as raised:
            async with gateway.http_client().stream(
                "POST", "/chat/completions", json=STREAMED
            ) as response:
                assert response.status_code == 200
                async for piece in response.aiter_raw():
                    stream += piece
    cause = raised.value.__cause__
    assert isinstance(cause, StreamInterrupted)
    assert cause.partial == text_in(stream.decode().split("\n"))
    assert cause.partial
    assert b"[DONE]" not in stream


async def test_a_key_that_dies_for_good_in_mid_stream_says_to_log_in(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(token_interval=1.0)
    async with open_over(fake) as gateway:
        with pytest.raises(httpx.ReadError, match="Please log in again") as raised:
            async with gateway.http_client().stream(
                "POST", "/chat/completions", json=STREAMED
            ) as response:
                async for _ in response.aiter_raw():
                    fake.refuse_refresh = True
                    fake.expire()
    assert isinstance(raised.value.__cause__, AuthenticationError)


@pytest.mark.parametrize("token", [None, 3])
async def test_silence_for_longer_than_read_is_a_read_timeout(
    token: int | None, autojump_clock: MockClock
) -> None:
    fake = FakeGateway()
    fake.fault(Stall(), token=token, times=None)
    async with open_over(fake) as gateway:
        client = gateway.http_client()
        with pytest.raises(httpx.ReadTimeout) as raised:
            await client.post("/chat/completions", json=STREAMED, timeout=7.0)
        assert isinstance(raised.value.__cause__, StreamTimeout)
        if token is None:
            with pytest.raises(httpx.ReadTimeout):
                await client.post("/chat/completions", json=BODY, timeout=7.0)
            fake.fault(Stall(), path="/v1/models")
            with pytest.raises(httpx.ReadTimeout):
                await client.get("/models", timeout=7.0)


async def test_the_gateways_own_timeouts_hold_unless_the_client_has_others(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway()
    fake.fault(Stall(50.0))
    fake.fault(Stall(50.0), token=3, times=None)
    async with open_over(fake, timeouts=Timeouts(first_token=60.0, between_tokens=5.0)) as gateway:
        client = gateway.http_client()
        with pytest.raises(httpx.ReadTimeout, match="no next token came within 5 s"):
            await client.post("/chat/completions", json=STREAMED)
        response = await client.post("/chat/completions", json=STREAMED, timeout=55.0)
    assert text_in(response.text.split("\n")) == fake.intended(BODY)


async def test_an_answer_that_is_no_stream_has_the_time_of_a_first_token(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway()
    fake.fault(Stall(50.0))
    async with open_over(fake, timeouts=Timeouts(first_token=60.0, between_tokens=5.0)) as gateway:
        response = await gateway.http_client().post("/chat/completions", json=BODY)
    assert response.status_code == 200
    assert len(fake.requests) == 1


async def test_a_gateway_that_is_down_is_a_read_error(autojump_clock: MockClock) -> None:
    fake = FakeGateway()
    fake.refuse_connections = True
    async with open_over(fake, retry=RetryPolicy(max_retries=1)) as gateway:
        client = gateway.http_client()
        with pytest.raises(httpx.ReadError, match=r"gateway\.test"):
            await client.post("/chat/completions", json=STREAMED)
        with pytest.raises(httpx.ReadError, match=r"gateway\.test"):
            await client.get("/models")


async def test_nothing_is_left_of_a_request_that_was_cancelled(autojump_clock: MockClock) -> None:
    fake = FakeGateway(token_interval=1.0)
    fake.fault(Stall(), token=0)
    async with open_over(fake) as gateway:
        with trio.move_on_after(2.0):
            await gateway.http_client().post("/chat/completions", json=STREAMED)
        with trio.move_on_after(2.0):
            await gateway.http_client().post("/chat/completions", json=STREAMED)
        await trio.testing.wait_all_tasks_blocked()
        assert fake.open_streams == 0


async def test_a_stream_of_a_gateway_that_is_closed_breaks(autojump_clock: MockClock) -> None:
    fake = FakeGateway(token_interval=1.0)

    async def read(gateway: Gateway) -> None:
        with pytest.raises(httpx.ReadError):
            await lines(gateway.http_client())

    async with trio.open_nursery() as nursery, open_over(fake) as gateway:
        nursery.start_soon(read, gateway)
        await trio.sleep(3.0)


async def test_a_server_that_ignores_stream_is_read_as_one_event(
    autojump_clock: MockClock,
) -> None:
    def answer(_request: httpx.Request) -> httpx.Response:
        message = {"role": "assistant", "content": "Whole."}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return httpx.Response(200, json={"id": "1", "choices": [choice]})

    async with (
        httpx.AsyncClient(transport=httpx.MockTransport(answer)) as inner,
        open_gateway("https://gateway.test/v1", "sk-1", http_client=inner) as gateway,
    ):
        response = await gateway.http_client().post("/chat/completions", json=STREAMED)
    assert response.headers["content-type"] == "text/event-stream"
    assert text_in(response.text.splitlines()) == "Whole."
