"""The decision of refresh as a pure state machine: who refreshes, joins, or takes a newer key.

The theory. A key store gives each key a *generation*. Whatever happens is told to the machine as
a value (a record was seen, a key was rejected or accepted, a flight ended, time passed), and the
machine answers at once, without awaiting anything:

- A rejected key that is no longer the current one needs no refresh: there is a newer key.
- A rejected key that is the current one needs one *flight*, and all who come later join it.
- A flight is *settled* once, by the first of: a newer key, another account, a failure, 30 seconds,
  the end. From then on every waiter has its result. It has *unwound* when the refresh callable
  has returned; before that no other flight starts.

Times (`now`) are seconds on a monotonic clock, but where `wall` stands: those are Unix times.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

import outcome

from .errors import (
    APIConnectionError,
    AuthenticationError,
    PermissionDeniedError,
    RateLimitError,
    RefreshError,
    RefreshTimeout,
)
from .keys import Key, Record

EXCESSIVE_REFRESH_SECONDS = 30.0
MODEL_BAN_SECONDS = 60.0
EARLY_REFRESH_SECONDS = 60.0
EARLY_REFRESH_SHARE = 0.2
EARLY_REFRESH_JITTER = 0.1


class AuthStatus(StrEnum):
    """Where an authenticator stands."""

    UNAUTHENTICATED = "unauthenticated"
    AUTHENTICATING = "authenticating"
    AUTHENTICATED = "authenticated"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class AuthState:
    """What a user interface shows: the status, the key in use, and why there is none.

    >>> AuthState(AuthStatus.UNAUTHENTICATED)
    AuthState(status=<AuthStatus.UNAUTHENTICATED: 'unauthenticated'>, key=None, error=None)
    """

    status: AuthStatus
    key: Key | None = None
    error: AuthenticationError | None = None


@dataclass(slots=True, eq=False)
class Flight:
    """One refresh, from the 401 that asked for it until its callable has returned.

    `early` is true for as long as nobody waits for it: a refresh ahead of the key's end.
    `unprompted`: for as long as no gateway is said to have rejected the key.
    `returned`: its callable has, or there is none; what is left of it takes no time.
    """

    rejected: Key | None
    epoch: int
    started: float
    early: bool
    unprompted: bool
    result: outcome.Outcome[Key] | None = None
    produced: int | None = None
    returned: bool = False


@dataclass(frozen=True, slots=True)
class UseKey:
    """There is a newer key: nothing is refreshed."""

    key: Key


@dataclass(frozen=True, slots=True)
class Join:
    """A flight for this key is under way: wait for its result."""

    flight: Flight


@dataclass(frozen=True, slots=True)
class Start:
    """This 401 is the first of its generation: start the flight, then wait for its result."""

    flight: Flight


@dataclass(frozen=True, slots=True)
class Fail:
    """No refresh can help."""

    error: AuthenticationError


Decision = UseKey | Join | Start | Fail


class RefreshFailure(StrEnum):
    """How a refresh failed (design rule 6)."""

    REFUSED = "refused"
    """The server said no: final, until somebody signs in."""
    UNREACHABLE = "unreachable"
    """Nothing was spent: try again."""
    UNKNOWN = "unknown"
    """The request was sent: a single-use token may be spent. Read the store, try once more."""
    BROKEN = "broken"
    """Anything else: ends this flight, and says nothing about the next."""


class RefreshOutcomeUnknown(RefreshError):
    """An exchange failed after it was sent: whether a token was spent cannot be known."""


def classify_refresh_failure(error: Exception) -> RefreshFailure:
    """What a refresh callable says by what it raises.

    >>> classify_refresh_failure(APIConnectionError("no route")).value
    'unreachable'
    """
    match error:
        case RefreshOutcomeUnknown():
            return RefreshFailure.UNKNOWN
        case RefreshError():
            return RefreshFailure.BROKEN
        case AuthenticationError() | PermissionDeniedError():
            return RefreshFailure.REFUSED
        case APIConnectionError() | RateLimitError():
            return RefreshFailure.UNREACHABLE
        case _:
            return RefreshFailure.BROKEN


def early_refresh_time(expires_at: float, wall: float, jitter: float) -> float | None:
    """When to refresh ahead of the end (design rule 12), in Unix time; `None`: not at all.

    A key that had ended before it was first seen is left to the gateway's word: it has lain about
    for long, or a clock is wrong, and then the next key would seem to have ended, too.

    Args:
        expires_at: When the key ends.
        wall: Now, when the key was first seen.
        jitter: From 0 to 1; spreads processes that got the key at the same moment.

    >>> early_refresh_time(expires_at=3600.0, wall=0.0, jitter=0.0)
    3540.0
    >>> early_refresh_time(expires_at=100.0, wall=0.0, jitter=0.0)
    80.0
    >>> early_refresh_time(expires_at=100.0, wall=3700.0, jitter=0.0) is None
    True
    """
    if expires_at <= wall:
        return None
    lead = min(EARLY_REFRESH_SECONDS, EARLY_REFRESH_SHARE * (expires_at - wall))
    return expires_at - lead * (1 - EARLY_REFRESH_JITTER * jitter)


class RefreshMachine:
    """All that an authenticator knows and decides. Does no I/O and reads no clock.

    Args:
        can_refresh: There is a refresh callable.
        can_wait: Without a callable, a newer key may still come (design rule 13).
        can_wait_for_first: So may the first one, where there was never any.
        max_refreshes: Flights within 30 s whose keys were never accepted, before the breaker
            stops the next one (design rule 8).
    """

    def __init__(
        self,
        *,
        can_refresh: bool,
        can_wait: bool,
        can_wait_for_first: bool,
        max_refreshes: int,
    ) -> None:
        self._can_refresh = can_refresh
        self._can_wait = can_wait
        self._can_wait_for_first = can_wait_for_first
        self._max_refreshes = max_refreshes
        self.closed = False
        self._final: AuthenticationError | None = None
        self._error: AuthenticationError | None = None
        self._unaccepted: list[Flight] = []
        self._refreshed_early = 0
        self._proven: dict[str, tuple[int, set[str | None]]] = {}
        self._rejected_models: dict[tuple[str, str | None], int] = {}
        self._banned_until: dict[tuple[str, str | None], float] = {}
        self._unwinding: Flight | None = None
        self.record = Record()
        self.flight: Flight | None = None

    @property
    def state(self) -> AuthState:
        """The state that subscribers see."""
        key = self.record.key
        if self.flight is not None and self.flight.result is None and not self.flight.early:
            return AuthState(AuthStatus.AUTHENTICATING, key)
        if self._error is not None:
            return AuthState(AuthStatus.ERROR, key, self._error)
        if key is None:
            return AuthState(AuthStatus.UNAUTHENTICATED)
        return AuthState(AuthStatus.AUTHENTICATED, key)

    # What is seen

    def observe(self, record: Record) -> None:
        """The store holds `record`; settles the flight where that answers it."""
        before = self.record
        if record.key is not None:
            record = replace(record, key=self._numbered(record.key, record, before))
        self.record = record
        if record.version != before.version and not record.refused:
            self._final = None
        generation_before = before.key.generation if before.key is not None else None
        generation_now = record.key.generation if record.key is not None else None
        if generation_now != generation_before or record.epoch != before.epoch:
            self._error = None
        if record.refused and self._final is None:
            self._final = RefreshError("the gateway has refused to refresh this key: sign in again")
        flight = self.flight
        if flight is None:
            return
        # Before the first key there was no account that the new one could differ from.
        if record.epoch != flight.epoch and (flight.rejected or not record.key):
            self.settle(flight, _changed_account(record))
        elif record.key is not None and (
            flight.rejected is None or record.key.generation > flight.rejected.generation
        ):
            flight.produced = record.key.generation
            self.settle(flight, record.key)
        elif self._final is not None:
            self.settle(flight, self._final)

    @staticmethod
    def _numbered(key: Key, record: Record, before: Record) -> Key:
        """The key with its generation: a write that leaves the key as it is makes no new one."""
        if (
            before.key is not None
            and before.key.value == key.value
            and before.epoch == record.epoch
            and record.version >= before.version
        ):
            return replace(key, generation=before.key.generation, epoch=record.epoch)
        return replace(key, generation=key.generation or record.version, epoch=record.epoch)

    def accepted(self, key: Key, origin: str | None, model: str | None) -> None:
        """An event that is no error came under `key`: it is proven at `origin`."""
        self._unaccepted = [
            flight for flight in self._unaccepted if flight.produced != key.generation
        ]
        current = self.record.key
        if current is not None and current.generation == key.generation:
            self._error = None
        if origin is None:
            return
        generation, models = self._proven.get(origin, (0, set[str | None]()))
        if key.generation > generation:
            self._proven[origin] = (key.generation, {model})
        elif key.generation == generation:
            models.add(model)
        self._rejected_models.pop((origin, model), None)
        self._banned_until.pop((origin, model), None)

    def rejected(
        self,
        rejected: Key | str | None,
        *,
        now: float,
        origin: str | None = None,
        model: str | None = None,
    ) -> Decision:
        """A 401 came for `rejected`, or the caller wants another key than the current one."""
        if self.closed:
            return Fail(RefreshError("authenticator closed"))
        current = self.record.key
        key = self._identify(rejected)
        if key is not None:
            if key.epoch != self.record.epoch:
                return Fail(_changed_account(self.record))
            if current is not None and key.generation < current.generation:
                self._note_rejected_model(key, origin, model)
                return UseKey(current)
            if self._is_the_gateways_own_trouble(key, now, origin, model):
                return Fail(_own_trouble(model))
            self._note_rejected_model(key, origin, model)
        elif rejected is not None and current is not None:
            return UseKey(current)
        elif self.record.version > 0:
            return Fail(AuthenticationError("signed out: sign in first"))
        elif not (self._can_refresh or self._can_wait_for_first):
            return Fail(AuthenticationError("there is no key: sign in, or give a refresh callable"))
        unprompted = rejected is None and current is not None
        return self._refresh(key, now, early=False, unprompted=unprompted)

    def needs_key(self, *, now: float) -> Decision:
        """A request is about to be sent: which key goes into it?

        While the current key is being replaced the request waits, for it would only be rejected.
        """
        key = self.record.key
        if key is None:
            return self.rejected(None, now=now)
        if self.closed:
            return Fail(RefreshError("authenticator closed"))
        flight = self.flight
        if flight is not None and flight.result is None and not flight.early:
            return Join(flight)
        return UseKey(key)

    def key_despite(self, flight: Flight) -> Key | None:
        """The key to send although `flight` has failed: nobody says that it was rejected."""
        key = self.record.key
        usable = flight.unprompted and not self.closed
        return key if usable and key is not None and key.epoch == flight.epoch else None

    def due_early(self, *, now: float) -> Start | None:
        """The current key ends soon: a flight for it, once per generation, or nothing to do."""
        key = self.record.key
        if key is None or self.closed or not self._can_refresh or self.flight is not None:
            return None
        if key.generation <= self._refreshed_early:
            return None
        self._refreshed_early = key.generation
        decision = self._refresh(key, now, early=True, unprompted=True)
        return decision if isinstance(decision, Start) else None

    def wants_early_refresh(self) -> Key | None:
        """The current key, where it has an end and has not been refreshed ahead of it yet."""
        key = self.record.key
        if key is None or key.expires_at is None or not self._can_refresh:
            return None
        return key if key.generation > self._refreshed_early else None

    def _identify(self, rejected: Key | str | None) -> Key | None:
        """The rejected key with its generation; `None` where it is not known any more."""
        current = self.record.key
        if rejected is None:
            return current
        if isinstance(rejected, Key):
            if rejected.generation > 0:
                return rejected
            rejected = rejected.value
        return current if current is not None and current.value == rejected else None

    def _refresh(self, key: Key | None, now: float, *, early: bool, unprompted: bool) -> Decision:
        flight = self.flight
        if flight is not None and flight.result is None:
            flight.early = flight.early and early
            flight.unprompted = flight.unprompted and unprompted
            return Join(flight)
        error = self._why_not(now)
        if error is not None:
            if not early:
                self._error = error
            return Fail(error)
        self._unwinding = self.flight
        self.flight = Flight(
            key, self.record.epoch, now, early, unprompted, returned=not self._can_refresh
        )
        return Start(self.flight)

    def _why_not(self, now: float) -> AuthenticationError | None:
        """Why no flight may start, if so."""
        if self._final is not None:
            return self._final
        if not (self._can_refresh or self._can_wait):
            return AuthenticationError("Authentication failed")
        if self.flight is not None and (not self.flight.returned or self._unwinding is not None):
            # Settled, but its callable runs: a second one beside it could spend the same
            # single-use token.
            return RefreshTimeout("Auth refresh timeout")
        since = now - EXCESSIVE_REFRESH_SECONDS
        self._unaccepted = [flight for flight in self._unaccepted if flight.started > since]
        if len(self._unaccepted) >= self._max_refreshes:
            return RefreshError(
                f"excessive refresh: {len(self._unaccepted)} refreshes in "
                f"{EXCESSIVE_REFRESH_SECONDS:g} s gave no key that the gateway accepts"
            )
        return None

    # What becomes of a flight

    def settle(self, flight: Flight, result: Key | AuthenticationError) -> None:
        """The flight's result, for all who wait; the first one counts."""
        if flight.result is not None:
            return
        if isinstance(result, Key):
            flight.result = outcome.Value(result)
            return
        flight.result = outcome.Error(result)
        if not flight.early and flight.epoch == self.record.epoch and not self.closed:
            self._error = result

    def refused(self, flight: Flight, error: AuthenticationError) -> None:
        """The server refuses to refresh this key: later 401s of it fail at once."""
        if self.still_holds(flight):
            self._final = error
        self.settle(flight, error)

    def timed_out(self, flight: Flight, error: RefreshTimeout) -> None:
        """Nothing came within the time limit."""
        if flight.result is None and not self._can_refresh:
            # One wait in vain is enough, until the store changes (design rule 13).
            self._final = error
        self.settle(flight, error)

    def calling(self, flight: Flight) -> None:
        """The refresh callable is about to be called: the flight counts for the breaker."""
        if flight not in self._unaccepted:
            self._unaccepted.append(flight)

    def still_holds(self, flight: Flight) -> bool:
        """Whether the store still holds the key that the flight replaces.

        If not, somebody signed in or out, or stored a newer key: a late result is thrown away.
        """
        generation = self.record.key.generation if self.record.key is not None else None
        rejected = flight.rejected.generation if flight.rejected is not None else None
        return self.record.epoch == flight.epoch and generation == rejected

    def unwound(self, flight: Flight) -> None:
        """The flight's callable has returned: the next flight may start."""
        if self.flight is flight:
            self.flight = None
        if self._unwinding is flight:
            self._unwinding = None

    def close(self) -> None:
        """The end: settles the flight, and fails whoever comes later."""
        self.closed = True
        if self.flight is not None:
            self.settle(self.flight, RefreshError("authenticator closed"))

    # Design rule 9: the gateway's own troubles are not ours

    def _note_rejected_model(self, key: Key, origin: str | None, model: str | None) -> None:
        if origin is not None:
            seen = self._rejected_models.get((origin, model), 0)
            self._rejected_models[origin, model] = max(seen, key.generation)

    def _is_the_gateways_own_trouble(
        self, key: Key, now: float, origin: str | None, model: str | None
    ) -> bool:
        if origin is None:
            return False
        if now < self._banned_until.get((origin, model), now):
            return True
        generation, models = self._proven.get(origin, (0, set[str | None]()))
        repeated = 0 < self._rejected_models.get((origin, model), 0) < key.generation
        if repeated and generation == key.generation and model not in models:
            self._banned_until[origin, model] = now + MODEL_BAN_SECONDS
            return True
        return False


def _changed_account(record: Record) -> AuthenticationError:
    return AuthenticationError(
        "signed out: sign in first"
        if record.key is None
        else "another account has signed in: start again under it"
    )


def _own_trouble(model: str | None) -> AuthenticationError:
    name = "this model" if model is None else f"the model {model!r}"
    return AuthenticationError(
        f"the gateway accepts the key, but not for {name}: its own access to the model's provider "
        "seems broken; no refresh helps, try another model or ask the gateway's operator"
    )
