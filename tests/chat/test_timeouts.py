"""How long a gateway may be silent, and what does not count as its silence."""

from __future__ import annotations

import socket
import sys
from dataclasses import replace
from math import inf

import httpx
import pytest
import trio
from trio.testing import MockClock

from gz_trio import (
    APIConnectionError,
    Paused,
    RetryPolicy,
    StreamTimeout,
    Timeouts,
    open_gateway,
)
from gz_trio.testing import Comment, Cut, Drip, FakeGateway, Fault, Insert, Stall, Status, Warning_
from tests.chats import BODY, Told, open_over, tell


async def told_of(fake: FakeGateway, *, timeouts: Timeouts | None = None) -> Told:
    async with open_over(fake, timeouts=timeouts) as gateway:
        return await tell(gateway)


@pytest.mark.parametrize(
    ("token", "timeouts", "words", "seconds"),
    [
        (None, Timeouts(first_token=7), "no first token came within 7 s", 7),
        (0, Timeouts(first_token=7), "no first token came within 7 s", 7),
        (5, Timeouts(between_tokens=20), "no next token came within 20 s", 20),
        (None, Timeouts.interactive(), "no first token came within 10 s", 10),
        (5, Timeouts.interactive(), "no next token came within 30 s", 30),
        (None, Timeouts(), "no first token came within 300 s", 300),
        (5, Timeouts(), "no next token came within 120 s", 120),
    ],
)
async def test_a_stall_says_which_timeout_passed_and_is_retried_once(
    autojump_clock: MockClock,
    token: int | None,
    timeouts: Timeouts,
    words: str,
    seconds: float,
) -> None:
    fake = FakeGateway()
    fake.fault(Stall(), token=token, times=None)
    told = await told_of(fake, timeouts=timeouts)
    assert type(told.error) is StreamTimeout
    assert (str(told.error), told.error.retryable) == (words, True)
    assert told.error.which == ("between_tokens" if token else "first_token")
    assert told.error.partial == told.text
    assert (told.seconds, len(fake.requests)) == (2 * seconds, 2)
    assert told.happened == [Paused("reconnect")]


async def test_both_token_timeouts_have_one_retry_between_them(autojump_clock: MockClock) -> None:
    fake = FakeGateway()
    fake.fault(Stall(), request=1)
    fake.fault(Stall(), request=2, token=5)
    told = await told_of(fake)
    assert isinstance(told.error, StreamTimeout)
    assert told.error.which == "between_tokens"
    assert (told.seconds, len(fake.requests)) == (300 + 120, 2)


@pytest.mark.parametrize("name", ["first_token", "between_tokens"])
async def test_without_a_timeout_a_reply_waits_for_days(
    autojump_clock: MockClock, name: str
) -> None:
    days = 7 * 86_400.0
    fake = FakeGateway()
    fake.fault(Stall(days), token=0 if name == "first_token" else 5)
    told = await told_of(fake, timeouts=replace(Timeouts(), **{name: None}))
    assert (told.error, told.text, told.seconds) == (None, fake.intended(BODY), days)
    assert len(fake.requests) == 1


@pytest.mark.parametrize("name", ["connect", "first_token", "between_tokens", "total"])
@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_a_timeout_that_is_none_is_refused(name: str, seconds: float) -> None:
    with pytest.raises(ValueError, match=f"^{name} is .*must be more than 0 seconds, or None"):
        replace(Timeouts(), **{name: seconds})


async def test_a_reply_that_stalls_once_is_whole(autojump_clock: MockClock) -> None:
    fake = FakeGateway()
    fake.fault(Stall(), token=5)
    told = await told_of(fake)
    assert (told.error, told.text, told.seconds) == (None, fake.intended(BODY), 120)


async def test_the_total_timeout_spans_all_attempts_and_is_not_retried(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(token_interval=3.0, tokens=100)
    fake.fault(Cut(), token=4)  # after 12 s (the first token comes at once)
    told = await told_of(fake, timeouts=Timeouts(total=20))
    assert type(told.error) is StreamTimeout
    assert str(told.error) == "the reply was not complete after 20 s"
    assert not told.error.retryable
    assert (told.seconds, len(fake.requests)) == (20, 2)


async def test_a_wait_for_a_limit_counts_for_no_timeout(autojump_clock: MockClock) -> None:
    fake = FakeGateway()
    fake.fault(Status(429, headers={"retry-after": "60"}))
    told = await told_of(fake, timeouts=Timeouts(first_token=1, between_tokens=1, total=2))
    assert told.error is None
    assert told.seconds >= 60


ROLE = Insert(b'data: {"choices":[{"index":0,"delta":{"role":"assistant"}}]}\n\n')


@pytest.mark.parametrize(
    "sign_of_life",
    [Comment("ping"), Warning_(), ROLE, Insert(b": p"), Insert(b"event: ping\ndata: {}\n\n")],
)
async def test_any_bytes_are_a_sign_of_life(autojump_clock: MockClock, sign_of_life: Fault) -> None:
    fake = FakeGateway(tokens=3)
    for _ in range(5):
        fake.fault(Stall(25), token=2)
        fake.fault(sign_of_life, token=2)
    fake.fault(Insert(b"\n\n"), token=2)  # ends what was no whole line
    told = await told_of(fake, timeouts=Timeouts.interactive())
    assert (told.error, told.text, told.seconds) == (None, fake.intended(BODY), 125)
    assert len(fake.requests) == 1


@pytest.mark.parametrize("sign_of_life", [Comment("OPENROUTER PROCESSING"), ROLE, Insert(b":")])
async def test_with_the_first_bytes_the_wait_for_a_first_token_is_over(
    autojump_clock: MockClock, sign_of_life: Fault
) -> None:
    fake = FakeGateway()
    fake.fault(Stall(9), token=0, times=None)
    fake.fault(sign_of_life, token=0, times=None)
    fake.fault(Stall(), token=0, times=None)
    told = await told_of(fake, timeouts=Timeouts.interactive())
    assert isinstance(told.error, StreamTimeout)
    assert told.error.which == "between_tokens"
    assert told.seconds == 2 * (9 + 30)


async def test_the_head_of_a_response_is_not_its_first_token(autojump_clock: MockClock) -> None:
    """Gateways send it before they ask the model."""
    fake = FakeGateway()
    fake.fault(Stall(9))
    fake.fault(Stall(9), token=0)
    told = await told_of(fake, timeouts=Timeouts.interactive())
    assert told.happened[0] == Paused("reconnect")
    assert (told.error, told.seconds) == (None, 10)


async def test_a_slow_drip_is_no_timeout(autojump_clock: MockClock) -> None:
    fake = FakeGateway(tokens=2)
    fake.fault(Drip(1.0))
    told = await told_of(fake, timeouts=Timeouts.interactive())
    assert (told.error, told.text) == (None, fake.intended(BODY))


async def test_the_total_timeout_does_not_end_in_the_pause_of_a_refresh_in_mid_stream(
    autojump_clock: MockClock,
) -> None:
    """9 s of tokens, 25 s of pause, and of the replay 11 s of the 22 that it would take."""
    fake = FakeGateway(token_interval=2.0, auth_latency=25.0)

    async def expire() -> None:
        await trio.sleep(9)
        fake.expire()

    async with (
        open_over(fake, timeouts=Timeouts(total=20)) as gateway,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(expire)
        told = await tell(gateway)
    assert isinstance(told.error, StreamTimeout)
    assert (told.error.which, told.error.partial) == ("total", told.text)
    assert told.seconds == 20 + 25
    assert told.reply.timing.paused >= 25


async def test_the_total_timeout_in_a_refresh_is_not_that_of_the_reply(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(key="sk-2", auth_latency=29.0)
    async with open_over(fake, key="sk-1", timeouts=Timeouts(total=1)) as gateway:
        told = await tell(gateway)
    assert (told.error, told.seconds) == (None, 29)


@pytest.mark.parametrize(
    "timeouts", [Timeouts.interactive(), Timeouts(total=60)], ids=["between tokens", "total"]
)
async def test_a_slow_reader_is_no_timeout(autojump_clock: MockClock, timeouts: Timeouts) -> None:
    fake = FakeGateway(answer=lambda _, __: ["x" * 10_000] * 100)
    async with open_over(fake, timeouts=timeouts) as gateway, gateway.stream(BODY) as reply:
        async for _ in reply:
            await trio.sleep(40)
    assert reply.text == "x" * 1_000_000
    assert len(fake.requests) == 1


async def test_the_time_after_a_slow_reader_is_the_gateways_again(
    autojump_clock: MockClock,
) -> None:
    """What the reader took is given back to `total`, and no more."""
    fake = FakeGateway(answer=lambda _, __: ["x" * 10_000] * 40)
    fake.fault(Stall(), token=39)
    async with (
        open_over(fake, timeouts=Timeouts(total=60)) as gateway,
        gateway.stream(BODY) as reply,
    ):
        with pytest.raises(StreamTimeout) as caught:
            async for _ in reply:
                if trio.current_time() < 100:
                    await trio.sleep(100)
    assert caught.value.which == "total"
    assert trio.current_time() == 160


async def test_the_time_of_a_slow_reader_is_not_taken_from_the_next_attempt(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(answer=lambda _, __: ["x" * 10_000] * 40)
    fake.fault(Cut(), token=39)
    fake.fault(Stall(50), request=2, token=39)
    async with (
        open_over(fake, timeouts=Timeouts(total=60)) as gateway,
        gateway.stream(BODY) as reply,
    ):
        async for _ in reply:
            if trio.current_time() < 100:
                await trio.sleep(100)
    assert reply.text == "x" * 400_000
    assert (len(fake.requests), trio.current_time()) == (2, 150)


# Connecting


class Blackhole(httpx.AsyncBaseTransport):
    """A network that drops what is sent: a connection is never made, nor refused."""

    def __init__(self) -> None:
        self.attempts: list[float] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.attempts.append(trio.current_time())
        seconds: float | None = request.extensions["timeout"]["connect"]
        await trio.sleep(inf if seconds is None else seconds)
        raise httpx.ConnectTimeout("", request=request)


async def test_no_connection_within_10_seconds_is_no_connection_and_tried_again(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no `StreamTimeout`: nothing was sent, so it may be tried more than once again."""
    monkeypatch.setattr("random.random", lambda: 0.0)
    blackhole = Blackhole()
    async with (
        httpx.AsyncClient(transport=blackhole) as client,
        open_gateway(
            "http://gateway.test/v1", "sk-1", http_client=client, retry=RetryPolicy(max_retries=3)
        ) as gateway,
    ):
        told = await tell(gateway)
    assert type(told.error) is APIConnectionError
    assert str(told.error) == (
        "no connection to http://gateway.test within 10 s: is the gateway up, and the base URL "
        "right?"
    )
    assert blackhole.attempts == [0, 10 + 2, 22 + 4, 36 + 8]
    assert told.happened == [Paused("reconnect")] * 3


async def test_without_a_connect_timeout_the_first_token_has_the_last_word(
    autojump_clock: MockClock,
) -> None:
    blackhole = Blackhole()
    async with (
        httpx.AsyncClient(transport=blackhole) as client,
        open_gateway(
            "http://gateway.test/v1", "sk-1", http_client=client, timeouts=Timeouts(connect=None)
        ) as gateway,
    ):
        told = await tell(gateway)
    assert isinstance(told.error, StreamTimeout)
    assert (told.error.which, told.seconds) == ("first_token", 600)


@pytest.mark.skipif(sys.platform != "linux", reason="how Linux treats a full backlog")
async def test_over_tcp_a_connection_that_nobody_takes_is_given_up() -> None:
    with socket.socket() as listener, socket.socket() as first:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        first.connect(listener.getsockname())  # the one place in the queue
        port = listener.getsockname()[1]
        async with open_gateway(
            f"http://127.0.0.1:{port}/v1",
            "sk-1",
            timeouts=Timeouts(connect=0.2),
            retry=RetryPolicy(max_retries=0),
        ) as gateway:
            told = await tell(gateway)
    assert type(told.error) is APIConnectionError
    assert f"no connection to http://127.0.0.1:{port} within 0.2 s" in str(told.error)
