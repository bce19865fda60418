"""A reader that pauses, for ten minutes and often: bounded memory, and nothing lost.

The connections here hold nothing on the way (`lockstep_stream_pair`), as if the network had no
buffers: a server that is not read from cannot send. Over TCP the same is measured by the benchmark
`benchmarks/paused.py`.
"""

# pyright: reportPrivateUsage=false
from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx
import pytest
import trio
from trio.testing import MockClock, lockstep_stream_pair

from gz_trio import Gateway, MemoryKeyStore, Reply, Timeouts, open_authenticator, open_gateway
from gz_trio._chat.buffer import BUFFER_BYTES
from gz_trio.testing import FakeGateway, Framing
from gz_trio.testing._memory import memory_client
from tests.chats import BODY

TOKEN_SECONDS = 0.005
TEN_MINUTES = 600
WORDS = [f"{number:<1000}" for number in range(700)]
EVENT_BYTES = 1300
"""No event of these is longer."""


@dataclass
class Tight:
    """A gateway whose connections hold nothing, and its ends of them."""

    gateway: Gateway
    connections: list[trio.abc.Stream] = field(default_factory=list[trio.abc.Stream])


@asynccontextmanager
async def open_tight(fake: FakeGateway, timeouts: Timeouts | None = None) -> AsyncGenerator[Tight]:
    connections: list[trio.abc.Stream] = []
    async with trio.open_nursery() as nursery:

        async def connect() -> trio.abc.Stream:
            await trio.lowlevel.checkpoint()
            ours, theirs = lockstep_stream_pair()
            connections.append(ours)
            nursery.start_soon(fake.serve_stream, ours)
            return theirs

        async with (
            memory_client(httpx, fake.base_url, "gateway.test", connect) as client,
            open_authenticator(MemoryKeyStore(fake.key), fake.refresh) as authenticator,
            open_gateway(
                fake.base_url, authenticator, http_client=client, timeouts=timeouts
            ) as gateway,
        ):
            yield Tight(gateway, connections)


async def pause(
    reply: Reply, fake: FakeGateway, seconds: int = TEN_MINUTES, longest: int = EVENT_BYTES
) -> int:
    """Do not read for so long; the bytes that waited for the reader at most."""
    most = 0
    sent: set[int] = set()
    for second in range(seconds):
        await trio.sleep(1)
        most = max(most, reply._buffer.buffered_bytes)
        if second >= seconds // 2:
            sent.add(fake.requests[-1].tokens)
    assert most < BUFFER_BYTES + longest
    assert len(sent) == 1, "the server was not held back"
    return most


async def read(reply: Reply, count: int | None = None) -> str:
    """So many deltas, or the rest."""
    text = ""
    async for delta in reply:
        text += delta.text
        if count is not None:
            count -= 1
            if count == 0:
                break
    return text


async def test_ten_minutes_of_a_paused_reader_cost_one_buffer_and_hold_the_server_back(
    autojump_clock: MockClock,
) -> None:
    """The server has ten minutes of tokens to send, and sends seconds of them."""
    tokens = int(TEN_MINUTES / TOKEN_SECONDS)
    fake = FakeGateway(tokens=tokens, token_interval=TOKEN_SECONDS)
    async with open_tight(fake) as tight, tight.gateway.stream(BODY) as reply:
        await trio.sleep(10)
        sent = fake.requests[0].tokens
        most = await pause(reply, fake)
        assert fake.requests[0].tokens == sent < tokens // 50
        # Full, and not by anything else: what was sent is what waits.
        assert most >= BUFFER_BYTES
        assert trio.current_time() == TEN_MINUTES + 10
        text = await read(reply, 500)
        assert text
        assert fake.intended(BODY).startswith(text)


@pytest.mark.parametrize("framing", ["chunked", "plain", "gzip"])
async def test_after_ten_minutes_the_reader_reads_on_and_gets_everything(
    autojump_clock: MockClock, framing: Framing
) -> None:
    fake = FakeGateway(answer=lambda _, __: WORDS, token_interval=TOKEN_SECONDS, framing=framing)
    async with open_tight(fake) as tight, tight.gateway.stream(BODY) as reply:
        text = await read(reply, 10)
        await pause(reply, fake)
        text += await read(reply)
        assert reply._buffer.buffered_bytes == 0
    assert text == reply.text == "".join(WORDS)
    assert [request.complete for request in fake.requests] == [True]  # asked for once


async def test_many_pauses_cost_no_more_than_one(autojump_clock: MockClock) -> None:
    fake = FakeGateway(answer=lambda _, __: WORDS, token_interval=TOKEN_SECONDS)
    text = ""
    async with open_tight(fake) as tight, tight.gateway.stream(BODY) as reply:
        for _ in range(10):
            text += await read(reply, 40)
            await pause(reply, fake, seconds=60)
        text += await read(reply)
    assert text == reply.text == "".join(WORDS)
    assert len(fake.requests) == 1
    assert reply.timing.paused == 0  # the gateway was not at fault


async def test_a_reader_that_stops_after_every_event_is_never_far_behind(
    autojump_clock: MockClock,
) -> None:
    """Slower than the server all the time: the buffer is full all the time, and no fuller."""
    fake = FakeGateway(answer=lambda _, __: WORDS, token_interval=TOKEN_SECONDS)
    most = 0
    async with open_tight(fake) as tight, tight.gateway.stream(BODY) as reply:
        async for _ in reply:
            await trio.sleep(10 * TOKEN_SECONDS)
            most = max(most, reply._buffer.buffered_bytes)
    assert reply.text == "".join(WORDS)
    assert BUFFER_BYTES <= most < BUFFER_BYTES + EVENT_BYTES


async def test_many_readers_that_pause_each_have_their_own_bound(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(answer=lambda _, __: WORDS[:400])
    replies: list[Reply] = []
    texts: list[str] = []

    async def one() -> None:
        async with tight.gateway.stream(BODY) as reply:
            replies.append(reply)
            await trio.sleep(TEN_MINUTES)
            texts.append(await read(reply))

    async with open_tight(fake) as tight, trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(one)
        await trio.sleep(TEN_MINUTES / 2)
        waiting = [reply._buffer.buffered_bytes for reply in replies]
    assert texts == ["".join(WORDS[:400])] * 5
    assert len(waiting) == 5
    assert all(BUFFER_BYTES <= buffered < BUFFER_BYTES + EVENT_BYTES for buffered in waiting)


async def test_an_event_that_is_longer_than_the_buffer_is_taken_whole_and_alone(
    autojump_clock: MockClock,
) -> None:
    words = [f"{number:<{4 * BUFFER_BYTES}}" for number in range(4)]
    fake = FakeGateway(answer=lambda _, __: words)
    async with open_tight(fake) as tight, tight.gateway.stream(BODY) as reply:
        most = await pause(reply, fake, longest=4 * BUFFER_BYTES + EVENT_BYTES)
        assert most >= 4 * BUFFER_BYTES
        assert await read(reply) == "".join(words)


async def test_no_timeout_passes_while_the_reader_pauses(autojump_clock: MockClock) -> None:
    """The silence is the reader's own."""
    fake = FakeGateway(answer=lambda _, __: WORDS, token_interval=TOKEN_SECONDS)
    timeouts = Timeouts(first_token=5.0, between_tokens=5.0, total=30.0)
    async with open_tight(fake, timeouts) as tight, tight.gateway.stream(BODY) as reply:
        await read(reply, 1)
        await pause(reply, fake)
        await read(reply)
    assert reply.text == "".join(WORDS)
    assert len(reply.attempts) == 1


async def test_leaving_while_paused_takes_no_time_and_closes_the_connection(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(answer=lambda _, __: WORDS)
    async with open_tight(fake) as tight:
        async with tight.gateway.stream(BODY) as reply:
            await pause(reply, fake)
        assert trio.current_time() == TEN_MINUTES
        await trio.testing.wait_all_tasks_blocked()
        assert fake.open_streams == 0


# What happens behind a paused reader


async def the_key_dies(fake: FakeGateway, _: Tight) -> None:
    await trio.lowlevel.checkpoint()
    fake.rotate()


async def the_server_gives_up(_: FakeGateway, tight: Tight) -> None:
    """As servers do with a client that does not read."""
    await trio.aclose_forcefully(tight.connections[-1])


@pytest.mark.parametrize("happening", [the_key_dies, the_server_gives_up])
async def test_what_happens_in_the_pause_is_recovered_from_when_the_reader_gets_there(
    autojump_clock: MockClock, happening: Callable[[FakeGateway, Tight], Awaitable[None]]
) -> None:
    fake = FakeGateway(answer=lambda _, __: WORDS, token_interval=TOKEN_SECONDS)
    async with open_tight(fake) as tight, tight.gateway.stream(BODY) as reply:
        text = await read(reply, 10)
        await pause(reply, fake)
        await happening(fake, tight)
        await pause(reply, fake)
        text += await read(reply, 400)
        await pause(reply, fake)
        text += await read(reply)
    assert text == reply.text == "".join(WORDS)
    assert fake.refreshes == (happening is the_key_dies)
    assert len(fake.requests) > 1
    assert fake.requests[-1].complete
