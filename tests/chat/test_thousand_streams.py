"""A thousand streams that share one key: one refresh, one result, for every one of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

import trio
from trio.testing import MockClock

from gz_trio import (
    AuthenticationError,
    Authenticator,
    Gateway,
    Key,
    MemoryKeyStore,
    RefreshError,
    RefreshTimeout,
    open_authenticator,
    open_gateway,
)
from gz_trio._auth.authenticator import Refresh
from gz_trio.testing import FakeGateway
from tests.chats import BODY, Ticks, Told, open_over, tell

STREAMS = 1000
CLIENTS = 125


def body(number: int) -> dict[str, object]:
    return {**BODY, "messages": [{"role": "user", "content": f"Story number {number}"}]}


@asynccontextmanager
async def open_gateways(
    fake: FakeGateway, authenticator: Authenticator
) -> AsyncGenerator[list[Gateway]]:
    """As many as there are streams, by turns: httpx is slow with many connections in one client."""
    async with AsyncExitStack() as stack:
        gateways: list[Gateway] = []
        for _ in range(CLIENTS):
            client = await stack.enter_async_context(fake.http_client())
            opened = open_gateway(fake.base_url, authenticator, http_client=client)
            gateways.append(await stack.enter_async_context(opened))
        yield [gateways[number % CLIENTS] for number in range(STREAMS)]


@asynccontextmanager
async def open_all(
    fake: FakeGateway, key: str, refresh: Refresh | None = None
) -> AsyncGenerator[list[Gateway]]:
    async with (
        open_authenticator(MemoryKeyStore(key), refresh or fake.refresh) as authenticator,
        open_gateways(fake, authenticator) as gateways,
    ):
        yield gateways


async def tell_all(
    gateways: list[Gateway], *, streams: int = STREAMS, cancel: trio.CancelScope | None = None
) -> dict[int, Told]:
    """Replies by number; the first one within `cancel`."""
    told: dict[int, Told] = {}

    async def one(number: int) -> None:
        with cancel if cancel and number == 0 else trio.CancelScope():
            told[number] = await tell(gateways[number], body(number))

    async with trio.open_nursery() as nursery:
        for number in range(streams):
            nursery.start_soon(one, number)
    return told


def assert_whole(fake: FakeGateway, told: dict[int, Told]) -> None:
    for number, one in told.items():
        assert one.error is None
        assert one.text == fake.intended(body(number))


async def test_a_thousand_streams_that_meet_a_rotated_key_make_one_refresh_and_are_whole(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(key="sk-2", tokens=1, auth_latency=1.0)
    async with open_all(fake, "sk-1") as gateways:
        told = await tell_all(gateways)
    assert len(told) == STREAMS
    assert_whole(fake, told)
    assert (fake.refreshes, fake.rejected) == (1, STREAMS)


async def test_two_hundred_streams_whose_key_dies_in_mid_stream_make_one_refresh_and_are_whole(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(tokens=6, token_interval=1.0, auth_latency=0.5)
    async with open_all(fake, fake.key) as gateways, trio.open_nursery() as nursery:

        async def rotate() -> None:
            await trio.sleep(2.5)
            fake.rotate()

        nursery.start_soon(rotate)
        told = await tell_all(gateways, streams=200)
    assert len(told) == 200
    assert_whole(fake, told)
    assert (fake.refreshes, fake.auth_errors) == (1, 200)


async def test_a_refused_refresh_is_one_call_and_a_thousand_errors_in_the_tick_of_the_refusal(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(key="sk-2")
    ticks = Ticks()
    calls = 0
    refused_at: tuple[float, int] = (0.0, 0)
    raised: Counter[tuple[float, int]] = Counter()
    errors: list[AuthenticationError] = []

    async def refuse(_: Key | None) -> str:
        nonlocal calls, refused_at
        calls += 1
        await trio.sleep(10)
        refused_at = (trio.current_time(), ticks.now)
        raise AuthenticationError("no", status=401)

    async def one(gateway: Gateway, number: int) -> None:
        async with gateway.stream(body(number)) as reply:
            try:
                async for _ in reply:
                    pass
            except AuthenticationError as error:
                raised[trio.current_time(), ticks.now] += 1
                errors.append(error)

    trio.lowlevel.add_instrument(ticks)
    async with (
        open_all(fake, "sk-1", refuse) as gateways,
        trio.open_nursery() as nursery,
    ):
        for number in range(STREAMS):
            nursery.start_soon(one, gateways[number], number)
    trio.lowlevel.remove_instrument(ticks)

    assert calls == 1
    assert len(errors) == STREAMS == len(set(map(id, errors)))  # each has one of its own
    assert {type(error) for error in errors} == {RefreshError}
    (((time, tick), count),) = raised.items()  # all of them at once
    assert (time, count) == (refused_at[0], STREAMS)
    # The refusal wakes the receiving tasks, they wake their readers: two turns of the scheduler,
    # and one in which the store is read once more.
    assert tick - refused_at[1] <= 4


async def test_after_a_refusal_later_replies_fail_without_another_call(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(key="sk-2")
    fake.refuse_refresh = True
    async with open_over(fake, key="sk-1") as gateway:
        for _ in range(3):
            told = await tell(gateway)
            assert isinstance(told.error, RefreshError)
    assert fake.refreshes == 1


async def test_cancelling_the_first_waiter_leaves_the_others_alone(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(key="sk-2", tokens=1, auth_latency=5.0)
    scope = trio.CancelScope(deadline=trio.current_time() + 2)
    async with open_all(fake, "sk-1") as gateways:
        told = await tell_all(gateways, cancel=scope)
    assert scope.cancelled_caught
    assert sorted(told) == list(range(1, STREAMS))
    assert_whole(fake, told)
    assert fake.refreshes == 1


async def test_the_timeout_falls_for_all_at_30_seconds_and_not_later(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(key="sk-2", auth_latency=31.0)
    async with open_all(fake, "sk-1") as gateways:
        told = await tell_all(gateways, streams=200)
    assert {type(one.error) for one in told.values()} == {RefreshTimeout}
    assert {one.seconds for one in told.values()} == {30.0}
    assert fake.refreshes == 1


async def test_an_authenticator_that_is_closed_while_a_thousand_wait_lets_all_of_them_go(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(key="sk-2", auth_latency=20.0)
    told: list[Told] = []

    close = trio.Event()

    async def hold(*, task_status: trio.TaskStatus[Authenticator]) -> None:
        async with open_authenticator(MemoryKeyStore("sk-1"), fake.refresh) as authenticator:
            task_status.started(authenticator)
            await close.wait()

    async def one(gateway: Gateway, number: int) -> None:
        told.append(await tell(gateway, body(number)))

    async with trio.open_nursery() as holder:
        authenticator: Authenticator = await holder.start(hold)
        async with (
            open_gateways(fake, authenticator) as gateways,
            trio.open_nursery() as nursery,
        ):
            for number in range(STREAMS):
                nursery.start_soon(one, gateways[number], number)
            await trio.sleep(5)
            assert told == []
            close.set()
    assert len(told) == STREAMS
    for one_told in told:
        assert type(one_told.error) is RefreshError
        assert str(one_told.error.__cause__) == "authenticator closed"
        assert one_told.seconds == 5


async def test_a_thousand_websocket_sessions_make_one_refresh_and_all_are_taken_up() -> None:
    fake = FakeGateway(tokens=8, token_interval=0.5)
    begun = 0

    async def chat(gateway: Gateway, number: int) -> None:
        nonlocal begun
        question = f"Story number {number}"
        async with (
            gateway.open_session("fake-model", api="responses", transport="websocket") as session,
            session.stream(question) as reply,
        ):
            while not reply.text:
                await anext(reply)
            begun += 1
            if begun == STREAMS:
                fake.expire()
            async for _ in reply:
                pass
        assert reply.text == fake.intended({"input": question})

    async with open_over(fake) as gateway, trio.open_nursery() as nursery:
        for number in range(STREAMS):
            nursery.start_soon(chat, gateway, number)
    assert fake.refreshes == 1
    assert len(fake.requests) == 5 * STREAMS, "two handshakes and three turns, one rejected, each"
