"""The history over a gateway: every call, by the one key and the one table; saved exactly once."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import cast

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from gz_trio import (
    APIConnectionError,
    AuthenticationError,
    BadRequestError,
    GatewayError,
    History,
    HistoryMessage,
    InternalServerError,
    Key,
    NotFoundError,
    PermissionDeniedError,
    ProtocolError,
    RefreshError,
    RetryPolicy,
    SaveError,
    StreamTimeout,
    Timeouts,
    open_gateway,
)
from gz_trio.testing import Cut, FakeGateway, Fault, Reset, Stall, Status
from gz_trio.testing._plan import HistoryPath
from tests.chats import open_over, tell

SESSIONS: HistoryPath = "/v1/chat/sessions"
SESSION: HistoryPath = "/v1/chat/sessions/{id}"
MESSAGES: HistoryPath = "/v1/chat/sessions/{id}/messages"
BATCH: HistoryPath = "/v1/chat/sessions/{id}/messages/batch"
FEEDBACK: HistoryPath = "/v1/chat/feedback"

YES = {"role": "user", "content": "yes"}
NO = {"role": "user", "content": "no"}
MAYBE = {"role": "assistant", "content": "maybe"}


def contents(fake: FakeGateway, session_id: int | str) -> list[object]:
    return [message["content"] for message in fake.history.messages(session_id)]


def asked(fake: FakeGateway, *, since: int = 0) -> list[str]:
    """The requests to the history's routes, in words."""
    return [
        f"{request.method} {request.path.removeprefix('/v1/chat')}"
        for request in fake.requests[since:]
        if request.path.startswith("/v1/chat/") and "completions" not in request.path
    ]


# What each call does


@pytest.mark.parametrize("bare", [False, True])
async def test_sessions_are_begun_listed_read_changed_searched_and_deleted(bare: bool) -> None:
    fake = FakeGateway()
    fake.history.bare = bare
    async with open_over(fake) as gateway:
        history = gateway.history
        begun = await history.create("A story", "fake-model")
        other = await history.create("Other", "fake-model")
        await history.save(begun.id, YES)
        read = await history.get(begun.id)
        assert (read.title, read.model) == ("A story", "fake-model")
        assert [message.content for message in read.messages] == ["yes"]
        assert {session.id for session in await history.sessions()} == {begun.id, other.id}
        assert [s.id for s in await history.sessions(limit=1, offset=1)] == [other.id]
        assert [s.id for s in await history.search("yes")] == [begun.id]
        assert await history.search("no such words", limit=3) == []
        changed = await history.update(other.id, title="Better")
        assert (changed.title, changed.model) == ("Better", "fake-model")
        assert (await history.update(other.id, model="m")).model == "m"
        await history.delete(other.id)
        assert [session.id for session in await history.sessions()] == [begun.id]
        stats = await history.stats()
        assert (stats.total_sessions, stats.total_messages) == (1, 1)


async def test_what_is_saved_is_given_back_as_it_is_stored() -> None:
    fake = FakeGateway()
    now = 1_793_534_400.1239
    async with (
        fake.http_client() as client,
        open_gateway(fake.base_url, fake.key, http_client=client, now=lambda: now) as gateway,
    ):
        session = await gateway.history.create("t", "m")
        given = HistoryMessage(role="assistant", content="Hi", model="m2", tokens=3)
        saved = await gateway.history.save(session.id, given)
        several = await gateway.history.save_many(session.id, [YES, NO])
    assert (saved.role, saved.content, saved.model, saved.tokens) == ("assistant", "Hi", "m2", 3)
    assert saved.id is not None
    first = datetime(2026, 11, 1, 12, 0, 0, 123_000, tzinfo=UTC)
    times = [message.created_at for message in (saved, *several)]
    assert times == [first + timedelta(milliseconds=n) for n in range(3)], "later by its own time"
    assert [message.content for message in several] == ["yes", "no"]


async def test_a_time_that_a_message_has_is_kept() -> None:
    fake = FakeGateway()
    at = datetime(2020, 1, 1, 0, 0, 0, 123_456, tzinfo=UTC)
    async with open_over(fake) as gateway:
        session = await gateway.history.create("t", "m")
        message = HistoryMessage(role="user", content="old", created_at=at)
        assert (await gateway.history.save(session.id, message)).created_at == at


async def test_of_content_in_parts_the_text_is_saved() -> None:
    fake = FakeGateway()
    image = {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}}
    message = {"role": "user", "content": [{"type": "text", "text": "Look"}, image]}
    async with open_over(fake) as gateway:
        session = await gateway.history.create("t", "m")
        assert (await gateway.history.save(session.id, message)).content == "Look"


async def test_feedback_is_given() -> None:
    fake = FakeGateway()
    async with open_over(fake) as gateway:
        session = await gateway.history.create("t", "m")
        feedback = await gateway.history.feedback(
            "thumbs_up", session_id=session.id, rating=5, comment="good", model="m"
        )
    assert (feedback.feedback_type, feedback.session_id, feedback.rating) == (
        "thumbs_up",
        session.id,
        5,
    )
    (stored,) = fake.history.feedback
    assert (stored["comment"], stored["model"]) == ("good", "m")


async def test_nothing_to_save_and_nothing_to_change() -> None:
    fake = FakeGateway()
    async with open_over(fake) as gateway:
        session = await gateway.history.create("t", "m")
        assert await gateway.history.save_many(session.id, []) == []
        with pytest.raises(ValueError, match="nothing to change"):
            await gateway.history.update(session.id)
    assert asked(fake) == ["POST /sessions"]


async def test_an_id_from_elsewhere_stays_in_its_place_in_the_path() -> None:
    fake = FakeGateway()
    async with open_over(fake) as gateway:
        with pytest.raises(GatewayError):
            await gateway.history.get("../stats?x#y")
    assert asked(fake) == ["GET /sessions/..%2Fstats%3Fx%23y"]


async def test_a_call_is_a_request_of_the_gateways_own() -> None:
    fake = FakeGateway()
    headers = {"X-Title": "app", "accept": "text/html"}
    async with (
        fake.http_client() as client,
        open_gateway(
            fake.base_url, fake.key, headers=headers, key_header="x-api-key", http_client=client
        ) as gateway,
    ):
        await gateway.history.sessions()
        await gateway.history.create("t", "m")
    get, post = (request.headers for request in fake.requests)
    assert (get["x-title"], get["accept"], get["x-api-key"]) == (
        "app",
        "application/json",
        "[secret]",
    )
    assert "authorization" not in get
    assert "content-type" not in get
    assert post["content-type"] == "application/json"


# The key


CALLS: dict[str, Callable[[History], Awaitable[object]]] = {
    "sessions": lambda history: history.sessions(),
    "create": lambda history: history.create("t", "m"),
    "get": lambda history: history.get(1),
    "update": lambda history: history.update(1, title="u"),
    "delete": lambda history: history.delete(1),
    "search": lambda history: history.search("yes"),
    "stats": lambda history: history.stats(),
    "save": lambda history: history.save(1, YES),
    "save_many": lambda history: history.save_many(1, [YES, NO]),
    "feedback": lambda history: history.feedback("thumbs_up"),
}

PATHS: dict[str, HistoryPath] = {
    "sessions": SESSIONS,
    "create": SESSIONS,
    "get": SESSION,
    "update": SESSION,
    "delete": SESSION,
    "search": "/v1/chat/search",
    "stats": "/v1/chat/stats",
    "save": MESSAGES,
    "save_many": BATCH,
    "feedback": FEEDBACK,
}


@pytest.mark.parametrize("name", CALLS)
async def test_a_401_on_every_route_and_in_streams_is_one_refresh(
    name: str, autojump_clock: MockClock
) -> None:
    fake = FakeGateway(token_interval=1.0, auth_latency=3.0)
    async with open_over(fake) as gateway:
        await gateway.history.create("t", "m")
        texts: list[str] = []

        async def stream() -> None:
            texts.append((await tell(gateway)).text)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(stream)
            await trio.sleep(2.5)
            fake.rotate()
            await CALLS[name](gateway.history)
            for _ in range(3):
                nursery.start_soon(CALLS["sessions"], gateway.history)
    assert fake.refreshes == 1
    assert len(set(texts)) == 1
    assert texts[0].strip()


async def test_a_500_that_wraps_the_gateways_own_401_is_refreshed_too(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway()
    wrapped = Status(500, "Failed to get chat stats: 401: Invalid API key", dialect="detail")
    async with open_over(fake) as gateway:
        fake.rotate()
        fake.fault(wrapped, path="/v1/chat/stats")
        assert (await gateway.history.stats()).total_sessions == 0
    assert fake.refreshes == 1


@pytest.mark.parametrize("name", CALLS)
async def test_a_key_that_no_refresh_replaces_ends_every_call(
    name: str, autojump_clock: MockClock
) -> None:
    fake = FakeGateway()
    fake.refuse_refresh = True
    async with open_over(fake) as gateway:
        await gateway.history.create("t", "m")
        fake.rotate()
        with pytest.raises(GatewayError) as caught:
            await CALLS[name](gateway.history)
    cause = caught.value.__cause__ if name == "save_many" else caught.value
    assert isinstance(cause, RefreshError)
    assert "Please log in again" in str(caught.value)
    assert fake.refreshes == 1
    assert contents(fake, 1) == []


async def test_a_call_is_never_repeated_under_another_accounts_key(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway()
    fake.fault(Status(503), path=MESSAGES)
    errors: list[GatewayError] = []

    async def save(session_id: int | str) -> None:
        try:
            await gateway.history.save(session_id, YES)
        except GatewayError as error:
            errors.append(error)

    async with open_over(fake) as gateway:
        session = await gateway.history.create("t", "m")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(save, session.id)
            await trio.sleep(1)
            await gateway.authenticator.sign_in(Key(fake.rotate()))
    (error,) = errors
    assert isinstance(error, AuthenticationError)
    assert "another account" in str(error)
    assert contents(fake, session.id) == []


async def test_an_answer_proves_the_key(autojump_clock: MockClock) -> None:
    fake = FakeGateway()
    async with open_over(fake) as gateway:
        for _ in range(7):  # more refreshes than 30 seconds allow, were none of them accepted
            fake.rotate()
            await gateway.history.stats()
    assert fake.refreshes == 7


# The table


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("fault", "seconds"),
    [
        (Status(429, headers={"retry-after": "7"}), (7.0, 8.75)),
        (Status(503), (1.5, 2.0)),
        (Status(502), (1.5, 2.0)),
        (Cut(), (1.5, 2.0)),
        (Reset(), (1.5, 2.0)),
        (Cut(after_bytes=1), (1.5, 2.0)),
    ],
)
async def test_what_can_be_tried_again_is(
    name: str, fault: Fault, seconds: tuple[float, float], autojump_clock: MockClock
) -> None:
    fake = FakeGateway()
    async with open_over(fake) as gateway:
        await gateway.history.create("t", "m")
        fake.fault(fault, path=PATHS[name])
        before = trio.current_time()
        await CALLS[name](gateway.history)
        waited = trio.current_time() - before
    assert seconds[0] <= waited <= seconds[1]
    assert fake.requests[1].faults == [fault]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, BadRequestError),
        (403, PermissionDeniedError),
        (404, NotFoundError),
        (422, BadRequestError),
    ],
)
async def test_what_cannot_be_tried_again_is_raised_at_once(
    status: int, error: type[GatewayError], autojump_clock: MockClock
) -> None:
    fake = FakeGateway()
    fake.fault(Status(status), path="/v1/chat/stats")
    async with open_over(fake) as gateway:
        with pytest.raises(error):
            await gateway.history.stats()
    assert len(fake.requests) == 1


async def test_where_there_is_no_such_session_or_no_history_the_error_says_so() -> None:
    async with open_over(FakeGateway()) as gateway:
        with pytest.raises(NotFoundError, match="or this gateway keeps no history"):
            await gateway.history.get(99)


async def test_a_web_page_is_no_answer() -> None:
    fake = FakeGateway()
    fake.fault(Status(200, body="<html>"), path=SESSIONS)
    async with open_over(fake) as gateway:
        with pytest.raises(ProtocolError, match="does it keep one"):
            await gateway.history.sessions()


async def test_retries_end(autojump_clock: MockClock) -> None:
    fake = FakeGateway()
    fake.fault(Status(503), path=SESSIONS, times=None)
    async with open_over(fake, retry=RetryPolicy(max_retries=2)) as gateway:
        with pytest.raises(InternalServerError):
            await gateway.history.sessions()
    assert len(fake.requests) == 3


async def test_a_gateway_that_is_silent_is_asked_once_more(autojump_clock: MockClock) -> None:
    fake = FakeGateway()
    fake.fault(Stall(), path=SESSIONS, times=2)
    async with open_over(fake, timeouts=Timeouts(between_tokens=5)) as gateway:
        started = trio.current_time()
        with pytest.raises(StreamTimeout, match="did not answer within 5 s") as caught:
            await gateway.history.sessions()
        assert trio.current_time() - started == 10
        assert caught.value.which == "between_tokens"
        await gateway.history.sessions()


async def test_without_timeouts_a_call_waits(autojump_clock: MockClock) -> None:
    fake = FakeGateway()
    fake.fault(Stall(100_000), path=SESSIONS)
    async with open_over(fake, timeouts=Timeouts(between_tokens=None)) as gateway:
        assert await gateway.history.sessions() == []


# Saved exactly once

LOST: list[tuple[Fault, int | None]] = [
    (Cut(), None),
    (Cut(), 0),
    (Reset(), 0),
    (Cut(after_bytes=5), None),
    (Status(504), None),
    (Status(504), 0),
    (Status(500), 0),
    (Status(502, dialect="html"), 0),
    (Stall(200), 0),
    (Stall(200), None),
]


@pytest.mark.parametrize(("fault", "token"), LOST)
@pytest.mark.parametrize("keeps_created_at", [True, False])
@pytest.mark.parametrize("in_batches", [True, False])
async def test_a_save_whose_answer_was_lost_looks_before_it_sends_again(
    fault: Fault,
    token: int | None,
    keeps_created_at: bool,
    in_batches: bool,
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway()
    fake.history.keeps_created_at = keeps_created_at
    async with open_over(fake) as gateway:
        history = gateway.history
        session = await history.create("t", "m")
        await history.save(session.id, YES)
        since = len(fake.requests)
        if in_batches:
            fake.fault(fault, path=BATCH, token=token)
            saved = await history.save_many(session.id, [YES, NO])
        else:
            fake.fault(fault, path=MESSAGES, token=token)
            saved = [await history.save(session.id, YES)]
    expected = ["yes", "no"] if in_batches else ["yes"]
    assert contents(fake, session.id) == ["yes", *expected]
    assert [message.content for message in saved] == expected
    assert [message.id for message in saved] == [
        message["id"] for message in fake.history.messages(session.id)[1:]
    ]
    assert asked(fake, since=since)[1] == f"GET /sessions/{session.id}"


@pytest.mark.parametrize("status", [401, 429, 503])
async def test_a_refusal_was_not_stored_and_nothing_is_looked_for(
    status: int, autojump_clock: MockClock
) -> None:
    fake = FakeGateway()

    async def refresh(_: Key | None) -> str:
        return fake.rotate()

    async with open_over(fake, refresh=refresh) as gateway:
        session = await gateway.history.create("t", "m")
        since = len(fake.requests)
        fake.fault(Status(status), path=MESSAGES)
        await gateway.history.save(session.id, YES)
    assert asked(fake, since=since) == [f"POST /sessions/{session.id}/messages"] * 2
    assert contents(fake, session.id) == ["yes"]


async def test_a_session_that_was_not_begun_or_read_here_is_read_before_it_is_first_saved_to(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway()
    fake.history.keeps_created_at = False
    async with open_over(fake) as gateway:
        session = await gateway.history.create("t", "m")
        await gateway.history.save(session.id, YES)
    async with open_over(fake) as gateway:
        since = len(fake.requests)
        # Not stored, and one that is equal was there before: only a look before it can tell.
        fake.fault(Cut(), path=MESSAGES)
        await gateway.history.save(session.id, YES)
        await gateway.history.save(session.id, NO)
    assert contents(fake, session.id) == ["yes", "yes", "no"]
    get, post = f"GET /sessions/{session.id}", f"POST /sessions/{session.id}/messages"
    assert asked(fake, since=since) == [get, post, get, post, post]


async def test_a_session_that_was_read_is_not_read_again(autojump_clock: MockClock) -> None:
    fake = FakeGateway()
    async with open_over(fake) as gateway:
        session = await gateway.history.create("t", "m")
        await gateway.history.save(session.id, YES)
    async with open_over(fake) as gateway:
        await gateway.history.get(session.id)
        since = len(fake.requests)
        await gateway.history.save(session.id, NO)
    assert asked(fake, since=since) == [f"POST /sessions/{session.id}/messages"]


async def test_saves_to_one_session_are_stored_in_the_order_of_their_calls(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway()
    fake.history.keeps_created_at = False
    async with open_over(fake) as gateway:
        session = await gateway.history.create("t", "m")
        fake.fault(Stall(3), path=MESSAGES, request=2)
        fake.fault(Cut(), path=MESSAGES, token=0, request=4)
        async with trio.open_nursery() as nursery:
            for number in range(8):
                message = {"role": "user", "content": str(number // 2)}
                nursery.start_soon(gateway.history.save, session.id, message)
                await wait_all_tasks_blocked()
    assert contents(fake, session.id) == list("00112233")


async def test_a_save_that_was_cancelled_is_looked_for_by_the_next_one(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway()
    async with open_over(fake) as gateway:
        session = await gateway.history.create("t", "m")
        fake.fault(Stall(), path=MESSAGES, token=0)
        with trio.move_on_after(1) as scope:
            await gateway.history.save(session.id, YES)
        assert scope.cancelled_caught
        saved = await gateway.history.save(session.id, YES)
    assert contents(fake, session.id) == ["yes"]
    assert saved.id == fake.history.messages(session.id)[0]["id"]


# Batches


async def test_of_a_batch_that_failed_in_part_only_what_failed_is_sent_again(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway()
    left = Counter({"b": 1, "d": 2})

    def refuse(message: Mapping[str, object]) -> bool:
        left[str(message["content"])] -= 1
        return left[str(message["content"])] >= 0

    fake.history.refuse = refuse
    async with open_over(fake) as gateway:
        session = await gateway.history.create("t", "m")
        messages = [{"role": "user", "content": content} for content in "abcd"]
        saved = await gateway.history.save_many(session.id, messages)
    bodies = [request.body or {} for request in fake.requests if request.path.endswith("/batch")]
    batches = [cast("list[dict[str, str]]", body["messages"]) for body in bodies]
    assert ["".join(message["content"] for message in batch) for batch in batches] == [
        "abcd",
        "bd",
        "d",
    ]
    assert contents(fake, session.id) == ["a", "b", "c", "d"], "by their own time, in order"
    assert [message.content for message in saved] == ["a", "b", "c", "d"]


async def test_what_keeps_failing_ends_in_an_error_that_carries_it(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway()
    fake.history.refuse = lambda message: message["content"] in ("b", "d")
    async with open_over(fake, retry=RetryPolicy(max_retries=2)) as gateway:
        session = await gateway.history.create("t", "m")
        messages = [{"role": "user", "content": content} for content in "abcd"]
        with pytest.raises(SaveError, match=r"^2 of 4 messages could not be saved") as caught:
            await gateway.history.save_many(session.id, messages)
        assert [message.content for message in caught.value.unsaved] == ["b", "d"]
        assert isinstance(caught.value.__cause__, InternalServerError)
        assert contents(fake, session.id) == ["a", "c"]
        fake.history.refuse = lambda _: False
        await gateway.history.save_many(session.id, caught.value.unsaved)
    assert contents(fake, session.id) == ["a", "b", "c", "d"], "in the place of their time"


async def test_what_an_error_carries_may_be_stored_and_is_looked_for_before_it_is_sent_again(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway()
    async with open_over(fake, retry=RetryPolicy(max_retries=0)) as gateway:
        session = await gateway.history.create("t", "m")
        fake.fault(Cut(), path=BATCH, token=0)
        with pytest.raises(SaveError) as caught:
            await gateway.history.save_many(session.id, [YES, NO])
        assert isinstance(caught.value.__cause__, APIConnectionError)
        assert contents(fake, session.id) == ["yes", "no"], "stored, though nobody could know"
        saved = await gateway.history.save_many(session.id, caught.value.unsaved)
    assert contents(fake, session.id) == ["yes", "no"]
    assert [message.content for message in saved] == ["yes", "no"]


async def test_an_answer_that_does_not_tell_what_is_stored_has_it_looked_for(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway()
    vague = Status(200, body={"data": {"saved": [1], "failed": [{"error": "timeout"}]}})
    refusals = iter([False, True])
    fake.history.refuse = lambda _: next(refusals, False)
    async with open_over(fake) as gateway:
        session = await gateway.history.create("t", "m")
        fake.fault(vague, path=BATCH, token=0)
        await gateway.history.save_many(session.id, [YES, NO])
    assert contents(fake, session.id) == ["yes", "no"]
    path = f"/sessions/{session.id}"
    batch = f"POST {path}/messages/batch"
    assert asked(fake)[1:] == [batch, f"GET {path}", batch]


async def test_a_batch_whose_answers_never_tell_ends(autojump_clock: MockClock) -> None:
    fake = FakeGateway()
    fake.fault(
        Status(200, body={"data": {"saved": [1], "failure_count": 1}}), path=BATCH, times=None
    )
    async with open_over(fake, retry=RetryPolicy(max_retries=3)) as gateway:
        session = await gateway.history.create("t", "m")
        with pytest.raises(SaveError, match="does not tell which"):
            await gateway.history.save_many(session.id, [YES, NO])
    assert sum(request.path.endswith("/batch") for request in fake.requests) == 4


# Sessions whose beginning was lost


@pytest.mark.parametrize(("fault", "token"), LOST)
async def test_a_session_is_begun_once(
    fault: Fault, token: int | None, autojump_clock: MockClock
) -> None:
    fake = FakeGateway()
    async with open_over(fake) as gateway:
        fake.fault(fault, path=SESSIONS, token=token)
        session = await gateway.history.create("t", "m")
        since = len(fake.requests)
        await gateway.history.save(session.id, YES)
    assert list(fake.history.sessions) == [session.id]
    assert asked(fake, since=since) == [f"POST /sessions/{session.id}/messages"]


async def test_a_session_with_messages_or_of_somebody_here_is_not_taken_for_the_lost_one(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway()
    async with open_over(fake) as gateway:
        used = await gateway.history.create("t", "m")
        await gateway.history.save(used.id, YES)
        other_model = await gateway.history.create("t", "n")
    async with open_over(fake) as gateway:
        fresh = await gateway.history.create("t", "m")
        fake.fault(Cut(), path=SESSIONS)  # never begun
        session = await gateway.history.create("t", "m")
    assert session.id not in {used.id, other_model.id, fresh.id}


@pytest.mark.parametrize("lost", [(0,), (0, 1), (1, 3, 4), (0, 1, 2, 3, 4)])
async def test_no_two_that_begin_equal_sessions_at_once_get_the_same_one(
    lost: tuple[int, ...], autojump_clock: MockClock
) -> None:
    fake = FakeGateway()
    for number in lost:
        fake.fault(Stall(number), path=SESSIONS, token=0, request=number + 1)
        fake.fault(Cut(), path=SESSIONS, token=0, request=number + 1)
    got: list[int | str] = []

    async def begin(history: History) -> None:
        got.append((await history.create("t", "m")).id)

    async with open_over(fake) as gateway, trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(begin, gateway.history)
    assert len(set(got)) == 5
    assert set(got) <= set(fake.history.sessions)


async def test_a_session_that_may_be_begun_by_somebody_else_here_is_left_alone(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway()
    fake.fault(Cut(), path=SESSIONS, token=0, request=1)
    fake.fault(Stall(10), path=SESSIONS, token=0, request=2)
    got: list[int | str] = []

    async def begin(history: History) -> None:
        got.append((await history.create("t", "m")).id)

    async with open_over(fake) as gateway, trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(begin, gateway.history)
            await wait_all_tasks_blocked()
    # The first one saw two, while the second one's answer was under way.
    assert sorted(fake.history.sessions) == [1, 2, 3]
    assert got == [3, 2]


# Deleted, and thought of, once


@pytest.mark.parametrize(("fault", "token"), LOST)
async def test_a_session_whose_deletion_was_lost_is_deleted(
    fault: Fault, token: int | None, autojump_clock: MockClock
) -> None:
    fake = FakeGateway()
    async with open_over(fake) as gateway:
        session = await gateway.history.create("t", "m")
        fake.fault(fault, path=SESSION, token=token)
        await gateway.history.delete(session.id)
        assert fake.history.sessions == {}
        with pytest.raises(NotFoundError):
            await gateway.history.delete(session.id)


@pytest.mark.parametrize(("fault", "token"), LOST)
async def test_feedback_whose_answer_was_lost_is_given_once(
    fault: Fault, token: int | None, autojump_clock: MockClock
) -> None:
    fake = FakeGateway()
    async with open_over(fake) as gateway:
        await gateway.history.feedback("thumbs_up")
        fake.fault(fault, path=FEEDBACK, token=token)
        feedback = await gateway.history.feedback("thumbs_up")
    assert [given["id"] for given in fake.history.feedback][1:] == [feedback.id]


# Any sequence of all this

ANY_FAULT = st.sampled_from(
    [
        (Cut(), None),
        (Cut(), 0),
        (Reset(), 0),
        (Cut(after_bytes=9), None),
        (Status(503), None),
        (Status(429), None),
        (Status(500), 0),
        (Status(504), None),
        (Stall(200), 0),
    ]
)


@given(
    saves=st.lists(st.lists(st.sampled_from(["yes", "no"]), min_size=1, max_size=4), max_size=4),
    faults=st.lists(st.tuples(st.sampled_from([MESSAGES, BATCH, SESSION]), ANY_FAULT), max_size=6),
    refusals=st.lists(st.booleans(), max_size=8),
    bare=st.booleans(),
    keeps_created_at=st.booleans(),
)
def test_whatever_is_lost_or_fails_in_part_each_message_is_stored_once(
    saves: list[list[str]],
    faults: list[tuple[HistoryPath, tuple[Fault, int | None]]],
    refusals: list[bool],
    bare: bool,
    keeps_created_at: bool,
) -> None:
    fake = FakeGateway()
    fake.history.bare = bare
    fake.history.keeps_created_at = keeps_created_at
    refusing = deque(refusals)
    fake.history.refuse = lambda _: bool(refusing) and refusing.popleft()

    async def main() -> None:
        async with open_over(fake, retry=RetryPolicy(max_retries=50)) as gateway:
            history = gateway.history
            session = await history.create("t", "m")
            may_stall = True  # A call is tried again after one timeout, not after two.
            for path, (fault, token) in faults:
                if may_stall or not isinstance(fault, Stall):
                    fake.fault(fault, path=path, token=token)
                may_stall = may_stall and not isinstance(fault, Stall)
            sent: list[str] = []
            for contents_ in saves:
                messages = [{"role": "user", "content": content} for content in contents_]
                if len(messages) == 1:
                    saved = [await history.save(session.id, messages[0])]
                else:
                    saved = await history.save_many(session.id, messages)
                assert [message.content for message in saved] == contents_
                sent += contents_
            stored = contents(fake, session.id)
            if keeps_created_at or not refusals:
                assert stored == sent, "each once, in order"
            else:
                # The gateway's own time is when it stored a message: what failed comes later.
                assert sorted(map(str, stored)) == sorted(sent)

    trio.run(main, clock=MockClock(autojump_threshold=0))
