"""The refresh decision, as a table and over random orders of events."""

from __future__ import annotations

from dataclasses import replace

import outcome
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gz_trio._protocol.errors import (
    APIConnectionError,
    AuthenticationError,
    BadRequestError,
    PermissionDeniedError,
    RateLimitError,
    RefreshError,
    RefreshTimeout,
)
from gz_trio._protocol.keys import Key, Record
from gz_trio._protocol.refresh import (
    AuthStatus,
    Decision,
    Fail,
    Flight,
    Join,
    RefreshFailure,
    RefreshMachine,
    RefreshOutcomeUnknown,
    Start,
    UseKey,
    classify_refresh_failure,
    early_refresh_time,
)


def machine_with(
    key: str | None = "sk-1",
    *,
    can_refresh: bool = True,
    can_wait: bool = False,
    can_wait_for_first: bool = False,
    max_refreshes: int = 5,
) -> RefreshMachine:
    machine = RefreshMachine(
        can_refresh=can_refresh,
        can_wait=can_wait,
        can_wait_for_first=can_wait_for_first,
        max_refreshes=max_refreshes,
    )
    if key is not None:
        machine.observe(Record(1, 1, Key(key)))
    return machine


def current(machine: RefreshMachine) -> Key:
    assert machine.record.key is not None
    return machine.record.key


def status(machine: RefreshMachine) -> AuthStatus:
    return machine.state.status


def start(decision: Decision) -> Flight:
    assert isinstance(decision, Start)
    return decision.flight


def store(machine: RefreshMachine, value: str, *, new_epoch: bool = False) -> Key:
    """Somebody writes a key: the refresh task, a sign-in, another process."""
    record = machine.record
    machine.observe(Record(record.version + 1, record.epoch + new_epoch, Key(value)))
    return current(machine)


def failure(decision: Decision) -> AuthenticationError:
    assert isinstance(decision, Fail)
    return decision.error


def test_the_first_401_of_a_generation_starts_a_flight_and_the_rest_join_it() -> None:
    machine = machine_with()
    flight = start(machine.rejected(current(machine), now=0))
    for _ in range(3):
        assert machine.rejected(current(machine), now=0) == Join(flight)


def test_a_late_401_takes_the_newer_key_and_refreshes_nothing() -> None:
    machine = machine_with()
    old = current(machine)
    new = store(machine, "sk-2")
    assert machine.rejected(old, now=0) == UseKey(new)
    assert machine.rejected("sk-1", now=0) == UseKey(new)
    assert machine.flight is None


def test_a_key_that_comes_back_later_is_a_new_generation() -> None:
    machine = machine_with("sk-a")
    first = current(machine)
    store(machine, "sk-b")
    again = store(machine, "sk-a")
    assert again.generation > first.generation
    assert machine.rejected(first, now=0) == UseKey(again)
    start(machine.rejected(again, now=0))


def test_a_write_that_leaves_the_key_alone_makes_no_new_generation() -> None:
    machine = machine_with()
    key = current(machine)
    machine.observe(replace(machine.record, version=2, key=replace(key, generation=2)))
    assert current(machine).generation == key.generation


@pytest.mark.parametrize(
    ("rejected", "starts"),
    [(None, True), ("sk-1", True), ("sk-other", False), (Key("sk-1"), True)],
    ids=["the current one", "its value", "another value", "a key of no store"],
)
def test_a_rejected_key_may_be_named_in_every_way(rejected: Key | str | None, starts: bool) -> None:
    machine = machine_with()
    decision = machine.rejected(rejected, now=0)
    assert isinstance(decision, Start if starts else UseKey)


def test_a_key_of_another_account_fails_and_starts_nothing() -> None:
    machine = machine_with()
    old = current(machine)
    store(machine, "sk-2", new_epoch=True)
    assert "another account" in str(failure(machine.rejected(old, now=0)))
    assert machine.flight is None


def test_a_sign_in_during_a_flight_settles_it_with_an_error() -> None:
    machine = machine_with()
    flight = start(machine.rejected(None, now=0))
    store(machine, "sk-2", new_epoch=True)
    assert isinstance(flight.result, outcome.Error)
    assert status(machine) is AuthStatus.AUTHENTICATED


def test_a_newer_key_of_the_same_account_settles_a_flight_with_it() -> None:
    machine = machine_with()
    flight = start(machine.rejected(None, now=0))
    new = store(machine, "sk-2")
    assert flight.result == outcome.Value(new)
    assert not machine.still_holds(flight)


def test_no_second_flight_before_the_callable_of_the_first_has_returned() -> None:
    machine = machine_with()
    flight = start(machine.rejected(None, now=0))
    machine.timed_out(flight, RefreshTimeout("Auth refresh timeout"))
    assert isinstance(failure(machine.rejected(None, now=31)), RefreshTimeout)
    machine.unwound(flight)
    start(machine.rejected(None, now=32))


def test_a_flight_may_queue_behind_one_whose_callable_has_returned() -> None:
    machine = machine_with()
    first = start(machine.rejected(None, now=0))
    first.returned = True
    store(machine, "sk-2")
    second = start(machine.rejected(None, now=0))
    store(machine, "sk-3")
    second.returned = True
    # One is unwinding and one is queued: that is all the channel holds.
    assert isinstance(failure(machine.rejected(None, now=0)), RefreshTimeout)
    machine.unwound(first)
    start(machine.rejected(None, now=0))


def test_a_refusal_is_final_until_somebody_signs_in() -> None:
    machine = machine_with()
    key = current(machine)
    flight = start(machine.rejected(key, now=0))
    machine.refused(flight, RefreshError("refused"))
    machine.unwound(flight)
    assert str(failure(machine.rejected(key, now=1000))) == "refused"
    assert status(machine) is AuthStatus.ERROR
    store(machine, "sk-2", new_epoch=True)
    assert status(machine) is AuthStatus.AUTHENTICATED
    start(machine.rejected(None, now=1000))


def test_a_refusal_that_another_process_stored_counts_here() -> None:
    machine = machine_with()
    machine.observe(replace(machine.record, version=2, refused=True))
    assert "refused" in str(failure(machine.rejected(None, now=0)))


def test_a_plain_key_fails_at_once() -> None:
    machine = machine_with(can_refresh=False)
    assert str(failure(machine.rejected(None, now=0))) == "Authentication failed"
    assert status(machine) is AuthStatus.ERROR


def test_one_wait_in_vain_is_enough_until_the_store_changes() -> None:
    machine = machine_with(can_refresh=False, can_wait=True)
    flight = start(machine.rejected(None, now=0))
    machine.timed_out(flight, RefreshTimeout("Auth refresh timeout"))
    machine.unwound(flight)
    assert isinstance(failure(machine.rejected(None, now=31)), RefreshTimeout)
    store(machine, "sk-2")
    start(machine.rejected(None, now=31))


def test_the_breaker_stops_the_sixth_flight_whose_keys_nobody_accepted() -> None:
    machine = machine_with()
    for number in range(5):
        flight = start(machine.rejected(None, now=number))
        machine.calling(flight)
        store(machine, f"sk-new-{number}")
        machine.unwound(flight)
    assert "excessive refresh" in str(failure(machine.rejected(None, now=5)))
    # It stops flights, not the use of a key.
    assert isinstance(machine.needs_key(now=5), UseKey)
    start(machine.rejected(None, now=31))


def test_an_accepted_key_takes_its_flight_off_the_breakers_count() -> None:
    machine = machine_with()
    for number in range(20):
        flight = start(machine.rejected(None, now=0))
        machine.calling(flight)
        machine.accepted(store(machine, f"sk-new-{number}"), "https://g", "m")
        machine.unwound(flight)


def test_a_proven_key_that_one_model_alone_rejects_again_bans_that_model() -> None:
    machine = machine_with()
    old = current(machine)
    machine.accepted(old, "https://g", "good")
    flight = start(machine.rejected(old, now=0, origin="https://g", model="bad"))
    fresh = store(machine, "sk-2")
    machine.unwound(flight)
    machine.accepted(fresh, "https://g", "good")
    error = failure(machine.rejected(fresh, now=1, origin="https://g", model="bad"))
    assert "'bad'" in str(error)
    assert not isinstance(error, RefreshError)
    # For 60 seconds, whatever is asked; the other model and other gateways are not concerned.
    failure(machine.rejected(fresh, now=60.9, origin="https://g", model="bad"))
    assert machine.flight is None
    start(machine.rejected(fresh, now=1, origin="https://other", model="bad"))


def test_a_banned_model_is_tried_again_after_60_seconds() -> None:
    machine = machine_with()
    flight = start(machine.rejected(None, now=0, origin="https://g", model="bad"))
    fresh = store(machine, "sk-2")
    machine.unwound(flight)
    machine.accepted(fresh, "https://g", "good")
    failure(machine.rejected(fresh, now=0, origin="https://g", model="bad"))
    newer = store(machine, "sk-3")
    start(machine.rejected(newer, now=61, origin="https://g", model="bad"))


def test_a_model_that_accepted_the_key_is_not_banned_when_the_key_dies() -> None:
    machine = machine_with()
    flight = start(machine.rejected(None, now=0, origin="https://g", model="a"))
    fresh = store(machine, "sk-2")
    machine.unwound(flight)
    for model in ("a", "b"):
        machine.accepted(fresh, "https://g", model)
    start(machine.rejected(fresh, now=0, origin="https://g", model="a"))


def test_a_request_waits_while_its_key_is_being_replaced_unless_that_is_early() -> None:
    machine = machine_with()
    early = machine.due_early(now=0)
    assert early is not None
    assert machine.needs_key(now=0) == UseKey(current(machine))
    assert status(machine) is AuthStatus.AUTHENTICATED
    assert machine.rejected(None, now=0) == Join(early.flight)
    assert machine.needs_key(now=0) == Join(early.flight)
    assert status(machine) is AuthStatus.AUTHENTICATING


def test_an_early_refresh_comes_once_per_generation() -> None:
    machine = machine_with()
    early = machine.due_early(now=0)
    assert early is not None
    machine.settle(early.flight, RefreshError("failed"))
    machine.unwound(early.flight)
    assert status(machine) is AuthStatus.AUTHENTICATED, "the old key is still good"
    assert machine.due_early(now=1) is None
    store(machine, "sk-2")
    assert machine.due_early(now=1) is not None


@pytest.mark.parametrize(
    ("expires_at", "jitter", "expected"),
    [(3600, 0, 3540), (100, 0, 80), (10, 0, 8), (3600, 1, 3546)],
)
def test_early_means_a_minute_or_a_fifth_before_the_end(
    expires_at: float, jitter: float, expected: float
) -> None:
    assert early_refresh_time(expires_at, 0, jitter) == pytest.approx(expected)


def test_the_first_key_comes_by_a_flight_and_none_after_a_sign_out() -> None:
    machine = machine_with(None)
    flight = start(machine.needs_key(now=0))
    store(machine, "sk-1")
    assert flight.result == outcome.Value(current(machine))
    machine.unwound(flight)
    machine.observe(Record(machine.record.version + 1, machine.record.epoch + 1, None))
    assert "signed out" in str(failure(machine.needs_key(now=0)))
    assert status(machine) is AuthStatus.UNAUTHENTICATED


def test_the_first_key_is_waited_for_only_if_that_was_asked_for() -> None:
    machine = machine_with(None, can_refresh=False, can_wait=True)
    assert "there is no key" in str(failure(machine.needs_key(now=0)))
    machine = machine_with(None, can_refresh=False, can_wait=True, can_wait_for_first=True)
    flight = start(machine.needs_key(now=0))
    assert flight.result is None
    key = store(machine, "sk-1", new_epoch=True)
    assert flight.result == outcome.Value(key)


def test_after_the_end_everything_fails() -> None:
    machine = machine_with()
    flight = start(machine.rejected(None, now=0))
    machine.close()
    assert isinstance(flight.result, outcome.Error)
    for decision in (machine.needs_key(now=0), machine.rejected("sk-1", now=0)):
        assert str(failure(decision)) == "authenticator closed"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (AuthenticationError("401"), RefreshFailure.REFUSED),
        (PermissionDeniedError("403"), RefreshFailure.REFUSED),
        (APIConnectionError("no route"), RefreshFailure.UNREACHABLE),
        (RateLimitError("429"), RefreshFailure.UNREACHABLE),
        (RefreshOutcomeUnknown("sent, then lost"), RefreshFailure.UNKNOWN),
        (RefreshError("printed nothing"), RefreshFailure.BROKEN),
        (BadRequestError("400"), RefreshFailure.BROKEN),
        (ValueError("a bug"), RefreshFailure.BROKEN),
    ],
)
def test_a_callable_tells_how_it_failed_by_what_it_raises(
    error: Exception, kind: RefreshFailure
) -> None:
    assert classify_refresh_failure(error) is kind


class Orders(RuleBasedStateMachine):
    """Streams, the refresh task, users and other processes, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = machine_with(None)
        self.now = 0.0
        self.keys: list[Key] = []  # every key that a stream may still hold
        self.flights: list[Flight] = []
        self.called: list[tuple[float, Flight]] = []
        self.refused_at: int | None = None
        self.closed = False

    @initialize(signed_in=st.booleans())
    def begin(self, signed_in: bool) -> None:
        if signed_in:
            self.keys.append(store(self.machine, "sk-0"))

    def new_value(self) -> str:
        return f"sk-{self.machine.record.version + 1}"

    def heed(self, decision: Decision, rejected: Key | None) -> None:
        """What every decision has to hold, whatever came before it."""
        match decision:
            case UseKey(key):
                assert key == self.machine.record.key
                if rejected is not None:
                    assert key.generation > rejected.generation
                    assert key.epoch == rejected.epoch, "accounts do not mix"
            case Join(flight):
                assert flight is self.machine.flight
                assert flight.result is None
            case Start(flight):
                assert not self.closed
                assert self.refused_at != self.machine.record.version, "a refusal is final"
                unwinding = [other for other in self.flights if other is not flight]
                assert all(other.returned for other in unwinding), "two callables at once"
                assert len(unwinding) <= 1
                self.flights.append(flight)
            case Fail(error):
                assert isinstance(error, AuthenticationError)

    @precondition(lambda self: self.keys)
    @rule(data=st.data(), model=st.sampled_from(["a", "b"]))
    def a_key_is_rejected(self, data: st.DataObject, model: str) -> None:
        key = data.draw(st.sampled_from(self.keys))
        self.heed(self.machine.rejected(key, now=self.now, origin="g", model=model), key)

    @precondition(lambda self: self.keys)
    @rule(data=st.data(), model=st.sampled_from(["a", "b"]))
    def a_key_is_accepted(self, data: st.DataObject, model: str) -> None:
        key = data.draw(st.sampled_from(self.keys))
        self.machine.accepted(key, "g", model)
        self.called = [
            (at, flight) for at, flight in self.called if flight.produced != key.generation
        ]

    @rule()
    def a_request_wants_a_key(self) -> None:
        decision = self.machine.needs_key(now=self.now)
        self.heed(decision, None)

    @rule()
    def the_key_ends_soon(self) -> None:
        decision = self.machine.due_early(now=self.now)
        if decision is not None:
            self.heed(decision, None)

    @precondition(lambda self: self.flights)
    @rule(end=st.sampled_from(["key", "same key", "refused", "broken"]))
    def the_callable_returns(self, end: str) -> None:
        flight = self.flights[0]
        if flight.returned:
            return
        self.machine.calling(flight)
        self.called.append((flight.started, flight))
        recent = [at for at, _ in self.called if at > flight.started - 30]
        assert len(recent) <= 5, "the breaker"
        flight.returned = True
        holds = self.machine.still_holds(flight)
        if end == "key" and holds:
            self.keys.append(store(self.machine, self.new_value()))
            assert flight.result is not None
        elif end == "refused":
            self.machine.refused(flight, RefreshError("refused"))
            if holds:
                self.refused_at = self.machine.record.version
        else:
            self.machine.settle(flight, AuthenticationError("Authentication failed"))

    @precondition(lambda self: self.flights)
    @rule()
    def the_flight_unwinds(self) -> None:
        flight = self.flights[0]
        if flight.returned and flight.result is not None:
            self.machine.unwound(self.flights.pop(0))

    @precondition(lambda self: self.flights)
    @rule()
    def the_flight_takes_30_seconds(self) -> None:
        flight = self.flights[0]
        self.now = max(self.now, flight.started + 30)
        self.machine.timed_out(flight, RefreshTimeout("Auth refresh timeout"))
        assert flight.result is not None

    @rule(same_account=st.booleans())
    def somebody_signs_in(self, same_account: bool) -> None:
        self.keys.append(store(self.machine, self.new_value(), new_epoch=not same_account))

    @rule()
    def somebody_signs_out(self) -> None:
        record = self.machine.record
        self.machine.observe(Record(record.version + 1, record.epoch + 1, None))

    @rule(seconds=st.sampled_from([1.0, 10.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: len(self.keys) > 3)
    @rule()
    def the_end(self) -> None:
        self.closed = True
        self.machine.close()

    @invariant()
    def an_unsettled_flight_is_for_the_account_that_is_signed_in(self) -> None:
        flight = self.machine.flight
        if flight is not None and flight.result is None:
            assert flight.epoch == self.machine.record.epoch, "accounts do not mix"
            assert self.machine.still_holds(flight)

    @invariant()
    def the_state_agrees(self) -> None:
        state = self.machine.state
        assert state.key == self.machine.record.key
        if state.status is AuthStatus.AUTHENTICATED:
            assert state.key is not None


TestOrders = Orders.TestCase
