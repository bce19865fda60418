"""The shield that ends: what was begun may finish after a cancellation, for a bounded time."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from gz_trio._auth.shield import shielded_after_cancel


async def sleep_for(seconds: float) -> str:
    await trio.sleep(seconds)
    return "paid for"


async def test_without_a_cancellation_it_is_a_call(autojump_clock: trio.testing.MockClock) -> None:
    assert await shielded_after_cancel(10, sleep_for, 99) == "paid for"
    assert trio.current_time() == 99


async def test_an_error_comes_out_as_itself_and_not_in_a_group() -> None:
    error = LookupError("itself")

    async def fail() -> None:
        raise error

    with pytest.raises(LookupError) as caught:
        await shielded_after_cancel(10, fail)
    assert caught.value is error


@pytest.mark.parametrize("at", [0.5, 5, 10.5])
async def test_a_result_within_the_seconds_after_the_cancellation_is_kept(
    autojump_clock: trio.testing.MockClock, at: float
) -> None:
    kept = None
    with trio.move_on_after(1) as scope:
        kept = await shielded_after_cancel(10, sleep_for, at)
        assert trio.current_time() == at
        await trio.lowlevel.checkpoint_if_cancelled()  # no surprise where there was none
    assert kept == "paid for"
    assert scope.cancelled_caught == (at > 1)


async def test_an_error_within_the_seconds_after_the_cancellation_comes_out(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def fail() -> None:
        await trio.sleep(5)
        raise LookupError

    with trio.move_on_after(1), pytest.raises(LookupError):
        await shielded_after_cancel(10, fail)
    assert trio.current_time() == 5


async def test_what_takes_longer_is_cancelled_at_that_moment(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with trio.move_on_after(1) as scope:
        await shielded_after_cancel(10, sleep_for, 100)
    assert scope.cancelled_caught
    assert trio.current_time() == 11


@pytest.mark.parametrize(("begun_at", "ends_at"), [(0.5, 11), (2, 1)])
async def test_what_was_not_begun_is_cancelled_at_once(
    autojump_clock: trio.testing.MockClock, begun_at: float, ends_at: float
) -> None:
    begun = False

    async def exchange() -> None:
        nonlocal begun
        await trio.sleep(begun_at)
        begun = True
        await trio.sleep_forever()

    with trio.move_on_after(1) as scope:
        await shielded_after_cancel(lambda: 10 if begun else 0, exchange)
    assert scope.cancelled_caught
    assert trio.current_time() == ends_at


async def test_what_is_begun_in_the_tick_of_the_cancellation_was_begun_too_late(
    autojump_clock: trio.testing.MockClock,
) -> None:
    begun = False
    scope = trio.CancelScope()

    async def exchange() -> None:
        nonlocal begun
        await trio.sleep(1)
        scope.cancel()
        begun = True
        await trio.sleep_forever()

    with scope:
        await shielded_after_cancel(lambda: 10 if begun else 0, exchange)
    assert trio.current_time() == 1


async def test_a_caller_that_was_cancelled_before_has_nothing_begun_yet() -> None:
    begun = False

    async def exchange() -> None:
        nonlocal begun
        await trio.lowlevel.checkpoint()
        begun = True

    with trio.CancelScope() as scope:
        scope.cancel()
        await shielded_after_cancel(lambda: 10 if begun else 0, exchange)
    assert scope.cancelled_caught
    assert not begun


async def test_a_caller_that_was_cancelled_before_has_the_seconds_too(
    autojump_clock: trio.testing.MockClock,
) -> None:
    kept = None
    with trio.CancelScope() as scope:
        scope.cancel()
        kept = await shielded_after_cancel(10, sleep_for, 9)
        await shielded_after_cancel(10, sleep_for, 11)
    assert kept == "paid for"
    assert scope.cancelled_caught
    assert trio.current_time() == 19


async def test_a_cancellation_in_the_first_tick_is_noticed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with trio.CancelScope() as scope:

        async def exchange() -> None:
            scope.cancel()
            await trio.sleep_forever()

        await shielded_after_cancel(10, exchange)
    assert scope.cancelled_caught
    assert trio.current_time() == 10


async def test_a_cancellation_in_the_last_tick_does_not_cost_the_result() -> None:
    kept = None
    with trio.CancelScope() as scope:

        async def exchange() -> str:
            await trio.lowlevel.checkpoint()
            scope.cancel()
            return "paid for"

        kept = await shielded_after_cancel(10, exchange)
    assert kept == "paid for"


async def test_a_cancellation_of_a_nursery_reaches_it_too(
    autojump_clock: trio.testing.MockClock,
) -> None:
    kept: list[str] = []

    async def task() -> None:
        kept.append(await shielded_after_cancel(10, sleep_for, 5))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(task)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert kept == ["paid for"]
    assert trio.current_time() == 5
