"""The search for a gateway's capacity: which rate to try next, by what the steps before it showed.

A step offers sessions at one rate, in an open loop. The search doubles the rate until it is not met
any more (or halves it until it is), bisects, runs the best rate once more, and shows that ten per
cent more fail. Steps are random, so any of them may contradict an earlier one: the later one is
believed, and the search goes on.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec

RESOLUTION = 1.05
"""The bracket is narrow enough once its upper end is no more than so many times its lower."""

MORE = 1.1
"""What must fail: ten per cent more."""

LEAST_SECONDS, LEAST_REQUESTS = 30.0, 1000
"""Of a step, after its warm-up."""

LONGEST_SECONDS = 3600.0
"""A rate so low that a step takes longer is not tried."""

Z = 1.959964
"""Of a two-sided 95 % interval."""

Purpose = Literal["bracket", "bisect", "confirm", "ten per cent more"]
Why = Literal["found", "client-bound", "too slow", "too many steps", "not over"]


class Step(msgspec.Struct, frozen=True):
    """What to run next.

    Attributes:
        rate: Sessions a second.
        purpose: What for.
    """

    rate: float
    purpose: Purpose


class StepResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a step showed, its warm-up left out.

    Attributes:
        good: Requests that kept to the SLO.
        intended: All that counted.
        client_bound: Whether the simulator itself was the limit, in any second.
    """

    good: int
    intended: int
    client_bound: bool = False


class StepTaken(msgspec.Struct, frozen=True, kw_only=True):
    """A step, and what became of it.

    Attributes:
        rate: Sessions a second.
        purpose: What it was for.
        good: Requests that kept to the SLO.
        intended: All that counted.
        client_bound: Whether the simulator itself was the limit.
        lower_limit: Of the good fraction; see `lower_limit`.
        met: Whether that reached the attainment, and the simulator was not the limit.
    """

    rate: float
    purpose: Purpose
    good: int
    intended: int
    client_bound: bool
    lower_limit: float
    met: bool


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway holds.

    Attributes:
        rate: Sessions a second; `None`: no rate was met.
        at_least: Whether it might be more, as the search ended before it was over.
        why: Why it ended: the rate was `"found"`; a step was `"client-bound"`; rates are so low
            that a step takes longer than an hour (`"too slow"`); there were `"too many steps"`; or
            nobody went on (`"not over"`).
        attainment: The share of requests that must be good.
        steps: All that were taken, in that order.
    """

    rate: float | None
    at_least: bool
    why: Why
    attainment: float
    steps: list[StepTaken]

    def __str__(self) -> str:
        """In a sentence, for people."""
        last = self.steps[-1].rate if self.steps else 0.0
        goal = f"with {100 * self.attainment:g} % of requests good"
        because = {
            "found": f"that was met twice, and {last:g} was not",
            "client-bound": f"at {last:g} the simulator itself was the limit, not the gateway: "
            "give it more processes",
            "too slow": f"{last:g} was not met, and a step at half of it would take over an hour",
            "too many steps": f"the search was not over after {len(self.steps)} steps",
            "not over": "the search was stopped before it was over",
        }[self.why]
        if self.rate is None:
            return f"No rate was met {goal}: {because}."
        held = f"{'at least ' if self.at_least else ''}{self.rate:g} sessions a second"
        return f"The gateway holds {held} {goal}: {because}."


def lower_limit(good: int, intended: int) -> float:
    """Where the good fraction lies at least: the lower end of Wilson's two-sided 95 % interval.

    So a gateway whose true fraction is lower is believed to be there once in forty steps. It asks
    for more than the attainment itself: where that is 0.99, of 1,000 requests 3 may fail, of 10,000
    80.

    Args:
        good: How many were.
        intended: Of how many; of none nothing is known, and the limit is 0.

    >>> lower_limit(997, 1000) > 0.99 > lower_limit(996, 1000)
    True
    >>> lower_limit(9920, 10_000) > 0.99 > lower_limit(9919, 10_000)
    True
    """
    if not intended:
        return 0.0
    share = good / intended
    middle = share + Z**2 / (2 * intended)
    half = Z * math.sqrt(share * (1 - share) / intended + (Z / (2 * intended)) ** 2)
    # It is never above the share, but where both are 0 or 1, a rounding error may be.
    return max(0.0, min(share, (middle - half) / (1 + Z**2 / intended)))


class CapacitySearch:
    """The search, for a caller that runs the steps.

    Args:
        attainment: The share of requests that must be good, more than 0 and less than 1.
        first_rate: The rate to begin with, sessions a second.
        most_steps: It ends after so many, come what may.

    Attributes:
        steps: Those taken.

    Raises:
        ValueError: One of these is impossible.

    >>> search = CapacitySearch(first_rate=10.0)
    >>> while step := search.next_step():  # A gateway that holds 26 sessions a second.
    ...     search.took(step, StepResult(good=1000 if step.rate <= 26 else 900, intended=1000))
    >>> search.capacity().rate
    25.93
    """

    def __init__(
        self, *, attainment: float = 0.99, first_rate: float = 1.0, most_steps: int = 40
    ) -> None:
        if not 0 < attainment < 1:
            raise ValueError(
                f"attainment is {attainment}, but is a share of requests, more than 0 and less "
                "than 1: no number of requests shows that none ever fails"
            )
        if not 0 < first_rate < math.inf:
            raise ValueError(f"the first rate is {first_rate}, but must be more than 0")
        if most_steps < 1:
            raise ValueError(f"there may be {most_steps} steps, but it takes at least one")
        self._attainment = attainment
        self._first_rate = first_rate
        self._most_steps = most_steps
        # Every rate that was met is lower than every one that was not: see `took`.
        self._met: set[float] = set()
        self._not_met: set[float] = set()
        self._confirmed: float | None = None
        self._over: Why | None = None
        self.steps: list[StepTaken] = []

    def step_seconds(self, rate: float) -> float:
        """How long a step at this rate takes, after its warm-up, in seconds.

        It is long enough for 1,000 requests, or for a higher attainment for more: twice as many as
        would do if all were good.
        """
        enough = 2 * Z**2 * self._attainment / (1 - self._attainment)
        return max(LEAST_SECONDS, max(LEAST_REQUESTS, math.ceil(enough)) / rate)

    def next_step(self) -> Step | None:
        """What to run next, the same until `took` was told of it; `None`: the search is over."""
        if self._over is not None:
            return None
        low, high = max(self._met, default=None), min(self._not_met, default=None)
        if low is None:
            return _step(self._first_rate if high is None else high / 2, "bracket")
        if high is None:
            return _step(low * 2, "bracket")
        if high > low * RESOLUTION:
            return _step(math.sqrt(low * high), "bisect")
        if self._confirmed != low:
            return Step(low, "confirm")
        return _step(low * MORE, "ten per cent more")

    def took(self, step: Step, result: StepResult) -> None:
        """Tell what a step showed.

        Raises:
            ValueError: It is not the one that `next_step` gave, or its counts are impossible.
        """
        if step != self.next_step():
            raise ValueError(f"{step} is not the step that was to be taken")
        if not 0 <= result.good <= result.intended:
            raise ValueError(f"{result.good} good requests of {result.intended} are impossible")
        limit = lower_limit(result.good, result.intended)
        met = limit >= self._attainment and not result.client_bound
        self.steps.append(
            StepTaken(
                rate=step.rate,
                purpose=step.purpose,
                good=result.good,
                intended=result.intended,
                client_bound=result.client_bound,
                lower_limit=limit,
                met=met,
            )
        )
        if result.client_bound:
            self._over = "client-bound"
            return
        if met:
            self._met.add(step.rate)
            self._not_met = {rate for rate in self._not_met if rate > step.rate}
            if step.purpose == "confirm":
                self._confirmed = step.rate
        else:
            self._not_met.add(step.rate)
            self._met = {rate for rate in self._met if rate < step.rate}
            if step.purpose == "ten per cent more":
                self._over = "found"
                return
        if not self._met and self.step_seconds(min(self._not_met) / 2) > LONGEST_SECONDS:
            self._over = "too slow"
        elif len(self.steps) >= self._most_steps:
            self._over = "too many steps"

    def capacity(self) -> Capacity:
        """What is known: the end's result, or what it would be if nobody went on."""
        rate = max(self._met, default=None)
        why: Why = self._over or "not over"
        return Capacity(
            rate=rate,
            at_least=rate is not None and why != "found",
            why=why,
            attainment=self._attainment,
            steps=list(self.steps),
        )


def _step(rate: float, purpose: Purpose) -> Step:
    return Step(float(f"{rate:.4g}"), purpose)  # People have to read it, and to give it again.
