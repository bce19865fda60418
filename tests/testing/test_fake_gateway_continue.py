"""Servers that go on from a partial answer: how they are asked, and what they answer."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import httpx2
import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from gz_trio._protocol.events import Delta, ToolCallDelta
from gz_trio.testing import Continues, Cut, FakeGateway
from tests.testing.fake_gateway_wire import JSON, Answer, Connect, chat, in_memory

VLLM: JSON = {"add_generation_prompt": False, "continue_final_message": True}
FLAGS: dict[Continues, tuple[JSON, JSON]] = {  # of the body, and of the message
    "vllm": (VLLM, {}),
    "prefix": ({}, {"prefix": True}),
    "prefill": ({}, {}),
}

every_server = pytest.mark.parametrize("continues", FLAGS)


async def ask(gateway: FakeGateway, body: JSON, connect: Connect = in_memory) -> Answer:
    async with connect(gateway) as wire:
        return await wire.ask(body, gateway.key)


def continuing(partial: object, continues: Continues, body: JSON | None = None) -> JSON:
    """The body that asks a server of this kind to go on."""
    of_body, of_message = FLAGS[continues]
    return followed_by({"role": "assistant", "content": partial, **of_message}, body) | of_body


def followed_by(message: JSON, body: JSON | None = None) -> JSON:
    body = chat() if body is None else body
    return {**body, "messages": [*cast("list[JSON]", body["messages"]), message]}


def finish_reason(answer: Answer) -> str | None:
    chunks = [ChatCompletionChunk.model_validate(chunk, strict=True) for chunk in answer.chunks]
    return chunks[-1].choices[0].finish_reason


@every_server
async def test_the_model_goes_on_after_any_of_its_characters(continues: Continues) -> None:
    gateway = FakeGateway(tokens=30, continues=continues)
    whole = gateway.intended(chat())
    async with in_memory(gateway) as wire:
        for length in range(len(whole) + 1):
            partial = whole[:length].rstrip()
            body = continuing(partial, continues)
            answer = await wire.ask(body, gateway.key)
            # With the whitespace that the client has taken away.
            assert partial + answer.text() == whole
            assert finish_reason(answer) == "stop"
            assert gateway.intended(body) == whole


@every_server
async def test_an_answer_in_one_piece_goes_on_too(continues: Continues) -> None:
    gateway = FakeGateway(continues=continues)
    partial = gateway.intended(chat())[:20].rstrip()
    body = continuing(partial, continues, chat(stream=False))
    for echo in (False, True):
        gateway.echo = echo
        completion = ChatCompletion.model_validate((await ask(gateway, body)).json, strict=True)
        content = completion.choices[0].message.content or ""
        assert ("" if echo else partial) + content == gateway.intended(chat())


ASSISTANT: JSON = {"role": "assistant"}
PREFIX: JSON = {"prefix": True}
USER: JSON = {"role": "user"}


@pytest.mark.parametrize(
    ("continues", "of_body", "of_message", "expected"),
    [
        ("vllm", VLLM, ASSISTANT, "on"),
        ("vllm", {}, ASSISTANT, "anew"),
        ("vllm", {"add_generation_prompt": False}, ASSISTANT, "anew"),
        ("vllm", VLLM | {"continue_final_message": False}, ASSISTANT, "anew"),
        ("vllm", VLLM | {"add_generation_prompt": True}, ASSISTANT, 400),
        ("vllm", {"continue_final_message": True}, ASSISTANT, 400),
        ("vllm", {}, ASSISTANT | PREFIX, "anew"),
        ("vllm", VLLM, USER, "anew"),
        ("prefix", {}, ASSISTANT | PREFIX, "on"),
        ("prefix", VLLM, ASSISTANT | PREFIX, "on"),
        ("prefix", {}, ASSISTANT, 400),
        ("prefix", VLLM, ASSISTANT | {"prefix": False}, 400),
        ("prefix", {}, USER, "anew"),
        ("prefix", {}, USER | PREFIX, 400),
        ("prefill", {}, ASSISTANT, "on"),
        ("prefill", VLLM, ASSISTANT | PREFIX, "on"),
        ("prefill", {}, USER, "anew"),
        (None, {}, ASSISTANT, "anew"),
        (None, VLLM, ASSISTANT | PREFIX, "anew"),
        (None, {"continue_final_message": True}, USER, "anew"),
    ],
)
async def test_each_server_listens_to_its_own_flags(
    continues: Continues | None,
    of_body: JSON,
    of_message: JSON,
    expected: Literal["on", "anew", 400],
) -> None:
    gateway = FakeGateway(continues=continues)
    whole = gateway.intended(chat())
    partial = whole[:20].rstrip()
    body = followed_by({"content": partial, **of_message}) | of_body
    answer = await ask(gateway, body)
    if expected == 400:
        assert answer.status == 400
        assert gateway.requests[-1].tokens == 0
    elif expected == "on":
        assert partial + answer.text() == whole
    else:
        # An answer to another conversation, in full.
        assert gateway.requests[-1].tokens == 12
        assert answer.text() == gateway.intended(body)
        assert not (partial + answer.text()).startswith(whole)


async def test_a_prefix_is_only_on_the_last_message() -> None:
    gateway = FakeGateway(continues="prefix")
    body = followed_by({"role": "user", "content": "Go on"}, continuing("a", "prefix"))
    assert (await ask(gateway, body)).status == 400


@pytest.mark.parametrize("whitespace", [" ", "\n", "\u00a0", "\u2028"])
async def test_whitespace_at_the_end_is_refused_or_does_not_count(whitespace: str) -> None:
    gateway = FakeGateway(answer=lambda body, attempt: ["a", f"{whitespace}b"])
    for continues in FLAGS:
        gateway.continues = continues
        answer = await ask(gateway, continuing(f"a{whitespace}", continues))
        if continues == "prefill":
            assert answer.status == 400
            assert cast("JSON", answer.json["error"])["type"] == "invalid_request_error"
        else:
            # A client that sent it gets it once more.
            assert answer.text() == f"{whitespace}b"


async def test_the_refusals_are_those_of_the_real_servers() -> None:
    gateway = FakeGateway(continues="vllm")
    assert (await ask(gateway, chat(continue_final_message=True))).json["type"] == "BadRequestError"
    gateway.continues = "prefill"
    assert (await ask(gateway, continuing("a ", "prefill"))).json["type"] == "error"
    gateway.continues = "prefix"
    assert set((await ask(gateway, continuing("a", "prefill"))).json) == {"error"}


@every_server
async def test_the_partial_answer_comes_first_where_the_server_echoes_it(
    continues: Continues, connect: Connect
) -> None:
    gateway = FakeGateway(
        answer=lambda body, attempt: ["The ", "whole ", "text."], continues=continues, echo=True
    )
    whole = gateway.intended(chat())
    for partial, tokens in (("", 3), ("The", 3), ("The wh", 2), (whole, 0)):
        answer = await ask(gateway, continuing(partial, continues), connect)
        assert answer.text() == whole
        assert finish_reason(answer) == "stop"
        assert gateway.requests[-1].tokens == tokens
    # Who does not ask to go on gets nothing back.
    assert (await ask(gateway, chat(), connect)).text() == whole


async def test_an_echo_can_be_cut() -> None:
    gateway = FakeGateway(continues="vllm", echo=True)
    whole = gateway.intended(chat())
    complete = (await ask(gateway, continuing(whole[:20].rstrip(), "vllm"))).body
    gateway.fault(
        Cut(after_bytes=complete.index(b"\n\n", complete.index(b"\n\n") + 2) + 2), token=0
    )
    answer = await ask(gateway, continuing(whole[:20].rstrip(), "vllm"))
    assert answer.text() == whole[:20].rstrip()
    assert answer.end == "cut"


@every_server
async def test_what_the_model_did_not_mean_to_say_goes_on_somehow(continues: Continues) -> None:
    gateway = FakeGateway(continues=continues)
    body = continuing("Something else entirely", continues)
    answer = await ask(gateway, body)
    assert gateway.requests[-1].tokens == 12
    assert gateway.intended(body) == "Something else entirely" + answer.text()
    assert answer.text() not in gateway.intended(chat())
    other = await ask(gateway, continuing("Something else again", continues))
    assert other.text() != answer.text()


@every_server
@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
async def test_max_tokens_limits_what_is_new(continues: Continues, limit: str) -> None:
    gateway = FakeGateway(
        answer=lambda body, attempt: [f"{number} " for number in range(10)], continues=continues
    )
    body = chat(stream_options={"include_usage": True}) | {limit: 3}
    answer = await ask(gateway, continuing("0 1 2 3 4", continues, body))
    assert answer.text() == " 5 6 "  # the first token is what is left of "4 "
    assert gateway.requests[-1].tokens == 3
    assert cast("JSON", answer.chunks[-1]["usage"])["completion_tokens"] == 3
    (choice,) = cast("list[JSON]", answer.chunks[-2]["choices"])
    assert choice["finish_reason"] == "length"
    # One token more than there is ends as if there were no limit.
    body = continuing("0 1 2 3 4", continues, chat() | {limit: 6})
    assert finish_reason(await ask(gateway, body)) == "stop"


async def test_the_partial_answer_may_come_in_parts() -> None:
    gateway = FakeGateway(continues="prefill")
    whole = gateway.intended(chat())
    partial = whole[:20].rstrip()
    parts = [{"type": "text", "text": partial[:7]}, {"type": "text", "text": partial[7:]}]
    assert partial + (await ask(gateway, continuing(parts, "prefill"))).text() == whole


@pytest.mark.parametrize("content", [None, [{"type": "image_url", "image_url": {}}]])
async def test_what_is_not_text_gets_a_new_answer(content: object) -> None:
    gateway = FakeGateway(continues="vllm")
    body = continuing(content, "vllm")
    assert (await ask(gateway, body)).text() == gateway.intended(body)
    assert gateway.requests[-1].tokens == 12


async def test_answer_is_asked_for_the_conversation_without_the_partial_answer() -> None:
    seen: list[tuple[Mapping[str, object], int]] = []

    def answer(body: Mapping[str, object], attempt: int) -> list[str]:
        seen.append((body, attempt))
        return ["one", "two"]

    gateway = FakeGateway(answer=answer, continues="vllm")
    body = chat(temperature=1)
    for _ in range(2):
        assert (await ask(gateway, continuing("on", "vllm", body))).text() == "etwo"
    assert seen == [(body, 1), (body, 1)]


def thoughtful(body: Mapping[str, object], attempt: int) -> Sequence[str | Delta]:
    return [
        Delta(reasoning="Hm. "),
        "I will ",
        "look",
        Delta(tool_calls=(ToolCallDelta(0, "call_1", "look", "{}"),)),
    ]


async def test_thoughts_before_the_join_do_not_come_again_and_tool_calls_after_it_do() -> None:
    gateway = FakeGateway(answer=thoughtful, continues="vllm")
    answer = await ask(gateway, continuing("I will lo", "vllm"))
    assert answer.text(field="reasoning_content") == ""
    assert answer.text() == "ok"
    assert finish_reason(answer) == "tool_calls"
    assert gateway.requests[-1].tokens == 2


async def test_a_finish_reason_of_the_answers_own_is_not_lost_with_its_text() -> None:
    gateway = FakeGateway(
        answer=lambda body, attempt: ["a", Delta(text="b", finish_reason="content_filter")],
        continues="prefix",
    )
    answer = await ask(gateway, continuing("ab", "prefix"))
    assert (answer.text(), finish_reason(answer)) == ("", "content_filter")


async def test_each_choice_goes_on_by_itself() -> None:
    gateway = FakeGateway(continues="vllm", echo=True)
    first = await ask(gateway, chat(n=2))
    partial = first.text(0)[:20].rstrip()
    second = await ask(gateway, continuing(partial, "vllm", chat(n=2)))
    assert second.text(0) == first.text(0)
    assert second.text(1).startswith(partial)
    assert second.text(1) != first.text(1)


async def test_a_continued_stream_can_be_kept_like_any_other() -> None:
    gateway = FakeGateway(continues="prefill", echo=True, event_ids=True)
    gateway.fault(Cut(), token=2)
    whole = gateway.intended(chat())
    body = continuing(whole[:20].rstrip(), "prefill")
    async with in_memory(gateway) as wire:
        first = await wire.ask(body, gateway.key)
    async with in_memory(gateway) as wire:
        second = await wire.ask(body, gateway.key, headers={"last-event-id": "1-4"})
    assert first.text() + second.text() == whole
    assert gateway.requests[1].resumed_after == "1-4"


# The SDK stops at `[DONE]` and leaves its generators, and httpx's, to the garbage collector.
@pytest.mark.filterwarnings("ignore:Async generator '(openai|httpx2|httpcore2):ResourceWarning")
async def test_the_openai_sdk_can_have_an_answer_continued() -> None:
    gateway = FakeGateway(tokens=40, continues="vllm")
    whole = gateway.intended(chat())
    partial = whole[:50].rstrip()
    messages: list[Any] = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": partial},
    ]
    async with gateway.http_client(httpx2) as client:
        sdk = openai.AsyncOpenAI(
            api_key=gateway.key, base_url=gateway.base_url, http_client=client, max_retries=0
        )
        text = partial
        async with await sdk.chat.completions.create(
            model="fake-model", messages=messages, stream=True, extra_body=VLLM
        ) as stream:
            async for chunk in stream:
                text += chunk.choices[0].delta.content or ""
        assert text == whole
        with pytest.raises(openai.BadRequestError):
            await sdk.chat.completions.create(
                model="fake-model",
                messages=messages,
                extra_body={"continue_final_message": True},
            )
