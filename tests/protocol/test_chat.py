"""Chat completions: every shape that gateways send comes out as the same deltas and errors."""

from __future__ import annotations

import itertools
import json
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gz_trio._protocol.chat import ChatDecoder, MessageBuilder
from gz_trio._protocol.decoding import DONE, Item
from gz_trio._protocol.errors import (
    AuthenticationError,
    BadRequestError,
    GatewayError,
    InternalServerError,
    NotFoundError,
    PaymentRequiredError,
    ProtocolError,
    RateLimitError,
)
from gz_trio._protocol.events import Delta, RawEvent, ToolCallDelta
from gz_trio._protocol.sse import ServerSentEvent


def event(data: bytes | str | object, name: str = "message") -> ServerSentEvent:
    if isinstance(data, str):
        data = data.encode()
    return ServerSentEvent(name, data if isinstance(data, bytes) else json.dumps(data).encode())


def chunk(finish_reason: str | None = None, /, **delta: object) -> dict[str, object]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
    }


def decode(*frames: bytes | str | object) -> list[Item]:
    decoder = ChatDecoder()
    return [item for frame in frames for item in decoder.decode(event(frame))]


def deltas(*frames: bytes | str | object) -> list[Delta]:
    items = decode(*frames)
    assert all(isinstance(item, Delta) for item in items)
    return cast("list[Delta]", items)


def text(*frames: bytes | str | object) -> str:
    return "".join(delta.text for delta in deltas(*frames))


# What a chunk says.


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(chunk(content="Hi"), id="OpenAI"),
        pytest.param(chunk(role="assistant", content="Hi", tool_calls=None), id="with its role"),
        pytest.param({"choices": [{"delta": {"content": "Hi"}}]}, id="without an index"),
        pytest.param({"output": [{"delta": {"content": "Hi"}}]}, id="Fireworks"),
        pytest.param({"type": "response.output_text.delta", "delta": "Hi"}, id="Responses"),
        pytest.param(
            {"type": "response.output_text.delta", "delta": {"type": "text", "text": "Hi"}},
            id="Responses, as an object",
        ),
        pytest.param(
            chunk(content=[{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]),
            id="content in parts",
        ),
        pytest.param(chunk(refusal="Hi", content=None), id="a refusal"),
    ],
)
def test_text_comes_from_every_shape(frame: object) -> None:
    [delta] = deltas(frame)
    assert delta == Delta(text="Hi", raw=json.dumps(frame).encode())


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking", "analysis"])
def test_reasoning_comes_under_many_names(field: str) -> None:
    [delta] = deltas(chunk(**{field: "hm", "content": None}))
    assert (delta.text, delta.reasoning) == ("", "hm")


def test_reasoning_under_two_names_comes_once() -> None:
    [delta] = deltas(chunk(reasoning="hm", reasoning_content="hm"))
    assert delta.reasoning == "hm"


def test_reasoning_in_a_part_of_the_content_is_reasoning() -> None:
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
    [delta] = deltas(chunk(content=[thinking, {"type": "text", "text": "Hi"}]))
    assert (delta.text, delta.reasoning) == ("Hi", "hm")


@pytest.mark.parametrize("delta", [{"role": "assistant"}, {"content": None}, {"content": ""}, {}])
def test_a_chunk_without_text_is_an_empty_delta(delta: dict[str, object]) -> None:
    frame = chunk(**delta)
    assert decode(frame) == [Delta(raw=json.dumps(frame).encode())]


def test_choices_interleave_by_index_and_the_raw_event_comes_once() -> None:
    frame = {
        "choices": [
            {"index": 1, "delta": {"content": "b"}, "finish_reason": None},
            {"index": 0, "delta": {"content": "a"}, "finish_reason": "length"},
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    }
    first, second = deltas(frame)
    assert (first.choice, first.text, first.raw) == (1, "b", json.dumps(frame).encode())
    assert first.usage is not None
    assert second == Delta(choice=0, text="a", finish_reason="length")


@pytest.mark.parametrize("choices", [{"choices": []}, {"choices": None}, {}])
def test_usage_may_come_without_choices(choices: dict[str, object]) -> None:
    sent = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7, "cost": 0.1}
    [delta] = deltas({**choices, "usage": sent})
    assert delta.usage is not None
    assert (delta.usage.prompt_tokens, delta.usage.completion_tokens) == (3, 4)
    assert (delta.usage.total_tokens, delta.usage.raw) == (7, sent)


def test_usage_in_the_words_of_the_responses_api_is_understood() -> None:
    [delta] = deltas({"choices": [], "usage": {"input_tokens": 3, "output_tokens": 4}})
    assert delta.usage is not None
    assert (delta.usage.prompt_tokens, delta.usage.total_tokens) == (3, 7)


@pytest.mark.parametrize("usage", [None, {}, "none", {"prompt_tokens": "three"}])
def test_odd_usage_costs_no_text(usage: object) -> None:
    assert text({**chunk(content="Hi"), "usage": usage}) == "Hi"


@pytest.mark.parametrize(
    "odd",
    [
        {"reasoning_details": "text"},
        {"tool_calls": {"0": {}}},
        {"reasoning": {"text": "hm"}},
        {"refusal": {}},
        {"tool_calls": [None, 1]},
    ],
)
def test_an_odd_field_costs_no_text(odd: dict[str, object]) -> None:
    assert text(chunk(content="Hi", **odd)) == "Hi"


@pytest.mark.parametrize("data", [b"", b"  "])
def test_an_event_without_data_is_nothing(data: bytes) -> None:
    assert decode(data) == []


@pytest.mark.parametrize("data", [b"[DONE]", b" [DONE] "])
def test_done(data: bytes) -> None:
    assert decode(data) == [DONE]


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param({"type": "response.created", "response": {"id": "1"}}, id="another event"),
        pytest.param({"hello": "world"}, id="unknown fields"),
        pytest.param({"choices": "none"}, id="choices of another shape"),
        pytest.param({"output": [{"delta": 1}]}, id="an output of another shape"),
        pytest.param({"output": [{"type": "message"}]}, id="an output of the Responses API"),
        pytest.param({"message": {"content": "Hi"}}, id="a message that is no text"),
        pytest.param(7, id="a number"),
        pytest.param([], id="an array"),
    ],
)
def test_what_is_unknown_is_a_raw_event(frame: object) -> None:
    assert decode(frame) == [RawEvent("message", json.dumps(frame).encode())]


@pytest.mark.parametrize(
    "frame",
    [
        {"error": {"type": "stream_normalization_warning", "message": "5 of 8", "status": 500}},
        {"type": "stream_normalization_warning", "message": "5 of 8"},
    ],
)
def test_a_normalization_warning_is_no_error(frame: object) -> None:
    decoder = ChatDecoder()
    decoder.decode(event(chunk("stop", content="Hi")))
    assert decoder.decode(event(frame)) == (RawEvent("message", json.dumps(frame).encode()),)
    assert decoder.complete


# Broken text.


def test_broken_utf8_becomes_the_replacement_character() -> None:
    data = b'{"choices":[{"index":0,"delta":{"content":"a\xe2\x82 b\xff"}}]}'
    [delta] = deltas(data)
    assert (delta.text, delta.raw) == ("a\ufffd b\ufffd", data)


@pytest.mark.parametrize(
    ("sent", "meant"),
    [(rb"a\ud83d", "a\ufffd"), (rb"\ude00b", "\ufffdb"), (rb"\ud83d\ud83d", "\ufffd\ufffd")],
)
def test_half_a_surrogate_pair_becomes_the_replacement_character(sent: bytes, meant: str) -> None:
    data = b'{"choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":"stop"}]}' % sent
    assert text(data) == meant


@pytest.mark.parametrize("field", ["content", "reasoning"])
def test_a_surrogate_pair_cut_in_two_events_comes_whole(field: str) -> None:
    frames = [
        b'{"choices":[{"index":0,"delta":{"%s":"%s"}}]}' % (field.encode(), piece)
        for piece in (rb"a\ud83d", rb"", rb"\ude00b")
    ]
    got = deltas(*frames)
    assert "".join(delta.text + delta.reasoning for delta in got) == "a\U0001f600b"


def test_the_first_half_waits_for_its_own_choice_alone() -> None:
    halves = [(0, rb"\ud83d"), (1, rb"x"), (0, rb"\ude00"), (1, rb"\ud83d"), (1, rb"y")]
    got = deltas(*(b'{"choices":[{"index":%d,"delta":{"content":"%s"}}]}' % h for h in halves))
    assert [delta.text for delta in got] == ["", "x", "\U0001f600", "", "\ufffdy"]


def test_a_surrogate_pair_cut_in_a_tool_calls_arguments_comes_whole() -> None:
    got = deltas(
        *(
            b'{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":'
            b'{"arguments":"%s"}}]}}]}' % piece
            for piece in (rb"\ud83d", rb"\ude00")
        )
    )
    assert [delta.tool_calls[0].arguments for delta in got] == ["", "\U0001f600"]


def test_control_characters_that_are_not_escaped_are_text() -> None:
    assert text(b'{"choices":[{"delta":{"content":"a\x01\nb"}}],"x":NaN}') == "a\x01\nb"


@given(st.text(), st.lists(st.integers(1, 5)))
def test_text_cut_into_utf16_pieces_comes_whole(whole: str, sizes: list[int]) -> None:
    """A server in JavaScript cuts strings anywhere, and escapes the halves."""
    units = whole.encode("utf-16-le", "surrogatepass")
    cuts = [0]
    for size in sizes:
        cuts.append(min(cuts[-1] + 2 * size, len(units)))
    cuts.append(len(units))
    pieces = [units[a:b].decode("utf-16-le", "surrogatepass") for a, b in itertools.pairwise(cuts)]
    assert text(*(chunk(content=piece) for piece in pieces), chunk("stop")) == whole


@pytest.mark.parametrize(
    "data", [b"{", b"<html>", b"\xff", b'{"choices":[{"delta":{"content":"Hi"', b"[" * 100_000]
)
def test_what_is_no_json_is_a_protocol_error(data: bytes) -> None:
    [error] = decode(data)
    assert isinstance(error, ProtocolError)
    assert error.body == data


@given(
    st.binary()
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "choices",
                        "delta",
                        "content",
                        "index",
                        "finish_reason",
                        "error",
                        "type",
                        "output",
                        "usage",
                        "tool_calls",
                        "function",
                        "arguments",
                        "id",
                        "reasoning_details",
                        "message",
                        "detail",
                        "status",
                        "code",
                        "prompt_tokens",
                    ]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=25,
    ).map(lambda value: json.dumps(value).encode()),
    st.sampled_from(["message", "error"]),
)
def test_no_event_makes_it_raise(data: bytes, name: str) -> None:
    decoder = ChatDecoder()
    builder = MessageBuilder()
    for item in (*decoder.decode(event(data, name)), *ChatDecoder().decode_completion(data)):
        assert isinstance(item, Delta | RawEvent | GatewayError) or item is DONE
        if isinstance(item, Delta):
            builder.feed(item)
    json.dumps(builder.message)


def test_json_nested_to_any_depth_does_not_make_it_raise() -> None:
    for depth in range(700, 1_000):  # Where Python's limits are met: somewhere below 1,000.
        nested = b"[" * depth + b"]" * depth
        frame = b'{"choices":[{"delta":{"content":"Hi"}}],"error":{"x":%s}}' % nested
        assert isinstance(decode(frame)[-1], GatewayError)
        call = b'{"choices":[{"delta":{"tool_calls":[{"arguments":%s}]}}]}' % nested
        assert len(decode(call)) == 1
        body = b'{"choices":[{"message":{"content":"Hi"},"finish_reason":"stop","x":%s}]}' % nested
        assert len(ChatDecoder().decode_completion(body)) == 1


# Errors in a stream.


@pytest.mark.parametrize(
    ("frame", "error_class"),
    [
        ({"error": {"message": "m", "type": "rate_limit_error"}}, RateLimitError),
        ({"error": {"message": "m", "type": "auth_error", "status": 401}}, AuthenticationError),
        ({"error": {"message": "m", "type": "plan_limit_exceeded"}}, PaymentRequiredError),
        ({"error": {"message": "m", "type": "stream_timeout"}}, InternalServerError),
        ({"error": {"code": 404, "message": "m"}}, NotFoundError),
        ({"error": "it broke"}, InternalServerError),
        ({"object": "error", "message": "m", "type": "BadRequestError"}, BadRequestError),
        ({"type": "error", "error": {"type": "overloaded_error"}}, InternalServerError),
        ({"type": "error"}, InternalServerError),
        ({"detail": "Invalid API key"}, InternalServerError),
        ({"message": "m"}, InternalServerError),
        ({"choices": [{"index": 0, "finish_reason": "error"}]}, InternalServerError),
        (
            {
                "error": {"code": 429, "message": "m"},
                "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}],
            },
            RateLimitError,
        ),
    ],
)
def test_an_error_frame_is_an_error(frame: object, error_class: type[GatewayError]) -> None:
    [error] = decode(frame)
    assert isinstance(error, GatewayError)
    assert type(error) is error_class
    assert error.body == json.dumps(frame).encode()


@pytest.mark.parametrize("data", [b'{"message":"m"}', b'"m"', b"upstream broke", b"{}"])
def test_an_event_named_error_is_an_error(data: bytes) -> None:
    decoder = ChatDecoder()
    decoder.decode(event(chunk("stop")))
    [error] = decoder.decode(event(data, "error"))
    assert type(error) is InternalServerError
    assert not decoder.complete


@pytest.mark.parametrize("empty", [None, {}, "", False])
def test_an_empty_error_is_none(empty: object) -> None:
    assert text({**chunk(content="Hi"), "error": empty}) == "Hi"


def test_text_beside_an_error_comes_before_it_and_its_raw_event_has_no_error() -> None:
    frame = {**chunk("error", content="Hi"), "error": {"code": 502, "message": "m"}}
    delta, error = decode(frame)
    assert isinstance(delta, Delta)
    assert isinstance(error, InternalServerError)
    assert (delta.text, delta.finish_reason) == ("Hi", None)
    assert json.loads(delta.raw) == chunk(content="Hi")


# Complete, or cut.


@pytest.mark.parametrize(
    ("frames", "complete"),
    [
        pytest.param([], False, id="nothing"),
        pytest.param([chunk(content="Hi")], False, id="text alone"),
        pytest.param([chunk(content="Hi"), chunk("stop")], True, id="a finish reason"),
        pytest.param([chunk("length", content="Hi")], True, id="any finish reason"),
        pytest.param([chunk(content="Hi"), b"[DONE]"], True, id="DONE after a delta"),
        pytest.param([b"[DONE]"], False, id="DONE alone"),
        pytest.param([{"hello": "world"}, b"[DONE]"], False, id="DONE after what is unknown"),
        pytest.param([chunk(content="Hi"), chunk("error")], False, id="finish reason error"),
        pytest.param([chunk("stop"), {"error": "x"}, b"[DONE]"], False, id="DONE after an error"),
        pytest.param([chunk("stop"), {"error": "x"}], False, id="an error after the end"),
        pytest.param([chunk("stop"), b"{"], False, id="no JSON after the end"),
        pytest.param(
            [chunk("stop"), {"choices": [{"index": 1}]}], False, id="a second choice has begun"
        ),
        pytest.param(
            [chunk("stop"), {"choices": [{"index": 1, "finish_reason": "stop"}]}],
            True,
            id="two choices",
        ),
        pytest.param([chunk("stop"), chunk()], True, id="an empty chunk after the end"),
        pytest.param(
            [{"type": "tool_result", "error": "no such city"}, chunk("stop")], True, id="a result"
        ),
    ],
)
def test_complete(frames: list[object], complete: bool) -> None:
    decoder = ChatDecoder()
    for frame in frames:
        decoder.decode(event(frame))
    assert decoder.complete is complete


# Tool calls.


def tool(
    index: int | None = None, id: str | None = None, name: str | None = None, arguments: str = ""
) -> dict[str, object]:
    call: dict[str, object] = {"function": {"name": name, "arguments": arguments}}
    if index is not None:
        call["index"] = index
    if id is not None:
        call["id"] = id
    return call


def calls(*pieces: dict[str, object]) -> list[tuple[str, str, str]]:
    """The tool calls that `pieces`, one a chunk, are joined to by index alone."""
    joined: dict[int, list[str]] = {}
    for delta in deltas(*(chunk(tool_calls=[piece]) for piece in pieces)):
        for piece in delta.tool_calls:
            call = joined.setdefault(piece.index, ["", "", ""])
            for place, value in enumerate((piece.id, piece.name, piece.arguments)):
                call[place] += value or ""
    assert list(joined) == list(range(len(joined)))
    return [(call[0], call[1], call[2]) for call in joined.values()]


@pytest.mark.parametrize(
    ("pieces", "meant"),
    [
        pytest.param(
            [tool(0, "a", "f", "{"), tool(0, arguments="}"), tool(1, "b", "g", "[]")],
            [("a", "f", "{}"), ("b", "g", "[]")],
            id="OpenAI: by index",
        ),
        pytest.param(
            [tool(0, "a", "f"), tool(1, "b", "g"), tool(0, arguments="1"), tool(1, arguments="2")],
            [("a", "f", "1"), ("b", "g", "2")],
            id="interleaved",
        ),
        pytest.param(
            [tool(0, "a", "f", "1"), tool(0, "a", "f", "2"), tool(0, "a", "f", "3")],
            [("a", "f", "123")],
            id="id and name in every piece",
        ),
        pytest.param(
            [tool(0, "a", "f", "1"), tool(0, "", "", "2"), tool(0, "", "", "3")],
            [("a", "f", "123")],
            id="an empty id is none",
        ),
        pytest.param(
            [tool(0, "a", "f", "1"), tool(0, "b", "g", "2"), tool(0, arguments="3")],
            [("a", "f", "1"), ("b", "g", "23")],
            id="Gemini: a new id at a used index is a new call",
        ),
        pytest.param(
            [tool(0, "a", "f", "1"), tool(0, "b", "g", "2"), tool(1, "c", "h", "3")],
            [("a", "f", "1"), ("b", "g", "2"), ("c", "h", "3")],
            id="a new call after a used index",
        ),
        pytest.param(
            [tool(0, "a", "f", "1"), tool(0, "b", "g", "2"), tool(0, "a", arguments="3")],
            [("a", "f", "13"), ("b", "g", "2")],
            id="a known id at a used index is its call",
        ),
        pytest.param(
            [tool(0, "f", "f", "1"), tool(1, "f", "f", "2")],
            [("f", "f", "1"), ("f", "f", "2")],
            id="one id at two indices is two calls",
        ),
        pytest.param(
            [tool(0, None, "f"), tool(0, "a", arguments="1")],
            [("a", "f", "1")],
            id="an id that comes late",
        ),
        pytest.param(
            [tool(None, "a", "f", "1"), tool(None, "b", "g", "2"), tool(None, "a", arguments="3")],
            [("a", "f", "13"), ("b", "g", "2")],
            id="without an index: by id",
        ),
        pytest.param(
            [tool(None, "a", "f", "1"), tool(arguments="2"), tool(arguments="3")],
            [("a", "f", "123")],
            id="without index and id: the last call",
        ),
        pytest.param(
            [tool(None, None, "f", "1"), tool(arguments="2")],
            [("", "f", "12")],
            id="without anything: one call",
        ),
        pytest.param([tool(3, "a", "f", "1")], [("a", "f", "1")], id="indices that start at 3"),
    ],
)
def test_pieces_of_tool_calls_are_joined_by_our_index(
    pieces: list[dict[str, object]], meant: list[tuple[str, str, str]]
) -> None:
    assert calls(*pieces) == meant


def test_tool_calls_of_two_choices_are_apart() -> None:
    frame = {
        "choices": [
            {"index": index, "delta": {"tool_calls": [tool(0, str(index), "f", "{}")]}}
            for index in (0, 1)
        ]
    }
    assert [delta.tool_calls for delta in deltas(frame)] == [
        (ToolCallDelta(0, "0", "f", "{}"),),
        (ToolCallDelta(0, "1", "f", "{}"),),
    ]


def test_arguments_that_are_an_object_are_its_json() -> None:
    call = {"index": 0, "id": "a", "function": {"name": "f", "arguments": {"x": 1}}}
    [delta] = deltas(chunk(tool_calls=[call]))
    assert json.loads(delta.tool_calls[0].arguments) == {"x": 1}


def test_arguments_may_be_null() -> None:
    call = {"index": 0, "id": "a", "function": {"name": "f", "arguments": None}}
    [delta] = deltas(chunk(tool_calls=[call]))
    assert delta.tool_calls == (ToolCallDelta(0, "a", "f", ""),)


@pytest.mark.parametrize("arguments", ['{"x": 1}', {"x": 1}])
def test_gatewayzs_own_tool_calls_are_tool_calls(arguments: object) -> None:
    frames = [
        {"type": "tool_call", "tool_call_id": call_id, "name": "f", "arguments": arguments}
        for call_id in ("a", "b")
    ]
    assert [delta.tool_calls for delta in deltas(*frames)] == [
        (ToolCallDelta(0, "a", "f", '{"x": 1}'),),
        (ToolCallDelta(1, "b", "f", '{"x": 1}'),),
    ]


def test_a_tool_results_error_is_no_error_of_the_stream() -> None:
    frame = {
        "type": "tool_result",
        "tool_call_id": "a",
        "name": "f",
        "success": False,
        "result": None,
        "error": "no such city",
    }
    assert decode(frame) == [RawEvent("message", json.dumps(frame).encode())]


# A completion that did not stream.


def test_a_whole_completion_is_deltas() -> None:
    decoder = ChatDecoder()
    body = {
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "Hi",
                    "reasoning_content": "hm",
                    "tool_calls": [{"function": {"name": n, "arguments": "{}"}} for n in "fg"],
                },
                "finish_reason": "tool_calls",
            }
        ],
        "usage": {"total_tokens": 7},
    }
    [delta] = decoder.decode_completion(json.dumps(body).encode())
    assert isinstance(delta, Delta)
    assert (delta.text, delta.reasoning, delta.finish_reason) == ("Hi", "hm", "tool_calls")
    assert [(call.index, call.name) for call in delta.tool_calls] == [(0, "f"), (1, "g")]
    assert delta.usage is not None
    assert decoder.complete
    # A reader of `raw` gets a chunk that says the same.
    assert ChatDecoder().decode(event(delta.raw)) == (delta,)


def test_a_whole_completion_needs_no_finish_reason() -> None:
    decoder = ChatDecoder()
    decoder.decode_completion(b'{"choices":[{"message":{"content":"Hi"}}]}')
    assert decoder.complete


@pytest.mark.parametrize(
    ("body", "error_class"),
    [
        (b'{"error":{"code":429,"message":"m"}}', RateLimitError),
        (b'{"choices":[{"message":{},"finish_reason":"error"}]}', InternalServerError),
        (b'{"object":"list","data":[]}', ProtocolError),
        (b'{"choices":[]}', ProtocolError),
        (b'"Hi"', ProtocolError),
        (b"<html>", ProtocolError),
        (b"", ProtocolError),
    ],
)
def test_a_body_that_is_no_completion_is_an_error(
    body: bytes, error_class: type[GatewayError]
) -> None:
    decoder = ChatDecoder()
    [error] = decoder.decode_completion(body)
    assert type(error) is error_class
    assert not decoder.complete


# The message for the next turn.


def message(*frames: object) -> dict[str, object]:
    builder = MessageBuilder()
    for delta in deltas(*frames):
        builder.feed(delta)
    return builder.message


def test_the_message_is_the_text_of_the_first_choice() -> None:
    other = {"choices": [{"index": 1, "delta": {"content": "x"}}]}
    frames = [chunk(content="Hel", reasoning="hm"), other, chunk("stop", content="lo")]
    assert message(*frames) == {"role": "assistant", "content": "Hello"}


def test_the_message_of_an_empty_reply_has_empty_content() -> None:
    assert message() == {"role": "assistant", "content": ""}


def test_the_message_has_whole_tool_calls_in_order() -> None:
    pieces = [tool(0, "a", "f", '{"x"'), tool(1, None, "g"), tool(0, arguments=":1}")]
    assert message(*(chunk(tool_calls=[piece]) for piece in pieces)) == {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "a",
                "type": "function",
                "function": {"name": "f", "arguments": '{"x":1}'},
            },
            {"id": "call_1", "type": "function", "function": {"name": "g", "arguments": "{}"}},
        ],
    }


def details(*pieces: dict[str, object]) -> object:
    return message(*(chunk(reasoning_details=[piece]) for piece in pieces))["reasoning_details"]


def test_pieces_of_one_reasoning_detail_are_joined() -> None:
    kind = {"type": "reasoning.text", "index": 0, "format": "anthropic-claude-v1"}
    assert details(
        {**kind, "text": "I ", "signature": None},
        {**kind, "text": "think"},
        {**kind, "text": "", "signature": "c2ln"},
        {**kind, "text": "", "signature": None},
        {**kind, "text": "", "signature": ""},
    ) == [{**kind, "text": "I think", "signature": "c2ln"}]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(
            {"type": "reasoning.text", "index": 0, "text": "a"},
            {"type": "reasoning.text", "index": 1, "text": "b"},
            id="of two indices",
        ),
        pytest.param(
            {"type": "reasoning.summary", "index": 0, "summary": "a"},
            {"type": "reasoning.text", "index": 0, "text": "b"},
            id="of two types",
        ),
        pytest.param(
            {"type": "reasoning.summary", "id": "a", "summary": "a"},
            {"type": "reasoning.summary", "id": "b", "summary": "b"},
            id="of two ids",
        ),
        pytest.param(
            {"type": "reasoning.encrypted", "index": 0, "data": "a"},
            {"type": "reasoning.encrypted", "index": 0, "data": "b"},
            id="encrypted: each is whole",
        ),
        pytest.param({"type": "new", "x": [1]}, {"type": "new", "x": [2]}, id="of unknown type"),
        pytest.param({"id": [1]}, {"id": {}}, id="without a type"),
    ],
)
def test_reasoning_details_that_are_not_one_stay_as_they_are(
    first: dict[str, object], second: dict[str, object]
) -> None:
    assert details(first, second) == [first, second]


def test_summaries_are_joined_and_what_lies_between_keeps_its_place() -> None:
    summary = {"type": "reasoning.summary", "index": 0}
    sealed: dict[str, object] = {"type": "reasoning.encrypted", "index": 0, "data": "x"}
    assert details(
        {**summary, "summary": "a"},
        {**summary, "summary": "b"},
        sealed,
        {**summary, "summary": "c"},
    ) == [{**summary, "summary": "ab"}, sealed, {**summary, "summary": "c"}]


def test_building_a_message_changes_no_delta() -> None:
    [delta] = deltas(chunk(reasoning_details=[{"type": "reasoning.text", "text": "a"}]))
    builder = MessageBuilder()
    builder.feed(delta)
    [signature] = deltas(chunk(reasoning_details=[{"type": "reasoning.text", "signature": "s"}]))
    builder.feed(signature)
    assert builder.message["reasoning_details"] == [
        {"type": "reasoning.text", "text": "a", "signature": "s"}
    ]
    assert delta.reasoning_details == ({"type": "reasoning.text", "text": "a"},)


# The shortcut


@pytest.mark.parametrize(
    "frame",
    [
        chunk(content="Hi"),
        chunk(content="Hi", role="assistant", tool_calls=None, refusal=None),
        {"choices": [{"delta": {"content": "Hi"}}]},
        {"choices": [{"delta": {"content": "Hi"}}], "usage": None, "error": None},
        {"choices": [{"delta": {"content": "Hi"}, "logprobs": {}}], "type": "x", "message": "y"},
        '{"choices":[{"delta":{"content":"\\u0048i"}}]}',
        ' {"choices": [{"delta": {"content": "Hi"}}]} ',
    ],
)
def test_text_of_the_first_choice_takes_the_shortcut(frame: object) -> None:
    data = event(frame).data
    assert ChatDecoder().decode_texts([data]) == [Delta(text="Hi", raw=data)]
    assert decode(frame) == [Delta(text="Hi", raw=data)]


NO_SHORTCUT: dict[str, bytes | str | object] = {
    "no text": chunk(content=""),
    "null": chunk(content=None),
    "content in parts": chunk(content=[{"type": "text", "text": "Hi"}]),
    "a finish reason": chunk("stop", content="Hi"),
    "an empty finish reason": chunk("", content="Hi"),
    "reasoning": chunk(content="Hi", reasoning="Hm"),
    "reasoning content": chunk(content="Hi", reasoning_content="Hm"),
    "thinking": chunk(content="Hi", thinking="Hm"),
    "analysis": chunk(content="Hi", analysis="Hm"),
    "reasoning details": chunk(content="Hi", reasoning_details=[{"text": "Hm"}]),
    "a refusal": chunk(content="Hi", refusal="No"),
    "tool calls": chunk(content="Hi", tool_calls=[{"index": 0}]),
    "no tool calls": chunk(content="Hi", tool_calls=[]),
    "another choice": {"choices": [{"index": 1, "delta": {"content": "Hi"}}]},
    "an index that is none": {"choices": [{"index": "0", "delta": {"content": "Hi"}}]},
    "two choices": {"choices": [{"delta": {"content": "Hi"}}, {"delta": {"content": "Ho"}}]},
    "no choices": {"choices": []},
    "no delta": {"choices": [{"index": 0}]},
    "usage": {**chunk(content="Hi"), "usage": {"total_tokens": 1}},
    "empty usage": {**chunk(content="Hi"), "usage": {}},
    "an error": {**chunk(content="Hi"), "error": {"type": "provider_error"}},
    "an empty error": {**chunk(content="Hi"), "error": {}},
    "another shape": {"output": [{"delta": {"content": "Hi"}}]},
    "half a surrogate pair": chunk(content="Hi\ud83e"),
    "broken UTF-8": b'{"choices":[{"delta":{"content":"caf\xc3"}}]}',
    "a control character": b'{"choices":[{"delta":{"content":"\x01"}}]}',
    "the end": "[DONE]",
    "no data": "",
    "no JSON": "{no",
    "no object": "[]",
}


@pytest.mark.parametrize("frame", NO_SHORTCUT.values(), ids=[*NO_SHORTCUT])
def test_nothing_else_takes_the_shortcut(frame: bytes | str | object) -> None:
    data, text = event(frame).data, event(chunk(content="Hi")).data
    for events in ([data], [text, data], [data, text]):
        assert ChatDecoder().decode_texts(events) is None


def test_nor_does_text_where_half_a_character_waits() -> None:
    decoder = ChatDecoder()
    decoder.decode(event(chunk(content="\ud83e")))
    assert decoder.decode_texts([event(chunk(content="Hi")).data]) is None
    decoder.decode(event(chunk(content="\udd8a")))
    assert decoder.decode_texts([event(chunk(content="Hi")).data]) is not None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "Hi", "\ud83e"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["text", "type", "x"]), inner, max_size=2)
    ),
    max_leaves=4,
)


fields = st.tuples(
    st.sampled_from(
        [
            *(("choice", name) for name in ("index", "finish_reason", "delta", "logprobs")),
            *(("top", name) for name in ("usage", "error", "type", "message", "output", "object")),
            *(("delta", name) for name in ("content", "refusal", "reasoning", "reasoning_content")),
            *(("delta", name) for name in ("tool_calls", "reasoning_details", "role", "x")),
        ]
    ),
    json_values,
)


@st.composite
def chunks(draw: st.DrawFn) -> dict[str, object]:
    """A chunk of text, of which a few fields have other values."""
    parts: dict[str, dict[str, object]] = {
        "top": {},
        "choice": {"index": 0, "finish_reason": None},
        "delta": {"content": draw(st.text(min_size=1, max_size=3) | st.just("\U0001f98a"))},
    }
    for (part, name), value in draw(st.lists(fields, max_size=2)):
        parts[part][name] = value
    choices = [{"delta": parts["delta"], **parts["choice"]}] * draw(st.sampled_from([1, 1, 1, 2]))
    return {"choices": choices, **parts["top"]}


@given(st.lists(chunks(), max_size=4), st.booleans())
def test_the_shortcut_says_what_the_decoder_says(frames: list[object], ascii_only: bool) -> None:
    decoder = ChatDecoder()
    decoder.decode(event(chunk(content="The choice has begun.")))
    for frame in frames:
        data = json.dumps(frame, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
        short = decoder.decode_texts([data])
        before = (decoder.complete, {*decoder.choices})
        items = decoder.decode(event(data))
        if short is not None:
            assert items == (*short,)
            assert before == (decoder.complete, {*decoder.choices})
