"""Tests of bot.py against a fake gateway. The mock clock makes the waiting take no time."""

import httpx
import trio
from trio.testing import MockClock

import gz_trio
from examples.bot import answer
from gz_trio.testing import FakeGateway, Status


async def ask(gateway: FakeGateway, client: httpx.AsyncClient) -> str:
    """What the bot shows of one answer."""
    shown: list[str] = []
    async with gz_trio.open_session(
        gateway.base_url,
        model="fake-model",
        key="gw_test_1",
        refresh=gateway.refresh,
        http_client=client,
    ) as session:
        await answer(session, "How do stories begin?", shown.append)
    return "".join(shown)


async def test_it_shows_the_answer(
    fake_gateway: FakeGateway, fake_gateway_client: httpx.AsyncClient
) -> None:
    shown = await ask(fake_gateway, fake_gateway_client)
    assert shown == fake_gateway.intended(fake_gateway.requests[0].body or {})


async def test_it_goes_on_in_the_same_line_when_the_key_is_rotated(
    fake_gateway: FakeGateway, fake_gateway_client: httpx.AsyncClient, autojump_clock: MockClock
) -> None:
    async def rotate() -> None:
        await trio.sleep(4.5)
        fake_gateway.rotate()

    fake_gateway.token_interval = 1.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rotate)
        shown = await ask(fake_gateway, fake_gateway_client)
    before, after = shown.split(" (signing in ...) ")
    assert before
    assert before + after == fake_gateway.intended(fake_gateway.requests[0].body or {})
    assert fake_gateway.refreshes == 1


async def test_it_says_that_the_gateway_is_busy(
    fake_gateway: FakeGateway, fake_gateway_client: httpx.AsyncClient, autojump_clock: MockClock
) -> None:
    fake_gateway.fault(Status(429, headers={"retry-after": "20"}))
    shown = await ask(fake_gateway, fake_gateway_client)
    # Twenty seconds, and a few more by chance, so that not all come back at once.
    assert shown.startswith(" (the gateway is busy, going on in 2")
