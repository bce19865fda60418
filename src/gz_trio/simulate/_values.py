"""Values as a workload spells them: durations, distributions, and what a request must keep to."""

from __future__ import annotations

import math
import random
import re
from dataclasses import dataclass
from typing import Literal

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_DURATION = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*(us|ms|s|min|m|h)?\s*")
_DISTRIBUTION = re.compile(r"\s*(\w+)\s*\(([^()]*)\)\s*")

Shape = Literal["constant", "uniform", "normal", "lognormal", "exponential"]
_PARAMETERS: dict[str, tuple[str, ...]] = {
    "uniform": ("least", "most"),
    "normal": ("mean", "deviation"),
    "lognormal": ("median", "sigma"),
    "exponential": ("mean",),
}


def seconds(value: str | float) -> float:
    """A duration in seconds: a number of them, or with a unit (`us`, `ms`, `s`, `m`, `h`).

    Raises:
        ValueError: It is no duration, or a negative one.

    >>> seconds("500ms"), seconds("1.5m"), seconds(2)
    (0.5, 90.0, 2.0)
    """
    if isinstance(value, str):
        match = _DURATION.fullmatch(value)
        duration = float(match[1]) * _UNITS[match[2] or "s"] if match else math.nan
    else:
        duration = float(value)
    if not 0 <= duration < math.inf:
        raise ValueError(f"{value!r} is no duration: give seconds, or one like 500ms, 2s or 5m")
    return duration


@dataclass(frozen=True, slots=True)
class Distribution:
    """Where a random number comes from; none is below zero.

    Args:
        shape: What kind it is.
        first: The constant, the least, the mean, or the median, by `shape`.
        second: The most, the standard deviation, or the logarithm's standard deviation.
    """

    shape: Shape
    first: float
    second: float = 0.0

    @classmethod
    def parse(cls, value: str | float, *, durations: bool = False) -> Distribution:
        """Read `5`, `uniform(1, 9)`, `normal(5, 2)`, `lognormal(5, 0.5)` or `exponential(5)`.

        Args:
            value: The words, or a number, which is a constant.
            durations: Whether the numbers are seconds, and may have units.

        Raises:
            ValueError: It is none of these.

        >>> Distribution.parse("normal(200ms, 50ms)", durations=True)
        Distribution(shape='normal', first=0.2, second=0.05)
        """
        match = _DISTRIBUTION.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            return cls("constant", _number(value, durations=durations))
        shape, words = match[1], match[2].split(",")
        if shape not in _PARAMETERS or len(words) != len(_PARAMETERS[shape]):
            known = ", ".join(f"{name}({', '.join(of)})" for name, of in _PARAMETERS.items())
            raise ValueError(f"{value!r} is no distribution: give a number, or one of {known}")
        sigma = shape == "lognormal"  # A logarithm has no unit.
        first = _number(words[0], durations=durations)
        second = _number(words[1], durations=durations and not sigma) if words[1:] else 0.0
        if shape == "uniform" and second < first:
            raise ValueError(f"{value!r}: the most is less than the least")
        if sigma and not first:
            raise ValueError(f"{value!r}: a median of 0 has no logarithm")
        return cls(shape, first, second)  # type: ignore[arg-type]  # it is one of _PARAMETERS

    def draw(self, dice: random.Random) -> float:
        """One number."""
        match self.shape:
            case "constant":
                return self.first
            case "uniform":
                return dice.uniform(self.first, self.second)
            case "normal":
                return max(0.0, dice.normalvariate(self.first, self.second))
            case "lognormal":
                return dice.lognormvariate(math.log(self.first), self.second)
            case "exponential":
                return dice.expovariate(1 / self.first) if self.first else 0.0

    def draw_count(self, dice: random.Random) -> int:
        """One number of tokens: whole, and at least 1."""
        return max(1, round(self.draw(dice)))


def _number(value: str | float, *, durations: bool) -> float:
    if durations:
        return seconds(value)
    try:
        number = float(value)
    except ValueError:
        raise ValueError(f"{value!r} is no number") from None
    if not 0 <= number < math.inf:
        raise ValueError(f"{value!r} must be a number that is not negative")
    return number
