"""Streams whose events have ids, which `Last-Event-ID` takes up where they broke."""

import json
from collections.abc import Mapping
from typing import Literal, cast

import h11
import httpx
import httpx2
import openai
import pytest
import trio
import trio.testing
from openai.types.chat import ChatCompletionChunk

from gz_trio.testing import (
    Comment,
    Cut,
    ErrorFrame,
    FakeGateway,
    Framing,
    Insert,
    OtherText,
    Shape,
    Stall,
    Status,
    Warning_,
)
from tests.testing.fake_gateway_wire import JSON, Answer, Connect, chat, in_memory


async def ask(
    gateway: FakeGateway,
    last_event_id: str | None = None,
    *,
    connect: Connect = in_memory,
    body: JSON | None = None,
    key: str | None = None,
) -> Answer:
    headers = {} if last_event_id is None else {"last-event-id": last_event_id}
    async with connect(gateway) as wire:
        return await wire.ask(body or chat(), key or gateway.key, headers=headers)


def events(answer: Answer) -> list[tuple[str, str]]:
    """Id and data of each event that came whole; the id is empty where there is none."""
    whole = answer.content.decode(errors="ignore").rpartition("\n\n")[0]
    found: list[tuple[str, str]] = []
    for event in whole.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in event.split("\n") if line)
        if "data" in fields:
            found.append((fields.get("id", ""), fields["data"]))
    return found


def text(*answers: Answer) -> str:
    chunks = [
        ChatCompletionChunk.model_validate_json(data, strict=True)
        for answer in answers
        for _, data in events(answer)
        if data != "[DONE]" and "error" not in json.loads(data)
    ]
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


async def test_each_event_has_an_id_and_none_has_one_by_default(connect: Connect) -> None:
    answer = await ask(FakeGateway(tokens=2, event_ids=True), connect=connect)
    # Role, two tokens, finish reason, end.
    assert [event_id for event_id, _ in events(answer)] == ["1-1", "1-2", "1-3", "1-4", "1-5"]
    assert {event_id for event_id, _ in events(await ask(FakeGateway()))} == {""}


@pytest.mark.parametrize("shape", ["openai", "fireworks", "responses"])
async def test_no_event_is_only_an_id(shape: Shape) -> None:
    answer = await ask(FakeGateway(event_ids=True, shape=shape))
    assert all(data for _, data in events(answer))
    assert (
        len(events(answer)) == answer.content.count(b"id: ") == answer.content.count(b"data: {") + 1
    )


async def test_a_stream_is_taken_up_after_any_of_its_events(connect: Connect) -> None:
    gateway = FakeGateway(tokens=4, event_ids=True)
    body = chat(stream_options={"include_usage": True})
    whole = await ask(gateway, connect=connect, body=body)
    for event_id, _ in events(whole):
        rest = await ask(gateway, event_id, connect=connect, body=body)
        assert rest.status == 200
        # Byte for byte, with the completion's own id and time.
        assert whole.body.endswith(rest.body)
        assert events(rest) == events(whole)[int(event_id.removeprefix("1-")) :]
        seen = gateway.requests[-1]
        assert (seen.resumed_after, seen.tokens, seen.complete) == (event_id, 0, True)


@pytest.mark.parametrize("token", range(13))
async def test_the_rest_is_made_only_when_it_is_asked_for(token: int) -> None:
    gateway = FakeGateway(tokens=12, event_ids=True)
    gateway.fault(Cut(), token=token)
    first = await ask(gateway)
    assert first.end == "cut"
    last = events(first)[-1][0] if token else "1-0"
    second = await ask(gateway, last)
    assert [seen.tokens for seen in gateway.requests] == [token, 12 - token]
    assert text(first, second) == gateway.intended(chat())
    assert [event_id for event_id, _ in events(first) + events(second)] == [
        f"1-{number}" for number in range(1, 16)
    ]


@pytest.mark.parametrize("framing", ["chunked", "plain", "gzip"])
async def test_a_stream_cut_after_any_of_its_bytes_goes_on_after_its_last_event(
    framing: Framing,
) -> None:
    size = len((await ask(FakeGateway(tokens=2, event_ids=True, framing=framing))).body)
    for after_bytes in range(size):
        gateway = FakeGateway(tokens=2, event_ids=True, framing=framing)
        gateway.fault(Cut(after_bytes), token=0)
        first = await ask(gateway)
        last = events(first)[-1][0] if events(first) else "1-0"
        second = await ask(gateway, last)
        assert text(first, second) == gateway.intended(chat())
        assert events(second)[-1:] in ([("1-5", "[DONE]")], [])
        assert sum(seen.tokens for seen in gateway.requests) == 2


async def test_the_model_does_not_run_again() -> None:
    attempts: list[int] = []

    def answer(body: Mapping[str, object], attempt: int) -> list[str]:
        attempts.append(attempt)
        return [f"{attempt}: ", "a", "b", "c"]

    gateway = FakeGateway(answer=answer, event_ids=True)
    gateway.fault(Cut(), token=2, times=2)
    first = await ask(gateway)
    rest = await ask(gateway, events(first)[-1][0])  # the fault waits for a token 2 that is sent
    assert rest.end == "cut"
    rest = await ask(gateway, events(first)[-1][0])
    assert text(first, rest) == "1: abc"
    assert attempts == [1]
    await ask(gateway)
    assert attempts == [1, 2]


async def test_streams_of_one_body_are_told_apart() -> None:
    gateway = FakeGateway(answer=lambda body, attempt: [f"{attempt}", "a", "b"], event_ids=True)
    gateway.fault(Cut(), token=1, times=2)
    first, second = await ask(gateway), await ask(gateway)
    ids = [events(answer)[-1][0] for answer in (first, second)]
    assert ids == ["1-2", "2-2"]
    assert text(second, await ask(gateway, ids[1])) == "2ab"
    assert text(first, await ask(gateway, ids[0])) == "1ab"


async def test_requests_that_stall_before_their_head_have_ids_of_their_own(
    autojump_clock: trio.testing.MockClock,
) -> None:
    gateway = FakeGateway(event_ids=True)
    gateway.fault(Stall(10), request=1)
    answers: dict[str, Answer] = {}

    async def one(question: str) -> None:
        answers[question] = await ask(gateway, body=chat(question))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, "a")
        await trio.sleep(1)
        nursery.start_soon(one, "b")
    for question, number in (("a", 1), ("b", 2)):
        assert events(answers[question])[0][0] == f"{number}-1"
        assert answers[question].chunks[0]["id"] == f"chatcmpl-{number}"
        assert answers[question].headers["x-request-id"] == f"req_{number}"
        rest = await ask(gateway, f"{number}-3", body=chat(question))
        assert answers[question].body.endswith(rest.body)


@pytest.mark.parametrize(
    "last_event_id", ["2-1", "1-99", "1", "-1", "1-", "1-x", "1--1", "x-1", "chatcmpl-1"]
)
async def test_an_id_that_is_not_known_starts_over_or_is_not_found(last_event_id: str) -> None:
    gateway = FakeGateway(event_ids=True)
    await ask(gateway)
    gateway.on_lost_stream = "404"
    lost = await ask(gateway, last_event_id)
    assert (lost.status, gateway.requests[-1].tokens) == (404, 0)
    gateway.on_lost_stream = "restart"
    anew = await ask(gateway, last_event_id)
    assert events(anew)[0][0] == "3-1"
    assert text(anew) == gateway.intended(chat())
    assert gateway.requests[-1].resumed_after is None


async def test_an_empty_last_event_id_is_none() -> None:
    gateway = FakeGateway(event_ids=True, on_lost_stream="404")
    assert text(await ask(gateway, "")) == gateway.intended(chat())


async def test_a_stream_goes_on_only_for_the_body_that_it_answers() -> None:
    gateway = FakeGateway(event_ids=True, on_lost_stream="404")
    await ask(gateway)
    assert (await ask(gateway, "1-3", body=chat("Other"))).status == 404
    assert (await ask(gateway, "1-3", body=dict(reversed(chat().items())))).status == 200


async def test_an_answer_in_one_piece_is_never_taken_up() -> None:
    gateway = FakeGateway(event_ids=True, on_lost_stream="404")
    body = chat(stream=False)
    assert (await ask(gateway, "1-3", body=body)).json["object"] == "chat.completion"


async def test_a_server_may_lose_its_streams() -> None:
    gateway = FakeGateway(event_ids=True)
    gateway.fault(Cut(), token=3)
    first = await ask(gateway)
    gateway.forget_streams()
    second = await ask(gateway, events(first)[-1][0])
    assert text(second) == gateway.intended(chat())
    assert [seen.tokens for seen in gateway.requests] == [3, 12]


@pytest.mark.parametrize("event_ids", [False, "ignored"])
async def test_a_server_may_start_over_whatever_the_id(
    event_ids: Literal[False, "ignored"],
) -> None:
    gateway = FakeGateway(tokens=2, event_ids=event_ids, on_lost_stream="404")
    gateway.fault(Cut(), token=1)
    first = await ask(gateway)
    second = await ask(gateway, "2")
    assert text(second) == gateway.intended(chat())
    ids = ["1", "2", "3", "4", "5"] if event_ids else [""] * 5
    assert [event_id for event_id, _ in events(first)] == ids[:2]
    assert [event_id for event_id, _ in events(second)] == ids
    assert [seen.tokens for seen in gateway.requests] == [1, 2]


async def test_a_stream_whose_key_died_goes_on_only_under_a_valid_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    gateway = FakeGateway(token_interval=1, event_ids=True)
    old = gateway.key
    async with in_memory(gateway) as wire:
        await wire.send(chat(), old)
        await trio.sleep(2.5)
        gateway.rotate()
        first = await wire.answer()
    *sent, error, done = events(first)
    assert (error[0], done[0]) == ("", "")
    assert cast("dict[str, JSON]", json.loads(error[1]))["error"]["type"] == "auth_error"
    refused = await ask(gateway, sent[-1][0], key=old)
    assert refused.status == 401
    second = await ask(gateway, sent[-1][0])
    assert text(first, second) == gateway.intended(chat())
    assert [seen.tokens for seen in gateway.requests] == [3, 0, 9]


async def test_what_a_fault_puts_into_a_stream_is_not_kept() -> None:
    gateway = FakeGateway(tokens=3, event_ids=True)
    gateway.fault(Comment(), token=1)
    gateway.fault(Warning_(), token=1)
    gateway.fault(Insert(b'data: {"error":"x"}\n\n'), token=1)
    gateway.fault(ErrorFrame(), token=2)
    first = await ask(gateway)
    assert [event_id for event_id, _ in events(first)] == ["1-1", "1-2", "", "", "1-3", "", ""]
    again = await ask(gateway, "1-0")
    assert [event_id for event_id, _ in events(again)] == [f"1-{n}" for n in range(1, 7)]


async def test_another_text_is_the_kept_streams_own() -> None:
    gateway = FakeGateway(answer=lambda body, attempt: list("abcd"), event_ids=True)
    gateway.fault(OtherText("≠"), token=1)
    gateway.fault(Cut(), token=2)
    first = await ask(gateway)
    assert text(first, await ask(gateway, "1-3")) == "a≠b≠c≠d"
    assert text(await ask(gateway, "1-0")) == "a≠b≠c≠d"
    assert text(await ask(gateway)) == "abcd"


async def test_faults_strike_in_a_stream_that_is_taken_up() -> None:
    gateway = FakeGateway(tokens=6, event_ids=True)
    gateway.fault(Cut(), token=2, request=1)
    gateway.fault(Status(503), request=2)
    gateway.fault(Cut(), token=1, request=3)  # which was sent before
    gateway.fault(Cut(), token=4, request=3)
    first = await ask(gateway)
    assert (await ask(gateway, "1-3")).status == 503
    second = await ask(gateway, "1-3")
    third = await ask(gateway, events(second)[-1][0])
    assert [seen.tokens for seen in gateway.requests] == [2, 0, 2, 2]
    assert text(first, second, third) == gateway.intended(chat())


async def test_what_is_kept_comes_at_once_and_the_rest_token_by_token(
    autojump_clock: trio.testing.MockClock,
) -> None:
    gateway = FakeGateway(tokens=5, token_interval=10, event_ids=True)
    gateway.fault(Cut(), token=3)
    await ask(gateway)
    arrived: list[tuple[str, float]] = []
    async with in_memory(gateway) as wire:
        await wire.send(chat(), gateway.key, headers={"last-event-id": "1-2"})
        started = trio.current_time()
        while True:
            event = await wire.event()
            if isinstance(event, h11.EndOfMessage):
                break
            if isinstance(event, h11.Data):
                piece = Answer(body=bytes(event.data))
                now = trio.current_time() - started
                arrived += [(event_id, now) for event_id, _ in events(piece)]
    assert arrived == [("1-3", 0), ("1-4", 0), ("1-5", 10), ("1-6", 20), ("1-7", 20), ("1-8", 20)]


async def test_a_stream_can_be_taken_up_while_it_is_still_being_sent(
    autojump_clock: trio.testing.MockClock,
) -> None:
    gateway = FakeGateway(tokens=6, token_interval=1, event_ids=True)
    async with in_memory(gateway) as wire:
        await wire.send(chat(), gateway.key)
        await trio.sleep(2.5)
        second = await ask(gateway, "1-0")
        first = await wire.answer()
    assert first.body == second.body
    assert text(first) == gateway.intended(chat())
    assert sum(seen.tokens for seen in gateway.requests) == 6


async def test_httpx_takes_up_a_stream_over_tcp() -> None:
    gateway = FakeGateway(event_ids=True)
    gateway.fault(Cut(), token=5)
    headers = {"authorization": f"Bearer {gateway.key}"}
    body = b""
    async with gateway.listen() as base_url, httpx.AsyncClient(headers=headers) as client:
        url = f"{base_url}/chat/completions"
        with pytest.raises(httpx.RemoteProtocolError):
            async with client.stream("POST", url, json=chat()) as response:
                async for piece in response.aiter_bytes():
                    body += piece
        last = events(Answer(body=body))[-1][0]
        rest = await client.post(url, json=chat(), headers={"last-event-id": last})
    assert text(Answer(body=body + rest.content)) == gateway.intended(chat())


# The SDK stops at `[DONE]` and leaves its generators, and httpx's, to the garbage collector.
@pytest.mark.filterwarnings("ignore:Async generator '(openai|httpx2|httpcore2):ResourceWarning")
async def test_the_openai_sdk_reads_events_with_ids() -> None:
    gateway = FakeGateway(event_ids=True)
    received = ""
    async with gateway.http_client(httpx2) as client:
        sdk = openai.AsyncOpenAI(
            api_key=gateway.key, base_url=gateway.base_url, http_client=client, max_retries=0
        )
        async with await sdk.chat.completions.create(
            model="fake-model",
            messages=[{"role": "user", "content": "Hello"}],
            stream=True,
            extra_headers={"Last-Event-ID": "9-9"},
        ) as stream:
            async for chunk in stream:
                received += chunk.choices[0].delta.content or ""
    assert received == gateway.intended(chat())
