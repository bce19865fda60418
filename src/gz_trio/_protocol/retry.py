"""The one table: what a failure leads to. A failure goes in, a decision comes out; nothing else.

`TABLE` is read from the top, the first row that applies decides; the documentation prints it
(`describe_table`). Numbers are those of OpenAI-compatible gateways and of Gatewayz's front end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .errors import (
    RETRYABLE_STATUSES,
    APIConnectionError,
    AuthenticationError,
    EmptyResponseError,
    GatewayError,
    PaymentRequiredError,
    RateLimitError,
    RefreshError,
    StreamTimeout,
)
from .settings import RetryPolicy

# Jitter makes a wait up to so much of itself shorter, or longer where a server named the time.
_JITTER = 0.25


@dataclass(frozen=True, slots=True)
class Refresh:
    """Get a new key, then go on. Refreshes are counted elsewhere, not as retries."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Try again after `seconds`; 0 is at once.

    Args:
        seconds: How long to wait.
        rate_limited: Whether a limit is the reason (`RateLimited`), or a failure (`Paused`).
        row: The row of `TABLE` that says so; `RetryHistory` counts it.
    """

    seconds: float
    rate_limited: bool
    row: str


@dataclass(frozen=True, slots=True)
class Raise:
    """Give up: the error is the caller's."""


Decision = Refresh | Wait | Raise


@dataclass(frozen=True, slots=True)
class RetryHistory:
    """The retries of one reply so far, over all its attempts.

    >>> RetryHistory().after(Wait(2.0, rate_limited=False, row="failure")).retries
    1
    """

    rows: tuple[str, ...] = ()

    @property
    def retries(self) -> int:
        """How many there were."""
        return len(self.rows)

    def after(self, decision: Decision) -> RetryHistory:
        """The history once `decision` was carried out."""
        if isinstance(decision, Wait):
            return RetryHistory((*self.rows, decision.row))
        return self


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table.

    Args:
        name: What the history counts.
        what: The failure, in words.
        applies: The failure, as a test of the error and of whether it came in mid-stream.
        action: What to do.
        base: The first wait in seconds; the next ones double.
        longest: The longest wait in seconds, where no server named one.
        at_most: How many retries of this row in one reply; `RetryPolicy.max_retries` counts too.
        at_once: How many of them do not wait.
        rate_limited: Whether a limit is the reason.
    """

    name: str
    what: str
    applies: Callable[[GatewayError, bool], bool]
    action: Literal["refresh", "wait", "raise"]
    base: float = 0.0
    longest: float = 0.0
    at_most: int | None = None
    at_once: int = 0
    rate_limited: bool = False

    def wait(self, error: GatewayError, history: RetryHistory, jitter: float) -> Wait:
        """The wait before the next retry by this row."""
        earlier = history.rows.count(self.name)
        seconds = 0.0
        if earlier >= self.at_once:
            # Thirty doublings are far above any `longest`.
            doubled = self.base * 2.0 ** min(earlier - self.at_once, 30)
            seconds = min(doubled, self.longest) * (1 - _JITTER * jitter)
        if error.hints.retry_after is not None:
            seconds = max(seconds, error.hints.retry_after * (1 + _JITTER * jitter))
        return Wait(seconds, self.rate_limited, self.name)


def _statuses() -> str:
    """`RETRYABLE_STATUSES` but 429, which has rows of its own, in words."""
    runs: list[list[int]] = []
    for status in sorted(RETRYABLE_STATUSES - {429}):
        if runs and status == runs[-1][-1] + 1:
            runs[-1].append(status)
        else:
            runs.append([status])
    return ", ".join(
        f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs
    )


TABLE = (
    Row(
        "guest",
        "401 with `GUEST_NOT_CONFIGURED`: nobody has signed in",
        lambda error, _: (
            isinstance(error, AuthenticationError)
            and (error.code or "").upper() == "GUEST_NOT_CONFIGURED"
        ),
        "raise",
    ),
    Row(
        "refresh failed",
        "no new key could be had",
        lambda error, _: isinstance(error, RefreshError),
        "raise",
    ),
    Row(
        "authentication",
        "401, a 500 that wraps one, an authentication error in a stream",
        lambda error, _: isinstance(error, AuthenticationError),
        "refresh",
    ),
    Row(
        "payment",
        "402, `insufficient_quota` and other quotas that only money or a new month ends",
        lambda error, _: isinstance(error, PaymentRequiredError),
        "raise",
    ),
    Row(
        "told not to",
        "`x-should-retry: false`",
        lambda error, _: error.hints.should_retry is False,
        "raise",
    ),
    Row(
        "upstream limit",
        "429 with `X-RateLimit-Scope: upstream`: the model's provider is busy",
        lambda error, _: isinstance(error, RateLimitError) and error.hints.limit == "upstream",
        "wait",
        base=1.5,
        longest=15.0,
        at_most=1,
        rate_limited=True,
    ),
    Row(
        "burst limit",
        "429 whose message names a burst or concurrency limit",
        lambda error, _: isinstance(error, RateLimitError) and error.hints.limit == "burst",
        "wait",
        base=3.0,
        longest=30.0,
        rate_limited=True,
    ),
    Row(
        "rate limit",
        "429, `rate_limit_error` in a stream",
        lambda error, _: isinstance(error, RateLimitError),
        "wait",
        base=1.5,
        longest=15.0,
        rate_limited=True,
    ),
    Row(
        "token timeout",
        "no token came in time",
        lambda error, _: isinstance(error, StreamTimeout) and error.retryable,
        "wait",
        at_most=1,
        at_once=1,
    ),
    Row(
        "cut",
        "the connection was cut in the middle of the stream",
        lambda error, mid_stream: isinstance(error, APIConnectionError) and mid_stream,
        "wait",
        base=2.0,
        longest=30.0,
        at_once=1,
    ),
    Row(
        "empty",
        "the reply was complete, but empty",
        lambda error, _: isinstance(error, EmptyResponseError),
        "wait",
        base=2.0,
        longest=30.0,
    ),
    Row(
        "failure",
        f"no connection; {_statuses()}; an error in a stream that is none of the others; "
        "`x-should-retry: true`",
        lambda error, _: error.retryable,
        "wait",
        base=2.0,
        longest=30.0,
    ),
    Row(
        "other",
        "anything else: 400, 403, 404, 413, 422 and other statuses, what is no reply",
        lambda _, __: True,
        "raise",
    ),
)


def decide(
    error: GatewayError,
    *,
    history: RetryHistory,
    policy: RetryPolicy,
    jitter: float,
    mid_stream: bool = False,
) -> Decision:
    """What `error` leads to, after the retries in `history`.

    Args:
        error: The failure.
        history: The retries of this reply so far; `RetryHistory.after` counts the next one.
        policy: How many there may be, and how long a server may make us wait.
        jitter: A random number in [0, 1). It never makes a wait shorter than the server's
            `Retry-After`.
        mid_stream: Whether the attempt that failed had begun to answer.

    >>> error = GatewayError("bad gateway", status=502, retryable=True)
    >>> decide(error, history=RetryHistory(), policy=RetryPolicy(), jitter=0.0)
    Wait(seconds=2.0, rate_limited=False, row='failure')
    >>> decide(error, history=RetryHistory(), policy=RetryPolicy(max_retries=0), jitter=0.0)
    Raise()
    """
    row = next(row for row in TABLE if row.applies(error, mid_stream))
    if row.action == "refresh":
        return Refresh()
    if row.action == "raise" or history.retries >= policy.max_retries:
        return Raise()
    if row.at_most is not None and history.rows.count(row.name) >= row.at_most:
        return Raise()
    if (error.hints.retry_after or 0.0) > policy.max_retry_after:
        return Raise()
    return row.wait(error, history, jitter)


def describe_table() -> list[tuple[str, str]]:
    """The table in words, for the documentation: each row's failure and what is done."""
    return [(row.what, _describe(row)) for row in TABLE]


def _describe(row: Row) -> str:
    if row.action == "refresh":
        return "refresh the key, then go on"
    if row.action == "raise":
        return "raise"
    if not row.base:
        words = "go on at once"
    else:
        words = f"wait {row.base:g} s"
        if row.at_most != 1:
            words += f", doubling to {row.longest:g} s"
        words += ", not less than `Retry-After`"
        if row.at_once:
            words = f"go on at once the first time; then {words}"
    return f"{words}; once" if row.at_most == 1 else words
