"""Where a kept stream was left, and where in it an answer begins."""

from __future__ import annotations

import json

import pytest

from gz_trio._protocol.cursor import EventCursor
from gz_trio._protocol.sse import ServerSentEvent


def chunk(
    event_id: str | None, *, completion: str | None = "chatcmpl-1", role: bool = False
) -> ServerSentEvent:
    delta = {"role": "assistant"} if role else {"content": "text"}
    data: dict[str, object] = {"choices": [{"index": 0, "delta": delta}]}
    if completion is not None:
        data["id"] = completion
    return ServerSentEvent("message", json.dumps(data).encode(), id=event_id)


def left_after(*events: ServerSentEvent) -> EventCursor:
    cursor = EventCursor()
    for event in events:
        cursor.passed(event)
    return cursor


def test_a_stream_without_ids_has_no_cursor() -> None:
    assert left_after(chunk(None), chunk(None)).last_event_id is None


def test_the_cursor_is_the_last_id() -> None:
    assert left_after(chunk("1"), chunk("2")).last_event_id == "2"


def test_an_event_without_an_id_of_its_own_leaves_the_place_uncertain() -> None:
    # The decoder hands "2" on; a server that goes on after 2 would send the third event again.
    assert left_after(chunk("1"), chunk("2"), chunk("2")).last_event_id is None
    assert left_after(chunk("1"), chunk("2"), chunk("2"), chunk("3")).last_event_id == "3"


def test_an_id_that_was_taken_back_leaves_the_place_uncertain() -> None:
    assert left_after(chunk("1"), chunk(None)).last_event_id is None


@pytest.mark.parametrize("event_id", ["é", "🦊", "1\t", " 1", "1 ", "\x7f", "1" * 1025])
def test_an_id_that_no_header_can_hold_is_no_cursor(event_id: str) -> None:
    assert left_after(chunk(event_id)).last_event_id is None


@pytest.mark.parametrize("event_id", ["0", "a b", '{"offset":1}', "1" * 1024])
def test_any_other_id_is_sent_as_it_is(event_id: str) -> None:
    assert left_after(chunk(event_id)).last_event_id == event_id


NUMBERED = ("7", "8", "9")
PREFIXED = ("a-7", "a-8", "a-9")
OPAQUE = ("x9f", "b", "0c2e")


@pytest.mark.parametrize("ids", [NUMBERED, PREFIXED, OPAQUE])
def test_an_unseen_id_of_the_same_completion_goes_on(ids: tuple[str, str, str]) -> None:
    cursor = left_after(chunk(ids[0], role=True), chunk(ids[1]))
    assert cursor.place_of(chunk(ids[2]), begun={0}) == "here"


@pytest.mark.parametrize(
    ("first_event", "place"),
    [
        pytest.param(chunk("10", completion=None), "here", id="the next number, no name"),
        pytest.param(chunk("10", completion="chatcmpl-2"), "here", id="the next number, renamed"),
        pytest.param(chunk("11", completion=None), "unknown", id="some other number"),
        pytest.param(chunk("11", completion="chatcmpl-2"), "unknown", id="another completion"),
        pytest.param(chunk("b-10", completion=None), "unknown", id="another stream's number"),
        pytest.param(chunk("opaque", completion=None), "unknown", id="an id that says nothing"),
        pytest.param(chunk(None), "unknown", id="no id"),
        pytest.param(chunk("10", role=True), "unknown", id="a beginning: it says who speaks"),
        pytest.param(chunk("7"), "beginning", id="the first event again"),
        pytest.param(chunk("7", completion="chatcmpl-2"), "beginning", id="and of another answer"),
        pytest.param(chunk("9"), "here", id="the last event again"),
        pytest.param(chunk("8"), "here", id="one in the middle again"),
        pytest.param(chunk("8", completion="chatcmpl-2"), "unknown", id="old number, renamed"),
    ],
)
def test_the_first_event_tells_where_an_answer_begins(
    first_event: ServerSentEvent, place: str
) -> None:
    cursor = left_after(chunk("7", role=True), chunk("8"), chunk("9"))
    assert cursor.place_of(first_event, begun={0}) == place


def test_a_role_says_nothing_where_every_chunk_has_one() -> None:
    cursor = left_after(chunk("1", role=True), chunk("2", role=True))
    assert cursor.place_of(chunk("3", role=True), begun={0}) == "here"


def test_the_role_of_a_choice_that_had_not_begun_is_no_beginning_of_the_answer() -> None:
    cursor = left_after(chunk("1", role=True))
    other = b'{"id":"chatcmpl-1","choices":[{"index":1,"delta":{"role":"assistant"}}]}'
    event = ServerSentEvent("message", other, id="2")
    assert cursor.place_of(event, begun={0}) == "here"
    assert cursor.place_of(event, begun={0, 1}) == "unknown"


def test_what_is_no_json_goes_on_by_its_number_alone() -> None:
    cursor = left_after(chunk("1"), chunk("2"))
    assert cursor.place_of(ServerSentEvent("message", b"[DONE]", id="3"), begun={0}) == "here"
    assert cursor.place_of(ServerSentEvent("message", b"[DONE]", id="5"), begun={0}) == "unknown"


@pytest.mark.parametrize("ids", [NUMBERED, PREFIXED, OPAQUE, ("3", "1", "2"), ("007", "008", "1")])
def test_events_already_seen_are_known_by_id(ids: tuple[str, str, str]) -> None:
    cursor = left_after(*map(chunk, ids))
    assert all(cursor.has_passed(chunk(event_id)) for event_id in ids)
    assert not any(
        cursor.has_passed(chunk(event_id)) for event_id in ("10", "a-10", "other", "", None)
    )


def test_numbered_ids_take_no_room() -> None:
    cursor = left_after(*(chunk(f"run-{number}") for number in range(10_000)))
    assert cursor.has_passed(chunk("run-5000"))
    ids = cursor._ids  # pyright: ignore[reportPrivateUsage]
    assert ids is not None
    assert not ids._others  # pyright: ignore[reportPrivateUsage]
