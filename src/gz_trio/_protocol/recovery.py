"""What one reply does next when an attempt has failed: the retry table, and what it counts.

The table (`retry`) knows a failure, not the reply: here are the reply's 401s in a row (design
rule 8) and its `auth_error` frames (design rule 9).
"""

from __future__ import annotations

from . import retry
from .errors import GatewayError
from .retry import Raise, Refresh, RetryHistory, Wait
from .settings import RetryPolicy

MAX_REJECTIONS_IN_A_ROW = 3
MAX_AUTH_ERRORS_WITHOUT_PROGRESS = 2 * MAX_REJECTIONS_IN_A_ROW

ASK_AGAIN = Wait(0.0, rate_limited=False, row="auth_error in a stream")
"""Gateways send `auth_error` for troubles of their own too: a 401 decides whether the key died."""


_NO_RETRIES = RetryHistory()


class Recovery:
    """Counts the failures of one reply, over all its attempts.

    Text that came does not give back retries: a gateway that breaks every answer a little later
    than the one before would be paid for ever. A reply that may break more often than
    `RetryPolicy.max_retries` (one that lives for hours) is given a higher number by its caller.

    >>> from gz_trio import AuthenticationError
    >>> recovery = Recovery(RetryPolicy())
    >>> dead = AuthenticationError("401")
    >>> recovery.after(dead, generation=1, in_frame=True, mid_stream=True, jitter=0).seconds
    0.0
    >>> recovery.after(dead, generation=1, in_frame=False, mid_stream=False, jitter=0)
    Refresh()
    """

    __slots__ = (
        "_asked_again_under", "_auth_errors", "_history", "_policy", "_rejections", "_restarted",
    )  # fmt: skip

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._history = _NO_RETRIES
        self._rejections = 0
        self._auth_errors = 0
        self._restarted = False
        self._asked_again_under: int | None = None

    def accepted(self) -> None:
        """An event that is no error came: the key is good."""
        self._rejections = 0

    def progressed(self) -> None:
        """New text came: whatever keeps failing, it is not the same thing."""
        if not self._restarted:
            self._auth_errors = 0

    def restarted(self) -> None:
        """The text was dropped and starts anew, which is no progress, however new it is.

        A gateway that fails each of its sampled answers would otherwise be asked for ever.
        """
        self._restarted = True

    def after(
        self,
        error: GatewayError,
        *,
        generation: int,
        in_frame: bool,
        mid_stream: bool,
        jitter: float,
    ) -> retry.Decision:
        """What to do after an attempt under the key of `generation` failed with `error`.

        Args:
            error: The failure.
            generation: Of the key that the attempt was sent with.
            in_frame: Whether a frame inside the stream said it, rather than a status.
            mid_stream: Whether the attempt had begun to answer.
            jitter: A random number in [0, 1).
        """
        decision = retry.decide(
            error,
            history=self._history,
            policy=self._policy,
            jitter=jitter,
            mid_stream=mid_stream,
        )
        if isinstance(decision, Refresh):
            return self._after_rejection(generation, in_frame)
        self._history = self._history.after(decision)
        return decision

    def _after_rejection(self, generation: int, in_frame: bool) -> retry.Decision:
        if in_frame:
            self._auth_errors += 1
            if self._auth_errors >= MAX_AUTH_ERRORS_WITHOUT_PROGRESS:
                return Raise()
            if self._asked_again_under != generation:
                self._asked_again_under = generation
                return ASK_AGAIN
        self._rejections += 1
        return Raise() if self._rejections >= MAX_REJECTIONS_IN_A_ROW else Refresh()
