"""The Responses API: whatever a server tells once or four times comes out once."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from typing import Literal, NamedTuple, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

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
from gz_trio._protocol.responses import ResponsesDecoder, identified
from gz_trio._protocol.sse import ServerSentEvent

Object = dict[str, object]


def event(frame: object, name: str = "message") -> ServerSentEvent:
    data = frame if isinstance(frame, bytes) else json.dumps(frame).encode()
    return ServerSentEvent(name, data)


def decode(*frames: object, decoder: ResponsesDecoder | None = None) -> list[Item]:
    decoder = decoder or ResponsesDecoder()
    return [item for frame in frames for item in decoder.decode(event(frame))]


def deltas(*frames: object) -> list[Delta]:
    items = [item for item in decode(*frames) if item is not DONE]
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


def calls(*frames: object) -> list[tuple[str, str, str]]:
    return joined(decode(*frames))


# Items of an answer, whole.


def message(*parts: Object, id: str = "msg_1") -> Object:
    return {
        "id": id,
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [*parts],
    }


def said(text: str) -> Object:
    return {"type": "output_text", "text": text, "annotations": []}


def refused(text: str) -> Object:
    return {"type": "refusal", "refusal": text}


def thoughts(*texts: str, id: str = "rs_1") -> Object:
    content = [{"type": "reasoning_text", "text": text} for text in texts]
    return {"id": id, "type": "reasoning", "summary": [], "content": content}


def summary(*texts: str, id: str = "rs_1") -> Object:
    parts = [{"type": "summary_text", "text": text} for text in texts]
    return {"id": id, "type": "reasoning", "summary": parts}


def function_call(call_id: str, name: str, arguments: str, *, id: str = "fc_1") -> Object:
    return {
        "id": id,
        "type": "function_call",
        "call_id": call_id,
        "name": name,
        "arguments": arguments,
        "status": "completed",
    }


def custom_call(call_id: str, name: str, input: str, *, id: str = "ctc_1") -> Object:
    return {"id": id, "type": "custom_tool_call", "call_id": call_id, "name": name, "input": input}


def response(status: str, output: object = (), **fields: object) -> Object:
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1.0,
        "model": "m",
        "status": status,
        "output": output,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        **fields,
    }


def completed(*output: Object, **fields: object) -> Object:
    return {"type": "response.completed", "response": response("completed", [*output], **fields)}


def incomplete(reason: object) -> Object:
    details = {"incomplete_details": {"reason": reason}}
    return {"type": "response.incomplete", "response": response("incomplete", [], **details)}


def failed(error: object) -> Object:
    return {"type": "response.failed", "response": response("failed", [], error=error)}


# Events of an answer.


def about(kind: str, place: int = 0, index: int = 0, /, **fields: object) -> Object:
    """An event about a part of an item."""
    return {
        "type": f"response.{kind}",
        "output_index": place,
        "content_index": index,
        "item_id": f"item_{place}",
        **fields,
    }


def added(item: Object, place: int = 0) -> Object:
    return {"type": "response.output_item.added", "output_index": place, "item": item}


def done(item: Object, place: int = 0) -> Object:
    return {"type": "response.output_item.done", "output_index": place, "item": item}


Teller = Literal["pieces", "parts", "items", "answer"]
"""The events that may have a text: its deltas, the end of its part, of its item, of the answer."""

TELLERS: tuple[Teller, ...] = ("pieces", "parts", "items", "answer")

MIXTURES = [
    frozenset(mixture)
    for size in range(1, len(TELLERS) + 1)
    for mixture in itertools.combinations(TELLERS, size)
]


def name_of(mixture: AbstractSet[Teller]) -> str:
    """Its name: the same one in every process, which the order in a set is not."""
    return "+".join(teller for teller in TELLERS if teller in mixture)


# How the events of each kind of part are named, the field in which it is whole, and its place.
PARTS = {
    "output_text": ("output_text", "text", "content_index"),
    "refusal": ("refusal", "refusal", "content_index"),
    "reasoning_text": ("reasoning_text", "text", "content_index"),
    "summary_text": ("reasoning_summary_text", "text", "summary_index"),
}
CALLS = {
    "function_call": ("function_call_arguments", "arguments"),
    "custom_tool_call": ("custom_tool_call_input", "input"),
}


class Text(NamedTuple):
    """A text of an item: how its events are named, its field and place in them, and itself."""

    stem: str
    field: str
    place: dict[str, int]
    whole: str


def texts_of(item: Object) -> Iterator[Text]:
    kind = str(item["type"])
    if kind in CALLS:
        stem, field = CALLS[kind]
        yield Text(stem, field, {}, str(item[field]))
    for parts in ("content", "summary"):
        for index, part in enumerate(cast("list[Object]", item.get(parts, []))):
            stem, field, place = PARTS[str(part["type"])]
            yield Text(stem, field, {place: index}, str(part[field]))


def begun(item: Object) -> Object:
    nothing: Object = {"content": [], "summary": [], "arguments": "", "input": ""}
    return {key: nothing.get(key, value) for key, value in item.items()}


def cut(whole: str, sizes: Iterable[int]) -> list[str]:
    """`whole` in pieces of so many UTF-16 units, as a server in JavaScript cuts it."""
    units = whole.encode("utf-16-le", "surrogatepass")
    ends = (min(2 * end, len(units)) for end in itertools.accumulate(sizes))
    cuts = [0, *ends, len(units)]
    return [units[a:b].decode("utf-16-le", "surrogatepass") for a, b in itertools.pairwise(cuts)]


def stream(
    items: list[Object],
    tellers: AbstractSet[Teller] = frozenset(TELLERS),
    *,
    placed: bool = True,
    sizes: list[int] | None = None,
) -> list[Object]:
    """The events of an answer, as OpenAI sends them, of which only the `tellers` have its texts.

    Args:
        items: The answer's.
        tellers: What has the texts.
        placed: Whether the events say where in the answer their item is, beside its id.
        sizes: Of the first deltas of each text; the last has the rest.
    """

    def events() -> Iterator[Object]:
        yield {"type": "response.created", "response": response("in_progress")}
        yield {"type": "response.in_progress", "response": response("in_progress")}
        for place, item in enumerate(items):
            where: Object = {"output_index": place} if placed else {}
            yield {"type": "response.output_item.added", **where, "item": begun(item)}
            for text in texts_of(item):
                part = {**where, "item_id": item["id"], **text.place}
                if text.stem == "output_text":
                    part["logprobs"] = []
                if "pieces" in tellers:
                    for piece in cut(text.whole, sizes or []):
                        yield {"type": f"response.{text.stem}.delta", **part, "delta": piece}
                if "parts" in tellers:
                    yield {"type": f"response.{text.stem}.done", **part, text.field: text.whole}
            if "items" in tellers:
                yield {"type": "response.output_item.done", **where, "item": item}
        yield completed(*items if "answer" in tellers else ())

    return [{**frame, "sequence_number": number} for number, frame in enumerate(events())]


ANSWER = [
    summary("First ", "and then.", id="rs_0"),
    thoughts("Hm ", "\U0001f914", id="rs_1"),
    message(said("Once "), said("upon "), id="msg_2"),
    function_call("call_a", "f", '{"x":"\U0001f98a"}', id="fc_3"),
    custom_call("call_b", "g", "SELECT 1", id="ctc_4"),
    message(refused("a time"), id="msg_5"),
]
TEXT, REASONING = "Once upon a time", "First and then.Hm \U0001f914"
TOOL_CALLS = [("call_a", "f", '{"x":"\U0001f98a"}'), ("call_b", "g", "SELECT 1")]


def test_the_answer_of_these_tests_is_one_of_openais() -> None:
    adapter: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)
    for frame in stream(ANSWER):
        adapter.validate_json(json.dumps(frame))


# What an event says.


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        ("output_text.delta", "delta"),
        ("output_text.done", "text"),
        ("refusal.delta", "delta"),
        ("refusal.done", "refusal"),
    ],
)
def test_text_and_refusals_are_text(kind: str, field: str) -> None:
    frame = about(kind, **{field: "Hi"})
    assert decode(frame) == [Delta(text="Hi", raw=json.dumps(frame).encode())]


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        ("reasoning_text.delta", "delta"),
        ("reasoning_text.done", "text"),
        ("reasoning_summary_text.delta", "delta"),
        ("reasoning_summary_text.done", "text"),
    ],
)
def test_reasoning_and_summaries_of_it_are_reasoning(kind: str, field: str) -> None:
    frame = about(kind, summary_index=0, **{field: "Hm"})
    assert decode(frame) == [Delta(reasoning="Hm", raw=json.dumps(frame).encode())]


@pytest.mark.parametrize("delta", ["", None, {}, 7, ["Hi"]])
@pytest.mark.parametrize(
    "kind", ["output_text.delta", "reasoning_text.delta", "refusal.delta", "output_text.done"]
)
def test_what_is_no_text_is_an_empty_delta(kind: str, delta: object) -> None:
    frame = about(kind, delta=delta, text=delta)
    assert decode(frame) == [Delta(raw=json.dumps(frame).encode())]


def test_the_name_of_the_event_says_no_more_than_its_type() -> None:
    frame = about("output_text.delta", delta="Hi")
    [delta] = ResponsesDecoder().decode(event(frame, "response.output_text.delta"))
    assert delta == Delta(text="Hi", raw=json.dumps(frame).encode())


@pytest.mark.parametrize(
    "kind",
    [
        "created",
        "queued",
        "in_progress",
        "output_item.added",
        "output_item.done",
        "content_part.added",
        "content_part.done",
        "reasoning_summary_part.added",
        "reasoning_summary_part.done",
    ],
)
def test_what_only_says_how_far_it_is_is_an_empty_delta(kind: str) -> None:
    # Its item and its part are of kinds that add nothing.
    frame = about(kind, response=response("queued"), item=message(), part=said("Hi"))
    assert decode(frame) == [Delta(raw=json.dumps(frame).encode())]


@pytest.mark.parametrize(
    "kind",
    [
        "response.audio.delta",
        "response.audio.transcript.delta",
        "response.code_interpreter_call_code.delta",
        "response.file_search_call.searching",
        "response.image_generation_call.partial_image",
        "response.mcp_call_arguments.delta",
        "response.mcp_call.completed",
        "response.output_text.annotation.added",
        "response.web_search_call.in_progress",
        "response.not_yet_invented",
        "keepalive",
    ],
)
def test_what_is_unknown_is_a_raw_event_with_its_bytes_as_they_came(kind: str) -> None:
    data = b'{ "delta":"x",\t"type": "%s" }' % kind.encode()
    assert decode(data) == [RawEvent(kind, data)]
    assert ResponsesDecoder().decode(event(data, "its.name")) == (RawEvent("its.name", data),)


@pytest.mark.parametrize("frame", [7, "Hi", [], [{"type": "error"}], {}, {"delta": "Hi"}, None])
def test_what_has_no_type_is_a_raw_event(frame: object) -> None:
    assert decode(frame) == [RawEvent("message", json.dumps(frame).encode())]


@pytest.mark.parametrize("data", [b"", b"  ", b"\n"])
def test_an_event_without_data_is_nothing(data: bytes) -> None:
    assert decode(data) == []


@pytest.mark.parametrize("data", [b"[DONE]", b" [DONE] "])
def test_done(data: bytes) -> None:
    assert decode(data) == [DONE]


def test_there_is_one_choice() -> None:
    assert ResponsesDecoder().choices == {0}


# Told once.


@pytest.mark.parametrize("placed", [True, False], ids=["by place", "by id"])
@pytest.mark.parametrize("mixture", MIXTURES, ids=name_of)
def test_whatever_tells_the_answer_it_is_told_once(
    mixture: AbstractSet[Teller], placed: bool
) -> None:
    frames = stream(ANSWER, mixture, placed=placed)
    assert (text(*frames), reasoning(*frames), calls(*frames)) == (TEXT, REASONING, TOOL_CALLS)


@pytest.mark.parametrize("sizes", [[], [1], [3], [7], [0, 1, 1], [1] * 100], ids=str)
def test_wherever_deltas_are_cut_the_texts_are_whole(sizes: list[int]) -> None:
    frames = stream(ANSWER, sizes=sizes)
    assert (text(*frames), reasoning(*frames), calls(*frames)) == (TEXT, REASONING, TOOL_CALLS)


def test_a_text_that_is_only_in_the_end_of_its_part_is_told_once() -> None:
    part = said("Hi")
    assert text(about("output_text.done", text="Hi")) == "Hi"
    assert (
        text(
            added(message()),
            about("content_part.added", part=said("")),
            about("output_text.done", text="Hi"),
            about("content_part.done", part=part),
            done(message(part)),
            completed(message(part)),
        )
        == "Hi"
    )


def test_a_text_that_is_only_in_the_end_of_its_item_is_told_once() -> None:
    item = message(said("H"), said("i"))
    assert text(done(item)) == "Hi"
    assert text(added(message()), done(item), completed(item)) == "Hi"


def test_a_text_that_is_only_in_the_end_of_the_answer_is_told_once() -> None:
    assert text(completed(message(said("H")), message(said("i")))) == "Hi"


def test_what_is_done_is_told_where_its_deltas_were_empty() -> None:
    frames = [about("output_text.delta", delta=""), about("output_text.done", text="Hi")]
    assert text(*frames, completed(message(said("Hi")))) == "Hi"


def test_each_kind_of_text_may_be_name_of_another_kind_of_event() -> None:
    item = message(said("Hi"))
    call = function_call("call_a", "f", "{}")
    items = decode(
        about("reasoning_text.delta", 0, delta="Hm"),
        done(thoughts("Hm")),
        about("output_text.done", 1, text="Hi"),
        done(item, 1),
        added({**call, "arguments": ""}, 2),
        done(call, 2),
        completed(thoughts("Hm"), item, call),
    )
    got = [item for item in items if isinstance(item, Delta)]
    assert "".join(delta.text for delta in got) == "Hi"
    assert "".join(delta.reasoning for delta in got) == "Hm"
    assert joined(got) == [("call_a", "f", "{}")]


@pytest.mark.parametrize(
    "second",
    [
        pytest.param([about("output_text.done", 1, text=" there")], id="of its part"),
        pytest.param([done(message(said(" there")), 1)], id="of its item"),
        pytest.param([], id="of the answer"),
    ],
)
def test_a_second_text_that_is_only_in_the_end_is_told_behind_one_that_came_in_deltas(
    second: list[Object],
) -> None:
    end = completed(message(said("Hi")), message(said(" there")))
    frames = [about("output_text.delta", delta="Hi"), about("output_text.done", text="Hi")]
    assert text(*frames, *second, end) == "Hi there"


def test_items_come_in_the_order_of_their_events() -> None:
    frames = [
        about("output_text.delta", 1, delta="a"),
        about("output_text.delta", 0, delta="b"),
        about("output_text.delta", 1, delta="c"),
    ]
    assert text(*frames, completed(message(said("b")), message(said("ac")))) == "abc"


texts = st.text(max_size=6)
parts = st.one_of(texts.map(said), texts.map(refused))
items_without_ids = st.one_of(
    st.lists(parts, max_size=3).map(lambda some: message(*some)),
    st.lists(texts, max_size=3).map(lambda some: thoughts(*some)),
    st.lists(texts, max_size=3).map(lambda some: summary(*some)),
    st.builds(function_call, st.just("call"), st.sampled_from("fg"), texts),
    st.builds(custom_call, st.just("call"), st.sampled_from("fg"), texts),
)


def with_ids(items: list[Object]) -> list[Object]:
    return [
        {**item, "id": f"item_{place}", **({"call_id": f"call_{place}"} if "name" in item else {})}
        for place, item in enumerate(items)
    ]


@given(
    items=st.lists(items_without_ids, max_size=5).map(with_ids),
    mixture=st.sampled_from(MIXTURES),
    placed=st.booleans(),
    sizes=st.lists(st.integers(0, 3), max_size=4),
)
def test_whatever_the_answer_is_each_of_its_texts_is_told_once(
    items: list[Object], mixture: AbstractSet[Teller], placed: bool, sizes: list[int]
) -> None:
    frames = stream(items, mixture, placed=placed, sizes=sizes)
    spoken: list[str] = []
    thought: list[str] = []
    called: list[tuple[str, str, str]] = []
    for item in items:
        for text in texts_of(item):
            if item["type"] == "message":
                spoken.append(text.whole)
            elif item["type"] == "reasoning":
                thought.append(text.whole)
            else:
                called.append((str(item["call_id"]), str(item["name"]), text.whole))
    decoder = ResponsesDecoder()
    got = decode(*frames, decoder=decoder)
    assert decoder.complete
    assert "".join(item.text for item in got if isinstance(item, Delta)) == "".join(spoken)
    assert "".join(item.reasoning for item in got if isinstance(item, Delta)) == "".join(thought)
    assert joined(got) == called
    if "answer" in mixture or ("items" in mixture and placed):
        assert decoder.output == items


# Broken text.


def halves(kind: str, *pieces: bytes) -> list[bytes]:
    return [
        b'{"type":"response.%s","output_index":0,"content_index":0,"summary_index":0,"delta":"%s"}'
        % (kind.encode(), piece)
        for piece in pieces
    ]


@pytest.mark.parametrize(
    "kind",
    [
        "output_text.delta",
        "refusal.delta",
        "reasoning_text.delta",
        "reasoning_summary_text.delta",
        "function_call_arguments.delta",
        "custom_tool_call_input.delta",
    ],
)
def test_a_surrogate_pair_cut_in_two_deltas_comes_whole(kind: str) -> None:
    got = deltas(*halves(kind, rb"a\ud83d", b"", rb"\ude00b"))
    arguments = "".join(call.arguments for delta in got for call in delta.tool_calls)
    whole = "".join(delta.text + delta.reasoning for delta in got) + arguments
    assert whole == "a\U0001f600b"


def test_the_first_half_waits_for_its_own_part_alone() -> None:
    got = deltas(
        about("output_text.delta", 0, 0, delta="\ud83d"),
        about("output_text.delta", 0, 1, delta="x"),
        about("output_text.delta", 1, 0, delta="y"),
        about("output_text.delta", 0, 0, delta="\ude00"),
    )
    assert [delta.text for delta in got] == ["", "x", "y", "\U0001f600"]


@pytest.mark.parametrize(
    "end",
    [
        pytest.param([about("output_text.done", text="a\ud83d")], id="of its part"),
        pytest.param([done(message(said("a\ud83d")))], id="of its item"),
        pytest.param([completed(message(said("a\ud83d")))], id="of the answer"),
        pytest.param([completed()], id="of an answer that says nothing again"),
    ],
)
def test_half_a_pair_that_stays_alone_is_the_replacement_character_at_the_end(
    end: list[Object],
) -> None:
    assert text(about("output_text.delta", delta="a\ud83d"), *end) == "a\ufffd"


def test_broken_utf8_becomes_the_replacement_character() -> None:
    data = b'{"type":"response.output_text.delta","delta":"a\xe2\x82 b\xff"}'
    assert decode(data) == [Delta(text="a\ufffd b\ufffd", raw=data)]


def test_control_characters_that_are_not_escaped_are_text() -> None:
    assert text(b'{"type":"response.output_text.delta","delta":"a\x01\nb","x":NaN}') == "a\x01\nb"


@pytest.mark.parametrize(
    "data", [b"{", b"<html>", b"\xff", b'{"type":"response.output_text.delta"', b"[" * 100_000]
)
def test_what_is_no_json_is_a_protocol_error(data: bytes) -> None:
    decoder = ResponsesDecoder()
    [error] = decode(data, decoder=decoder)
    assert isinstance(error, ProtocolError)
    assert error.body == data
    decode(completed(), decoder=decoder)
    assert not decoder.complete


# Tool calls.


def test_a_call_begins_with_its_index_id_and_name_and_goes_on_with_its_arguments() -> None:
    call = function_call("call_a", "f", "")
    frames = [
        added(call),
        about("function_call_arguments.delta", delta='{"x"'),
        about("function_call_arguments.delta", delta=":1}"),
        about("function_call_arguments.done", arguments='{"x":1}'),
        done({**call, "arguments": '{"x":1}'}),
    ]
    assert [delta.tool_calls for delta in deltas(*frames)] == [
        (ToolCallDelta(0, "call_a", "f"),),
        (ToolCallDelta(0, arguments='{"x"'),),
        (ToolCallDelta(0, arguments=":1}"),),
        (),
        (),
    ]


def test_the_input_of_a_custom_tool_is_its_arguments() -> None:
    call = custom_call("call_a", "sql", "")
    frames = [
        added(call),
        about("custom_tool_call_input.delta", delta="SELECT "),
        about("custom_tool_call_input.delta", delta="1"),
        about("custom_tool_call_input.done", input="SELECT 1"),
        done({**call, "input": "SELECT 1"}),
    ]
    assert calls(*frames) == [("call_a", "sql", "SELECT 1")]


def test_calls_are_numbered_among_themselves() -> None:
    frames = stream(
        [
            thoughts("Hm", id="rs_0"),
            function_call("call_a", "f", "1", id="fc_1"),
            message(said("Hi"), id="msg_2"),
            custom_call("call_b", "g", "2", id="ctc_3"),
        ]
    )
    assert calls(*frames) == [("call_a", "f", "1"), ("call_b", "g", "2")]


def test_calls_that_interleave_are_apart() -> None:
    frames = [
        added(function_call("call_a", "f", "", id="a"), 0),
        added(function_call("call_b", "g", "", id="b"), 1),
        about("function_call_arguments.delta", 1, delta="2"),
        about("function_call_arguments.delta", 0, delta="1"),
        about("function_call_arguments.delta", 1, delta="2"),
        about("function_call_arguments.done", 0, arguments="1"),
        about("function_call_arguments.done", 1, arguments="22"),
    ]
    assert calls(*frames) == [("call_a", "f", "1"), ("call_b", "g", "22")]


def test_a_call_without_a_call_id_has_its_items_id() -> None:
    call: Object = {"type": "function_call", "id": "fc_1", "name": "f", "arguments": "{}"}
    assert calls(done(call)) == [("fc_1", "f", "{}")]


@pytest.mark.parametrize(
    "kind", ["web_search_call", "file_search_call", "mcp_call", "code_interpreter_call", None, 7]
)
def test_calls_of_the_servers_own_tools_are_none_of_the_callers(kind: object) -> None:
    item = {"id": "ws_1", "type": kind, "name": "f", "arguments": "{}", "status": "completed"}
    assert calls(added(item), done(item), completed(item)) == []


def test_the_id_and_name_of_a_call_come_even_where_its_beginning_did_not() -> None:
    frames = [
        about("function_call_arguments.delta", delta='{"x":'),
        about("function_call_arguments.delta", delta="1}"),
        done(function_call("call_a", "f", '{"x":1}')),
    ]
    assert calls(*frames) == [("call_a", "f", '{"x":1}')]


# The end.


def end_of(*frames: object) -> Delta:
    *_, delta, last = decode(*frames)
    assert isinstance(delta, Delta)
    assert last is DONE
    return delta


def test_the_end_is_a_delta_with_the_bytes_and_done() -> None:
    frame = completed()
    [delta, last] = decode(frame)
    assert delta == Delta(finish_reason="stop", raw=json.dumps(frame).encode())
    assert last is DONE


@pytest.mark.parametrize(
    ("frame", "finish_reason"),
    [
        (completed(message(said("Hi"))), "stop"),
        (completed(message(refused("No"))), "stop"),
        (completed(function_call("a", "f", "{}")), "tool_calls"),
        (completed(message(said("Hi")), custom_call("a", "f", "x")), "tool_calls"),
        (completed({"type": "web_search_call", "id": "ws_1"}), "stop"),
        (incomplete("max_output_tokens"), "length"),
        (incomplete("content_filter"), "content_filter"),
        (incomplete("steered"), "steered"),
        (incomplete(None), "incomplete"),
        (incomplete(["max_output_tokens"]), "incomplete"),
        ({"type": "response.incomplete"}, "incomplete"),
        ({"type": "response.completed"}, "stop"),
        ({"type": "response.completed", "response": "resp_1"}, "stop"),
    ],
)
def test_the_finish_reason_is_in_the_words_of_chat_completions(
    frame: object, finish_reason: str
) -> None:
    assert end_of(frame).finish_reason == finish_reason


def test_calls_that_came_in_pieces_are_a_finish_reason() -> None:
    call = function_call("call_a", "f", "")
    assert end_of(added(call), completed()).finish_reason == "tool_calls"


def test_an_answer_cut_off_in_a_call_is_not_finished_for_it() -> None:
    call = function_call("call_a", "f", '{"x')
    assert end_of(added(call), incomplete("max_output_tokens")).finish_reason == "length"


def test_the_end_has_what_the_server_counted() -> None:
    sent = {
        "input_tokens": 30,
        "input_tokens_details": {"cached_tokens": 20},
        "output_tokens": 12,
        "output_tokens_details": {"reasoning_tokens": 5},
        "total_tokens": 42,
    }
    usage = end_of(completed(usage=sent)).usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (30, 12, 42)
    assert usage.raw == sent


def test_the_total_is_the_sum_where_the_server_gave_none() -> None:
    usage = end_of(completed(usage={"input_tokens": 3, "output_tokens": 4})).usage
    assert usage is not None
    assert usage.total_tokens == 7


@pytest.mark.parametrize("usage", [None, {}, "none", 7, []])
def test_odd_usage_costs_no_text(usage: object) -> None:
    end = end_of(completed(message(said("Hi")), usage=usage))
    assert (end.text, end.usage) == ("Hi", None)


# Complete, or cut.


@pytest.mark.parametrize("mixture", MIXTURES, ids=name_of)
def test_a_stream_that_was_cut_is_complete_nowhere_but_at_its_end(
    mixture: AbstractSet[Teller],
) -> None:
    decoder = ResponsesDecoder()
    assert not decoder.complete
    frames = stream(ANSWER, mixture)
    for frame in frames[:-1]:
        decode(frame, decoder=decoder)
        assert not decoder.complete
    decode(frames[-1], decoder=decoder)
    assert decoder.complete


HI = about("output_text.delta", delta="Hi")


@pytest.mark.parametrize(
    ("frames", "complete"),
    [
        pytest.param([b"[DONE]"], False, id="DONE alone"),
        pytest.param([HI, b"[DONE]"], False, id="DONE after text"),
        pytest.param([HI, done(message(said("Hi")))], False, id="all items done"),
        pytest.param([HI, completed()], True, id="completed"),
        pytest.param([HI, incomplete("max_output_tokens")], True, id="incomplete"),
        pytest.param([completed(), b"[DONE]"], True, id="DONE behind the end"),
        pytest.param([completed(), {"type": "keepalive"}], True, id="the unknown behind the end"),
        pytest.param([{"type": "error", "message": "m"}, completed()], False, id="after an error"),
        pytest.param([completed(), {"type": "error"}], False, id="an error behind the end"),
        pytest.param([completed(), {"error": "x"}, b"[DONE]"], False, id="DONE after an error"),
        pytest.param([failed({"code": "server_error"})], False, id="failed"),
        pytest.param([{"type": "response.cancelled"}, b"[DONE]"], False, id="cancelled"),
    ],
)
def test_complete(frames: list[object], complete: bool) -> None:
    decoder = ResponsesDecoder()
    decode(*frames, decoder=decoder)
    assert decoder.complete is complete


def test_an_answer_that_is_taken_up_after_an_error_may_become_whole() -> None:
    decoder = ResponsesDecoder()
    decode(HI, {"type": "error", "code": "server_error", "message": "m"}, decoder=decoder)
    decoder.take_up()
    assert not decoder.complete
    items = decode(
        about("output_text.delta", delta=" there"),
        about("output_text.done", text="Hi there"),
        done(message(said("Hi there"))),
        completed(message(said("Hi there"))),
        decoder=decoder,
    )
    assert "".join(item.text for item in items if isinstance(item, Delta)) == " there"
    assert decoder.complete


def test_half_a_character_waits_over_a_break() -> None:
    decoder = ResponsesDecoder()
    decode(about("output_text.delta", delta="\ud83d"), decoder=decoder)
    decoder.take_up()
    [delta] = decode(about("output_text.delta", delta="\ude00"), decoder=decoder)
    assert isinstance(delta, Delta)
    assert delta.text == "\U0001f600"


# The name of the answer.


@pytest.mark.parametrize("kind", ["created", "queued", "in_progress", "completed", "incomplete"])
def test_the_server_keeps_the_answer_by_the_responses_id(kind: str) -> None:
    decoder = ResponsesDecoder()
    assert decoder.response_id is None
    decode({"type": f"response.{kind}", "response": response("x")}, decoder=decoder)
    assert decoder.response_id == "resp_1"


@pytest.mark.parametrize("nothing", [{}, {"id": None}, {"id": ""}, {"id": 7}, None, "resp_2"])
@pytest.mark.parametrize("kind", ["in_progress", "completed"])
def test_an_event_that_does_not_say_the_id_leaves_it(kind: str, nothing: object) -> None:
    decoder = ResponsesDecoder()
    created = {"type": "response.created", "response": {"id": "resp_1"}}
    decode(created, {"type": f"response.{kind}", "response": nothing}, decoder=decoder)
    assert decoder.response_id == "resp_1"


# What goes back.


def test_the_output_is_what_the_completed_answer_has() -> None:
    decoder = ResponsesDecoder()
    sealed: Object = {"id": "rs_1", "type": "reasoning", "summary": [], "encrypted_content": "x=="}
    unknown: Object = {"id": "x_1", "type": "not_yet_invented", "x": {"y": [1, None]}}
    output = [sealed, unknown, message(said("Hi"))]
    decode(done(thoughts("Hm")), completed(*output), decoder=decoder)
    assert decoder.output == output


def test_else_the_output_is_the_items_that_were_done_in_their_order() -> None:
    decoder = ResponsesDecoder()
    frames = [
        done(message(said("Hi")), 2),
        done(thoughts("Hm"), 0),
        done(function_call("a", "f", "{}"), 10),
        added(message(), 11),
    ]
    decode(*frames, completed(), decoder=decoder)
    assert decoder.output == [thoughts("Hm"), message(said("Hi")), function_call("a", "f", "{}")]


def test_else_the_output_is_the_items_that_were_done_even_without_a_place() -> None:
    decoder = ResponsesDecoder()
    items = [thoughts("Hm", id="a"), function_call("call_a", "f", "{}", id="b")]
    frames = stream(items, {"items"}, placed=False)
    decode(*frames, decoder=decoder)
    assert decoder.output == items


def test_there_is_no_output_before_the_end() -> None:
    decoder = ResponsesDecoder()
    decode(done(message(said("Hi"))), decoder=decoder)
    assert decoder.output is None


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param([completed(message(said("a\ud83d")))], id="of the answer"),
        pytest.param([done(message(said("a\ud83d"))), completed()], id="of an item"),
    ],
)
def test_half_a_surrogate_pair_does_not_keep_the_output_from_going_back(
    frames: list[Object],
) -> None:
    decoder = ResponsesDecoder()
    decode(*frames, decoder=decoder)
    sent = msgspec.json.encode(decoder.output)  # As the next request is written.
    assert json.loads(sent) == [message(said("a\ufffd"))]


# Failures.


@pytest.mark.parametrize("code", ["server_error", "rate_limit_exceeded"])
def test_a_failure_that_passes_may_be_tried_again(code: str) -> None:
    decoder = ResponsesDecoder()
    frame = failed({"code": code, "message": "m"})
    [error] = decode(frame, decoder=decoder)
    assert isinstance(error, GatewayError)
    assert (error.code, error.retryable, error.body) == (code, True, json.dumps(frame).encode())
    assert decoder.over


@pytest.mark.parametrize(
    ("error", "error_class"),
    [
        ({"code": "invalid_prompt", "message": "m"}, InternalServerError),
        ({"code": "image_content_policy_violation", "message": "m"}, InternalServerError),
        ({"code": "context_length_exceeded", "message": "m"}, BadRequestError),
        ({"code": "insufficient_quota", "message": "m"}, PaymentRequiredError),
        ({"code": "model_not_found", "message": "m"}, NotFoundError),
        ({"code": "invalid_api_key", "message": "m"}, AuthenticationError),
        ({"message": "m"}, InternalServerError),
        ({"code": None}, InternalServerError),
        ({"code": 7}, InternalServerError),
        ({"code": ["server_error"]}, InternalServerError),
        ({"code": {}}, InternalServerError),
        ({}, InternalServerError),
        (None, InternalServerError),
        ("server_error", InternalServerError),
    ],
)
def test_any_other_failure_is_about_the_request(
    error: object, error_class: type[GatewayError]
) -> None:
    decoder = ResponsesDecoder()
    [got] = decode(failed(error), decoder=decoder)
    assert isinstance(got, GatewayError)
    assert (type(got), got.retryable) == (error_class, False)
    assert decoder.over


@pytest.mark.parametrize("sent", [response("cancelled", error=None), response("cancelled"), None])
def test_a_cancelled_answer_is_an_error_for_good(sent: object) -> None:
    decoder = ResponsesDecoder()
    frame = {"type": "response.cancelled", "response": sent}
    [error] = decode(frame, decoder=decoder)
    assert isinstance(error, GatewayError)
    assert (error.retryable, decoder.over, decoder.complete) == (False, True, False)


@pytest.mark.parametrize(
    ("frame", "error_class"),
    [
        pytest.param(
            {"type": "error", "code": "rate_limit_exceeded", "message": "m", "param": None},
            RateLimitError,
            id="flat",
        ),
        pytest.param(
            {"type": "error", "code": "server_error", "message": "m", "sequence_number": 3},
            InternalServerError,
            id="flat, with a number",
        ),
        pytest.param({"type": "error", "code": None}, InternalServerError, id="flat, empty"),
        pytest.param({"type": "error"}, InternalServerError, id="bare"),
        pytest.param(
            {"type": "error", "status": 401, "code": None, "message": "m"},
            AuthenticationError,
            id="flat, with a status",
        ),
        pytest.param(
            {
                "type": "error",
                "status": 401,
                "error": {
                    "code": "invalid_api_key",
                    "message": "m",
                    "type": "invalid_request_error",
                    "headers": {"retry-after": "5", "x-request-id": "r"},
                },
                "stream_id": "s",
            },
            AuthenticationError,
            id="nested, of the key",
        ),
        pytest.param(
            {"type": "error", "status": 401, "error": {"type": "invalid_request_error"}},
            AuthenticationError,
            id="nested, of the key by its status",
        ),
        pytest.param(
            {"type": "error", "status": 400, "error": {"type": "invalid_request_error"}},
            BadRequestError,
            id="nested, of the request",
        ),
        pytest.param(
            {"type": "error", "error": {"code": "rate_limit_exceeded", "message": "m"}},
            RateLimitError,
            id="nested",
        ),
        pytest.param({"error": "it broke"}, InternalServerError, id="a body: text"),
        pytest.param(
            {"error": {"type": "auth_error", "message": "m"}}, AuthenticationError, id="a body"
        ),
        pytest.param({"detail": "Invalid API key"}, InternalServerError, id="a body: detail"),
        pytest.param(
            {"detail": {"code": "insufficient_quota"}}, PaymentRequiredError, id="a body: details"
        ),
        pytest.param({"message": "m"}, InternalServerError, id="a body: message"),
    ],
)
def test_an_error_is_an_error(frame: object, error_class: type[GatewayError]) -> None:
    decoder = ResponsesDecoder()
    [error] = decode(frame, decoder=decoder)
    assert isinstance(error, GatewayError)
    assert type(error) is error_class
    assert error.body == json.dumps(frame).encode()
    assert not decoder.over  # The server may go on with a stream that it keeps.


def test_the_headers_in_an_error_are_ignored() -> None:
    headers = {"retry-after": "5", "x-request-id": "r", "x-should-retry": "false"}
    frame = {"type": "error", "error": {"code": "rate_limit_exceeded", "headers": headers}}
    [error] = decode(frame)
    assert isinstance(error, GatewayError)
    assert (error.hints.retry_after, error.hints.should_retry, error.request_id) == (None,) * 3
    assert error.retryable


@pytest.mark.parametrize(
    "data", [b'{"message":"m"}', b"{}", b"upstream broke", b'"m"', b"[]", b"7", HI]
)
def test_an_event_named_error_is_an_error(data: object) -> None:
    decoder = ResponsesDecoder()
    decode(completed(), decoder=decoder)
    [error] = decoder.decode(event(data, "error"))
    assert type(error) is InternalServerError
    assert not decoder.complete


@pytest.mark.parametrize("empty", [None, {}, "", False])
def test_an_empty_error_is_none(empty: object) -> None:
    assert text({**HI, "error": empty, "detail": empty}) == "Hi"
    assert decode({"error": empty}) == [RawEvent("message", event({"error": empty}).data)]


# An answer that did not stream.


def decode_completion(body: object) -> tuple[ResponsesDecoder, list[Item]]:
    decoder = ResponsesDecoder()
    return decoder, [*decoder.decode_completion(event(body).data)]


def test_a_whole_answer_is_one_delta_and_done() -> None:
    body = response("completed", ANSWER, usage={"input_tokens": 3, "output_tokens": 4})
    decoder, [delta, last] = decode_completion(body)
    assert isinstance(delta, Delta)
    assert last is DONE
    assert (delta.text, delta.reasoning, joined([delta])) == (TEXT, REASONING, TOOL_CALLS)
    assert (delta.finish_reason, delta.raw) == ("tool_calls", json.dumps(body).encode())
    assert delta.usage is not None
    assert delta.usage.total_tokens == 7
    assert (decoder.complete, decoder.response_id, decoder.output) == (True, "resp_1", ANSWER)


def test_a_whole_answer_may_be_incomplete() -> None:
    details = {"incomplete_details": {"reason": "max_output_tokens"}}
    body = response("incomplete", [message(said("Hi"))], **details)
    decoder, [delta, _] = decode_completion(body)
    assert isinstance(delta, Delta)
    assert (delta.text, delta.finish_reason, decoder.complete) == ("Hi", "length", True)


@pytest.mark.parametrize(
    ("body", "error_class", "retryable", "over"),
    [
        (response("failed", error={"code": "server_error"}), InternalServerError, True, True),
        (response("failed", error={"code": "rate_limit_exceeded"}), RateLimitError, True, True),
        (response("failed", error={"code": "invalid_prompt"}), InternalServerError, False, True),
        (response("cancelled", error=None), InternalServerError, False, True),
        (response("queued", error=None), ProtocolError, False, False),
        (response("in_progress"), ProtocolError, False, False),
        ({"error": {"code": "rate_limit_exceeded"}}, RateLimitError, True, False),
        ({"type": "error", "error": {"type": "auth_error"}}, AuthenticationError, False, False),
        ({"error": "it broke"}, InternalServerError, True, False),
        ({"detail": "Invalid API key"}, InternalServerError, True, False),
        ({"object": "list", "data": []}, ProtocolError, False, False),
        ({"choices": [{"message": {"content": "Hi"}}]}, ProtocolError, False, False),
        ({"status": ["completed"]}, ProtocolError, False, False),
        ([response("completed")], ProtocolError, False, False),
        ("Hi", ProtocolError, False, False),
        (b"<html>", ProtocolError, False, False),
        (b"", ProtocolError, False, False),
        (b"[" * 100_000, ProtocolError, False, False),
    ],
)
def test_a_body_that_is_no_whole_answer_is_an_error(
    body: object, error_class: type[GatewayError], retryable: bool, over: bool
) -> None:
    decoder, [error] = decode_completion(body)
    assert isinstance(error, GatewayError)
    assert (type(error), error.retryable) == (error_class, retryable)
    assert error.body == event(body).data
    assert (decoder.complete, decoder.over) == (False, over)


# Whatever comes.


SECRET = "sk-Secret"

FIELDS = [
    "type",
    "delta",
    "text",
    "refusal",
    "arguments",
    "input",
    "part",
    "item",
    "item_id",
    "output_index",
    "content_index",
    "summary_index",
    "response",
    "error",
    "detail",
    "message",
    "code",
    "status",
    "id",
    "call_id",
    "name",
    "output",
    "content",
    "summary",
    "usage",
    "input_tokens",
    "incomplete_details",
    "reason",
    "sequence_number",
]
WORDS = [
    "",
    SECRET,
    f"401: the API key {SECRET} has expired",
    "\ud83d",
    "\ude00",
    "message",
    "reasoning",
    "function_call",
    "custom_tool_call",
    "output_text",
    "reasoning_text",
    "completed",
    "failed",
    "server_error",
    "auth_error",
    "rate_limit_exceeded",
    "max_output_tokens",
]
KINDS = [
    "error",
    *(
        f"response.{kind}"
        for kind in (
            "created",
            "output_item.added",
            "output_item.done",
            "content_part.done",
            "output_text.delta",
            "output_text.done",
            "refusal.done",
            "reasoning_text.delta",
            "reasoning_summary_text.done",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "custom_tool_call_input.delta",
            "custom_tool_call_input.done",
            "completed",
            "incomplete",
            "failed",
            "cancelled",
            "not_yet_invented",
        )
    ),
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
DECIDING = ["type", "code", "status", "content_index", "output", "item", "response", "error"]
odd_fields = st.dictionaries(st.sampled_from([*FIELDS, *DECIDING * 4]), values, max_size=2)
items_of_output = st.sampled_from(ANSWER)


@st.composite
def almost(draw: st.DrawFn, usual: st.SearchStrategy[Object]) -> Object:
    """What a server sends, of which a few fields have other values."""
    return {**draw(usual), **draw(odd_fields)}


@st.composite
def whole_responses(draw: st.DrawFn) -> Object:
    output = draw(st.lists(almost(items_of_output), max_size=2))
    error = draw(st.dictionaries(st.sampled_from(FIELDS), values, max_size=2))
    status = draw(st.sampled_from(["completed", "incomplete", "failed", "cancelled", "queued"]))
    return response(status, output, error=error)


@st.composite
def odd_frames(draw: st.DrawFn) -> Object:
    usual: Object = {
        "type": draw(st.sampled_from(KINDS)),
        "output_index": draw(st.integers(0, 1)),
        "item": draw(almost(items_of_output)),
        "response": draw(almost(whole_responses())),
        "delta": draw(st.sampled_from(WORDS)),
    }
    return {**usual, **draw(odd_fields)}


def as_bytes(value: object) -> bytes:
    return json.dumps(value).encode()


datas = st.binary() | st.one_of(values, odd_frames(), odd_frames(), almost(whole_responses())).map(
    as_bytes
)


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
    assert items or not data.strip()


@given(st.lists(st.tuples(datas, st.sampled_from(["message", "error", "x"])), max_size=5))
def test_whatever_comes_nothing_is_dropped_raised_or_quoted(
    events: list[tuple[bytes, str]],
) -> None:
    decoder = ResponsesDecoder()
    for data, name in events:
        check(decoder.decode(identified(event(data, name))), data)
        body_decoder = ResponsesDecoder()
        check(body_decoder.decode_completion(data), data)
        json.dumps(body_decoder.output)
    json.dumps(decoder.output)
    assert isinstance(decoder.complete, bool)


@pytest.mark.parametrize("kind", [[], {}, ["function_call"], 7, None, True])
@pytest.mark.parametrize("make", [added, done, completed])
def test_an_item_of_an_odd_type_is_no_call(make: Callable[[Object], Object], kind: object) -> None:
    item: Object = {"type": kind, "id": "x", "name": "f", "arguments": "{}"}
    assert calls(added(function_call("call_a", "f", "")), make(item)) == [("call_a", "f", "")]


@pytest.mark.parametrize("odd", [None, "0", 1.5, True, -1, [], {}])
@pytest.mark.parametrize("field", ["output_index", "content_index", "summary_index", "item_id"])
def test_an_odd_place_costs_no_text(field: str, odd: object) -> None:
    place = {"summary_index": 0, field: odd}
    # Half a character has to wait there.
    halves = [{**place, "delta": "a\ud83d"}, {**place, "delta": "\ude00b"}]
    whole = "a\U0001f600b"
    assert text(*(about("output_text.delta", **half) for half in halves)) == whole
    assert reasoning(*(about("reasoning_summary_text.delta", **half) for half in halves)) == whole
    pieces = (about("function_call_arguments.delta", **half) for half in halves)
    assert calls(*pieces) == [("", "", whole)]


def test_json_nested_to_any_depth_does_not_make_it_raise() -> None:
    for depth in range(700, 1_000):  # Where Python's limits are met: somewhere below 1,000.
        nested = b"[" * depth + b"]" * depth
        for field in (b"delta", b"item", b"error", b"response"):
            for kind in (b"response.output_text.delta", b"response.output_item.done", b"error"):
                data = b'{"type":"%s","%s":{"type":"function_call","x":%s}}'
                assert len(decode(data % (kind, field, nested))) == 1
        body = b'{"status":"completed","output":[{"type":"message","x":%s}]}' % nested
        assert ResponsesDecoder().decode_completion(body)


# The number of an event.


@pytest.mark.parametrize(
    ("data", "event_id"),
    [
        (b'{"sequence_number":0}', "0"),
        (b'{"type":"response.completed","response":{},"sequence_number":41}', "41"),
        (b' {"sequence_number" : 7 } ', "7"),
        (b'{"sequence_number":12345678901234567890}', "12345678901234567890"),
        (b'{"sequence_number":-1}', None),
        (b'{"sequence_number":null}', None),
        (b'{"sequence_number":"7"}', None),
        (b'{"sequence_number":1.5}', None),
        (b'{"sequence_number":true}', None),
        (b'{"sequence_number":[1]}', None),
        (b'{"response":{"sequence_number":7}}', None),
        (b"{}", None),
        (b"[7]", None),
        (b"7", None),
        (b"[DONE]", None),
        (b"", None),
        (b"\xff", None),
        (b"[" * 100_000, None),
        (b'{"sequence_number":7,"x":%s' % (b"[" * 100_000), None),
    ],
)
@pytest.mark.parametrize("sent_id", [None, "5", "x"])
def test_the_id_of_an_event_is_the_number_in_it(
    data: bytes, event_id: str | None, sent_id: str | None
) -> None:
    sent = ServerSentEvent("response.completed", data, sent_id, 3000)
    assert identified(sent) == ServerSentEvent("response.completed", data, event_id, 3000)


@pytest.mark.parametrize(
    "delta",
    [
        pytest.param(b"caf\xc3", id="broken UTF-8"),
        pytest.param(b"a\nb", id="a control character"),
        pytest.param(rb"\ud83d", id="half a surrogate pair"),
    ],
)
def test_broken_text_beside_it_costs_no_number(delta: bytes) -> None:
    data = b'{"type":"response.output_text.delta","delta":"%s","sequence_number":4}' % delta
    assert identified(ServerSentEvent("message", data)).id == "4"


@given(datas, st.none() | st.text(max_size=3))
def test_an_id_is_always_a_number_or_none(data: bytes, sent_id: str | None) -> None:
    got = identified(ServerSentEvent("message", data, sent_id)).id
    assert got is None or (got.isascii() and int(got) >= 0)
