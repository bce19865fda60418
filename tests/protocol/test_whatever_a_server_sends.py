"""Whatever a server sends: an error of ours, a decision, and no word of it in the message."""

from __future__ import annotations

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from gz_trio._protocol.errors import GatewayError, error_from_frame, error_from_response
from gz_trio._protocol.recovery import Recovery
from gz_trio._protocol.retry import Raise, Refresh, RetryHistory, Wait, decide
from gz_trio._protocol.settings import RetryPolicy

SECRET = "sk-Secret"

texts = st.text(max_size=8) | st.sampled_from(
    [
        SECRET,
        f"Invalid API key: {SECRET}",
        f"401: the API key {SECRET} has expired",
        f"too many concurrent requests by {SECRET}",
        "GUEST_NOT_CONFIGURED",
        "auth_error",
        "insufficient_quota",
        "rate_limit_error",
        "not_found_error",
        "stream_normalization_warning",
        "error",
        "401",
        "403",
        "429",
    ]
)
names = st.sampled_from(
    [
        "error",
        "detail",
        "message",
        "code",
        "type",
        "status",
        "context",
        "metadata",
        "retry_after",
        "request_id",
        "reason",
        "msg",
    ]
)
numbers = st.integers() | st.floats() | st.sampled_from([401, 402, 403, 404, 429, 500, 503])
json_values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names | texts, inner, max_size=4),
    max_leaves=20,
)
bodies = (
    st.binary()
    | texts.map(str.encode)
    | st.just(f"<html><title>{SECRET}</title></html>".encode())
    | json_values.map(lambda value: json.dumps(value).encode())
)
times = st.from_regex(
    r"[0-9]{0,30}(\.[0-9]+)?(ms|s|m|h|d)?([0-9]+s)?|[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} "
    r"[0-9]{1,5} [0-9:]{8} (GMT|[+-][0-9]{4})|[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}Z",
    fullmatch=True,
)
headers = st.dictionaries(
    st.sampled_from(
        [
            "retry-after",
            "retry-after-ms",
            "ratelimit-reset",
            "ratelimit-remaining",
            "x-ratelimit-reset-tokens",
            "x-ratelimit-remaining-tokens",
            "anthropic-ratelimit-requests-reset",
            "x-should-retry",
            "x-ratelimit-scope",
            "x-request-id",
            "location",
        ]
    ),
    texts | times | st.sampled_from(["true", "false", "upstream"]),
)
histories = st.lists(
    st.sampled_from(["failure", "rate limit", "upstream limit", "cut", "token timeout"]), max_size=8
).map(lambda rows: RetryHistory(tuple(rows)))
situations = st.tuples(histories, st.floats(0.0, 1.0, exclude_max=True), st.booleans())
"""The history of a reply, a jitter, and whether it was in mid-stream."""


def check(error: GatewayError, situation: tuple[RetryHistory, float, bool]) -> None:
    history, jitter, mid_stream = situation
    for words in (str(error), repr(error), *map(str, error.args)):
        assert words.isascii()
        assert SECRET.lower() not in words.lower()
    asked = error.hints.retry_after
    assert asked is None or 0 <= asked < 1e30
    policy = RetryPolicy()
    decision = decide(error, history=history, policy=policy, jitter=jitter, mid_stream=mid_stream)
    match decision:
        case Wait(seconds):
            assert history.retries < policy.max_retries
            assert (asked or 0.0) <= seconds <= 1.25 * policy.max_retry_after
            assert math.isfinite(seconds)
            assert error.status not in (401, 402)
        case Refresh():
            assert error.status not in (402, 403, 404, 429)
            assert (error.code or "").upper() != "GUEST_NOT_CONFIGURED"
        case Raise():
            pass
    for in_frame in (False, True):
        Recovery(policy).after(
            error, generation=1, in_frame=in_frame, mid_stream=mid_stream, jitter=jitter
        )


@given(st.integers(200, 999), headers, bodies, st.floats(0, 4e9), situations)
def test_a_response_is_an_error_of_ours_that_leads_somewhere_and_quotes_nothing(
    status: int,
    sent: dict[str, str],
    body: bytes,
    now: float,
    situation: tuple[RetryHistory, float, bool],
) -> None:
    error = error_from_response(status, sent, body, now=now)
    assert error.body == body
    if status >= 300:
        assert error.status == status
    check(error, situation)


@given(st.dictionaries(names | texts, json_values, max_size=5), situations)
def test_a_frame_is_an_error_of_ours_that_leads_somewhere_and_quotes_nothing(
    frame: dict[str, object], situation: tuple[RetryHistory, float, bool]
) -> None:
    error = error_from_frame(frame, body=b"x")
    assert error.body == b"x"
    check(error, situation)
