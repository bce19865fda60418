"""The rules of refresh, each by name, on the mock clock."""

from __future__ import annotations

import math
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock, assert_checkpoints

from gz_trio import (
    APIConnectionError,
    AuthenticationError,
    Authenticator,
    AuthStatus,
    Key,
    KeyStoreError,
    MemoryKeyStore,
    PermissionDeniedError,
    RateLimitError,
    Record,
    RefreshError,
    RefreshTimeout,
    open_authenticator,
)
from gz_trio._auth.shield import shielded_after_cancel
from gz_trio._protocol.errors import RetryHints
from gz_trio._protocol.refresh import RefreshOutcomeUnknown


class Refresher:
    """A refresh callable that counts its calls and does what it is told: one step a call.

    A step is what it returns or raises; the last one serves all further calls. Without steps it
    gives a new key each time.
    """

    def __init__(self, *steps: Key | str | BaseException, seconds: float = 0) -> None:
        self.steps = steps
        self.seconds = seconds
        self.calls: list[Key | None] = []
        self.cancelled = 0

    async def __call__(self, rejected: Key | None) -> Key | str:
        self.calls.append(rejected)
        try:
            await trio.sleep(self.seconds)
        except trio.Cancelled:
            self.cancelled += 1
            raise
        if not self.steps:
            return f"sk-new-{len(self.calls)}"
        step = self.steps[min(len(self.calls), len(self.steps)) - 1]
        if isinstance(step, BaseException):
            raise step
        return step


class SharedStore:
    """A store that somebody else may write to, as a `MemoryKeyStore` is taken not to be."""

    def __init__(self, key: Key | str | None = None) -> None:
        self.inner = MemoryKeyStore(key)
        self.load = self.inner.load
        self.replace = self.inner.replace
        self.changes = self.inner.changes
        self.lease = self.inner.lease

    async def written_by_another(self, **changes: object) -> None:
        record = await self.load()
        assert await self.replace(record.version, replace(record, **changes))  # type: ignore[arg-type]


class Waiters:
    """Tasks that wait for a refresh: what each of them got, and when."""

    def __init__(self) -> None:
        self.keys: list[Key] = []
        self.errors: list[BaseException] = []
        self.times: list[float] = []

    async def wait(self, ask: Callable[[], Awaitable[Key]]) -> None:
        try:
            self.keys.append(await ask())
        except (AuthenticationError, trio.Cancelled) as error:
            self.errors.append(error)
            if isinstance(error, trio.Cancelled):
                raise
        finally:
            self.times.append(trio.current_time())


@asynccontextmanager
async def waiting(
    authenticator: Authenticator, count: int, rejected: Key | str | None = None
) -> AsyncGenerator[Waiters]:
    """`count` tasks wait for the same refresh; the block ends when all have their result."""
    waiters = Waiters()
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(waiters.wait, lambda: authenticator.refresh(rejected))
        await trio.testing.wait_all_tasks_blocked()
        yield waiters


# Rule 1


async def test_rule_1_a_late_401_takes_the_newer_key_and_refreshes_nothing() -> None:
    refresh = Refresher()
    async with open_authenticator(MemoryKeyStore("sk-1"), refresh) as authenticator:
        old = await authenticator.key()
        new = await authenticator.refresh(old)
        assert new.generation == old.generation + 1
        for rejected in (old, "sk-1"):
            assert await authenticator.refresh(rejected) == new
    assert len(refresh.calls) == 1


# Rule 2


async def test_rule_2_a_key_of_another_account_is_not_replaced() -> None:
    refresh = Refresher()
    async with open_authenticator(MemoryKeyStore("sk-1"), refresh) as authenticator:
        old = await authenticator.key()
        await authenticator.sign_in("sk-of-somebody-else")
        with pytest.raises(AuthenticationError, match="another account"):
            await authenticator.refresh(old)
    assert not refresh.calls


@pytest.mark.parametrize("act", ["sign in", "sign out"])
async def test_rule_2_waiters_are_released_at_once_when_the_account_changes(
    act: str, autojump_clock: MockClock
) -> None:
    refresh = Refresher(seconds=20)
    async with open_authenticator(MemoryKeyStore("sk-1"), refresh) as authenticator:
        async with waiting(authenticator, 3) as waiters:
            await trio.sleep(1)
            if act == "sign in":
                await authenticator.sign_in("sk-2")
            else:
                await authenticator.sign_out()
        assert waiters.times == [1, 1, 1]
        assert len(waiters.errors) == 3
        await trio.testing.wait_all_tasks_blocked()
        assert refresh.cancelled == 1


async def test_rule_2_signing_in_to_the_same_account_keeps_the_epoch() -> None:
    async with open_authenticator(MemoryKeyStore("sk-1")) as authenticator:
        old = await authenticator.key()
        new = await authenticator.sign_in("sk-2", same_account=True)
        assert (new.epoch, new.generation) == (old.epoch, old.generation + 1)
        assert await authenticator.refresh(old) == new


async def test_rule_2_a_sign_out_leaves_a_tombstone() -> None:
    store = MemoryKeyStore("sk-1")
    async with open_authenticator(store) as authenticator:
        await authenticator.sign_out()
        record = await store.load()
        assert (record.version, record.epoch, record.key) == (2, 2, None)
        key = await authenticator.sign_in("sk-2")
        assert key.generation == 3


# Rules 3 and 5


async def test_rule_3_a_thousand_streams_make_one_flight() -> None:
    refresh = Refresher()
    async with open_authenticator(MemoryKeyStore("sk-1"), refresh) as authenticator:
        async with waiting(authenticator, 1000) as waiters:
            pass
        assert {key.value for key in waiters.keys} == {"sk-new-1"}
        assert len(waiters.keys) == 1000
    assert len(refresh.calls) == 1


async def test_rule_5_a_refusal_is_shared_by_a_thousand_in_the_tick_it_came(
    autojump_clock: MockClock,
) -> None:
    refusal = AuthenticationError("no")
    refresh = Refresher(refusal, seconds=3)
    ticks = _Ticks()
    async with open_authenticator(MemoryKeyStore("sk-1"), refresh) as authenticator:
        async with waiting(authenticator, 1000) as waiters:
            trio.lowlevel.add_instrument(ticks)
        trio.lowlevel.remove_instrument(ticks)
    assert len(refresh.calls) == 1
    assert waiters.times == [3] * 1000
    assert all(isinstance(error, RefreshError) for error in waiters.errors)
    assert len({id(error) for error in waiters.errors}) == 1000, "each has one of its own"
    assert {error.__cause__ for error in waiters.errors} == {refusal}
    # All were made runnable together, so they ran in one pass of the scheduler.
    assert max(ticks.tasks_a_pass) >= 1000


class _Ticks(trio.abc.Instrument):
    """How many tasks ran in each pass of Trio's scheduler."""

    def __init__(self) -> None:
        self.tasks_a_pass = [0]

    def after_io_wait(self, timeout: float) -> None:
        self.tasks_a_pass.append(0)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.tasks_a_pass[-1] += 1


# Rule 4


async def test_rule_4_cancelling_the_first_waiter_leaves_the_flight_and_the_others_alone(
    autojump_clock: MockClock,
) -> None:
    refresh = Refresher(seconds=5)
    async with open_authenticator(MemoryKeyStore("sk-1"), refresh) as authenticator:
        async with trio.open_nursery() as nursery:
            first = trio.CancelScope()

            async def ask_first() -> None:
                with first:
                    await authenticator.refresh()

            nursery.start_soon(ask_first)
            await trio.testing.wait_all_tasks_blocked()
            async with waiting(authenticator, 999) as others:
                first.cancel()
        assert first.cancelled_caught
        assert len(others.keys) == 999
    assert len(refresh.calls) == 1
    assert refresh.cancelled == 0


async def test_rule_4_fire_and_forget_never_blocks() -> None:
    refresh = Refresher()
    async with open_authenticator(MemoryKeyStore("sk-1"), refresh) as authenticator:
        for _ in range(100):
            authenticator.request_refresh()
        assert authenticator.state.status is AuthStatus.AUTHENTICATING
        assert (await authenticator.key()).value == "sk-new-1"
    assert len(refresh.calls) == 1


# Rule 6


@pytest.mark.parametrize("refusal", [AuthenticationError("401"), PermissionDeniedError("403")])
async def test_rule_6_a_refused_generation_fails_at_once_until_somebody_signs_in(
    refusal: Exception,
) -> None:
    refresh = Refresher(refusal)
    store = MemoryKeyStore("sk-1")
    async with open_authenticator(store, refresh) as authenticator:
        for _ in range(3):
            with pytest.raises(RefreshError, match="refused"):
                await authenticator.refresh()
        assert len(refresh.calls) == 1
        await trio.testing.wait_all_tasks_blocked()
        assert (await store.load()).refused, "other processes are told"
        assert authenticator.state.status is AuthStatus.ERROR
        await authenticator.sign_in("sk-2")
        refresh.steps = ("sk-3",)
        assert (await authenticator.refresh()).value == "sk-3"


async def test_rule_6_a_refusal_reads_the_store_once_more() -> None:
    store = SharedStore("sk-1")

    async def refresh(rejected: Key | None) -> str:
        # Another process has spent the single-use token meanwhile.
        await store.written_by_another(key=Key("sk-of-the-other"))
        raise AuthenticationError("invalid_grant")

    async with open_authenticator(store, refresh) as authenticator:
        assert (await authenticator.refresh()).value == "sk-of-the-other"
    assert not (await store.load()).refused


async def test_rule_6_unreachable_is_tried_again_with_a_growing_pause(
    autojump_clock: MockClock,
) -> None:
    unreachable = APIConnectionError("no route")
    refresh = Refresher(unreachable, RateLimitError("429"), unreachable, "sk-2")
    store = MemoryKeyStore("sk-1")
    async with open_authenticator(store, refresh) as authenticator:
        assert (await authenticator.refresh()).value == "sk-2"
    assert len(refresh.calls) == 4
    assert 0 < trio.current_time() < 30


async def test_rule_6_unreachable_for_30_seconds_is_a_timeout_and_the_old_key_stays(
    autojump_clock: MockClock,
) -> None:
    unreachable = APIConnectionError("no route")
    store = MemoryKeyStore("sk-1")
    async with open_authenticator(store, Refresher(unreachable)) as authenticator:
        with pytest.raises(RefreshTimeout) as caught:
            await authenticator.refresh()
        assert caught.value.__cause__ is unreachable
        assert trio.current_time() == 30
        record = await store.load()
        assert record.key is not None
        assert (record.key.value, record.refused) == ("sk-1", False)


async def test_rule_6_a_retry_after_is_respected(autojump_clock: MockClock) -> None:
    limited = RateLimitError("429", hints=RetryHints(retry_after=12))
    async with open_authenticator(
        MemoryKeyStore("sk-1"), Refresher(limited, "sk-2")
    ) as authenticator:
        await authenticator.refresh()
    assert trio.current_time() == 12


async def test_rule_6_an_unknown_outcome_is_tried_once_more_at_once(
    autojump_clock: MockClock,
) -> None:
    refresh = Refresher(RefreshOutcomeUnknown("sent, then lost"))
    async with open_authenticator(MemoryKeyStore("sk-1"), refresh) as authenticator:
        with pytest.raises(RefreshError, match="sent, then lost"):
            await authenticator.refresh()
        assert (len(refresh.calls), trio.current_time()) == (2, 0)


@pytest.mark.parametrize(
    "bug", [ValueError("bug"), ExceptionGroup("two", [ValueError("bug")]), RefreshError("odd")]
)
async def test_rule_6_anything_else_ends_this_flight_only(bug: Exception) -> None:
    refresh = Refresher(bug, "sk-2")
    async with open_authenticator(MemoryKeyStore("sk-1"), refresh) as authenticator:
        with pytest.raises(RefreshError) as caught:
            await authenticator.refresh()
        if not isinstance(bug, RefreshError):
            assert caught.value.__cause__ is bug
        assert len(refresh.calls) == 1
        assert (await authenticator.refresh()).value == "sk-2"


# Rule 7


async def test_rule_7_the_timeout_falls_at_30_seconds_whatever_the_callable_does(
    autojump_clock: MockClock,
) -> None:
    async def stubborn(rejected: Key | None) -> str:
        with trio.CancelScope(shield=True):  # as a thread is: it cannot be cancelled
            await trio.sleep(50)
        return "sk-late"

    store = MemoryKeyStore("sk-1")
    async with open_authenticator(store, stubborn) as authenticator:
        async with waiting(authenticator, 100) as waiters:
            await trio.sleep(10)
        assert waiters.times == [30] * 100
        assert {str(error) for error in waiters.errors} == {"Auth refresh timeout"}
        assert all(type(error) is RefreshTimeout for error in waiters.errors)
        # No second flight before the first has unwound: a 401 meanwhile has its answer at once.
        with pytest.raises(RefreshTimeout):
            await authenticator.refresh()
        assert trio.current_time() == 30
        await trio.sleep(21)
        # The token was paid for, so it was kept.
        assert (await authenticator.key()).value == "sk-late"


async def test_rule_7_the_callable_of_a_user_is_cancelled_at_30_seconds(
    autojump_clock: MockClock,
) -> None:
    refresh = Refresher(seconds=math.inf)
    async with open_authenticator(MemoryKeyStore("sk-1"), refresh) as authenticator:
        with pytest.raises(RefreshTimeout):
            await authenticator.refresh()
        await trio.testing.wait_all_tasks_blocked()
        assert refresh.cancelled == 1


@pytest.mark.parametrize(("seconds", "kept"), [(39, True), (41, False)])
async def test_rule_7_an_exchange_that_was_sent_has_10_seconds_more(
    seconds: float, kept: bool, autojump_clock: MockClock
) -> None:
    async def exchange() -> str:
        await trio.sleep(seconds)
        return "sk-paid-for"

    async def ours(rejected: Key | None) -> str:
        return await shielded_after_cancel(10, exchange)

    store = MemoryKeyStore("sk-1")
    async with open_authenticator(store, ours) as authenticator:
        with pytest.raises(RefreshTimeout):
            await authenticator.refresh()
        assert trio.current_time() == 30
    record = await store.load()
    assert record.key is not None
    assert record.key.value == ("sk-paid-for" if kept else "sk-1")


# Rule 8


async def test_rule_8_a_refresh_that_gives_the_rejected_key_back_fails() -> None:
    async with open_authenticator(MemoryKeyStore("sk-1"), Refresher("sk-1")) as authenticator:
        with pytest.raises(AuthenticationError) as caught:
            await authenticator.refresh()
    assert str(caught.value) == "Authentication failed"


async def test_rule_8_the_breaker_stops_flights_whose_keys_nobody_accepts() -> None:
    refresh = Refresher()
    async with open_authenticator(
        MemoryKeyStore("sk-1"), refresh, max_refreshes=3
    ) as authenticator:
        for _ in range(3):
            await authenticator.refresh()
        with pytest.raises(RefreshError, match="excessive refresh"):
            await authenticator.refresh()
        key = await authenticator.key()
        authenticator.accepted(key)
        await authenticator.refresh()
    assert len(refresh.calls) == 4


# Rule 9 is the state machine's (tests/protocol/test_refresh.py) and the reply's (tests/chat).

# Rule 10


async def test_rule_10_a_sign_out_wins_over_a_refresh_that_is_under_way(
    autojump_clock: MockClock,
) -> None:
    store = SharedStore("sk-1")

    async def stubborn(rejected: Key | None) -> str:
        with trio.CancelScope(shield=True):
            await trio.sleep(5)
        return "sk-late"

    async with open_authenticator(store, stubborn) as authenticator:
        async with waiting(authenticator, 1) as waiters:
            await store.written_by_another(key=None, epoch=2)  # in another process
        assert "signed out" in str(waiters.errors[0])
        assert trio.current_time() == 0
        await trio.sleep(6)
        assert (await store.load()).key is None
        assert authenticator.state.status is AuthStatus.UNAUTHENTICATED


# Rule 11


async def test_rule_11_a_newer_key_in_the_store_is_used_before_anything_is_spent() -> None:
    refresh = Refresher()
    store = SharedStore("sk-1")

    # It tells of no changes, so that only the read before the refresh can see them.
    deaf = SharedStore()
    deaf.load, deaf.replace, deaf.lease = store.load, store.replace, store.lease
    async with open_authenticator(deaf, refresh) as authenticator:
        old = await authenticator.key()
        await store.written_by_another(key=Key("sk-of-another-process"))
        assert (await authenticator.refresh(old)).value == "sk-of-another-process"
    assert not refresh.calls


@pytest.mark.parametrize("answer", ["sk-2", Key("sk-2"), Key("sk-2", refresh_token="rt-2")])
async def test_rule_11_an_answer_without_a_refresh_token_keeps_the_old_one(
    answer: Key | str,
) -> None:
    store = MemoryKeyStore(Key("sk-1", refresh_token="rt-1"))
    refresh = Refresher(answer)
    async with open_authenticator(store, refresh) as authenticator:
        key = await authenticator.refresh()
        assert refresh.calls[0] is not None
        assert refresh.calls[0].refresh_token == "rt-1"
    expected = answer.refresh_token if isinstance(answer, Key) else None
    assert key.refresh_token == (expected or "rt-1")
    assert (await store.load()).key == key, "written before anybody was told"


# Rule 12


async def test_rule_12_a_key_with_a_known_end_is_refreshed_ahead_of_it(
    autojump_clock: MockClock,
) -> None:
    refresh = Refresher(Key("sk-2", expires_at=10_000))
    async with open_authenticator(
        MemoryKeyStore(Key("sk-1", expires_at=600)), refresh, now=trio.current_time
    ) as authenticator:
        await trio.sleep(539)
        assert not refresh.calls
        assert (await authenticator.key()).value == "sk-1"
        await trio.sleep(8)
        assert len(refresh.calls) == 1
        assert (await authenticator.key()).value == "sk-2"


async def test_rule_12_streams_go_on_with_the_old_key_meanwhile_and_if_it_fails(
    autojump_clock: MockClock,
) -> None:
    refresh = Refresher(ValueError("no"), seconds=5)
    async with open_authenticator(
        MemoryKeyStore(Key("sk-1", expires_at=600)), refresh, now=trio.current_time
    ) as authenticator:
        await trio.sleep(547)
        assert refresh.calls
        assert (await authenticator.key()).value == "sk-1"
        assert trio.current_time() == 547
        await trio.sleep(1000)
        assert len(refresh.calls) == 1, "once per generation"
        assert authenticator.state.status is AuthStatus.AUTHENTICATED


@pytest.mark.parametrize("ahead", [3600, -3600])
async def test_rule_12_a_clock_that_is_an_hour_wrong_leads_to_no_refreshes_without_end(
    ahead: int, autojump_clock: MockClock
) -> None:
    """Keys live for half an hour; the server that says when they end has the right time."""
    calls = 0

    async def refresh(_: Key | None) -> Key:
        nonlocal calls
        calls += 1
        await trio.sleep(0.1)
        return Key(f"sk-{calls}", expires_at=100_000 + trio.current_time() + 1800)

    async with open_authenticator(
        MemoryKeyStore("sk-0"), refresh, now=lambda: 100_000 + ahead + trio.current_time()
    ) as authenticator:
        for hour in range(1, 10):
            with trio.move_on_at(hour * 3600):
                async with authenticator.subscribe() as states:
                    async for state in states:
                        if state.key is not None:
                            authenticator.accepted(state.key)
            assert calls <= hour - 1
            await authenticator.refresh()  # The gateway has rejected it.
            assert calls <= hour


@pytest.mark.parametrize(("one", "other"), [(0, 3600), (0, -3600), (-1800, 1800)])
async def test_rule_12_two_hosts_whose_clocks_are_an_hour_apart_lose_no_key(
    one: int, other: int, autojump_clock: MockClock
) -> None:
    """The gateway takes a key for half an hour, by a clock of its own."""
    calls, ends_at = 0, 1800.0

    async def refresh(_: Key | None) -> Key:
        nonlocal calls, ends_at
        calls += 1
        await trio.sleep(0.1)
        ends_at = trio.current_time() + 1800
        return Key(f"sk-{calls}", expires_at=100_000 + ends_at)

    def clock(ahead: int) -> Callable[[], float]:
        return lambda: 100_000 + ahead + trio.current_time()

    store = MemoryKeyStore("sk-0")
    async with (
        open_authenticator(store, refresh, now=clock(one)) as here,
        open_authenticator(store, refresh, now=clock(other)) as there,
    ):
        for _ in range(40):
            await trio.sleep(600)
            for authenticator in (here, there):
                key = await authenticator.key()
                if trio.current_time() >= ends_at:
                    key = await authenticator.refresh(key)
                authenticator.accepted(key)
            await trio.sleep(1)
            assert (await here.key()).value == (await there.key()).value == f"sk-{calls}"
    assert calls <= 2 * 40 * 600 / 1800


async def test_rule_12_a_clock_that_is_set_back_an_hour_loses_no_key(
    autojump_clock: MockClock,
) -> None:
    set_back = 0
    refresh = Refresher()
    store = MemoryKeyStore(Key("sk-0", expires_at=100_000 + 1800))
    async with open_authenticator(
        store, refresh, now=lambda: 100_000 - set_back + trio.current_time()
    ) as authenticator:
        await trio.sleep(900)
        set_back = 3600
        await trio.sleep(1800)
        assert (await authenticator.key()).value == "sk-0"
        new = await authenticator.refresh("sk-0")  # The gateway has rejected it.
        await trio.sleep(1800)
        assert await authenticator.key() == new
    assert len(refresh.calls) <= 2


# Rule 13


@pytest.mark.parametrize("shared", [True, False], ids=["shared store", "wait_for_sign_in"])
async def test_rule_13_without_a_callable_a_401_waits_for_a_newer_key_of_its_account(
    shared: bool, autojump_clock: MockClock
) -> None:
    store = SharedStore("sk-1") if shared else MemoryKeyStore("sk-1")
    async with open_authenticator(store, wait_for_sign_in=not shared) as authenticator:
        async with waiting(authenticator, 10) as waiters:
            await trio.sleep(7)
            await authenticator.sign_in("sk-2", same_account=True)
        assert [key.value for key in waiters.keys] == ["sk-2"] * 10
        assert waiters.times == [7] * 10


async def test_rule_13_after_one_wait_in_vain_it_fails_at_once_until_the_store_changes(
    autojump_clock: MockClock,
) -> None:
    async with open_authenticator(MemoryKeyStore("sk-1"), wait_for_sign_in=True) as authenticator:
        for _ in range(3):
            with pytest.raises(RefreshTimeout):
                await authenticator.refresh()
            assert trio.current_time() == 30
        await authenticator.sign_in("sk-2", same_account=True)
        with trio.move_on_after(5) as scope:
            await authenticator.refresh()
        assert scope.cancelled_caught


async def test_rule_13_a_newer_key_in_a_store_that_tells_of_no_changes_is_found(
    autojump_clock: MockClock,
) -> None:
    store = SharedStore("sk-1")
    deaf = SharedStore()
    deaf.load, deaf.replace, deaf.lease = store.load, store.replace, store.lease
    async with open_authenticator(deaf) as authenticator:
        with pytest.raises(RefreshTimeout):
            await authenticator.refresh("sk-1")
        await store.written_by_another(key=Key("sk-2"))
        assert (await authenticator.refresh("sk-1")).value == "sk-2"


@pytest.mark.parametrize("outcome", ["sk-1", AuthenticationError("refused"), ValueError("a bug")])
async def test_a_refresh_that_was_only_wished_for_costs_no_request_its_key(
    autojump_clock: MockClock, outcome: str | Exception
) -> None:
    async with open_authenticator(MemoryKeyStore("sk-1"), Refresher(outcome, seconds=5)) as auth:
        auth.request_refresh()
        assert (await auth.key()).value == "sk-1"
        with pytest.raises(AuthenticationError):
            await auth.refresh()


async def test_a_request_that_waits_for_a_rejected_key_fails_with_its_refresh(
    autojump_clock: MockClock,
) -> None:
    refresher = Refresher(AuthenticationError("refused"), seconds=5)
    async with open_authenticator(MemoryKeyStore("sk-1"), refresher) as auth:
        auth.request_refresh()
        auth.request_refresh("sk-1")  # now a gateway is said to have rejected it
        with pytest.raises(AuthenticationError):
            await auth.key()
    assert len(refresher.calls) == 1


@pytest.mark.parametrize("make", [str, Key])
async def test_a_key_of_ones_own_making_is_told_by_its_value(
    make: Callable[[str], Key | str],
) -> None:
    refresher = Refresher("sk-2")
    async with open_authenticator(MemoryKeyStore("sk-1"), refresher) as authenticator:
        for _ in range(2):
            assert (await authenticator.refresh(make("sk-1"))).value == "sk-2"
    assert len(refresher.calls) == 1


async def test_rule_13_a_store_that_is_half_written_is_waited_for(
    autojump_clock: MockClock,
) -> None:
    store = SharedStore("sk-1")
    load = store.load
    async with open_authenticator(store) as authenticator:

        async def half_written() -> Record:
            raise KeyStoreError("half-written")

        store.load = half_written
        async with waiting(authenticator, 1) as waiters:
            await trio.sleep(1)
            store.load = load
            await store.written_by_another(key=Key("sk-2"))
        assert [key.value for key in waiters.keys] == ["sk-2"]
        assert trio.current_time() == 1


async def test_rule_13_a_plain_key_fails_at_once() -> None:
    async with open_authenticator(MemoryKeyStore("sk-1")) as authenticator:
        with pytest.raises(AuthenticationError, match=r"^Authentication failed$"):
            await authenticator.refresh()


# The state, and who listens


async def test_subscribers_get_the_current_state_first_and_then_every_change(
    autojump_clock: MockClock,
) -> None:
    async with (
        open_authenticator(MemoryKeyStore("sk-1"), Refresher(seconds=1)) as authenticator,
        authenticator.subscribe() as states,
    ):
        assert (await states.receive()).status is AuthStatus.AUTHENTICATED
        authenticator.request_refresh()
        assert (await states.receive()).status is AuthStatus.AUTHENTICATING
        state = await states.receive()
        assert state == authenticator.state
        assert state.key is not None
        assert state.key.value == "sk-new-1"


async def test_a_slow_subscriber_misses_what_was_overtaken_but_never_the_last_state() -> None:
    async with (
        open_authenticator(MemoryKeyStore("sk-1"), Refresher()) as authenticator,
        authenticator.subscribe() as states,
    ):
        for _ in range(3):
            await authenticator.refresh()
        await authenticator.sign_out()
        assert (await states.receive()).status is AuthStatus.UNAUTHENTICATED
        with trio.move_on_after(0) as scope:
            await states.receive()
        assert scope.cancelled_caught, "nothing else is waiting"


async def test_a_subscriber_that_closed_its_channel_holds_nobody_up() -> None:
    async with (
        open_authenticator(MemoryKeyStore("sk-1"), Refresher()) as authenticator,
        authenticator.subscribe() as states,
    ):
        await states.aclose()
        assert (await authenticator.refresh()).value == "sk-new-1"


class Listener:
    """Reads every state that it is told of, and notes when."""

    def __init__(self) -> None:
        self.told: list[tuple[float, AuthStatus]] = []

    async def listen(
        self,
        authenticator: Authenticator,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        async with authenticator.subscribe() as states:
            task_status.started()
            async for state in states:
                self.told.append((trio.current_time(), state.status))


A_REFRESH_OF_3_SECONDS = [
    (0, AuthStatus.AUTHENTICATED),
    (1, AuthStatus.AUTHENTICATING),
    (4, AuthStatus.AUTHENTICATED),
]


async def refreshed_beside(
    nursery: trio.Nursery, authenticator: Authenticator, *, listeners: int = 999
) -> list[Listener]:
    """Many listeners hear of a refresh of 3 s that begins at 1 s; gives them when it is over."""
    others = [Listener() for _ in range(listeners)]
    for other in others:
        await nursery.start(other.listen, authenticator)
    await trio.sleep(1)
    await authenticator.refresh()
    assert trio.current_time() == 4
    await trio.testing.wait_all_tasks_blocked()
    return others


async def test_a_listener_that_goes_on_with_a_clone_of_its_channel_holds_nobody_up() -> None:
    async with (
        open_authenticator(MemoryKeyStore("sk-1"), Refresher()) as authenticator,
        authenticator.subscribe() as states,
    ):
        assert isinstance(states, trio.MemoryReceiveChannel)
        clone = states.clone()
        states.close()
        for _ in range(3):
            await authenticator.refresh()
        assert (await clone.receive()) == authenticator.state
        clone.close()


async def test_of_a_thousand_listeners_one_that_never_reads_holds_up_neither_refresh_nor_others(
    autojump_clock: MockClock,
) -> None:
    refresh = Refresher(seconds=3)
    async with (
        open_authenticator(MemoryKeyStore("sk-1"), refresh) as authenticator,
        authenticator.subscribe() as unread,
        trio.open_nursery() as nursery,
    ):
        others = await refreshed_beside(nursery, authenticator)
        assert {tuple(other.told) for other in others} == {tuple(A_REFRESH_OF_3_SECONDS)}
        assert len(refresh.calls) == 1
        # Whoever looks late sees how it is now.
        assert await unread.receive() == authenticator.state
        nursery.cancel_scope.cancel()


async def test_a_listener_that_is_cancelled_while_it_waits_holds_nobody_up_and_may_listen_again(
    autojump_clock: MockClock,
) -> None:
    async with (
        open_authenticator(MemoryKeyStore("sk-1"), Refresher(seconds=3)) as authenticator,
        authenticator.subscribe() as states,
        trio.open_nursery() as nursery,
    ):
        await states.receive()
        scope = trio.CancelScope()

        async def wait_in_vain() -> None:
            with scope:
                await states.receive()

        async def cancel_at_the_moment_of_the_refresh() -> None:
            await trio.sleep(1)
            scope.cancel()

        nursery.start_soon(wait_in_vain)
        nursery.start_soon(cancel_at_the_moment_of_the_refresh)
        others = await refreshed_beside(nursery, authenticator)
        assert scope.cancelled_caught
        assert {tuple(other.told) for other in others} == {tuple(A_REFRESH_OF_3_SECONDS)}
        assert await states.receive() == authenticator.state
        nursery.cancel_scope.cancel()


async def test_a_listener_that_leaves_during_a_refresh_holds_nobody_up(
    autojump_clock: MockClock,
) -> None:
    async with (
        open_authenticator(MemoryKeyStore("sk-1"), Refresher(seconds=3)) as authenticator,
        trio.open_nursery() as nursery,
    ):

        async def listen_until_it_begins() -> None:
            async with authenticator.subscribe() as states:
                async for state in states:
                    if state.status is AuthStatus.AUTHENTICATING:
                        return

        for _ in range(10):
            nursery.start_soon(listen_until_it_begins)
        others = await refreshed_beside(nursery, authenticator)
        assert {tuple(other.told) for other in others} == {tuple(A_REFRESH_OF_3_SECONDS)}
        assert len(nursery.child_tasks) == len(others)
        nursery.cancel_scope.cancel()


async def test_what_a_listener_raises_is_its_own_and_ends_no_refresh(
    autojump_clock: MockClock,
) -> None:
    mine = ValueError("a bug in the listener")
    refresh = Refresher(seconds=3)
    async with open_authenticator(MemoryKeyStore("sk-1"), refresh) as authenticator:

        async def listen() -> None:
            async with authenticator.subscribe() as states:
                async for state in states:
                    if state.status is AuthStatus.AUTHENTICATING:
                        raise mine

        async with waiting(authenticator, 10) as waiters:
            with pytest.raises(ValueError, match=str(mine)) as caught:
                await listen()
            assert caught.value is mine
        assert [key.value for key in waiters.keys] == ["sk-new-1"] * 10
    assert len(refresh.calls) == 1


async def test_a_listener_may_ask_for_the_key_that_it_hears_of(autojump_clock: MockClock) -> None:
    async with (
        open_authenticator(MemoryKeyStore("sk-1"), Refresher(seconds=3)) as authenticator,
        authenticator.subscribe() as states,
    ):
        assert (await states.receive()).status is AuthStatus.AUTHENTICATED
        authenticator.request_refresh()
        assert (await states.receive()).status is AuthStatus.AUTHENTICATING
        assert (await authenticator.key()).value == "sk-new-1"
        assert (await states.receive()).key == await authenticator.key()


@pytest.mark.parametrize(
    "failure",
    [AuthenticationError("refused"), RefreshTimeout("too late"), ZeroDivisionError("bug")],
)
async def test_who_fires_and_forgets_gets_no_error_but_listeners_do(failure: Exception) -> None:
    async with (
        open_authenticator(MemoryKeyStore("sk-1"), Refresher(failure)) as authenticator,
        authenticator.subscribe() as states,
    ):
        await states.receive()
        authenticator.request_refresh()
        assert (await states.receive()).status is AuthStatus.AUTHENTICATING
        state = await states.receive()
        assert state.status is AuthStatus.ERROR
        assert isinstance(state.error, RefreshError)
        assert state.error is failure or state.error.__cause__ is failure
        authenticator.request_refresh()  # of what was refused: nothing is raised either


async def test_firing_for_a_key_that_was_replaced_or_at_a_closed_authenticator_does_nothing() -> (
    None
):
    refresh = Refresher()
    async with open_authenticator(MemoryKeyStore("sk-1"), refresh) as authenticator:
        old = await authenticator.key()
        await authenticator.refresh()
        authenticator.request_refresh(old)
        authenticator.request_refresh("sk-1")
        assert authenticator.state.status is AuthStatus.AUTHENTICATED
        await trio.testing.wait_all_tasks_blocked()
    authenticator.request_refresh()
    assert len(refresh.calls) == 1


async def test_a_subscription_ends_with_the_authenticator() -> None:
    async with open_authenticator(MemoryKeyStore("sk-1")) as authenticator:
        before = authenticator.subscribe()
        states = await before.__aenter__()
    assert [state.status async for state in states] == [AuthStatus.AUTHENTICATED]
    await before.__aexit__(None, None, None)
    async with authenticator.subscribe() as states:
        assert [state.status async for state in states] == [AuthStatus.AUTHENTICATED]


async def test_every_method_that_waits_is_a_checkpoint() -> None:
    async with open_authenticator(MemoryKeyStore("sk-1"), Refresher()) as authenticator:
        old = await authenticator.key()
        for ask in (
            authenticator.key,
            authenticator.refresh,
            lambda: authenticator.refresh(old),
            lambda: authenticator.sign_in("sk-2"),
            authenticator.sign_out,
        ):
            with assert_checkpoints():
                await ask()


async def test_the_first_key_comes_by_a_refresh_where_the_store_is_empty() -> None:
    refresh = Refresher()
    async with open_authenticator(MemoryKeyStore(), refresh) as authenticator:
        assert authenticator.state.status is AuthStatus.UNAUTHENTICATED
        assert (await authenticator.key()).value == "sk-new-1"
    assert refresh.calls == [None]


# Ways out


async def test_closing_releases_a_thousand_who_wait_even_if_the_callable_does_not_end(
    autojump_clock: MockClock,
) -> None:
    async def stubborn(rejected: Key | None) -> str:
        with trio.CancelScope(shield=True):
            await trio.sleep(100)
        return "sk-late"

    waiters = Waiters()
    async with (
        trio.open_nursery() as nursery,
        open_authenticator(MemoryKeyStore("sk-1"), stubborn) as authenticator,
    ):
        for _ in range(1000):
            nursery.start_soon(waiters.wait, authenticator.refresh)
        await trio.sleep(1)
    assert waiters.times == [1] * 1000
    assert {str(error) for error in waiters.errors} == {"authenticator closed"}
    with pytest.raises(RefreshError, match="authenticator closed"):
        await authenticator.refresh()


async def test_the_users_exception_comes_out_as_the_same_object_though_cancelled_outside() -> None:
    mine = ValueError("mine")
    with trio.CancelScope() as outer, pytest.raises(ValueError, match="mine") as caught:
        async with open_authenticator(MemoryKeyStore("sk-1"), Refresher(seconds=math.inf)):
            outer.cancel()
            raise mine
    assert caught.value is mine


async def test_a_group_of_the_users_own_is_left_whole() -> None:
    mine = ExceptionGroup("mine", [ValueError(), KeyError()])
    with pytest.raises(ExceptionGroup) as caught:
        async with open_authenticator(MemoryKeyStore("sk-1")):
            raise mine
    assert caught.value is mine


def test_ctrl_c_in_the_callable_comes_out_as_itself() -> None:
    async def refresh(rejected: Key | None) -> str:
        signal.raise_signal(signal.SIGINT)
        return "sk-never"

    async def main() -> None:
        async with open_authenticator(MemoryKeyStore("sk-1"), refresh) as authenticator:
            with suppress(RefreshError):  # its own waiter is told first
                await authenticator.refresh()
            await trio.sleep_forever()

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)


async def test_a_store_that_fails_during_a_flight_is_the_flights_result() -> None:
    async def disk_full(expected_version: int, record: Record) -> bool:
        raise OSError(28, "No space left on device")

    store = SharedStore("sk-1")
    store.replace = disk_full
    async with open_authenticator(store, Refresher()) as authenticator:
        with pytest.raises(RefreshError) as caught:
            await authenticator.refresh()
        assert isinstance(caught.value.__cause__, OSError)
        assert (await authenticator.key()).value == "sk-1"


@pytest.mark.parametrize("answer", ["", "  ", "sk-1\nX-Evil: 1", None, 7])
async def test_an_answer_that_is_no_key_fails_and_stores_nothing(answer: object) -> None:
    async def refresh(rejected: Key | None) -> str:
        return answer  # type: ignore[return-value]

    store = MemoryKeyStore("sk-0")
    async with open_authenticator(store, refresh) as authenticator:
        with pytest.raises(RefreshError) as caught:
            await authenticator.refresh()
        assert "X-Evil" not in str(caught.value)
    record = await store.load()
    assert record.key is not None
    assert record.key.value == "sk-0"


@pytest.mark.parametrize("bad", [{"timeout": 0.0}, {"timeout": math.nan}, {"max_refreshes": 0}])
async def test_bad_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        async with open_authenticator(MemoryKeyStore("sk-1"), **bad):  # type: ignore[arg-type]
            pass
