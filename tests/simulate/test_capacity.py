"""The search for a gateway's capacity: rates go out, what they showed comes in, an answer."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gz_trio.simulate._capacity import (
    LONGEST_SECONDS,
    MORE,
    RESOLUTION,
    Capacity,
    CapacitySearch,
    Step,
    StepResult,
    Why,
    lower_limit,
)

MET = StepResult(good=1000, intended=1000)
NOT_MET = StepResult(good=900, intended=1000)
CLIENT_BOUND = StepResult(good=1000, intended=1000, client_bound=True)


def searched(search: CapacitySearch, run: Callable[[Step], StepResult]) -> Capacity:
    """The result, when steps are run so."""
    while (step := search.next_step()) is not None:
        search.took(step, run(step))
    return search.capacity()


def holds(most: float) -> Callable[[Step], StepResult]:
    return lambda step: MET if step.rate <= most else NOT_MET


# What a step tells


@pytest.mark.parametrize(
    ("intended", "may_fail"), [(380, None), (381, 0), (1000, 3), (2000, 11), (10_000, 80)]
)
def test_a_step_is_met_when_the_lower_limit_of_the_good_fraction_reaches_the_attainment(
    intended: int, may_fail: int | None
) -> None:
    allowed = [bad for bad in range(100) if lower_limit(intended - bad, intended) >= 0.99]
    assert max(allowed, default=None) == may_fail
    assert allowed == list(range(len(allowed)))


def test_of_no_requests_nothing_is_known() -> None:
    assert lower_limit(0, 0) == 0.0


def test_the_limit_is_wilsons() -> None:
    # Newcombe 1998, table I: 81 of 263, 0 of 20, 29 of 29.
    assert lower_limit(81, 263) == pytest.approx(0.2553, abs=5e-5)
    assert lower_limit(0, 20) == pytest.approx(0.0, abs=1e-12)
    assert lower_limit(29, 29) == pytest.approx(0.8830, abs=5e-5)


@given(st.integers(1, 5000), st.data())
def test_the_limit_is_below_the_share_and_rises_with_it(intended: int, data: st.DataObject) -> None:
    good = data.draw(st.integers(0, intended - 1))
    assert 0 <= lower_limit(good, intended) <= good / intended
    assert lower_limit(good, intended) < lower_limit(good + 1, intended)


@pytest.mark.parametrize(
    ("attainment", "rate", "seconds"),
    [
        (0.99, 100.0, 30.0),
        (0.99, 1000 / 30, 30.0),
        (0.99, 10.0, 100.0),
        (0.5, 10.0, 100.0),
        (0.999, 100.0, 76.76),
    ],
    ids=["30 s", "both", "1,000 requests", "however little is asked for", "more for more nines"],
)
def test_a_step_takes_30_seconds_and_1000_requests(
    attainment: float, rate: float, seconds: float
) -> None:
    assert CapacitySearch(attainment=attainment).step_seconds(rate) == pytest.approx(seconds)


@given(st.floats(0.01, 0.99999), st.floats(0.1, 10_000))
def test_a_step_is_long_enough_to_be_met(attainment: float, rate: float) -> None:
    requests = int(CapacitySearch(attainment=attainment).step_seconds(rate) * rate * (1 + 1e-9))
    assert lower_limit(requests, requests) >= attainment


# The order of steps


@pytest.mark.parametrize(
    ("first_rate", "most", "expected"),
    [
        (
            10.0,
            26.0,
            ["bracket 10", "bracket 20", "bracket 40", "bisect 28.28", "bisect 23.78",
             "bisect 25.93", "bisect 27.08", "confirm 25.93", "ten per cent more 28.52"],
        ),
        (
            100.0,
            26.0,
            ["bracket 100", "bracket 50", "bracket 25", "bisect 35.36", "bisect 29.73",
             "bisect 27.26", "bisect 26.11", "confirm 25", "ten per cent more 27.5"],
        ),
    ],
    ids=["doubled until it is not met", "halved until it is"],
)  # fmt: skip
def test_the_rate_is_bracketed_then_bisected_then_confirmed_then_exceeded(
    first_rate: float, most: float, expected: list[str]
) -> None:
    found = searched(CapacitySearch(first_rate=first_rate), holds(most))
    assert [f"{step.purpose} {step.rate:g}" for step in found.steps] == expected
    assert found.rate == pytest.approx(26, rel=0.05)
    assert (found.at_least, found.why) == (False, "found")


def after(*results: StepResult) -> CapacitySearch:
    """A search that began with 10 a second, and these results."""
    search = CapacitySearch(first_rate=10.0)
    for result in results:
        step = search.next_step()
        assert step is not None
        search.took(step, result)
    return search


# At 10, 20, 14.14, 16.82, 18.34 and 19.15: the best is 18.34.
BISECTED = (MET, NOT_MET, MET, MET, MET, NOT_MET)


def test_a_rate_that_is_not_confirmed_is_an_upper_end_and_the_search_goes_on_below() -> None:
    assert after(*BISECTED).next_step() == Step(18.34, "confirm")
    assert after(*BISECTED, NOT_MET).next_step() == Step(17.56, "bisect")


def test_where_nothing_lower_was_met_the_search_halves_again() -> None:
    search = after(NOT_MET, MET, NOT_MET, NOT_MET, NOT_MET, NOT_MET)
    assert search.next_step() == Step(5.0, "confirm")
    search.took(Step(5.0, "confirm"), NOT_MET)
    assert search.next_step() == Step(2.5, "bracket")


def test_where_ten_per_cent_more_are_met_the_search_goes_on_from_there() -> None:
    search = after(*BISECTED, MET)
    assert search.next_step() == Step(20.17, "ten per cent more")
    search.took(Step(20.17, "ten per cent more"), MET)
    assert search.next_step() == Step(40.34, "bracket")
    found = searched(search, holds(26.0))
    assert found.why == "found"
    assert found.rate == pytest.approx(26, rel=0.05)


def test_what_was_confirmed_is_confirmed_anew_once_it_is_another_rate() -> None:
    search = after(*BISECTED, MET, MET)
    found = searched(search, holds(26.0))
    purposes = [step.purpose for step in found.steps]
    assert purposes.count("confirm") == 2
    assert purposes[-2:] == ["confirm", "ten per cent more"]


@pytest.mark.parametrize(
    ("before", "rate"), [((), None), ((NOT_MET,), None), ((MET, MET), 20.0), (BISECTED, 18.34)]
)
def test_a_client_bound_step_ends_it_as_at_least_the_highest_rate_met_before(
    before: tuple[StepResult, ...], rate: float | None
) -> None:
    search = after(*before, CLIENT_BOUND)
    assert search.next_step() is None
    found = search.capacity()
    assert (found.rate, found.at_least, found.why) == (rate, rate is not None, "client-bound")
    assert not found.steps[-1].met


def test_a_gateway_that_answers_nothing_well_ends_it_before_a_step_takes_an_hour() -> None:
    search = CapacitySearch(first_rate=10.0)
    found = searched(search, holds(0.0))
    assert (found.rate, found.at_least, found.why) == (None, False, "too slow")
    assert search.step_seconds(found.steps[-1].rate) <= LONGEST_SECONDS
    assert search.step_seconds(found.steps[-1].rate / 2) > LONGEST_SECONDS


def test_a_gateway_without_a_limit_ends_it_after_the_most_steps() -> None:
    found = searched(CapacitySearch(first_rate=10.0, most_steps=5), holds(1e9))
    assert (found.rate, found.at_least, found.why) == (160.0, True, "too many steps")
    assert len(found.steps) == 5


def test_what_is_known_can_be_asked_for_at_any_time() -> None:
    assert (after().capacity().rate, after().capacity().why) == (None, "not over")
    found = after(MET, MET).capacity()
    assert (found.rate, found.at_least, found.why) == (20.0, True, "not over")


def test_the_same_step_is_given_until_its_result_is_told() -> None:
    search = CapacitySearch(first_rate=10.0)
    assert search.next_step() == search.next_step() == Step(10.0, "bracket")
    with pytest.raises(ValueError, match="not the step"):
        search.took(Step(20.0, "bracket"), MET)
    with pytest.raises(ValueError, match="2 good requests of 1"):
        search.took(Step(10.0, "bracket"), StepResult(good=2, intended=1))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"attainment": 0.0}, "attainment"),
        ({"attainment": 1.0}, "attainment"),
        ({"first_rate": 0.0}, "first rate"),
        ({"first_rate": float("nan")}, "first rate"),
        ({"first_rate": float("inf")}, "first rate"),
        ({"most_steps": 0}, "steps"),
    ],
)
def test_what_is_impossible_is_told_at_once(settings: dict[str, float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        CapacitySearch(**settings)  # type: ignore[arg-type]  # whole numbers are floats here


# What people read


@pytest.mark.parametrize(
    ("capacity", "expected"),
    [
        (
            searched(CapacitySearch(first_rate=10.0), holds(26.0)),
            (
                "The gateway holds 25.93 sessions a second with 99 % of requests good: "
                "that was met twice, and 28.52 was not."
            ),
        ),
        (
            after(MET, MET, CLIENT_BOUND).capacity(),
            (
                "The gateway holds at least 20 sessions a second with 99 % of requests good: "
                "at 40 the simulator itself was the limit, not the gateway: give it more processes."
            ),
        ),
        (
            after(CLIENT_BOUND).capacity(),
            (
                "No rate was met with 99 % of requests good: at 10 the simulator itself "
                "was the limit, not the gateway: give it more processes."
            ),
        ),
        (
            searched(CapacitySearch(first_rate=1.0), holds(0.0)),
            (
                "No rate was met with 99 % of requests good: 0.5 was not met, and a step "
                "at half of it would take over an hour."
            ),
        ),
        (
            searched(CapacitySearch(first_rate=1.0, most_steps=2), holds(9.0)),
            (
                "The gateway holds at least 2 sessions a second with 99 % of requests good: "
                "the search was not over after 2 steps."
            ),
        ),
        (
            after(MET).capacity(),
            (
                "The gateway holds at least 10 sessions a second with 99 % of requests good: the "
                "search was stopped before it was over."
            ),
        ),
    ],
    ids=["found", "client-bound", "client-bound at once", "too slow", "too many steps", "stopped"],
)
def test_the_result_is_a_sentence(capacity: Capacity, expected: str) -> None:
    assert str(capacity) == expected


# Whatever comes


@given(st.floats(0.6, 5_000), st.floats(0.5, 5_000))  # At half of 0.5 a step takes over an hour.
def test_a_sharp_capacity_is_found_to_the_resolution_in_few_steps(
    most: float, first_rate: float
) -> None:
    found = searched(CapacitySearch(first_rate=first_rate), holds(most))
    assert found.why == "found"
    assert found.rate is not None
    assert most / RESOLUTION * 0.999 <= found.rate <= most
    assert len(found.steps) <= 21  # 14 doublings, 5 halves, one more of each other kind


def noisy(most: float, dice: random.Random) -> Callable[[Step], StepResult]:
    """A gateway that fails a few by chance at its best, and ever more above its capacity.

    At the capacity itself one request in 250 fails: then a step is met about every other time.
    """

    def run(step: Step) -> StepResult:
        bad = min(1.0, 0.004 * (step.rate / most) ** 12)
        return StepResult(good=sum(dice.random() >= bad for _ in range(1000)), intended=1000)

    return run


@given(st.floats(1, 1000), st.floats(1, 1000), st.integers(0, 2**32))
def test_a_noisy_capacity_is_found_within_a_fifth(
    most: float, first_rate: float, seed: int
) -> None:
    found = searched(CapacitySearch(first_rate=first_rate), noisy(most, random.Random(seed)))
    assert found.why in ("found", "too many steps")
    assert found.rate == pytest.approx(most, rel=0.2)


@given(st.lists(st.sampled_from([MET, NOT_MET, CLIENT_BOUND]), max_size=60), st.integers(1, 40))
def test_whatever_steps_show_the_search_ends_and_claims_no_more_than_they_do(
    results: list[StepResult], most_steps: int
) -> None:
    search = CapacitySearch(first_rate=10.0, most_steps=most_steps)
    shown = iter(results + [NOT_MET] * 100)
    found = searched(search, lambda _step: next(shown))
    assert len(found.steps) <= most_steps
    assert all(step.rate > 0 for step in found.steps)
    ends: dict[Why, bool] = {
        "found": not found.steps[-1].met and found.steps[-1].purpose == "ten per cent more",
        "client-bound": found.steps[-1].client_bound,
        "too slow": not found.steps[-1].met,
        "too many steps": len(found.steps) == most_steps,
    }
    assert ends[found.why]
    met = [step.rate for step in found.steps if step.met]
    if found.rate is None:
        assert not found.at_least
    else:
        assert found.rate in met
        # The last that was said of it, or of what is below, is not that it fails.
        last = max(n for n, step in enumerate(found.steps) if step.met and step.rate == found.rate)
        assert all(step.met or step.rate > found.rate for step in found.steps[last:-1])
    if found.why == "found":
        assert found.rate is not None
        assert met.count(found.rate) >= 2
        assert found.steps[-1].rate == pytest.approx(found.rate * MORE, rel=1e-3)
