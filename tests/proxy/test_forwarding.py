"""What comes through the proxy: streams that survive, and failures as each API tells them."""

import re
from collections.abc import Mapping
from functools import partial
from typing import Literal

import anthropic
import httpx
import httpx2
import msgspec
import openai
import pytest
import trio

from gz_trio import AuthenticationError, Key, RetryPolicy, Timeouts
from gz_trio.proxy import _forwarding
from gz_trio.testing import Cut, FakeGateway, Reset, Stall, Status
from tests.proxy.fronts import BODY, Front, open_front

# The SDK stops at `[DONE]` and leaves its generators, and httpx's, to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Async generator '(anthropic|openai|httpx2|httpcore2):ResourceWarning"
)

NO_RETRY = RetryPolicy(max_retries=0)
ApiPath = Literal["/v1/chat/completions", "/v1/responses", "/v1/messages"]
PATHS: dict[ApiPath, Mapping[str, object]] = {
    "/v1/chat/completions": BODY,
    "/v1/responses": {"model": "fake-model", "input": "Tell me a story.", "stream": True},
    "/v1/messages": {**BODY, "max_tokens": 100},
}
every_api = pytest.mark.parametrize("path", PATHS)


class Refresh:
    """A refresh that takes as long as the test wants."""

    def __init__(self, fake: FakeGateway) -> None:
        self.begun = trio.Event()
        self.go_on = trio.Event()
        self._fake = fake

    async def __call__(self, _: Key | None) -> str:
        self.begun.set()
        await self.go_on.wait()
        return await self._fake.refresh()


@pytest.fixture
def short_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_forwarding, "SILENCE_SECONDS", 0.05)


def events_of(body: bytes) -> list[bytes]:
    """The events of a stream, without comments."""
    return [event for event in re.sub(rb"(?m)^:.*\n", b"", body).split(b"\n\n") if event]


def openai_sdk(front: Front) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=front.proxy.base_url,
        api_key=front.token,
        http_client=httpx2.AsyncClient(timeout=30),
    )


async def text_of(client: openai.AsyncOpenAI) -> str:
    stream = await client.chat.completions.create(
        model="fake-model", stream=True, messages=[{"role": "user", "content": "Tell me a story."}]
    )
    pieces = [chunk.choices[0].delta.content async for chunk in stream if chunk.choices]
    return "".join(piece or "" for piece in pieces)


# When nothing fails


@every_api
async def test_every_event_of_a_stream_is_the_gateway_s_byte_for_byte(path: ApiPath) -> None:
    fake = FakeGateway(tokens=30, answer=lambda body, attempt: ["Ein ", "Tag\n", "🌍", "."])
    async with open_front(fake) as front, front.client() as client:
        key = {"authorization": f"Bearer {fake.key}", "x-api-key": "", "accept-encoding": ""}
        gateway = str(front.gateway.http_client().base_url).rstrip("/")
        through = await client.post(path, json=PATHS[path])
        direct = await client.post(f"{gateway}{path[3:]}", json=PATHS[path], headers=key)
    assert through.status_code == direct.status_code == 200
    assert through.headers["content-type"].startswith("text/event-stream")

    def deltas(response: httpx.Response) -> list[bytes]:
        # Two answers differ in their ids and times, and in nothing else.
        differing = (
            rb'"(id|created|created_at|item_id|response_id|previous_response_id)":("[^"]*"|[\d.]+)'
        )
        return [
            re.sub(differing, rb'"\1":0', event)
            for event in events_of(response.content)
            if not event.startswith(b"event: ping")  # The proxy shows life in its own way.
        ]

    assert deltas(through) == deltas(direct)


@every_api
async def test_an_answer_that_is_no_stream_comes_as_it_is(path: ApiPath) -> None:
    fake = FakeGateway()
    async with open_front(fake) as front, front.client() as client:
        answer = await client.post(path, json={**PATHS[path], "stream": False})
        models = await client.get("/v1/models?limit=1")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert msgspec.json.decode(answer.content)["model"] == "fake-model"
    assert models.json()["data"][0]["id"] == "fake-model"
    assert [seen.path for seen in fake.requests] == [path, "/v1/models"]


async def test_the_gateway_s_key_is_sent_and_the_local_token_is_not() -> None:
    heads: list[bytes] = []

    async def gateway(stream: trio.SocketStream) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            data += await stream.receive_some()
        heads.append(data)
        await stream.send_all(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nSet-Cookie: a=b\r\n"
            b"Access-Control-Allow-Origin: *\r\nX-Mine: 1\r\n\r\nok"
        )
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        listener, *_ = await nursery.start(partial(trio.serve_tcp, gateway, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        fake = FakeGateway()
        async with (
            open_front(fake, base_url=f"http://127.0.0.1:{port}/api/v1") as front,
            front.client(**{"x-api-key": front.token, "cookie": "c=d"}) as client,
        ):
            answer = await client.get("/v1/things/a%2Fb?x=1&y=%20")
        nursery.cancel_scope.cancel()
    (head,) = heads
    assert head.startswith(b"GET /api/v1/things/a%2Fb?x=1&y=%20 HTTP/1.1\r\n")
    assert f"bearer {fake.key}".encode() in head.lower()
    for secret in (front.token.encode(), b"c=d"):
        assert secret not in head
    assert (answer.text, answer.headers["x-mine"]) == ("ok", "1")
    assert "set-cookie" not in answer.headers
    assert "access-control-allow-origin" not in answer.headers


# When a key dies


@every_api
async def test_a_key_that_dies_in_mid_stream_is_not_seen_by_the_client(path: ApiPath) -> None:
    fake = FakeGateway(tokens=20, token_interval=0.01)
    async with open_front(fake) as front, front.client() as client:
        async with client.stream("POST", path, json=PATHS[path]) as response:
            body = bytearray()
            async for piece in response.aiter_raw():
                if not body:
                    fake.rotate()
                body += piece
        whole = await client.post(path, json=PATHS[path])

    def said(stream: bytes) -> list[object]:
        return list(re.findall(rb'"(?:delta|content|text)":"([^"]*)"', stream))

    assert fake.rejected == 1
    assert fake.refreshes == 1
    assert b"auth_error" not in body
    assert said(bytes(body)) == said(whole.content)
    assert len(said(whole.content)) >= 20


async def test_the_openai_sdk_reads_on_over_a_rotation() -> None:
    fake = FakeGateway(tokens=20, token_interval=0.01)
    async with open_front(fake) as front, openai_sdk(front) as client:
        stream = await client.chat.completions.create(
            model="fake-model",
            stream=True,
            messages=[{"role": "user", "content": "Tell me a story."}],
        )
        text = ""
        async for chunk in stream:
            if not text:
                fake.rotate()
            if chunk.choices:
                text += chunk.choices[0].delta.content or ""
    assert text == fake.intended(BODY)
    assert (fake.rejected, fake.refreshes) == (1, 1)


# While it waits


@pytest.mark.usefixtures("short_silence")
async def test_comments_keep_a_client_alive_while_the_key_is_refreshed() -> None:
    fake = FakeGateway(tokens=20, token_interval=0.01)
    refresh = Refresh(fake)
    body = b""
    async with (
        open_front(fake, refresh=refresh) as front,
        front.client() as client,
        client.stream("POST", "/v1/chat/completions", json=BODY) as response,
    ):
        async for piece in response.aiter_raw():
            if not body:
                fake.rotate()
            body += piece
            if body.count(_forwarding.COMMENT) >= 3:
                refresh.go_on.set()
    assert refresh.begun.is_set()
    assert body.endswith(b"data: [DONE]\n\n")
    # Between events, and each with one line ending, of which no reader makes an event.
    assert set(re.findall(rb"(?m)^:.*\n+", body)) == {b": waiting\n"}
    assert b"\n\n: waiting\n" in body
    assert b"\n: waiting\n\n" not in body


@pytest.mark.usefixtures("short_silence")
async def test_the_openai_sdk_reads_through_the_comments() -> None:
    fake = FakeGateway(tokens=20)
    fake.fault(Stall(0.3), token=5)
    async with open_front(fake) as front, openai_sdk(front) as client:
        assert await text_of(client) == fake.intended(BODY)


@pytest.mark.usefixtures("short_silence")
@every_api
async def test_where_the_answer_is_long_in_coming_the_proxy_begins_it(path: ApiPath) -> None:
    fake = FakeGateway()
    fake.expire()
    refresh = Refresh(fake)
    async with (
        open_front(fake, refresh=refresh) as front,
        front.client() as client,
        client.stream("POST", path, json=PATHS[path]) as response,
    ):
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream"
        pieces = response.aiter_raw()
        assert await anext(pieces) == b": waiting\n"
        refresh.go_on.set()
        rest = b"".join([piece async for piece in pieces])
    ends = (b"data: [DONE]", b"event: response.completed", b"event: message_stop")
    assert events_of(rest)[-1].startswith(ends)
    assert fake.refreshes == 1


@pytest.mark.usefixtures("short_silence")
async def test_the_openai_sdk_waits_for_an_answer_that_the_proxy_has_begun() -> None:
    fake = FakeGateway()
    fake.fault(Stall(0.3))
    async with open_front(fake) as front, openai_sdk(front) as client:
        assert await text_of(client) == fake.intended(BODY)


@pytest.mark.usefixtures("short_silence")
async def test_no_comment_stands_in_an_answer_that_is_no_stream() -> None:
    fake = FakeGateway()
    fake.fault(Stall(0.3))
    async with open_front(fake) as front, front.client() as client:
        answer = await client.post("/v1/chat/completions", json={**BODY, "stream": False})
    assert msgspec.json.decode(answer.content)["object"] == "chat.completion"


# When it fails


async def read_broken(client: httpx.AsyncClient, path: ApiPath) -> tuple[int, bytes]:
    """What comes of a stream before it breaks."""
    body = b""
    async with client.stream("POST", path, json=PATHS[path]) as response:
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked"):
            async for piece in response.aiter_raw():
                body += piece
    return response.status_code, body


FRAMES: dict[ApiPath, bytes] = {
    "/v1/chat/completions": rb'data: \{"error":\{"message":"([^"]+)","type":"[^"]+"',
    "/v1/responses": rb'event: error\ndata: \{"type":"error","code":[^,]+,"message":"([^"]+)"',
    "/v1/messages": rb'event: error\ndata: \{"type":"error",.*"message":"([^"]+)"',
}


@every_api
async def test_a_failure_in_mid_stream_is_a_frame_and_then_a_body_without_an_end(
    path: ApiPath,
) -> None:
    fake = FakeGateway(tokens=20)
    fake.fault(Reset(), token=5, path=path)
    async with open_front(fake, retry=NO_RETRY) as front, front.client() as client:
        status, body = await read_broken(client, path)
        assert status == 200
        *events, last = events_of(body)
        assert len(events) >= 5
        assert re.match(FRAMES[path], last)
    assert front.log[-1].endswith("broken off")


@every_api
async def test_a_key_that_dies_and_is_not_replaced_ends_the_stream_with_what_to_do(
    path: ApiPath,
) -> None:
    fake = FakeGateway(tokens=20, token_interval=0.01)
    fake.refuse_refresh = True
    body = b""
    async with (
        open_front(fake) as front,
        front.client() as client,
        client.stream("POST", path, json=PATHS[path]) as response,
    ):
        with pytest.raises(httpx.RemoteProtocolError):
            async for piece in response.aiter_raw():
                if not body:
                    fake.rotate()
                body += piece
    last = events_of(body)[-1]
    found = re.match(FRAMES[path], last)
    assert found
    assert b"log in again" in found[1]
    assert path == "/v1/responses" or b'"authentication_error"' in last


@pytest.mark.usefixtures("short_silence")
@every_api
async def test_so_is_one_that_comes_after_the_proxy_has_begun_the_answer(path: ApiPath) -> None:
    fake = FakeGateway()
    fake.expire()
    refresh = Refresh(fake)
    fake.refuse_refresh = True
    async with open_front(fake, refresh=refresh) as front, front.client() as client:
        body = b""
        async with client.stream("POST", path, json=PATHS[path]) as response:
            assert response.status_code == 200
            with pytest.raises(httpx.RemoteProtocolError):
                async for piece in response.aiter_raw():
                    refresh.go_on.set()
                    body += piece
    (last,) = events_of(body)
    found = re.match(FRAMES[path], last)
    assert found
    assert b"log in again" in found[1]


async def test_the_openai_sdk_raises_for_a_stream_that_failed() -> None:
    fake = FakeGateway(tokens=20)
    fake.fault(Cut(), token=5, times=None)
    async with open_front(fake, retry=NO_RETRY) as front, openai_sdk(front) as client:
        with pytest.raises(openai.APIError) as raised:
            await text_of(client)
    assert str(raised.value) == "the reply broke and could not be taken up again"


async def test_anthropic_s_sdk_raises_for_a_stream_that_failed() -> None:
    fake = FakeGateway(tokens=20)
    fake.fault(Cut(), token=5, times=None, path="/v1/messages")
    async with (
        open_front(fake, retry=NO_RETRY) as front,
        anthropic.AsyncAnthropic(
            base_url=front.proxy.url,
            api_key=front.token,
            http_client=httpx2.AsyncClient(timeout=30),
        ) as client,
    ):
        with pytest.raises(anthropic.APIError):
            async with client.messages.stream(
                model="fake-model",
                max_tokens=100,
                messages=[{"role": "user", "content": "Tell me a story."}],
            ) as stream:
                async for _ in stream.text_stream:
                    pass


@every_api
async def test_an_error_of_the_gateway_s_is_told_as_the_gateway_told_it(path: ApiPath) -> None:
    fake = FakeGateway()
    fake.fault(Status(404, body=b'{"error":{"message":"no such model"}}'), path=path)
    async with open_front(fake) as front, front.client() as client:
        answer = await client.post(path, json=PATHS[path])
    assert (answer.status_code, answer.content) == (404, b'{"error":{"message":"no such model"}}')
    assert answer.headers["x-should-retry"] == "false"


@every_api
async def test_where_no_key_can_be_had_the_answer_says_what_to_do(path: ApiPath) -> None:
    async def refused(_: Key | None) -> str:
        raise AuthenticationError("no")

    fake = FakeGateway()
    fake.expire()
    async with open_front(fake, refresh=refused) as front, front.client() as client:
        answer = await client.post(path, json=PATHS[path])
    assert answer.status_code == 401
    assert "log in again" in answer.json()["error"]["message"]
    assert answer.headers["x-should-retry"] == "false"


@every_api
async def test_a_gateway_that_is_not_there_is_502(path: ApiPath) -> None:
    fake = FakeGateway()
    async with open_front(fake, retry=NO_RETRY) as front, front.client() as client:
        fake.refuse_connections = True
        answer = await client.post(path, json=PATHS[path])
        other = await client.get("/v1/models")
    assert (answer.status_code, other.status_code) == (502, 502)
    assert answer.headers["x-should-retry"] == "false"
    assert "x-should-retry" not in other.headers  # Nobody has tried that again.
    error = answer.json()["error"]
    assert "127.0.0.1" in error["message"]
    assert (answer.json().get("type") == "error") == (path == "/v1/messages")


async def test_a_gateway_that_is_silent_for_too_long_is_504() -> None:
    fake = FakeGateway()
    fake.fault(Stall(), times=None)
    timeouts = Timeouts(first_token=0.05, between_tokens=0.05)
    async with (
        open_front(fake, retry=NO_RETRY, timeouts=timeouts) as front,
        front.client() as client,
    ):
        answer = await client.post("/v1/chat/completions", json=BODY)
    assert answer.status_code == 504
    assert "0.05 s" in answer.json()["error"]["message"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed_nor_handed_on(status: int) -> None:
    fake = FakeGateway()
    elsewhere = {"location": "https://elsewhere.example/"}
    fake.fault(Status(status, headers=elsewhere), path="/v1/models")
    async with open_front(fake) as front, front.client() as client:
        answer = await client.get("/v1/models")
    assert answer.status_code == 502
    assert "location" not in answer.headers
    assert "--base-url" in answer.json()["error"]["message"]
