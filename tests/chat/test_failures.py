"""Failures that are not the key's: waited for, asked again, or raised, by the retry table."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from email.utils import formatdate
from itertools import product
from typing import Literal

import pytest
import trio
from trio.testing import MockClock

from gz_trio import (
    APIConnectionError,
    AuthenticationError,
    BadRequestError,
    EmptyResponseError,
    Finished,
    GatewayError,
    InternalServerError,
    Key,
    MemoryKeyStore,
    NotFoundError,
    Paused,
    PaymentRequiredError,
    PermissionDeniedError,
    ProtocolError,
    RateLimited,
    RateLimitError,
    RawEvent,
    Resumed,
    ResumePolicy,
    RetryPolicy,
    StreamInterrupted,
    open_gateway,
)
from gz_trio._auth.authenticator import Refresh
from gz_trio.testing import (
    DIALECTS,
    Cut,
    Drip,
    EarlyDone,
    EmptyStream,
    ErrorFrame,
    FakeGateway,
    Fault,
    Insert,
    OtherText,
    Reset,
    Stall,
    Status,
    Warning_,
)
from tests.chats import BODY, RESTART, Told, deltas_of, open_over, tell

NO_RETRIES = RetryPolicy(max_retries=0)
NOW = 1_800_000_000.0
"""Unix time when a test's clock is at 0."""
GUEST = "GUEST_NOT_CONFIGURED"
SHOULD_RETRY = {"x-should-retry": "true"}
SHOULD_NOT_RETRY = {"x-should-retry": "false"}


@pytest.fixture(autouse=True)
def no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a wait is exactly what the table says."""
    monkeypatch.setattr(random, "random", lambda: 0.0)


async def told_of(
    fake: FakeGateway,
    *,
    key: str | None = None,
    refresh: Refresh | Literal["fake"] = "fake",
    retry: RetryPolicy | None = None,
    resume: ResumePolicy | None = None,
    on_event: Callable[[Told], object] = lambda _: None,
) -> Told:
    async with open_over(
        fake,
        key=key,
        refresh=refresh,
        retry=retry,
        resume=resume,
        now=lambda: NOW + trio.current_time(),
    ) as gateway:
        return await tell(gateway, on_event=on_event)


class Waits:
    """Notes when a reply told of a wait, as an `on_event` of `tell`."""

    def __init__(self) -> None:
        self.told: list[tuple[float, Paused | RateLimited]] = []

    def __call__(self, told: Told) -> None:
        event = told.events[-1]
        if isinstance(event, Paused | RateLimited):
            self.told.append((trio.current_time(), event))


def reset(seconds: float) -> str:
    return f"{NOW + seconds:.0f}"


def limited(**headers: str) -> Status:
    return Status(429, headers={name.replace("_", "-"): v for name, v in headers.items()})


def should(retry: Mapping[str, str], *statuses: int) -> list[Status]:
    return [Status(status, headers=retry) for status in statuses]


# What passes is waited for

WAIT, RECONNECT = RateLimited, Paused("reconnect")
FRAME_DIALECTS: tuple[Literal["gatewayz", "openrouter"], ...] = ("gatewayz", "openrouter")

IN_PLACE_OF_A_REPLY: list[tuple[Fault, RateLimited | Paused, float]] = [
    (Status(429), WAIT(1.5), 1.5),
    (Status(429, dialect="html"), WAIT(1.5), 1.5),
    (Status(429, dialect="empty"), WAIT(1.5), 1.5),
    (Status(429, headers=SHOULD_RETRY), WAIT(1.5), 1.5),
    # How long: `Retry-After`, in all its forms.
    (limited(retry_after="7"), WAIT(7), 7),
    (limited(retry_after="1"), WAIT(1.5), 1.5),
    (limited(retry_after="120"), WAIT(120), 120),
    (limited(retry_after=formatdate(NOW + 30, usegmt=True)), WAIT(30), 30),
    (limited(retry_after_ms="7000", retry_after="60"), WAIT(7), 7),
    (Status(429, body={"error": {"context": {"retry_after": 8}}}), WAIT(8), 8),
    (Status(503, headers={"retry-after": "9"}), RECONNECT, 9),
    (
        Status(503, headers={"retry-after": formatdate(NOW + 9, usegmt=True)}),
        RECONNECT,
        9,
    ),
    # ... or the reset of the limit that is used up.
    (limited(ratelimit_reset="9"), WAIT(9), 9),
    (limited(retry_after="7", ratelimit_reset="9"), WAIT(7), 7),
    (limited(x_ratelimit_reset_requests=reset(9)), WAIT(9), 9),
    (limited(x_ratelimit_reset_requests=reset(9) + "000"), WAIT(9), 9),
    (limited(x_ratelimit_reset_tokens="1m9s"), WAIT(69), 69),
    (limited(x_ratelimit_reset_tokens="12ms"), WAIT(1.5), 1.5),
    (limited(anthropic_ratelimit_requests_reset="2027-01-15T08:00:09Z"), WAIT(9), 9),
    (
        limited(
            x_ratelimit_remaining_requests="0",
            x_ratelimit_reset_requests="9s",
            x_ratelimit_remaining_tokens="149984",
            x_ratelimit_reset_tokens="6m0s",
        ),
        WAIT(9),
        9,
    ),
    # Whose limit it is.
    (limited(x_ratelimit_scope="upstream", retry_after="9"), WAIT(9), 9),
    (limited(x_ratelimit_scope="upstream"), WAIT(1.5), 1.5),
    (Status(429, "Burst limit exceeded"), WAIT(3), 3),
    (Status(429, "too many concurrent requests"), WAIT(3), 3),
    (Status(429, "burst", headers={"retry-after": "9"}), WAIT(9), 9),
    # Failures.
    *(
        (Status(status), RECONNECT, 2)
        for status in (408, 409, 500, 502, 503, 504, *range(520, 525), 529)
    ),
    *((Status(502, dialect=dialect), RECONNECT, 2) for dialect in DIALECTS),
    *((fault, RECONNECT, 2) for fault in should(SHOULD_RETRY, 400, 403, 404, 413, 422, 501)),
    (Status(200, body={"error": {"code": 503, "message": "busy"}}), RECONNECT, 2),
    (Cut(), RECONNECT, 2),
    (Reset(), RECONNECT, 2),
    (EmptyStream(), RECONNECT, 2),
]

IN_THE_STREAM: list[tuple[Fault, RateLimited | Paused, float]] = [
    (Cut(), RECONNECT, 0),
    (Reset(), RECONNECT, 0),
    (EarlyDone(done=False), RECONNECT, 0),
    (EarlyDone(finish_reason="error"), RECONNECT, 2),
    (EarlyDone(finish_reason="error", done=False), RECONNECT, 2),
    (ErrorFrame("rate_limit_error"), WAIT(1.5), 1.5),
    (ErrorFrame("rate_limit_error", "too many concurrent requests"), WAIT(3), 3),
    (ErrorFrame("rate_limit_error", dialect="openrouter"), WAIT(1.5), 1.5),
    (ErrorFrame(data={"error": {"code": 429, "retry_after": 9}}), WAIT(9), 9),
    *(
        (ErrorFrame(type_, done=done, dialect=dialect), RECONNECT, 2)
        for type_ in (
            "provider_error",
            "capacity_error",
            "timeout_error",
            "stream_error",
            "stream_timeout",
            "empty_stream_error",
        )
        for done in (True, False)
        for dialect in FRAME_DIALECTS
    ),
    (ErrorFrame(data={"type": "error", "error": {"type": "overloaded_error"}}), RECONNECT, 2),
    (ErrorFrame(data={"error": "something broke"}), RECONNECT, 2),
]


@pytest.mark.parametrize(
    ("fault", "token", "announced", "seconds"),
    [
        *((fault, None, *row) for fault, *row in IN_PLACE_OF_A_REPLY),
        *((fault, 5, *row) for fault, *row in IN_THE_STREAM),
    ],
)
async def test_a_passing_failure_is_announced_waited_for_and_the_reply_goes_on(
    autojump_clock: MockClock,
    fault: Fault,
    token: int | None,
    announced: RateLimited | Paused,
    seconds: float,
) -> None:
    fake = FakeGateway()
    fake.fault(fault, token=token)
    waits = Waits()
    told = await told_of(fake, on_event=waits)
    assert (told.error, told.text) == (None, fake.intended(BODY))
    assert waits.told == [(0, announced)]  # before the wait begins
    assert told.happened[:-1] == [announced, Resumed()]
    assert isinstance(told.events[-1], Finished)
    assert (told.seconds, told.reply.timing.paused) == (seconds, seconds)
    assert (len(fake.requests), fake.refreshes) == (2, 0)


# What needs another key is refreshed


@pytest.mark.parametrize(
    "fault",
    [
        *(Status(401, dialect=dialect) for dialect in DIALECTS),
        Status(401, headers={"retry-after": "60"}),
        Status(401, headers=SHOULD_RETRY),
        Status(401, headers=SHOULD_NOT_RETRY),
        Status(401, type="expired_key", dialect="litellm"),
        Status(401, type="token_not_found_in_db", dialect="litellm"),
        Status(400, code="invalid_api_key", dialect="openai"),
        Status(500, type="auth_error", dialect="litellm"),
        Status(500, "Failed to get chat stats: 401: Invalid API key", dialect="detail"),
        Status(500, "Failed to get chat stats: 401: API key is required"),
    ],
)
async def test_a_rejected_key_is_announced_refreshed_once_and_the_reply_goes_on(
    autojump_clock: MockClock, fault: Fault
) -> None:
    fake = FakeGateway()
    fake.fault(fault)
    waits = Waits()

    async def refresh(_: Key | None) -> str:
        fake.refreshes += 1
        await trio.sleep(5)
        return fake.rotate()

    told = await told_of(fake, refresh=refresh, on_event=waits)
    assert (told.error, told.text) == (None, fake.intended(BODY))
    assert waits.told == [(0, Paused("refresh"))]
    assert told.happened[:-1] == [Paused("refresh"), Resumed()]
    assert (told.seconds, told.reply.timing.paused) == (5, 5)
    assert (len(fake.requests), fake.refreshes) == (2, 1)


# The rest is raised

RAISED: list[tuple[Fault, type[GatewayError], int | None]] = [
    (Status(302, headers={"location": "/login"}), BadRequestError, 302),
    (Status(400), BadRequestError, 400),
    (Status(402), PaymentRequiredError, 402),
    (Status(402, headers=SHOULD_RETRY), PaymentRequiredError, 402),
    *((Status(403, dialect=d), PermissionDeniedError, 403) for d in DIALECTS),
    (Status(403, type="auth_error", dialect="litellm"), PermissionDeniedError, 403),
    (Status(404), NotFoundError, 404),
    (Status(404, dialect="html"), NotFoundError, 404),
    (Status(405), BadRequestError, 405),
    (Status(413), BadRequestError, 413),
    (Status(413, dialect="html"), BadRequestError, 413),
    (Status(422), BadRequestError, 422),
    (Status(422, body={"detail": [{"msg": "Field required"}]}), BadRequestError, 422),
    (Status(501), InternalServerError, 501),
    (Status(401, code=GUEST), AuthenticationError, 401),
    (Status(401, code=GUEST, dialect="openai"), AuthenticationError, 401),
    (Status(401, code=GUEST, headers=SHOULD_RETRY), AuthenticationError, 401),
    *(
        (Status(429, code=code, dialect="openai", headers=headers), PaymentRequiredError, 429)
        for code, headers in product(
            ("insufficient_quota", "DAILY_QUOTA_EXCEEDED", "plan_limit_exceeded"),
            ({"retry-after": "1"}, SHOULD_RETRY),
        )
    ),
    (Status(400, type="budget_exceeded", dialect="litellm"), PaymentRequiredError, 400),
    (limited(retry_after="121"), RateLimitError, 429),
    (limited(retry_after_ms="120001"), RateLimitError, 429),
    (limited(retry_after=formatdate(NOW + 121, usegmt=True)), RateLimitError, 429),
    (limited(x_ratelimit_reset_requests=reset(121)), RateLimitError, 429),
    (limited(retry_after="121", x_ratelimit_scope="upstream"), RateLimitError, 429),
    (Status(503, headers={"retry-after": "121"}), InternalServerError, 503),
    *((fault, RateLimitError, 429) for fault in should(SHOULD_NOT_RETRY, 429)),
    *((fault, BadRequestError, fault.status) for fault in should(SHOULD_NOT_RETRY, 408, 409)),
    *(
        (fault, InternalServerError, fault.status)
        for fault in should(SHOULD_NOT_RETRY, 500, 502, 503, 504, 520, 529)
    ),
    (Status(200, dialect="html"), ProtocolError, 200),
    (Status(200, body={"hello": "world"}), ProtocolError, None),
    (Status(200, body=b""), ProtocolError, 200),
    (Status(200, body={"error": {"code": 402}}), PaymentRequiredError, 402),
]

RAISED_IN_THE_STREAM: list[tuple[Fault, type[GatewayError], int | None]] = [
    (ErrorFrame("plan_limit_exceeded"), PaymentRequiredError, 429),
    (ErrorFrame("not_found_error"), NotFoundError, 404),
    (ErrorFrame("auth_error", status=403), PermissionDeniedError, 403),
    (ErrorFrame("auth_error", code=GUEST), AuthenticationError, 401),
    (ErrorFrame("provider_error", status=401), InternalServerError, 401),
    (ErrorFrame("provider_error", status=400), BadRequestError, 400),
    (ErrorFrame(code=402, dialect="openrouter"), PaymentRequiredError, 402),
    (ErrorFrame(code=403, dialect="openrouter"), PermissionDeniedError, 403),
    (ErrorFrame(data={"error": {"code": 429, "retry_after": 121}}), RateLimitError, 429),
    (ErrorFrame(data=b"<html>"), ProtocolError, None),
]


@pytest.mark.parametrize(
    ("fault", "token", "error_class", "status"),
    [
        *((fault, None, *row) for fault, *row in RAISED),
        *((fault, 5, *row) for fault, *row in RAISED_IN_THE_STREAM),
    ],
)
async def test_what_no_retry_and_no_key_can_help_is_raised_at_once(
    autojump_clock: MockClock,
    fault: Fault,
    token: int | None,
    error_class: type[GatewayError],
    status: int | None,
) -> None:
    fake = FakeGateway()
    fake.fault(fault, token=token)
    told = await told_of(fake)
    assert type(told.error) is error_class
    assert isinstance(told.error, GatewayError)
    assert told.error.status == status
    assert told.error.partial == told.text
    assert sum(bool(delta.text) for delta in deltas_of(told)) == (token or 0)
    assert (told.seconds, told.happened) == (0, [])
    assert (len(fake.requests), fake.refreshes) == (1, 0)


async def test_a_page_of_a_proxy_in_place_of_the_second_answer_keeps_the_text_so_far(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway()
    fake.fault(Cut(), token=5)
    fake.fault(Status(200, dialect="html"), request=2)
    told = await told_of(fake)
    assert type(told.error) is ProtocolError
    assert told.error.partial == told.text
    assert len(told.text) > 0


# Again and again: the budget is of the whole reply


@pytest.mark.parametrize(
    ("fault", "token", "waits"),
    [
        (Status(503), None, [2, 4, 8, 16, 30, 30, 30]),
        (Cut(), None, [2, 4, 8, 16, 30, 30, 30]),
        (Status(429), None, [1.5, 3, 6, 12, 15, 15, 15]),
        (Status(429, "burst"), None, [3, 6, 12, 24, 30, 30, 30]),
        (limited(retry_after="9"), None, [9, 9, 9, 12, 15, 15, 15]),
        (limited(x_ratelimit_scope="upstream", retry_after="9"), None, [9]),
        (limited(x_ratelimit_scope="upstream"), None, [1.5]),
        (Cut(), 5, [0, 2, 4, 8, 16, 30, 30]),
        (ErrorFrame("provider_error"), 5, [2, 4, 8, 16, 30, 30, 30]),
        (ErrorFrame("rate_limit_error"), 5, [1.5, 3, 6, 12, 15, 15, 15]),
    ],
)
async def test_what_does_not_pass_is_tried_seven_times_more_with_growing_waits(
    autojump_clock: MockClock, fault: Fault, token: int | None, waits: list[float]
) -> None:
    fake = FakeGateway()
    fake.fault(fault, token=token, times=None)
    told_waits = Waits()
    told = await told_of(fake, on_event=told_waits)
    assert isinstance(told.error, GatewayError)
    assert told.error.partial == told.text
    starts = [sum(waits[:n]) for n in range(len(waits))]
    assert [when for when, _ in told_waits.told] == starts
    for (_, event), seconds in zip(told_waits.told, waits, strict=True):
        assert event in (Paused("reconnect"), RateLimited(seconds))
    assert told.seconds == sum(waits)
    assert (len(fake.requests), fake.refreshes) == (1 + len(waits), 0)
    assert [attempt.started for attempt in told.reply.attempts] == [*starts, told.seconds]


async def test_progress_gives_no_retries_back(autojump_clock: MockClock) -> None:
    """Each attempt breaks a token later than the one before; the fourth is one too many."""
    fake = FakeGateway()
    for attempt in range(1, 10):
        fake.fault(Cut(), request=attempt, token=attempt)
    told = await told_of(fake, retry=RetryPolicy(max_retries=3))
    assert type(told.error) is StreamInterrupted
    assert sum(bool(delta.text) for delta in deltas_of(told)) == 4
    assert (told.seconds, len(fake.requests)) == (0 + 2 + 4, 4)


async def test_each_kind_of_failure_waits_by_its_own_row_but_all_have_one_budget(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway()
    faults: list[tuple[Fault, int | None]] = [
        (Status(429), None),  # 1.5
        (Status(503), None),  # 2
        (Cut(), 2),  # 0
        (Status(429), None),  # 3
        (ErrorFrame("rate_limit_error"), 4),  # 6
        (Status(429, "burst"), None),  # 3
        (ErrorFrame("capacity_error"), 6),  # 4
        (Status(502), None),  # raised
    ]
    for request, (fault, token) in enumerate(faults, 1):
        fake.fault(fault, request=request, token=token)
    waits = Waits()
    told = await told_of(fake, on_event=waits)
    assert isinstance(told.error, InternalServerError)
    assert told.error.partial == told.text
    assert [when for when, _ in waits.told] == [0, 1.5, 3.5, 3.5, 6.5, 12.5, 15.5]
    assert told.seconds == 19.5
    assert len(fake.requests) == 8


async def test_refreshes_cost_no_retries(autojump_clock: MockClock) -> None:
    fake = FakeGateway()
    fake.fault(Status(503), request=1)
    fake.fault(Status(401), request=2)
    fake.fault(ErrorFrame("auth_error"), request=3, token=3)
    fake.fault(Status(401), request=4)
    fake.fault(Status(503), request=5)

    async def refresh(_: Key | None) -> str:
        fake.refreshes += 1
        return fake.rotate()

    told = await told_of(fake, refresh=refresh, retry=RetryPolicy(max_retries=2))
    assert (told.error, told.text) == (None, fake.intended(BODY))
    assert told.happened[:-1] == [
        Paused("reconnect"),
        Paused("refresh"),
        Resumed(),
        Paused("reconnect"),
        Paused("refresh"),
        Paused("reconnect"),
        Resumed(),
    ]
    assert (len(fake.requests), fake.refreshes) == (6, 2)


async def test_a_401_after_the_wait_for_a_limit_is_refreshed_in_the_same_pause(
    autojump_clock: MockClock,
) -> None:
    """The key may die while a retry waits."""
    fake = FakeGateway(auth_latency=5)
    fake.fault(limited(retry_after="30"))

    waits = Waits()

    def on_event(told: Told) -> None:
        waits(told)
        if isinstance(told.events[-1], RateLimited):
            fake.expire()

    told = await told_of(fake, on_event=on_event)
    assert (told.error, told.text) == (None, fake.intended(BODY))
    assert waits.told == [(0, RateLimited(30)), (30, Paused("refresh"))]
    assert told.happened.count(Resumed()) == 1
    assert (told.seconds, told.reply.timing.paused) == (35, 35)
    assert (len(fake.requests), fake.refreshes) == (3, 1)


LITELLM = Status(
    401,
    "litellm.AuthenticationError: OpenAIException - Incorrect API key provided",
    type="authentication_error",
    dialect="litellm",
)


@pytest.mark.parametrize(
    ("fault", "token", "asked"), [(LITELLM, None, 1), (ErrorFrame("auth_error"), 0, 2)]
)
async def test_a_model_that_rejects_each_fresh_key_costs_no_refresh_once_another_has_proven_it(
    autojump_clock: MockClock, fault: Fault, token: int | None, asked: int
) -> None:
    """It is the gateway's own key with that model's provider that is dead."""
    fake = FakeGateway(models=None)

    async def refresh(_: Key | None) -> str:
        fake.refreshes += 1
        return fake.rotate()

    async with open_over(fake, refresh=refresh) as gateway:

        async def ask(model: str, *, rejected: int = 0) -> Told:
            fake.requests.clear()
            fake.refreshes = 0
            if rejected:
                fake.fault(fault, token=token, times=rejected)
            return await tell(gateway, {**BODY, "model": model})

        first = await ask("dead", rejected=3 * asked)  # under three keys in turn
        assert isinstance(first.error, AuthenticationError)
        assert (len(fake.requests), fake.refreshes) == (3 * asked, 2)
        assert (await ask("alive")).error is None
        for _ in range(2):
            again = await ask("dead", rejected=asked)
            assert isinstance(again.error, AuthenticationError)
            assert "the model 'dead'" in str(again.error)
            assert "no refresh helps" in str(again.error)
            assert (len(fake.requests), fake.refreshes) == (asked, 0)
        await trio.sleep(60)
        assert (await ask("dead")).error is None


async def test_restarts_do_not_make_auth_errors_endless(autojump_clock: MockClock) -> None:
    """Each sampled answer is new text, but none of them is progress."""
    fake = FakeGateway(answer=lambda _, attempt: [f"{attempt}:", " a", " b", " c"])
    fake.fault(ErrorFrame("auth_error"), token=3, times=None)

    async def refresh(_: Key | None) -> str:
        return fake.rotate()

    told = await told_of(fake, refresh=refresh, resume=RESTART)
    assert isinstance(told.error, AuthenticationError)
    assert told.error.partial == told.text
    assert len(fake.requests) <= 7


@pytest.mark.parametrize(
    ("fault", "seconds"),
    [
        (limited(retry_after="30"), 33.75),
        (Status(503, headers={"retry-after": "30"}), 33.75),
        (limited(x_ratelimit_reset_requests=reset(30)), 33.75),
        (Status(429), 1.3125),
        (Status(503), 1.75),
    ],
)
async def test_jitter_makes_our_own_waits_shorter_and_those_of_the_server_longer(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, fault: Fault, seconds: float
) -> None:
    monkeypatch.setattr(random, "random", lambda: 0.5)
    fake = FakeGateway()
    fake.fault(fault)
    told = await told_of(fake)
    assert told.seconds == seconds
    assert told.happened[0] in (RateLimited(seconds), Paused("reconnect"))


# Every wait can be cancelled


async def never(_: Key | None) -> str:
    await trio.sleep_forever()
    raise AssertionError


@pytest.mark.parametrize(
    ("fault", "token"),
    [
        pytest.param(limited(retry_after="60"), None, id="a limit"),
        pytest.param(Status(503, headers={"retry-after": "60"}), None, id="a failure"),
        pytest.param(ErrorFrame(data={"error": {"retry_after": 60}}), 5, id="an error frame"),
        pytest.param(Status(401), None, id="a refresh"),
        pytest.param(Stall(), None, id="the first token"),
        pytest.param(Stall(), 0, id="the first token after the head"),
        pytest.param(Stall(), 5, id="the next token"),
        pytest.param(Drip(10), None, id="the head"),
        pytest.param(Drip(10), 5, id="the rest of an event"),
    ],
)
async def test_every_wait_can_be_cancelled_and_nothing_is_asked_for_after_it(
    autojump_clock: MockClock, fault: Fault, token: int | None
) -> None:
    fake = FakeGateway()
    fake.fault(fault, token=token, times=None)
    async with open_over(fake, refresh=never) as gateway:
        with trio.move_on_after(1) as scope:
            await tell(gateway)
        assert (scope.cancelled_caught, trio.current_time()) == (True, 1)
        await trio.sleep(1000)
        assert (len(fake.requests), fake.open_streams) == (1, 0)
    assert trio.current_time() == 1001


async def test_the_wait_for_the_first_key_is_announced(autojump_clock: MockClock) -> None:
    fake = FakeGateway(auth_latency=25)
    waits = Waits()
    async with open_over(fake, store=MemoryKeyStore()) as gateway:
        told = await tell(gateway, on_event=waits)
    assert (told.error, told.text) == (None, fake.intended(BODY))
    assert waits.told == [(0, Paused("refresh"))]
    assert told.happened[:-1] == [Paused("refresh"), Resumed()]


# Errors name what they are about


async def test_an_unknown_model_is_named_with_the_gateway(autojump_clock: MockClock) -> None:
    fake = FakeGateway()
    async with open_over(fake) as gateway:
        told = await tell(gateway, {**BODY, "model": "gpt-none"})
    assert isinstance(told.error, NotFoundError)
    assert "'gpt-none'" in str(told.error)
    assert "http://gateway.test" in str(told.error)


async def test_max_retries_counts_the_attempts_after_the_first(autojump_clock: MockClock) -> None:
    fake = FakeGateway()
    fake.fault(Status(503), times=None)
    told = await told_of(fake, retry=RetryPolicy(max_retries=3))
    assert isinstance(told.error, InternalServerError)
    assert len(fake.requests) == 4


async def test_a_gateway_that_is_down_is_tried_again_then_named(autojump_clock: MockClock) -> None:
    fake = FakeGateway()
    fake.refuse_connections = True
    told = await told_of(fake, retry=RetryPolicy(max_retries=2))
    assert type(told.error) is APIConnectionError
    assert "http://gateway.test" in str(told.error)
    assert told.happened == [Paused("reconnect")] * 2
    assert told.error.partial == ""


@pytest.mark.parametrize("fault", [Cut(), Reset(), EarlyDone(done=False)])
async def test_a_reply_that_breaks_for_good_is_interrupted_with_its_exact_text(
    autojump_clock: MockClock, fault: Fault
) -> None:
    fake = FakeGateway()
    fake.fault(fault, token=5, times=None)
    told = await told_of(fake, retry=RetryPolicy(max_retries=2))
    assert type(told.error) is StreamInterrupted
    assert told.error.partial == told.text
    assert len([delta for delta in deltas_of(told) if delta.text]) == 5
    assert isinstance(told.error.__cause__, APIConnectionError)
    assert not told.reply.complete


BODY_BYTES = 3000
"""More than the answer of `FakeGateway(tokens=6)`."""


@pytest.mark.parametrize("fault_class", [Cut, Reset])
async def test_a_connection_dropped_at_any_byte_loses_and_doubles_nothing(
    autojump_clock: MockClock, fault_class: type[Cut | Reset]
) -> None:
    fake = FakeGateway(tokens=6)
    whole = fake.intended(BODY)
    async with open_over(fake) as gateway:
        for size in range(0, BODY_BYTES, 23):
            fake.requests.clear()
            fake.fault(fault_class(after_bytes=size), token=0)
            told = await tell(gateway)
            assert (told.error, told.text, told.reply.complete) == (None, whole, True), size
            assert isinstance(told.events[-1], Finished)
            assert len(fake.requests) <= 2
        assert len(fake.requests) == 1  # the last one was past the end


async def test_nothing_is_asked_for_again_once_the_reply_is_whole(
    autojump_clock: MockClock,
) -> None:
    """Wherever the connection breaks: one of these bytes is the last before the body's end.

    Of about 810 bytes; the finish reason is at about 580.
    """
    fake = FakeGateway(tokens=1)
    whole: list[int] = []
    async with open_over(fake) as gateway:
        for size in range(500, 900):
            fake.requests.clear()
            fake.fault(Reset(after_bytes=size), token=0)
            async with gateway.stream(BODY) as reply:
                events = [event async for event in reply.events()]
                await trio.sleep(10)  # the receiving task may go on behind the reader's back
                assert [event async for event in reply.events()] == []
            assert sum(isinstance(event, Finished) for event in events) == 1
            if len(fake.requests) == 1:
                whole.append(size)
    # From the byte on with which the reply was complete, and from there always.
    assert len(whole) > 1
    assert whole == list(range(whole[0], 900))


async def test_over_tcp_a_reset_connection_is_taken_up_again() -> None:
    fake = FakeGateway(tokens=30)
    fake.fault(Reset(), token=10)
    fake.fault(Cut(after_bytes=2000), request=2, token=0)
    async with (
        fake.listen() as base_url,
        open_gateway(base_url, fake.key) as gateway,
    ):
        told = await tell(gateway)
    assert (told.error, told.text) == (None, fake.intended(BODY))


# What is whole, and what is not


async def test_an_empty_answer_is_asked_for_again(autojump_clock: MockClock) -> None:
    fake = FakeGateway(answer=lambda _, attempt: [] if attempt == 1 else ["Once", " upon"])
    told = await told_of(fake)
    assert (told.error, told.text, told.reply.finish_reason) == (None, "Once upon", "stop")
    assert told.happened[:-1] == [Paused("reconnect"), Resumed()]


async def test_an_answer_that_stays_empty_is_an_error(autojump_clock: MockClock) -> None:
    fake = FakeGateway(answer=lambda _, __: [])
    told = await told_of(fake, retry=RetryPolicy(max_retries=2))
    assert type(told.error) is EmptyResponseError
    assert len(fake.requests) == 3


@pytest.mark.parametrize("fault", [EarlyDone(finish_reason="stop"), EarlyDone()])
async def test_an_end_in_good_order_is_believed(autojump_clock: MockClock, fault: Fault) -> None:
    """Some proxies invent an end when their upstream breaks; nobody can tell that from one."""
    fake = FakeGateway()
    fake.fault(fault, token=5)
    told = await told_of(fake)
    assert told.error is None
    assert told.reply.complete
    assert (fake.intended(BODY).startswith(told.text), len(fake.requests)) == (True, 1)


async def test_done_after_an_error_frame_is_no_success(autojump_clock: MockClock) -> None:
    fake = FakeGateway()
    fake.fault(ErrorFrame("provider_error", done=True), token=12)  # all of the text is there
    told = await told_of(fake, retry=NO_RETRIES)
    assert isinstance(told.error, InternalServerError)
    assert told.error.partial == told.text == fake.intended(BODY)
    assert not told.reply.complete


async def test_after_done_nothing_counts(autojump_clock: MockClock) -> None:
    fake = FakeGateway()
    chunk = b'{"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":"stop"}]}'
    error = b'{"error":{"type":"provider_error"}}'
    fake.fault(Insert(b"data: %b\n\ndata: [DONE]\n\ndata: %b\n\n" % (chunk, error)), token=0)
    told = await told_of(fake)
    assert (told.error, told.text) == (None, "Hi")
    assert len(fake.requests) == 1


async def test_a_warning_and_unknown_events_are_raw_events_and_the_stream_goes_on(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway()
    fake.fault(Warning_("half a chunk"), token=3)
    told = await told_of(fake)
    assert (told.error, told.text) == (None, fake.intended(BODY))
    raw = [event for event in told.events if isinstance(event, RawEvent)]
    assert len(raw) == 1
    assert b"half a chunk" in raw[0].data


async def test_a_lie_on_replay_is_found_out(autojump_clock: MockClock) -> None:
    fake = FakeGateway()
    fake.fault(Cut(), token=5)
    fake.fault(OtherText(), request=2, token=3)
    told = await told_of(fake)
    assert type(told.error) is StreamInterrupted
    assert told.error.partial == told.text
    assert fake.intended(BODY).startswith(told.text)


COMPLETION: dict[str, object] = {
    "object": "chat.completion",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Once upon a time"},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5},
}


async def test_a_whole_completion_from_a_server_that_ignores_stream_is_a_reply(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway()
    fake.fault(Status(200, body=COMPLETION))
    told = await told_of(fake)
    assert told.text == "Once upon a time"
    assert told.reply.finish_reason == "stop"
    assert told.reply.usage is not None
    assert told.reply.usage.total_tokens == 5


async def test_a_whole_completion_that_is_cut_is_asked_for_again(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway()
    fake.fault(Cut(after_bytes=20))
    fake.fault(Status(200, body=COMPLETION), times=2)
    told = await told_of(fake)
    assert (told.error, told.text) == (None, "Once upon a time")
    assert told.happened[:-1] == [Paused("reconnect"), Resumed()]


async def test_an_error_in_a_200_without_a_stream_is_that_error(autojump_clock: MockClock) -> None:
    fake = FakeGateway()
    fake.fault(Status(200, body={"error": {"code": 503, "message": "busy"}}))
    told = await told_of(fake, retry=NO_RETRIES)
    assert isinstance(told.error, InternalServerError)


@pytest.mark.parametrize("status", [400, 422])
async def test_a_server_that_names_stream_options_is_asked_once_more_without(
    autojump_clock: MockClock, status: int
) -> None:
    fake = FakeGateway()
    reason = "Unrecognized request argument supplied: stream_options"
    fake.fault(Status(status, reason, dialect="openai"))
    told = await told_of(fake)
    assert (told.error, told.text) == (None, fake.intended(BODY))
    assert told.happened == [Finished("stop", None)]  # no pause to show
    bodies = [request.body or {} for request in fake.requests]
    assert ["stream_options" in body for body in bodies] == [True, False]
    first, second = told.reply.attempts
    assert isinstance(first.cause, BadRequestError)
    assert second.cause is None


async def test_a_server_that_goes_on_naming_stream_options_is_not_asked_for_ever(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway()
    fake.fault(Status(400, "stream_options", dialect="openai"), times=None)
    told = await told_of(fake)
    assert isinstance(told.error, BadRequestError)
    assert len(fake.requests) == 2
