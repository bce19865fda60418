"""Replies over the Responses and the Messages API: as whole as over chat completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Literal, cast

import pytest
import trio
from trio.testing import MockClock

from gz_trio import (
    AuthenticationError,
    Delta,
    Finished,
    Gateway,
    GatewayError,
    InternalServerError,
    MemoryKeyStore,
    RawEvent,
    ResumePolicy,
    RetryPolicy,
    StreamInterrupted,
    Timeouts,
    ToolCallDelta,
    open_authenticator,
    open_gateway,
)
from gz_trio._protocol.apis import ApiName
from gz_trio.testing import Cut, ErrorFrame, FakeGateway, Reset, Stall, Status, Warning_
from tests.chats import Told, open_over, tell
from tests.ways import channels_of

TOKENS = 12
BACKGROUND = ResumePolicy(background=True)

PATHS: dict[ApiName, Literal["/v1/chat/completions", "/v1/responses", "/v1/messages"]] = {
    "chat": "/v1/chat/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
}
BODIES: dict[ApiName, dict[str, object]] = {
    "chat": {"model": "fake-model", "messages": [{"role": "user", "content": "Hi"}]},
    "responses": {"model": "fake-model", "input": "Hi"},
    "messages": {
        "model": "fake-model",
        "max_tokens": 1000,
        "messages": [{"role": "user", "content": "Hi"}],
    },
}

both = pytest.mark.parametrize("api", ["responses", "messages"])
all_three = pytest.mark.parametrize("api", ["chat", "responses", "messages"])
on_each_rotation = pytest.mark.parametrize("on_rotation", ["frame", "cut"])

EVERYTHING: Sequence[str | Delta] = [
    Delta(reasoning="Let me "),
    Delta(reasoning="think."),
    "Once 🦊",
    " upon",
    Delta(tool_calls=(ToolCallDelta(0, None, "look", '{"at":'),)),
    Delta(tool_calls=(ToolCallDelta(0, arguments="1}"),)),
    Delta(tool_calls=(ToolCallDelta(1, None, "wait", "{}"),)),
]


def everything(_body: Mapping[str, object], _attempt: int) -> Sequence[str | Delta]:
    return EVERYTHING


def made(fake: FakeGateway) -> int:
    """How many tokens the model has made for all requests."""
    return sum(request.tokens for request in fake.requests)


async def ask(fake: FakeGateway, api: ApiName, *, stream: bool) -> bytes:
    """What the gateway answers to somebody else."""
    headers = {"x-api-key": fake.key, "anthropic-version": "2023-06-01"}
    body = {**BODIES[api], "stream": stream}
    async with fake.http_client() as client:
        path = PATHS[api].removeprefix("/v1")
        return (await client.post(path, json=body, headers=headers)).content


def ways(told: Told) -> list[str | None]:
    return [attempt.resumed_by for attempt in told.reply.attempts]


def assert_whole(fake: FakeGateway, told: Told, api: ApiName) -> None:
    assert told.error is None
    assert told.text == told.reply.text == fake.intended(BODIES[api])
    assert isinstance(told.events[-1], Finished)


# What a reply is


@all_three
async def test_the_same_answer_is_the_same_deltas(api: ApiName) -> None:
    fake = FakeGateway(answer=everything)
    async with open_over(fake) as gateway:
        told = await tell(gateway, BODIES[api], api=api)
    assert channels_of(told.events) == {
        (0, "reasoning"): "Let me think.",
        (0, "text"): "Once 🦊 upon",
        (0, "name 0"): "look",
        (0, "arguments 0"): '{"at":1}',
        (0, "name 1"): "wait",
        (0, "arguments 1"): "{}",
    }
    assert told.reply.finish_reason == "tool_calls"
    assert told.happened == [told.events[-1]]
    if api != "chat":
        assert told.reply.usage is not None
        assert told.reply.usage.completion_tokens == len(EVERYTHING)


@all_three
async def test_a_whole_answer_to_a_request_for_a_stream_is_taken(api: ApiName) -> None:
    """As from servers that ignore `stream`."""
    fake = FakeGateway(answer=everything)
    async with open_over(fake) as gateway:
        told = await tell(gateway, BODIES[api], api=api)
        whole = await ask(fake, api, stream=False)
        as_json = {"content-type": "application/json"}
        fake.fault(Status(200, body=whole, headers=as_json), path=PATHS[api])
        again = await tell(gateway, BODIES[api], api=api)
    assert again.error is None
    assert channels_of(again.events) == channels_of(told.events)


@both
async def test_no_event_is_dropped(api: ApiName) -> None:
    fake = FakeGateway(answer=everything)
    fake.fault(Warning_("look out"), token=3, path=PATHS[api])
    async with open_over(fake) as gateway:
        told = await tell(gateway, BODIES[api], api=api)
    (raw,) = [event for event in told.events if isinstance(event, RawEvent)]
    assert b"look out" in raw.data
    raws = [event.raw for event in told.events if isinstance(event, Delta)]
    sent = await ask(fake, api, stream=True)
    datas = [line[6:] for line in sent.splitlines() if line.startswith(b"data: ")]
    assert [_kind(data) for data in datas if b'"ping"' not in data] == [_kind(raw) for raw in raws]


def _kind(data: bytes) -> bytes:
    return data.partition(b'"type":"')[2].partition(b'"')[0]


@pytest.mark.parametrize(("limit", "reason"), [({"max_output_tokens": 3}, "length"), ({}, "stop")])
async def test_an_incomplete_response_is_no_failure(limit: dict[str, object], reason: str) -> None:
    fake = FakeGateway()
    async with open_over(fake) as gateway:
        told = await tell(gateway, BODIES["responses"] | limit, api="responses")
    assert told.error is None
    assert told.reply.finish_reason == reason


async def test_an_api_that_there_is_not_is_an_error_at_once() -> None:
    async with open_over(FakeGateway()) as gateway:
        with pytest.raises(ValueError, match="'chat', 'responses' or 'messages'"):
            gateway.stream({}, api="completions")  # type: ignore[arg-type]  # on purpose
        with pytest.raises(ValueError, match="'chat', 'responses' or 'messages'"):
            gateway.open_session("fake-model", api="Chat")  # type: ignore[arg-type]  # on purpose


# Broken anywhere


@both
@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.slow)])
async def test_cut_after_any_byte_nothing_is_lost_and_nothing_doubled(
    autojump_clock: MockClock, api: ApiName, step: int
) -> None:
    """For Responses the model runs once, from the moment at which the response has a name."""
    fake = FakeGateway(answer=everything)
    length = len(await ask(fake, api, stream=True))
    resume = BACKGROUND if api == "responses" else None
    async with open_over(fake, resume=resume) as gateway:
        whole = channels_of((await tell(gateway, BODIES[api], api=api)).events)
        for cut in range(0, length, step):
            fake.requests.clear()
            fake.fault(Cut(cut), token=0, path=PATHS[api])
            told = await tell(gateway, BODIES[api], api=api)
            assert told.error is None, cut
            assert channels_of(told.events) == whole, cut
            assert isinstance(told.events[-1], Finished)
            if api == "responses" and None not in ways(told)[1:]:
                assert set(ways(told)[1:]) <= {"cursor"}, cut
                assert made(fake) == len(EVERYTHING), cut


@both
@on_each_rotation
async def test_a_key_that_dies_after_any_token_is_one_refresh_and_nothing_lost_or_doubled(
    autojump_clock: MockClock, api: ApiName, on_rotation: Literal["frame", "cut"]
) -> None:
    resume = BACKGROUND if api == "responses" else None
    for token in range(TOKENS + 1):
        fake = FakeGateway(tokens=TOKENS, on_rotation=on_rotation)
        fake.fault(Stall(2.0), token=token, path=PATHS[api])
        async with open_over(fake, resume=resume) as gateway, trio.open_nursery() as nursery:
            nursery.start_soon(_after, 1.0, fake.rotate)
            told = await tell(gateway, BODIES[api], api=api)
        assert_whole(fake, told, api)
        assert fake.refreshes == 1
        if api == "responses" and token:
            assert made(fake) == TOKENS, "the model ran once"
            methods = [request.method for request in fake.requests]
            assert methods == ["POST"] + ["GET"] * (len(methods) - 1)


async def _after(seconds: float, action: Callable[[], object]) -> None:
    await trio.sleep(seconds)
    action()


@pytest.mark.parametrize("first", range(0, TOKENS + 1, 3))
@pytest.mark.parametrize("second", range(0, TOKENS + 1, 3))
async def test_a_response_is_taken_up_as_often_as_it_breaks(
    autojump_clock: MockClock, first: int, second: int
) -> None:
    fake = FakeGateway(tokens=TOKENS)
    fake.fault(Reset(), token=first, path="/v1/responses")
    fake.fault(Cut(), token=second, path="/v1/responses/{id}")
    async with open_over(fake, resume=BACKGROUND) as gateway:
        told = await tell(gateway, BODIES["responses"], api="responses")
    assert_whole(fake, told, "responses")
    if first:
        assert made(fake) == TOKENS


async def test_a_response_that_is_silent_is_taken_up_after_the_timeout(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(tokens=TOKENS)
    fake.fault(Stall(), token=5, path="/v1/responses")
    async with open_over(fake, resume=BACKGROUND, timeouts=Timeouts(between_tokens=10)) as gateway:
        told = await tell(gateway, BODIES["responses"], api="responses")
    assert_whole(fake, told, "responses")
    assert ways(told) == [None, "cursor"]
    assert made(fake) == TOKENS


async def test_a_response_that_the_server_has_lost_is_asked_for_again(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(tokens=TOKENS)
    fake.fault(Stall(1.0), token=5, path="/v1/responses")
    fake.fault(Cut(), token=5, path="/v1/responses")
    async with open_over(fake, resume=BACKGROUND) as gateway, trio.open_nursery() as nursery:
        nursery.start_soon(_after, 0.5, fake.forget_streams)
        told = await tell(gateway, BODIES["responses"], api="responses")
    assert_whole(fake, told, "responses")
    assert [request.status for request in fake.requests] == [200, 404, 200]
    assert ways(told) == [None, "cursor", "replay"]


@pytest.mark.parametrize(
    "fields", [{}, {"background": True, "store": False}, {"background": False}]
)
async def test_without_leave_to_keep_it_a_response_is_asked_for_again(
    autojump_clock: MockClock, fields: dict[str, object]
) -> None:
    fake = FakeGateway(tokens=TOKENS)
    fake.fault(Cut(), token=5, path="/v1/responses")
    async with open_over(fake) as gateway:
        told = await tell(gateway, BODIES["responses"] | fields, api="responses")
    assert told.error is None
    assert ways(told) == [None, "replay"]


# Failures


def failed(code: str) -> ErrorFrame:
    response = {"id": "resp_1", "status": "failed", "error": {"code": code, "message": "no"}}
    return ErrorFrame(data={"type": "response.failed", "response": response})


@pytest.mark.parametrize("code", ["server_error", "rate_limit_exceeded"])
async def test_a_response_that_failed_in_passing_is_asked_for_anew(
    autojump_clock: MockClock, code: str
) -> None:
    """Not by its cursor: it has failed for good."""
    fake = FakeGateway(tokens=TOKENS)
    fake.fault(failed(code), token=5, path="/v1/responses")
    async with open_over(fake, resume=BACKGROUND) as gateway:
        told = await tell(gateway, BODIES["responses"], api="responses")
    assert_whole(fake, told, "responses")
    assert ways(told) == [None, "replay"]
    assert told.seconds > 0


async def test_a_response_that_failed_for_good_is_told_as_that() -> None:
    fake = FakeGateway(tokens=TOKENS)
    fake.fault(failed("invalid_prompt"), token=5, path="/v1/responses")
    async with open_over(fake, resume=BACKGROUND) as gateway:
        told = await tell(gateway, BODIES["responses"], api="responses")
    assert isinstance(told.error, InternalServerError)
    assert told.error.code == "invalid_prompt"
    assert len(fake.requests) == 1
    assert told.error.partial == told.text != ""


@both
@pytest.mark.parametrize(
    ("status", "error"), [(401, AuthenticationError), (503, InternalServerError)]
)
async def test_statuses_mean_what_they_mean_everywhere(
    autojump_clock: MockClock, api: ApiName, status: int, error: type[GatewayError]
) -> None:
    fake = FakeGateway()
    fake.fault(Status(status, dialect="openai"), times=None, path=PATHS[api])
    async with open_over(fake, retry=RetryPolicy(max_retries=1), refresh=None) as gateway:
        told = await tell(gateway, BODIES[api], api=api)
    assert type(told.error) is error


async def test_what_a_gateway_sends_as_overloaded_is_waited_for(autojump_clock: MockClock) -> None:
    fake = FakeGateway()
    overloaded = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    fake.fault(ErrorFrame(data=overloaded), token=4, path="/v1/messages")
    async with open_over(fake) as gateway:
        told = await tell(gateway, BODIES["messages"], api="messages")
    assert_whole(fake, told, "messages")
    assert told.seconds > 1


async def test_an_answer_in_other_words_is_a_divergence() -> None:
    fake = FakeGateway(answer=lambda _body, attempt: ["one", f" {attempt}", " two"])
    fake.fault(Cut(), token=2, path="/v1/messages")
    async with open_over(fake) as gateway:
        told = await tell(gateway, BODIES["messages"], api="messages")
    assert isinstance(told.error, StreamInterrupted)
    assert told.error.partial == "one 1"


# Left early


@pytest.mark.parametrize("left_after", [1, 5])
async def test_a_response_that_nobody_wants_is_cancelled_on_the_server(left_after: int) -> None:
    fake = FakeGateway(tokens=TOKENS, token_interval=0.01)
    async with open_over(fake, resume=BACKGROUND) as gateway:
        async with gateway.stream(BODIES["responses"], api="responses") as reply:
            while reply.text.count(" ") < left_after:
                await anext(reply)
        assert [request.path for request in fake.requests] == [
            "/v1/responses",
            "/v1/responses/resp_1/cancel",
        ]


async def test_a_response_that_is_over_is_not_cancelled() -> None:
    fake = FakeGateway(tokens=TOKENS)
    async with open_over(fake, resume=BACKGROUND) as gateway:
        await tell(gateway, BODIES["responses"], api="responses")
        async with gateway.stream(BODIES["messages"], api="messages") as reply:
            await anext(reply)
    assert [request.path for request in fake.requests] == ["/v1/responses", "/v1/messages"]


async def test_a_server_that_does_not_answer_the_cancelling_is_waited_for_5_seconds(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(tokens=TOKENS, token_interval=0.01)
    fake.fault(Stall(), path="/v1/responses/{id}/cancel")
    async with open_over(fake, resume=BACKGROUND) as gateway:
        async with gateway.stream(BODIES["responses"], api="responses") as reply:
            await anext(reply)
            left = trio.current_time()
        assert trio.current_time() - left == pytest.approx(5.0)


async def test_leaving_by_cancellation_cancels_it_too(autojump_clock: MockClock) -> None:
    fake = FakeGateway(tokens=TOKENS, token_interval=1)
    async with open_over(fake, resume=BACKGROUND) as gateway:
        with trio.move_on_after(3.5):
            await tell(gateway, BODIES["responses"], api="responses")
    assert fake.requests[-1].path == "/v1/responses/resp_1/cancel"


# Sessions


@all_three
async def test_a_session_sends_back_what_the_api_wants(api: ApiName) -> None:
    """Thoughts with their signatures too, which the gateway checks."""
    fake = FakeGateway(answer=everything)
    system = {"role": "system", "content": "Be brief."}
    async with (
        open_over(fake) as gateway,
        gateway.open_session("fake-model", api=api, messages=[system]) as session,
    ):
        for question in ("One?", "Two?", "Three?"):
            async with session.stream(question) as reply:
                async for _ in reply:
                    pass
            assert session.messages[-len(reply.output) :] == reply.output
    bodies = [request.body or {} for request in fake.requests]
    match api:
        case "chat":
            assert reply.output == [reply.message]
            assert bodies[2]["messages"] == session.messages[:6]
        case "responses":
            kinds = [item["type"] for item in reply.output]
            assert kinds == ["reasoning", "message", "function_call", "function_call"]
            assert bodies[2]["input"] == session.messages[:12]
        case "messages":
            assert bodies[2]["system"] == [{"type": "text", "text": "Be brief."}]
            assert bodies[2]["messages"] == session.messages[1:6]
            assert bodies[2]["max_tokens"] == 4096
            content = reply.message["content"]
            assert isinstance(content, list)
            kinds = [block["type"] for block in cast("list[dict[str, object]]", content)]
            assert kinds == [
                "thinking", "text", "tool_use", "tool_use",
            ]  # fmt: skip


@both
async def test_a_call_goes_back_under_the_id_that_it_was_handed_out_with(
    autojump_clock: MockClock, api: ApiName
) -> None:
    """The second answer's calls have other ids."""
    fake = FakeGateway(answer=everything)
    fake.fault(Cut(), token=len(EVERYTHING), path=PATHS[api])
    async with open_over(fake) as gateway:
        told = await tell(gateway, BODIES[api], api=api)
    handed_out = [
        call.id for event in told.events if isinstance(event, Delta) for call in event.tool_calls
    ]
    field = "call_id" if api == "responses" else "id"
    content = told.reply.output if api == "responses" else told.reply.message["content"]
    parts = cast("list[dict[str, object]]", content)
    ids = [part[field] for part in parts if part["type"] in ("function_call", "tool_use")]
    assert ids == [call_id for call_id in handed_out if call_id is not None]
    assert told.reply.attempts[1].resumed_by == "replay"


@asynccontextmanager
async def gateway_with(fake: FakeGateway, **headers: str) -> AsyncGenerator[Gateway]:
    async with (
        fake.http_client() as client,
        open_authenticator(MemoryKeyStore(fake.key)) as authenticator,
        open_gateway(
            fake.base_url,
            authenticator,
            http_client=client,
            headers={name.replace("_", "-"): value for name, value in headers.items()},
            key_header="x-api-key",
        ) as gateway,
    ):
        yield gateway


@pytest.mark.parametrize(
    ("given", "sent"), [({}, "2023-06-01"), ({"Anthropic_Version": "2099-01-01"}, "2099-01-01")]
)
async def test_the_version_of_the_messages_api_is_said(given: dict[str, str], sent: str) -> None:
    fake = FakeGateway()
    async with (
        gateway_with(fake, **given) as gateway,
        gateway.open_session("fake-model", api="messages") as session,
    ):
        await session.ask("Hi")
    (request,) = fake.requests
    assert request.headers["anthropic-version"] == sent
    assert request.headers["x-api-key"] == "[secret]"
    assert "authorization" not in request.headers


async def test_a_continued_answer_of_the_messages_api_goes_back_whole(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(continues="prefill")
    fake.fault(Cut(), token=5, path="/v1/messages")
    resume = ResumePolicy(continue_="prefill")
    async with (
        open_over(fake, resume=resume) as gateway,
        gateway.open_session("fake-model", api="messages") as session,
        session.stream("Hi") as reply,
    ):
        async for _ in reply:
            pass
    assert [attempt.resumed_by for attempt in reply.attempts] == [None, "continue"]
    assert reply.message == {"role": "assistant", "content": reply.text}
    assert reply.text == fake.intended({"messages": session.messages[:1]})
