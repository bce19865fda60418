"""A reply that broke is taken up by the cursor, by continuing, or by replay: over a server."""

from __future__ import annotations

from typing import Literal

import pytest
from trio.testing import MockClock

from gz_trio import (
    APIConnectionError,
    BadRequestError,
    Delta,
    Finished,
    NotFoundError,
    Paused,
    Resumed,
    ResumePolicy,
    StreamInterrupted,
)
from gz_trio.testing import Cut, ErrorFrame, FakeGateway, Status
from tests.chats import BODY, RESTART, Told, after_deltas, open_over, tell


def ways(told: Told) -> list[str | None]:
    return [attempt.resumed_by for attempt in told.reply.attempts]


def tokens_run(fake: FakeGateway) -> int:
    """How many tokens the model ran for, over all requests."""
    return sum(seen.tokens for seen in fake.requests)


class TestCursor:
    async def test_a_kept_stream_is_not_run_twice(self, autojump_clock: MockClock) -> None:
        fake = FakeGateway(event_ids=True)
        fake.fault(Cut(), token=5)
        async with open_over(fake) as gateway:
            told = await tell(gateway)
        assert told.text == fake.intended(BODY)
        assert ways(told) == [None, "cursor"]
        assert tokens_run(fake) == fake.tokens
        assert [attempt.repeated for attempt in told.reply.attempts] == [0, 0]
        assert told.happened == [
            Paused("reconnect"),
            Resumed(),
            Finished("stop", told.reply.usage),
        ]

    async def test_it_goes_on_under_the_new_key(self, autojump_clock: MockClock) -> None:
        fake = FakeGateway(event_ids=True, token_interval=1.0)
        async with open_over(fake) as gateway:
            told = await tell(gateway, on_event=after_deltas(3, fake.rotate))
        assert told.text == fake.intended(BODY)
        assert ways(told)[-1] == "cursor"
        assert told.reply.attempts[-1].generation == 2
        assert tokens_run(fake) == fake.tokens
        assert fake.refreshes == 1

    async def test_several_cuts_in_one_reply(self, autojump_clock: MockClock) -> None:
        fake = FakeGateway(event_ids=True)
        for token in (2, 5, 9):
            fake.fault(Cut(), token=token)
        async with open_over(fake) as gateway:
            told = await tell(gateway)
        assert told.text == fake.intended(BODY)
        assert ways(told) == [None, "cursor", "cursor", "cursor"]
        assert tokens_run(fake) == fake.tokens

    @pytest.mark.parametrize("on_lost_stream", ["restart", "404"])
    async def test_a_stream_that_the_server_lost_is_replayed(
        self, autojump_clock: MockClock, on_lost_stream: Literal["restart", "404"]
    ) -> None:
        fake = FakeGateway(event_ids=True, on_lost_stream=on_lost_stream)
        fake.fault(Cut(), token=5)

        async with open_over(fake) as gateway:
            told = await tell(gateway, on_event=after_deltas(5, fake.forget_streams))
        assert told.text == fake.intended(BODY)
        assert ways(told)[-1] == "replay"
        assert told.reply.attempts[-1].repeated > 0
        if on_lost_stream == "404":
            assert isinstance(told.reply.attempts[1].cause, NotFoundError)

    async def test_a_server_that_ignores_the_header_is_matched(
        self, autojump_clock: MockClock
    ) -> None:
        fake = FakeGateway(event_ids="ignored")
        fake.fault(Cut(), token=5)
        async with open_over(fake) as gateway:
            told = await tell(gateway)
        assert told.text == fake.intended(BODY)
        assert ways(told) == [None, "replay"]

    async def test_a_server_that_ignores_the_header_and_samples_is_found_out(
        self, autojump_clock: MockClock
    ) -> None:
        fake = FakeGateway(
            event_ids="ignored", answer=lambda _, attempt: [f"{attempt}a ", f"{attempt}b"]
        )
        fake.fault(Cut(), token=1)
        async with open_over(fake) as gateway:
            told = await tell(gateway)
        assert isinstance(told.error, StreamInterrupted)
        assert told.error.partial == told.text == "1a "

    async def test_an_error_frame_in_the_kept_stream_does_not_lose_the_place(
        self, autojump_clock: MockClock
    ) -> None:
        fake = FakeGateway(event_ids=True)
        fake.fault(ErrorFrame("provider_error"), token=5)
        async with open_over(fake) as gateway:
            told = await tell(gateway)
        assert told.text == fake.intended(BODY)


CONTINUES: list[Literal["vllm", "prefix", "prefill"]] = ["vllm", "prefix", "prefill"]


class TestContinue:
    @pytest.mark.parametrize("echo", [False, True])
    @pytest.mark.parametrize("kind", CONTINUES)
    @pytest.mark.parametrize("token", range(1, 12))
    async def test_the_model_goes_on_from_the_partial_answer(
        self,
        autojump_clock: MockClock,
        kind: Literal["vllm", "prefix", "prefill"],
        echo: bool,
        token: int,
    ) -> None:
        fake = FakeGateway(continues=kind, echo=echo)
        fake.fault(Cut(), token=token)
        policy = ResumePolicy(continue_=kind, echo=echo)
        async with open_over(fake, resume=policy) as gateway:
            told = await tell(gateway)
        assert told.text == told.reply.text == fake.intended(BODY)
        assert ways(told) == [None, "continue"]

    async def test_a_sampled_answer_is_whole_and_the_reader_sees_only_a_pause(
        self, autojump_clock: MockClock
    ) -> None:
        fake = FakeGateway(continues="vllm")
        fake.fault(Cut(), token=3)
        fake.fault(Cut(), token=2, request=2)
        async with open_over(fake, resume=ResumePolicy(continue_="vllm")) as gateway:
            told = await tell(gateway)
        assert told.text == fake.intended(BODY)
        assert ways(told) == [None, "continue", "continue"]
        assert not any(isinstance(event, StreamInterrupted) for event in told.events)

    async def test_a_server_that_refuses_is_asked_for_a_replay(
        self, autojump_clock: MockClock
    ) -> None:
        fake = FakeGateway()
        fake.fault(Cut(), token=3)
        fake.fault(Status(400), request=2)
        async with open_over(fake, resume=ResumePolicy(continue_="prefill")) as gateway:
            told = await tell(gateway)
        assert told.text == fake.intended(BODY)
        assert ways(told) == [None, "continue", "replay"]
        assert isinstance(told.reply.attempts[1].cause, BadRequestError)
        assert told.seconds == 0  # a refusal is no failure to wait for

    async def test_the_key_may_die_in_between(self, autojump_clock: MockClock) -> None:
        fake = FakeGateway(continues="vllm", token_interval=1.0)
        policy = ResumePolicy(continue_="vllm")
        async with open_over(fake, resume=policy) as gateway:
            told = await tell(gateway, on_event=after_deltas(3, fake.rotate))
        assert told.text == fake.intended(BODY)
        assert ways(told)[-1] == "continue"
        assert told.reply.attempts[-1].generation == 2
        assert fake.refreshes == 1

    async def test_a_session_that_asks_continues_as_its_gateway_does(
        self, autojump_clock: MockClock
    ) -> None:
        fake = FakeGateway(continues="vllm")
        fake.fault(Cut(), token=3)
        policy = ResumePolicy(continue_="vllm")
        async with (
            open_over(fake, resume=policy) as gateway,
            gateway.open_session("fake-model") as session,
        ):
            answer = await session.ask("Tell me a story.")
        assert answer == fake.intended({"messages": session.messages[:1]})
        assert [seen.tokens for seen in fake.requests] == [3, fake.tokens - 3]


class TestReplay:
    async def test_a_bound_on_what_may_be_replayed(self, autojump_clock: MockClock) -> None:
        fake = FakeGateway()
        fake.fault(Cut(), token=5)
        async with open_over(fake, resume=ResumePolicy(max_replay=0)) as gateway:
            told = await tell(gateway)
        assert isinstance(told.error, StreamInterrupted)
        assert isinstance(told.error.__cause__, APIConnectionError)
        assert told.error.partial == told.text
        assert fake.intended(BODY).startswith(told.text)
        assert "max_replay" in str(told.error)
        assert len(fake.requests) == 1
        assert told.seconds == 0  # nobody waits for what is not tried

    async def test_attempts_tell_what_a_replay_cost(self, autojump_clock: MockClock) -> None:
        fake = FakeGateway()
        fake.fault(Cut(), token=5)
        async with open_over(fake) as gateway:
            told = await tell(gateway)
        first, second = told.reply.attempts
        assert (first.tokens, first.repeated) == (5, 0)
        assert second.tokens == fake.tokens
        delivered = sum(len(event.text) for event in told.events[:6] if isinstance(event, Delta))
        assert second.repeated == delivered

    async def test_a_restart_is_told_apart(self, autojump_clock: MockClock) -> None:
        fake = FakeGateway(answer=lambda _, attempt: [f"{attempt}a ", f"{attempt}b"])
        fake.fault(Cut(), token=1)
        async with open_over(fake, resume=RESTART) as gateway:
            told = await tell(gateway)
        assert told.reply.text == "2a 2b"
        assert ways(told) == [None, "replay"]
        assert told.reply.attempts[1].repeated == 0
