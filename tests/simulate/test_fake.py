"""The fake gateway as the simulator's target: a process that is told when, and tells what."""

import re
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import islice
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

import gz_trio
from gz_trio.simulate._errors import TargetError
from gz_trio.simulate._fake import (
    ALL_GROUPS,
    Fake,
    FakePlan,
    intended_text,
    intended_tokens,
    open_fake_gateway,
)
from gz_trio.simulate._fake_gateway import Ledger, gateway_of, rotations
from tests.testing.fake_gateway_wire import chat, in_memory

BODY = chat("Hello", max_tokens=20)


def message(content: str, role: str = "user") -> dict[str, object]:
    return {"role": role, "content": content}


class User:
    """Somebody who is signed in to a group's account."""

    def __init__(self, gateway: gz_trio.Gateway, authenticator: gz_trio.Authenticator) -> None:
        self.gateway = gateway
        self.authenticator = authenticator

    async def ask(self, body: dict[str, object]) -> gz_trio.Reply:
        async with self.gateway.stream(body) as reply:
            async for _ in reply:
                pass
        return reply


@asynccontextmanager
async def signed_in(fake: Fake, group: int) -> AsyncGenerator[User]:
    refresh = gz_trio.GatewayRefresh(fake.base_url, token=fake.token(group))
    async with (
        gz_trio.open_authenticator(gz_trio.MemoryKeyStore(), refresh) as authenticator,
        gz_trio.open_gateway(fake.base_url, authenticator) as gateway,
    ):
        yield User(gateway, authenticator)


class TestWhatItAnswers:
    """The answer follows from the request alone."""

    @given(tokens=st.integers(1, 10_000))
    def test_it_has_as_many_tokens_as_were_asked_for(self, tokens: int) -> None:
        assert len(intended_tokens(BODY | {"max_tokens": tokens})) == tokens
        text = intended_text(BODY | {"max_tokens": tokens})
        assert intended_text(BODY | {"max_tokens": tokens + 1}).startswith(text)

    def test_no_word_of_a_usual_answer_comes_twice(self) -> None:
        tokens = intended_tokens(BODY | {"max_tokens": 4_096})
        assert len(set(tokens)) == len(tokens)

    @pytest.mark.parametrize(
        "other",
        [
            [message("Hello!")],
            [message("Be kind.", "system"), message("Hello")],
            [message("Hello"), message("Hi", "assistant"), message("Hello")],
            [message("Hello"), message("Ha", "assistant"), message("Hello")],
            [message("Hello"), message("Hi", "assistant"), message("Hello"), message("Hello")],
            [message("Halo"), message("Hi", "assistant"), message("Hello")],
        ],
    )
    def test_other_conversations_have_other_answers(self, other: list[dict[str, object]]) -> None:
        texts = {intended_text(BODY | {"messages": said}) for said in (other, [message("Hello")])}
        assert len(texts) == 2

    @given(st.lists(st.text(), unique=True, min_size=2, max_size=20))
    def test_other_users_have_other_answers(self, prompts: list[str]) -> None:
        assert len({intended_text(chat(prompt)) for prompt in prompts}) == len(prompts)

    async def test_the_gateway_sends_just_that(self) -> None:
        gateway = gateway_of(FakePlan(), Ledger())
        async with in_memory(gateway) as wire:
            answers = [await wire.ask(BODY, gateway.key) for _ in range(2)]
        assert [answer.text() for answer in answers] == [intended_text(BODY)] * 2
        assert answers[0].chunks[-1]["choices"] != []


class TestWhenKeysDie:
    """Rotations at times that are given, and lives that are drawn."""

    def test_without_lifetimes_all_keys_are_replaced_at_the_times_given(self) -> None:
        plan = FakePlan(groups=3, rotations=(5.0, 1.0))
        assert list(rotations(plan)) == [(1.0, ALL_GROUPS), (5.0, ALL_GROUPS)]

    def test_each_new_key_has_a_new_life_after_a_storm_too(self) -> None:
        plan = FakePlan(groups=2, rotations=(3.0,), lifetime="2s")
        assert list(islice(rotations(plan), 7)) == [
            *[(2.0, 0), (2.0, 1)],
            (3.0, ALL_GROUPS),
            *[(5.0, 0), (5.0, 1)],
            *[(7.0, 0), (7.0, 1)],
        ]

    def test_lives_are_drawn_for_each_group_apart_the_same_for_the_same_seed(self) -> None:
        def ends(group: int, *, groups: int = 5, seed: int = 0) -> list[float]:
            plan = FakePlan(groups=groups, seed=seed, lifetime="exponential(10s)")
            drawn = rotations(plan)
            return list(islice((when for when, whose in drawn if whose == group), 10))

        assert ends(0) == ends(0) == ends(0, groups=2) == sorted(ends(0))
        assert len({*ends(0), *ends(1), *ends(0, seed=1)}) == 30

    def test_a_life_that_is_drawn_as_nothing_still_lets_time_go_on(self) -> None:
        for when, _ in rotations(FakePlan(lifetime="uniform(0s, 0s)")):
            if when > 0.1:
                break

    async def test_a_key_that_has_lived_long_enough_is_replaced_and_users_do_not_notice(
        self,
    ) -> None:
        plan = FakePlan(lifetime="100ms")
        async with open_fake_gateway(plan) as fake, signed_in(fake, 0) as user:
            await user.ask(BODY)
            await fake.begin(time.perf_counter_ns())
            while len((await fake.counts()).rotations) < 2:
                assert (await user.ask(BODY)).text == intended_text(BODY)
            assert {group for _, group in (await fake.counts()).rotations} == {0}


class TestTheProcess:
    """It is started, told when the load begins, asked what it saw, and ended."""

    async def test_groups_have_keys_of_their_own(self) -> None:
        async with open_fake_gateway(FakePlan(groups=2)) as fake:
            assert fake.token(0) != fake.token(1)
            async with signed_in(fake, 0) as one, signed_in(fake, 1) as other:
                keys = [await user.authenticator.key() for user in (one, other)]
            async with signed_in(fake, 1) as again:
                keys.append(await again.authenticator.key())
        assert keys[0].value != keys[1].value == keys[2].value

    async def test_a_storm_costs_each_group_one_refresh_and_no_character(self) -> None:
        plan = FakePlan(
            groups=2,
            first_token=0.01,
            token_interval=0.001,
            auth_latency=0.05,
            # Nobody gets further under the first key, however slow the machine is.
            faults=("stall token=5 generation=1 times=forever",),
            rotations=(0.2,),
        )
        users_a_group, tokens = 5, 20
        began: list[int] = []
        replies: list[gz_trio.Reply] = []

        async def ask(user: User, number: int) -> None:
            body = chat(f"I am number {number}", max_tokens=tokens)
            async with user.gateway.stream(body) as reply:
                await anext(reply)
                began.append(number)
                if len(began) == 2 * users_a_group:
                    await fake.begin(time.perf_counter_ns())
                async for _ in reply:
                    pass
            assert reply.text == intended_text(body)
            assert reply.complete
            replies.append(reply)

        async with open_fake_gateway(plan) as fake:
            async with (
                signed_in(fake, 0) as one,
                signed_in(fake, 1) as other,
                trio.open_nursery() as nursery,
            ):
                for number in range(users_a_group):
                    nursery.start_soon(ask, one, 2 * number)
                    nursery.start_soon(ask, other, 2 * number + 1)
            counts = await fake.counts()
        users = len(replies)
        assert users == 2 * users_a_group
        ((seconds, group),) = counts.rotations
        assert (group, seconds >= 0.2) == (ALL_GROUPS, True)
        assert counts.refreshes == 2 + 2  # each group's first key, and its second
        assert counts.auth_errors == users
        assert counts.tokens == users * (5 + tokens)
        assert counts.requests == 2 * users + counts.rejected

    async def test_nothing_is_rotated_before_the_load_begins(self) -> None:
        async with open_fake_gateway(FakePlan(rotations=(0.0,))) as fake:
            async with signed_in(fake, 0) as user:
                await user.ask(BODY)
                assert (await fake.counts()).rotations == []
                await fake.begin(time.perf_counter_ns())
                while not (await fake.counts()).rotations:
                    pass
                assert (await user.ask(BODY)).text == intended_text(BODY)
            assert (await fake.counts()).rejected == 1

    async def test_a_count_that_nobody_waited_for_is_not_taken_for_the_next(self) -> None:
        async with open_fake_gateway(FakePlan()) as fake, signed_in(fake, 0) as user:
            for requests in range(1, 4):
                with trio.move_on_after(0):
                    await fake.counts()
                await user.ask(BODY)
                assert (await fake.counts()).requests == requests

    @pytest.mark.parametrize("fault", ["comment token=1", "stall token=1", "drip token=1"])
    async def test_it_ends_with_the_block_in_the_middle_of_streams_too(self, fault: str) -> None:
        plan = FakePlan(token_interval=0.01, faults=(f"{fault} times=forever",), lifetime="1h")
        async with AsyncExitStack() as clients:
            async with open_fake_gateway(plan) as fake:
                await fake.begin(time.perf_counter_ns())
                user = await clients.enter_async_context(signed_in(fake, 0))
                for _ in range(3):
                    body = chat(max_tokens=10_000)
                    reply = await clients.enter_async_context(user.gateway.stream(body))
                    await anext(reply)
            assert fake.process.returncode == 0

    async def test_it_ends_with_a_block_that_fails_or_is_cancelled(self) -> None:
        processes: list[trio.Process] = []
        with pytest.raises(KeyError):
            async with open_fake_gateway(FakePlan()) as fake:
                processes.append(fake.process)
                raise KeyError
        with trio.CancelScope() as scope:
            async with open_fake_gateway(FakePlan()) as fake:
                processes.append(fake.process)
                scope.cancel()
                await trio.sleep_forever()
        assert [process.returncode for process in processes] == [0, 0]


class TestFailures:
    """What is wrong is said, and nothing hangs."""

    @pytest.mark.parametrize(
        ("plan", "complaint"),
        [
            ({"faults": ("explode",)}, "fault 'explode': there is no 'explode'; there are status,"),
            ({"faults": ("cut", "stall=soon")}, "fault 'stall=soon': seconds must be a number"),
            ({"lifetime": "short"}, "'short' is no duration"),
        ],
    )
    def test_a_plan_that_cannot_be_is_refused_before_anything_starts(
        self, plan: dict[str, Any], complaint: str
    ) -> None:
        with pytest.raises(ValueError, match=re.escape(complaint)):
            FakePlan(**plan)

    async def test_a_gateway_that_has_died_is_told_when_it_is_asked(self) -> None:
        async with open_fake_gateway(FakePlan()) as fake:
            fake.process.kill()
            await fake.process.wait()
            await fake.begin(0)
            with pytest.raises(TargetError, match=r"has ended: its exit code is -9$"):
                await fake.counts()

    async def test_why_it_does_not_start_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "executable", "/nowhere/python")
        with pytest.raises(TargetError, match="cannot be started: No such file"):
            async with open_fake_gateway(FakePlan()):
                raise AssertionError

    async def test_what_it_last_wrote_to_its_standard_error_is_in_the_error(self) -> None:
        with pytest.raises(TargetError) as raised:
            async with open_fake_gateway(FakePlan()) as fake:
                assert fake.process.stdin is not None
                await fake.process.stdin.send_all(b"dance\n")
                await fake.counts()
        message = str(raised.value)
        assert message.startswith("the fake gateway has ended: its exit code is 1\n")
        assert "ValueError: b'dance' is nothing that the fake gateway can do" in message
        assert len(message.splitlines()) <= 11
