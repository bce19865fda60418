"""The key store in the key ring: what it promises, and what becomes of it when the ring is odd."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

import keyring
import keyring.backend
import keyring.errors
import pytest
import trio
from keyring.backends import fail

from gz_trio import Key, KeyringKeyStore, KeyStore, KeyStoreError, Record
from gz_trio.testing import check_key_store

MODULE = "gz_trio._auth.stores.keyring"


class Ring(keyring.backend.KeyringBackend):
    """A key ring in memory, which raises or waits where it is told to."""

    priority = 1  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # keyring's
        self.entries: dict[tuple[str, str], str] = {}
        self.error: Exception | None = None
        self.unlocked = threading.Event()
        self.unlocked.set()

    def _answer(self) -> None:
        self.unlocked.wait(60)
        if self.error is not None:
            raise self.error

    def get_password(self, service: str, username: str) -> str | None:
        self._answer()
        return self.entries.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self._answer()
        self.entries[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        self._answer()
        if self.entries.pop((service, username), None) is None:
            raise keyring.errors.PasswordDeleteError


@pytest.fixture
def ring() -> Iterator[Ring]:
    before = keyring.get_keyring()
    ring = Ring()
    keyring.set_keyring(ring)
    yield ring
    ring.unlocked.set()
    keyring.set_keyring(before)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keyring.json"


def content_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""


@pytest.mark.usefixtures("ring")
async def test_it_keeps_the_promises(path: Path) -> None:
    store = KeyringKeyStore(path)
    assert isinstance(store, KeyStore)
    await check_key_store(store)


async def test_the_secrets_are_in_the_ring_and_nothing_else_is(path: Path, ring: Ring) -> None:
    store = KeyringKeyStore(path)
    for number in range(5):
        key = Key(f"sk-{number}", refresh_token=f"rt-{number}")
        assert await store.replace(number, Record(epoch=1, key=key))
        assert not await store.replace(0, Record(epoch=1, key=Key("sk-late")))
    assert list(ring.entries.values()) == ['{"value":"sk-4","refresh_token":"rt-4"}']
    content = content_of(path)
    assert content
    assert "sk-" not in content
    assert "rt-" not in content
    assert await KeyringKeyStore(path).load() == Record(5, 1, Key("sk-4", None, "rt-4", 5, 1))
    assert await store.replace(5, Record(epoch=2))
    assert ring.entries == {}


async def test_another_refresh_token_for_the_same_key_is_no_other_key(
    path: Path, ring: Ring
) -> None:
    store = KeyringKeyStore(path)
    await store.replace(0, Record(epoch=1, key=Key("sk-1", refresh_token="rt-1")))
    await store.replace(1, Record(epoch=1, key=Key("sk-1", refresh_token="rt-2")))
    assert await store.load() == Record(2, 1, Key("sk-1", None, "rt-2", 1, 1))
    assert len(ring.entries) == 1


@pytest.mark.usefixtures("ring")
async def test_a_write_is_told_to_others_and_profiles_are_apart(path: Path) -> None:
    one, two = KeyringKeyStore(path), KeyringKeyStore(path)
    work = KeyringKeyStore(path, profile="work")
    async with one.changes() as changes:
        await two.replace(0, Record(epoch=1, key=Key("sk-1")))
        with trio.fail_after(10):
            await changes.receive()
    assert await work.load() == Record()
    await work.replace(0, Record(epoch=1, key=Key("sk-work")))
    assert (await one.load()).key == Key("sk-1", generation=1, epoch=1)


async def test_a_key_that_the_ring_has_lost_is_an_error(path: Path, ring: Ring) -> None:
    store = KeyringKeyStore(path)
    await store.replace(0, Record(epoch=1, key=Key("sk-1")))
    for text in ("sk-secret", None):
        name = next(iter(ring.entries))
        if text is None:
            ring.entries.clear()
        else:
            ring.entries[name] = text
        with pytest.raises(KeyStoreError, match="sign in again") as caught:
            await store.load()
        assert "sk-secret" not in f"{caught.value!r}{caught.value.__cause__!r}"
        assert caught.value.__context__ is None
    assert await store.replace(1, Record(epoch=2, key=Key("sk-2")))
    assert (await store.load()).key == Key("sk-2", generation=2, epoch=2)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (keyring.errors.NoKeyringError("sk-secret"), "there is no key ring .* use FileKeyStore"),
        (keyring.errors.KeyringLocked("sk-secret"), "locked: unlock it"),
        (keyring.errors.PasswordSetError("sk-secret"), r"\(PasswordSetError\)"),
        (OSError(1783, "sk-secret"), r"\(OSError\)"),
    ],
)
async def test_what_the_ring_complains_of_is_said_without_quoting_it(
    path: Path, ring: Ring, error: Exception, words: str
) -> None:
    store = KeyringKeyStore(path)
    ring.error = error
    with pytest.raises(KeyStoreError, match=words) as caught:
        await store.replace(0, Record(epoch=1, key=Key("sk-secret")))
    assert "sk-secret" not in f"{caught.value!r}"
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert content_of(path) == "", "nothing was written"


async def test_a_system_without_a_ring_says_what_to_use(path: Path) -> None:
    before = keyring.get_keyring()
    keyring.set_keyring(fail.Keyring())  # type: ignore[no-untyped-call]  # keyring's
    try:
        with pytest.raises(KeyStoreError, match="use FileKeyStore"):
            await KeyringKeyStore(path).replace(0, Record(epoch=1, key=Key("sk-1")))
    finally:
        keyring.set_keyring(before)


async def test_a_ring_that_waits_for_a_password_is_not_waited_for_for_ever(
    path: Path, ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = KeyringKeyStore(path)
    ring.unlocked.clear()
    with trio.move_on_after(0.05) as scope:
        await store.replace(0, Record(epoch=1, key=Key("sk-1")))
    assert scope.cancelled_caught
    monkeypatch.setattr(f"{MODULE}.RING_SECONDS", 0.05)
    with pytest.raises(KeyStoreError, match="a window that asks for its password"):
        await store.replace(0, Record(epoch=1, key=Key("sk-1")))
    assert await store.load() == Record()


@pytest.mark.usefixtures("ring")
async def test_a_key_too_long_for_windows_is_an_error(
    path: Path, ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ring, "__module__", "keyring.backends.Windows")
    store = KeyringKeyStore(path)
    fits = "k" * (1280 - len('{"value":"","refresh_token":null}'))
    assert await store.replace(0, Record(epoch=1, key=Key(fits)))
    with pytest.raises(KeyStoreError, match="too long for the Windows Credential Manager"):
        await store.replace(1, Record(epoch=1, key=Key(fits + "k")))
    assert (await store.load()).key == Key(fits, generation=1, epoch=1)


def test_without_the_extra_it_says_which_one_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> ModuleSpec | None:
        assert name == "keyring"
        return None

    monkeypatch.setattr("gz_trio._auth.stores._shared.find_spec", missing)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'gz-trio\[keyring\]'"):
        KeyringKeyStore()


async def test_the_default_file_is_in_the_users_state_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platformdirs.user_state_dir", {"gz-trio": str(tmp_path / "gz-trio")}.get)
    assert KeyringKeyStore().path == tmp_path / "gz-trio" / "keyring.json"
