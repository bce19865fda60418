"""The authenticator: one refresh task, fed by a memory channel, whose results are broadcast.

Every decision is made by `_protocol.refresh.RefreshMachine`; here are the task that calls the
refresh callable, the 30 seconds, the key store, and the waiters. Who waits for whom:

    streams --401--> machine --first of its generation--> memory channel --> refresh task
       ^                                                                        |
       +------------------ trio.Event, carrying an outcome.Outcome -------------+
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

import outcome
import trio
from trio.lowlevel import checkpoint, disable_ki_protection, enable_ki_protection

from .._background import Background
from .._protocol.errors import (
    AuthenticationError,
    GatewayError,
    RefreshError,
    RefreshTimeout,
)
from .._protocol.keys import Key, Record, bare_key
from .._protocol.refresh import (
    AuthState,
    Decision,
    Fail,
    Flight,
    Join,
    RefreshFailure,
    RefreshMachine,
    Start,
    UseKey,
    classify_refresh_failure,
    early_refresh_time,
)
from .shield import shielded_after_cancel
from .stores import KeyStore, MemoryKeyStore
from .telemetry import RefreshTelemetry

Refresh = Callable[[Key | None], Awaitable[Key | str]]
"""What refreshes a key: gets the rejected one, or `None` before the first; gives the next."""

KEEP_RESULT_SECONDS = 5.0
BACKOFF_START_SECONDS = 0.5
BACKOFF_LIMIT_SECONDS = 8.0

_log = logging.getLogger("gz_trio.auth")


class Authenticator:
    """Holds the key that streams use, and replaces it: once, however many of them failed.

    Made by `open_authenticator`. All methods are to be called from Trio's thread.
    """

    def __init__(
        self,
        store: KeyStore,
        refresh: Refresh | None,
        *,
        timeout: float,
        max_refreshes: int,
        wait_for_sign_in: bool,
        now: Callable[[], float],
    ) -> None:
        self._store = store
        self._refresh = refresh
        self._timeout = timeout
        self._now = now
        self._machine = RefreshMachine(
            can_refresh=refresh is not None,
            # Nobody else holds a memory store, so nobody else will put a newer key into it.
            can_wait=wait_for_sign_in or not isinstance(store, MemoryKeyStore),
            can_wait_for_first=wait_for_sign_in,
            max_refreshes=max_refreshes,
        )
        # Room for one: the machine lets no second flight start before the first has unwound.
        self._requests, self._receive_requests = trio.open_memory_channel[Flight](1)
        self._landed = trio.Event()
        self._telemetry: RefreshTelemetry  # made with each flight
        self._unreachable: GatewayError | None = None
        self._observed = trio.Event()
        self._observations = 0
        self._subscribers: dict[
            trio.MemorySendChannel[AuthState], trio.MemoryReceiveChannel[AuthState]
        ] = {}
        self._published = self._machine.state

    def __repr__(self) -> str:
        return f"<Authenticator {self.state.status.value}>"

    @property
    def state(self) -> AuthState:
        """The status, the key in use and the last error, as of now.

        Never stale: it changes in the same tick as what it tells of.
        """
        return self._machine.state

    @property
    def key_at_hand(self) -> Key | None:
        """What `key` would give without waiting; `None` where it would wait, or fail.

        For those who are about to wait for something else anyway.

        >>> async def main() -> None:
        ...     async with open_authenticator(MemoryKeyStore("sk-1")) as authenticator:
        ...         print(authenticator.key_at_hand == await authenticator.key())
        >>> trio.run(main)
        True
        """
        if self._machine.record.key is None:
            return None
        decision = self._machine.needs_key(now=trio.current_time())
        return decision.key if isinstance(decision, UseKey) else None

    async def key(self) -> Key:
        """The key to send with the next request. A checkpoint.

        Waits while the current key is being replaced; starts a refresh where there is no key yet.

        Raises:
            AuthenticationError: There is no key and none can be had.
            RefreshError: The refresh for which it waited failed.
        """
        await checkpoint()
        decision = self._machine.needs_key(now=trio.current_time())
        try:
            return await self._follow(decision)
        except AuthenticationError:
            # Somebody wished for another key; that there is none says nothing against this one.
            if isinstance(decision, Join) and (key := self._machine.key_despite(decision.flight)):
                return key
            raise

    async def refresh(
        self,
        rejected: Key | str | None = None,
        *,
        origin: str | None = None,
        model: str | None = None,
    ) -> Key:
        """A key other than `rejected`: a newer one that is there, else by a refresh. A checkpoint.

        However many tasks ask, one refresh runs; cancelling one of them leaves it alone.

        Args:
            rejected: The key that a 401 came for; `None` means the current one.
            origin: The gateway that rejected it, as `"https://host"`.
            model: The model that was asked for. With `origin`, a gateway that rejects a proven
                key for one model alone is told from a key that is dead.

        Raises:
            RefreshTimeout: 30 seconds passed since the refresh began.
            RefreshError: The refresh failed; its `__cause__` says why.
            AuthenticationError: No refresh can help: the new key is the old one, there is no
                refresh callable, or another account has signed in.
        """
        await checkpoint()
        if self._refresh is None:
            # With a callable the refresh task reads the store first (rule 11); without one nobody
            # else would, where the store cannot tell of changes.
            await self._look()
        return await self._follow(
            self._machine.rejected(rejected, now=trio.current_time(), origin=origin, model=model)
        )

    def request_refresh(self, rejected: Key | str | None = None) -> None:
        """Ask for a refresh and do not wait for it: never blocks, raises nothing.

        Args:
            rejected: As in `refresh`.
        """
        self._dispatch(self._machine.rejected(rejected, now=trio.current_time()))

    def accepted(self, key: Key, *, origin: str | None = None, model: str | None = None) -> None:
        """Tell that a gateway has accepted `key`: it answered with something that is no error.

        Replies do this by themselves; it is for those who send requests of their own.
        """
        self._machine.accepted(key, origin, model)
        self._publish()

    @asynccontextmanager
    async def subscribe(self) -> AsyncGenerator[trio.abc.ReceiveChannel[AuthState]]:
        """Tells of every change of `state`, the current one first.

        A slow reader misses states that were overtaken, never the last one, and holds nobody up.
        The channel ends with the authenticator.

        >>> async def main() -> None:
        ...     async with open_authenticator(MemoryKeyStore("sk-1")) as authenticator:
        ...         async with authenticator.subscribe() as states:
        ...             print((await states.receive()).status.value)
        >>> trio.run(main)
        authenticated
        """
        send, receive = trio.open_memory_channel[AuthState](1)
        # The clone is ours, to make room by: a listener may close its own at any time.
        with send, receive, receive.clone() as overtaken:
            send.send_nowait(self._machine.state)
            if self._machine.closed:
                send.close()
            else:
                self._subscribers[send] = overtaken
            try:
                yield receive
            finally:
                self._subscribers.pop(send, None)

    async def sign_in(self, key: Key | str, *, same_account: bool = False) -> Key:
        """Store a key that the user has brought, in place of whatever is there. A checkpoint.

        Args:
            key: The new key. Of a string that is a JSON Web Token, its `exp` is when it ends.
            same_account: The key belongs to the account that was signed in before, so replies
                that are under way may go on with it. Else they end with `AuthenticationError`.

        Raises:
            ValueError: `key` is a string that can be no key.
        """
        new = bare_key(key) if isinstance(key, str) else key
        await self._write(new, new_epoch=not same_account)
        return self._machine.record.key or new

    async def sign_out(self) -> None:
        """Forget the key; a refresh that is under way is thrown away. A checkpoint."""
        await self._write(None, new_epoch=True)

    # Waiting

    @enable_ki_protection
    def _dispatch(self, decision: Decision) -> None:
        if isinstance(decision, Start):
            self._landed = trio.Event()
            self._requests.send_nowait(decision.flight)
            self._telemetry = RefreshTelemetry(decision.flight)
        self._publish()

    async def _follow(self, decision: Decision) -> Key:
        self._dispatch(decision)
        match decision:
            case UseKey(key):
                return key  # noqa: ASYNC910 - whoever calls has made a checkpoint
            case Fail(error):
                raise error.another()
            case _:
                await self._landed.wait()
                return _read(decision.flight)

    # The refresh task

    async def _start(self, nursery: trio.Nursery) -> None:
        """Start the background tasks, once the key has been read."""
        await nursery.start(self._watch)
        nursery.start_soon(self._run)
        nursery.start_soon(self._refresh_early)

    @enable_ki_protection
    async def _run(self) -> None:
        """The refresh task: one flight after another, until it is cancelled."""
        try:
            async for flight in self._receive_requests:
                await self._fly(flight)
        finally:
            self._close()

    @enable_ki_protection
    async def _fly(self, flight: Flight) -> None:
        self._unreachable = None
        async with trio.open_nursery() as nursery:
            if self._refresh is not None:
                nursery.start_soon(self._exchange, flight, self._refresh)
            try:
                with trio.move_on_at(flight.started + self._timeout):
                    await self._landed.wait()
            except trio.Cancelled:
                # At once, not when the callable has unwound: nobody waits for a dead nursery.
                self._close()
                raise
            # Whatever the callable does now (a thread in it cannot be cancelled), nobody waits.
            timeout = RefreshTimeout("Auth refresh timeout")
            timeout.__cause__ = self._unreachable
            with self._settling():
                self._machine.timed_out(flight, timeout)
            nursery.cancel_scope.cancel()
        self._machine.unwound(flight)

    @enable_ki_protection
    async def _exchange(  # noqa: ASYNC910 - one, unless the lease fails before it waits
        self, flight: Flight, refresh: Refresh
    ) -> None:
        """From the lease to the written key; whatever fails is the result of the flight."""
        try:
            async with self._store.lease():
                await self._exchange_under_lease(flight, refresh)
        except _PASSING:
            raise
        except BaseExceptionGroup as group:
            passing, failed = group.split(_PASSING)
            if failed is not None:
                self._failed(flight, group if passing is None else failed)
            if passing is not None:
                raise passing from None
        except BaseException as error:  # noqa: ASYNC103 - Cancelled has gone on above
            self._failed(flight, error)

    def _failed(self, flight: Flight, error: BaseException) -> None:
        """Whatever the callable or the store raised is the flight's result, bugs included."""
        flight.returned = True
        with self._settling():
            self._machine.settle(flight, _refresh_error(error))

    @enable_ki_protection
    async def _exchange_under_lease(self, flight: Flight, refresh: Refresh) -> None:
        backoff = BACKOFF_START_SECONDS
        may_repeat_unknown = True
        while True:
            record = await self._load()  # compare before you spend
            if flight.result is not None:
                return
            self._machine.calling(flight)
            try:
                with self._telemetry.current():
                    answer = await _call(refresh, record.key)
                key = _next_key(answer, record.key)
            except GatewayError as raised:
                error = raised
            else:
                await shielded_after_cancel(KEEP_RESULT_SECONDS, self._keep, flight, key)
                return
            match classify_refresh_failure(error):
                case RefreshFailure.UNREACHABLE:
                    self._unreachable = error
                    wait = max(backoff * random.uniform(0.5, 1), error.hints.retry_after or 0)
                    backoff = min(2 * backoff, BACKOFF_LIMIT_SECONDS)
                    _log.info("the refresh did not reach its server, again in %.1f s", wait)
                    await trio.sleep(wait)
                case RefreshFailure.UNKNOWN if may_repeat_unknown:
                    may_repeat_unknown = False
                case RefreshFailure.REFUSED:
                    await self._refuse(flight, _refresh_error(error))
                    return
                case _:
                    raise error

    # No checkpoint where somebody was faster; the store's are in `_replace` and `_load`.
    async def _keep(self, flight: Flight, key: Key) -> None:  # noqa: ASYNC910
        """Write the new key, unless somebody was faster; then settle the flight with it."""
        flight.returned = True
        if flight.rejected is not None and key.value == flight.rejected.value:
            with self._settling():
                self._machine.settle(flight, AuthenticationError("Authentication failed"))
            return  # noqa: ASYNC910
        while self._machine.still_holds(flight):
            record = self._machine.record
            if await self._replace(record, replace(record, key=key, refused=False)):
                return
            await self._load()
        # Thrown away: a sign-out wins, and so does a newer key; either has settled the flight.

    async def _refuse(self, flight: Flight, error: RefreshError) -> None:
        """Refused: read the store once more, since another process may have been faster."""
        flight.returned = True
        await self._load()
        if flight.result is not None:
            return
        with self._settling():
            self._machine.refused(flight, error)
        record = self._machine.record
        if record.key is not None:
            # The waiters have their answer, which cancels this task; other processes need theirs.
            await shielded_after_cancel(
                KEEP_RESULT_SECONDS, self._replace, record, replace(record, refused=True)
            )

    # The store

    @enable_ki_protection
    async def _watch(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Keeps in step with the store; started once the key has been read."""
        async with self._store.changes() as changes:
            await self._load()
            task_status.started()
            async for _ in changes:
                await self._look()

    @enable_ki_protection
    async def _refresh_early(self) -> None:
        """Refreshes a key whose end is known, ahead of it, while streams go on with the old one."""
        while True:
            observed = self._observed
            key = self._machine.wants_early_refresh()
            at = None
            if key is not None and key.expires_at is not None:
                at = early_refresh_time(key.expires_at, self._now(), random.random())
            if at is None:
                await observed.wait()
                continue
            while not observed.is_set() and (seconds := at - self._now()) > 0:
                with trio.move_on_after(seconds):
                    await observed.wait()
            if observed.is_set():
                continue
            start = self._machine.due_early(now=trio.current_time())
            if start is not None:
                self._dispatch(start)
            await observed.wait()

    async def _look(self) -> None:  # noqa: ASYNC910 - one, unless the store fails before its own
        """Read the store, if it can be read: it may be half-written, and whole a moment later."""
        try:
            await self._load()
        except (GatewayError, OSError) as error:
            _log.warning("the key store cannot be read: %s", type(error).__name__)

    async def _load(self) -> Record:
        while True:
            before = self._observations
            record = await self._store.load()
            # Read before somebody else saw a newer one: read again, time does not run backwards.
            if self._observations == before or record.version >= self._machine.record.version:
                self._observe(record)
                return self._machine.record

    async def _replace(self, current: Record, new: Record) -> bool:
        version = current.version + 1
        key = new.key
        if key is not None and (current.key is None or key.generation != current.key.generation):
            key = replace(key, generation=version, epoch=new.epoch)
        new = replace(new, version=version, key=key)
        written = await self._store.replace(current.version, new)
        if written and new.version > self._machine.record.version:
            self._observe(new)
        return written

    async def _write(self, key: Key | None, *, new_epoch: bool) -> None:
        while True:
            record = await self._load()
            new = Record(epoch=record.epoch + new_epoch, key=key and replace(key, generation=0))
            if await self._replace(record, new):
                return

    @enable_ki_protection
    def _observe(self, record: Record) -> None:
        self._observations += 1
        with self._settling():
            self._machine.observe(record)
        self._observed.set()
        self._observed = trio.Event()

    # Telling

    @contextmanager
    def _settling(self) -> Generator[None]:
        """Wakes the waiters of a flight that was settled in the block."""
        yield
        flight = self._machine.flight
        if flight is not None and flight.result is not None:
            self._landed.set()
            self._telemetry.settled(closed=self._machine.closed)
        self._publish()

    def _publish(self) -> None:
        state = self._machine.state
        if state == self._published:
            return
        self._published = state
        for send, overtaken in self._subscribers.items():
            try:
                send.send_nowait(state)
            except trio.WouldBlock:
                # The last state is the one that counts.
                overtaken.receive_nowait()
                send.send_nowait(state)

    def _close(self) -> None:
        with self._settling():
            self._machine.close()
        for send in self._subscribers:
            send.close()
        self._subscribers.clear()


@asynccontextmanager
@enable_ki_protection
async def open_authenticator(
    store: KeyStore,
    refresh: Refresh | None = None,
    *,
    timeout: float = 30.0,
    max_refreshes: int = 5,
    wait_for_sign_in: bool = False,
    now: Callable[[], float] = time.time,
) -> AsyncGenerator[Authenticator]:
    """Hold the key of `store`, and refresh it when a gateway rejects it.

    Args:
        store: Where the key lives; the source of truth.
        refresh: Called with the rejected key (`None` before the first), gives the next one. It
            tells how it failed by what it raises: `AuthenticationError` or
            `PermissionDeniedError`: refused, final until somebody signs in;
            `APIConnectionError` or `RateLimitError`: not reached, called again with a growing
            pause; anything else ends this refresh. Without it, a rejected key waits for one that
            somebody puts into the store.
        timeout: Seconds that a refresh may take, from the 401 that began it.
        max_refreshes: Refreshes within 30 seconds whose keys no gateway accepted, before the
            next one fails with `RefreshError`.
        wait_for_sign_in: Without `refresh`, wait for `sign_in(key, same_account=True)` even
            where nobody else can write to the store (a `MemoryKeyStore`), and for the first key
            where there was never any.
        now: Unix time in seconds, for keys that have an end.

    Raises:
        GatewayError: The store cannot be read; or, on exit, a background task has failed.
        ValueError: `timeout` or `max_refreshes` is not positive.

    >>> async def sign_in_again(rejected: Key | None) -> str:
    ...     return "sk-2"
    >>> async def main() -> None:
    ...     async with open_authenticator(MemoryKeyStore("sk-1"), sign_in_again) as authenticator:
    ...         print((await authenticator.refresh(rejected="sk-1")).value)
    >>> trio.run(main)
    sk-2
    """
    if not timeout > 0:
        raise ValueError(f"timeout is {timeout}, but must be more than 0 seconds")
    if max_refreshes < 1:
        raise ValueError(f"max_refreshes is {max_refreshes}, but must be 1 or more")
    authenticator = Authenticator(
        store,
        refresh,
        timeout=timeout,
        max_refreshes=max_refreshes,
        wait_for_sign_in=wait_for_sign_in,
        now=now,
    )
    async with Background("authenticator") as nursery:
        await authenticator._start(nursery)  # pyright: ignore[reportPrivateUsage]
        yield authenticator


_PASSING = (trio.Cancelled, KeyboardInterrupt, SystemExit)


@disable_ki_protection
async def _call(refresh: Refresh, rejected: Key | None) -> object:
    """The user's code: Ctrl-C may interrupt it anywhere. `object`: it may not keep its types."""
    return await refresh(rejected)


def _next_key(answer: object, old: Key | None) -> Key:
    """The callable's answer as a key; one that names no refresh token keeps the old one.

    RFC 6749 section 6: a server that issues no new refresh token leaves the old one valid.
    """
    if isinstance(answer, str):
        try:
            answer = bare_key(answer)
        except ValueError as error:
            raise RefreshError(f"the refresh callable gave no usable key: {error}") from None
    if not isinstance(answer, Key):
        raise RefreshError(
            f"the refresh callable gave {type(answer).__name__}, but must give a Key or a str"
        )
    if answer.refresh_token is None and old is not None:
        answer = replace(answer, refresh_token=old.refresh_token)
    return replace(answer, generation=0)


def _refresh_error(error: BaseException) -> RefreshError:
    if isinstance(error, RefreshError):
        return error
    details = error if isinstance(error, GatewayError) else GatewayError("")
    refused = isinstance(error, GatewayError) and (
        classify_refresh_failure(error) is RefreshFailure.REFUSED
    )
    # Our own errors quote nothing that was sent; whatever else was raised may hold a secret.
    why = str(error) if isinstance(error, GatewayError) else type(error).__name__
    wrapped = RefreshError(
        "the refresh was refused: sign in again"
        if refused
        else f"the key could not be refreshed: {why}",
        status=details.status,
        code=details.code,
        type=details.type,
        request_id=details.request_id,
        body=details.body,
    )
    wrapped.__cause__ = error
    return wrapped


def _read(flight: Flight) -> Key:
    """The flight's result for one waiter. An `Outcome` can be unwrapped only once: it is read."""
    match flight.result:
        case outcome.Value(value=Key() as key):
            return key
        case outcome.Error(error=GatewayError() as error):
            raise error.another()
        case _:
            raise RefreshError("authenticator closed")
