"""The key store that lives in the operating system's key ring, with a companion file beside it.

Key rings know no versions, no locks, and tell of no change. So a file has all of a record but its
secrets; where those belong it has the name of an entry of the key ring. A new key is a new entry,
written before the file names it and removed when none does any more: whoever is killed in between
leaves an entry too many, never a key too few.

The key ring is asked in a thread, for it may ask the user for a password first.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import platformdirs
import trio

from ..._protocol.errors import KeyStoreError
from ..._protocol.keys import Key, Record
from ._shared import require
from .file import FileKeyStore

RING_SECONDS = 60.0
"""How long the key ring may take: as long as somebody takes to find a password."""

CLEANUP_SECONDS = 1.0

SERVICE = "gz-trio"

WINDOWS_LIMIT = 2560
"""Bytes that the Windows Credential Manager takes, which has them in UTF-16."""

T = TypeVar("T")


class _Secret(msgspec.Struct, frozen=True):
    value: str
    refresh_token: str | None = None


class KeyringKeyStore:
    """A `KeyStore` in the key ring of the operating system, for all processes of a user.

    macOS's Keychain, Windows's Credential Manager, and on Linux what speaks for Secret Service or
    KWallet. Needs the extra `keyring`: `pip install 'gz-trio[keyring]'`. Where there is no key
    ring (a server, a container), `FileKeyStore` is for you.

    Args:
        path: The companion file, which holds no secret. By default `keyring.json` in the user's
            state folder for gz-trio.
        profile: Which of the keys there.

    Raises:
        ModuleNotFoundError: The extra is not installed.

    `load` and `replace` raise `KeyStoreError` where there is no key ring, where it stays locked,
    does not answer for a minute, or cannot take so long a key; and as `FileKeyStore` does, for the
    companion file.

    >>> KeyringKeyStore("/tmp/keyring.json", profile="work")
    <KeyringKeyStore '/tmp/keyring.json' profile='work'>
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, profile: str = "default"
    ) -> None:
        require("keyring", "keyring", of="KeyringKeyStore")
        if path is None:
            path = Path(platformdirs.user_state_dir("gz-trio"), "keyring.json")
        self._file = FileKeyStore(path, profile=profile)
        self.path: Final = self._file.path
        self.profile: Final = profile
        # Of its own: a key ring that asks for a password keeps a thread for as long.
        self._limiter = trio.CapacityLimiter(4)

    def __repr__(self) -> str:
        return f"<KeyringKeyStore {str(self.path)!r} profile={self.profile!r}>"

    async def load(self) -> Record:
        """What the store holds now. A checkpoint.

        Raises:
            KeyStoreError: See above; or the key ring has lost the key.
        """
        missing = ""
        while True:
            record = await self._file.load()
            entry = record.key
            if entry is None:
                return record
            secret = await self._secret(entry.value)
            if secret is not None:
                key = replace(entry, value=secret.value, refresh_token=secret.refresh_token)
                return replace(record, key=key)
            if entry.value == missing:
                raise KeyStoreError(
                    "the key ring no longer has the key that is to be in it: sign in again"
                )
            missing = entry.value  # Another process may just have replaced it: look once more.

    async def replace(self, expected_version: int, record: Record) -> bool:
        """Write `record` in place of version `expected_version`; see `KeyStore.replace`.

        Raises:
            KeyStoreError: See above; what was stored is as it was.
        """
        current = await self._file.load()
        if current.version != expected_version:
            return False
        old = None if current.key is None else current.key.value
        new = None if record.key is None else await self._put(record.key, current, record.epoch)
        key = record.key and replace(record.key, value=new or "", refresh_token=None)
        written = False
        try:
            written = await self._file.replace(expected_version, replace(record, key=key))
        finally:
            unused = old if written else new
            if unused is not None and old != new:
                with trio.move_on_after(CLEANUP_SECONDS, shield=True):
                    await self._forget(unused)
        return written

    def changes(self) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[None]]:
        """Tells of changes; as `FileKeyStore.changes`."""
        return self._file.changes()

    def lease(self) -> AbstractAsyncContextManager[None]:
        """The right to refresh; as `FileKeyStore.lease`."""
        return self._file.lease()

    # Entries

    async def _put(self, key: Key, current: Record, epoch: int) -> str:
        """The name of the entry that has the secrets of `key` now."""
        secret = _Secret(key.value, key.refresh_token)
        if current.key is not None and current.epoch == epoch:
            held = await self._secret(current.key.value)
            if held == secret:
                return current.key.value
            if held is not None and held.value == secret.value:
                # The same key, of the same generation: the entry's name stands for it.
                await self._set(current.key.value, secret)
                return current.key.value
        name = secrets.token_hex(16)
        await self._set(name, secret)
        return name

    async def _secret(self, name: str) -> _Secret | None:
        import keyring  # noqa: PLC0415 - it is an extra

        text = await self._ask(partial(keyring.get_password, SERVICE, name))
        if text is None:
            return None
        try:
            return msgspec.json.decode(text, type=_Secret)
        except msgspec.DecodeError:
            # Without its cause, which holds the text.
            problem = "the key ring holds something else where the key is to be: sign in again"
        raise KeyStoreError(problem)

    async def _set(self, name: str, secret: _Secret) -> None:
        import keyring  # noqa: PLC0415 - it is an extra

        text = msgspec.json.encode(secret).decode()
        on_windows = type(keyring.get_keyring()).__module__ == "keyring.backends.Windows"
        if on_windows and len(text.encode("utf-16-le")) > WINDOWS_LIMIT:
            raise KeyStoreError(
                f"the key is too long for the Windows Credential Manager, which takes "
                f"{WINDOWS_LIMIT} bytes: use FileKeyStore"
            )
        await self._ask(partial(keyring.set_password, SERVICE, name, text))

    async def _forget(self, name: str) -> None:  # noqa: ASYNC910 - one, unless that fails at once
        import keyring  # noqa: PLC0415 - it is an extra

        with suppress(KeyStoreError):  # An entry too many, which nothing names.
            await self._ask(partial(keyring.delete_password, SERVICE, name))

    async def _ask(self, call: Callable[[], T]) -> T:
        """What the key ring answers; its errors may quote what it was asked."""
        from keyring import errors  # noqa: PLC0415 - it is an extra

        try:
            with trio.fail_after(RING_SECONDS):
                return await trio.to_thread.run_sync(
                    call, limiter=self._limiter, abandon_on_cancel=True
                )
        except trio.TooSlowError:
            problem = (
                f"the key ring has not answered for {RING_SECONDS:g} seconds: is there a window "
                "that asks for its password?"
            )
        except errors.NoKeyringError:
            problem = (
                "there is no key ring on this system, or none that can be reached: use FileKeyStore"
            )
        except errors.KeyringLocked:
            problem = "the key ring is locked: unlock it, and try again"
        except Exception as error:  # Each system's own.
            problem = f"the key ring does not do what it is asked ({type(error).__name__})"
        raise KeyStoreError(problem)
