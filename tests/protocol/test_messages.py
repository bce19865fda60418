"""The Messages API: what a server's events mean, and the blocks that go back as they came."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from typing import cast

import msgspec
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from gz_trio._protocol.decoding import DONE, Item
from gz_trio._protocol.errors import (
    AuthenticationError,
    BadRequestError,
    GatewayError,
    InternalServerError,
    NotFoundError,
    PaymentRequiredError,
    PermissionDeniedError,
    ProtocolError,
    RateLimitError,
)
from gz_trio._protocol.events import Delta, RawEvent, ToolCallDelta
from gz_trio._protocol.messages import MessagesDecoder
from gz_trio._protocol.sse import ServerSentEvent

Object = dict[str, object]


def event(frame: object, name: str | None = None) -> ServerSentEvent:
    """An event that has its type as its name, as Anthropic sends it."""
    data = frame if isinstance(frame, bytes) else json.dumps(frame).encode()
    if name is None:
        kind = cast("Object", frame).get("type") if isinstance(frame, dict) else None
        name = kind if isinstance(kind, str) else "message"
    return ServerSentEvent(name, data)


def decode(*frames: object, decoder: MessagesDecoder | None = None) -> list[Item]:
    decoder = decoder or MessagesDecoder()
    return [item for frame in frames for item in decoder.decode(event(frame))]


def deltas(*frames: object, decoder: MessagesDecoder | None = None) -> list[Delta]:
    items = [item for item in decode(*frames, decoder=decoder) if item is not DONE]
    assert all(isinstance(item, Delta) for item in items)
    return cast("list[Delta]", items)


def text(*frames: object) -> str:
    return "".join(delta.text for delta in deltas(*frames))


def reasoning(*frames: object) -> str:
    return "".join(delta.reasoning for delta in deltas(*frames))


def joined(items: Iterable[Item]) -> list[tuple[str, str, str]]:
    """The id, name and arguments of each call: the pieces joined by index alone."""
    calls: dict[int, list[str]] = {}
    for item in items:
        for piece in item.tool_calls if isinstance(item, Delta) else ():
            call = calls.setdefault(piece.index, ["", "", ""])
            for place, value in enumerate((piece.id, piece.name, piece.arguments)):
                call[place] += value or ""
    assert list(calls) == list(range(len(calls)))
    return [(call[0], call[1], call[2]) for call in calls.values()]


def output(*frames: object) -> list[Object]:
    decoder = MessagesDecoder()
    decode(*frames, decoder=decoder)
    return decoder.output


# Events of an answer.


def start(**usage: object) -> Object:
    message: Object = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 0, "output_tokens": 0, **usage},
    }
    return {"type": "message_start", "message": message}


def begin(block: Object, index: int = 0) -> Object:
    return {"type": "content_block_start", "index": index, "content_block": block}


def grow(kind: str, index: int = 0, **fields: object) -> Object:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **fields}}


def say(text: str, index: int = 0) -> Object:
    return grow("text_delta", index, text=text)


def think(thinking: str, index: int = 0) -> Object:
    return grow("thinking_delta", index, thinking=thinking)


def type_in(partial_json: str, index: int = 0) -> Object:
    return grow("input_json_delta", index, partial_json=partial_json)


def close(index: int = 0) -> Object:
    return {"type": "content_block_stop", "index": index}


def finish(stop_reason: object = "end_turn", **usage: object) -> Object:
    return {
        "type": "message_delta",
        "delta": {"stop_reason": stop_reason, "stop_sequence": None},
        "usage": {"output_tokens": 0, **usage},
    }


STOP: Object = {"type": "message_stop"}
PING: Object = {"type": "ping"}
OVERLOADED: Object = {"type": "error", "error": {"type": "overloaded_error", "message": "m"}}

TEXT: Object = {"type": "text", "text": ""}
THINKING: Object = {"type": "thinking", "thinking": "", "signature": ""}


def tool_use(id: str, name: str, kind: str = "tool_use", /, **input: object) -> Object:
    return {"type": kind, "id": id, "name": name, "input": input}


CITATION = {
    "type": "char_location",
    "cited_text": "once",
    "document_index": 0,
    "document_title": "Tales",
    "start_char_index": 0,
    "end_char_index": 4,
}

STREAM = [
    start(input_tokens=5, cache_read_input_tokens=20, cache_creation_input_tokens=10),
    begin(THINKING, 0),
    PING,
    think("Hm ", 0),
    think("\U0001f914", 0),
    grow("signature_delta", 0, signature="c2ln"),
    close(0),
    begin({"type": "redacted_thinking", "data": "c2VhbGVk"}, 1),
    close(1),
    begin(TEXT, 2),
    say("Once ", 2),
    say("upon ", 2),
    grow("citations_delta", 2, citation=CITATION),
    say("a time", 2),
    close(2),
    begin(tool_use("srvtoolu_1", "web_search", "server_tool_use"), 3),
    type_in('{"query":', 3),
    type_in('"foxes"}', 3),
    close(3),
    begin(tool_use("toolu_a", "f"), 4),
    type_in("", 4),
    type_in('{"x":', 4),
    type_in('"\U0001f98a"}', 4),
    close(4),
    begin(tool_use("toolu_b", "g"), 5),
    close(5),
    finish("tool_use", output_tokens=12),
    STOP,
]
BLOCKS: list[Object] = [
    {"type": "thinking", "thinking": "Hm \U0001f914", "signature": "c2ln"},
    {"type": "redacted_thinking", "data": "c2VhbGVk"},
    {"type": "text", "text": "Once upon a time", "citations": [CITATION]},
    tool_use("srvtoolu_1", "web_search", "server_tool_use", query="foxes"),
    tool_use("toolu_a", "f", x="\U0001f98a"),
    tool_use("toolu_b", "g"),
]


def test_the_answer_of_these_tests_is_one_of_anthropics() -> None:
    adapter: TypeAdapter[RawMessageStreamEvent] = TypeAdapter(RawMessageStreamEvent)
    for frame in STREAM:
        if frame is not PING:  # Which the SDK drops before it knows any types.
            adapter.validate_python(frame)


def test_a_whole_stream() -> None:
    decoder = MessagesDecoder()
    got = deltas(*STREAM, decoder=decoder)
    assert "".join(delta.text for delta in got) == "Once upon a time"
    assert "".join(delta.reasoning for delta in got) == "Hm \U0001f914"
    assert joined(got) == [("toolu_a", "f", '{"x":"\U0001f98a"}'), ("toolu_b", "g", "")]
    assert [delta.finish_reason for delta in got if delta.finish_reason] == ["tool_calls"]
    usages = [delta.usage for delta in got if delta.usage]
    assert (usages[-1].prompt_tokens, usages[-1].completion_tokens) == (35, 12)
    assert decoder.output == BLOCKS
    assert decoder.complete


# What an event says.


def test_text_is_text() -> None:
    frame = say("Hi")
    assert decode(frame) == [Delta(text="Hi", raw=event(frame).data)]


def test_thinking_is_reasoning() -> None:
    frame = think("Hm")
    assert decode(frame) == [Delta(reasoning="Hm", raw=event(frame).data)]


def test_text_at_the_beginning_of_its_block_is_text() -> None:
    frames = [begin({"type": "text", "text": "Once "}), say("upon"), close()]
    assert text(*frames) == "Once upon"
    assert output(*frames) == [{"type": "text", "text": "Once upon"}]


def test_thinking_at_the_beginning_of_its_block_is_reasoning() -> None:
    block: Object = {"type": "thinking", "thinking": "Hm ", "signature": ""}
    frames = [begin(block), think("hm"), grow("signature_delta", signature="s"), close()]
    assert reasoning(*frames) == "Hm hm"
    assert output(*frames) == [{"type": "thinking", "thinking": "Hm hm", "signature": "s"}]


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(start(), id="the beginning"),
        pytest.param(begin(TEXT), id="the beginning of a block"),
        pytest.param(begin({"type": "redacted_thinking", "data": "x"}), id="sealed thoughts"),
        pytest.param(begin({"type": "not_yet_invented", "x": 1}), id="an unknown block"),
        pytest.param(begin(tool_use("s", "f", "server_tool_use")), id="a tool of the server's"),
        pytest.param(close(), id="the end of a block"),
        pytest.param(grow("signature_delta", signature="s"), id="a signature"),
        pytest.param(grow("citations_delta", citation=CITATION), id="a citation"),
        pytest.param(type_in("{"), id="input without a call"),
        pytest.param(say(""), id="empty text"),
        pytest.param(finish(None), id="no reason to stop"),
        pytest.param({"type": "content_block_start"}, id="a block of nothing"),
        pytest.param(grow("text_delta", text=7), id="text that is none"),
        pytest.param({"type": "message_start", "message": None}, id="a beginning of nothing"),
        pytest.param({"type": "message_delta"}, id="a change of nothing"),
    ],
)
def test_what_adds_nothing_is_an_empty_delta(frame: Object) -> None:
    [delta] = deltas(frame)
    assert msgspec.structs.replace(delta, usage=None) == Delta(raw=event(frame).data)


@pytest.mark.parametrize("data", [b'{"type":"ping"}', b'{"type": "ping", "x": 1}', b"", b" \n"])
def test_a_ping_is_nothing(data: bytes) -> None:
    assert decode(data) == []
    assert MessagesDecoder().decode(ServerSentEvent("ping", data)) == ()


@pytest.mark.parametrize("kind", ["compaction_delta", "not_yet_invented", "", None, 7, []])
def test_an_unknown_kind_of_delta_is_a_raw_event(kind: object) -> None:
    frame = {"type": "content_block_delta", "index": 0, "delta": {"type": kind, "text": "x"}}
    data = b" %s " % json.dumps(frame).encode()
    assert MessagesDecoder().decode(event(data, "content_block_delta")) == (
        RawEvent("content_block_delta", data),
    )


def test_an_unknown_kind_of_delta_leaves_the_block_as_it_is() -> None:
    frames = [begin(TEXT), say("Hi"), grow("not_yet_invented", text="x"), close()]
    assert output(*frames) == [{"type": "text", "text": "Hi"}]
    assert output(grow("not_yet_invented", text="x")) == []


@pytest.mark.parametrize("kind", ["message_pause", "not_yet_invented"])
def test_what_is_unknown_is_a_raw_event_with_its_bytes_as_they_came(kind: str) -> None:
    data = b'{ "delta":"x",\t"type": "%s" }' % kind.encode()
    assert decode(data) == [RawEvent(kind, data)]
    assert MessagesDecoder().decode(event(data, "its.name")) == (RawEvent("its.name", data),)


@pytest.mark.parametrize("frame", [7, "Hi", [], [OVERLOADED], None, {}, {"message": {"id": "x"}}])
def test_what_has_no_type_is_a_raw_event(frame: object) -> None:
    assert decode(frame) == [RawEvent("message", event(frame).data)]


@pytest.mark.parametrize("data", [b"[DONE]", b" [DONE] "])
def test_done(data: bytes) -> None:
    assert decode(data) == [DONE]


def test_the_end_is_an_empty_delta_and_done() -> None:
    assert decode(STOP) == [Delta(raw=event(STOP).data), DONE]


def test_events_need_no_names() -> None:
    decoder = MessagesDecoder()
    items = [item for frame in STREAM for item in decoder.decode(event(frame, "message"))]
    assert items == decode(*STREAM)
    assert decoder.complete


def test_blocks_that_interleave_are_apart() -> None:
    frames = [begin(TEXT, 1), say("c", 1), begin(TEXT, 0), say("a", 0), say("d", 1), say("b", 0)]
    assert output(*frames) == [{"type": "text", "text": "ab"}, {"type": "text", "text": "cd"}]


@pytest.mark.parametrize(
    ("frames", "block"),
    [
        ([say("Hi")], {"type": "text", "text": "Hi"}),
        ([think("Hm")], {"type": "thinking", "thinking": "Hm"}),
        (
            [think("Hm"), grow("signature_delta", signature="s")],
            {"type": "thinking", "thinking": "Hm", "signature": "s"},
        ),
    ],
)
def test_a_block_needs_no_beginning(frames: list[object], block: Object) -> None:
    assert output(*frames) == [block]


def test_there_is_one_choice_and_nothing_is_kept() -> None:
    decoder = MessagesDecoder()
    decode(*STREAM, OVERLOADED, decoder=decoder)
    assert (decoder.choices, decoder.response_id, decoder.over) == ({0}, None, False)


# Broken text.


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        ("text_delta", "text"),
        ("thinking_delta", "thinking"),
        ("input_json_delta", "partial_json"),
    ],
)
def test_a_surrogate_pair_cut_in_two_deltas_comes_whole(kind: str, field: str) -> None:
    frames = [
        b'{"type":"content_block_delta","index":0,"delta":{"type":"%s","%s":"%s"}}'
        % (kind.encode(), field.encode(), piece)
        for piece in (rb"a\ud83d", b"", rb"\ude00b")
    ]
    got = deltas(begin(tool_use("a", "f")), *frames, close())
    arguments = "".join(call.arguments for delta in got for call in delta.tool_calls)
    assert "".join(delta.text + delta.reasoning for delta in got) + arguments == "a\U0001f600b"


def test_the_first_half_waits_for_its_own_block_alone() -> None:
    got = deltas(say("\ud83d", 0), say("x", 1), think("y", 0), say("\ude00", 0))
    assert [delta.text for delta in got] == ["", "x", "", "\U0001f600"]


def test_half_a_pair_that_stays_alone_is_the_replacement_character() -> None:
    frames = [begin(THINKING, 0), think("a\ud83d", 0), close(0), say("b\ud83d", 1), close(1)]
    assert (reasoning(*frames), text(*frames)) == ("a\ufffd", "b\ufffd")
    assert [block.get("thinking", block.get("text")) for block in output(*frames)] == [
        "a\ufffd",
        "b\ufffd",
    ]


def test_text_cut_in_a_surrogate_pair_goes_back_whole() -> None:
    [block] = output(begin(TEXT), say("a\ud83d"), say("\ude00b"), close())
    assert block == {"type": "text", "text": "a\U0001f600b"}


def test_input_cut_in_a_surrogate_pair_goes_back_whole() -> None:
    [call] = output(begin(tool_use("a", "f")), type_in('{"x":"\ud83d'), type_in('\ude00"}'))
    assert call == tool_use("a", "f", x="\U0001f600")


@pytest.mark.parametrize(
    ("frames", "block"),
    [
        pytest.param([begin({**TEXT, "text": "a\ud83d"})], {**TEXT, "text": "a\ufffd"}, id="text"),
        pytest.param(
            [begin({**THINKING, "thinking": "a\ud83d"})],
            {**THINKING, "thinking": "a\ufffd"},
            id="thinking",
        ),
        pytest.param(
            [begin(tool_use("a", "f")), type_in(r'{"x":"\ud83d"}')],
            tool_use("a", "f", x="\ufffd"),
            id="input",
        ),
        pytest.param(
            [begin(tool_use("a", "f", x="\ud83d"))],
            tool_use("a", "f", x="\ufffd"),
            id="input at once",
        ),
        pytest.param(
            [begin(tool_use("a", "f")), type_in('{"x":"\ud83d')],
            tool_use("a", "f", INVALID_JSON='{"x":"\ufffd'),
            id="input that was cut off",
        ),
        pytest.param(
            [begin({"type": "redacted_thinking", "data": "\ud83d"})],
            {"type": "redacted_thinking", "data": "\ufffd"},
            id="any other field",
        ),
    ],
)
def test_half_a_surrogate_pair_does_not_keep_the_output_from_going_back(
    frames: list[object], block: Object
) -> None:
    sent = msgspec.json.encode(output(*frames, close()))  # As the next request is written.
    assert json.loads(sent) == [block]


@given(st.text(), st.lists(st.integers(0, 5)))
def test_text_cut_into_utf16_pieces_comes_whole(whole: str, sizes: list[int]) -> None:
    """A server in JavaScript cuts strings anywhere, and escapes the halves."""
    units = whole.encode("utf-16-le", "surrogatepass")
    ends = (min(2 * end, len(units)) for end in itertools.accumulate(sizes))
    cuts = [0, *ends, len(units)]
    pieces = [units[a:b].decode("utf-16-le", "surrogatepass") for a, b in itertools.pairwise(cuts)]
    frames = [begin(TEXT), *map(say, pieces), close()]
    assert text(*frames) == whole
    assert output(*frames) == ([{"type": "text", "text": whole}] if whole else [])
    quoted = json.dumps({"x": whole}, ensure_ascii=False)
    assert output(begin(tool_use("a", "f")), type_in(quoted)) == [tool_use("a", "f", x=whole)]


def test_broken_utf8_becomes_the_replacement_character() -> None:
    data = b'{"type":"content_block_delta","delta":{"type":"text_delta","text":"a\xe2\x82 b\xff"}}'
    assert decode(data) == [Delta(text="a\ufffd b\ufffd", raw=data)]


@pytest.mark.parametrize(
    "data", [b"{", b"<html>", b"\xff", b'{"type":"content_block_delta"', b"[" * 100_000]
)
def test_what_is_no_json_is_a_protocol_error(data: bytes) -> None:
    decoder = MessagesDecoder()
    [error] = decode(data, decoder=decoder)
    assert isinstance(error, ProtocolError)
    assert error.body == data
    decode(finish(), STOP, decoder=decoder)
    assert not decoder.complete


# Tool calls.


def test_a_call_begins_with_its_index_id_and_name_and_goes_on_with_its_input() -> None:
    frames = [
        begin(tool_use("toolu_a", "f"), 1),
        type_in("", 1),
        type_in('{"x"', 1),
        type_in(":1}", 1),
        close(1),
    ]
    assert [delta.tool_calls for delta in deltas(*frames)] == [
        (ToolCallDelta(0, "toolu_a", "f"),),
        (),
        (ToolCallDelta(0, arguments='{"x"'),),
        (ToolCallDelta(0, arguments=":1}"),),
        (),
    ]


def test_calls_that_interleave_are_apart() -> None:
    frames = [
        begin(tool_use("a", "f"), 3),
        begin(tool_use("b", "g"), 5),
        type_in("[2", 5),
        type_in("[1", 3),
        type_in("]", 3),
        type_in("]", 5),
    ]
    assert joined(deltas(*frames)) == [("a", "f", "[1]"), ("b", "g", "[2]")]


WHOLE_INPUT: Object = {"x": {"y": [1, None, "\U0001f98a"]}}


@pytest.mark.parametrize(
    "rest", [[], [close()], [type_in(""), close()]], ids=["alone", "closed", "and nothing more"]
)
def test_input_that_comes_whole_at_the_beginning_of_its_block(rest: list[object]) -> None:
    block = tool_use("a", "f", **WHOLE_INPUT)
    [(call_id, name, arguments)] = joined(deltas(begin(block), *rest))
    assert (call_id, name, json.loads(arguments)) == ("a", "f", WHOLE_INPUT)
    assert output(begin(block), *rest) == [block]


@pytest.mark.parametrize("kind", ["server_tool_use", "mcp_tool_use", "web_search_tool_result"])
def test_calls_of_the_servers_own_tools_are_none_of_the_callers(kind: str) -> None:
    frames = [begin(tool_use("s", "web_search", kind)), type_in('{"query":"x"}'), close()]
    assert joined(deltas(*frames)) == []
    assert output(*frames) == [tool_use("s", "web_search", kind, query="x")]


@pytest.mark.parametrize("kind", [None, 7, [], {}, ["tool_use"]])
def test_a_block_of_an_odd_type_is_no_call(kind: object) -> None:
    assert joined(deltas(begin({**tool_use("a", "f"), "type": kind}))) == []


# The end, and what was counted.


@pytest.mark.parametrize(
    ("stop_reason", "finish_reason"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("pause_turn", "pause_turn"),
        ("not_yet_invented", "not_yet_invented"),
        ("", None),
        (None, None),
        (7, None),
        (["end_turn"], None),
    ],
)
def test_the_finish_reason_is_in_the_words_of_chat_completions(
    stop_reason: object, finish_reason: str | None
) -> None:
    [delta] = deltas(finish(stop_reason))
    assert delta.finish_reason == finish_reason


def counted(*frames: object) -> tuple[int, int, int, Object]:
    usage = [delta.usage for delta in deltas(*frames) if delta.usage][-1]
    return usage.prompt_tokens, usage.completion_tokens, usage.total_tokens, usage.raw


def test_what_the_end_counted_is_merged_with_what_the_beginning_did() -> None:
    frames = [start(input_tokens=30, output_tokens=1), finish(output_tokens=12)]
    assert counted(*frames) == (30, 12, 42, {"input_tokens": 30, "output_tokens": 12})


def test_counts_are_cumulative_and_the_last_holds() -> None:
    frames = [start(input_tokens=3), finish(None, output_tokens=5), finish(output_tokens=7)]
    assert counted(*frames)[:3] == (3, 7, 10)
    frames = [start(input_tokens=3), finish(input_tokens=40, output_tokens=7)]
    assert counted(*frames)[:3] == (40, 7, 47)


def test_what_the_end_leaves_out_stays_as_it_was() -> None:
    begun = start(input_tokens=3, service_tier="standard")
    frames = [begun, finish(input_tokens=None, output_tokens=7, service_tier=None)]
    assert counted(*frames) == (
        3,
        7,
        10,
        {"input_tokens": 3, "output_tokens": 7, "service_tier": "standard"},
    )


def test_what_a_cache_had_counts_as_prompt() -> None:
    cache = {"cache_read_input_tokens": 20, "cache_creation_input_tokens": 10}
    assert counted(start(input_tokens=5, **cache), finish(output_tokens=7))[:3] == (35, 7, 42)
    repeated = finish(input_tokens=5, output_tokens=7, **cache)
    assert counted(start(input_tokens=5, **cache), repeated)[:3] == (35, 7, 42)


def test_what_was_counted_earlier_stays_what_it_was() -> None:
    first, last = (delta.usage for delta in deltas(start(output_tokens=1), finish(output_tokens=7)))
    assert first is not None
    assert last is not None
    assert (first.raw["output_tokens"], last.raw["output_tokens"]) == (1, 7)


@pytest.mark.parametrize("usage", [None, {}, "none", 7, []])
def test_odd_usage_costs_no_finish_reason(usage: object) -> None:
    [delta] = deltas({**finish(), "usage": usage})
    assert (delta.finish_reason, delta.usage) == ("stop", None)


# Complete, or cut.


def test_a_stream_that_was_cut_is_complete_nowhere_but_at_its_end() -> None:
    decoder = MessagesDecoder()
    assert not decoder.complete
    for frame in STREAM[:-2]:
        decode(frame, decoder=decoder)
        assert not decoder.complete
    for frame in STREAM[-2:]:
        decode(frame, decoder=decoder)
        assert decoder.complete


@pytest.mark.parametrize(
    ("frames", "complete"),
    [
        pytest.param([say("Hi"), close()], False, id="all blocks closed"),
        pytest.param([say("Hi"), b"[DONE]"], False, id="DONE alone"),
        pytest.param([say("Hi"), finish(None)], False, id="no stop reason"),
        pytest.param([say("Hi"), finish("max_tokens")], True, id="a stop reason alone"),
        pytest.param([say("Hi"), STOP], True, id="message_stop alone"),
        pytest.param([finish(), STOP, PING], True, id="a ping behind the end"),
        pytest.param([finish(), STOP, b"[DONE]"], True, id="DONE behind the end"),
        pytest.param([OVERLOADED, finish(), STOP], False, id="after an error"),
        pytest.param([finish(), STOP, OVERLOADED], False, id="an error behind the end"),
        pytest.param([finish(), {"error": "x"}], False, id="a body's error behind the end"),
        pytest.param([finish(), b"{"], False, id="no JSON behind the end"),
    ],
)
def test_complete(frames: list[object], complete: bool) -> None:
    decoder = MessagesDecoder()
    decode(*frames, decoder=decoder)
    assert decoder.complete is complete


def test_an_answer_that_is_taken_up_after_an_error_may_become_whole() -> None:
    decoder = MessagesDecoder()
    decode(start(input_tokens=3), begin(TEXT), say("Once \ud83d"), OVERLOADED, decoder=decoder)
    decoder.take_up()
    assert not decoder.complete
    got = deltas(say("\ude00"), close(), finish(output_tokens=7), STOP, decoder=decoder)
    assert "".join(delta.text for delta in got) == "\U0001f600"
    assert [delta.usage.total_tokens for delta in got if delta.usage] == [10]
    assert decoder.output == [{"type": "text", "text": "Once \U0001f600"}]
    assert decoder.complete


def test_the_end_before_an_error_is_none_where_the_answer_goes_on() -> None:
    decoder = MessagesDecoder()
    decode(STOP, OVERLOADED, decoder=decoder)
    decoder.take_up()
    assert not decoder.complete


# What goes back.


def test_thinking_goes_back_with_its_signature() -> None:
    frames = [
        begin(THINKING),
        think(" Let me\n"),
        think("think. "),
        grow("signature_delta", signature="Eo0"),
        grow("signature_delta", signature="BCg=="),
        close(),
    ]
    assert output(*frames) == [
        {"type": "thinking", "thinking": " Let me\nthink. ", "signature": "Eo0BCg=="}
    ]


def test_thinking_of_which_only_the_signature_came_goes_back() -> None:
    frames = [begin(THINKING), grow("signature_delta", signature="s"), close()]
    assert output(*frames) == [{"type": "thinking", "thinking": "", "signature": "s"}]


def test_a_block_that_came_whole_goes_back_as_it_came() -> None:
    blocks: list[Object] = [
        {"type": "redacted_thinking", "data": "c2VhbGVk"},
        {
            "type": "web_search_tool_result",
            "tool_use_id": "srvtoolu_1",
            "content": [{"type": "web_search_result", "encrypted_content": "x", "page_age": None}],
        },
        {"type": "not_yet_invented", "text": "", "x": {"y": [1.5, None]}},
        {"type": "text", "text": "Hi", "citations": [CITATION]},
    ]
    frames = [frame for i, block in enumerate(blocks) for frame in (begin(block, i), close(i))]
    assert output(*frames) == blocks


@pytest.mark.parametrize("before", [{}, {"citations": None}, {"citations": []}])
def test_citations_go_back_in_their_order(before: Object) -> None:
    other = {**CITATION, "start_char_index": 9}
    frames = [
        begin({**TEXT, **before}),
        grow("citations_delta", citation=CITATION),
        say("Hi"),
        grow("citations_delta", citation=other),
    ]
    assert output(*frames) == [{"type": "text", "text": "Hi", "citations": [CITATION, other]}]


@pytest.mark.parametrize("frames", [[], [say("")], [say(""), close()], [close()]])
def test_an_empty_block_of_text_is_left_out(frames: list[object]) -> None:
    assert output(begin(TEXT), *frames, begin({**TEXT, "text": "Hi"}, 1)) == [
        {"type": "text", "text": "Hi"}
    ]


@pytest.mark.parametrize(
    ("pieces", "input"),
    [
        ([], {}),
        ([""], {}),
        (["", " "], {}),
        (["{}"], {}),
        (['{"x"', ":", ' 1, "y": [null]}'], {"x": 1, "y": [None]}),
        (['{"x": "caf', 'é \U0001f98a"}'], {"x": "café \U0001f98a"}),
        (['{"x": 1, "x": 2}'], {"x": 2}),
        (['{"x": "a\nb"}'], {"x": "a\nb"}),
        (['{"x":', ' "Once upo'], {"INVALID_JSON": '{"x": "Once upo'}),
        (["{"], {"INVALID_JSON": "{"}),
        (["[1]"], {"INVALID_JSON": "[1]"}),
        (["null"], {"INVALID_JSON": "null"}),
        (["[" * 100_000], {"INVALID_JSON": "[" * 100_000}),
    ],
)
def test_input_goes_back_parsed_or_said_to_be_none(pieces: list[str], input: Object) -> None:
    frames = [begin(tool_use("a", "f")), *map(type_in, pieces), close(), finish("max_tokens")]
    assert output(*frames) == [tool_use("a", "f", **input)]


def test_the_output_is_there_at_any_time_and_changes_nothing() -> None:
    frames = [begin(TEXT), say("Once "), say("upon")]
    decoder = MessagesDecoder()
    seen: list[list[Object]] = []
    for frame in frames:
        decode(frame, decoder=decoder)
        seen.append(decoder.output)
    assert seen == [
        [],
        [{"type": "text", "text": "Once "}],
        [{"type": "text", "text": "Once upon"}],
    ]


# Errors.


@pytest.mark.parametrize(
    ("frame", "error_class", "retryable"),
    [
        pytest.param(
            {"type": "error", "error": {"type": kind, "message": "m"}, "request_id": "req_1"},
            error_class,
            retryable,
            id=kind,
        )
        for kind, error_class, retryable in (
            ("overloaded_error", InternalServerError, True),
            ("api_error", InternalServerError, True),
            ("timeout_error", InternalServerError, True),
            ("rate_limit_error", RateLimitError, True),
            ("authentication_error", AuthenticationError, False),
            ("permission_error", PermissionDeniedError, False),
            ("not_found_error", NotFoundError, False),
            ("billing_error", PaymentRequiredError, False),
            ("invalid_request_error", BadRequestError, False),
            ("request_too_large", BadRequestError, False),
            ("not_yet_invented", InternalServerError, True),
        )
    ],
)
def test_an_error_is_an_error(
    frame: Object, error_class: type[GatewayError], retryable: bool
) -> None:
    [error] = decode(frame)
    assert isinstance(error, GatewayError)
    assert (type(error), error.retryable) == (error_class, retryable)
    assert (error.body, error.request_id) == (event(frame).data, "req_1")
    assert error.type == cast("Object", frame["error"])["type"]


@pytest.mark.parametrize(
    ("frame", "error_class"),
    [
        ({"type": "error"}, InternalServerError),
        ({"type": "error", "error": "it broke"}, InternalServerError),
        ({"type": "error", "error": {"type": ["x"], "message": "m"}}, InternalServerError),
        ({"error": "it broke"}, InternalServerError),
        ({"error": {"type": "auth_error", "status": 401}}, AuthenticationError),
        ({"error": {"code": "401", "type": "auth_error"}}, AuthenticationError),
        ({"detail": "Invalid API key"}, InternalServerError),
        ({"message": "m"}, InternalServerError),
    ],
)
def test_so_is_what_other_servers_send(frame: Object, error_class: type[GatewayError]) -> None:
    [error] = decode(frame)
    assert isinstance(error, GatewayError)
    assert type(error) is error_class
    assert error.body == event(frame).data


@pytest.mark.parametrize(
    "data", [b'{"message":"m"}', b"{}", b"upstream broke", b'"m"', b"[]", b"7", b'{"type":"ping"}']
)
def test_an_event_named_error_is_an_error(data: bytes) -> None:
    decoder = MessagesDecoder()
    decode(finish(), STOP, decoder=decoder)
    [error] = decoder.decode(event(data, "error"))
    assert type(error) is InternalServerError
    assert not decoder.complete


@pytest.mark.parametrize("empty", [None, {}, "", False])
def test_an_empty_error_is_none(empty: object) -> None:
    assert text({**say("Hi"), "error": empty, "detail": empty}) == "Hi"
    assert decode({"error": empty}) == [RawEvent("message", event({"error": empty}).data)]


# An answer that did not stream.


def whole(*content: object, **fields: object) -> Object:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [*content],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 3, "output_tokens": 4},
        **fields,
    }


def decode_completion(body: object) -> tuple[MessagesDecoder, list[Item]]:
    decoder = MessagesDecoder()
    return decoder, [*decoder.decode_completion(event(body).data)]


def test_a_whole_answer_is_one_delta_and_done() -> None:
    body = whole(*BLOCKS, stop_reason="tool_use")
    Message.model_validate(body)
    decoder, [delta, last] = decode_completion(body)
    assert isinstance(delta, Delta)
    assert last is DONE
    assert (delta.text, delta.reasoning) == ("Once upon a time", "Hm \U0001f914")
    assert [(call_id, name, json.loads(sent)) for call_id, name, sent in joined([delta])] == [
        ("toolu_a", "f", {"x": "\U0001f98a"}),
        ("toolu_b", "g", {}),
    ]
    assert (delta.finish_reason, delta.raw) == ("tool_calls", json.dumps(body).encode())
    assert delta.usage is not None
    assert delta.usage.total_tokens == 7
    assert (decoder.complete, decoder.output) == (True, BLOCKS)


@pytest.mark.parametrize("fields", [{"stop_reason": None}, {"usage": None}, {"usage": {}}])
def test_a_whole_answer_needs_no_more_than_its_content(fields: Object) -> None:
    decoder, [delta, _] = decode_completion(whole({"type": "text", "text": "Hi"}, **fields))
    assert isinstance(delta, Delta)
    assert delta.text == "Hi"
    assert decoder.complete


def test_blocks_of_a_whole_answer_that_are_none_cost_no_text() -> None:
    body = whole(None, 7, {"type": "text", "text": "H"}, {}, {"type": "text", "text": "i"})
    _, [delta, _] = decode_completion(body)
    assert isinstance(delta, Delta)
    assert delta.text == "Hi"


def test_half_a_surrogate_pair_in_a_whole_answer_is_the_replacement_character() -> None:
    thought = {**THINKING, "thinking": "b\ud83d"}
    _, [delta, _] = decode_completion(whole(thought, {"type": "text", "text": "a\ud83d"}))
    assert isinstance(delta, Delta)
    assert (delta.text, delta.reasoning) == ("a\ufffd", "b\ufffd")


@pytest.mark.parametrize(
    ("body", "error_class"),
    [
        (OVERLOADED, InternalServerError),
        ({"type": "error", "error": {"type": "authentication_error"}}, AuthenticationError),
        ({"error": {"code": 429, "message": "m"}}, RateLimitError),
        ({"error": "it broke"}, InternalServerError),
        ({"detail": "Invalid API key"}, InternalServerError),
        ({"type": "model", "id": "m"}, ProtocolError),
        ({"choices": [{"message": {"content": "Hi"}}]}, ProtocolError),
        ([whole()], ProtocolError),
        ("Hi", ProtocolError),
        (b"<html>", ProtocolError),
        (b"", ProtocolError),
        (b"[" * 100_000, ProtocolError),
    ],
)
def test_a_body_that_is_no_whole_answer_is_an_error(
    body: object, error_class: type[GatewayError]
) -> None:
    decoder, [error] = decode_completion(body)
    assert isinstance(error, GatewayError)
    assert type(error) is error_class
    assert error.body == event(body).data
    assert not decoder.complete


# Whatever comes.


SECRET = "sk-Secret"

FIELDS = [
    "type",
    "index",
    "delta",
    "content_block",
    "message",
    "usage",
    "error",
    "detail",
    "text",
    "thinking",
    "signature",
    "partial_json",
    "citation",
    "citations",
    "input",
    "id",
    "name",
    "content",
    "stop_reason",
    "input_tokens",
    "output_tokens",
    "code",
    "status",
]
WORDS = [
    "",
    SECRET,
    f"401: the API key {SECRET} has expired",
    "\ud83d",
    "\ude00",
    '{"x":',
    "text",
    "thinking",
    "tool_use",
    "text_delta",
    "input_json_delta",
    "end_turn",
    "auth_error",
    "overloaded_error",
]

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(WORDS)
values: st.SearchStrategy[object] = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=3)
    ),
    max_leaves=5,
)
# What decides is odd more often than what is only text.
DECIDING = ["type", "index", "delta", "content_block", "id", "input", "error"]
odd_fields = st.dictionaries(st.sampled_from([*FIELDS, *DECIDING * 4]), values, max_size=2)
usual_frames = st.sampled_from([*STREAM, OVERLOADED, grow("not_yet_invented")])


@st.composite
def almost(draw: st.DrawFn, usual: st.SearchStrategy[Object]) -> Object:
    """What a server sends, of which a few fields have other values, here or one level below."""
    frame = {**draw(usual), **draw(odd_fields)}
    below = [key for key, value in frame.items() if isinstance(value, dict)]
    if below:
        key = draw(st.sampled_from(below))
        frame[key] = {**cast("Object", frame[key]), **draw(odd_fields)}
    return frame


@st.composite
def whole_answers(draw: st.DrawFn) -> Object:
    return whole(*draw(st.lists(almost(st.sampled_from(BLOCKS)), max_size=2)))


def as_bytes(value: object) -> bytes:
    return json.dumps(value).encode()


datas = st.binary() | st.one_of(
    values, almost(usual_frames), almost(usual_frames), almost(whole_answers())
).map(as_bytes)


def check(items: tuple[Item, ...], data: bytes) -> None:
    for item in items:
        match item:
            case GatewayError():
                assert item.body == data
                assert SECRET.lower() not in f"{item} {item!r} {item.args}".lower()
            case Delta():
                item.text.encode()
                item.reasoning.encode()
                assert item.raw == data
            case RawEvent():
                assert item.data == data
            case _:
                assert item is DONE


@given(st.lists(st.tuples(datas, st.sampled_from(["message", "error", "x"])), max_size=5))
def test_whatever_comes_nothing_is_dropped_raised_or_quoted(
    events: list[tuple[bytes, str]],
) -> None:
    decoder = MessagesDecoder()
    for data, name in events:
        items = decoder.decode(event(data, name))
        check(items, data)
        assert items or not data.strip() or json.loads(data)["type"] == "ping"
        body_decoder = MessagesDecoder()
        check(body_decoder.decode_completion(data), data)
        json.dumps(body_decoder.output)
    json.dumps(decoder.output)
    assert isinstance(decoder.complete, bool)


def test_json_nested_to_any_depth_does_not_make_it_raise() -> None:
    for depth in range(700, 1_000):  # Where Python's limits are met: somewhere below 1,000.
        nested = b"[" * depth + b"]" * depth
        block = b'{"type":"tool_use","input":{"x":%s}}' % nested
        for data in (
            b'{"type":"content_block_start","content_block":%s}' % block,
            b'{"type":"content_block_delta","delta":{"type":"citations_delta","citation":%s}}'
            % nested,
            b'{"type":"error","error":%s}' % nested,
            b'{"type":"message_delta","usage":{"x":%s}}' % nested,
        ):
            assert len(MessagesDecoder().decode(event(data, "message"))) == 1
        assert MessagesDecoder().decode_completion(b'{"type":"message","content":[%s]}' % block)


def test_input_nested_to_any_depth_does_not_make_it_raise() -> None:
    for depth in range(700, 1_000):
        nested = '{"x":' + "[" * depth + "]" * depth + "}"
        [call] = output(begin(tool_use("a", "f")), type_in(nested))
        assert isinstance(call["input"], dict)
