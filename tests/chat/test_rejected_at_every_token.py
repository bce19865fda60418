"""The key dies after every token of a reply, once and twice, and in every pause of its recovery.

The gateway stalls where the key is to die, so that it dies after exactly that token. The same
messages have the same answer, so each reply is to end with the gateway's own text.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from typing import Literal

import pytest
import trio
from trio.testing import MockClock

from gz_trio import (
    APIConnectionError,
    AuthenticationError,
    Delta,
    Finished,
    GatewayError,
    Key,
    Paused,
    RateLimited,
    RateLimitError,
    Resumed,
    RetryPolicy,
    ToolCallDelta,
)
from gz_trio.testing import Answer, Cut, FakeGateway, Stall, Status
from tests.chats import BODY, Told, deltas_of, open_over, tell

TOKENS = 12
EVERY_TOKEN = range(TOKENS + 1)  # 0: the head alone was sent; 12: all but the end

OnRotation = Literal["frame", "cut"]
on_each_rotation = pytest.mark.parametrize("on_rotation", ["frame", "cut"])
mostly_by_frame = pytest.mark.parametrize(
    "on_rotation", ["frame", pytest.param("cut", marks=pytest.mark.slow)]
)

STALL = Stall(2.0)


def gateway(
    *dies_after: int, on_rotation: OnRotation = "frame", answer: Answer | None = None
) -> FakeGateway:
    """A gateway whose keys are to die after so many tokens, one after the other."""
    fake = FakeGateway(tokens=TOKENS, on_rotation=on_rotation, answer=answer)
    for generation, token in enumerate(dies_after, start=1):
        fake.fault(STALL, token=token, generation=generation)
    return fake


async def rotate_in_each_stall(fake: FakeGateway) -> None:
    """Let the key die in each stall, until it is cancelled."""
    rotations = 0
    while True:
        await trio.sleep(0.25)
        stalls = sum(request.faults.count(STALL) for request in fake.requests)
        if stalls > rotations:
            rotations += 1
            fake.rotate()


async def tell_over_rotations(
    fake: FakeGateway,
    body: Mapping[str, object] = BODY,
    refresh: Callable[[Key | None], Awaitable[str]] | None = None,
    key: str | None = None,
) -> Told:
    """One reply, whose key dies in each stall."""
    # To the table a connection that was cut is a retry, whatever the reason.
    retry = RetryPolicy(max_retries=TOKENS)
    async with (
        open_over(fake, key=key, refresh=refresh or "fake", retry=retry) as gateway,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(rotate_in_each_stall, fake)
        told = await tell(gateway, body)
        nursery.cancel_scope.cancel()
    return told


def assert_whole(fake: FakeGateway, told: Told, *, rotations: int) -> None:
    """Nothing lost, nothing doubled, and no refresh too many."""
    assert told.error is None
    assert told.text == told.reply.text == fake.intended(BODY)
    assert isinstance(told.events[-1], Finished)
    assert fake.generation == 1 + rotations
    assert fake.refreshes <= rotations
    assert fake.requests[-1].complete
    assert told.reply.attempts[-1].cause is None
    assert len(told.reply.attempts) == len(fake.requests)


def causes(told: Told) -> list[type[GatewayError] | None]:
    return [
        None if attempt.cause is None else type(attempt.cause) for attempt in told.reply.attempts
    ]


def statuses(fake: FakeGateway) -> list[int | None]:
    return [request.status for request in fake.requests]


FIRST_CAUSE: dict[OnRotation, type[GatewayError]] = {
    "frame": AuthenticationError,
    "cut": APIConnectionError,
}


# Once


@on_each_rotation
@pytest.mark.parametrize("token", EVERY_TOKEN)
async def test_a_key_that_dies_after_any_token_is_one_refresh_and_nothing_lost_or_doubled(
    autojump_clock: MockClock, token: int, on_rotation: OnRotation
) -> None:
    fake = gateway(token, on_rotation=on_rotation)
    told = await tell_over_rotations(fake)
    assert_whole(fake, told, rotations=1)
    assert fake.refreshes == 1
    # The old key is tried once more: the 401 decides. In the meantime the reply says that it waits.
    assert statuses(fake) == [200, 401, 200]
    assert told.happened[:-1] == [Paused("reconnect"), Paused("refresh"), Resumed()]
    assert causes(told) == [FIRST_CAUSE[on_rotation], AuthenticationError, None]
    first, rejected, second = told.reply.attempts
    assert [attempt.generation for attempt in told.reply.attempts] == [1, 1, 2]
    assert [attempt.accepted for attempt in told.reply.attempts] == [token > 0, False, True]
    assert (first.tokens, rejected.tokens, second.tokens) == (token, 0, TOKENS)
    paused_after = [type(event) for event in told.events].index(Paused)
    assert sum(bool(delta.text) for delta in deltas_of(told)[:paused_after]) == token


@pytest.mark.parametrize("token", EVERY_TOKEN)
async def test_the_same_where_the_key_was_dead_at_the_very_beginning(
    autojump_clock: MockClock, token: int
) -> None:
    """A 401 by the status first; then the key that came for it dies too."""
    fake = gateway()
    old = fake.key
    fake.rotate()
    fake.fault(STALL, token=token)
    told = await tell_over_rotations(fake, key=old)
    assert_whole(fake, told, rotations=2)
    assert fake.refreshes == 2
    assert statuses(fake) == [401, 200, 401, 200]
    assert told.events[0] == Paused("refresh")


# Twice


@mostly_by_frame
@pytest.mark.parametrize("first", EVERY_TOKEN)
async def test_two_keys_that_die_in_one_reply_are_two_refreshes(
    autojump_clock: MockClock, first: int, on_rotation: OnRotation
) -> None:
    for second in range(first, TOKENS + 1):
        fake = gateway(first, second, on_rotation=on_rotation)
        told = await tell_over_rotations(fake)
        assert_whole(fake, told, rotations=2)
        assert fake.refreshes == 2
        died = FIRST_CAUSE[on_rotation]
        assert causes(told) == [died, AuthenticationError, died, AuthenticationError, None]
        assert [attempt.generation for attempt in told.reply.attempts] == [1, 1, 2, 2, 3]


@pytest.mark.slow
@on_each_rotation
async def test_a_second_key_that_dies_before_the_replay_has_caught_up_loses_nothing_either(
    autojump_clock: MockClock, on_rotation: OnRotation
) -> None:
    for first in EVERY_TOKEN:
        for second in range(first):
            fake = gateway(first, second, on_rotation=on_rotation)
            told = await tell_over_rotations(fake)
            assert_whole(fake, told, rotations=2)


@on_each_rotation
async def test_a_key_that_dies_after_each_token_in_turn(
    autojump_clock: MockClock, on_rotation: OnRotation
) -> None:
    """Twelve rotations in one reply: each brought one token more, so it never gives up."""
    fake = gateway(*range(1, TOKENS + 1), on_rotation=on_rotation)
    told = await tell_over_rotations(fake)
    assert_whole(fake, told, rotations=TOKENS)
    assert fake.refreshes == TOKENS


# During the refresh


@on_each_rotation
@pytest.mark.parametrize("token", EVERY_TOKEN)
async def test_a_new_key_that_is_dead_when_it_arrives_is_refreshed_in_its_turn(
    autojump_clock: MockClock, token: int, on_rotation: OnRotation
) -> None:
    fake = gateway(token, on_rotation=on_rotation)

    async def refresh(rejected: Key | None) -> str:
        key = await fake.refresh(rejected)
        if fake.refreshes == 1:
            fake.rotate()
        return key

    told = await tell_over_rotations(fake, refresh=refresh)
    assert_whole(fake, told, rotations=2)
    assert fake.refreshes == 2
    assert statuses(fake) == [200, 401, 401, 200]
    assert [attempt.generation for attempt in told.reply.attempts] == [1, 1, 2, 3]
    refreshing = [Paused("reconnect"), Paused("refresh"), Paused("refresh"), Resumed()]
    assert told.happened[:-1] == refreshing


@on_each_rotation
@pytest.mark.parametrize("token", EVERY_TOKEN)
async def test_a_key_that_dies_while_its_successor_is_fetched_is_the_same_refresh(
    autojump_clock: MockClock, token: int, on_rotation: OnRotation
) -> None:
    fake = gateway(token, on_rotation=on_rotation)

    async def refresh(rejected: Key | None) -> str:
        fake.rotate()
        await trio.sleep(5)
        fake.rotate()
        return await fake.refresh(rejected)

    told = await tell_over_rotations(fake, refresh=refresh)
    assert_whole(fake, told, rotations=3)
    assert fake.refreshes == 1


@pytest.mark.parametrize("token", EVERY_TOKEN)
async def test_keys_that_are_all_dead_when_they_arrive_end_the_reply_with_its_exact_text(
    autojump_clock: MockClock, token: int
) -> None:
    """The third 401 in a row: no loop, and no text lost in the giving up."""
    fake = gateway(token)

    async def refresh(rejected: Key | None) -> str:
        key = await fake.refresh(rejected)
        fake.rotate()
        return key

    told = await tell_over_rotations(fake, refresh=refresh)
    assert type(told.error) is AuthenticationError
    assert told.error.status == 401
    assert fake.requests[0].tokens == token
    assert sum(bool(delta.text) for delta in deltas_of(told)) == token
    assert told.error.partial == told.text == told.reply.text
    assert fake.intended(BODY).startswith(told.text)
    assert statuses(fake) == [200, 401, 401, 401]
    assert fake.refreshes == 2 < fake.generation


# While a retry waits


@pytest.mark.parametrize("token", EVERY_TOKEN)
async def test_a_key_that_dies_while_the_reply_waits_on_a_429_is_refreshed_after_the_wait(
    autojump_clock: MockClock, token: int
) -> None:
    fake = gateway()
    fake.fault(Cut(), token=token, request=1)
    fake.fault(Status(429, headers={"retry-after": "8"}), request=2)

    async with open_over(fake) as opened:
        told = await tell(opened, on_event=rotate_when_rate_limited(fake))
    assert_whole(fake, told, rotations=1)
    assert fake.refreshes == 1
    assert statuses(fake) == [200, 429, 401, 200]
    assert causes(told) == [APIConnectionError, RateLimitError, AuthenticationError, None]
    kinds = [type(event) for event in told.happened]
    assert kinds == [Paused, RateLimited, Paused, Resumed, Finished]


@on_each_rotation
@pytest.mark.parametrize("token", EVERY_TOKEN)
async def test_a_new_key_that_dies_while_it_waits_on_a_429_of_its_own(
    autojump_clock: MockClock, token: int, on_rotation: OnRotation
) -> None:
    """The key dies after the token, its successor meets a limit, and dies in the wait."""
    fake = gateway(token, on_rotation=on_rotation)
    fake.fault(Status(429, headers={"retry-after": "8"}), generation=2)

    async with open_over(fake) as opened, trio.open_nursery() as nursery:
        nursery.start_soon(rotate_in_each_stall, fake)
        told = await tell(opened, on_event=rotate_when_rate_limited(fake))
        nursery.cancel_scope.cancel()
    assert_whole(fake, told, rotations=2)
    assert fake.refreshes == 2
    assert statuses(fake) == [200, 401, 429, 401, 200]


async def test_a_key_that_dies_while_the_first_request_waits_on_a_429(
    autojump_clock: MockClock,
) -> None:
    fake = gateway()
    fake.fault(Status(429, headers={"retry-after": "8"}), request=1)
    async with open_over(fake) as opened:
        told = await tell(opened, on_event=rotate_when_rate_limited(fake))
    assert_whole(fake, told, rotations=1)
    assert statuses(fake) == [429, 401, 200]
    kinds = [type(event) for event in told.events if not isinstance(event, Delta)]
    assert kinds == [RateLimited, Paused, Resumed, Finished]


def rotate_when_rate_limited(fake: FakeGateway) -> Callable[[Told], None]:
    def on_event(told: Told) -> None:
        if isinstance(told.events[-1], RateLimited):
            fake.rotate()

    return on_event


# Whatever the reply holds


def call(index: int, arguments: str, name: str | None = None) -> Delta:
    call_id = None if name is None else f"call_{name}"
    return Delta(tool_calls=(ToolCallDelta(index, call_id, name, arguments),))


ANSWERS: dict[str, list[str | Delta]] = {
    "reasoning, then text": [
        *(Delta(reasoning=part) for part in ("Hm", ", the", " 🦊", " data: [DONE]", "\n\n", ".")),
        *("The", " fox", " 👩‍👩‍👧", " is", "", " red."),
    ],
    "reasoning and text by turns": [
        Delta(reasoning="a") if number % 2 else Delta(text="a") for number in range(TOKENS)
    ],
    "both in one event": [
        Delta(reasoning=f"because {number}, ", text=f"{number}, ") for number in range(TOKENS)
    ],
    "two tool calls": [
        Delta(reasoning="I look it up."),
        Delta(text="One moment"),
        call(0, "", "weather"),
        call(0, '{"city"'),
        call(0, ': "Bo'),
        call(0, 'nn"}'),
        call(1, '{"n":', "count"),
        Delta(text="."),
        call(1, " 1"),
        call(1, "2}"),
        Delta(text=" There."),
        Delta(text=" It is."),
    ],
    "three choices": [
        Delta(choice=number % 3, text=f"{number % 3}{'äöü'[number % 3]}{number // 3} ")
        for number in range(TOKENS)
    ],
    "choices of different kinds": [
        Delta(text="one"),
        Delta(choice=1, reasoning="two"),
        Delta(choice=2, tool_calls=(ToolCallDelta(0, "call_x", "x", "{"),)),
        Delta(text=" and"),
        Delta(choice=1, text="2"),
        Delta(choice=2, tool_calls=(ToolCallDelta(0, arguments="}"),)),
        Delta(choice=1, text="", finish_reason="stop"),
        Delta(text=" only"),
        Delta(text="!", finish_reason="length"),
        Delta(choice=2, text="x"),
        Delta(choice=2, text="y"),
        Delta(choice=2, text="z"),
    ],
}


def content(told: Told) -> dict[tuple[int, str, int], list[str]]:
    """All that the deltas brought, by choice, kind and tool call; texts joined."""
    pieces: defaultdict[tuple[int, str, int], list[str]] = defaultdict(list)
    for delta in deltas_of(told):
        pieces[delta.choice, "text", 0].append(delta.text)
        pieces[delta.choice, "reasoning", 0].append(delta.reasoning)
        for part in delta.tool_calls:
            pieces[delta.choice, "arguments", part.index].append(part.arguments)
            for kind, value in (("id", part.id), ("name", part.name)):
                if value is not None:
                    pieces[delta.choice, kind, part.index] += [value, "|"]
        if delta.finish_reason is not None:
            pieces[delta.choice, "finish reason", 0] += [delta.finish_reason, "|"]
    return {channel: ["".join(parts)] for channel, parts in pieces.items() if any(parts)}


def once() -> list[tuple[int, ...]]:
    return [(token,) for token in EVERY_TOKEN]


def twice() -> list[tuple[int, ...]]:
    return [(first, second) for first in EVERY_TOKEN for second in EVERY_TOKEN]


@mostly_by_frame
@pytest.mark.parametrize("dies", [once, pytest.param(twice, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ANSWERS)
async def test_a_key_that_dies_anywhere_in_a_reply_that_holds(
    autojump_clock: MockClock,
    kind: str,
    dies: Callable[[], list[tuple[int, ...]]],
    on_rotation: OnRotation,
) -> None:
    tokens = ANSWERS[kind]
    assert len(tokens) == TOKENS

    def answer(body: Mapping[str, object], attempt: int) -> list[str | Delta]:
        return tokens

    undisturbed = await tell_over_rotations(gateway(answer=answer))
    assert undisturbed.error is None
    for dies_after in dies():
        fake = gateway(*dies_after, on_rotation=on_rotation, answer=answer)
        told = await tell_over_rotations(fake)
        assert told.error is None, dies_after
        assert content(told) == content(undisturbed), dies_after
        assert told.reply.message == undisturbed.reply.message
        assert told.reply.text == fake.intended(BODY)
        assert told.reply.finish_reason == undisturbed.reply.finish_reason
        assert told.reply.usage == undisturbed.reply.usage
        assert fake.refreshes == len(dies_after) == fake.generation - 1


# Many at once


@on_each_rotation
async def test_one_rotation_under_replies_at_every_token_is_one_refresh(
    autojump_clock: MockClock, on_rotation: OnRotation
) -> None:
    fake = gateway(on_rotation=on_rotation)
    for token in EVERY_TOKEN:
        fake.fault(Stall(2.0), token=token, request=token + 1)
    replies: list[Told] = []

    async def one() -> None:
        replies.append(await tell(opened))

    async with open_over(fake) as opened, trio.open_nursery() as nursery:
        for _ in EVERY_TOKEN:
            nursery.start_soon(one)
        await trio.sleep(1)
        fake.rotate()
    assert sorted(request.tokens for request in fake.requests[: len(EVERY_TOKEN)]) == [*EVERY_TOKEN]
    for told in replies:
        assert told.error is None
        assert told.text == told.reply.text == fake.intended(BODY)
    assert len(replies) == len(EVERY_TOKEN)
    assert fake.refreshes == 1
