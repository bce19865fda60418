"""Remembered sessions: each turn is saved once, in order, and chatting never waits for it."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from gz_trio import (
    AuthenticationError,
    BadRequestError,
    GatewayError,
    Key,
    NotFoundError,
    ResumePolicy,
    RetryPolicy,
    SaveError,
    Session,
    StreamTimeout,
    open_session,
)
from gz_trio._chat.remembering import FLUSH_SECONDS
from gz_trio.testing import Cut, ErrorFrame, FakeGateway, Fault, Reset, Stall, Status
from gz_trio.testing._plan import HistoryPath
from tests.chats import open_over

SESSIONS: HistoryPath = "/v1/chat/sessions"
SESSION: HistoryPath = "/v1/chat/sessions/{id}"
MESSAGES: HistoryPath = "/v1/chat/sessions/{id}/messages"


@asynccontextmanager
async def open_remembered(
    fake: FakeGateway, *, retry: RetryPolicy | None = None, remember: bool | int | str = True
) -> AsyncGenerator[Session]:
    """A remembered session with its own refresh task, over in-memory connections to `fake`."""
    async with (
        fake.http_client() as client,
        open_session(
            fake.base_url,
            model="fake-model",
            key=fake.key,
            refresh=fake.refresh,
            http_client=client,
            retry=retry,
            remember=remember,
        ) as session,
    ):
        yield session


def remembered(fake: FakeGateway) -> list[dict[str, object]]:
    """The messages of the one session that there is, as a conversation has them."""
    (session_id,) = fake.history.sessions
    return [
        {"role": message["role"], "content": message["content"]}
        for message in fake.history.messages(session_id)
    ]


SOON = 100.0
"""Seconds in which everything that these tests let fail has been tried again."""


# What is saved


async def test_each_turn_is_saved_once_and_in_order(autojump_clock: MockClock) -> None:
    fake = FakeGateway()
    async with open_remembered(fake) as session:
        assert session.history_id is None
        assert fake.history.sessions == {}, "begun with the first turn"
        for text in ("Tell me a story.", "yes", "yes"):
            await session.ask(text)
    assert len(session.messages) == 6
    assert remembered(fake) == session.messages
    assert fake.history.sessions[1]["title"] == "Tell me a story."
    assert session.history_id == 1
    stored = fake.history.messages(1)
    assert {message["model"] for message in stored} == {"fake-model"}
    assert [message["tokens"] for message in stored] == [0, 12] * 3


async def test_a_session_that_is_not_remembered_leaves_the_history_alone(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway()
    async with open_over(fake) as gateway, gateway.open_session("fake-model") as session:
        await session.ask("Hello")
        assert session.history_id is None
    assert [request.path for request in fake.requests] == ["/v1/chat/completions"]


async def test_a_remembered_session_without_a_turn_begins_nothing() -> None:
    fake = FakeGateway()
    async with open_remembered(fake):
        pass
    assert fake.requests == []


async def test_a_turn_that_was_taken_up_three_times_is_saved_once(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(token_interval=1.0)
    fake.fault(Cut(), token=3)
    fake.fault(Reset(), token=5)
    fake.fault(ErrorFrame("auth_error"), token=7)
    async with open_remembered(fake) as session:
        async with session.stream("Hello") as reply:
            async for _ in reply:
                pass
        assert len(reply.attempts) == 4
    assert remembered(fake) == session.messages
    assert len(session.messages) == 2


async def test_of_a_reply_that_started_anew_the_second_text_is_saved(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(answer=lambda _, attempt: ["one ", "two"] if attempt == 1 else ["three"])
    fake.fault(Cut(), token=1)
    async with open_remembered(fake) as session:
        restart = ResumePolicy(on_divergence="restart")
        async with session.stream("Hello", resume=restart) as reply:
            async for _ in reply:
                pass
    assert remembered(fake)[1] == {"role": "assistant", "content": "three"}


async def test_a_turn_that_was_not_read_to_its_end_is_not_saved(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway()
    async with open_remembered(fake) as session:
        async with session.stream("Hello") as reply:
            await anext(reply)
        await session.ask("Again")
    assert remembered(fake) == session.messages
    assert [message["content"] for message in session.messages[:1]] == ["Again"]


async def test_of_a_message_in_parts_the_text_is_saved(autojump_clock: MockClock) -> None:
    fake = FakeGateway()
    image = {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}}
    text = {"type": "text", "text": "What is this?"}
    async with open_remembered(fake) as session:
        await session.ask({"role": "user", "content": [text, image]})
    assert remembered(fake)[0] == {"role": "user", "content": "What is this?"}
    assert fake.history.sessions[1]["title"] == "What is this?"


# Chatting does not wait


async def test_saving_never_delays_chatting(autojump_clock: MockClock) -> None:
    fake = FakeGateway()
    fake.fault(Stall(40), path=SESSIONS)
    fake.fault(Stall(40), path=MESSAGES)
    async with open_remembered(fake) as session:
        started = trio.current_time()
        for text in ("one", "two", "three"):
            await session.ask(text)
        assert trio.current_time() == started
        await trio.sleep(SOON)
        assert remembered(fake) == session.messages


async def test_a_rejected_key_is_refreshed_once_for_the_chat_and_for_saving(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(auth_latency=2.0)
    fake.fault(Stall(1), path=SESSIONS)
    async with open_remembered(fake) as session:
        await session.ask("one")
        fake.rotate()  # while the session is being begun
        await session.ask("two")
        await trio.sleep(SOON)
    assert fake.refreshes == 1
    assert remembered(fake) == session.messages


async def test_a_gateway_without_a_history_spoils_only_the_end(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeGateway()
    fake.fault(Status(404), path=SESSIONS, times=None)
    said: list[object] = []
    with pytest.raises(SaveError, match=r"4 of 4 messages .* keeps no history") as caught:
        async with open_remembered(fake) as session:
            await session.ask("one")
            await trio.sleep(5)
            await session.ask("two")
            said += [message["content"] for message in session.messages]
    assert isinstance(caught.value.__cause__, NotFoundError)
    assert [message.content for message in caught.value.unsaved] == said
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings
    assert "one" not in caplog.text, "what is said is nobody's business"


async def test_what_failed_is_saved_with_a_later_turn(autojump_clock: MockClock) -> None:
    fake = FakeGateway()
    fake.fault(Status(503), path=MESSAGES, times=3)
    async with open_remembered(fake, retry=RetryPolicy(max_retries=1)) as session:
        await session.ask("one")
        await trio.sleep(SOON)
        assert remembered(fake) == []
        await session.ask("two")
        await trio.sleep(SOON)
        assert remembered(fake) == session.messages


async def test_what_failed_is_tried_again_when_the_block_is_left(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway()
    fake.fault(Status(503), path=MESSAGES)
    async with open_remembered(fake, retry=RetryPolicy(max_retries=0)) as session:
        await session.ask("one")
        await trio.sleep(SOON)
        assert remembered(fake) == []
    assert remembered(fake) == session.messages


async def test_a_session_that_may_have_been_begun_is_looked_for_with_the_next_turn(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway()
    fake.fault(Cut(), path=SESSIONS, token=0)
    async with open_remembered(fake, retry=RetryPolicy(max_retries=0)) as session:
        await session.ask("one")
        await trio.sleep(SOON)
        assert session.history_id is None
        assert remembered(fake) == [], "begun, though nobody could know"
        await session.ask("two")
    assert remembered(fake) == session.messages


async def test_a_message_that_is_never_accepted_does_not_hold_up_those_after_it(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway()
    fake.fault(Status(413), path=MESSAGES, request=2)
    said: list[dict[str, object]] = []
    with pytest.raises(SaveError, match=r"^1 of 4 messages") as caught:
        async with open_remembered(fake) as session:
            await session.ask("one")
            await session.ask("two")
            said += session.messages
    assert isinstance(caught.value.__cause__, BadRequestError)
    assert [message.content for message in caught.value.unsaved] == [said.pop(1)["content"]]
    assert remembered(fake) == said


async def test_another_account_never_gets_to_see_what_was_said(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway()
    fake.fault(Stall(5), path=SESSIONS)
    with pytest.raises(SaveError) as caught:
        async with open_remembered(fake) as session:
            await session.ask("one")
            await session.authenticator.sign_in(Key(fake.rotate()))
            await session.ask("two")
            await trio.sleep(60)
    assert isinstance(caught.value.__cause__, AuthenticationError)
    assert [message.role for message in caught.value.unsaved] == ["user", "assistant"] * 2
    assert fake.history.sessions == {}
    history = [request for request in fake.requests if request.path == SESSIONS]
    assert {request.generation for request in history} <= {1}
    assert fake.refreshes == 0, "the other account's key was not rejected"


# Leaving


async def leave(how: str) -> None:
    if how == "by an exception":
        raise ZeroDivisionError
    if how == "by a group of exceptions":
        raise ExceptionGroup("the user's own", [ZeroDivisionError(), KeyError()])
    if how == "by Ctrl-C":
        raise KeyboardInterrupt
    if how == "by a cancellation":
        await trio.sleep_forever()


WAYS: dict[str, type[BaseException] | None] = {
    "at its end": None,
    "by an exception": ZeroDivisionError,
    "by a group of exceptions": ExceptionGroup,
    "by Ctrl-C": KeyboardInterrupt,
    "by a cancellation": None,
}


async def chat_and_leave(
    fake: FakeGateway, how: str
) -> tuple[list[dict[str, object]], Exception | KeyboardInterrupt | None]:
    """Two turns, both still to be saved, then out of the block: what was said, what comes out."""
    said: list[dict[str, object]] = []
    async with fake.http_client() as client:
        with trio.move_on_after(1):
            try:
                async with open_session(
                    fake.base_url,
                    model="fake-model",
                    key=fake.key,
                    refresh=fake.refresh,
                    http_client=client,
                    remember=True,
                ) as session:
                    await session.ask("one")
                    await session.ask("two")
                    said = session.messages
                    await leave(how)
            except (Exception, KeyboardInterrupt) as raised:
                return said, raised
    return said, None


@pytest.mark.parametrize(("how", "expected"), WAYS.items())
async def test_what_is_pending_is_saved_when_the_block_is_left(
    how: str, expected: type[BaseException] | None, autojump_clock: MockClock
) -> None:
    fake = FakeGateway()
    # Under way when the block is left, lost then, and the rest of it to come.
    fake.fault(Stall(2), path=SESSIONS, token=0)
    fake.fault(Cut(), path=MESSAGES, token=0, request=1)
    said, raised = await chat_and_leave(fake, how)
    assert type(raised) is (expected or type(None))
    assert getattr(raised, "__notes__", []) == []
    assert remembered(fake) == said
    assert len(said) == 4


@pytest.mark.parametrize(("how", "expected"), WAYS.items())
async def test_leaving_waits_for_what_cannot_be_saved_no_longer_than_its_bound(
    how: str,
    expected: type[BaseException] | None,
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fake = FakeGateway()
    fake.fault(Stall(), path=MESSAGES, request=2)
    before = trio.lowlevel.current_statistics().tasks_living
    started = trio.current_time()
    said, raised = await chat_and_leave(fake, how)
    waited = trio.current_time() - started - (how == "by a cancellation")
    assert waited == pytest.approx(FLUSH_SECONDS)
    assert trio.lowlevel.current_statistics().tasks_living == before
    if how == "at its end":
        assert isinstance(raised, SaveError)
        assert isinstance(raised.__cause__, StreamTimeout)
        assert [message.content for message in raised.unsaved] == [
            message["content"] for message in said[1:]
        ]
    else:
        assert type(raised) is (expected or type(None))
    if isinstance(raised, Exception) and how != "at its end":
        (note,) = raised.__notes__
        assert note.startswith("also, 3 of 4 messages could not be saved")
    assert "3 of 4 messages could not be saved" in caplog.text


async def test_nothing_is_saved_after_the_block(autojump_clock: MockClock) -> None:
    fake = FakeGateway()
    async with open_over(fake) as gateway:
        async with gateway.open_session("fake-model", remember=True) as session:
            await session.ask("one")
        with pytest.raises(trio.ClosedResourceError):
            await session.ask("two")
    assert len(remembered(fake)) == 2


# Going on


async def test_a_remembered_session_goes_on_where_it_was_left(autojump_clock: MockClock) -> None:
    fake = FakeGateway()
    system = {"role": "system", "content": "Be brief."}
    async with open_over(fake) as gateway:
        async with gateway.open_session("fake-model", remember=True) as session:
            await session.ask("one")
        first = session.messages
        assert session.history_id is not None
        async with gateway.open_session(
            "fake-model", messages=[system], remember=session.history_id
        ) as session:
            assert session.messages == [system, *first]
            assert session.history_id == 1
            await session.ask("two")
    assert remembered(fake) == session.messages[1:]
    assert len(session.messages) == 5


@pytest.mark.parametrize("remember", [1, "1"])
async def test_a_session_is_named_by_its_id(remember: int | str, autojump_clock: MockClock) -> None:
    fake = FakeGateway()
    async with open_remembered(fake) as session:
        await session.ask("one")
    async with open_remembered(fake, remember=remember) as session:
        await session.ask("two")
    assert remembered(fake) == session.messages


async def test_a_session_that_is_not_there_cannot_go_on() -> None:
    with pytest.raises(NotFoundError, match="no such session"):
        async with open_remembered(FakeGateway(), remember=99):
            raise AssertionError


# Any sequence of all this

ANY_FAULT = st.sampled_from(
    [
        (Cut(), None),
        (Cut(), 0),
        (Reset(), 0),
        (Cut(after_bytes=9), None),
        (Status(401), None),
        (Status(429), None),
        (Status(503), None),
        (Status(500), 0),
        (Status(504), None),
        (Stall(150), 0),
    ]
)


@settings(max_examples=max(100, settings().max_examples // 10))
@given(
    turns=st.lists(st.sampled_from(["yes", "no"]), min_size=1, max_size=5),
    pauses=st.lists(st.sampled_from([0.0, 1.0, 400.0]), min_size=5, max_size=5),
    faults=st.lists(
        st.tuples(st.sampled_from([SESSIONS, SESSION, MESSAGES]), ANY_FAULT), max_size=8
    ),
    cuts=st.lists(st.integers(1, 11), max_size=4),
    retries=st.integers(0, 8),
    keeps_created_at=st.booleans(),
)
def test_whatever_fails_each_turn_is_saved_once_and_in_order(
    *,
    turns: list[str],
    pauses: list[float],
    faults: list[tuple[HistoryPath, tuple[Fault, int | None]]],
    cuts: list[int],
    retries: int,
    keeps_created_at: bool,
) -> None:
    fake = FakeGateway(answer=lambda body, _: [f"{len(str(body))} "] + ["sure "] * 11)
    fake.history.keeps_created_at = keeps_created_at

    async def refresh(_: Key | None) -> str:
        return fake.rotate()

    async def main() -> None:
        async with (
            open_over(fake, refresh=refresh, retry=RetryPolicy(max_retries=retries)) as gateway,
            gateway.open_session("fake-model", remember=True) as session,
        ):
            for path, (fault, token) in faults:
                fake.fault(fault, path=path, token=token)
            for cut in cuts[:retries]:
                fake.fault(Cut(), token=cut)
            for text, pause in zip(turns, pauses, strict=False):
                with suppress(GatewayError):  # not said, so not saved
                    await session.ask(text)
                await trio.sleep(pause)
            if session.messages:
                # Each further turn tries again what had failed.
                for _ in range(len(faults) + 1):
                    await trio.sleep(4000)
                    await session.ask("and then?")
                await trio.sleep(4000)
                assert remembered(fake) == session.messages

    trio.run(main, clock=MockClock(autojump_threshold=0))
