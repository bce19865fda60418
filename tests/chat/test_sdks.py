"""The SDKs of OpenAI and Anthropic, as they are, over `Gateway.http_client`: they see no 401."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal, TypeAlias, get_args

import anthropic
import httpx
import httpx2
import openai
import pytest
import trio
from trio.testing import MockClock

from gz_trio import Delta, Gateway, RetryPolicy, ToolCallDelta
from gz_trio.testing import Cut, ErrorFrame, FakeGateway, Status
from tests.chats import open_over

# The SDKs stop reading at `[DONE]`, and leave their generators to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Async generator '(openai|anthropic|httpx|httpx2)\\.:ResourceWarning"
)

ApiName: TypeAlias = Literal["chat", "responses", "messages"]
APIS: tuple[ApiName, ...] = get_args(ApiName)

PATHS: Mapping[ApiName, Any] = {
    "chat": "/v1/chat/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
}

USER: Any = {"role": "user", "content": "Tell me a story."}
MODEL = "fake-model"


def openai_sdk(gateway: Gateway, **options: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        api_key="of the SDK", http_client=gateway.http_client(httpx2), **options
    )


def anthropic_sdk(gateway: Gateway, **options: Any) -> anthropic.AsyncAnthropic:
    base_url = str(gateway.http_client(httpx2).base_url).removesuffix("v1/")
    return anthropic.AsyncAnthropic(
        api_key="of the SDK",
        base_url=base_url,
        http_client=gateway.http_client(httpx2),
        **options,
    )


Watch: TypeAlias = Callable[[int], object]
"""Called with how many events of a stream there were so far."""


async def whole_stream(
    gateway: Gateway, api: ApiName, watch: Watch = lambda _: None, **options: Any
) -> dict[str, Any]:
    """What an SDK's own accumulator makes of a stream, but for what differs each time."""
    seen = 0
    match api:
        case "chat":
            sdk = openai_sdk(gateway, base_url=gateway.http_client().base_url, **options)
            async with sdk.chat.completions.stream(model=MODEL, messages=[USER]) as chunks:
                async for _ in chunks:
                    watch(seen := seen + 1)
                final: Any = await chunks.get_final_completion()
        case "responses":
            sdk = openai_sdk(gateway, base_url=gateway.http_client().base_url, **options)
            async with sdk.responses.stream(model=MODEL, input=[USER]) as events:
                async for _ in events:
                    watch(seen := seen + 1)
                final = await events.get_final_response()
        case "messages":
            claude = anthropic_sdk(gateway, **options)
            async with claude.messages.stream(
                model=MODEL, max_tokens=100, messages=[USER]
            ) as parts:
                async for _ in parts:
                    watch(seen := seen + 1)
                final = await parts.get_final_message()
    whole: dict[str, Any] = json.loads(final.model_dump_json(), object_hook=_comparable)
    return whole


def _comparable(fields: dict[str, Any]) -> dict[str, Any]:
    """What does not differ from one answer to the next."""
    differs = ("id", "created", "created_at", "call_id")
    return {name: field for name, field in fields.items() if name not in differs}


async def whole_answer(gateway: Gateway, api: ApiName, **options: Any) -> str:
    """The text of an answer that is no stream."""
    if api == "messages":
        message = await anthropic_sdk(gateway, **options).messages.create(
            model=MODEL, max_tokens=100, messages=[USER]
        )
        return "".join(block.text for block in message.content if block.type == "text")
    sdk = openai_sdk(gateway, base_url=gateway.http_client().base_url, **options)
    if api == "chat":
        completion = await sdk.chat.completions.create(model=MODEL, messages=[USER])
        return completion.choices[0].message.content or ""
    return (await sdk.responses.create(model=MODEL, input=[USER])).output_text


ANSWERS: dict[str, Callable[[Mapping[str, object], int], Sequence[str | Delta]]] = {
    "text": lambda _, __: ["Once ", "upon ", "a ", "time", "."],
    "thinking, text and tools": lambda _, number: [
        Delta(reasoning="Let me "),
        Delta(reasoning="think."),
        "I look ",
        "it up.",
        Delta(tool_calls=(ToolCallDelta(0, f"call_{number}", "weather", '{"ci'),)),
        Delta(tool_calls=(ToolCallDelta(0, arguments='ty": "Köln"}'),)),
        Delta(tool_calls=(ToolCallDelta(1, f"call_{number}_b", "time", "{"),)),
        Delta(tool_calls=(ToolCallDelta(1, arguments="}"),)),
    ],
}


@pytest.mark.parametrize("max_retries", [0, 2])
@pytest.mark.parametrize("on_rotation", ["frame", "cut"])
@pytest.mark.parametrize("api", APIS)
async def test_a_stream_goes_on_over_a_rotation(
    api: ApiName,
    on_rotation: Literal["frame", "cut"],
    max_retries: int,
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(token_interval=0.1, on_rotation=on_rotation)
    async with open_over(fake) as gateway:
        undisturbed = await whole_stream(gateway, api)
        rotated = await whole_stream(
            gateway,
            api,
            lambda seen: fake.rotate() if seen == 6 else None,
            max_retries=max_retries,
        )
    assert rotated == undisturbed
    assert fake.refreshes == 1


@pytest.mark.parametrize("max_retries", [0, 2])
@pytest.mark.parametrize("api", APIS)
async def test_an_answer_that_is_no_stream_is_asked_for_again(
    api: ApiName, max_retries: int, autojump_clock: MockClock
) -> None:
    fake = FakeGateway()
    async with open_over(fake, key="dead") as gateway:
        text = await whole_answer(gateway, api, max_retries=max_retries)
        fake.fault(Cut(after_bytes=40), path=PATHS[api])
        fake.fault(Status(503), path=PATHS[api])
        assert await whole_answer(gateway, api, max_retries=max_retries) == text
    assert text
    assert fake.refreshes == 1


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("api", APIS)
def test_it_is_the_same_wherever_the_stream_was_cut(api: ApiName, answer: str) -> None:
    # Each SDK checks on its own that events come in order, once each, with the ids they had.
    async def stream(*cuts: int) -> tuple[dict[str, Any], int]:
        fake = FakeGateway(answer=ANSWERS[answer])
        for request, after_bytes in enumerate(cuts, 1):
            fake.fault(Cut(after_bytes), request=request, path=PATHS[api], token=0)
        async with open_over(fake) as gateway:
            return await whole_stream(gateway, api, max_retries=0), len(fake.requests)

    undisturbed, _ = run(stream)
    at = 0
    while True:
        outcome, requests = run(stream, at, at + 131)
        assert outcome == undisturbed, f"cut after {at} bytes"
        if requests == 1:
            break
        at += 53


def run(main: Callable[..., Awaitable[Any]], *args: object) -> Any:
    return trio.run(main, *args, clock=MockClock(autojump_threshold=0))


async def test_several_choices_are_each_told_once(autojump_clock: MockClock) -> None:
    tokens = [(0, "yes"), (1, "no"), (1, ", no"), (0, ", well"), (0, "."), (1, "!")]

    def answer(_body: object, number: int) -> list[Delta]:
        if number == 2:  # The same in other pieces, two choices in one event.
            raw = (
                b'{"choices":[{"index":0,"delta":{"content":"yes, we"}},'
                b'{"index":1,"delta":{"content":"no, no"}}]}'
            )
            both = Delta(text="yes, we", choice=0, raw=raw)
            return [both, Delta(text="ll.", choice=0), Delta(text="!", choice=1)]
        return [Delta(text=text, choice=choice) for choice, text in tokens]

    fake = FakeGateway(answer=answer)
    fake.fault(Cut(), token=3, request=1)
    async with open_over(fake) as gateway:
        sdk = openai_sdk(gateway, base_url=gateway.http_client().base_url, max_retries=0)
        texts = {0: "", 1: ""}
        async for chunk in await sdk.chat.completions.create(
            model=MODEL, messages=[USER], n=2, stream=True
        ):
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
    assert texts == {0: "yes, well.", 1: "no, no!"}


async def test_the_next_turn_goes_on_from_the_response_that_the_server_knows(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway()
    fake.fault(Cut(), token=3, path="/v1/responses")
    async with open_over(fake) as gateway:
        sdk = openai_sdk(gateway, base_url=gateway.http_client().base_url, max_retries=0)
        async with sdk.responses.stream(model=MODEL, input=[USER]) as events:
            first = await events.get_final_response()
        second = await sdk.responses.create(
            model=MODEL, input=[USER], previous_response_id=first.id
        )
    assert second.status == "completed"
    sent = fake.requests[-1].body
    assert sent is not None
    assert sent["previous_response_id"] != first.id


# Failures


async def test_another_answer_ends_in_the_sdks_own_error(autojump_clock: MockClock) -> None:
    fake = FakeGateway(answer=lambda _, number: ["Once ", f"more {number}", "."])
    fake.fault(Cut(), token=2)
    text = ""
    async with open_over(fake) as gateway:
        sdk = openai_sdk(gateway, base_url=gateway.http_client().base_url, max_retries=0)
        chunks = await sdk.chat.completions.create(model=MODEL, messages=[USER], stream=True)
        with pytest.raises(openai.APIConnectionError) as raised:
            async for chunk in chunks:
                text += chunk.choices[0].delta.content or ""
    assert text == "Once more 1"
    assert isinstance(raised.value.__cause__, httpx2.ReadError)
    assert "different one" in str(raised.value.__cause__)


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_refused_refresh_is_a_401_that_says_to_log_in(
    stream: bool, api: ApiName, autojump_clock: MockClock
) -> None:
    fake = FakeGateway()
    fake.refuse_refresh = True
    async with open_over(fake, key="dead") as gateway:
        with pytest.raises(
            (openai.AuthenticationError, anthropic.AuthenticationError),
            match="Please log in again",
        ):
            await (whole_stream if stream else whole_answer)(gateway, api, max_retries=2)
    assert len(fake.requests) == fake.refreshes == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_when_our_retries_are_used_up_the_sdk_does_not_begin_anew(
    stream: bool, autojump_clock: MockClock
) -> None:
    fake = FakeGateway()
    fake.fault(Status(503), times=None)
    async with open_over(fake, retry=RetryPolicy(max_retries=2)) as gateway:
        with pytest.raises(openai.InternalServerError):
            await (whole_stream if stream else whole_answer)(gateway, "chat", max_retries=5)
    assert len(fake.requests) == 3


async def test_an_error_frame_before_any_event_is_the_error_of_its_status(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway()
    fake.fault(ErrorFrame("not_found_error", status=404), token=0, times=None)
    async with open_over(fake) as gateway:
        with pytest.raises(openai.NotFoundError):
            await whole_stream(gateway, "chat")


async def test_silence_is_the_sdks_timeout_and_our_pauses_are_none(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(auth_latency=20.0)
    async with open_over(fake, key="dead") as gateway:
        assert await whole_stream(gateway, "chat", timeout=5.0)
        fake.token_interval = 6.0
        with pytest.raises(openai.APITimeoutError):
            await whole_stream(gateway, "chat", timeout=5.0, max_retries=0)


@asynccontextmanager
async def left(gateway: Gateway) -> AsyncGenerator[None]:
    sdk = openai_sdk(gateway, base_url=gateway.http_client().base_url)
    chunks = await sdk.chat.completions.create(model=MODEL, messages=[USER], stream=True)
    await anext(chunks)
    yield
    await chunks.close()


async def test_a_stream_that_is_closed_is_ended_at_the_gateway(autojump_clock: MockClock) -> None:
    fake = FakeGateway(token_interval=1.0)
    async with open_over(fake) as gateway:
        async with left(gateway):
            assert fake.open_streams == 1
        await trio.testing.wait_all_tasks_blocked()
        assert fake.open_streams == 0


async def test_openai_takes_a_client_of_either_module(autojump_clock: MockClock) -> None:
    fake = FakeGateway()
    async with open_over(fake, key="dead") as gateway:
        clients: list[Any] = [gateway.http_client(httpx), gateway.http_client(httpx2)]
        for client in clients:
            sdk = openai.AsyncOpenAI(
                api_key="of the SDK", base_url=client.base_url, http_client=client
            )
            completion = await sdk.chat.completions.create(model=MODEL, messages=[USER])
            assert completion.choices[0].message.content
