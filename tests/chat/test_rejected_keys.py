"""A key that is rejected: before the first byte, on a retry, or in mid-stream."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import count
from typing import Literal

import pytest
import trio
from trio.testing import MockClock

from gz_trio import (
    APIConnectionError,
    AuthenticationError,
    Finished,
    Key,
    MemoryKeyStore,
    Paused,
    PermissionDeniedError,
    RefreshError,
    RefreshTimeout,
    Restarted,
    Resumed,
    Timeouts,
    open_authenticator,
)
from gz_trio.testing import Cut, ErrorFrame, FakeGateway, Stall, Status
from tests.chats import BODY, RESTART, after_deltas, deltas_of, open_over, tell

LOG_IN_AGAIN = "Authentication failed after refresh attempt. Please log in again."


def statuses(fake: FakeGateway) -> list[int | None]:
    return [request.status for request in fake.requests]


async def test_a_401_before_the_first_byte_is_one_refresh_and_the_reply_is_whole(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(key="sk-2")
    async with open_over(fake, key="sk-1") as gateway:
        told = await tell(gateway)
    assert told.error is None
    assert told.text == told.reply.text == fake.intended(BODY)
    assert told.events[:2] == [Paused("refresh"), Resumed()]
    assert (fake.rejected, fake.refreshes, statuses(fake)) == (1, 1, [401, 200])


@pytest.mark.parametrize("on_rotation", ["frame", "cut"])
async def test_a_key_that_dies_in_mid_stream_is_one_refresh_and_no_character_lost(
    autojump_clock: MockClock,
    on_rotation: Literal["frame", "cut"],
) -> None:
    fake = FakeGateway(token_interval=1.0, on_rotation=on_rotation)
    async with open_over(fake) as gateway:
        told = await tell(gateway, on_event=after_deltas(3, fake.rotate))
    assert told.error is None
    assert told.text == fake.intended(BODY)
    # First it asks again with the current key; the 401 then decides.
    assert told.happened[:-1] == [Paused("reconnect"), Paused("refresh"), Resumed()]
    assert isinstance(told.events[-1], Finished)
    assert (statuses(fake), fake.refreshes) == ([200, 401, 200], 1)


async def test_a_key_that_dies_in_every_attempt_is_refreshed_each_time(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(token_interval=1.0, tokens=20)
    for generation in range(1, 6):
        fake.fault(ErrorFrame("auth_error"), token=3 * generation, generation=generation, times=2)

    async def refresh(_: Key | None) -> str:
        fake.refreshes += 1
        return fake.rotate()

    async with open_over(fake, refresh=refresh) as gateway:
        told = await tell(gateway)
    assert told.error is None
    assert told.text == fake.intended(BODY)
    assert fake.refreshes == 5


async def test_the_gateways_own_auth_error_asks_again_with_the_current_key_without_refresh(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway()
    fake.fault(ErrorFrame("auth_error"), token=3)
    async with open_over(fake) as gateway:
        told = await tell(gateway)
    assert told.text == fake.intended(BODY)
    assert (statuses(fake), fake.refreshes) == ([200, 200], 0)
    assert told.happened[:-1] == [Paused("reconnect"), Resumed()]


async def test_a_second_auth_error_under_the_same_key_counts_as_its_401(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway()
    fake.fault(ErrorFrame("auth_error"), token=3, generation=1, times=None)

    async def refresh(_: Key | None) -> str:
        fake.refreshes += 1
        return fake.rotate()

    async with open_over(fake, refresh=refresh) as gateway:
        told = await tell(gateway)
    assert told.text == fake.intended(BODY)
    assert (statuses(fake), fake.refreshes) == ([200, 200, 200], 1)


async def test_auth_errors_that_no_key_ends_end_the_reply_with_the_text_so_far(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway()
    fake.fault(ErrorFrame("auth_error"), token=3, times=None)

    async def refresh(_: Key | None) -> str:
        return fake.rotate()

    async with open_over(fake, refresh=refresh) as gateway:
        told = await tell(gateway)
    assert isinstance(told.error, AuthenticationError)
    assert told.error.partial == told.text
    assert fake.intended(BODY).startswith(told.text)
    assert len(deltas_of(told)) >= 3
    assert len(fake.requests) <= 7


async def test_the_third_401_in_a_row_ends_the_reply(autojump_clock: MockClock) -> None:
    fake = FakeGateway(key="sk-good")
    numbers = count(2)

    async def refresh(_: Key | None) -> str:
        return f"sk-{next(numbers)}"

    async with open_over(fake, key="sk-1", refresh=refresh) as gateway:
        told = await tell(gateway)
    assert type(told.error) is AuthenticationError
    assert told.error.status == 401
    assert statuses(fake) == [401, 401, 401]
    assert next(numbers) == 4  # two refreshes: the third 401 asks for none


async def test_a_refresh_that_gives_back_the_rejected_key_is_authentication_failed(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(key="sk-good")

    async def refresh(rejected: Key | None) -> Key:
        assert rejected is not None
        return rejected

    async with open_over(fake, key="sk-1", refresh=refresh) as gateway:
        told = await tell(gateway)
    assert type(told.error) is AuthenticationError
    assert str(told.error) == "Authentication failed"
    assert statuses(fake) == [401]


async def refused(_: Key | None) -> str:
    raise AuthenticationError("the session has ended", status=401)


async def forbidden(_: Key | None) -> str:
    raise PermissionDeniedError("no", status=403)


async def buggy(_: Key | None) -> str:
    raise ZeroDivisionError("a bug")


async def endless(_: Key | None) -> str:
    await trio.sleep_forever()
    raise AssertionError


async def unreachable(_: Key | None) -> str:
    raise APIConnectionError("no route")


async def no_key(_: Key | None) -> str:
    return " "


@pytest.mark.parametrize(
    ("refresh", "error_class", "cause", "seconds"),
    [
        (refused, RefreshError, "the refresh was refused: sign in again", 0),
        (forbidden, RefreshError, "the refresh was refused: sign in again", 0),
        (buggy, RefreshError, "the key could not be refreshed: ZeroDivisionError", 0),
        (no_key, RefreshError, "the refresh callable gave no usable key", 0),
        (endless, RefreshTimeout, "Auth refresh timeout", 30),
        (unreachable, RefreshTimeout, "Auth refresh timeout", 30),
    ],
)
async def test_a_failed_refresh_says_log_in_again_and_is_chained_to_the_flights_error(
    autojump_clock: MockClock,
    refresh: Callable[[Key | None], Awaitable[str]],
    error_class: type[RefreshError],
    cause: str,
    seconds: float,
) -> None:
    fake = FakeGateway()
    store = MemoryKeyStore("sk-old")
    async with open_over(fake, store=store, refresh=refresh) as gateway:
        told = await tell(gateway)
    assert type(told.error) is error_class
    assert isinstance(told.error, RefreshError)
    assert str(told.error) == LOG_IN_AGAIN
    assert type(told.error.__cause__) is error_class
    assert str(told.error.__cause__).startswith(cause)
    assert told.seconds == seconds
    assert told.events == [Paused("refresh")]
    key = (await store.load()).key
    assert key is not None
    assert key.value == "sk-old"


async def test_the_flights_error_is_chained_to_what_the_callable_raised(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway()
    async with open_over(fake, key="sk-old", refresh=buggy) as gateway:
        told = await tell(gateway)
    assert told.error is not None
    assert told.error.__cause__ is not None
    assert isinstance(told.error.__cause__.__cause__, ZeroDivisionError)


async def test_a_refresh_refused_in_mid_stream_keeps_the_text_so_far(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(token_interval=1.0)
    fake.refuse_refresh = True
    async with open_over(fake) as gateway:
        told = await tell(gateway, on_event=after_deltas(3, fake.expire))
    assert isinstance(told.error, RefreshError)
    assert told.error.partial == told.text
    assert told.text
    assert fake.intended(BODY).startswith(told.text)


async def test_a_plain_key_fails_at_once(autojump_clock: MockClock) -> None:
    fake = FakeGateway()
    async with open_over(fake, key="sk-old", refresh=None) as gateway:
        told = await tell(gateway)
    assert type(told.error) is AuthenticationError
    assert str(told.error) == "Authentication failed"
    assert (told.seconds, statuses(fake)) == (0, [401])


async def test_without_a_key_the_first_one_comes_from_the_refresh(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway()
    async with open_over(fake, store=MemoryKeyStore()) as gateway:
        told = await tell(gateway)
    assert told.text == fake.intended(BODY)
    assert (fake.refreshes, fake.rejected) == (1, 0)


@pytest.mark.parametrize(
    ("fault", "error_class"),
    [
        (Status(403), PermissionDeniedError),
        (Status(401, code="GUEST_NOT_CONFIGURED"), AuthenticationError),
    ],
)
async def test_what_no_refresh_can_help_starts_none(
    autojump_clock: MockClock, fault: Status, error_class: type[AuthenticationError]
) -> None:
    fake = FakeGateway()
    fake.fault(fault)
    async with open_over(fake) as gateway:
        told = await tell(gateway)
    assert type(told.error) is error_class
    assert (fake.refreshes, len(fake.requests)) == (0, 1)


async def test_a_500_that_wraps_a_401_is_a_rejected_key(autojump_clock: MockClock) -> None:
    fake = FakeGateway()
    wrapped = {"detail": "Failed to get chat stats: 401: Invalid API key"}
    fake.fault(Status(500, body=wrapped), generation=1)
    fake.rotate()
    async with open_over(fake, key="gw_test_1") as gateway:
        told = await tell(gateway)
    assert told.text == fake.intended(BODY)
    assert fake.refreshes == 1


async def test_a_reply_never_goes_on_under_another_account(autojump_clock: MockClock) -> None:
    fake = FakeGateway(token_interval=1.0)
    fake.fault(ErrorFrame("auth_error"), token=8)
    async with (
        open_authenticator(MemoryKeyStore(fake.key)) as authenticator,
        open_over(fake, authenticator=authenticator) as gateway,
        trio.open_nursery() as nursery,
    ):

        def sign_in() -> None:
            nursery.start_soon(authenticator.sign_in, "gw_of_another")

        told = await tell(gateway, on_event=after_deltas(3, sign_in))
    assert isinstance(told.error, AuthenticationError)
    assert "another account" in str(told.error)
    assert told.error.partial == told.text
    assert len(fake.requests) == 1  # nothing of the conversation went out under the other key


async def test_a_reply_goes_on_under_a_new_key_of_the_same_account(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(token_interval=1.0)
    async with (
        open_authenticator(MemoryKeyStore(fake.key)) as authenticator,
        open_over(fake, authenticator=authenticator) as gateway,
        trio.open_nursery() as nursery,
    ):

        async def sign_in() -> None:
            await authenticator.sign_in(fake.rotate(), same_account=True)

        told = await tell(gateway, on_event=after_deltas(3, lambda: nursery.start_soon(sign_in)))
    assert told.error is None
    assert told.text == fake.intended(BODY)


async def test_the_pause_of_a_refresh_counts_for_no_timeout(autojump_clock: MockClock) -> None:
    fake = FakeGateway(key="sk-2", auth_latency=25.0)
    timeouts = Timeouts(first_token=5.0, between_tokens=5.0, total=10.0)
    async with open_over(fake, key="sk-1", timeouts=timeouts) as gateway:
        told = await tell(gateway)
    assert told.error is None
    assert told.seconds == 25.0
    assert told.reply.timing.paused == 25.0


async def test_a_refreshed_stream_whose_next_answer_differs_restarts_where_it_may(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(
        token_interval=1.0, answer=lambda _, attempt: [f"{attempt}:", " a", " b", " c"]
    )
    async with open_over(fake, resume=RESTART) as gateway:
        told = await tell(gateway, on_event=after_deltas(2, fake.rotate))
    assert told.happened[:-1] == [Paused("reconnect"), Paused("refresh"), Restarted(), Resumed()]
    assert told.text == told.reply.text == "2: a b c"


async def test_a_refresh_that_a_stall_holds_up_pauses_the_reply_until_it_comes(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(key="sk-2")
    fake.fault(Stall(29.0), path="/auth")
    async with open_over(fake, key="sk-1") as gateway:
        told = await tell(gateway)
    assert (told.error, told.seconds) == (None, 29.0)


async def test_a_401_on_a_retry_is_refreshed_like_any_other(autojump_clock: MockClock) -> None:
    fake = FakeGateway(token_interval=1.0)
    fake.fault(Cut(), token=5, request=1)
    fake.fault(Status(401), request=2)

    async def refresh(_: Key | None) -> str:
        fake.refreshes += 1
        return fake.rotate()

    async with open_over(fake, refresh=refresh) as gateway:
        told = await tell(gateway)
    assert told.text == fake.intended(BODY)
    assert (statuses(fake), fake.refreshes) == ([200, 401, 200], 1)


@pytest.mark.parametrize("refresh", ["none", "refused"])
async def test_an_authentication_error_tells_what_the_gateway_said_of_the_key(
    refresh: str,
) -> None:
    fake = FakeGateway()
    fake.fault(
        Status(401, dialect="openai", code="invalid_api_key", headers={"x-request-id": "req-7"}),
        times=None,
    )
    fake.refuse_refresh = True
    async with open_over(fake, refresh=None if refresh == "none" else "fake") as gateway:
        told = await tell(gateway)
    error = told.error
    assert isinstance(error, AuthenticationError)
    assert (error.status, error.code, error.request_id) == (401, "invalid_api_key", "req-7")
    assert error.body is not None
    assert error.__cause__ is not None


async def test_a_reply_that_begins_during_a_refresh_says_that_it_waits(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(auth_latency=5.0)
    async with open_over(fake) as gateway:
        fake.rotate()
        gateway.authenticator.request_refresh()
        told = await tell(gateway)
    assert told.events[:2] == [Paused("refresh"), Resumed()]
    assert told.text == fake.intended(BODY)
    assert told.reply.timing.paused == 5.0
    assert (fake.refreshes, fake.rejected) == (1, 0)
