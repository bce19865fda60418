"""`gz-trio auth`: the key in a key store, from the command line. It is shown by `token` alone."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from getpass import getpass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from .. import (
    CommandRefresh,
    FileKeyStore,
    GatewayRefresh,
    Key,
    KeyringKeyStore,
    OAuthRefresh,
    Record,
    RedisKeyStore,
    open_authenticator,
)
from .run import UsageError

CLIENT_SECRET, IDENTITY_TOKEN = "GZ_CLIENT_SECRET", "GZ_IDENTITY_TOKEN"
REDIS_URL = "GZ_REDIS_URL"

Refresh = Callable[[Key | None], Awaitable[Key]]
Store = FileKeyStore | KeyringKeyStore | RedisKeyStore


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the key is."""

    store: Annotated[
        Literal["file", "keyring", "redis"] | None,
        Parameter(
            help="A key file, as by default, the operating system's key ring, or the Redis or "
            f"Valkey server whose URL is in `{REDIS_URL}`."
        ),
    ] = None
    key_file: Annotated[
        Path | None, Parameter(help="The key file; by default one in your own state folder.")
    ] = None
    profile: Annotated[
        str | None, Parameter(help="Which of the keys there; by default the one named `default`.")
    ] = None

    def open(self, environment: Mapping[str, str]) -> Store:
        """The key store there.

        Raises:
            UsageError: An option or a variable lacks, or a package.
        """
        profile = "default" if self.profile is None else self.profile
        if self.store not in (None, "file") and self.key_file is not None:
            raise UsageError(f"--key-file is for --store file, and not for {self.store}")
        try:
            match self.store:
                case None | "file":
                    return FileKeyStore(self.key_file, profile=profile)
                case "keyring":
                    return KeyringKeyStore(profile=profile)
                case "redis" if REDIS_URL in environment:
                    return RedisKeyStore(environment[REDIS_URL], profile=profile)
                case "redis":
                    raise UsageError(f"--store redis needs the server's URL in {REDIS_URL}")
        except (ModuleNotFoundError, ValueError) as error:
            raise UsageError(str(error)) from None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a key comes from."""

    refresh_command: Annotated[
        str | None, Parameter(help="A program that prints a key; no shell runs it.")
    ] = None
    base_url: Annotated[
        str | None,
        Parameter(
            help=f"A gateway with `POST /auth`; the identity token is in `{IDENTITY_TOKEN}`."
        ),
    ] = None

    def refresh(self, environment: Mapping[str, str]) -> Refresh | None:
        """What gets the key; `None` where no option says.

        Raises:
            UsageError: Two of them do, or one lacks something.
        """
        given = self.given()
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} are two ways to a key: give one of them")
        try:
            return self.make(environment)
        except ValueError as error:
            raise UsageError(str(error)) from None

    def given(self) -> list[str]:
        """The options that say it."""
        options = {"--refresh-command": self.refresh_command, "--base-url": self.base_url}
        return [option for option, value in options.items() if value is not None]

    def make(self, environment: Mapping[str, str]) -> Refresh | None:
        """As `refresh`; raises `ValueError` too."""
        if self.refresh_command is not None:
            return CommandRefresh(self.refresh_command)
        if self.base_url is None:
            return None
        if IDENTITY_TOKEN not in environment:
            raise UsageError(f"--base-url needs an identity token in {IDENTITY_TOKEN}")
        return GatewayRefresh(self.base_url, token=environment[IDENTITY_TOKEN])


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class NextSource(Source):
    """Where a key comes from, when there was one before."""

    token_url: Annotated[
        str | None,
        Parameter(
            help="An OAuth server's token endpoint, where the stored refresh token is spent; the "
            f"client secret, if there is one, is in `{CLIENT_SECRET}`."
        ),
    ] = None
    client_id: Annotated[
        str | None, Parameter(help="With `--token-url`: this program's name there.")
    ] = None
    scope: Annotated[
        str | None, Parameter(help="With `--token-url`: at most what was granted before.")
    ] = None

    def given(self) -> list[str]:
        """See `Source`."""
        return [*super().given(), *(["--token-url"] if self.token_url is not None else [])]

    def make(self, environment: Mapping[str, str]) -> Refresh | None:
        """See `Source`."""
        if self.token_url is None:
            return super().make(environment)
        if self.client_id is None:
            raise UsageError("--token-url needs --client-id, this program's name there")
        return OAuthRefresh(
            self.token_url,
            client_id=self.client_id,
            client_secret=environment.get(CLIENT_SECRET),
            scope=self.scope,
        )


async def login(store: Store, given: str | Refresh, *, same_account: bool) -> int:
    """Store the key that was typed, or that a program or a gateway gives."""
    _check_that_it_can_be_written(store)
    key = given if isinstance(given, str) else await given(None)
    async with open_authenticator(store) as authenticator:
        try:
            await authenticator.sign_in(key, same_account=same_account)
        except ValueError as error:
            raise UsageError(str(error)) from None
    _say(f"signed in: {_described(store, await store.load())}")
    return 0


async def status(store: Store, *, as_json: bool) -> int:
    """Tell what is there, without the key."""
    record = await store.load()
    if as_json:
        _say(json.dumps(_figures(store, record), indent=1))
    else:
        _say(_described(store, record))
    return 0 if record.key is not None and not record.refused else 1


async def refresh(store: Store, source: Refresh | None) -> int:
    """Replace the key, if it can be: once, however many processes ask for it."""
    if source is None:
        raise UsageError(
            "nothing says where a new key comes from: give --refresh-command, --token-url or "
            "--base-url"
        )
    _check_that_it_can_be_written(store)
    async with open_authenticator(store, source) as authenticator:
        await authenticator.refresh()
    _say(f"refreshed: {_described(store, await store.load())}")
    return 0


async def logout(store: Store) -> int:
    """Forget the key, in every process that uses the store."""
    _check_that_it_can_be_written(store)
    async with open_authenticator(store) as authenticator:
        await authenticator.sign_out()
    _say(f"signed out: {_described(store, await store.load())}")
    return 0


async def token(store: Store, source: Refresh | None) -> int:
    """Print the key, and nothing else; a new one, if it has ended and there is a way to one."""
    key = (await store.load()).key
    if key is None and source is None:
        raise UsageError(f"there is no key in {_place(store)}: `gz-trio auth login` stores one")
    if source is not None and (key is None or _seconds_left(key) <= 0):
        async with open_authenticator(store, source) as authenticator:
            key = await (authenticator.key() if key is None else authenticator.refresh(key))
    assert key is not None  # noqa: S101 - it was there, or was refreshed
    _say(key.value)
    return 0


def type_key() -> str:
    """The key, from a terminal without showing it, else from the first line of standard input."""
    if sys.stdin and sys.stdin.isatty():
        return getpass("Key: ").strip()
    line = sys.stdin.readline().strip() if sys.stdin else ""
    if not line:
        raise UsageError("no key: type it, pipe it in, or give a program that prints it")
    return line


def _check_that_it_can_be_written(store: Store) -> None:
    """A file of one bare line is somebody else's to write; in memory it would be gone at once."""
    if not isinstance(store, FileKeyStore):
        return
    try:
        with store.path.open("rb") as file:
            bare = not file.read(1024).lstrip().startswith(b"{")
    except OSError:  # It is not there yet; or the store says what is wrong.
        return
    if bare:
        raise UsageError(
            f"the key file {store.path} is one bare key, which is never rewritten: write the new "
            "one into it, or give another file"
        )


def _place(store: Store) -> str:
    return f"profile {store.profile} of {name_of(store)}"


def name_of(store: Store) -> str:
    """Where it is, for people."""
    match store:
        case FileKeyStore():
            return str(store.path)
        case KeyringKeyStore():
            return "the key ring"
        case RedisKeyStore():
            return store.address


def _described(store: Store, record: Record) -> str:
    key = record.key
    if key is None:
        state = "signed out" if record.version else "nobody has signed in yet"
        return f"{_place(store)}: {state}"
    words = [f"a key, generation {key.generation}"]
    if key.expires_at is not None:
        seconds = _seconds_left(key)
        words.append(f"ends in {_span(seconds)}" if seconds > 0 else f"ended {_span(-seconds)} ago")
    if key.refresh_token is not None:
        words.append("with a refresh token")
    if record.refused:
        words.append("which is refused: sign in again")
    return f"{_place(store)}: {', '.join(words)}"


def _figures(store: Store, record: Record) -> dict[str, object]:
    key = record.key
    return {
        "store": name_of(store),
        "profile": store.profile,
        "signed_in": key is not None,
        "refused": record.refused,
        "version": record.version,
        "epoch": record.epoch,
        "generation": None if key is None else key.generation,
        "expires_at": None if key is None else key.expires_at,
        "refresh_token": key is not None and key.refresh_token is not None,
    }


def _seconds_left(key: Key) -> float:
    return float("inf") if key.expires_at is None else key.expires_at - time.time()


def _span(seconds: float) -> str:
    """A time in the largest unit that leaves two of it, or more.

    >>> _span(59), _span(7_000), _span(800_000)
    ('59 s', '117 min', '9 days')
    """
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _say(words: str) -> None:
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()
