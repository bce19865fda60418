"""The key store that lives in Redis or Valkey: one key for processes on many hosts.

The record is a hash that a script replaces if its version is the expected one. Changes are told by
publish and subscribe; after a lost connection the record is read again, so that none is missed. The
lease is a key that ends by itself, renewed for as long as its holder lives.

A server that cannot be reached stops nobody who has a key: the last record that was read stands in
for it, and a key that was refreshed meanwhile is written when the server is back.
"""

from __future__ import annotations

import logging
import secrets
import ssl
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Generator,
    Mapping,
)
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit

import trio
from trio.lowlevel import enable_ki_protection

from ..._background import Background, leaves
from ..._protocol.errors import KeyStoreError
from ..._protocol.keys import Key, Record
from ._shared import Changes, replaced, require

if TYPE_CHECKING:
    import coredis

CALL_SECONDS = 3.0
"""How long one answer of the server may take, connecting included."""

LEASE_SECONDS = 10.0
RENEW_SECONDS = 3.0
LEFT_SECONDS = 6.0
"""With less of the lease left nothing is begun under it."""

PATIENCE_SECONDS = 5.0
"""For a server that cannot be reached; then the refresh goes on without the lease."""

RECONNECT_SECONDS = (0.1, 5.0)
"""Between two tries to reach the server: at first, and at most."""

# Each says 1 if it was done. A write says so again if it is sent again, as it is where the
# connection was lost before the answer.
_REPLACE = """
if redis.call('HGET', KEYS[1], 'write') == ARGV[3] then return 1 end
if (redis.call('HGET', KEYS[1], 'version') or '0') ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'write', unpack(ARGV, 3))
redis.call('PUBLISH', ARGV[2], 'changed')
return 1
"""
_RENEW = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""
_RELEASE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('PUBLISH', ARGV[2], 'released')
return 1
"""

T = TypeVar("T")

_log = logging.getLogger("gz_trio.auth")


class _Unreachable(KeyStoreError):
    """The server cannot be reached, or did not answer in time."""


@dataclass
class _Held:
    """The lease, while it is held: its token, and until when it lasts, on Trio's clock."""

    token: str
    until: float


class RedisKeyStore:
    """A `KeyStore` in Redis or Valkey, 7 or later, for any number of processes and hosts.

    Needs the extra `redis`: `pip install 'gz-trio[redis]'`.

    While the server cannot be reached, `load` gives what was read last, and the log says so. A
    refresh waits 5 seconds for the lease, then goes on without it, with a word in the log; its key
    is written once the server is back, unless somebody was faster. A sign-in or a sign-out is an
    error meanwhile.

    Args:
        url: `redis://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE]`, `rediss://...` for TLS, or
            `unix:///PATH`. What is special in a URL is percent-encoded in user and password.
        profile: Which of the keys there.
        ssl_context: For `rediss://`, a context for a private authority, used as it is. By default
            certificate and host name are verified.

    Attributes:
        address: The URL without user and password.
        profile: Which of the keys there.

    Raises:
        ValueError: `url` is none of these.
        ModuleNotFoundError: The extra is not installed.

    >>> RedisKeyStore("rediss://:secret@redis.example.org/0", profile="work")
    <RedisKeyStore rediss://redis.example.org/0 profile='work'>
    """

    def __init__(
        self, url: str, *, profile: str = "default", ssl_context: ssl.SSLContext | None = None
    ) -> None:
        require("coredis", "redis", of="RedisKeyStore")
        self._url = url
        self.address: Final = _without_password(url)
        # Not coredis's own, which verifies no host name.
        self._options: dict[str, Any] = {"decode_components": True}
        if url.startswith("rediss://"):
            self._options["ssl_context"] = ssl_context or ssl.create_default_context()
        self.profile: Final = profile
        # In braces: a cluster keeps what has that part in common on one server.
        prefix = f"gz-trio:{{{profile}}}"
        self._key = f"{prefix}:key"
        self._lease_key = f"{prefix}:lease"
        self._fence_key = f"{prefix}:fence"
        self._channel = f"{prefix}:changes"
        self._changes = Changes()
        self._released = Changes()
        self._turn = trio.Lock()
        # Those that are connected, for all to use, and what ends them.
        self._clients: list[tuple[coredis.Redis[str], trio.CancelScope]] = []
        self._last: Record | None = None
        self._stored: Record | None = None  # The last that the server is known to have had.
        self._unsaved: list[Record] = []  # What came after it, the server being away.
        self._held: _Held | None = None

    def __repr__(self) -> str:
        return f"<RedisKeyStore {self.address} profile={self.profile!r}>"

    async def load(self) -> Record:
        """What the store holds now, or held when the server was reached last. A checkpoint.

        Raises:
            KeyStoreError: The server refuses, or could not be reached and never was before; or the
                lease under which this is called has gone to somebody else.
        """
        await trio.lowlevel.checkpoint()
        try:
            if self._held is not None and self._held.until - trio.current_time() < LEFT_SECONDS:
                await self._renew(self._held)
            return await self._read()
        except _Unreachable:
            if self._last is None:
                raise
            return self._last

    async def replace(self, expected_version: int, record: Record) -> bool:
        """Write `record` in place of version `expected_version`; see `KeyStore.replace`.

        Raises:
            KeyStoreError: The server refuses; or it cannot be reached, and this is no key that was
                refreshed: those are kept, and written later.
        """
        await trio.lowlevel.checkpoint()
        try:
            written = replaced(await self._read(), expected_version, record)
            if written is None:
                return False
            # Whoever is told that it was cancelled can count on nothing having been written.
            with trio.CancelScope(shield=True):  # `CALL_SECONDS` at most
                return await self._write(expected_version, written)
        except _Unreachable:
            last = self._last
            if last is None or record.key is None or record.epoch != last.epoch:
                raise
            written = replaced(last, expected_version, record)
            if written is None:
                return False
            self._unsaved.append(written)
            self._saw(written)
            _log.warning(
                "the refreshed key could not be written to %s: it is kept, and written once the "
                "server is back",
                self.address,
            )
        return True

    @asynccontextmanager
    @enable_ki_protection
    async def changes(self) -> AsyncGenerator[trio.abc.ReceiveChannel[None]]:
        """Tells of changes, one's own included; see `KeyStore.changes`. Entering is a checkpoint.

        It is armed once the server is reached, for which entering waits 5 seconds at most. After
        each time that the server was not reached there is a change, to be on the safe side.
        """
        armed = trio.Event()
        async with self._changes.subscribe() as channel, Background("key store") as nursery:
            nursery.start_soon(self._listen, armed)
            with trio.move_on_after(PATIENCE_SECONDS):
                await armed.wait()
            yield channel

    @asynccontextmanager
    @enable_ki_protection
    async def lease(self) -> AsyncGenerator[None]:
        """The right to refresh. It lasts 10 seconds, and is renewed every 3. A checkpoint.

        Where the server cannot be reached for 5 seconds, it is entered without, and the log says
        so: each process then refreshes for itself.

        Raises:
            RuntimeError: On entry, by a task that holds the lease already.
            KeyStoreError: The server refuses.
        """
        async with self._turn:
            held = self._held = await self._acquire()
            try:
                if held is None:
                    yield
                    return
                async with Background("lease") as nursery:
                    nursery.start_soon(self._keep, held)
                    yield
            finally:
                self._held = None
                if held is not None:
                    with trio.move_on_after(1, shield=True):
                        await self._release(held)

    # The record

    async def _read(self) -> Record:
        while True:
            fields = await self._call(lambda client: client.hgetall(self._key))
            record = _record(fields, self.address)
            if record in self._unsaved:  # It was written after all; only the answer was lost.
                del self._unsaved[: self._unsaved.index(record) + 1]
                self._stored = record
            stored, last = self._stored, self._last
            if stored is None or last is None or record.version > stored.version:
                break
            if record.version == stored.version and not self._unsaved:
                break
            # It does not have yet what could not be written, or has lost what it had: restarted
            # without a disk, or a replica that lagged has taken its place.
            if await self._write(record.version, last):
                return last
        self._keep_in_mind(record)
        return record

    async def _write(self, expected_version: int, record: Record) -> bool:
        write = secrets.token_hex(16)
        written = await self._run(
            _REPLACE, self._key, str(expected_version), self._channel, write, *_fields(record)
        )
        if written:
            self._keep_in_mind(record)
        return written

    def _keep_in_mind(self, record: Record) -> None:
        """The server has it."""
        self._stored = record
        self._unsaved.clear()
        self._saw(record)

    def _saw(self, record: Record) -> None:
        news = record != (self._last or Record())
        self._last = record
        if news:
            self._changes.notify()

    # The lease

    async def _acquire(self) -> _Held | None:
        """`None` where the server cannot be reached."""
        deadline = trio.current_time() + PATIENCE_SECONDS
        async with self._released.subscribe() as released:
            while True:
                try:
                    fence = await self._call(lambda client: client.incr(self._fence_key))
                    held = _Held(f"{fence}:{secrets.token_hex(16)}", trio.current_time())
                    left = await self._call(partial(_take, self._lease_key, held.token))
                    if left is None:
                        held.until += LEASE_SECONDS
                        return held
                    deadline = trio.current_time() + PATIENCE_SECONDS
                except _Unreachable as error:
                    if trio.current_time() >= deadline:
                        _log.warning(
                            "the key is refreshed without the lease, which other processes do not "
                            "know of: %s",
                            error,
                        )
                        return None
                    left = 0.5
                with trio.move_on_after(left):
                    await released.receive()

    async def _keep(self, held: _Held) -> None:
        while True:
            await trio.sleep(RENEW_SECONDS)
            try:
                await self._renew(held)
            except _Unreachable:
                continue  # It may be back in time.
            except KeyStoreError as error:
                _log.warning("%s", error)
                return

    async def _renew(self, held: _Held) -> None:
        asked = trio.current_time()
        if not await self._run(_RENEW, self._lease_key, held.token, str(int(LEASE_SECONDS * 1000))):
            raise KeyStoreError(
                f"the lease in {self.address} has ended, for the server was not reached in time: "
                "another process may be refreshing the key"
            )
        held.until = asked + LEASE_SECONDS

    async def _release(self, held: _Held) -> None:  # noqa: ASYNC910 - one, unless it fails at once
        try:
            await self._run(_RELEASE, self._lease_key, held.token, self._channel)
        except KeyStoreError:
            _log.info("the lease in %s was not given back: it ends by itself", self.address)

    # The server

    async def _run(self, script: str, key: str, *arguments: str) -> bool:
        answer = await self._call(lambda client: client.eval(script, [key], [*arguments]))
        return answer == 1

    async def _call(self, ask: Callable[[coredis.Redis[str]], Awaitable[T]]) -> T:
        """What the server answers, over a connection that is there, or one for this alone."""
        if self._clients:
            shared = client, connection = self._clients[-1]
            try:
                with self._told_apart(), trio.fail_after(CALL_SECONDS):
                    return await ask(client)
            except _Unreachable:
                if shared in self._clients:
                    connection.cancel()  # Another one will tell when the server is back.
                    raise
                # Whoever had it has left `changes`: that says nothing of the server.
        with self._told_apart(), trio.fail_after(CALL_SECONDS):
            async with self._open() as client:
                return await ask(client)

    @enable_ki_protection
    async def _listen(self, armed: trio.Event) -> None:
        """Keep a connection, and tell of what comes over it."""
        wait, longest = RECONNECT_SECONDS
        while True:
            try:
                with self._told_apart(), trio.CancelScope() as connection:
                    async with (
                        self._open() as client,
                        client.pubsub(channels=[self._channel], retry_policy=None) as messages,
                    ):
                        self._clients.append((client, connection))
                        try:
                            wait = RECONNECT_SECONDS[0]
                            await self._read()
                            armed.set()
                            async for message in messages:
                                await self._heard(message["data"])
                        finally:
                            self._clients.remove((client, connection))
            except _Unreachable as error:
                _log.info("%s", error)
            except KeyStoreError as error:
                _log.warning("%s", error)
            await trio.sleep(wait)
            wait = min(2 * wait, longest)

    async def _heard(self, word: object) -> None:  # noqa: ASYNC910 - where there is news
        if word == "changed":
            await self._read()
        elif word == "released":
            self._released.notify()

    def _open(self) -> coredis.Redis[str]:
        import coredis  # noqa: PLC0415 - it is an extra
        from coredis.retry import NoRetryPolicy  # noqa: PLC0415 - likewise

        client: coredis.Redis[str] = coredis.Redis.from_url(
            self._url,
            decode_responses=True,
            retry_policy=NoRetryPolicy(),
            connect_timeout=CALL_SECONDS,
            **self._options,
        )
        return client

    @contextmanager
    def _told_apart(self) -> Generator[None]:
        """Raises one `KeyStoreError` for what coredis raises, in groups or not."""
        import anyio  # noqa: PLC0415 - it comes with coredis, an extra
        import coredis.exceptions as redis  # noqa: PLC0415 - likewise

        try:
            yield
        except (Exception, BaseExceptionGroup) as error:
            if isinstance(error, BaseExceptionGroup):
                # Cancelled, Ctrl-C; coredis may have met a closed connection beside it.
                _, passing = error.split(Exception)
                if passing is not None:
                    raise passing from None
            match next(leaves(error)):
                case KeyStoreError() as told:
                    failure: KeyStoreError = told
                case redis.AuthenticationError():
                    failure = KeyStoreError(
                        f"{self.address} does not take this user and password: check the URL"
                    )
                case (
                    redis.ConnectionError()
                    | OSError()
                    | trio.TooSlowError()
                    # What coredis's own tasks meet at the end of a connection. Where that is for
                    # a cancellation, it comes at the next checkpoint.
                    | anyio.BrokenResourceError()
                    | anyio.ClosedResourceError()
                    | anyio.EndOfStream()
                    | RuntimeError()  # of a pool whose last connection has just been lost
                ):
                    failure = _Unreachable(
                        f"{self.address} cannot be reached: is it up, and the URL right?"
                    )
                case redis.RedisError() as refused:
                    failure = KeyStoreError(
                        f"{self.address} does not do what a key store needs "
                        f"({type(refused).__name__}): it has to be Redis or Valkey 7 or later, and "
                        "may be no replica"
                    )
                case _:
                    raise
            # Without its cause: coredis's errors may hold what was sent.
        else:
            return
        raise failure


async def _take(key: str, token: str, client: coredis.Redis[str]) -> float | None:
    """Take the lease: `None`, or for how many seconds somebody else has it."""
    from coredis.tokens import PureToken  # noqa: PLC0415 - it is an extra

    milliseconds = int(LEASE_SECONDS * 1000)
    holder = await client.set(key, token, condition=PureToken.NX, get=True, px=milliseconds)
    if holder in (None, token):  # Its own where this is sent again: the answer had been lost.
        return None
    return max(await client.pttl(key), 0) / 1000 + 0.01


def _fields(record: Record) -> list[str]:
    """The hash's fields and values, in turn."""
    fields = {
        "version": str(record.version),
        "epoch": str(record.epoch),
        "refused": str(int(record.refused)),
    }
    if record.key is not None:
        key = record.key
        fields |= {"value": key.value, "generation": str(key.generation)}
        if key.expires_at is not None:
            fields["expires_at"] = repr(key.expires_at)
        if key.refresh_token is not None:
            fields["refresh_token"] = key.refresh_token
    return [part for field in fields.items() for part in field]


def _record(fields: Mapping[str, str], place: str) -> Record:
    if not fields:
        return Record()
    with suppress(KeyError, ValueError):
        epoch = int(fields["epoch"])
        key = None
        if "value" in fields:
            ends = fields.get("expires_at")
            key = Key(
                fields["value"],
                None if ends is None else float(ends),
                fields.get("refresh_token"),
                int(fields["generation"]),
                epoch,
            )
        return Record(int(fields["version"]), epoch, key, fields["refused"] == "1")
    raise KeyStoreError(
        f"{place} holds something under this profile's name that gz-trio has not written: give "
        "another profile, or remove it and sign in"
    )


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    named = parts.path if parts.scheme == "unix" else parts.hostname
    if parts.scheme not in ("redis", "rediss", "unix") or not named or parts.query:
        raise ValueError(
            "the URL of a Redis key store must begin with redis://, rediss:// or unix://, name a "
            "host or a path, and hold no query"
        )
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"
