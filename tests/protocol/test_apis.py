"""The three APIs: what each is asked, and what an answer adds to the conversation."""

from __future__ import annotations

import copy
import json
from typing import cast

import pytest

from gz_trio._protocol.apis import (
    APIS,
    CHAT,
    MAX_TOKENS,
    MESSAGES,
    RESPONSES,
    Api,
    ApiName,
    api_named,
)
from gz_trio._protocol.chat import ChatDecoder, MessageBuilder
from gz_trio._protocol.cursor import EventCursor, SequenceCursor
from gz_trio._protocol.events import Delta, ToolCallDelta
from gz_trio._protocol.messages import MessagesDecoder
from gz_trio._protocol.responses import ResponsesDecoder
from gz_trio._protocol.sse import ServerSentEvent

Object = dict[str, object]

USER: Object = {"role": "user", "content": "Once?"}
ANSWER: Object = {"role": "assistant", "content": "Upon a time."}
MORE: Object = {"role": "user", "content": "And then?"}


def told(text: str = "", *call_ids: str) -> Object:
    """The message that deltas make which the reader had: a text, and calls under these ids."""
    builder = MessageBuilder()
    calls = tuple(ToolCallDelta(i, call_id, "f", "{}") for i, call_id in enumerate(call_ids))
    builder.feed(Delta(text=text, tool_calls=calls))
    return builder.message


# By name.


@pytest.mark.parametrize(
    ("name", "api", "decoder", "cursor"),
    [
        ("chat", CHAT, ChatDecoder, EventCursor),
        ("responses", RESPONSES, ResponsesDecoder, SequenceCursor),
        ("messages", MESSAGES, MessagesDecoder, EventCursor),
    ],
)
def test_an_api_has_a_name_a_decoder_and_a_cursor(
    name: ApiName, api: Api, decoder: type[object], cursor: type[object]
) -> None:
    assert api_named(name) is api
    assert api.name == name
    assert type(api.make_decoder()) is decoder
    assert api.make_decoder() is not api.make_decoder()
    assert type(api.make_cursor()) is cursor


def test_an_api_has_a_path_behind_the_base_url() -> None:
    assert [api.path for api in APIS.values()] == ["/chat/completions", "/responses", "/messages"]


def test_only_the_messages_api_wants_a_version() -> None:
    assert [api.headers for api in APIS.values()] == [{}, {}, {"anthropic-version": "2023-06-01"}]


@pytest.mark.parametrize("api", [RESPONSES, MESSAGES])
def test_only_chat_completions_have_a_shortcut(api: Api) -> None:
    assert api.make_decoder().decode_texts([b'{"choices":[{"delta":{"content":"Hi"}}]}']) is None


def test_there_are_three() -> None:
    assert [*APIS] == ["chat", "responses", "messages"]


@pytest.mark.parametrize("name", ["", "Chat", "completions", "/responses"])
def test_any_other_name_is_refused_with_those_that_there_are(name: str) -> None:
    with pytest.raises(ValueError, match="'chat', 'responses' or 'messages'") as caught:
        api_named(name)
    assert repr(name) in str(caught.value)


def test_the_responses_api_alone_has_ids_of_its_own_kind() -> None:
    event = ServerSentEvent("message", b'{"sequence_number":4}')
    assert RESPONSES.identified is not None
    assert RESPONSES.identified(event).id == "4"
    assert CHAT.identified is MESSAGES.identified is None


# What a turn asks.


def test_a_turn_of_chat_completions_has_the_messages_and_asks_for_the_count() -> None:
    assert CHAT.turn_body("m", [USER, ANSWER, MORE]) == {
        "model": "m",
        "messages": [USER, ANSWER, MORE],
        "stream_options": {"include_usage": True},
    }


def test_a_turn_of_the_responses_api_has_the_items_as_its_input() -> None:
    result: Object = {"type": "function_call_output", "call_id": "call_a", "output": "{}"}
    system: Object = {"role": "system", "content": "Be brief."}
    assert RESPONSES.turn_body("m", [system, USER, ANSWER, result]) == {
        "model": "m",
        "input": [system, USER, ANSWER, result],
    }


def test_a_turn_of_the_messages_api_has_the_messages_and_a_limit() -> None:
    assert MESSAGES.turn_body("m", [USER, ANSWER, MORE]) == {
        "model": "m",
        "max_tokens": MAX_TOKENS,
        "messages": [USER, ANSWER, MORE],
    }


BRIEF: Object = {"type": "text", "text": "Be brief."}
CACHED: Object = {"type": "text", "text": "Tell tales.", "cache_control": {"type": "ephemeral"}}


@pytest.mark.parametrize(
    ("contents", "system"),
    [
        pytest.param(["Be brief."], [BRIEF], id="a text"),
        pytest.param([[BRIEF, CACHED]], [BRIEF, CACHED], id="parts, as they are"),
        pytest.param(["Be brief.", [CACHED]], [BRIEF, CACHED], id="several, in their order"),
    ],
)
def test_what_system_messages_say_goes_into_the_field_of_the_messages_api(
    contents: list[object], system: list[object]
) -> None:
    messages: list[Object] = [{"role": "system", "content": content} for content in contents]
    body = MESSAGES.turn_body("m", [*messages, USER])
    assert (body["system"], body["messages"]) == (system, [USER])


def test_a_system_message_in_the_middle_goes_there_too() -> None:
    system: Object = {"role": "system", "content": "Be brief."}
    body = MESSAGES.turn_body("m", [USER, ANSWER, system, MORE])
    assert (body["system"], body["messages"]) == ([BRIEF], [USER, ANSWER, MORE])


@pytest.mark.parametrize("api", APIS.values(), ids=[*APIS])
def test_a_body_is_the_callers_to_change(api: Api) -> None:
    conversation: list[Object] = [{"role": "system", "content": "Be brief."}, USER]
    before = copy.deepcopy(conversation)
    body = api.turn_body("m", conversation)
    body["temperature"] = 0
    for messages in (body.get("messages"), body.get("input")):
        if isinstance(messages, list):
            cast("list[object]", messages).clear()
    assert conversation == before
    assert api.turn_body("m", conversation) != body


# What an answer adds.


@pytest.mark.parametrize("message", [told("Hi"), told("", "call_a"), told("Hi", "a", "b")])
def test_an_answer_by_chat_completions_is_the_message_that_the_deltas_make(
    message: Object,
) -> None:
    assert CHAT.answer(None, message) == [message]


def call(call_id: str, kind: str = "function_call") -> Object:
    return {"type": kind, "id": f"fc_{call_id}", "call_id": call_id, "name": "f"}


SEALED: Object = {"type": "reasoning", "id": "rs_1", "encrypted_content": "x=="}
SAID: Object = {"type": "message", "role": "assistant", "content": [{"text": "Hi"}]}


def test_an_answer_by_the_responses_api_is_its_items_as_they_came() -> None:
    output: list[Object] = [SEALED, SAID, {"type": "not_yet_invented", "x": [1]}]
    assert RESPONSES.answer(output, told("Hi")) == output


def test_its_calls_go_back_under_the_ids_that_the_reader_had() -> None:
    output = [SEALED, call("x"), SAID, call("y", "custom_tool_call")]
    assert RESPONSES.answer(output, told("Hi", "a", "b")) == [
        SEALED,
        {**call("x"), "call_id": "a"},
        SAID,
        {**call("y", "custom_tool_call"), "call_id": "b"},
    ]


def test_the_items_of_calls_keep_their_own_ids() -> None:
    [item] = RESPONSES.answer([call("x")], told("", "a"))
    assert item["id"] == "fc_x"


@pytest.mark.parametrize("ids", [[], ["a"], ["a", "b", "c"]])
def test_calls_that_do_not_correspond_are_left_as_they_are(ids: list[str]) -> None:
    output = [call("x"), call("y")]
    assert RESPONSES.answer(output, told("Hi", *ids)) == output


@pytest.mark.parametrize("output", [None, []])
def test_where_the_server_gave_no_items_the_text_goes_back(output: list[Object] | None) -> None:
    assert RESPONSES.answer(output, told("Hi")) == [{"role": "assistant", "content": "Hi"}]
    assert RESPONSES.answer(output, told()) == [{"role": "assistant", "content": ""}]


def use(call_id: str, kind: str = "tool_use") -> Object:
    return {"type": kind, "id": call_id, "name": "f", "input": {}}


THOUGHT: Object = {"type": "thinking", "thinking": "Hm", "signature": "c2ln"}
HI: Object = {"type": "text", "text": "Hi"}


def said_back(output: list[Object] | None, message: Object) -> object:
    [answer] = MESSAGES.answer(output, message)
    assert answer.keys() == {"role", "content"}
    assert answer["role"] == "assistant"
    return answer["content"]


def test_an_answer_by_the_messages_api_is_its_blocks_as_they_came() -> None:
    blocks: list[Object] = [THOUGHT, {"type": "redacted_thinking", "data": "x"}, HI]
    assert said_back(blocks, told("Hi")) == blocks


def test_the_text_of_several_blocks_is_one() -> None:
    blocks: list[Object] = [HI, THOUGHT, {"type": "text", "text": " there"}]
    assert said_back(blocks, told("Hi there")) == blocks


def test_its_blocks_go_back_under_the_ids_that_the_reader_had() -> None:
    blocks = [use("s", "server_tool_use"), use("x"), HI, use("y")]
    assert said_back(blocks, told("Hi", "a", "b")) == [
        use("s", "server_tool_use"),
        use("a"),
        HI,
        use("b"),
    ]


def test_blocks_that_are_calls_alone_go_back() -> None:
    assert said_back([THOUGHT, use("x")], told("", "a")) == [THOUGHT, use("a")]


@pytest.mark.parametrize("ids", [[], ["a"], ["a", "b", "c"]])
def test_blocks_that_do_not_correspond_are_left_as_they_are(ids: list[str]) -> None:
    blocks = [HI, use("x"), use("y")]
    assert said_back(blocks, told("Hi", *ids)) == blocks


@pytest.mark.parametrize("blocks", [[HI], [THOUGHT, HI]])
def test_where_the_blocks_are_half_an_answer_its_whole_text_goes_back(
    blocks: list[Object],
) -> None:
    # The model went on from what came before.
    assert said_back(blocks, told("Oh. Hi")) == "Oh. Hi"


@pytest.mark.parametrize("blocks", [None, []])
def test_where_there_are_no_blocks_the_text_goes_back(blocks: list[Object] | None) -> None:
    assert said_back(blocks, told("Hi")) == "Hi"
    assert said_back(blocks, told()) == ""


@pytest.mark.parametrize("kind", [None, 7, [], {}, ["tool_use"]])
@pytest.mark.parametrize("api", [RESPONSES, MESSAGES])
def test_a_part_of_an_odd_type_goes_back_as_it_came(api: Api, kind: object) -> None:
    part: Object = {"type": kind, "id": "x", "call_id": "x"}
    answer = api.answer([part], told())
    assert answer in ([part], [{"role": "assistant", "content": [part]}])


@pytest.mark.parametrize("api", [RESPONSES, MESSAGES])
def test_what_the_decoder_has_is_not_changed(api: Api) -> None:
    output = [call("x"), use("y"), SEALED]
    before = copy.deepcopy(output)
    api.answer(output, told("", "a"))
    assert output == before


# From the answer to the next turn.


def events(*frames: Object) -> list[ServerSentEvent]:
    return [ServerSentEvent("message", json.dumps(frame).encode()) for frame in frames]


def answered(api: Api, *frames: Object) -> list[Object]:
    """What a turn adds to the conversation whose answer is `frames`."""
    decoder = api.make_decoder()
    builder = MessageBuilder()
    for event in events(*frames):
        for item in decoder.decode(event):
            if isinstance(item, Delta):
                builder.feed(item)
    assert decoder.complete
    return api.answer(decoder.output, builder.message)


def test_thoughts_and_their_signature_come_back_in_the_next_turn() -> None:
    def begin(index: int, block: Object) -> Object:
        return {"type": "content_block_start", "index": index, "content_block": block}

    def grow(index: int, **delta: str) -> Object:
        return {"type": "content_block_delta", "index": index, "delta": delta}

    answer = answered(
        MESSAGES,
        begin(0, {"type": "thinking", "thinking": "", "signature": ""}),
        grow(0, type="thinking_delta", thinking="H"),
        grow(0, type="thinking_delta", thinking="m"),
        grow(0, type="signature_delta", signature="c2ln"),
        begin(1, {"type": "text", "text": ""}),
        grow(1, type="text_delta", text="Hi"),
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
        {"type": "message_stop"},
    )
    assert MESSAGES.turn_body("m", [USER, *answer, MORE])["messages"] == [
        USER,
        {"role": "assistant", "content": [THOUGHT, HI]},
        MORE,
    ]


def test_sealed_thoughts_and_calls_come_back_in_the_next_turn() -> None:
    whole = {**call("call_a"), "arguments": "{}"}
    answer = answered(
        RESPONSES,
        {"type": "response.output_item.done", "output_index": 0, "item": SEALED},
        {"type": "response.output_item.done", "output_index": 1, "item": whole},
        {"type": "response.completed", "response": {"status": "completed"}},
    )
    result: Object = {"type": "function_call_output", "call_id": "call_a", "output": "7"}
    assert RESPONSES.turn_body("m", [USER, *answer, result])["input"] == [
        USER,
        SEALED,
        whole,
        result,
    ]


@pytest.mark.parametrize("api", [RESPONSES, MESSAGES])
def test_a_call_without_an_id_goes_back_under_the_one_that_the_reader_had(api: Api) -> None:
    if api is RESPONSES:
        bare: Object = {"type": "function_call", "name": "f", "arguments": "{}"}
        answer = answered(api, {"type": "response.completed", "response": {"output": [bare]}})
        assert answer == [{**bare, "call_id": "call_0"}]
    else:
        bare = {"type": "tool_use", "name": "f", "input": {}}
        answer = answered(
            api,
            {"type": "content_block_start", "index": 0, "content_block": bare},
            {"type": "message_stop"},
        )
        assert answer == [{"role": "assistant", "content": [{**bare, "id": "call_0"}]}]
