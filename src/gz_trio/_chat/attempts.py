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
        longest_gap: The longest time from one such delta to the next, pauses left out, or `None`
            before the second one.
        paused: The sum of all pauses: from a failure until something new came.
        ended: From `started` until the reply was complete or failed, or `None`.
    """

    started: float
    first_token: float | None = None
    longest_gap: float | None = None
    paused: float = 0.0
    ended: float | None = None
    _gaps: int = field(default=0, init=False, repr=False)
    _earlier_runs: float = field(default=0.0, init=False, repr=False)
    _run_began: float = field(default=0.0, init=False, repr=False)  # What no pause interrupts.
    _last_token: float | None = field(default=None, init=False, repr=False)

    @property
    def between_tokens(self) -> float | None:
        """The mean of the times of which `longest_gap` is the longest, or `None`."""
        if not self._gaps:
            return None
        run = 0.0 if self._last_token is None else self._last_token - self._run_began
        return (self._earlier_runs + run) / self._gaps

    def tokens_came(self, now: float, count: int = 1) -> None:
        """New text, reasoning or tool calls came, so many at once."""
        last, self._last_token = self._last_token, now
        if last is None:
            if self.first_token is None:
                self.first_token = now - self.started
            self._run_began = now
            self._gaps += count - 1
            return
        # For each token: measure what you change. (A sum of gaps would be one more float.)
        gap = now - last
        self._gaps += count
        if self.longest_gap is None or gap > self.longest_gap:
            self.longest_gap = gap

    def was_paused(self, seconds: float) -> None:
        """A pause is over; what comes after it was not late for its own sake."""
        self.paused += seconds
        if self._last_token is not None:
            self._earlier_runs += self._last_token - self._run_began
            self._last_token = None
