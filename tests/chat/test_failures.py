"""Failures that are not the key's: waited for, asked again, or raised, by the retry table."""

from __future__ import annotations

from itertools import product

import pytest
import trio
from trio.testing import MockClock

from gz_trio import (
    APIConnectionError,
    BadRequestError,
    EmptyResponseError,
    Finished,
    GatewayError,
    InternalServerError,
    NotFoundError,
    Paused,
    PaymentRequiredError,
    PermissionDeniedError,
    ProtocolError,
    RateLimited,
    RateLimitError,
    RawEvent,
    Resumed,
    RetryPolicy,
    StreamInterrupted,
    StreamTimeout,
    Timeouts,
    open_gateway,
)
from gz_trio.testing import (
    Comment,
    Cut,
    Drip,
    EarlyDone,
    EmptyStream,
    ErrorFrame,
    FakeGateway,
    Fault,
    OtherText,
    Reset,
    Stall,
    Status,
    Warning_,
)
from tests.chats import BODY, Told, deltas_of, open_over, tell

NO_RETRIES = RetryPolicy(max_retries=0)


async def told_of(
    fake: FakeGateway, *, retry: RetryPolicy | None = None, timeouts: Timeouts | None = None
) -> Told:
    async with open_over(fake, retry=retry, timeouts=timeouts) as gateway:
        return await tell(gateway)


def pause(told: Told) -> Paused | RateLimited | None:
    return next((e for e in told.events if isinstance(e, Paused | RateLimited)), None)


HEADLESS: list[tuple[Fault, str, float, float]] = [
    (Status(429, headers={"retry-after": "7"}), "limit", 7.0, 8.75),
    (Status(429, headers={"retry-after-ms": "7000", "retry-after": "60"}), "limit", 7.0, 8.75),
    (Status(429), "limit", 1.125, 1.5),
    (Status(429, "too many concurrent requests"), "limit", 2.25, 3.0),
    *((Status(n), "reconnect", 1.5, 2.0) for n in (408, 409, 500, 502, 503, 504, 520, 524, 529)),
    (Status(503, headers={"retry-after": "9"}), "reconnect", 9.0, 11.25),
    (Status(502, dialect="html"), "reconnect", 1.5, 2.0),
    (Status(502, dialect="empty"), "reconnect", 1.5, 2.0),
    (Status(400, headers={"x-should-retry": "true"}), "reconnect", 1.5, 2.0),
    (Cut(), "reconnect", 1.5, 2.0),
    (Reset(), "reconnect", 1.5, 2.0),
    (EmptyStream(), "reconnect", 1.5, 2.0),
]

IN_STREAM: list[tuple[Fault, str, float, float]] = [
    (Cut(), "reconnect", 0, 0),
    (Reset(), "reconnect", 0, 0),
    (EarlyDone(done=False), "reconnect", 0, 0),
    (EarlyDone(finish_reason="error"), "reconnect", 1.5, 2.0),
    (ErrorFrame("rate_limit_error"), "limit", 1.125, 1.5),
    *(
        (ErrorFrame(type_, done=done), "reconnect", 1.5, 2.0)
        for type_, done in product(
            ("provider_error", "capacity_error", "timeout_error", "stream_error"), (True, False)
        )
    ),
    (ErrorFrame("provider_error", dialect="openrouter"), "reconnect", 1.5, 2.0),
]


@pytest.mark.parametrize(
    ("fault", "token", "expected"),
    [
        *((fault, None, expected) for fault, *expected in HEADLESS),
        *((fault, 5, expected) for fault, *expected in IN_STREAM),
    ],
)
async def test_a_passing_failure_is_announced_waited_for_and_the_reply_goes_on(
    autojump_clock: MockClock,
    fault: Fault,
    token: int | None,
    expected: tuple[str, float, float],
) -> None:
    kind, least, most = expected
    fake = FakeGateway()
    fake.fault(fault, token=token)
    told = await told_of(fake)
    assert told.error is None
    assert told.text == fake.intended(BODY)
    (paused, resumed, finished) = told.happened
    if kind == "limit":
        assert isinstance(paused, RateLimited)
        assert least <= paused.wait <= most
    else:
        assert paused == Paused("reconnect")
    assert (resumed, type(finished)) == (Resumed(), Finished)
    assert least <= told.seconds <= most
    assert told.reply.timing.paused == told.seconds
    assert (len(fake.requests), fake.refreshes) == (2, 0)


async def test_the_announced_wait_is_the_wait(autojump_clock: MockClock) -> None:
    fake = FakeGateway()
    fake.fault(Status(429, headers={"retry-after": "30"}), times=2)
    told = await told_of(fake)
    waits = [event.wait for event in told.events if isinstance(event, RateLimited)]
    assert len(waits) == 2
    assert told.seconds == pytest.approx(sum(waits))


@pytest.mark.parametrize(
    ("fault", "error_class", "status"),
    [
        (Status(400), BadRequestError, 400),
        (Status(402), PaymentRequiredError, 402),
        (Status(403), PermissionDeniedError, 403),
        (Status(404), NotFoundError, 404),
        (Status(413), BadRequestError, 413),
        (Status(422), BadRequestError, 422),
        (Status(429, code="insufficient_quota", dialect="openai"), PaymentRequiredError, 429),
        (Status(429, headers={"retry-after": "121"}), RateLimitError, 429),
        (Status(503, headers={"x-should-retry": "false"}), InternalServerError, 503),
        (Status(200, body="<html>Welcome</html>"), ProtocolError, 200),
        (Status(200, body={"hello": "world"}), ProtocolError, None),
        (Status(200, body=b""), ProtocolError, 200),
    ],
)
async def test_what_no_retry_can_help_is_raised_at_once(
    autojump_clock: MockClock, fault: Fault, error_class: type[GatewayError], status: int | None
) -> None:
    fake = FakeGateway()
    fake.fault(fault)
    told = await told_of(fake)
    assert type(told.error) is error_class
    assert isinstance(told.error, GatewayError)
    assert told.error.status == status
    assert (told.seconds, told.events, len(fake.requests)) == (0, [], 1)


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


# Timeouts


@pytest.mark.parametrize(
    ("token", "timeouts", "words", "seconds"),
    [
        (None, Timeouts(first_token=10), "no first token came within 10 s", 10),
        (0, Timeouts(first_token=10), "no first token came within 10 s", 10),
        (5, Timeouts(between_tokens=20), "no next token came within 20 s", 20),
        (None, Timeouts.interactive(), "no first token came within 10 s", 10),
        (5, Timeouts.interactive(), "no next token came within 30 s", 30),
        (None, Timeouts(), "no first token came within 300 s", 300),
        (5, Timeouts(), "no next token came within 120 s", 120),
    ],
)
async def test_a_stall_says_which_timeout_passed_and_is_retried_once(
    autojump_clock: MockClock, token: int | None, timeouts: Timeouts, words: str, seconds: float
) -> None:
    fake = FakeGateway()
    fake.fault(Stall(), token=token, times=None)
    told = await told_of(fake, timeouts=timeouts)
    assert type(told.error) is StreamTimeout
    assert str(told.error) == words
    assert told.error.partial == told.text
    assert (told.seconds, len(fake.requests)) == (2 * seconds, 2)
    assert told.happened == [Paused("reconnect")]


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


@pytest.mark.parametrize("sign_of_life", [Comment("ping"), Warning_()])
async def test_any_bytes_are_a_sign_of_life(autojump_clock: MockClock, sign_of_life: Fault) -> None:
    fake = FakeGateway(tokens=3)
    for _ in range(5):
        fake.fault(Stall(25), token=2)
        fake.fault(sign_of_life, token=2)
    told = await told_of(fake, timeouts=Timeouts.interactive())
    assert (told.error, told.text, told.seconds) == (None, fake.intended(BODY), 125)


async def test_a_slow_drip_is_no_timeout(autojump_clock: MockClock) -> None:
    fake = FakeGateway(tokens=2)
    fake.fault(Drip(1.0))
    told = await told_of(fake, timeouts=Timeouts.interactive())
    assert (told.error, told.text) == (None, fake.intended(BODY))


async def test_a_slow_reader_is_no_timeout(autojump_clock: MockClock) -> None:
    fake = FakeGateway(answer=lambda _, __: ["x" * 10_000] * 100)
    async with (
        open_over(fake, timeouts=Timeouts.interactive()) as gateway,
        gateway.stream(BODY) as reply,
    ):
        async for _ in reply:
            await trio.sleep(20)
    assert reply.text == "x" * 1_000_000
    assert len(fake.requests) == 1


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
