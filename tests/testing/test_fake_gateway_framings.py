"""How the body of an answer travels: in chunks, to the end of the connection, compressed."""

import json
import zlib
from typing import cast, get_args

import h11
import httpx
import httpx2
import openai
import pytest
import trio
import trio.testing
from openai.types.chat import ChatCompletionChunk

from gz_trio.testing import Comment, Cut, Drip, ErrorFrame, FakeGateway, Framing, Reset, Status
from tests.testing.fake_gateway_wire import JSON, Answer, Connect, chat, in_memory

FRAMINGS: tuple[Framing, ...] = get_args(Framing)

# What tells a client where the body ends, and how to read it.
FRAMING_FIELDS = ("content-length", "transfer-encoding", "content-encoding", "connection")

every_framing = pytest.mark.parametrize("framing", FRAMINGS)


async def ask(
    gateway: FakeGateway,
    connect: Connect = in_memory,
    body: JSON | None = None,
    accept: str = "gzip",
) -> Answer:
    async with connect(gateway) as wire:
        headers = {"accept-encoding": accept}
        return await wire.ask(body or chat(), gateway.key, headers=headers)


def framing_of(answer: Answer) -> dict[str, str]:
    return {name: answer.headers[name] for name in FRAMING_FIELDS if name in answer.headers}


def text_before_the_cut(answer: Answer) -> str:
    """The text of the events that came whole."""
    events = answer.content.decode(errors="ignore").rpartition("\n\n")[0].split("\n\n")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events if "{" in event]
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


@pytest.mark.parametrize(
    ("framing", "streamed", "whole"),
    [
        ("chunked", {"transfer-encoding": "chunked"}, {"content-length"}),
        ("plain", {"connection": "close"}, {"connection"}),
        (
            "gzip",
            {"transfer-encoding": "chunked", "content-encoding": "gzip"},
            {"transfer-encoding", "content-encoding"},
        ),
    ],
)
async def test_the_head_says_how_the_body_travels(
    framing: Framing, streamed: dict[str, str], whole: set[str], connect: Connect
) -> None:
    gateway = FakeGateway(framing=framing)
    answer = await ask(gateway, connect)
    assert framing_of(answer) == streamed
    assert answer.text() == gateway.intended(chat())
    assert answer.data[-1] == "[DONE]"
    assert answer.end == "complete"
    answer = await ask(gateway, connect, chat(stream=False))
    assert set(framing_of(answer)) == whole
    choice = cast("list[dict[str, JSON]]", answer.json["choices"])[0]
    assert choice["message"]["content"] == gateway.intended(chat())


@every_framing
async def test_an_error_travels_as_an_answer_does(framing: Framing) -> None:
    gateway = FakeGateway(framing=framing)
    gateway.fault(Status(429, "Slow down", dialect="message"))
    answer = await ask(gateway)
    assert (answer.status, answer.json) == (429, {"message": "Slow down"})
    assert ("content-length" in answer.headers) == (framing == "chunked")


async def test_only_a_plain_body_ends_the_connection() -> None:
    gateway = FakeGateway(framing="gzip")
    async with in_memory(gateway) as wire:
        for framing in ("gzip", "chunked", "plain"):
            gateway.framing = framing
            answer = await wire.ask(chat(), gateway.key, headers={"accept-encoding": "gzip"})
            assert answer.text() == gateway.intended(chat())
        assert isinstance(await wire.event(), h11.ConnectionClosed)


@pytest.mark.parametrize(
    ("accept", "compressed"),
    [
        ("gzip", True),
        ("br, GZIP;q=0.5", True),
        ("*", True),
        ("identity", False),
        ("br", False),
        ("", False),
        ("gzip;q=0", False),
        ("gzip; q=0.00, *", False),
        ("gzip, *;q=0", True),
    ],
)
async def test_gzip_is_for_those_who_accept_it(accept: str, compressed: bool) -> None:
    gateway = FakeGateway(framing="gzip")
    answer = await ask(gateway, accept=accept)
    assert ("content-encoding" in answer.headers) == compressed
    assert answer.text() == gateway.intended(chat())


async def test_a_body_that_is_encoded_already_is_not_encoded_again() -> None:
    gateway = FakeGateway(framing="gzip")
    gateway.fault(Status(200, headers={"content-encoding": "gzip"}, body=b"no gzip at all"))
    assert (await ask(gateway)).body == b"no gzip at all"


@pytest.mark.parametrize("status", [204, 304])
@every_framing
async def test_an_answer_without_a_body_has_none_in_any_framing(
    framing: Framing, status: int
) -> None:
    gateway = FakeGateway(framing=framing)
    gateway.fault(Status(status, dialect="empty"))
    async with in_memory(gateway) as wire:
        headers = {"accept-encoding": "gzip"}
        answer = await wire.ask(chat(), gateway.key, headers=headers)
        assert (answer.status, answer.body) == (status, b"")
        assert "content-encoding" not in answer.headers
        assert (await wire.ask(chat(), gateway.key, headers=headers)).status == 200


@every_framing
async def test_a_token_can_be_read_as_soon_as_it_is_sent(
    framing: Framing, autojump_clock: trio.testing.MockClock
) -> None:
    gateway = FakeGateway(tokens=3, token_interval=10, framing=framing)
    decoder = zlib.decompressobj(wbits=31)
    arrived: list[float] = []
    async with in_memory(gateway) as wire:
        await wire.send(chat(), gateway.key, headers={"accept-encoding": "gzip"})
        started = trio.current_time()
        body = b""
        while b"[DONE]" not in body:
            event = await wire.event()
            assert isinstance(event, h11.Response | h11.Data), body
            if isinstance(event, h11.Data):
                data = bytes(event.data)
                body += decoder.decompress(data) if framing == "gzip" else data
                text_events = body.count(b'"content":') - 1  # the role's is empty
                arrived += [trio.current_time() - started] * (text_events - len(arrived))
    assert arrived == [0, 10, 20]


@every_framing
@pytest.mark.parametrize("fault", [Cut, Reset])
async def test_a_body_can_be_cut_after_any_of_its_bytes(
    framing: Framing, fault: type[Cut | Reset]
) -> None:
    whole = len((await ask(FakeGateway(tokens=3, framing=framing))).body)
    intended = FakeGateway(tokens=3).intended(chat())
    texts: list[str] = []
    for size in range(whole - 8):  # compressed, two answers may differ by a few bytes
        gateway = FakeGateway(tokens=3, framing=framing)
        gateway.fault(fault(after_bytes=size), token=0)
        answer = await ask(gateway)
        assert len(answer.body) == size
        if fault is Reset:
            assert answer.end == "reset"
        else:
            # To HTTP, a body that ends with its connection is whole wherever it ends.
            assert answer.end == ("complete" if framing == "plain" else "cut")
        assert not gateway.requests[-1].complete
        texts.append(text_before_the_cut(answer))
    assert all(intended.startswith(text) for text in texts)
    assert texts == sorted(texts, key=len)
    assert (texts[0], texts[-1]) == ("", intended)


@every_framing
async def test_an_answer_in_one_piece_can_be_cut_too(framing: Framing, connect: Connect) -> None:
    gateway = FakeGateway(framing=framing)
    gateway.fault(Cut(after_bytes=20))
    answer = await ask(gateway, connect, chat(stream=False))
    assert len(answer.body) == 20
    assert answer.end == ("complete" if framing == "plain" else "cut")


@every_framing
async def test_bytes_can_drip_and_frames_can_come_in_between(
    framing: Framing, autojump_clock: trio.testing.MockClock
) -> None:
    gateway = FakeGateway(framing=framing)
    gateway.fault(Drip(interval=0.01), token=0)
    gateway.fault(Comment("ping"), token=2)
    gateway.fault(ErrorFrame("provider_error"), token=5)
    answer = await ask(gateway)
    assert ": ping" in answer.lines
    assert answer.error["type"] == "provider_error"
    assert answer.data[-1] == "[DONE]"
    assert gateway.requests[-1].tokens == 5


@every_framing
async def test_a_stream_whose_key_dies_ends_in_good_order(
    framing: Framing, autojump_clock: trio.testing.MockClock
) -> None:
    gateway = FakeGateway(token_interval=1, framing=framing)
    async with in_memory(gateway) as wire:
        await wire.send(chat(), gateway.key, headers={"accept-encoding": "gzip"})
        await trio.sleep(3.5)
        gateway.rotate()
        answer = await wire.answer()
    assert answer.end == "complete"
    assert answer.error["type"] == "auth_error"
    assert gateway.intended(chat()).startswith(answer.text())
    assert gateway.requests[-1].tokens == 4


@every_framing
@pytest.mark.parametrize("over_tcp", [False, True])
async def test_httpx_reads_every_framing(framing: Framing, over_tcp: bool) -> None:
    gateway = FakeGateway(tokens=40, framing=framing)

    async def read(client: httpx.AsyncClient, base_url: str) -> None:
        request = client.stream(
            "POST",
            f"{base_url}/chat/completions",
            json=chat(),
            headers={"authorization": f"Bearer {gateway.key}"},
        )
        async with request as response:
            body = await response.aread()
        answer = Answer(response.status_code, body=body)
        assert answer.text() == gateway.intended(chat())
        for chunk in answer.chunks:
            ChatCompletionChunk.model_validate(chunk, strict=True)

    if over_tcp:
        async with gateway.listen() as base_url, httpx.AsyncClient() as client:
            await read(client, base_url)
    else:
        async with gateway.http_client() as client:
            await read(client, gateway.base_url)


# The SDK stops at `[DONE]` and leaves its generators, and httpx's, to the garbage collector.
@pytest.mark.filterwarnings("ignore:Async generator '(openai|httpx2|httpcore2):ResourceWarning")
@every_framing
async def test_the_openai_sdk_reads_every_framing(framing: Framing) -> None:
    gateway = FakeGateway(tokens=40, framing=framing)
    async with gateway.http_client(httpx2) as client:
        sdk = openai.AsyncOpenAI(
            api_key=gateway.key, base_url=gateway.base_url, http_client=client, max_retries=0
        )
        text = ""
        async with await sdk.chat.completions.create(
            model="fake-model", messages=[{"role": "user", "content": "Hello"}], stream=True
        ) as stream:
            async for chunk in stream:
                text += chunk.choices[0].delta.content or ""
    assert text == gateway.intended(chat())
