"""The front end's plan for a coordinated refresh, item by item: each has a test of its name.

This library grew from the plan of a browser's front end. Its `requestAuthRefresh()` is here
`Authenticator.refresh`, or `request_refresh` for those who do not wait; its coordinator is the
authenticator; the completion event is what waiters and subscribers are told; local storage is a
key store, a tab is an authenticator of its own over that store, and the user interface is whoever
reads `Reply.events`. What the plan only says of TypeScript's files has no test.
"""

from __future__ import annotations

import random
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal, cast

import pytest
import trio
from trio.testing import MockClock, assert_no_checkpoints, wait_all_tasks_blocked

from gz_trio import (
    APIConnectionError,
    AuthenticationError,
    Authenticator,
    AuthState,
    AuthStatus,
    Delta,
    FileKeyStore,
    Finished,
    GatewayRefresh,
    Key,
    KeyStore,
    MemoryKeyStore,
    Paused,
    RateLimited,
    Record,
    RefreshError,
    RefreshTimeout,
    ReplyEvent,
    Resumed,
    Session,
    open_authenticator,
    open_gateway,
    open_session,
)
from gz_trio.testing import Cut, ErrorFrame, FakeGateway, Reset, Stall, Status
from tests.chats import BODY, Ticks, Told, after_deltas, deltas_of, open_over, tell
from tests.cli.terminal import run_piped

AUTHENTICATED, AUTHENTICATING = AuthStatus.AUTHENTICATED, AuthStatus.AUTHENTICATING
LOG_IN_AGAIN = "Authentication failed after refresh attempt. Please log in again."

PLAN = {
    "Phase1": (
        "Test event firing order",
        "Modify `requestAuthRefresh()` to return Promise",
        "Update auth context to dispatch completion event after sync",
        "After error state → dispatch completion (not success) so clients can handle",
        "Timeout after 30s to prevent hanging",
        "Add tests for promise resolution/rejection",
        "Test 401 scenarios with new flow",
    ),
    "Phase2": (
        "Unit test coordinator class",
        "Mark as refreshing, prevent multiple refreshes",
        "Wait for existing refresh",
        "Implement `handleAuthError()` method",
        "Add `getApiKey()` method",
        "Test with chat scenarios",
    ),
    "Phase3": (
        "E2E test with real chat",
        "Update 401 handler to use coordinator",
        "Implement retry with new API key",
        "Authentication failed after refresh attempt. Please log in again.",
        "Authentication failed",
        "Test rate limiting still works",
        "Test network errors still work",
        "Manual E2E chat test",
    ),
    "Phase4": (
        "Verify no regressions",
        "Remove polling interval",
        "Keep event listeners",
        "Test chat still detects auth changes",
        "Monitor localStorage access",
    ),
    "Phase5": (
        "Verify no stale state issues",
        "Use auth context",
        "Test auth state flows",
        "Verify no race conditions",
    ),
    "UnitTests": (
        "`stream-coordinator.ts` - Mock auth refresh events",
        "`api.ts` - Test promise resolution/rejection",
    ),
    "IntegrationTests": (
        "Complete auth refresh flow with streaming",
        "401 during stream → refresh → retry",
        "Multiple 401s in quick succession",
        "Auth refresh timeout handling",
        "Storage event + custom event coordination",
    ),
    "E2ETests": (
        "Real chat with 401 injection",
        "Verify stream resumes after refresh",
        "Verify UI updates properly",
        "Verify no double messages",
    ),
    "ManualTesting": (
        "Real chat scenarios",
        "Network throttling to trigger 401",
        "Multi-tab auth sync",
        "Performance monitoring",
    ),
    "Risks": (
        "Race conditions in coordinator",
        "Streams stuck during refresh",
        "Multiple refreshes in flight",
        "Auth key becomes stale mid-stream",
        "Polling removal breaks edge case",
        "Performance impact",
    ),
    "SuccessCriteria": (
        "No more broken streams on 401",
        "Auth refresh completes before stream retry",
        "Chat UX smooth during refresh (no visible interruption)",
        "Polling removed (no 1500ms stale windows)",
        "All tests pass (unit + integration + E2E)",
        "No performance regression",
        "Handles edge cases (multiple 401s, timeout, network errors)",
        "Backward compatible",
    ),
    "BackwardCompatibility": (
        "Event listeners still work",
        "localStorage still used for persistence",
        "Auth context API unchanged (just adds completion signal)",
        "Existing error handling preserved",
        "Graceful fallback if refresh fails",
    ),
}
"""The plan's items, in its own words, by its headings."""


class Journal:
    """What happened, in order, and in which turn of Trio's scheduler."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.turns: list[int] = []
        self.ticks = Ticks()

    def note(self, what: str) -> None:
        self.order.append(what)
        self.turns.append(self.ticks.now)

    @contextmanager
    def kept(self) -> Generator[None]:
        trio.lowlevel.add_instrument(self.ticks)
        yield
        trio.lowlevel.remove_instrument(self.ticks)


class SharedStore:
    """A key store that others may write to, as local storage is one, and that counts its use."""

    def __init__(self, key: str | None = None, journal: Journal | None = None) -> None:
        inner = MemoryKeyStore(key)
        self._inner = inner
        self._journal = journal or Journal()
        self.reads = 0
        self.written: list[Record] = []
        self.changes = inner.changes
        self.lease = inner.lease

    async def load(self) -> Record:
        self.reads += 1
        return await self._inner.load()

    async def replace(self, expected_version: int, record: Record) -> bool:
        written = await self._inner.replace(expected_version, record)
        if written:
            self.written.append(record)
            self._journal.note("stored")
        return written

    async def written_by_another_tab(self, key: str) -> None:
        record = await self._inner.load()
        assert await self._inner.replace(record.version, replace(record, key=Key(key)))


@dataclass
class Waiter:
    """Somebody who awaits a refresh: what came of it, and when."""

    ask: Callable[[], Awaitable[Key]]
    key: Key | None = None
    error: AuthenticationError | None = None
    at: float | None = None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    async def wait(self) -> None:
        with self.scope:
            try:
                self.key = await self.ask()
            except AuthenticationError as error:
                self.error = error
            self.at = trio.current_time()

    @property
    def value(self) -> str | None:
        return value_of(self.key)


@asynccontextmanager
async def waiting(
    authenticator: Authenticator, count: int, rejected: str | None = None
) -> AsyncGenerator[list[Waiter]]:
    """So many await one refresh; the block ends when all of them have been told."""
    waiters = [Waiter(partial(authenticator.refresh, rejected)) for _ in range(count)]
    async with trio.open_nursery() as nursery:
        for waiter in waiters:
            nursery.start_soon(waiter.wait)
        await wait_all_tasks_blocked()
        yield waiters


def value_of(key: Key | None) -> str | None:
    return None if key is None else key.value


async def never(_: Key | None) -> str:
    await trio.sleep_forever()
    raise AssertionError


def statuses(fake: FakeGateway) -> list[int | None]:
    return [request.status for request in fake.requests]


def question(number: int) -> dict[str, object]:
    return {**BODY, "messages": [{"role": "user", "content": f"Question {number}"}]}


def kinds(events: list[ReplyEvent]) -> list[str]:
    """The events' names, a run of deltas as one."""
    names = [type(event).__name__ for event in events]
    return [name for i, name in enumerate(names) if name != "Delta" or names[i - 1 : i] != [name]]


class TestPhase1:
    """Auth refresh coordination: the refresh can be awaited."""

    async def test_event_firing_order(self, autojump_clock: MockClock) -> None:
        """Who hears of what, in which order, from the 401 to the reply's end.

        The state says `authenticating` before the refresh is called. The key is stored before
        anybody is told. Waiters and subscribers are told in one turn of the scheduler, neither
        of them before the other; in that turn the state has its new value for all of them.
        """
        journal = Journal()
        fake = FakeGateway(key="sk-2", tokens=3, token_interval=1.0)
        store = SharedStore("sk-1", journal)

        async def refresh(_: Key | None) -> str:
            journal.note("refresh called")
            await trio.sleep(1)
            journal.note("refresh answered")
            return "sk-2"

        async def listen(*, task_status: trio.TaskStatus[None]) -> None:
            async with authenticator.subscribe() as states:
                task_status.started()
                async for state in states:
                    assert state == authenticator.state
                    journal.note(f"subscriber: {state.status}")

        async def wait() -> None:
            key = await authenticator.refresh("sk-1")
            assert authenticator.state == AuthState(AUTHENTICATED, key)
            journal.note("waiter")

        def show(told: Told) -> None:
            event = told.events[-1]
            journal.note(f"reply: {type(event).__name__}")
            if isinstance(event, Paused):
                nursery.start_soon(wait)

        with journal.kept():
            async with (
                open_authenticator(store, refresh) as authenticator,
                open_over(fake, authenticator=authenticator) as gateway,
                trio.open_nursery() as nursery,
            ):
                await nursery.start(listen)
                await wait_all_tasks_blocked()
                await tell(gateway, {**BODY, "stream_options": {}}, on_event=show)
                nursery.cancel_scope.cancel()
        told_at = journal.order.index("stored") + 1
        assert journal.order[:told_at] == [
            "subscriber: authenticated",
            "reply: Paused",
            "subscriber: authenticating",
            "refresh called",
            "refresh answered",
            "stored",
        ]
        told = slice(told_at, told_at + 2)
        assert sorted(journal.order[told]) == ["subscriber: authenticated", "waiter"]
        assert len(set(journal.turns[told])) == 1
        deltas = ["reply: Delta"] * journal.order.count("reply: Delta")
        assert journal.order[told.stop :] == ["reply: Resumed", *deltas, "reply: Finished"]

    async def test_modify_requestauthrefresh_to_return_promise(
        self, autojump_clock: MockClock
    ) -> None:
        fake = FakeGateway(key="sk-2", auth_latency=3.0)
        store = MemoryKeyStore("sk-1")
        async with open_authenticator(store, fake.refresh) as authenticator:
            key = await authenticator.refresh(rejected="sk-1")
            assert trio.current_time() == 3  # it comes with the key, and not before
        assert key.value == fake.key
        assert key == (await store.load()).key

    async def test_update_auth_context_to_dispatch_completion_event_after_sync(
        self, autojump_clock: MockClock
    ) -> None:
        """The sync is the write to the store: what it lasts, completion waits."""

        class SlowStore(SharedStore):
            async def replace(self, expected_version: int, record: Record) -> bool:
                await trio.sleep(2)
                return await super().replace(expected_version, record)

        fake = FakeGateway(key="sk-2", auth_latency=3.0)
        async with (
            open_authenticator(SlowStore("sk-1"), fake.refresh) as authenticator,
            authenticator.subscribe() as states,
            waiting(authenticator, 1) as (waiter,),
        ):
            await states.receive()
            state = await states.receive()
            assert (trio.current_time(), state) == (5, authenticator.state)
            assert state == AuthState(AUTHENTICATED, state.key)
        assert (waiter.value, waiter.at) == ("sk-2", 5)

    async def test_after_error_state_dispatch_completion_not_success_so_clients_can_handle(
        self, autojump_clock: MockClock
    ) -> None:
        fake = FakeGateway(key="sk-2", auth_latency=3.0)
        fake.refuse_refresh = True
        async with (
            open_authenticator(MemoryKeyStore("sk-1"), fake.refresh) as authenticator,
            authenticator.subscribe() as states,
            waiting(authenticator, 2) as waiters,
        ):
            assert (await states.receive()).status is AUTHENTICATING
            state = await states.receive()
            assert trio.current_time() == 3
            assert state.status is AuthStatus.ERROR
            assert isinstance(state.error, RefreshError)
            assert state.key is not None, "the old key stays, for whoever wants to show it"
        assert [(type(waiter.error), waiter.key) for waiter in waiters] == [
            (RefreshError, None),
            (RefreshError, None),
        ]

    async def test_timeout_after_30s_to_prevent_hanging(self, autojump_clock: MockClock) -> None:
        async with (
            open_authenticator(MemoryKeyStore("sk-1"), never) as authenticator,
            waiting(authenticator, 1) as (first,),
        ):
            await trio.sleep(20)
            async with waiting(authenticator, 1) as (late,):
                pass
        for waiter in (first, late):  # counted from the first 401, not from each waiter's
            assert type(waiter.error) is RefreshTimeout
            assert str(waiter.error) == "Auth refresh timeout"
            assert waiter.at == 30

    async def test_add_tests_for_promise_resolution_rejection(
        self, autojump_clock: MockClock
    ) -> None:
        """Who asks when all is over is answered at once, by no second call."""
        fake = FakeGateway(key="sk-2", auth_latency=3.0)
        async with open_authenticator(MemoryKeyStore("sk-1"), fake.refresh) as authenticator:
            first = await authenticator.refresh("sk-1")
            assert await authenticator.refresh("sk-1") == first == await authenticator.key()
            assert (trio.current_time(), fake.refreshes) == (3, 1)
            fake.rotate()
            fake.refuse_refresh = True
            for _ in range(2):
                with pytest.raises(RefreshError, match="refused: sign in again"):
                    await authenticator.refresh(first)
            assert (trio.current_time(), fake.refreshes) == (6, 2)

    @pytest.mark.parametrize("dialect", ["detail", "openai", "litellm", "vllm", "empty"])
    async def test_401_scenarios_with_new_flow(
        self,
        autojump_clock: MockClock,
        dialect: Literal["detail", "openai", "litellm", "vllm", "empty"],
    ) -> None:
        """Whatever a gateway's 401 looks like."""
        fake = FakeGateway()
        fake.fault(Status(401, dialect=dialect), generation=1, times=None)
        store = MemoryKeyStore(fake.key)
        fake.rotate()
        async with open_over(fake, store=store) as gateway:
            told = await tell(gateway)
        assert (told.error, told.text) == (None, fake.intended(BODY))
        assert kinds(told.events) == ["Paused", "Resumed", "Delta", "Finished"]
        assert (statuses(fake), fake.refreshes) == ([401, 200], 1)


class TestPhase2:
    """The stream coordinator: the authenticator."""

    async def test_unit_test_coordinator_class(self, autojump_clock: MockClock) -> None:
        """One coordinator for all streams: a second rejected key is a second refresh, no more."""
        calls: list[str | None] = []

        async def refresh(rejected: Key | None) -> str:
            calls.append(value_of(rejected))
            await trio.sleep(1)
            return f"sk-{len(calls) + 1}"

        async with open_authenticator(MemoryKeyStore("sk-1"), refresh) as authenticator:
            for old, new in (("sk-1", "sk-2"), ("sk-2", "sk-3")):
                async with waiting(authenticator, 10, old) as waiters:
                    pass
                assert {waiter.value for waiter in waiters} == {new}
            # A straggler with a key of long ago takes the current one.
            assert (await authenticator.refresh("sk-1")).value == "sk-3"
        assert calls == ["sk-1", "sk-2"]

    async def test_mark_as_refreshing_prevent_multiple_refreshes(
        self, autojump_clock: MockClock
    ) -> None:
        fake = FakeGateway(key="sk-2", auth_latency=3.0)
        async with open_authenticator(MemoryKeyStore("sk-1"), fake.refresh) as authenticator:
            with assert_no_checkpoints():
                authenticator.request_refresh("sk-1")
                assert authenticator.state.status is AUTHENTICATING  # before anything ran
                for _ in range(100):
                    authenticator.request_refresh("sk-1")
            await authenticator.refresh("sk-1")
            assert authenticator.state.status is AUTHENTICATED
        assert fake.refreshes == 1

    async def test_wait_for_existing_refresh(self, autojump_clock: MockClock) -> None:
        fake = FakeGateway(key="sk-2", auth_latency=3.0)
        async with (
            open_authenticator(MemoryKeyStore("sk-1"), fake.refresh) as authenticator,
            waiting(authenticator, 1) as (first,),
        ):
            await trio.sleep(2)
            async with waiting(authenticator, 1) as (second,):
                first.scope.cancel()  # the one who began it leaves: the refresh goes on
            assert (second.value, second.at) == ("sk-2", 3)
        assert (first.at, fake.refreshes) == (None, 1)

    async def test_implement_handleautherror_method(self, autojump_clock: MockClock) -> None:
        """What the plan's coordinator takes as a response is here the key that was rejected."""
        fake = FakeGateway(key="sk-2")
        async with open_authenticator(MemoryKeyStore("sk-1"), fake.refresh) as authenticator:
            old = await authenticator.key()
            for rejected in (old, old.value):
                assert (await authenticator.refresh(rejected)).value == "sk-2"
            assert fake.refreshes == 1
            fake.rotate("sk-3")
            assert (await authenticator.refresh(None)).value == "sk-3"  # the current one
        assert fake.refreshes == 2

    async def test_add_getapikey_method(self, autojump_clock: MockClock) -> None:
        """Its `key()` gives the fresh one: while it is being replaced, it waits for it."""
        fake = FakeGateway(key="sk-2", auth_latency=3.0)
        async with open_authenticator(MemoryKeyStore("sk-1"), fake.refresh) as authenticator:
            assert (await authenticator.key()).value == "sk-1"
            authenticator.request_refresh()
            assert (await authenticator.key()).value == "sk-2"
            assert trio.current_time() == 3

    async def test_with_chat_scenarios(self, autojump_clock: MockClock) -> None:
        """Chats that share the coordinator, each at another place of its reply."""
        fake = FakeGateway(token_interval=1.0, auth_latency=0.5)
        told: dict[int, Told] = {}

        async def chat(number: int) -> None:
            await trio.sleep(number)
            told[number] = await tell(gateway, question(number))

        async with open_over(fake) as gateway, trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(chat, number)
            await trio.sleep(5.5)
            fake.rotate()
        assert len(told) == 10
        for number, one in told.items():
            assert (one.error, one.text) == (None, fake.intended(question(number)))
        assert fake.refreshes == 1


class TestPhase3:
    """The streaming layer uses the coordinator."""

    async def test_e2e_test_with_real_chat(self) -> None:
        """The command, over TCP, in a process of its own: its key dies in mid-answer."""
        words = [f"word{number} " for number in range(30)]
        fake = FakeGateway(answer=lambda _, __: words)
        fake.fault(Stall(), token=5, request=1)  # until the key dies
        old = fake.key

        async def rotate() -> None:
            while not fake.requests or fake.requests[0].tokens < 5:  # noqa: ASYNC110
                await trio.sleep(0.01)
            fake.rotate("sk-new")

        async with fake.listen() as base_url, trio.open_nursery() as nursery:
            nursery.start_soon(rotate)
            run = await run_piped(
                *("chat", "--base-url", base_url, "--model", "fake-model"),
                *("--refresh-command", "echo sk-new"),
                stdin=b"Tell me a story.\n",
                GZ_API_KEY=old,
            )
        assert run.returncode == 0, run.stderr
        assert run.stdout.decode() == "".join(words) + "\n"
        assert (statuses(fake), fake.auth_errors) == ([200, 401, 200], 1)

    @pytest.mark.parametrize("where", ["as the status", "as a frame"])
    async def test_update_401_handler_to_use_coordinator(
        self, autojump_clock: MockClock, where: str
    ) -> None:
        """A reply's 401 is a refresh of the authenticator's: others see it, and may join it."""
        fake = FakeGateway(key="sk-2", auth_latency=3.0)
        if where == "as a frame":
            fake = FakeGateway(key="sk-1", token_interval=1.0, auth_latency=3.0)
        async with (
            open_authenticator(MemoryKeyStore("sk-1"), fake.refresh) as authenticator,
            open_over(fake, authenticator=authenticator) as gateway,
            trio.open_nursery() as nursery,
        ):
            waiter = Waiter(partial(authenticator.refresh, "sk-1"))

            def join(told: Told) -> None:
                if told.events[-1] == Paused("refresh"):
                    nursery.start_soon(waiter.wait)
                elif len(deltas_of(told)) == 3 and fake.key == "sk-1":
                    fake.rotate("sk-2")

            told = await tell(gateway, on_event=join)
        assert (told.error, told.text) == (None, fake.intended(BODY))
        assert (waiter.value, fake.refreshes) == ("sk-2", 1)

    async def test_implement_retry_with_new_api_key(self, autojump_clock: MockClock) -> None:
        fake = FakeGateway(key="sk-2")
        async with open_over(fake, key="sk-1") as gateway:
            told = await tell(gateway)
        assert [attempt.generation for attempt in told.reply.attempts] == [1, 2]
        first, second = fake.requests
        assert (first.generation, second.generation) == (None, 1)  # as the gateway counts its own
        assert first.body == second.body  # the same request, under the other key

    async def test_authentication_failed_after_refresh_attempt_please_log_in_again(
        self, autojump_clock: MockClock
    ) -> None:
        fake = FakeGateway()
        fake.rotate()
        fake.refuse_refresh = True
        async with open_over(fake, key="sk-1") as gateway:
            told = await tell(gateway)
        assert isinstance(told.error, RefreshError)
        assert str(told.error) == LOG_IN_AGAIN
        assert (statuses(fake), fake.refreshes) == ([401], 1)

    async def test_authentication_failed(self, autojump_clock: MockClock) -> None:
        """There is no new key, or it is the old one: no retry, no loop."""
        fake = FakeGateway()
        fake.fault(Status(401), times=None)
        async with open_over(fake) as gateway:
            told = await tell(gateway)
        assert type(told.error) is AuthenticationError
        assert str(told.error) == "Authentication failed"
        assert (statuses(fake), fake.refreshes) == ([401], 1)

    @pytest.mark.parametrize("rejected_first", [True, False])
    async def test_rate_limiting_still_works(
        self, autojump_clock: MockClock, rejected_first: bool
    ) -> None:
        """A 429 is waited for, before a refresh or after one, and is no reason for one."""
        fake = FakeGateway(key="sk-2")
        # The gateway looks at the limit before it looks at the key.
        fake.fault(Status(429, headers={"retry-after": "7"}), request=2 if rejected_first else 1)
        async with open_over(fake, key="sk-1") as gateway:
            told = await tell(gateway)
        assert (told.error, told.text) == (None, fake.intended(BODY))
        assert statuses(fake) == ([401, 429, 200] if rejected_first else [429, 401, 200])
        (limited,) = (event for event in told.events if isinstance(event, RateLimited))
        assert 7 <= limited.wait == told.seconds
        assert fake.refreshes == 1

    @pytest.mark.parametrize("fault", [Cut(), Reset(), Status(503), Stall()], ids=repr)
    async def test_network_errors_still_work(
        self, autojump_clock: MockClock, fault: Cut | Reset | Status | Stall
    ) -> None:
        fake = FakeGateway(token_interval=1.0)
        fake.fault(fault, token=None if isinstance(fault, Status) else 4)
        async with open_over(fake) as gateway:
            told = await tell(gateway)
        assert (told.error, told.text) == (None, fake.intended(BODY))
        assert kinds(told.events)[-4:] == ["Paused", "Resumed", "Delta", "Finished"]
        assert (statuses(fake)[1:], fake.refreshes, fake.rejected) == ([200], 0, 0)

    async def test_manual_e2e_chat_test(self) -> None:
        """Three turns over TCP by a person who signs in again, not by a program."""
        fake = FakeGateway(tokens=10)
        async with (
            fake.listen() as base_url,
            open_authenticator(MemoryKeyStore(fake.key), wait_for_sign_in=True) as authenticator,
            open_session(base_url, model="fake-model", authenticator=authenticator) as session,
            trio.open_nursery() as nursery,
        ):

            async def person() -> None:
                async with authenticator.subscribe() as states:
                    async for state in states:
                        if state.status is AUTHENTICATING:
                            await authenticator.sign_in(fake.key, same_account=True)

            nursery.start_soon(person)
            with trio.fail_after(20):
                for turn in range(3):
                    fake.rotate()
                    answer = await session.ask(f"Question {turn}")
                    asked = {"messages": session.messages[:-1]}
                    assert answer == fake.intended(asked)
            nursery.cancel_scope.cancel()
        assert (fake.rejected, fake.refreshes) == (3, 0)


class TestPhase4:
    """No polling."""

    async def test_verify_no_regressions(self, autojump_clock: MockClock) -> None:
        """A long chat with many rotations, none of which anybody looked out for."""
        fake = FakeGateway(auth_latency=1.0)
        async with (
            open_over(fake) as gateway,
            gateway.open_session("fake-model") as session,
        ):
            for turn in range(20):
                fake.rotate()
                answer = await session.ask(f"Question {turn}")
                assert answer == fake.intended({"messages": session.messages[:-1]})
        assert (fake.rejected, fake.refreshes) == (20, 20)

    async def test_remove_polling_interval(self, autojump_clock: MockClock) -> None:
        """An idle hour: nothing is read, and no task of the library's ever wakes."""
        store = SharedStore("sk-1")
        fake = FakeGateway()
        async with (
            open_authenticator(store, fake.refresh) as authenticator,
            open_over(fake, authenticator=authenticator),
        ):
            await wait_all_tasks_blocked()
            reads, ticks = store.reads, Ticks()
            trio.lowlevel.add_instrument(ticks)
            await trio.sleep(3600)
            trio.lowlevel.remove_instrument(ticks)
            assert store.reads == reads
        assert ticks.now <= 3  # of which each would be a jump of the clock to somebody's deadline

    async def test_keep_event_listeners(self, autojump_clock: MockClock) -> None:
        """Both of them: for what other tabs store, and for refreshes of this one."""
        store = SharedStore("sk-1")
        fake = FakeGateway(key="sk-3")
        async with (
            open_authenticator(store, fake.refresh) as authenticator,
            authenticator.subscribe() as states,
        ):
            seen = [await states.receive()]
            await store.written_by_another_tab("sk-2")
            seen.append(await states.receive())
            authenticator.request_refresh()
            seen += [await states.receive(), await states.receive()]
        assert [(state.status, value_of(state.key)) for state in seen] == [
            (AUTHENTICATED, "sk-1"),
            (AUTHENTICATED, "sk-2"),
            (AUTHENTICATING, "sk-2"),
            (AUTHENTICATED, "sk-3"),
        ]

    async def test_chat_still_detects_auth_changes(self, autojump_clock: MockClock) -> None:
        """A key that another tab stored is in the next request, without a 401."""
        fake = FakeGateway()
        store = SharedStore(fake.key)
        async with (
            open_authenticator(store, fake.refresh) as authenticator,
            open_over(fake, authenticator=authenticator) as gateway,
        ):
            await store.written_by_another_tab(fake.rotate())
            await wait_all_tasks_blocked()
            told = await tell(gateway)
            assert (told.error, told.text) == (None, fake.intended(BODY))
            await authenticator.sign_out()
            told = await tell(gateway)
            assert isinstance(told.error, AuthenticationError)
            assert str(told.error) == "signed out: sign in first"
        assert (statuses(fake), fake.refreshes) == ([200], 0)

    async def test_monitor_localstorage_access(self, autojump_clock: MockClock) -> None:
        """The store is read on opening, before a refresh, and when it changes; never by a reply."""
        fake = FakeGateway()
        store = SharedStore(fake.key)
        async with (
            open_authenticator(store, fake.refresh) as authenticator,
            open_over(fake, authenticator=authenticator) as gateway,
        ):
            assert (store.reads, len(store.written)) == (1, 0)
            for number in range(50):
                await tell(gateway, question(number))
            assert (store.reads, len(store.written)) == (1, 0)
            fake.rotate()
            await tell(gateway)
            await wait_all_tasks_blocked()
            # Once before the key is spent, once because the store told of the write.
            assert (store.reads, len(store.written)) == (3, 1)


class TestPhase5:
    """One auth state for all."""

    async def test_verify_no_stale_state_issues(self, autojump_clock: MockClock) -> None:
        """`state` is never behind: not behind a waiter, a subscriber, a reply or the store."""
        fake = FakeGateway(auth_latency=1.0, token_interval=0.3)
        store = SharedStore(fake.key)
        checks = 0
        async with (
            open_authenticator(store, fake.refresh) as authenticator,
            open_over(fake, authenticator=authenticator) as gateway,
            trio.open_nursery() as nursery,
        ):

            def key() -> str | None:
                return value_of(authenticator.state.key)

            async def listen() -> None:
                async with authenticator.subscribe() as states:
                    async for state in states:
                        assert state == authenticator.state

            def check(told: Told) -> None:
                nonlocal checks
                if told.events[-1] == Paused("refresh"):
                    assert fake.key != key()
                elif isinstance(told.events[-1], Delta) and len(told.reply.attempts) == 3:
                    assert fake.key == key()
                    checks += 1

            nursery.start_soon(listen)
            for _ in range(5):
                rotate = after_deltas(3, fake.rotate)

                def on_event(told: Told, rotate: Callable[[Told], object] = rotate) -> None:
                    rotate(told)
                    check(told)

                told = await tell(gateway, on_event=on_event)
                assert told.error is None
                assert key() == fake.key
                assert (await store.load()).key == authenticator.state.key
            nursery.cancel_scope.cancel()
        assert checks > 5 * 5
        assert fake.refreshes == 5

    async def test_use_auth_context(self) -> None:
        """`apiKey` and `status`, without asking anybody: no checkpoint, no read of the store."""
        store = SharedStore("sk-1")
        async with open_authenticator(store) as authenticator:
            reads = store.reads
            with assert_no_checkpoints():
                assert authenticator.state.status is AUTHENTICATED
                assert value_of(authenticator.state.key) == "sk-1"
            assert store.reads == reads
            await authenticator.sign_out()
            assert authenticator.state == AuthState(AuthStatus.UNAUTHENTICATED)

    async def test_auth_state_flows(self, autojump_clock: MockClock) -> None:
        """Through all four statuses, each told once, in order."""
        fake = FakeGateway(key="sk-1", auth_latency=1.0)
        async with (
            open_authenticator(MemoryKeyStore(), fake.refresh) as authenticator,
            authenticator.subscribe() as states,
        ):
            flow = [(await states.receive()).status]

            async def step(act: Callable[[], object], count: int) -> None:
                result = act()
                if isinstance(result, Awaitable):
                    await result
                flow.extend([(await states.receive()).status for _ in range(count)])

            await step(authenticator.request_refresh, 2)  # the first key
            fake.rotate()
            await step(authenticator.request_refresh, 2)
            fake.rotate()
            fake.refuse_refresh = True
            await step(authenticator.request_refresh, 2)
            await step(partial(authenticator.sign_in, fake.key), 1)
            await step(authenticator.sign_out, 1)
        assert flow == [
            AuthStatus.UNAUTHENTICATED,
            AuthStatus.AUTHENTICATING,
            AuthStatus.AUTHENTICATED,
            AuthStatus.AUTHENTICATING,
            AuthStatus.AUTHENTICATED,
            AuthStatus.AUTHENTICATING,
            AuthStatus.ERROR,
            AuthStatus.AUTHENTICATED,
            AuthStatus.UNAUTHENTICATED,
        ]

    @pytest.mark.parametrize("seed", range(20))
    async def test_verify_no_race_conditions(self, autojump_clock: MockClock, seed: int) -> None:
        """401s, leavers, listeners and rotations in any order: one refresh for each key."""
        rng = random.Random(seed)
        fake = FakeGateway(auth_latency=0.3)
        refreshed: list[str] = []

        async def refresh(rejected: Key | None) -> str:
            assert rejected is not None
            refreshed.append(rejected.value)
            return await fake.refresh(rejected)

        waiters: list[Waiter] = []
        async with (
            open_authenticator(MemoryKeyStore(fake.key), refresh) as authenticator,
            trio.open_nursery() as nursery,
        ):

            async def stream() -> None:
                await trio.sleep(rng.uniform(0, 3))
                key = await authenticator.key()
                await trio.sleep(rng.uniform(0, 0.5))
                if key.value != fake.key:
                    waiters.append(waiter := Waiter(partial(authenticator.refresh, key)))
                    if rng.random() < 0.3:
                        waiter.scope.deadline = trio.current_time() + rng.uniform(0, 0.3)
                    await waiter.wait()

            async def rotate() -> None:
                for _ in range(3):
                    await trio.sleep(rng.uniform(0.5, 1.5))
                    fake.rotate()

            for _ in range(50):
                nursery.start_soon(stream)
            nursery.start_soon(rotate)
        assert waiters
        assert len(refreshed) == len(set(refreshed)) <= 3
        for waiter in waiters:
            assert waiter.error is None
            assert waiter.key is not None or waiter.scope.cancelled_caught


class TestUnitTests:
    """The plan's testing strategy: unit tests."""

    @pytest.mark.parametrize(
        ("event", "error"),
        [
            ("sk-2", None),
            (AuthenticationError("no", status=401), RefreshError),
            (ZeroDivisionError("a bug"), RefreshError),
            (None, RefreshTimeout),
        ],
        ids=["success", "refusal", "bug", "silence"],
    )
    async def test_stream_coordinator_ts_mock_auth_refresh_events(
        self,
        autojump_clock: MockClock,
        event: str | Exception | None,
        error: type[Exception] | None,
    ) -> None:
        """Whatever the refresh does, each who waits is told, once, of the one call's result."""
        calls = 0

        async def refresh(_: Key | None) -> str:
            nonlocal calls
            calls += 1
            await trio.sleep(5 if event else 100)
            if isinstance(event, Exception):
                raise event
            return event or "too late"

        async with open_authenticator(MemoryKeyStore("sk-1"), refresh) as authenticator:
            async with waiting(authenticator, 3) as waiters:
                pass
            assert authenticator.state.status is (AUTHENTICATED if not error else AuthStatus.ERROR)
        assert calls == 1
        assert {waiter.at for waiter in waiters} == {5 if event else 30}
        if error is None:
            assert {waiter.value for waiter in waiters} == {event}
        else:
            assert {type(waiter.error) for waiter in waiters} == {error}

    async def test_api_ts_test_promise_resolution_rejection(
        self, autojump_clock: MockClock
    ) -> None:
        """All resolve with the same key; each is rejected with an exception of its own."""
        fake = FakeGateway(key="sk-2", auth_latency=1.0)
        async with open_authenticator(MemoryKeyStore("sk-1"), fake.refresh) as authenticator:
            async with waiting(authenticator, 5) as resolved:
                pass
            fake.rotate()
            fake.refuse_refresh = True
            async with waiting(authenticator, 5) as rejected:
                pass
        assert {waiter.key for waiter in resolved} == {resolved[0].key}
        errors = [waiter.error for waiter in rejected]
        assert len({id(error) for error in errors}) == 5
        for error in errors:
            assert isinstance(error, RefreshError)
            causes = [error.__cause__]
            while causes[-1] is not None:
                causes.append(causes[-1].__cause__)
            assert any(isinstance(cause, AuthenticationError) for cause in causes)


class TestIntegrationTests:
    """The plan's testing strategy: integration tests."""

    async def test_complete_auth_refresh_flow_with_streaming(
        self, autojump_clock: MockClock
    ) -> None:
        """The front end's own: the key comes by the gateway's `POST /auth`."""
        fake = FakeGateway(token_interval=1.0, auth_latency=2.0)
        async with fake.http_client() as client:
            refresh = GatewayRefresh(fake.base_url, token="identity", http_client=client)
            async with open_over(fake, refresh=refresh) as gateway:
                told = await tell(gateway, on_event=after_deltas(4, fake.expire))
        assert (told.error, told.text) == (None, fake.intended(BODY))
        assert [(request.path, request.status) for request in fake.requests] == [
            ("/v1/chat/completions", 200),
            ("/v1/chat/completions", 401),
            ("/auth", 200),
            ("/v1/chat/completions", 200),
        ]

    async def test_401_during_stream_refresh_retry(self, autojump_clock: MockClock) -> None:
        fake = FakeGateway(token_interval=1.0)
        async with open_over(fake) as gateway:
            told = await tell(gateway, on_event=after_deltas(4, fake.rotate))
        assert (told.error, told.text) == (None, fake.intended(BODY))
        # The frame's word is not taken for it: the same key is tried once more.
        assert kinds(told.events) == [
            *("Delta", "Paused", "Paused", "Resumed", "Delta", "Finished"),
        ]
        assert told.happened[:3] == [Paused("reconnect"), Paused("refresh"), Resumed()]
        assert (statuses(fake), fake.refreshes) == ([200, 401, 200], 1)

    async def test_multiple_401s_in_quick_succession(self, autojump_clock: MockClock) -> None:
        """Some while the refresh runs, some just when it is over, some long after."""
        fake = FakeGateway(key="sk-2", auth_latency=1.0)
        # The 401 of the last two streams takes its time.
        fake.fault(Stall(1.0), request=9)
        fake.fault(Stall(50.0), request=10)
        told: list[Told] = []

        async def stream(number: int) -> None:
            told.append(await tell(gateway, question(number)))

        async with open_over(fake, key="sk-1") as gateway, trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(stream, number)
        assert [one.error for one in told] == [None] * 10
        assert (fake.rejected, fake.refreshes) == (10, 1)
        assert sorted(one.seconds for one in told) == [1.0] * 9 + [50.0]

    async def test_auth_refresh_timeout_handling(self, autojump_clock: MockClock) -> None:
        fake = FakeGateway(token_interval=1.0)
        fake.fault(Stall(), path="/auth")
        store = MemoryKeyStore(fake.key)
        async with open_over(fake, store=store) as gateway:
            old = (await store.load()).key
            told = await tell(gateway, on_event=after_deltas(4, fake.rotate))
            assert type(told.error) is RefreshTimeout
            assert str(told.error) == LOG_IN_AGAIN
            assert str(told.error.__cause__) == "Auth refresh timeout"
            assert told.error.partial == told.text == fake.intended(BODY)[: len(told.text)] != ""
            assert told.reply.timing.paused == 30
            assert (await store.load()).key == old
            # And the next one, once the sign-in service answers again, is a reply like any other.
            told = await tell(gateway)
            assert (told.error, told.text) == (None, fake.intended(BODY))
        assert fake.refreshes == 2

    async def test_storage_event_custom_event_coordination(self, autojump_clock: MockClock) -> None:
        """Another tab stores a key while this one refreshes: one completion, with that key."""
        store = SharedStore("sk-1")
        fake = FakeGateway(key="sk-too-late", auth_latency=20.0)
        async with (
            open_authenticator(store, fake.refresh) as authenticator,
            authenticator.subscribe() as states,
            waiting(authenticator, 3) as waiters,
        ):
            assert (await states.receive()).status is AUTHENTICATING
            await trio.sleep(2)
            await store.written_by_another_tab("sk-2")
            state = await states.receive()
            assert state == authenticator.state == AuthState(AUTHENTICATED, state.key)
            assert trio.current_time() == 2  # nobody waits for the own one any longer
            with trio.move_on_after(100):
                await states.receive()
                pytest.fail("completion is told once")
        assert {(waiter.value, waiter.at) for waiter in waiters} == {("sk-2", 2)}
        assert value_of((await store.load()).key) == "sk-2"


class Screen:
    """A user interface: what it shows after each event."""

    def __init__(self) -> None:
        self.text = ""
        self.notice = "waiting"
        self.shown: list[tuple[str, str]] = []

    def update(self, event: ReplyEvent) -> None:
        match event:
            case Delta():
                self.text += event.text
                self.notice = ""
            case Paused(reason):
                self.notice = "signing in again" if reason == "refresh" else "connecting"
            case Resumed():
                self.notice = ""
            case Finished():
                self.notice = "done"
            case _:
                pytest.fail(f"no such event was to be expected: {event}")
        self.shown.append((self.notice, self.text))


async def ask_over_a_rotation(session: Session, fake: FakeGateway, said: str) -> str:
    """One turn of a chat; its key dies after five tokens, for which the gateway waits."""
    fake.fault(Stall(), token=5, request=len(fake.requests) + 1)
    pieces: list[str] = []
    async with session.stream(said) as reply:
        async for delta in reply:
            if delta.text:
                pieces.append(delta.text)
                if len(pieces) == 5:
                    fake.rotate()
    return "".join(pieces)


class TestE2ETests:
    """The plan's testing strategy: end to end, over TCP, by the clock on the wall.

    Each reply stalls in the middle until its key dies, so that no timing decides what happens.
    """

    @pytest.mark.parametrize("on_rotation", ["frame", "cut"])
    async def test_real_chat_with_401_injection(self, on_rotation: Literal["frame", "cut"]) -> None:
        fake = FakeGateway(tokens=20, on_rotation=on_rotation)
        async with (
            fake.listen() as base_url,
            open_session(
                base_url, model="fake-model", key=fake.key, refresh=fake.refresh
            ) as session,
        ):
            with trio.fail_after(20):
                for turn in range(4):
                    text = await ask_over_a_rotation(session, fake, f"Question {turn}")
                    assert text == fake.intended({"messages": session.messages[:-1]})
        assert (fake.rejected, fake.refreshes) == (4, 4)

    async def test_verify_stream_resumes_after_refresh(self) -> None:
        fake = FakeGateway(tokens=20)
        fake.fault(Stall(), token=5, request=1)
        async with (
            fake.listen() as base_url,
            open_authenticator(MemoryKeyStore(fake.key), fake.refresh) as authenticator,
            open_gateway(base_url, authenticator) as gateway,
        ):
            with trio.fail_after(20):
                told = await tell(gateway, on_event=after_deltas(5, fake.rotate))
        resumed = told.events.index(Resumed())
        before, after = (
            "".join(event.text for event in events if isinstance(event, Delta))
            for events in (told.events[:resumed], told.events[resumed:])
        )
        assert before + after == fake.intended(BODY)
        assert before
        assert after

    async def test_verify_ui_updates_properly(self) -> None:
        fake = FakeGateway(tokens=20, auth_latency=0.01)
        fake.fault(Stall(), token=5, request=1)
        screen = Screen()
        rotate = after_deltas(5, fake.rotate)

        def on_event(told: Told) -> None:
            rotate(told)
            screen.update(told.events[-1])

        async with (
            fake.listen() as base_url,
            open_authenticator(MemoryKeyStore(fake.key), fake.refresh) as authenticator,
            open_gateway(base_url, authenticator) as gateway,
        ):
            with trio.fail_after(20):
                await tell(gateway, on_event=on_event)
        notices = [notice for notice, _ in screen.shown]
        changes = [new for i, new in enumerate(notices) if i == 0 or notices[i - 1] != new]
        assert changes == ["", "connecting", "signing in again", "", "done"]
        # The text on the screen only ever grows, and does not move while there is a notice.
        texts = [text for _, text in screen.shown]
        assert all(new.startswith(old) for old, new in pairwise(texts))
        assert len({text for notice, text in screen.shown if notice in changes[1:3]}) == 1
        assert screen.text == fake.intended(BODY)

    async def test_verify_no_double_messages(self) -> None:
        """Not on the screen, not in the conversation, not in what the gateway is sent."""
        fake = FakeGateway(tokens=10)
        turns = ["One", "Two", "Three"]
        async with (
            fake.listen() as base_url,
            open_session(
                base_url, model="fake-model", key=fake.key, refresh=fake.refresh
            ) as session,
        ):
            with trio.fail_after(20):
                for turn in turns:
                    await ask_over_a_rotation(session, fake, turn)
            messages = session.messages
        asked = [message["content"] for message in messages if message["role"] == "user"]
        assert asked == turns
        assert [message["role"] for message in messages] == ["user", "assistant"] * 3
        for number in (1, 3, 5):
            assert messages[number]["content"] == fake.intended({"messages": messages[:number]})
        assert len(fake.requests) == 3 * 3
        for request in fake.requests:
            assert request.body is not None
            sent = cast("list[object]", request.body["messages"])
            assert sent == messages[: len(sent)]


class TestManualTesting:
    """The plan's testing strategy: what the front end's people did by hand."""

    async def test_real_chat_scenarios(self, autojump_clock: MockClock) -> None:
        """A chat in which everything happens that the plan tells of."""
        fake = FakeGateway(token_interval=0.1, auth_latency=1.0)
        async with (
            open_over(fake) as gateway,
            gateway.open_session("fake-model") as session,
        ):

            async def turn(said: str) -> None:
                answer = await session.ask(said)
                assert answer == fake.intended({"messages": session.messages[:-1]})

            await turn("Nothing happens.")
            fake.rotate()
            await turn("The key is dead before the request.")
            fake.fault(Status(429, headers={"retry-after": "5"}))
            await turn("Too many requests.")
            fake.fault(Reset(), token=5)
            await turn("The network breaks.")
            async with session.stream("The user stops it.") as reply:
                await anext(reply)
            fake.refuse_refresh = True
            fake.rotate()
            with pytest.raises(RefreshError):
                await session.ask("Nobody gives a key.")
            await session.authenticator.sign_in(fake.key)
            await turn("The user has signed in again.")
        assert len(session.messages) == 5 * 2

    @pytest.mark.parametrize("kept", [0, 1, 100, 1500])
    async def test_network_throttling_to_trigger_401(
        self, autojump_clock: MockClock, kept: int
    ) -> None:
        """The network is so slow that the key ends between two bytes of an event."""
        fake = FakeGateway(tokens=5, on_rotation="cut")
        fake.fault(Stall(0.5), token=0)
        fake.fault(Cut(after_bytes=kept), token=0)
        async with (
            open_over(fake) as gateway,
            trio.open_nursery() as nursery,
        ):

            async def rotate() -> None:
                await trio.sleep(0.25)
                fake.rotate()

            nursery.start_soon(rotate)
            told = await tell(gateway)
        assert (told.error, told.text) == (None, fake.intended(BODY))
        assert fake.refreshes == 1

    async def test_multi_tab_auth_sync(self, tmp_path: Path) -> None:
        """Two authenticators over one file: a refresh in the one is the other's new key."""
        fake = FakeGateway(key="sk-2", auth_latency=0.05)
        path = tmp_path / "key.json"
        await write_key(FileKeyStore(path), "sk-1")
        async with (
            open_authenticator(FileKeyStore(path), fake.refresh) as one,
            open_authenticator(FileKeyStore(path), fake.refresh) as other,
            other.subscribe() as states,
        ):
            with trio.fail_after(20):
                assert (await states.receive()).status is AUTHENTICATED
                await one.refresh("sk-1")
                state = await states.receive()
                assert state == AuthState(AUTHENTICATED, one.state.key)
                # Both at once: whoever comes second finds what the first has stored.
                fake.rotate("sk-3")
                async with (
                    waiting(one, 3, "sk-2") as here,
                    waiting(other, 3, "sk-2") as there,
                ):
                    pass
                assert {waiter.value for waiter in (*here, *there)} == {"sk-3"}
                assert fake.refreshes == 2
                # A sign-out is one everywhere.
                async with one.subscribe() as ones:
                    await ones.receive()
                    await other.sign_out()
                    assert await ones.receive() == AuthState(AuthStatus.UNAUTHENTICATED)

    async def test_multi_tab_auth_sync_of_replies(self, autojump_clock: MockClock) -> None:
        """Each tab streams under the key that the other's refresh brought."""
        fake = FakeGateway(token_interval=1.0, auth_latency=0.5)
        store = SharedStore(fake.key)
        told: list[Told] = []

        async def stream(tab: Authenticator) -> None:
            async with open_over(fake, authenticator=tab) as gateway:
                told.append(await tell(gateway))

        async with (
            open_authenticator(store, fake.refresh) as one,
            open_authenticator(store, fake.refresh) as other,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(stream, one)
            nursery.start_soon(stream, other)
            await trio.sleep(4.5)
            fake.rotate()
        assert [(one.error, one.text) for one in told] == [(None, fake.intended(BODY))] * 2
        assert fake.refreshes == 1

    async def test_performance_monitoring(self, autojump_clock: MockClock) -> None:
        """A reply tells what its recovery took."""
        fake = FakeGateway(tokens=10, token_interval=1.0, auth_latency=4.0)
        async with open_over(fake) as gateway:
            told = await tell(gateway, on_event=after_deltas(5, fake.rotate))
        timing, attempts = told.reply.timing, told.reply.attempts
        assert timing.first_token == 0
        assert timing.paused == 4 + 5  # the refresh, and what came a second time
        assert timing.ended == told.seconds == 4 + 4 + 9
        causes = [type(attempt.cause) for attempt in attempts]
        assert causes == [AuthenticationError, AuthenticationError, type(None)]
        assert [attempt.generation for attempt in attempts] == [1, 1, 2]


class TestRisks:
    """The plan's risks, each with what mitigates it."""

    async def test_race_conditions_in_coordinator(self, autojump_clock: MockClock) -> None:
        """A 401 in the very turn in which the refresh lands, and one in the turn after."""
        fake = FakeGateway(key="sk-2", auth_latency=1.0)
        late: list[Key] = []
        async with open_authenticator(MemoryKeyStore("sk-1"), fake.refresh) as authenticator:

            async def follow() -> None:
                await authenticator.refresh("sk-1")
                authenticator.request_refresh("sk-1")  # it knows no better
                late.append(await authenticator.refresh("sk-1"))

            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(follow)
        assert {key.value for key in late} == {"sk-2"}
        assert fake.refreshes == 1

    async def test_streams_stuck_during_refresh(self, autojump_clock: MockClock) -> None:
        """A refresh that cannot even be cancelled holds nobody longer than 30 seconds."""
        fake = FakeGateway()

        async def stuck(_: Key | None) -> str:
            with trio.CancelScope(shield=True):
                await trio.sleep(100)
            return "sk-2"

        told: list[Told] = []
        async with open_over(fake, key="sk-1", refresh=stuck) as gateway:
            async with trio.open_nursery() as nursery:

                async def stream() -> None:
                    told.append(await tell(gateway))

                for _ in range(5):
                    nursery.start_soon(stream)
            assert trio.current_time() == 30
        assert {(type(one.error), str(one.error)) for one in told} == {
            (RefreshTimeout, LOG_IN_AGAIN)
        }

    async def test_multiple_refreshes_in_flight(self, autojump_clock: MockClock) -> None:
        """None starts before the last one's callable has returned, timed out or not."""
        running = most = calls = 0

        async def slow_to_end(_: Key | None) -> str:
            nonlocal running, most, calls
            calls += 1
            running += 1
            most = max(most, running)
            with trio.CancelScope(shield=True):
                await trio.sleep(40 if calls == 1 else 1)
            running -= 1
            return f"sk-{calls + 1}"

        async with open_authenticator(MemoryKeyStore("sk-1"), slow_to_end) as authenticator:
            for at in (30, 30, 30):  # the second and third at once, beside the first's remains
                with pytest.raises(RefreshTimeout):
                    await authenticator.refresh("sk-1")
                assert trio.current_time() == at
            await trio.sleep(11)
            await authenticator.refresh("sk-1")
        assert most == 1

    async def test_auth_key_becomes_stale_mid_stream(self, autojump_clock: MockClock) -> None:
        """Taken up again with the new key at once: no time passes but the refresh's own."""
        fake = FakeGateway(token_interval=1.0)
        async with open_over(fake) as gateway:
            told = await tell(gateway, on_event=after_deltas(4, fake.rotate))
        first, tried, second = told.reply.attempts
        assert (told.error, told.text) == (None, fake.intended(BODY))
        assert first.ended == tried.started == tried.ended == second.started

    async def test_polling_removal_breaks_edge_case(self, autojump_clock: MockClock) -> None:
        """A change while nobody listens and nothing streams is not missed."""
        fake = FakeGateway()
        store = SharedStore(fake.key)
        async with (
            open_authenticator(store, fake.refresh) as authenticator,
            open_over(fake, authenticator=authenticator) as gateway,
        ):
            for _ in range(3):
                await trio.sleep(3600)
                await store.written_by_another_tab(fake.rotate())
            await trio.sleep(3600)
            told = await tell(gateway)
        assert (told.error, statuses(fake), fake.refreshes) == (None, [200], 0)

    async def test_performance_impact(self, autojump_clock: MockClock) -> None:
        """While no key dies, a reply asks once and refreshes, stores and waits for nothing."""
        fake = FakeGateway()
        store = SharedStore(fake.key)
        async with (
            open_authenticator(store, fake.refresh) as authenticator,
            open_over(fake, authenticator=authenticator) as gateway,
            authenticator.subscribe() as states,
        ):
            await states.receive()
            for number in range(20):
                told = await tell(gateway, question(number))
                assert kinds(told.events) == ["Delta", "Finished"]
                assert told.reply.timing.paused == told.seconds == 0
            with trio.move_on_after(1):
                pytest.fail(f"nothing has changed, but {await states.receive()} was told")
        assert (len(fake.requests), fake.refreshes, store.written) == (20, 0, [])


class TestSuccessCriteria:
    """The plan's success criteria."""

    @pytest.mark.parametrize("on_rotation", ["frame", "cut"])
    async def test_no_more_broken_streams_on_401(
        self, autojump_clock: MockClock, on_rotation: Literal["frame", "cut"]
    ) -> None:
        """Twenty streams, a key that dies every four seconds."""
        fake = FakeGateway(tokens=12, token_interval=1.0, auth_latency=0.2, on_rotation=on_rotation)
        told: dict[int, Told] = {}

        async def stream(number: int) -> None:
            await trio.sleep(number % 10)
            told[number] = await tell(gateway, question(number))

        rotations = 0
        async with open_over(fake) as gateway, trio.open_nursery() as rotating:
            async with trio.open_nursery() as streams:
                for number in range(20):
                    streams.start_soon(stream, number)

                async def rotate() -> None:
                    nonlocal rotations
                    for rotations in (1, 2, 3):  # noqa: B007
                        await trio.sleep(4)
                        fake.rotate()

                rotating.start_soon(rotate)
            rotating.cancel_scope.cancel()
        assert len(told) == 20
        for number, one in told.items():
            assert (one.error, one.text) == (None, fake.intended(question(number)))
        assert fake.refreshes == rotations == 3

    async def test_auth_refresh_completes_before_stream_retry(
        self, autojump_clock: MockClock
    ) -> None:
        journal = Journal()
        fake = FakeGateway(key="sk-2", auth_latency=2.0)
        store = SharedStore("sk-1", journal)

        async def refresh(rejected: Key | None) -> str:
            journal.note("refreshing")
            return await fake.refresh(rejected)

        serve = fake.serve_stream

        async def served(stream: trio.abc.Stream) -> None:
            journal.note("connection")
            await serve(stream)

        fake.serve_stream = served  # type: ignore[method-assign]
        fake.fault(Status(401, headers={"connection": "close"}))
        async with open_over(fake, store=store, refresh=refresh) as gateway:
            told = await tell(gateway)
        assert (told.error, told.text) == (None, fake.intended(BODY))
        assert journal.order[:3] == ["connection", "refreshing", "stored"]
        ended, started = told.reply.attempts[0].ended, told.reply.attempts[1].started
        assert ended is not None
        assert started - ended == 2

    async def test_chat_ux_smooth_during_refresh_no_visible_interruption(
        self, autojump_clock: MockClock
    ) -> None:
        """With a key whose end is known, not even a pause: it is replaced ahead of it."""
        fake = FakeGateway(tokens=60, token_interval=1.0)
        fake.on_rotation = "ignore"  # the old key serves out the streams that it began

        async def refresh(_: Key | None) -> Key:
            fake.refreshes += 1
            return Key(fake.rotate(), expires_at=trio.current_time() + 1000)

        store = MemoryKeyStore(Key(fake.key, expires_at=50.0))
        async with (
            open_authenticator(store, refresh, now=trio.current_time) as authenticator,
            open_over(fake, authenticator=authenticator) as gateway,
        ):
            for number in range(3):
                told = await tell(gateway, question(number))
                assert told.text == fake.intended(question(number))
                assert kinds(told.events) == ["Delta", "Finished"]
                assert told.reply.timing.paused == 0
        assert (fake.refreshes, fake.rejected) == (1, 0)

    async def test_polling_removed_no_1500ms_stale_windows(self, autojump_clock: MockClock) -> None:
        """What is stored elsewhere is the state here in no time, not some 1.5 s later."""
        store = SharedStore("sk-1")
        async with (
            open_authenticator(store) as authenticator,
            authenticator.subscribe() as states,
        ):
            await states.receive()
            for number in range(2, 10):
                await trio.sleep(1234)
                now = trio.current_time()
                await store.written_by_another_tab(f"sk-{number}")
                state = await states.receive()
                assert value_of(state.key) == f"sk-{number}"
                assert trio.current_time() == now

    def test_all_tests_pass_unit_integration_e2e(self) -> None:
        """None of the plan's items is without its test."""
        missing = [
            f"{heading}.{name_of_test(item)}"
            for heading, items in PLAN.items()
            for item in items
            if not hasattr(globals().get(f"Test{heading}"), name_of_test(item))
        ]
        assert missing == []

    async def test_no_performance_regression(self, autojump_clock: MockClock) -> None:
        """A rotation under 50 streams costs two requests a stream, and one refresh in all."""
        fake = FakeGateway(tokens=6, token_interval=1.0, auth_latency=1.0)
        async with open_over(fake) as gateway, trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(tell, gateway, question(number))
            await trio.sleep(2.5)
            fake.rotate()
        # Each asks once more with the old key, which decides, and once with the new one; those
        # that come to know of the new one first do not even ask with the old one.
        assert len(fake.requests) <= 3 * 50
        assert fake.rejected <= 50
        assert fake.refreshes == 1

    @pytest.mark.parametrize(
        "edge_case", ["multiple 401s", "timeout", "network error", "all of them"]
    )
    async def test_handles_edge_cases_multiple_401s_timeout_network_errors(
        self, autojump_clock: MockClock, edge_case: str
    ) -> None:
        """In the refresh and around it, within one reply."""
        fake = FakeGateway(token_interval=1.0)
        if edge_case in ("multiple 401s", "all of them"):
            fake.fault(ErrorFrame("auth_error"), token=2)
            fake.fault(ErrorFrame("auth_error"), token=4)
        if edge_case in ("timeout", "all of them"):
            fake.fault(Stall(200.0), token=6)
            fake.fault(Stall(10.0), path="/auth")
        if edge_case in ("network error", "all of them"):
            fake.fault(Reset(), token=7)
            fake.fault(Cut(), path="/auth")

        async def refresh(rejected: Key | None) -> str:
            await fake.refresh(rejected)
            return fake.rotate()

        async with open_over(fake, refresh=refresh) as gateway:
            told = await tell(gateway, on_event=after_deltas(9, fake.rotate))
        assert (told.error, told.text) == (None, fake.intended(BODY))
        assert told.reply.text == told.text

    async def test_backward_compatible(self, autojump_clock: MockClock) -> None:
        """Who knows nothing of it all: a plain key, a plain loop, fire and forget."""
        fake = FakeGateway()
        async with (
            fake.http_client() as client,
            open_gateway(fake.base_url, fake.key, http_client=client) as gateway,
        ):
            gateway.authenticator.request_refresh()
            async with gateway.stream(BODY) as reply:
                text = "".join([delta.text async for delta in reply])
            assert text == fake.intended(BODY)
            fake.rotate()
            with pytest.raises(AuthenticationError, match="Authentication failed"):
                async with gateway.stream(BODY) as reply:
                    await anext(reply)


Listener = Callable[[Authenticator, trio.Nursery], Awaitable[None]]


async def never_reads(authenticator: Authenticator, nursery: trio.Nursery) -> None:
    async def listen(*, task_status: trio.TaskStatus[None]) -> None:
        async with authenticator.subscribe():
            task_status.started()
            await trio.sleep_forever()

    await nursery.start(listen)


async def reads_once_an_hour(authenticator: Authenticator, nursery: trio.Nursery) -> None:
    async def listen(*, task_status: trio.TaskStatus[None]) -> None:
        async with authenticator.subscribe() as states:
            task_status.started()
            async for _ in states:
                await trio.sleep(3600)

    await nursery.start(listen)


async def has_closed_its_end(authenticator: Authenticator, nursery: trio.Nursery) -> None:
    async def listen(*, task_status: trio.TaskStatus[None]) -> None:
        async with authenticator.subscribe() as states:
            await states.aclose()
            task_status.started()
            await trio.sleep_forever()

    await nursery.start(listen)


async def was_cancelled(authenticator: Authenticator, nursery: trio.Nursery) -> None:
    with trio.CancelScope() as scope:
        async with authenticator.subscribe() as states:
            await states.receive()
            scope.cancel()
            await states.receive()
    assert scope.cancelled_caught


async def is_cancelled_as_it_is_told(authenticator: Authenticator, nursery: trio.Nursery) -> None:
    async def listen(*, task_status: trio.TaskStatus[None]) -> None:
        with trio.CancelScope() as scope:
            async with authenticator.subscribe() as states:
                task_status.started()
                async for state in states:
                    if state.status is AUTHENTICATING:
                        scope.cancel()

    await nursery.start(listen)


async def hangs_in_its_handler(authenticator: Authenticator, nursery: trio.Nursery) -> None:
    async def listen(*, task_status: trio.TaskStatus[None]) -> None:
        async with authenticator.subscribe() as states:
            task_status.started()
            async for _ in states:
                await trio.sleep_forever()

    await nursery.start(listen)


class TestBackwardCompatibility:
    """The plan's promises to those who were there before it."""

    async def test_event_listeners_still_work(self, autojump_clock: MockClock) -> None:
        """Fire and forget, and hear of the end from the subscription."""
        fake = FakeGateway(key="sk-2", auth_latency=2.0)
        async with (
            open_authenticator(MemoryKeyStore("sk-1"), fake.refresh) as authenticator,
            authenticator.subscribe() as states,
        ):
            await states.receive()
            with assert_no_checkpoints():
                authenticator.request_refresh()
            seen = [await states.receive(), await states.receive()]
            assert [state.status for state in seen] == [AUTHENTICATING, AUTHENTICATED]
            assert trio.current_time() == 2

    @pytest.mark.parametrize(
        "listener",
        [
            never_reads,
            reads_once_an_hour,
            has_closed_its_end,
            was_cancelled,
            is_cancelled_as_it_is_told,
            hangs_in_its_handler,
        ],
    )
    async def test_a_slow_or_dead_listener_never_holds_up_a_refresh(
        self, autojump_clock: MockClock, listener: Listener
    ) -> None:
        fake = FakeGateway(key="sk-2", auth_latency=2.0)
        async with (
            open_authenticator(MemoryKeyStore("sk-1"), fake.refresh) as authenticator,
            trio.open_nursery() as nursery,
        ):
            for _ in range(3):
                await listener(authenticator, nursery)
            async with authenticator.subscribe() as states:  # one that is well, behind them
                assert (await states.receive()).status is AUTHENTICATED
                async with waiting(authenticator, 2, "sk-1") as waiters:
                    assert (await states.receive()).status is AUTHENTICATING
                    assert (await states.receive()).status is AUTHENTICATED
                    assert trio.current_time() == 2
                assert {(waiter.value, waiter.at) for waiter in waiters} == {("sk-2", 2)}
            nursery.cancel_scope.cancel()

    async def test_a_slow_listener_hears_of_the_last_state(self, autojump_clock: MockClock) -> None:
        fake = FakeGateway(key="sk-2")
        async with (
            open_authenticator(MemoryKeyStore("sk-1"), fake.refresh) as authenticator,
            authenticator.subscribe() as states,
        ):
            for number in range(3, 6):
                await authenticator.refresh()
                fake.rotate(f"sk-{number}")
            await authenticator.refresh()
            assert await states.receive() == authenticator.state

    async def test_request_refresh_is_for_code_that_is_not_async(
        self, autojump_clock: MockClock
    ) -> None:
        """From a callback in Trio's thread; again while it runs; and when all is over."""
        fake = FakeGateway(key="sk-2", auth_latency=2.0)
        async with open_authenticator(MemoryKeyStore("sk-1"), fake.refresh) as authenticator:
            token = trio.lowlevel.current_trio_token()
            for _ in range(3):
                token.run_sync_soon(authenticator.request_refresh, "sk-1")
            await trio.sleep(1)
            assert authenticator.state.status is AUTHENTICATING
            token.run_sync_soon(authenticator.request_refresh, "sk-1")
            await trio.sleep(1.5)
            assert value_of(authenticator.state.key) == "sk-2"
        with assert_no_checkpoints():
            authenticator.request_refresh()  # closed: nothing happens, nothing is raised
        assert fake.refreshes == 1

    async def test_request_refresh_from_a_thread(self) -> None:
        fake = FakeGateway(key="sk-2")

        def ask() -> None:
            trio.from_thread.run_sync(authenticator.request_refresh)

        async with (
            open_authenticator(MemoryKeyStore("sk-1"), fake.refresh) as authenticator,
            authenticator.subscribe() as states,
        ):
            await states.receive()
            with trio.fail_after(20):
                await trio.to_thread.run_sync(ask)
                while (await states.receive()).status is AUTHENTICATING:
                    pass
            assert value_of(authenticator.state.key) == "sk-2"

    async def test_request_refresh_that_fails_is_told_and_raises_nothing(
        self, autojump_clock: MockClock
    ) -> None:
        fake = FakeGateway()
        fake.refuse_refresh = True
        async with (
            open_authenticator(MemoryKeyStore("sk-1"), fake.refresh) as authenticator,
            authenticator.subscribe() as states,
        ):
            await states.receive()
            authenticator.request_refresh()
            seen = [await states.receive(), await states.receive()]
            assert [state.status for state in seen] == [AUTHENTICATING, AuthStatus.ERROR]
            authenticator.request_refresh()  # refused for good: not asked for again
            assert authenticator.state == seen[-1]
        assert fake.refreshes == 1

    async def test_localstorage_still_used_for_persistence(self, tmp_path: Path) -> None:
        """A refreshed key outlives the program: the next one begins with it."""
        fake = FakeGateway(key="sk-2")
        path = tmp_path / "key.json"
        await write_key(FileKeyStore(path), "sk-1")
        with trio.fail_after(20):
            async with open_over(fake, store=FileKeyStore(path)) as gateway:
                told = await tell(gateway)
            assert (told.error, statuses(fake)) == (None, [401, 200])
            async with open_over(fake, store=FileKeyStore(path)) as gateway:
                told = await tell(gateway)
        assert (told.error, statuses(fake)) == (None, [401, 200, 200])
        assert fake.refreshes == 1

    async def test_auth_context_api_unchanged_just_adds_completion_signal(
        self, autojump_clock: MockClock
    ) -> None:
        """Who only looks at `state` sees what subscribers are told, and needs no subscription."""
        fake = FakeGateway(key="sk-2", auth_latency=2.0)
        async with open_authenticator(MemoryKeyStore("sk-1"), fake.refresh) as authenticator:
            looked = [authenticator.state.status]
            authenticator.request_refresh()
            for _ in range(3):
                await trio.sleep(0.9)
                looked.append(authenticator.state.status)
        assert looked == [AUTHENTICATED, AUTHENTICATING, AUTHENTICATING, AUTHENTICATED]

    @pytest.mark.parametrize(
        ("fault", "status"),
        [(Status(400), 400), (Status(402), 402), (Status(403), 403), (Status(404), 404)],
        ids=repr,
    )
    async def test_existing_error_handling_preserved(
        self, autojump_clock: MockClock, fault: Status, status: int
    ) -> None:
        """What has nothing to do with keys ends the reply as before: at once, no refresh."""
        fake = FakeGateway()
        fake.fault(fault)
        async with open_over(fake) as gateway:
            told = await tell(gateway)
        assert told.error is not None
        assert (told.error.status, told.seconds, fake.refreshes) == (status, 0, 0)

    async def test_graceful_fallback_if_refresh_fails(self, autojump_clock: MockClock) -> None:
        """The text so far, an error that says what to do, and a session that still works."""
        fake = FakeGateway(token_interval=1.0)

        async def unreachable(_: Key | None) -> str:
            raise APIConnectionError("no route to the sign-in service")

        async with (
            open_over(fake, refresh=unreachable) as gateway,
            gateway.open_session("fake-model") as session,
        ):
            async with session.stream("One") as reply:
                with pytest.raises(RefreshTimeout, match="Please log in again") as caught:
                    async for _ in reply:
                        if len(reply.attempts) == 1 and len(reply.text) > 10:
                            fake.rotate()
            assert caught.value.partial == reply.text != ""
            assert session.messages == []  # half an answer is no part of the conversation
            await gateway.authenticator.sign_in(fake.key)
            answer = await session.ask("Two")
            assert answer == fake.intended({"messages": session.messages[:-1]})


async def write_key(store: KeyStore, value: str) -> None:
    record = await store.load()
    assert await store.replace(record.version, Record(epoch=1, key=Key(value)))


def name_of_test(item: str) -> str:
    """The name that an item of the plan gives its test: `"Test A/B (c)"` is `test_a_b_c`."""
    words = re.sub(r"[^a-z0-9]+", "_", item.lower()).strip("_")
    return words if words.startswith("test_") else f"test_{words}"
