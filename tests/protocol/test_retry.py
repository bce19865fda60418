"""The one table: each failure leads to one decision, within a budget of the whole reply."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gz_trio._protocol.errors import (
    RETRYABLE_STATUSES,
    APIConnectionError,
    AuthenticationError,
    BadRequestError,
    EmptyResponseError,
    GatewayError,
    InternalServerError,
    PaymentRequiredError,
    PermissionDeniedError,
    ProtocolError,
    RateLimitError,
    RefreshError,
    RefreshTimeout,
    RetryHints,
    StreamInterrupted,
    StreamTimeout,
    error_from_frame,
    error_from_response,
)
from gz_trio._protocol.retry import (
    TABLE,
    Decision,
    Raise,
    Refresh,
    RetryHistory,
    Wait,
    decide,
    describe_table,
)
from gz_trio._protocol.settings import RetryPolicy


def response(status: int, body: bytes = b"", **headers: str) -> GatewayError:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return error_from_response(status, named, body, now=0.0)


def frame(**error: object) -> GatewayError:
    return error_from_frame({"error": error}, body=b"")


def first(error: GatewayError, *, mid_stream: bool = False) -> Decision:
    """The decision on the first failure of a reply, without jitter."""
    return decide(
        error,
        history=RetryHistory(),
        policy=RetryPolicy(),
        jitter=0.0,
        mid_stream=mid_stream,
    )


def waits(error: GatewayError, *, mid_stream: bool = False, max_retries: int = 20) -> list[float]:
    """The waits of a reply that always fails in the same way."""
    history = RetryHistory()
    policy = RetryPolicy(max_retries=max_retries)
    seconds: list[float] = []
    while True:
        decision = decide(error, history=history, policy=policy, jitter=0.0, mid_stream=mid_stream)
        if not isinstance(decision, Wait):
            return seconds
        seconds.append(decision.seconds)
        history = history.after(decision)


# Refresh.


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(response(401), id="401"),
        pytest.param(response(401, b"<html>"), id="401 as HTML"),
        pytest.param(response(401, retry_after="500"), id="401 that names a time"),
        pytest.param(response(401, x_should_retry="false"), id="401 that is not to be retried"),
        pytest.param(response(401, x_should_retry="true"), id="401 that is to be retried"),
        pytest.param(
            response(500, b'{"detail":"Failed to get chat stats: 401: Invalid API key"}'),
            id="a 401 wrapped into a 500",
        ),
        pytest.param(frame(type="auth_error"), id="auth_error"),
        pytest.param(frame(type="authentication_error"), id="authentication_error"),
        pytest.param(AuthenticationError("rejected"), id="any authentication error"),
    ],
)
def test_a_rejected_key_leads_to_a_refresh(error: GatewayError) -> None:
    assert first(error) == Refresh()


def test_a_refresh_is_no_retry() -> None:
    history = RetryHistory(("failure",) * 7)
    decision = decide(response(401), history=history, policy=RetryPolicy(), jitter=0.0)
    assert decision == Refresh()
    assert history.after(decision) == history


# Raise.


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(response(401, b'{"error":{"code":"GUEST_NOT_CONFIGURED"}}'), id="a guest"),
        pytest.param(frame(code="guest_not_configured", status=401), id="a guest, in a stream"),
        pytest.param(RefreshError("refused"), id="a refresh that was refused"),
        pytest.param(RefreshTimeout("Auth refresh timeout"), id="a refresh that took too long"),
        pytest.param(
            response(401, b'{"code":"GUEST_NOT_CONFIGURED"}', x_should_retry="true"),
            id="a guest, whatever a header says",
        ),
        pytest.param(response(302), id="302"),
        pytest.param(response(400), id="400"),
        pytest.param(response(402), id="402"),
        pytest.param(response(403), id="403"),
        pytest.param(response(403, b"<html>"), id="403 as HTML"),
        pytest.param(response(404), id="404"),
        pytest.param(response(413), id="413"),
        pytest.param(response(422), id="422"),
        pytest.param(response(501), id="501"),
        pytest.param(
            response(429, b'{"error":{"code":"insufficient_quota"}}'), id="insufficient_quota"
        ),
        pytest.param(
            response(429, b'{"error":{"code":"insufficient_quota"}}', x_should_retry="true"),
            id="insufficient_quota, whatever a header says",
        ),
        pytest.param(response(402, x_should_retry="true"), id="402, whatever a header says"),
        pytest.param(frame(type="auth_error", status=403), id="403 in a stream"),
        pytest.param(frame(type="plan_limit_exceeded", status=429), id="plan_limit_exceeded"),
        pytest.param(frame(type="not_found_error"), id="not_found_error"),
        pytest.param(frame(type="provider_error", status=401), id="the gateway's own key"),
        *(
            pytest.param(response(n, x_should_retry="false"), id=f"{n} that is not to be retried")
            for n in (400, 403, 404, 422, *sorted(RETRYABLE_STATUSES))
        ),
        *(
            pytest.param(response(n, retry_after="121"), id=f"{n} for too long")
            for n in sorted(RETRYABLE_STATUSES)
        ),
        pytest.param(
            response(429, retry_after="121", x_should_retry="true"),
            id="429 for too long, whatever a header says",
        ),
        pytest.param(response(429, retry_after_ms="120001"), id="429 for 1 ms too long"),
        pytest.param(response(429, ratelimit_reset="121"), id="429 with a reset too far away"),
        pytest.param(frame(type="rate_limit_error", retry_after=121), id="a frame, for too long"),
        pytest.param(ProtocolError("no reply"), id="what is no reply"),
        pytest.param(StreamInterrupted("diverged"), id="an interrupted stream"),
        pytest.param(StreamTimeout("too long", retryable=False), id="the total timeout"),
        pytest.param(PaymentRequiredError("no credits"), id="no credits"),
        pytest.param(PermissionDeniedError("no right"), id="no right"),
        pytest.param(BadRequestError("no such parameter"), id="a bad request"),
    ],
)
@pytest.mark.parametrize("mid_stream", [False, True])
def test_what_another_try_cannot_help_is_raised(error: GatewayError, mid_stream: bool) -> None:
    assert first(error, mid_stream=mid_stream) == Raise()


# Wait.

FAILURES = [2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
LIMITS = [1.5, 3.0, 6.0, 12.0, 15.0, 15.0, 15.0]


@pytest.mark.parametrize(
    "error",
    [
        *(
            pytest.param(response(status), id=str(status))
            for status in [408, 409, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529]
        ),
        pytest.param(response(502, b"<html>"), id="HTML from a proxy"),
        *(
            pytest.param(response(n, x_should_retry="true"), id=f"{n} that is to be retried")
            for n in (302, 400, 403, 404, 413, 422, 501, 503)
        ),
        pytest.param(frame(type="provider_error"), id="provider_error"),
        pytest.param(frame(type="capacity_error"), id="capacity_error"),
        pytest.param(frame(type="overloaded_error"), id="overloaded_error"),
        pytest.param(frame(type="stream_timeout"), id="stream_timeout"),
        pytest.param(frame(code=502), id="OpenRouter's 502"),
        pytest.param(frame(), id="a finish reason error"),
        pytest.param(APIConnectionError("no route"), id="no connection"),
        pytest.param(EmptyResponseError("empty"), id="an empty reply"),
        pytest.param(InternalServerError("it broke"), id="any failure of the server"),
    ],
)
def test_a_failure_is_retried_after_2_s_doubling_to_30_s(error: GatewayError) -> None:
    assert waits(error, max_retries=7) == FAILURES
    assert first(error) == Wait(2.0, rate_limited=False, row=first_row(error))


def first_row(error: GatewayError) -> str:
    decision = first(error)
    assert isinstance(decision, Wait)
    return decision.row


def test_the_failures_of_one_kind_double_together() -> None:
    history = RetryHistory()
    seconds: list[float] = []
    for error in (response(502), APIConnectionError("refused"), response(503)):
        decision = decide(error, history=history, policy=RetryPolicy(), jitter=0.0)
        assert isinstance(decision, Wait)
        seconds.append(decision.seconds)
        history = history.after(decision)
    assert seconds == FAILURES[:3]


@pytest.mark.parametrize("error", [response(429), frame(type="rate_limit_error")])
def test_a_rate_limit_is_waited_out_for_1_5_s_doubling_to_15_s(error: GatewayError) -> None:
    assert waits(error, max_retries=7) == LIMITS
    assert first(error) == Wait(1.5, rate_limited=True, row="rate limit")


def test_a_burst_limit_is_waited_out_for_3_s_doubling_to_30_s() -> None:
    error = response(429, b'{"detail":"Burst limit exceeded"}')
    assert waits(error, max_retries=7) == [2 * seconds for seconds in LIMITS]
    assert first(error) == Wait(3.0, rate_limited=True, row="burst limit")


def test_an_upstream_limit_is_retried_once_after_retry_after() -> None:
    error = response(429, x_ratelimit_scope="upstream", retry_after="9")
    assert waits(error) == [9.0]
    assert first(error) == Wait(9.0, rate_limited=True, row="upstream limit")


def test_a_token_timeout_is_retried_at_once_and_once() -> None:
    assert waits(StreamTimeout("no token for 120 s")) == [0.0]
    assert waits(StreamTimeout("no token for 120 s"), mid_stream=True) == [0.0]


def test_a_connection_that_is_cut_in_mid_stream_is_made_again_at_once_the_first_time() -> None:
    cut = APIConnectionError("reset")
    assert waits(cut, mid_stream=True, max_retries=7) == [0.0, *FAILURES[:6]]
    assert first(cut, mid_stream=False) == Wait(2.0, rate_limited=False, row="failure")


# The server's own word on how long.


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (response(429, retry_after="9"), 9.0),
        (response(429, retry_after="0"), 1.5),
        (response(429, retry_after="120"), 120.0),
        (response(503, retry_after="9"), 9.0),
        (response(503, retry_after="Thu, 01 Jan 1970 00:00:09 GMT"), 9.0),
        (response(429, retry_after_ms="9000", retry_after="60"), 9.0),
        (response(429, ratelimit_reset="9"), 9.0),
        (response(429, x_ratelimit_reset_tokens="9s"), 9.0),
        (response(429, b'{"detail":"burst"}', retry_after="9"), 9.0),
        (
            error_from_frame({"error": {"type": "rate_limit_error", "retry_after": 9}}, body=b""),
            9.0,
        ),
    ],
)
def test_a_wait_is_never_shorter_than_the_server_asked_for(
    error: GatewayError, seconds: float
) -> None:
    decision = first(error)
    assert isinstance(decision, Wait)
    assert decision.seconds == seconds


@pytest.mark.parametrize("mid_stream", [False, True])
def test_at_once_is_not_before_retry_after_either(mid_stream: bool) -> None:
    error = APIConnectionError("reset", hints=RetryHints(retry_after=5.0))
    decision = first(error, mid_stream=mid_stream)
    assert isinstance(decision, Wait)
    assert decision.seconds == 5.0


def test_how_long_a_server_may_make_us_wait_is_the_callers_choice() -> None:
    error = response(429, retry_after="10")
    for limit, raises in ((9.9, True), (10.0, False)):
        policy = RetryPolicy(max_retry_after=limit)
        decision = decide(error, history=RetryHistory(), policy=policy, jitter=0.99)
        assert (decision == Raise()) is raises


# The budget.


def test_the_budget_is_of_the_whole_reply_whatever_failed() -> None:
    errors = [response(429), response(502), APIConnectionError("reset"), frame(type="x")]
    history = RetryHistory()
    policy = RetryPolicy(max_retries=3)
    for error in errors[:3]:
        decision = decide(error, history=history, policy=policy, jitter=0.0)
        assert isinstance(decision, Wait)
        history = history.after(decision)
    assert history.retries == 3
    assert decide(errors[3], history=history, policy=policy, jitter=0.0) == Raise()


def test_without_retries_even_a_cut_is_raised() -> None:
    assert waits(APIConnectionError("reset"), mid_stream=True, max_retries=0) == []
    assert waits(StreamTimeout("no token"), max_retries=0) == []


def test_thousands_of_retries_wait_no_longer_than_the_longest() -> None:
    history = RetryHistory(("failure",) * 5_000)
    policy = RetryPolicy(max_retries=10_000)
    decision = decide(response(502), history=history, policy=policy, jitter=0.0)
    assert decision == Wait(30.0, rate_limited=False, row="failure")


# Orders that nobody thought of.

errors = st.one_of(
    st.builds(
        response,
        st.sampled_from([400, 401, 402, 403, 404, 408, 413, 422, 429, 500, 502, 503, 520, 529]),
        st.sampled_from([b"", b'{"detail":"burst"}', b'{"error":{"type":"insufficient_quota"}}']),
        retry_after=st.sampled_from(["", "0", "3", "60", "500"]),
        x_should_retry=st.sampled_from(["", "true", "false"]),
        x_ratelimit_scope=st.sampled_from(["", "upstream"]),
    ),
    st.sampled_from(
        [
            APIConnectionError("reset"),
            EmptyResponseError("empty"),
            StreamTimeout("no token"),
            ProtocolError("no reply"),
            RefreshError("refused"),
            GatewayError("?"),
        ]
    ),
)
jitters = st.floats(0.0, 1.0, exclude_max=True)


@given(st.lists(st.tuples(errors, st.booleans(), jitters), max_size=30), st.integers(0, 9))
def test_in_any_order_of_failures_the_budget_and_the_waits_hold(
    failures: list[tuple[GatewayError, bool, float]], max_retries: int
) -> None:
    policy = RetryPolicy(max_retries=max_retries)
    history = RetryHistory()
    for error, mid_stream, jitter in failures:
        decision = decide(
            error, history=history, policy=policy, jitter=jitter, mid_stream=mid_stream
        )
        if not isinstance(decision, Wait):
            continue
        asked = error.hints.retry_after or 0.0
        assert asked <= policy.max_retry_after
        assert asked <= decision.seconds <= max(30.0, asked * 1.25)
        assert decision.rate_limited is isinstance(error, RateLimitError)
        history = history.after(decision)
    assert history.retries <= max_retries
    assert history.rows.count("upstream limit") <= 1
    assert history.rows.count("token timeout") <= 1


@given(errors, st.booleans())
def test_retryable_says_what_the_table_does(error: GatewayError, mid_stream: bool) -> None:
    """`error.retryable` and the table agree, but for a wait that would be too long."""
    decision = first(error, mid_stream=mid_stream)
    too_long = (error.hints.retry_after or 0.0) > RetryPolicy().max_retry_after
    assert isinstance(decision, Wait) is (error.retryable and not too_long)


@given(errors, jitters)
def test_jitter_spreads_a_wait_by_a_quarter_at_most(error: GatewayError, jitter: float) -> None:
    plain = first(error)
    spread = decide(error, history=RetryHistory(), policy=RetryPolicy(), jitter=jitter)
    assert type(spread) is type(plain)
    if isinstance(plain, Wait) and isinstance(spread, Wait):
        asked = error.hints.retry_after or 0.0
        assert max(asked, 0.75 * plain.seconds) <= spread.seconds
        assert spread.seconds <= max(plain.seconds, 1.25 * asked)


def test_jitter_makes_our_own_waits_shorter_and_those_of_the_server_longer() -> None:
    history = RetryHistory()
    for error, seconds in (
        (response(503), 1.75),
        (response(429), 1.3125),
        (response(503, retry_after="8"), 9.0),
        (response(429, x_ratelimit_scope="upstream", retry_after="8"), 9.0),
    ):
        decision = decide(error, history=history, policy=RetryPolicy(), jitter=0.5)
        assert isinstance(decision, Wait)
        assert decision.seconds == seconds


# The table itself.


def test_names_of_rows_are_their_own() -> None:
    names = [row.name for row in TABLE]
    assert len(set(names)) == len(names)


def test_the_table_describes_every_row_in_words() -> None:
    rows = dict(describe_table())
    assert len(rows) == len(TABLE)
    assert rows["401, a 500 that wraps one, an authentication error in a stream"] == (
        "refresh the key, then go on"
    )
    assert rows["429, `rate_limit_error` in a stream"] == (
        "wait 1.5 s, doubling to 15 s, not less than `Retry-After`"
    )
    assert rows["429 with `X-RateLimit-Scope: upstream`: the model's provider is busy"] == (
        "wait 1.5 s, not less than `Retry-After`; once"
    )
    assert rows["no token came in time"] == "go on at once; once"
    [failure] = [what for what in rows if what.startswith("no connection")]
    assert "408, 409, 500, 502 to 504, 520 to 524, 529" in failure
    assert 529 in RETRYABLE_STATUSES
