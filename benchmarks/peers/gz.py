"""gz_trio: by `async for`, by `drain`, either without recovery, and over WebSocket.

Without recovery means what the public settings can turn off: no retry, no replay. What was
delivered is accounted for all the same, as the reply's own text.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

import trio

import gz_trio

from ..tally import Tally
from . import OPENING, Load
from .wire import KEY, MODEL, NEW_KEY, body

REFRESH_SECONDS = 300

TURNS = 10
TOKENS = 50
SPREAD_SECONDS = 2.0
"""Of users who talk: between the first one and the last."""

PROMPT = "word " * 99 + "word"
"""As long as what the simulator makes up."""


@asynccontextmanager
async def _gateway(load: Load) -> AsyncGenerator[gz_trio.Gateway]:
    bare = "bare" in load.variant
    async with gz_trio.open_gateway(
        load.base_url,
        KEY,
        retry=gz_trio.RetryPolicy(max_retries=0) if bare else None,
        resume=gz_trio.ResumePolicy(max_replay=0) if bare else None,
    ) as gateway:
        yield gateway


async def _read(load: Load, tally: Tally, reply: gz_trio.Reply) -> None:
    if "drain" in load.variant:
        take = tally.take_counting_reads if load.count_reads else tally.take_stamped
        await reply.drain(lambda delta, arrived: take(delta.text, arrived))
    else:
        async for delta in reply:
            if delta.text:
                tally.take(delta.text)


async def streams(load: Load, tally: Tally) -> None:
    """Open the streams, and read them until they end."""

    async def read(number: int) -> None:
        async with gateway.stream(body(number)) as reply:
            await _read(load, tally, reply)

    async def read_over_websocket(number: int) -> None:
        async with (
            gateway.open_session(MODEL, api="responses", transport="websocket") as session,
            session.stream(f"Question {number}") as reply,
        ):
            await _read(load, tally, reply)

    over = read_over_websocket if "websocket" in load.variant else read
    async with _gateway(load) as gateway, trio.open_nursery() as nursery:
        for number in range(load.streams):
            nursery.start_soon(over, number)


async def sessions(load: Load, tally: Tally) -> None:
    """Open the streams, each with a session of its own."""
    limiter = trio.CapacityLimiter(OPENING)

    async def read(number: int) -> None:
        async with AsyncExitStack() as stack:
            async with limiter:  # As the other peers have it, for whom opening is waiting too.
                session = await stack.enter_async_context(gateway.open_session(MODEL))
                reply = await stack.enter_async_context(session.stream(f"Question {number}"))
                tally.take((await anext(reply)).text)
            await _read(load, tally, reply)

    async with _gateway(load) as gateway, trio.open_nursery() as nursery:
        for number in range(load.streams):
            nursery.start_soon(read, number)


async def requests(load: Load, tally: Tally) -> None:
    """One request after another on one connection."""
    async with _gateway(load) as gateway:
        while True:
            async with gateway.stream(body(0)) as reply:
                await _read(load, tally, reply)
            tally.requests += 1


async def conversations(load: Load, tally: Tally) -> None:
    """What the simulator's users do: one request after another, each with the talk so far.

    Nothing is measured: this is what the transport costs by itself.
    """

    async def talk(number: int) -> None:
        await trio.sleep(number / load.streams * SPREAD_SECONDS)
        while True:
            messages: list[dict[str, object]] = []
            for _ in range(TURNS):
                messages.append({"role": "user", "content": PROMPT})
                turn: dict[str, object] = {
                    "model": MODEL,
                    "messages": list(messages),
                    "max_tokens": TOKENS,
                    "stream_options": {"include_usage": True},
                }
                async with gateway.stream(turn) as reply:
                    await reply.drain(tally.count)
                messages.append(reply.message)
                tally.requests += 1

    async with _gateway(load) as gateway, trio.open_nursery() as nursery:
        for number in range(load.streams):
            nursery.start_soon(talk, number)


async def refreshed(load: Load, tally: Tally) -> None:
    """Open the streams; when they have lost their key, wait until a new one is granted."""

    async def refresh(_: gz_trio.Key | None) -> str:
        await trio.to_thread.run_sync(tally.granted.wait, abandon_on_cancel=True)
        return NEW_KEY

    async def read(number: int) -> None:
        async with gateway.stream(body(number)) as reply:
            async for event in reply.events():
                match event:
                    case gz_trio.Delta():
                        if event.text:
                            tally.take(event.text)
                    case gz_trio.Paused(reason="refresh"):
                        tally.paused += 1
                    case _:
                        pass

    store = gz_trio.MemoryKeyStore(KEY)
    async with (
        gz_trio.open_authenticator(store, refresh, timeout=REFRESH_SECONDS) as authenticator,
        gz_trio.open_gateway(load.base_url, authenticator) as gateway,
        trio.open_nursery() as nursery,
    ):
        for number in range(load.streams):
            nursery.start_soon(read, number)
