"""What the fake gateway answers, held against the OpenAI SDK: its types, and its client."""

from collections.abc import Mapping, Sequence
from typing import cast

import httpx2
import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionUserMessageParam

from gz_trio._protocol.events import Delta, ToolCallDelta
from gz_trio.testing import FakeGateway, Shape
from tests.testing.fake_gateway_wire import CHAT, JSON, Answer, Connect, chat, in_memory

QUESTION: ChatCompletionUserMessageParam = {"role": "user", "content": "Hello"}

TOOL_CALL = [
    Delta(reasoning="Let me "),
    Delta(reasoning="look.", reasoning_details=({"type": "reasoning.text", "text": "look"},)),
    Delta(tool_calls=(ToolCallDelta(0, "call_1", "weather", ""),)),
    Delta(tool_calls=(ToolCallDelta(0, arguments='{"place":'),)),
    Delta(tool_calls=(ToolCallDelta(0, arguments='"Zürich"}'),)),
    Delta(tool_calls=(ToolCallDelta(1, "call_2", "time", "{}"),)),
]


def rich_answer(body: Mapping[str, object], attempt: int) -> Sequence[str | Delta]:
    return TOOL_CALL


async def ask(gateway: FakeGateway, body: JSON, connect: Connect = in_memory) -> Answer:
    async with connect(gateway) as wire:
        return await wire.ask(body, gateway.key)


def finish_reasons(answer: Answer) -> dict[int, object]:
    return {
        cast("int", choice["index"]): choice["finish_reason"]
        for chunk in answer.chunks
        for choice in cast("list[JSON]", chunk.get("choices", []))
        if choice["finish_reason"] is not None
    }


async def test_a_stream_is_role_tokens_finish_reason_and_done(connect: Connect) -> None:
    gateway = FakeGateway(tokens=3)
    answer = await ask(gateway, chat(), connect)
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.data[-1] == "[DONE]"
    deltas = [cast("list[JSON]", chunk["choices"])[0]["delta"] for chunk in answer.chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert [set(cast("JSON", delta)) for delta in deltas[1:]] == [{"content"}] * 3 + [set()]
    assert finish_reasons(answer) == {0: "stop"}
    assert answer.text() == gateway.intended(chat())


@pytest.mark.parametrize(
    ("gateway", "body"),
    [
        (FakeGateway(), chat()),
        (FakeGateway(), chat(stream_options={"include_usage": True})),
        (FakeGateway(), chat(max_tokens=3)),
        (FakeGateway(), chat(n=3)),
        (FakeGateway(tokens=0), chat()),
        (FakeGateway(answer=rich_answer), chat(stream_options={"include_usage": True})),
    ],
)
async def test_every_chunk_is_one_by_the_openai_sdk(gateway: FakeGateway, body: JSON) -> None:
    answer = await ask(gateway, body)
    chunks = [ChatCompletionChunk.model_validate(chunk, strict=True) for chunk in answer.chunks]
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.parametrize(
    ("gateway", "body"),
    [
        (FakeGateway(), chat(stream=False)),
        (FakeGateway(), chat(stream=False, n=2)),
        (FakeGateway(answer=rich_answer), chat(stream=False)),
    ],
)
async def test_an_answer_in_one_piece_is_one_by_the_openai_sdk(
    gateway: FakeGateway, body: JSON
) -> None:
    answer = await ask(gateway, body)
    completion = ChatCompletion.model_validate(answer.json, strict=True)
    assert (completion.choices[0].message.content or "") == gateway.intended(body)
    assert completion.usage is not None
    assert completion.usage.completion_tokens > 0


async def test_the_same_messages_get_the_same_text_and_other_messages_another() -> None:
    gateway = FakeGateway(tokens=1)
    first = await ask(gateway, chat("one"))
    again = await ask(gateway, chat("one", stream_options={"include_usage": True}))
    other = await ask(gateway, chat("two"))
    assert first.text() == again.text() != other.text()


def test_the_text_holds_characters_of_every_length_in_utf8_and_breaks_of_lines() -> None:
    text = FakeGateway(tokens=500).intended(chat())
    assert {len(character.encode()) for character in text} == {1, 2, 3, 4}
    assert {"\n", "\u2028", "\u0085"} <= set(text)


async def test_max_tokens_ends_the_answer_with_length() -> None:
    gateway = FakeGateway(tokens=5)
    whole = gateway.intended(chat())
    for body in (chat(max_tokens=2), chat(max_completion_tokens=2)):
        answer = await ask(gateway, body)
        assert finish_reasons(answer) == {0: "length"}
        assert answer.text() == gateway.intended(body)
        assert whole.startswith(answer.text())
        assert gateway.requests[-1].tokens == 2
    assert finish_reasons(await ask(gateway, chat(max_tokens=5))) == {0: "stop"}


async def test_several_choices_interleave_and_differ() -> None:
    answer = await ask(FakeGateway(tokens=3), chat(n=2))
    order = [
        choice["index"]
        for chunk in answer.chunks
        for choice in cast("list[JSON]", chunk["choices"])
        if cast("JSON", choice["delta"]).get("content")
    ]
    assert order == [0, 1, 0, 1, 0, 1]
    assert answer.text(0) != answer.text(1)
    assert finish_reasons(answer) == {0: "stop", 1: "stop"}


async def test_usage_comes_last_and_only_where_it_was_asked_for() -> None:
    gateway = FakeGateway(tokens=4)
    asked = await ask(gateway, chat("two words", stream_options={"include_usage": True}))
    assert asked.chunks[-1]["choices"] == []
    assert asked.chunks[-1]["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": 4,
        "total_tokens": 6,
    }
    assert all(chunk["usage"] is None for chunk in asked.chunks[:-1])
    assert not any("usage" in chunk for chunk in (await ask(gateway, chat())).chunks)


async def test_the_words_of_the_messages_are_the_tokens_of_the_prompt() -> None:
    parts = [
        {"type": "text", "text": "three words here"},
        {"type": "image_url", "image_url": {"url": "data:,"}},
    ]
    messages = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": parts}]
    body: JSON = {"model": "fake-model", "messages": messages}
    answer = ChatCompletion.model_validate((await ask(FakeGateway(), body)).json)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 5


async def test_an_answer_may_hold_reasoning_and_tool_calls() -> None:
    gateway = FakeGateway(answer=rich_answer)
    answer = await ask(gateway, chat())
    assert answer.text(field="reasoning_content") == "Let me look."
    assert finish_reasons(answer) == {0: "tool_calls"}
    whole = ChatCompletion.model_validate((await ask(gateway, chat(stream=False))).json)
    calls = whole.choices[0].message.tool_calls or []
    assert [
        (call.id, call.function.name, call.function.arguments)
        for call in calls
        if call.type == "function"
    ] == [("call_1", "weather", '{"place":"Zürich"}'), ("call_2", "time", "{}")]


async def test_an_answer_may_hold_events_of_any_shape_and_its_own_finish_reason() -> None:
    event = b'{"type":"tool_result","tool_call_id":"call_1","success":false,"error":"no"}'
    gateway = FakeGateway(
        answer=lambda body, attempt: [
            Delta(raw=event),
            Delta(text="no", finish_reason="content_filter"),
        ]
    )
    answer = await ask(gateway, chat())
    assert answer.data[0] == event.decode()
    assert finish_reasons(answer) == {0: "content_filter"}


async def test_answer_is_told_which_attempt_at_the_same_body_it_answers() -> None:
    seen: list[tuple[object, int]] = []

    def answer(body: Mapping[str, object], attempt: int) -> list[str]:
        seen.append((body["user"], attempt))
        return [f"attempt {attempt}"]

    gateway = FakeGateway(answer=answer)
    async with in_memory(gateway) as wire:
        await wire.ask(chat(user="a"), "wrong key")
        await wire.ask(chat(user="a"), gateway.key)
        await wire.ask(chat(user="b"), gateway.key)
        second = await wire.ask(chat(user="a"), gateway.key)
    assert seen == [("a", 1), ("b", 1), ("a", 2)]
    assert second.text() == "attempt 2"
    assert gateway.intended(chat(user="a")) == "attempt 1"


@pytest.mark.parametrize(
    ("shape", "first"),
    [
        ("fireworks", {"output": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]}),
        ("responses", {"type": "response.output_text.delta", "delta": "a"}),
    ],
)
async def test_chunks_come_in_other_shapes_too(shape: Shape, first: JSON) -> None:
    gateway = FakeGateway(answer=lambda body, attempt: ["a", "b"], shape=shape)
    answer = await ask(gateway, chat())
    assert first in answer.chunks
    assert answer.data[-1] == "[DONE]"


async def test_an_unknown_model_is_not_found() -> None:
    assert (await ask(FakeGateway(), chat(model="other"))).status == 404
    assert (await ask(FakeGateway(models=["a", "b"]), chat(model="b"))).status == 200
    assert (await ask(FakeGateway(models=None), chat(model="other"))).status == 200


@pytest.mark.parametrize("body", [{}, {"messages": "Hello"}, None])
async def test_a_request_without_messages_is_unprocessable(body: JSON | None) -> None:
    gateway = FakeGateway()
    async with in_memory(gateway) as wire:
        assert (await wire.ask(body, gateway.key)).status == 422


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", CHAT, 405),
        ("GET", "/auth", 405),
        ("POST", "/v1/models", 405),
        ("POST", "/v1/auth", 404),
        ("POST", "/chat/completions", 404),
        ("GET", "/v1/models", 200),
        ("GET", "/v1/models?limit=1", 200),
    ],
)
async def test_what_is_not_there_is_refused(method: str, path: str, status: int) -> None:
    gateway = FakeGateway()
    async with in_memory(gateway) as wire:
        assert (await wire.ask(None, gateway.key, method=method, path=path)).status == status


# The SDK stops at `[DONE]` and leaves its generators, and httpx's, to the garbage collector.
@pytest.mark.filterwarnings("ignore:Async generator '(openai|httpx2|httpcore2):ResourceWarning")
class TestTheOpenAISDK:
    """The SDK reads the fake gateway as it reads OpenAI."""

    @pytest.fixture(params=["in memory", "over TCP"])
    def over_tcp(self, request: pytest.FixtureRequest) -> bool:
        return bool(request.param == "over TCP")

    async def test_streams_an_answer(self, over_tcp: bool) -> None:
        gateway = FakeGateway(tokens=40)
        if over_tcp:
            async with gateway.listen() as base_url, httpx2.AsyncClient() as client:
                await self.stream(gateway, base_url, client)
        else:
            async with gateway.http_client(httpx2) as client:
                await self.stream(gateway, gateway.base_url, client)
        assert gateway.requests[-1].complete

    async def stream(self, gateway: FakeGateway, base_url: str, client: httpx2.AsyncClient) -> None:
        sdk = openai.AsyncOpenAI(
            api_key=gateway.key, base_url=base_url, http_client=client, max_retries=0
        )
        text = ""
        async with await sdk.chat.completions.create(
            model="fake-model", messages=[QUESTION], stream=True
        ) as stream:
            async for chunk in stream:
                text += chunk.choices[0].delta.content or ""
        assert text == gateway.intended({"messages": [QUESTION]})
        whole = await sdk.chat.completions.create(model="fake-model", messages=[QUESTION])
        assert whole.choices[0].message.content == text
        assert [model.id async for model in sdk.models.list()] == ["fake-model"]

    async def test_raises_its_own_errors(self) -> None:
        gateway = FakeGateway()
        async with gateway.http_client(httpx2) as client:
            sdk = openai.AsyncOpenAI(
                api_key=gateway.key, base_url=gateway.base_url, http_client=client, max_retries=0
            )
            with pytest.raises(openai.NotFoundError):
                await sdk.chat.completions.create(model="other", messages=[QUESTION])
            gateway.rotate()
            with pytest.raises(openai.AuthenticationError):
                await sdk.models.list()

    async def test_joins_tool_calls(self) -> None:
        gateway = FakeGateway(answer=rich_answer)
        async with gateway.http_client(httpx2) as client:
            sdk = openai.AsyncOpenAI(
                api_key=gateway.key, base_url=gateway.base_url, http_client=client
            )
            async with sdk.chat.completions.stream(
                model="fake-model", messages=[QUESTION]
            ) as stream:
                completion = await stream.get_final_completion()
        calls = completion.choices[0].message.tool_calls or []
        assert [call.function.arguments for call in calls] == ['{"place":"Zürich"}', "{}"]
