"""Rounds become an interval, and an interval a verdict."""

import pytest

from benchmarks.stats import Interval, Verdict, bootstrap, clearly_missed, geometric_mean, verdict


def test_the_mean_of_ratios_is_the_same_from_either_side() -> None:
    ratios = [0.5, 1.0, 4.0]
    assert geometric_mean(ratios) == pytest.approx(1 / geometric_mean([1 / r for r in ratios]))


def test_rounds_that_agree_leave_no_doubt() -> None:
    interval = bootstrap([1.25] * 10)
    assert interval.low == interval.middle == interval.high == pytest.approx(1.25)


def test_the_same_rounds_have_the_same_interval() -> None:
    values = [1.0, 1.1, 1.3, 0.9]
    assert bootstrap(values, seed=3) == bootstrap(values, seed=3)


def test_the_interval_holds_the_mean_and_lies_within_the_rounds() -> None:
    values = [1.0, 1.1, 1.3, 0.9, 1.05, 1.2]
    interval = bootstrap(values)
    assert min(values) <= interval.low < interval.middle < interval.high <= max(values)
    assert interval.middle == pytest.approx(geometric_mean(values))


def test_more_rounds_of_the_same_spread_narrow_the_interval() -> None:
    few, many = bootstrap([0.9, 1.1] * 2), bootstrap([0.9, 1.1] * 20)
    assert few.low < many.low < many.high < few.high


def test_one_round_that_was_disturbed_widens_the_interval_on_its_side_only() -> None:
    quiet = bootstrap([1.0, 1.01, 0.99, 1.0, 1.01, 0.99, 1.0, 1.0, 1.0, 1.0])
    disturbed = bootstrap([1.0, 1.01, 0.99, 1.0, 1.01, 0.99, 1.0, 1.0, 1.0, 3.0])
    assert disturbed.low == pytest.approx(quiet.low, abs=0.01)
    assert disturbed.high > quiet.high + 0.2


@pytest.mark.parametrize(
    ("low", "high", "at_most", "expected"),
    [
        (0.9, 1.0, True, "met"),
        (0.9, 1.1, True, "undecided"),
        (1.0, 1.1, True, "undecided"),
        (1.01, 1.1, True, "missed"),
        (1.0, 1.1, False, "met"),
        (0.9, 1.1, False, "undecided"),
        (0.9, 1.0, False, "undecided"),
        (0.9, 0.99, False, "missed"),
    ],
)
def test_only_what_the_whole_interval_says_is_said(
    low: float, high: float, at_most: bool, expected: Verdict
) -> None:
    assert verdict(Interval(low, 1.0, high), 1.0, at_most=at_most) == expected


@pytest.mark.parametrize(
    ("middle", "at_most", "expected"),
    [(1.14, True, False), (1.16, True, True), (0.88, False, False), (0.86, False, True)],
)
def test_a_short_run_fails_only_for_what_is_off_by_more_than_15_percent(
    middle: float, at_most: bool, expected: bool
) -> None:
    assert clearly_missed(Interval(0.1, middle, 9.0), 1.0, at_most=at_most) is expected
