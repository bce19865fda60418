"""Durations and distributions, as a workload spells them."""

from __future__ import annotations

import random
import re
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gz_trio.simulate._values import Distribution, seconds


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("250us", 250e-6),
        ("500ms", 0.5),
        ("2s", 2.0),
        ("2", 2.0),
        (".5", 0.5),
        ("1.5m", 90.0),
        ("3min", 180.0),
        ("1h", 3600.0),
        (" 5 ms ", 0.005),
        ("0s", 0.0),
        (2, 2.0),
        (0.25, 0.25),
        (0, 0.0),
    ],
)
def test_a_duration_is_seconds_or_has_a_unit(words: str | float, expected: float) -> None:
    assert seconds(words) == pytest.approx(expected)


@pytest.mark.parametrize(
    "words",
    [
        *("", "s", "soon", "5 days", "-1s", "+1s", "1e3", "1,5s", "1s 2s", "٣s", "9" * 400, "inf"),
        *(-0.1, float("inf"), float("nan")),
    ],
)
def test_whatever_else_is_no_duration(words: str | float) -> None:
    complaint = f"{words!r} is no duration: give seconds, or one like 500ms, 2s or 5m"
    with pytest.raises(ValueError, match=f"^{re.escape(complaint)}$"):
        seconds(words)


@given(st.floats(0, 1e6))
def test_a_duration_means_the_same_in_any_unit(number: float) -> None:
    milliseconds = f"{number * 1000:.9f}ms"
    assert seconds(milliseconds) == pytest.approx(number, abs=1e-9)
    assert seconds(f"{number / 60:.12f}m") == pytest.approx(number, abs=1e-9)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (5, Distribution("constant", 5.0)),
        ("5", Distribution("constant", 5.0)),
        ("uniform(1, 9)", Distribution("uniform", 1.0, 9.0)),
        ("uniform(4,4)", Distribution("uniform", 4.0, 4.0)),
        (" normal ( 5 , 2 ) ", Distribution("normal", 5.0, 2.0)),
        ("lognormal(5, 0.5)", Distribution("lognormal", 5.0, 0.5)),
        ("exponential(5)", Distribution("exponential", 5.0)),
    ],
)
def test_a_distribution_is_a_number_or_names_its_shape(
    words: str | float, expected: Distribution
) -> None:
    assert Distribution.parse(words) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("200ms", Distribution("constant", 0.2)),
        ("uniform(1s, 1m)", Distribution("uniform", 1.0, 60.0)),
        ("normal(200ms, 50ms)", Distribution("normal", 0.2, 0.05)),
        ("lognormal(2s, 0.5)", Distribution("lognormal", 2.0, 0.5)),
        ("exponential(1h)", Distribution("exponential", 3600.0)),
    ],
)
def test_of_durations_its_numbers_have_units(words: str, expected: Distribution) -> None:
    assert Distribution.parse(words, durations=True) == expected


KNOWN = (
    "give a number, or one of uniform(least, most), normal(mean, deviation), "
    "lognormal(median, sigma), exponential(mean)"
)


@pytest.mark.parametrize(
    ("words", "durations", "complaint"),
    [
        ("many", False, "'many' is no number"),
        ("", False, "'' is no number"),
        ("500ms", False, "'500ms' is no number"),
        (-1, False, "-1 must be a number that is not negative"),
        ("inf", False, "'inf' must be a number that is not negative"),
        (float("nan"), False, "nan must be a number that is not negative"),
        ("poisson(5)", False, f"'poisson(5)' is no distribution: {KNOWN}"),
        ("constant(5)", False, f"'constant(5)' is no distribution: {KNOWN}"),
        ("uniform(5)", False, f"'uniform(5)' is no distribution: {KNOWN}"),
        ("exponential(1, 2)", False, f"'exponential(1, 2)' is no distribution: {KNOWN}"),
        ("uniform(9, 1)", False, "'uniform(9, 1)': the most is less than the least"),
        ("lognormal(0, 1)", False, "'lognormal(0, 1)': a median of 0 has no logarithm"),
        ("normal(5, -1)", False, "' -1' must be a number that is not negative"),
        ("normal(5, )", False, "' ' is no number"),
        ("normal(1s, soon)", True, "' soon' is no duration: give seconds, or one like"),
        ("lognormal(1s, 1s)", True, "' 1s' is no number"),
        (-1, True, "-1 is no duration"),
    ],
)
def test_what_is_none_is_told(words: str | float, durations: bool, complaint: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(complaint)}"):
        Distribution.parse(words, durations=durations)


@pytest.mark.parametrize(
    ("words", "mean", "deviation"),
    [
        ("7", 7.0, 0.0),
        ("uniform(2, 6)", 4.0, 4 / 12**0.5),
        ("normal(20, 3)", 20.0, 3.0),
        ("lognormal(5, 0.5)", 5.0 * 2.718281828 ** (0.5**2 / 2), None),
        ("exponential(3)", 3.0, 3.0),
        ("exponential(0)", 0.0, 0.0),
        ("lognormal(4, 0)", 4.0, 0.0),
    ],
)
def test_what_is_drawn_is_distributed_so(words: str, mean: float, deviation: float | None) -> None:
    dice = random.Random(1)
    drawn = [Distribution.parse(words).draw(dice) for _ in range(20_000)]
    assert statistics.fmean(drawn) == pytest.approx(mean, rel=0.03)
    if deviation is not None:
        assert statistics.pstdev(drawn) == pytest.approx(deviation, rel=0.03)


def test_half_of_a_lognormal_one_is_below_its_median() -> None:
    dice = random.Random(1)
    drawn = [Distribution.parse("lognormal(5, 0.5)").draw(dice) for _ in range(20_001)]
    assert statistics.median(drawn) == pytest.approx(5, rel=0.03)


SHAPES = st.one_of(
    st.floats(0, 100).map(lambda a: Distribution("constant", a)),
    st.tuples(st.floats(0, 100), st.floats(0, 100)).map(
        lambda ab: Distribution("uniform", min(ab), max(ab))
    ),
    st.builds(Distribution, st.just("normal"), st.floats(0, 100), st.floats(0, 100)),
    st.builds(Distribution, st.just("lognormal"), st.floats(0.01, 100), st.floats(0, 3)),
    st.builds(Distribution, st.just("exponential"), st.floats(0, 100)),
)


@given(SHAPES, st.integers())
def test_nothing_drawn_is_negative_and_a_count_is_at_least_one(of: Distribution, seed: int) -> None:
    assert of.draw(random.Random(seed)) >= 0
    count = of.draw_count(random.Random(seed))
    assert isinstance(count, int)
    assert count >= 1


@given(SHAPES, st.integers())
def test_the_same_dice_draw_the_same(of: Distribution, seed: int) -> None:
    assert of.draw(random.Random(seed)) == of.draw(random.Random(seed))
