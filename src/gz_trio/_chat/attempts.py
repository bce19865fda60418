"""What a reply tells of itself: each of its attempts, and how long it took."""

from __future__ import annotations

from dataclasses import dataclass, field

from .._protocol.errors import GatewayError
from .._protocol.resumption import Way


@dataclass(slots=True)
class Attempt:
    """One request of a reply.

    Args:
        started: When it was sent, in seconds on Trio's clock.
        generation: Of the key that it was sent with.
        resumed_by: How it took the reply up: by the `"cursor"`, by having the model
            `"continue"`, by `"replay"`; `None` where nothing had been delivered yet.
        ended: When it ended, in seconds on Trio's clock, or `None` while it runs.
        cause: What ended it, or `None` where it was complete.
        tokens: How many deltas with text, reasoning or a tool call came, repeated ones included:
            about what was paid for.
        repeated: How many characters of them the reader had already.
        accepted: Whether the gateway answered with an event that is no error.
        epoch: Of the key that it was sent with: another one may be another account's.
    """

    started: float
    generation: int
    resumed_by: Way | None = None
    ended: float | None = None
    cause: GatewayError | None = None
    tokens: int = 0
    repeated: int = 0
    accepted: bool = False
    epoch: int = 0


@dataclass(slots=True)
class Timing:
    """How long a reply took, in seconds on Trio's clock.

    Args:
        started: When the first request was sent.
        first_token: From then until the first text, reasoning or tool call, or `None`.
        between_tokens: The mean time from one such delta to the next, pauses left out, or `None`
            before the second one.
        longest_gap: The longest of these times, or `None`.
        paused: The sum of all pauses: from a failure until something new came.
        ended: From `started` until the reply was complete or failed, or `None`.
    """

    started: float
    first_token: float | None = None
    between_tokens: float | None = None
    longest_gap: float | None = None
    paused: float = 0.0
    ended: float | None = None
    _gaps: int = field(default=0, init=False, repr=False)
    _last_token: float | None = field(default=None, init=False, repr=False)

    def token_came(self, now: float) -> None:
        """New text, reasoning or a tool call came."""
        if self.first_token is None:
            self.first_token = now - self.started
        if self._last_token is not None:
            gap = now - self._last_token
            self._gaps += 1
            mean = self.between_tokens or 0.0
            self.between_tokens = mean + (gap - mean) / self._gaps
            self.longest_gap = max(gap, self.longest_gap or 0.0)
        self._last_token = now

    def was_paused(self, seconds: float) -> None:
        """A pause is over; what comes after it was not late for its own sake."""
        self.paused += seconds
        self._last_token = None
