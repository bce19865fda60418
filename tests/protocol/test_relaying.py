"""What an event becomes where a part of it was delivered before, and which events come once."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gz_trio import Delta, ToolCallDelta, Usage
from gz_trio._protocol.relaying import (
    Identities,
    chat_retold,
    event_name,
    messages_mark,
    messages_retold,
    responses_mark,
    responses_retold,
    with_names,
)


def encode(value: object) -> bytes:
    return json.dumps(value).encode()


def chunk(*choices: object, **fields: object) -> bytes:
    return encode({"id": "c", "model": "m", "system_fingerprint": "f", "choices": choices} | fields)


@pytest.mark.parametrize(
    ("data", "delta", "choices"),
    [
        (
            chunk({"index": 0, "delta": {"role": "assistant", "content": "Once upon"}}),
            Delta(text="upon"),
            [{"index": 0, "delta": {"content": "upon"}, "finish_reason": None}],
        ),
        (
            chunk({"index": 1, "delta": {"reasoning": "Hm, well"}}),
            Delta(reasoning="well", choice=1),
            [{"index": 1, "delta": {"reasoning": "well"}, "finish_reason": None}],
        ),
        (
            chunk({"delta": {"reasoning_content": "Hm"}}, {"delta": {"content": "No"}}),
            Delta(text="o", choice=1),
            [{"index": 1, "delta": {"content": "o"}, "finish_reason": None}],
        ),
        (
            chunk({"delta": {"tool_calls": [{"index": 0, "id": "a2"}]}, "finish_reason": "stop"}),
            Delta(tool_calls=(ToolCallDelta(0, arguments="{}"),), finish_reason="tool_calls"),
            [
                {
                    "index": 0,
                    "delta": {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]},
                    "finish_reason": "tool_calls",
                }
            ],
        ),
        (chunk(usage={"prompt_tokens": 1}), Delta(usage=Usage(raw={"prompt_tokens": 1})), []),
        (
            encode({"output": [{"delta": {"content": "Once"}}]}),
            Delta(text="ce"),
            [{"index": 0, "delta": {"content": "ce"}, "finish_reason": None}],
        ),
        (
            b"no JSON",
            Delta(text="a"),
            [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}],
        ),
    ],
)
def test_a_chunk_says_what_the_delta_does(data: bytes, delta: Delta, choices: object) -> None:
    told = json.loads(chat_retold(data, delta))
    assert told["object"] == "chat.completion.chunk"
    assert told["choices"] == choices
    assert told.get("usage") == (delta.usage.raw if delta.usage else None)
    if b'"id": "c"' in data:
        assert (told["id"], told["model"], told["system_fingerprint"]) == ("c", "m", "f")


@pytest.mark.parametrize(
    ("sent", "delta", "piece"),
    [
        ({"type": "text_delta", "text": "Once"}, Delta(text="ce"), {"text": "ce"}),
        ({"type": "thinking_delta", "thinking": "Hm"}, Delta(reasoning="m"), {"thinking": "m"}),
        (
            {"type": "input_json_delta", "partial_json": '{"a'},
            Delta(tool_calls=(ToolCallDelta(0, arguments="a"),)),
            {"partial_json": "a"},
        ),
    ],
)
def test_so_does_a_piece_of_a_block(sent: Any, delta: Delta, piece: Any) -> None:
    event = {"type": "content_block_delta", "index": 3, "delta": sent}
    told = json.loads(messages_retold(encode(event), delta))
    assert told == {**event, "delta": {**sent, **piece}}


def test_so_does_a_piece_of_a_part_and_a_whole_stays_whole() -> None:
    event = {"type": "response.output_text.delta", "output_index": 0, "delta": "Once"}
    assert json.loads(responses_retold(encode(event), Delta(text="ce"))) == {**event, "delta": "ce"}
    whole = encode({"type": "response.output_text.done", "text": "Once"})
    assert responses_retold(whole, Delta(text="ce")) == whole
    stop = encode({"type": "content_block_stop", "index": 0})
    assert messages_retold(stop, Delta(text="ce")) == stop


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"type": "response.created"}, {"type": "response.completed"}),
        (
            {"type": "response.output_item.added", "output_index": 0},
            {"type": "response.output_item.added", "output_index": 1},
        ),
        (
            {"type": "response.content_part.done", "output_index": 0, "content_index": 0},
            {"type": "response.content_part.done", "output_index": 0, "content_index": 1},
        ),
        (
            {"type": "response.reasoning_summary_part.added", "summary_index": 0},
            {"type": "response.reasoning_summary_part.added", "summary_index": 1},
        ),
    ],
)
def test_events_that_come_once_are_known_by_what_they_are_of(one: Any, other: Any) -> None:
    again = responses_mark(encode(one | {"sequence_number": 9, "item": {"id": "other"}}))
    assert responses_mark(encode(one)) == again
    assert responses_mark(encode(one)) != responses_mark(encode(other))


@pytest.mark.parametrize("field", ["text_delta", "thinking_delta", "input_json_delta"])
def test_pieces_are_no_such_events(field: str) -> None:
    event = {"type": "content_block_delta", "index": 0, "delta": {"type": field}}
    assert messages_mark(encode(event)) is None
    assert responses_mark(encode({"type": "response.output_text.delta"})) is None
    assert messages_mark(encode({"type": "message_delta"})) is None
    assert messages_mark(b"no JSON") is responses_mark(b"no JSON") is None


def test_a_block_has_a_signature_and_each_citation_once() -> None:
    def event(index: int, **delta: object) -> bytes:
        return encode({"type": "content_block_delta", "index": index, "delta": delta})

    first = messages_mark(event(0, type="signature_delta", signature="a"))
    assert first == messages_mark(event(0, type="signature_delta", signature="b"))
    assert first != messages_mark(event(1, type="signature_delta", signature="a"))
    cited = messages_mark(event(0, type="citations_delta", citation={"url": "a"}))
    assert cited != messages_mark(event(0, type="citations_delta", citation={"url": "b"}))


def test_a_second_answer_has_the_ids_and_numbers_of_the_first() -> None:
    def added(item: str, call: str, number: int) -> bytes:
        return encode(
            {
                "type": "response.output_item.added",
                "sequence_number": number,
                "output_index": 0,
                "item": {"id": item, "call_id": call},
            }
        )

    def created(response: str) -> bytes:
        return encode({"type": "response.created", "response": {"id": response}})

    identities = Identities()
    for data in (created("resp_1"), added("fc_1", "call_1", 1)):
        identities.learn(data)
    identities.begin_again("4")
    for data in (created("resp_2"), added("fc_2", "call_2", 1)):
        identities.learn(data)
    delta = encode({"type": "x.delta", "sequence_number": 2, "item_id": "fc_2", "delta": "fc_2 a"})
    assert json.loads(identities.rename(delta)) == {
        "type": "x.delta",
        "sequence_number": 5,
        "item_id": "fc_1",
        "delta": "fc_2 a",
    }
    done = encode({"sequence_number": 3, "response": {"id": "resp_2"}, "call_id": "call_2"})
    assert json.loads(identities.rename(done)) == {
        "sequence_number": 6,
        "response": {"id": "resp_1"},
        "call_id": "call_1",
    }
    assert identities.renamed == {"resp_1": "resp_2", "fc_1": "fc_2", "call_1": "call_2"}


def test_only_whole_texts_are_renamed() -> None:
    value = {"a": ["x", {"b": "x", "c": "xx"}], "x": 1}
    assert with_names(value, {"x": "y"}) == {"a": ["y", {"b": "y", "c": "xx"}], "x": 1}


def test_an_event_is_named_by_its_type() -> None:
    assert event_name(b'{"type": "message_stop", "x": "caf\xc3"}') == "message_stop"
    assert event_name(b'{"type": 3}') is None
    assert event_name(b"[1]") is None
