"""nginx with other habits: it limits, gives up, holds back, compresses and hangs up."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import pytest
import trio

import gz_trio
from gz_trio.testing import FakeGateway, Stall
from tests.interop import plain
from tests.interop.conftest import FIRST_KEY, running, until
from tests.interop.servers import MODEL, Engine, Front, free_port

# The least there is, so that text comes in many lumps, neither at once nor all at the end.
BUFFERS = (
    "proxy_buffering on; proxy_buffer_size 1k; proxy_buffers 2 1k; proxy_busy_buffers_size 1k;"
)
COMPRESSION = "gzip on; gzip_proxied any; gzip_types text/event-stream application/json;"
TWO_REQUESTS = "keepalive_requests 2;"
TUNNEL = 'proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade";'
HABITS = {
    "buffers": BUFFERS,
    "compression": COMPRESSION,
    "compression and buffers": COMPRESSION + BUFFERS,
    "two requests a connection": TWO_REQUESTS,
}
CHATS = 10


@asynccontextmanager
async def served(fake: FakeGateway, folder: Path, habits: str) -> AsyncGenerator[Front]:
    """nginx in front of the fake gateway, which checks the key itself."""
    async with fake.listen() as base_url:
        with running(Front(folder, urlsplit(base_url).port or 0, habits=habits)) as front:
            yield front


@asynccontextmanager
async def chats(
    base_url: str, auth: gz_trio.Authenticator | str
) -> AsyncGenerator[list[gz_trio.Session]]:
    """Many chats with one gateway."""
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(gz_trio.open_gateway(base_url, auth))
        yield [
            await stack.enter_async_context(gateway.open_session("fake-model"))
            for _ in range(CHATS)
        ]


async def listen(
    session: gz_trio.Session, text: str, events: list[gz_trio.ReplyEvent]
) -> gz_trio.Reply:
    """Read a reply to its end; `events` gets all that it gives."""
    async with session.stream(text) as reply:
        events.extend([event async for event in reply.events()])
    return reply


def assert_whole(fake: FakeGateway, *sessions: gz_trio.Session) -> None:
    """Each answer is the one to what was said before it."""
    for session in sessions:
        messages = list(session.messages)
        for turn in range(1, len(messages), 2):
            assert messages[turn]["content"] == fake.intended({"messages": messages[:turn]})


@pytest.mark.parametrize("habit", HABITS)
@pytest.mark.parametrize("on_rotation", ["frame", "cut"])
async def test_chats_outlive_a_rotation_in_mid_reply(
    nginx: Path, habit: str, on_rotation: Literal["frame", "cut"]
) -> None:
    fake = FakeGateway(FIRST_KEY, tokens=60, token_interval=0.003, on_rotation=on_rotation)
    attempts: list[int] = []

    async def chat(number: int, session: gz_trio.Session) -> None:
        for turn in range(2):
            reply = await listen(session, f"Chat {number}, turn {turn}.", [])
            attempts.append(len(reply.attempts))

    async with (
        served(fake, nginx, HABITS[habit]) as front,
        gz_trio.open_authenticator(
            gz_trio.MemoryKeyStore(FIRST_KEY), fake.refresh
        ) as authenticator,
        chats(front.base_url, authenticator) as sessions,
        trio.open_nursery() as nursery,
    ):
        for number, session in enumerate(sessions):
            nursery.start_soon(chat, number, session)
        # nginx may hold back what the readers would see of it.
        await until(lambda: sum(request.tokens > 20 for request in fake.requests) >= CHATS)
        fake.rotate()
    assert_whole(fake, *sessions)
    assert fake.refreshes == 1
    assert sum(number > 1 for number in attempts) >= CHATS / 2
    answers = [request for request in front.served() if request.status == 200]
    assert {answer.coding for answer in answers} == {"gzip" if "gzip" in HABITS[habit] else "-"}
    assert (max(answer.nth for answer in answers) > 2) == (HABITS[habit] != TWO_REQUESTS)


async def test_other_answers_come_compressed_too(nginx: Path) -> None:
    fake = FakeGateway(FIRST_KEY)
    async with (
        served(fake, nginx, COMPRESSION) as front,
        gz_trio.open_gateway(front.base_url, FIRST_KEY) as gateway,
    ):
        made = await gateway.history.create("A story", model="fake-model")
        assert [session.id for session in await gateway.history.sessions()] == [made.id]
    assert [request.coding for request in front.served()] == ["gzip", "gzip"]


@pytest.mark.parametrize(
    ("retry_after", "least", "most"), [(None, 1.1, 1.5), (2, 2.0, 2.5)], ids=["none", "2 s"]
)
async def test_a_limit_of_requests_is_waited_for(
    nginx: Path, retry_after: int | None, least: float, most: float
) -> None:
    limit = "limit_req zone=all burst=4 nodelay; limit_req_status 429;"
    if retry_after:
        limit += "add_header Retry-After $retry_after always;"
    fake = FakeGateway(FIRST_KEY)
    events: list[gz_trio.ReplyEvent] = []
    async with (
        served(fake, nginx, limit) as front,
        chats(front.base_url, FIRST_KEY) as sessions,
        trio.open_nursery() as nursery,
    ):
        for number, session in enumerate(sessions):
            nursery.start_soon(listen, session, f"Chat {number}.", events)
    assert_whole(fake, *sessions)
    waits = [event.wait for event in events if isinstance(event, gz_trio.RateLimited)]
    assert len(waits) == front.statuses()[429] > 0
    assert all(least <= wait <= most for wait in waits)


async def test_a_server_that_is_down_is_waited_for(nginx: Path) -> None:
    fake = FakeGateway(FIRST_KEY)
    port = free_port()
    with running(Front(nginx, port)) as front:
        async with (
            gz_trio.open_session(front.base_url, model="fake-model", key=FIRST_KEY) as session,
            AsyncExitStack() as stack,
            session.stream("Hello.") as reply,
        ):
            async for event in reply.events():
                if isinstance(event, gz_trio.Paused):
                    await stack.enter_async_context(fake.listen(port=port))
            assert_whole(fake, session)
        assert front.statuses() == {502: 1, 200: 1}
    assert [attempt.cause and attempt.cause.status for attempt in reply.attempts] == [502, None]


@pytest.mark.parametrize(("token", "status"), [(None, 504), (5, None)])
async def test_a_server_that_is_silent_is_given_up_and_asked_again(
    nginx: Path, token: int | None, status: int | None
) -> None:
    fake = FakeGateway(FIRST_KEY)
    fake.fault(Stall(seconds=60.0), token=token)
    events: list[gz_trio.ReplyEvent] = []
    async with (
        served(fake, nginx, "proxy_read_timeout 200ms;") as front,
        gz_trio.open_session(front.base_url, model="fake-model", key=FIRST_KEY) as session,
    ):
        reply = await listen(session, "Hello.", events)
        assert_whole(fake, session)
    assert [event for event in events if not isinstance(event, gz_trio.Delta)] == [
        gz_trio.Paused("reconnect"),
        gz_trio.Resumed(),
        gz_trio.Finished("stop", reply.usage),
    ]
    broken, whole = reply.attempts
    assert isinstance(
        broken.cause, gz_trio.InternalServerError if status else gz_trio.APIConnectionError
    )
    assert broken.cause.status == status
    assert whole.cause is None


async def test_a_connection_that_nginx_closes_while_idle_costs_no_attempt(nginx: Path) -> None:
    fake = FakeGateway(FIRST_KEY)
    attempts: list[int] = []

    async def chat(session: gz_trio.Session, idle: float) -> None:
        first = await listen(session, "Hello.", [])
        await trio.sleep(idle)
        second = await listen(session, "Go on.", [])
        attempts.extend([len(first.attempts), len(second.attempts)])

    async with (
        served(fake, nginx, "keepalive_timeout 1;") as front,
        chats(front.base_url, FIRST_KEY) as sessions,
        trio.open_nursery() as nursery,
    ):
        # Some ask again before it is closed, some after, and some in that very moment.
        for number, session in enumerate(sessions):
            nursery.start_soon(chat, session, 0.95 + 0.01 * number)
    assert_whole(fake, *sessions)
    assert attempts == [1] * (2 * CHATS)


async def test_a_websocket_that_nginx_closes_while_idle_costs_no_attempt(nginx: Path) -> None:
    fake = FakeGateway(FIRST_KEY)
    async with (
        served(fake, nginx, TUNNEL + "proxy_read_timeout 500ms;") as front,
        gz_trio.open_gateway(front.base_url, FIRST_KEY) as gateway,
        gateway.open_session("fake-model", api="responses", transport="websocket") as session,
    ):
        first = await listen(session, "Hello.", [])
        # It is closed right after it was logged, and we may not have seen that yet.
        await until(lambda: front.statuses()[101] == 1)
        second = await listen(session, "Go on.", [])
    assert len(first.attempts) == len(second.attempts) == 1
    assert second.text == fake.intended(fake.requests[-1].body or {})
    assert front.statuses() == {101: 2}


async def test_chats_with_the_engine_come_whole_through_all_habits_at_once(
    engine: Engine, nginx: Path
) -> None:
    candidates = [[f"Chat {number}: hello.", "Go on."] for number in range(2 * CHATS)]
    expected = await plain.whole_chats(engine.base_url, candidates)
    habits = BUFFERS + COMPRESSION + TWO_REQUESTS
    with running(Front(nginx, engine.port, FIRST_KEY, habits=habits)) as front:
        async with gz_trio.open_gateway(front.base_url, FIRST_KEY) as gateway:

            async def chat(messages: list[str]) -> None:
                async with gateway.open_session(MODEL) as session:
                    for question, answer in zip(messages[::2], messages[1::2], strict=True):
                        assert await session.ask(question) == answer

            async with trio.open_nursery() as nursery:
                for messages in expected:
                    nursery.start_soon(chat, messages)
    assert {request.coding for request in front.served()} == {"gzip"}
