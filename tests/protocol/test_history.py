"""What a gateway's history answers mean, and how a save that was lost is found."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gz_trio import (
    APIConnectionError,
    AuthenticationError,
    BadRequestError,
    GatewayError,
    HistoryMessage,
    InternalServerError,
    NotFoundError,
    ProtocolError,
    RateLimitError,
    SaveError,
    StreamTimeout,
)
from gz_trio._protocol.history import (
    TITLE_CHARACTERS,
    Outbox,
    Stored,
    acknowledged,
    batch_saved_from,
    feedback_from,
    feedbacks_from,
    may_have_been_done,
    message_from,
    message_to_send,
    save_error,
    saved_from,
    session_from,
    sessions_from,
    stats_from,
    text_of,
    title_of,
)

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)


def said(content: str, *, second: int | None = None, id: int | str | None = None) -> HistoryMessage:
    at = None if second is None else NOON + timedelta(seconds=second)
    return HistoryMessage(role="user", content=content, created_at=at, id=id)


def enveloped(value: object, name: str = "data") -> bytes:
    return json.dumps({"success": True, name: value, "message": "done"}).encode()


def bare(value: object) -> bytes:
    return json.dumps(value).encode()


SESSION: dict[str, object] = {
    "id": 7,
    "user_id": 1,
    "title": "A story",
    "model": "gpt-4o-mini",
    "created_at": "2026-11-01T12:00:00+00:00",
    "updated_at": "2026-11-01T12:00:01.5Z",
    "is_active": True,
    "messages": [
        {"id": 8, "role": "user", "content": "Hi", "tokens": 2, "created_at": "2026-11-01T12:00:00"}
    ],
}


# Answers


@pytest.mark.parametrize("body", [enveloped(SESSION), bare(SESSION)])
def test_a_session_comes_in_the_envelope_or_bare(body: bytes) -> None:
    session = session_from(body)
    assert (session.id, session.title, session.model) == (7, "A story", "gpt-4o-mini")
    assert session.created_at == NOON
    assert session.updated_at == NOON + timedelta(seconds=1.5)
    (message,) = session.messages
    assert (message.id, message.role, message.content, message.tokens) == (8, "user", "Hi", 2)
    assert message.created_at == NOON, "a time without a zone is UTC"


def test_fields_that_are_not_known_are_reachable_as_raw() -> None:
    session = session_from(enveloped({**SESSION, "pinned": True}))
    assert session.raw["pinned"] is True
    assert session.messages[0].raw["id"] == 8


@pytest.mark.parametrize(("sent", "read"), [(7, 7), ("7", "7"), ("a-7", "a-7"), (7.0, 7), (0, 0)])
def test_an_id_is_a_number_or_text(sent: object, read: int | str) -> None:
    assert session_from(bare({"id": sent})).id == read


@pytest.mark.parametrize("sent", [None, True, "", [], {}, 7.5])
def test_what_has_no_id_is_no_session(sent: object) -> None:
    with pytest.raises(ProtocolError):
        session_from(bare({"id": sent}))
    assert sessions_from(enveloped([{"id": sent}, SESSION, "odd", None])) == [
        session_from(bare(SESSION))
    ]


@pytest.mark.parametrize(
    "body",
    [
        bare([SESSION]),
        enveloped([SESSION]),
        enveloped([SESSION], "sessions"),
    ],
)
def test_a_list_comes_in_the_envelope_or_bare(body: bytes) -> None:
    assert [session.id for session in sessions_from(body)] == [7]


@pytest.mark.parametrize(
    "body",
    [
        enveloped({"total_sessions": 2, "total_messages": "3", "total_tokens": 4.0}, "stats"),
        enveloped({"total_sessions": 2, "total_messages": 3, "total_tokens": 4}, "data"),
        bare({"total_sessions": 2, "total_messages": 3, "total_tokens": 4}),
    ],
)
def test_statistics_come_as_stats_or_as_data_or_bare(body: bytes) -> None:
    stats = stats_from(body)
    assert (stats.total_sessions, stats.total_messages, stats.total_tokens) == (2, 3, 4)


def test_feedback_is_read() -> None:
    value = {"id": 3, "feedback_type": "thumbs_up", "session_id": 7, "rating": 5, "comment": None}
    feedback = feedback_from(enveloped(value))
    assert (feedback.id, feedback.feedback_type, feedback.session_id) == (3, "thumbs_up", 7)
    assert (feedback.rating, feedback.comment, feedback.message_id) == (5, None, None)
    assert feedbacks_from(enveloped([value, {}])) == [feedback]


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        (1_793_534_400, NOON),
        (1_793_534_400_000, NOON),
        ("2026-11-01T13:00:00+01:00", NOON),
        (" 2026-11-01 12:00:00 ", NOON),
        ("yesterday", None),
        ("", None),
        (None, None),
        (True, None),
        (1e300, None),
        (float("nan"), None),
    ],
)
def test_times_are_read_as_servers_write_them(sent: object, read: datetime | None) -> None:
    assert message_from({"role": "user", "created_at": sent}).created_at == read


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("Hi", "Hi"),
        (
            [{"type": "text", "text": "Look: "}, {"type": "image_url"}, {"text": "a cat"}],
            "Look: a cat",
        ),
        (None, ""),
        (7, ""),
    ],
)
def test_of_content_in_parts_the_text_counts(content: object, text: str) -> None:
    assert text_of(content) == text


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"<html>", ProtocolError),
        (b"", ProtocolError),
        (b'"text"', ProtocolError),
        (b'{"success": true}', ProtocolError),
        (b'{"success": false, "message": "no"}', InternalServerError),
        (b'{"error": {"type": "auth_error"}}', AuthenticationError),
        (b'{"error": {"type": "rate_limit_error"}}', RateLimitError),
    ],
)
def test_an_answer_that_is_none_is_an_error(body: bytes, error: type[GatewayError]) -> None:
    for parse in (session_from, sessions_from, feedback_from):
        with pytest.raises(error) as caught:
            parse(body)
        assert caught.value.body == body


def test_a_request_that_only_needs_an_acknowledgement_takes_an_empty_body_for_one() -> None:
    acknowledged(b"")
    acknowledged(b'{"success": true}')
    with pytest.raises(InternalServerError):
        acknowledged(b'{"success": false}')


@given(st.binary(max_size=100) | st.from_regex(rb'\{"data": ?[\[{][^\n]*[\]}]\}', fullmatch=True))
def test_no_answer_makes_a_parser_fail_but_with_a_gateway_error(body: bytes) -> None:
    for parse in (
        session_from,
        sessions_from,
        stats_from,
        feedback_from,
        feedbacks_from,
        acknowledged,
        partial(saved_from, sent=[said("Hi")]),
        partial(batch_saved_from, sent=[said("Hi")]),
    ):
        with suppress(GatewayError):
            parse(body)


# Messages that were saved


def test_what_is_sent_of_a_message() -> None:
    message = HistoryMessage(
        role="user", content="Hi", model="m", tokens=2, created_at=NOON, id=8, raw={"x": 1}
    )
    assert message_to_send(message) == {
        "role": "user",
        "content": "Hi",
        "model": "m",
        "tokens": 2,
        "created_at": "2026-11-01T12:00:00+00:00",
    }
    assert message_from(message_to_send(message)).created_at == NOON


@pytest.mark.parametrize(
    "body",
    [
        enveloped({"id": 8, "role": "user", "content": "Hi"}),
        bare({"id": 8, "role": "user", "content": "Hi"}),
        enveloped({"id": 8}),
        enveloped({"message_id": 8}),
        enveloped(8),
    ],
)
def test_an_answer_to_a_save_gives_the_message_with_its_id(body: bytes) -> None:
    (saved,) = saved_from(body, [said("Hi")])
    assert saved is not None
    assert (saved.id, saved.content) == (8, "Hi")


def test_an_answer_to_a_save_need_say_no_more_than_that_it_is_done() -> None:
    (saved,) = saved_from(b'{"success": true, "message": "saved"}', [said("Hi", second=1)])
    assert saved is not None
    assert (saved.id, saved.content, saved.created_at) == (None, "Hi", NOON + timedelta(seconds=1))


def entry(id: int, content: str) -> dict[str, object]:
    data = {"id": id, "role": "user", "content": content}
    return {"success": True, "message_id": id, "data": data}


def failed(content: str) -> dict[str, object]:
    return {"success": False, "error": "timeout", "content_preview": content[:50]}


def batch(saved: list[object], failures: list[object], **more: object) -> bytes:
    counts = {
        "total": len(saved) + len(failures),
        "success_count": len(saved),
        "failure_count": len(failures),
    }
    data = {"saved": saved, "failed": failures, **counts, **more}
    return json.dumps({"success": not failures, "data": data}).encode()


@pytest.mark.parametrize(
    ("sent", "body", "ids"),
    [
        ("a b", batch([entry(1, "a"), entry(2, "b")], []), [1, 2]),
        ("a b", batch([1, 2], []), [1, 2]),
        ("a b", batch([{"id": 1}, {"message_id": 2}], []), [1, 2]),
        ("a b c", batch([entry(1, "a"), entry(3, "c")], [failed("b")]), [1, None, 3]),
        ("a b", batch([], [failed("a"), failed("b")]), [None, None]),
        ("a b", batch([entry(2, "b")["data"]], [failed("a")]), [None, 2]),
        # "yes" twice: one of them is stored, in the place of which is all the same.
        ("yes yes", batch([entry(1, "yes")], [failed("yes")]), [1, None]),
        ("yes no yes", batch([entry(2, "no"), entry(3, "yes")], [failed("yes")]), [3, 2, None]),
        # Without `failed`, the counts say it.
        ("a b", batch([entry(1, "a")], [], failed=None, failure_count=1), [1, None]),
        # A list, and nothing around it.
        ("a", enveloped([entry(1, "a")]), [1]),
        # The server trims what it stores.
        ("a b", batch([entry(1, " a\n")], [failed("b")]), [1, None]),
    ],
)
def test_of_a_batch_it_is_told_which_messages_are_stored(
    sent: str, body: bytes, ids: list[int | None]
) -> None:
    answers = batch_saved_from(body, [said(content) for content in sent.split()])
    assert [answer and answer.id for answer in answers] == ids


@pytest.mark.parametrize(
    "body",
    [
        batch([1], [failed("a")]),  # An id, but whose?
        batch([entry(1, "other")], [failed("a")]),
        batch([entry(1, "a")], []),  # And the second?
        batch([entry(1, "a"), entry(2, "b")], [failed("b")]),
        batch([], [], success_count=1),
    ],
)
def test_a_batch_whose_answer_does_not_tell_which_messages_are_stored_must_be_looked_for(
    body: bytes,
) -> None:
    with pytest.raises(ProtocolError) as caught:
        batch_saved_from(body, [said("a"), said("b")])
    assert caught.value.retryable
    assert may_have_been_done(caught.value)


def test_a_time_of_ours_that_a_batch_repeats_tells_equal_messages_apart() -> None:
    data = {**message_to_send(said("yes", second=2)), "id": 9}
    sent = [said("yes", second=1), said("yes", second=2)]
    answers = batch_saved_from(batch([{"data": data}], [failed("yes")]), sent)
    assert [answer and answer.id for answer in answers] == [None, 9]


# What a failure says about a save


@pytest.mark.parametrize(
    ("error", "done"),
    [
        (APIConnectionError("cut"), True),
        (StreamTimeout("silence"), True),
        (ProtocolError("HTML"), True),
        (InternalServerError("", status=500), True),
        (InternalServerError("", status=502), True),
        (InternalServerError("", status=504), True),
        (InternalServerError("", status=524), True),
        (InternalServerError("", status=503), False),
        (InternalServerError("", status=200), False),
        (BadRequestError("", status=408), True),
        (BadRequestError("", status=422), False),
        (AuthenticationError("", status=401), False),
        (AuthenticationError("wrapped", status=500), False),
        (RateLimitError("", status=429), False),
        (NotFoundError("", status=404), False),
    ],
)
def test_what_may_have_been_done_in_spite_of_a_failure(error: GatewayError, done: bool) -> None:
    assert may_have_been_done(error) is done


# What is new in a session


def test_what_is_new_is_told_from_what_was_there() -> None:
    stored = Stored([said("yes", id=1)])
    assert not stored.in_doubt
    assert stored.new([said("yes", id=1), said("yes", id=2)]) == [said("yes", id=2)]
    assert stored.new([said("yes", id=1), said("yes", id=2)]) == []


def test_what_a_save_added_is_not_new() -> None:
    stored = Stored([])
    stored.add([said("yes", id=1)])
    assert stored.new([said("yes", id="1"), said("yes", id=2)]) == [said("yes", id=2)]


def test_a_session_of_which_nothing_is_known_is_read_first() -> None:
    stored = Stored(None)
    assert stored.in_doubt
    assert stored.new([said("yes", id=1)]) == []
    assert not stored.in_doubt


def test_a_save_that_gave_no_id_has_the_session_read_before_the_next_one() -> None:
    stored = Stored([])
    stored.add([said("yes", second=1)])
    assert stored.in_doubt
    assert stored.new([said("yes", id=1)]) == []


def test_messages_without_ids_are_counted() -> None:
    stored = Stored([said("yes", second=1)])
    assert len(stored.new([said("yes", second=1)] * 2)) == 1


def test_messages_that_others_deleted_hide_nothing() -> None:
    stored = Stored([said("no", id=1), said("yes", id=2)])
    assert stored.new([said("yes", id=2), said("yes", id=3)]) == [said("yes", id=3)]


# Finding what was sent


@pytest.mark.parametrize(
    ("sent", "new", "pending"),
    [
        ("a b", "", "a b"),
        ("a b", "a b", ""),
        ("a b", "a", "b"),
        ("a b", "b", "a"),
        ("yes yes", "yes", "yes"),
        ("yes yes", "yes yes yes", ""),
        ("yes no yes", "yes no", "yes"),
        ("a", "b", "a"),
    ],
)
@pytest.mark.parametrize("keeps_time", [True, False])
def test_what_was_sent_is_found_in_what_is_new(
    sent: str, new: str, pending: str, keeps_time: bool
) -> None:
    times: dict[str, list[int]] = {}
    messages: list[HistoryMessage] = []
    for second, content in enumerate(sent.split()):
        messages.append(said(content, second=second))
        times.setdefault(content, []).append(second)
    found: list[HistoryMessage] = []
    for number, content in enumerate(new.split()):
        known = times.get(content)
        second = known.pop(0) if known else 50
        found.append(said(content, second=second if keeps_time else 100 + number, id=number))
    outbox = Outbox(messages)
    outbox.found(found)
    assert [message.content for message in outbox.pending] == pending.split()


def test_the_time_tells_which_of_two_equal_messages_was_stored() -> None:
    outbox = Outbox([said("yes", second=1), said("yes", second=2)])
    outbox.found([said("yes", second=2, id=9)])
    assert outbox.pending == [said("yes", second=1)]
    assert outbox.answers == [None, said("yes", second=2, id=9)]


def test_another_role_is_another_message() -> None:
    outbox = Outbox([said("yes")])
    outbox.found([HistoryMessage(role="assistant", content="yes", id=1)])
    assert outbox.pending == [said("yes")]


# Errors, titles


def test_the_error_for_what_is_not_saved_says_how_many_and_why() -> None:
    cause = RateLimitError("slow down", status=429, code="c", type="t", request_id="r", body=b"{}")
    error = save_error([said("a")], 3, cause)
    assert str(error) == "1 of 3 messages could not be saved in the gateway's history: slow down"
    assert (error.status, error.code, error.type, error.request_id) == (429, "c", "t", "r")
    assert (error.body, error.retryable) == (b"{}", True)
    assert error.unsaved == (said("a"),)
    assert error.__cause__ is cause
    copy = error.another()
    assert isinstance(copy, SaveError)
    assert copy.unsaved == error.unsaved
    assert SaveError("made from a message alone").unsaved == ()


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("Tell me a story.", "Tell me a story."),
        ("  Tell\nme\t a  story. ", "Tell me a story."),
        ("", "New chat"),
        (" \n", "New chat"),
        ("x" * 60, "x" * 60),
        ("x" * 61, "x" * 59 + "…"),
        ("word " * 20, " ".join(["word"] * 11) + "…"),
    ],
)
def test_a_title_is_the_first_words(text: str, title: str) -> None:
    assert title_of(text) == title


@given(st.text())
def test_a_title_is_never_empty_nor_long(text: str) -> None:
    assert 0 < len(title_of(text)) <= TITLE_CHARACTERS
