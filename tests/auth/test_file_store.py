"""The key file: what is written and how, what is read and never rewritten, what is an error."""

from __future__ import annotations

import functools
import json
import os
import shutil
import stat
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from gz_trio._auth.stores import FileKeyStore
from gz_trio._auth.stores._key_file import Content, parse, serialize
from gz_trio._auth.stores._network import kind_in
from gz_trio._protocol.errors import GatewayError, KeyStoreError
from gz_trio._protocol.keys import Key, Record

posix = pytest.mark.skipif(os.name != "posix", reason="modes and users are POSIX's")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def put_file(path: Path, content: bytes | str, mode: int = 0o600) -> None:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)


def file_of(path: Path) -> bytes:
    return path.read_bytes()


def stored_in(path: Path, name: str = "default") -> object:
    return json.loads(path.read_bytes())["profiles"][name]


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def profile(
    version: int, value: str | None, *, epoch: int = 1, generation: int | None = None
) -> dict[str, object]:
    key = value and {
        "value": value,
        "expires_at": None,
        "refresh_token": None,
        "generation": version if generation is None else generation,
    }
    return {"version": version, "epoch": epoch, "refused": False, "key": key}


def document(version: int, value: str | None, *, epoch: int = 1) -> str:
    return json.dumps({"format": 1, "profiles": {"default": profile(version, value, epoch=epoch)}})


def held(version: int, value: str, *, epoch: int = 1, generation: int | None = None) -> Record:
    generation = version if generation is None else generation
    return Record(version, epoch, Key(value, None, None, generation, epoch))


def new(value: str, *, epoch: int = 1) -> Record:
    return Record(epoch=epoch, key=Key(value))


# What is written


async def test_the_file_holds_format_version_epoch_and_everything_of_the_key(path: Path) -> None:
    record = Record(epoch=2, key=Key("sk-1", 1_800_000_000.5, "rt-1"), refused=True)
    assert await FileKeyStore(path).replace(0, record)
    assert json.loads(file_of(path)) == {
        "format": 1,
        "profiles": {
            "default": {
                "version": 1,
                "epoch": 2,
                "refused": True,
                "key": {
                    "value": "sk-1",
                    "expires_at": 1_800_000_000.5,
                    "refresh_token": "rt-1",
                    "generation": 1,
                },
            }
        },
    }


async def test_a_tombstone_is_written_as_a_null_key(path: Path) -> None:
    store = FileKeyStore(path)
    await store.replace(0, new("sk-1"))
    await store.replace(1, Record(epoch=2))
    assert stored_in(path) == {"version": 2, "epoch": 2, "refused": False, "key": None}


async def test_profiles_share_a_file_and_nothing_else(path: Path) -> None:
    work, home = FileKeyStore(path, profile="work"), FileKeyStore(path, profile="home")
    async with home.changes() as changes, work.lease(), home.lease():
        assert await work.replace(0, new("sk-work"))
        with trio.move_on_after(0) as nothing:
            await changes.receive()
        assert nothing.cancelled_caught
    assert await home.load() == Record()
    assert await home.replace(0, new("sk-home", epoch=7))
    assert await work.load() == held(1, "sk-work")
    assert await home.load() == held(1, "sk-home", epoch=7)


async def test_what_other_profiles_hold_is_written_back_as_it_came(path: Path) -> None:
    other = {"version": 3, "from the future": [1, {"two": 2.5}]}
    put_file(path, json.dumps({"format": 1, "profiles": {"other": other}}))
    assert await FileKeyStore(path).replace(0, new("sk-1"))
    assert stored_in(path, "other") == other
    assert stored_in(path) == profile(1, "sk-1")


async def test_a_key_survives_the_process(path: Path) -> None:
    assert await FileKeyStore(path).replace(0, new("sk-1"))
    # A run of its own shares nothing with this one but the file.
    record = await trio.to_thread.run_sync(trio.run, FileKeyStore(path).load)
    assert record == held(1, "sk-1")


async def test_the_default_path_is_in_the_users_state_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def user_state_dir(name: str) -> str:
        return str(tmp_path / "state" / name)

    monkeypatch.setattr("platformdirs.user_state_dir", user_state_dir)
    assert await FileKeyStore().replace(0, new("sk-1"))
    assert (tmp_path / "state" / "gz-trio" / "keys.json").is_file()


async def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert await FileKeyStore("~/keys.json").replace(0, new("sk-1"))
    assert (tmp_path / "keys.json").is_file()


@posix
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
async def test_only_the_owner_can_read_what_is_written(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "new" / "folder" / "keys.json"
    before = os.umask(umask)
    try:
        assert await FileKeyStore(path).replace(0, new("sk-1"))
    finally:
        os.umask(before)
    assert (mode_of(path), mode_of(path.parent)) == (0o600, 0o700)


@posix
async def test_an_existing_folder_keeps_its_mode(path: Path) -> None:
    path.parent.chmod(0o750)
    assert await FileKeyStore(path).replace(0, new("sk-1"))
    assert mode_of(path.parent) == 0o750


@posix
async def test_a_link_stays_a_link_and_what_it_points_to_is_written(tmp_path: Path) -> None:
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    put_file(target, document(1, "sk-1"))
    link.symlink_to("target.json")
    assert await FileKeyStore(link).replace(1, new("sk-2"))
    assert link.is_symlink()
    assert stored_in(target) == profile(2, "sk-2")


async def test_nothing_but_locks_is_left_beside_the_file(path: Path) -> None:
    store = FileKeyStore(path)
    for version in range(3):
        assert await store.replace(version, new(f"sk-{version}"))
    assert not await store.replace(0, new("sk-late"))
    async with store.lease():
        pass
    assert sorted(os.listdir(path.parent)) == [
        ".keys.json.default.lease",
        ".keys.json.lock",
        "keys.json",
    ]
    for lock in path.parent.glob(".*"):
        assert mode_of(lock) == 0o600
        assert b"sk-" not in lock.read_bytes()


# Several stores, one file


@pytest.fixture
def spellings(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str | Path]:
    monkeypatch.chdir(path.parent)
    (path.parent / "folder").mkdir()
    return [path, "keys.json", "./folder/../keys.json"]


@pytest.mark.parametrize("bare", [False, True])
async def test_of_many_writers_through_many_stores_one_wins(
    path: Path, spellings: list[str | Path], bare: bool
) -> None:
    if bare:
        put_file(path, "sk-abc\n")
    version = 1 if bare else 0
    won: list[str] = []

    async def write(store: FileKeyStore, value: str) -> None:
        if await store.replace(version, new(value)):
            won.append(value)

    async with trio.open_nursery() as nursery:
        for number in range(9):
            nursery.start_soon(write, FileKeyStore(spellings[number % 3]), f"sk-{number}")
    assert len(won) == 1
    for spelling in spellings:
        assert await FileKeyStore(spelling).load() == held(version + 1, won[0])


async def test_a_write_through_one_store_is_told_to_the_others(spellings: list[str | Path]) -> None:
    one, two = FileKeyStore(spellings[0]), FileKeyStore(spellings[1])
    async with two.changes() as changes:
        await one.replace(0, new("sk-1"))
        with trio.fail_after(5):
            await changes.receive()


async def test_the_lease_of_one_store_is_that_of_the_others(spellings: list[str | Path]) -> None:
    one, two = FileKeyStore(spellings[0]), FileKeyStore(spellings[2])
    held_by_one = False

    async def wait_for_it() -> None:
        async with two.lease():
            assert not held_by_one

    async with trio.open_nursery() as nursery, one.lease():
        held_by_one = True
        nursery.start_soon(wait_for_it)
        await trio.testing.wait_all_tasks_blocked()
        held_by_one = False


# A file of one bare line

BARE = [b"sk-abc", b"sk-abc\n", b"  sk-abc \r\n\n", b"\xef\xbb\xbfsk-abc\r\n"]


@pytest.mark.parametrize("content", BARE)
async def test_a_bare_line_is_a_key_of_version_1(path: Path, content: bytes) -> None:
    put_file(path, content)
    assert await FileKeyStore(path).load() == held(1, "sk-abc")


@pytest.mark.parametrize("content", BARE)
async def test_a_bare_file_is_never_rewritten(path: Path, content: bytes) -> None:
    put_file(path, content)
    before = os.stat(path)
    store = FileKeyStore(path)
    assert await store.replace(1, new("sk-2"))
    assert not await store.replace(1, new("sk-late"))
    assert await store.replace(2, Record(epoch=2))
    assert await store.replace(3, new("sk-4", epoch=3))
    assert await store.load() == held(4, "sk-4", epoch=3)
    assert file_of(path) == content
    after = os.stat(path)
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert os.listdir(path.parent) == ["keys.json"]


async def test_a_write_over_a_bare_file_is_seen_by_other_stores_of_the_run(path: Path) -> None:
    put_file(path, "sk-abc\n")
    one, two = FileKeyStore(path), FileKeyStore(path)
    async with two.changes() as changes:
        assert await one.replace(1, new("sk-2"))
        with trio.fail_after(5):
            await changes.receive()
    assert await two.load() == held(2, "sk-2")


async def test_a_bare_file_that_was_changed_wins_over_memory(path: Path) -> None:
    put_file(path, "sk-abc\n")
    store, other = FileKeyStore(path), FileKeyStore(path)
    await store.replace(1, new("sk-2"))
    await store.replace(2, new("sk-3"))
    put_file(path, "sk-new\n")
    async with other.changes() as changes:
        assert await store.load() == held(4, "sk-new")
        with trio.fail_after(5):
            await changes.receive()
    assert await store.load() == held(4, "sk-new")
    assert not await store.replace(3, new("sk-late"))
    assert await store.replace(4, new("sk-5"))
    assert await other.load() == held(5, "sk-5")


async def test_a_writer_meets_a_change_of_the_bare_file_too(path: Path) -> None:
    put_file(path, "sk-abc\n")
    store = FileKeyStore(path)
    record = await store.load()
    put_file(path, "sk-new\n")
    assert not await store.replace(record.version, new("sk-2"))
    assert await store.load() == held(2, "sk-new")


async def test_the_same_key_written_anew_is_no_change(path: Path) -> None:
    put_file(path, "sk-abc")
    store = FileKeyStore(path)
    await store.replace(1, new("sk-2"))
    put_file(path, "sk-abc\n")
    assert await store.load() == held(2, "sk-2")


async def test_a_file_that_now_says_what_memory_holds_keeps_the_keys_generation(
    path: Path,
) -> None:
    put_file(path, "sk-abc\n")
    store = FileKeyStore(path)
    await store.replace(1, new("sk-2"))
    put_file(path, "sk-2\n")
    assert await store.load() == held(3, "sk-2", generation=2)


async def test_a_rotated_bare_key_is_of_the_same_account(path: Path) -> None:
    put_file(path, "sk-abc\n")
    store = FileKeyStore(path)
    await store.replace(1, Record(epoch=2))
    put_file(path, "sk-new\n")
    assert await store.load() == held(3, "sk-new", epoch=2)


@posix
async def test_a_rotated_link_is_followed_anew(tmp_path: Path) -> None:
    # As Kubernetes rotates a mounted secret.
    for number in (1, 2):
        (tmp_path / f"version{number}").mkdir()
        put_file(tmp_path / f"version{number}" / "key", f"sk-{number}\n")
    (tmp_path / "now").symlink_to("version1")
    store = FileKeyStore(tmp_path / "now" / "key")
    assert await store.load() == held(1, "sk-1")
    (tmp_path / "next").symlink_to("version2")
    os.replace(tmp_path / "next", tmp_path / "now")
    shutil.rmtree(tmp_path / "version1")
    assert await store.load() == held(2, "sk-2")


# Changed by hand


async def test_a_newer_version_in_the_file_is_taken_as_it_is(path: Path) -> None:
    store = FileKeyStore(path)
    await store.replace(0, new("sk-1"))
    put_file(path, document(7, "sk-7", epoch=4))
    assert await store.load() == held(7, "sk-7", epoch=4)


async def test_versions_never_go_back_and_another_history_is_another_account(path: Path) -> None:
    store = FileKeyStore(path)
    for version in range(3):
        await store.replace(version, new(f"sk-{version}"))
    put_file(path, document(1, "sk-restored"))
    assert await store.load() == held(4, "sk-restored", epoch=2)
    assert await store.replace(4, new("sk-5", epoch=2))
    assert stored_in(path) == profile(5, "sk-5", epoch=2)


async def test_a_file_that_was_removed_holds_no_key_and_versions_go_on(path: Path) -> None:
    store = FileKeyStore(path)
    await store.replace(0, new("sk-1"))
    os.unlink(path)
    assert await store.load() == Record(2, 1)
    assert await store.replace(2, new("sk-3", epoch=2))
    assert await store.load() == held(3, "sk-3", epoch=2)


# What is an error

HALF = document(3, "sk-secret")[:-20]
EMPTY_KEY = document(1, "x").replace('"x"', '""')
DAMAGED: dict[str, tuple[str | bytes, str]] = {
    "half-written": (HALF, "damaged or half-written"),
    "garbage after a brace": ("{sk-secret", "damaged or half-written"),
    "invalid UTF-8 in JSON": (b'{"format": 1, "sk-secret": "\xff"}', "neither a key"),
    "no format": ('{"key": "sk-secret"}', "damaged"),
    "format 0": ('{"format": 0, "profiles": {}}', "damaged"),
    "no profiles": ('{"format": 1}', "damaged"),
    "no key": ('{"format": 1, "profiles": {"default": {"version": 1, "epoch": 1}}}', "damaged"),
    "a negative version": (document(-1, "sk-secret"), "damaged"),
    "a key with a newline": (document(1, "sk-secret\nX: y"), "damaged"),
    "an empty key": (EMPTY_KEY, "damaged"),
    "a generation to come": (
        json.dumps({"format": 1, "profiles": {"default": profile(1, "sk-secret", generation=2)}}),
        "damaged",
    ),
    "a newer format": ('{"format": 2, "profiles": ["sk-secret"]}', "newer gz-trio"),
    "nested deep": ('{"format": ' + "[" * 100_000, "damaged"),
    "empty": ("", "is empty"),
    "blank": (" \n\n", "is empty"),
    "two lines": ("sk-secret\nsk-other\n", "neither a key"),
    "a shell assignment with a space": ("export KEY=sk-secret", "neither a key"),
    "a quoted key": ('"sk-secret"', "neither a key"),
    "a list": ('["sk-secret"]', "neither a key"),
    "binary": (b"\x00\xffsk-secret", "neither a key"),
    "zeros, as after a power cut": (b"\0" * 200, "neither a key"),
    "UTF-16": ("sk-secret".encode("utf-16"), "neither a key"),
    "huge": (b"s" * (1 << 21), "neither a key"),
}


@pytest.mark.parametrize("name", DAMAGED)
async def test_a_file_that_makes_no_sense_is_named_and_never_overwritten_or_quoted(
    path: Path, name: str
) -> None:
    content, message = DAMAGED[name]
    put_file(path, content)
    before = file_of(path)
    store = FileKeyStore(path)
    for attempt in (store.load, functools.partial(store.replace, 0, new("sk-1"))):
        with pytest.raises(KeyStoreError, match=message) as caught:
            await attempt()
        assert str(path) in str(caught.value)
        assert ": " in str(caught.value)  # and what to do
        assert "secret" not in "".join(traceback.format_exception(caught.value))
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None
    assert file_of(path) == before
    assert os.listdir(path.parent) == ["keys.json"]


async def test_a_file_that_was_mended_is_read_again(path: Path) -> None:
    put_file(path, HALF)
    store = FileKeyStore(path)
    with pytest.raises(KeyStoreError):
        await store.load()
    put_file(path, document(3, "sk-3"))
    assert await store.load() == held(3, "sk-3")


async def test_a_folder_in_its_place_is_an_error(path: Path) -> None:
    os.mkdir(path)
    store = FileKeyStore(path)
    with pytest.raises(KeyStoreError, match="is a folder"):
        await store.load()
    with pytest.raises(KeyStoreError, match="is a folder"):
        await store.replace(0, new("sk-1"))
    assert stat.S_ISDIR(os.stat(path).st_mode)


@posix
async def test_a_pipe_is_an_error_and_nobody_waits_for_its_writer(path: Path) -> None:
    os.mkfifo(path)
    with trio.fail_after(5), pytest.raises(KeyStoreError, match="a pipe"):
        await FileKeyStore(path).load()


@posix
async def test_a_file_where_a_folder_should_be_is_an_error(path: Path) -> None:
    put_file(path, "")
    store = FileKeyStore(path / "keys.json")
    with pytest.raises(KeyStoreError, match="cannot be read") as caught:
        await store.load()
    assert isinstance(caught.value.__cause__, NotADirectoryError)


def test_its_errors_are_of_the_one_tree() -> None:
    assert issubclass(KeyStoreError, GatewayError)


# Other users


@posix
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o666, 0o602])
async def test_a_file_that_others_can_read_is_warned_of_once(path: Path, mode: int) -> None:
    put_file(path, "sk-secret\n", mode)
    store = FileKeyStore(path)
    with pytest.warns(UserWarning, match=rf"chmod 600 {path}") as caught:
        await store.load()
    assert "sk-secret" not in str(caught[0].message)
    assert caught[0].filename == __file__
    await store.load()
    await store.replace(1, new("sk-2"))


@posix
async def test_the_warning_says_how_to_quote_a_path_with_a_space(tmp_path: Path) -> None:
    put_file(tmp_path / "my key", document(1, "sk-1"), 0o644)
    store = FileKeyStore(tmp_path / "my key")
    with pytest.warns(UserWarning, match=rf"chmod 600 '{tmp_path}/my key'"):
        assert await store.replace(1, new("sk-2"))
    assert mode_of(tmp_path / "my key") == 0o600


@posix
async def test_a_file_of_ones_own_is_not_warned_of(path: Path) -> None:
    put_file(path, "sk-1\n", 0o600)
    await FileKeyStore(path).load()  # a warning would be an error


# Writes that fail

NOBODY = 65534


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that the unprivileged user of `in_child` can reach, and owns."""
    folder = Path(tempfile.mkdtemp())
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
    yield folder
    folder.chmod(0o700)
    shutil.rmtree(folder)


async def lease_and_load(path: Path) -> Record:
    store = FileKeyStore(path)
    async with store.lease():
        return await store.load()


def in_child(function: Callable[[], str]) -> str:
    """What `function` returns in a child process, as an unprivileged user: root reads everything.

    A fork, and not a new interpreter: that user may not be able to read this checkout, or the
    interpreter's libraries. For the same reason the parent first imports whatever is imported
    late, by using a store.
    """
    with tempfile.TemporaryDirectory() as folder:
        put_file(Path(folder, "key"), "sk-1\n")
        trio.run(FileKeyStore(Path(folder, "key")).load)
        trio.run(FileKeyStore(Path(folder, "keys.json")).replace, 0, new("sk-1"))
        trio.run(lease_and_load, Path(folder, "keys.json"))
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # Trio's idle worker threads, of which the child's Trio knows that they are gone.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        answer = "the child has ended early"
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            answer = function()
        except Exception:
            answer = traceback.format_exc()
        finally:
            os.write(writer, answer.encode())
            os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as file:
        answer = file.read()
    os.waitpid(child, 0)
    return answer


def attempt(function: Callable[[], object]) -> str:
    """The error that `function` raises, in a line."""
    try:
        return f"no error: {function()}"
    except KeyStoreError as error:
        return f"{type(error.__cause__).__name__}: {error}"


@posix
def test_a_file_that_may_not_be_read_is_an_error(public_folder: Path) -> None:
    path = public_folder / "keys.json"

    def child() -> str:
        put_file(path, document(1, "sk-secret"), 0o000)
        store = FileKeyStore(path)
        return attempt(lambda: trio.run(store.load)) + attempt(
            lambda: trio.run(store.replace, 0, new("sk-1"))
        )

    answer = in_child(child)
    assert answer.count(f"PermissionError: the key file {path} cannot be read") == 2
    assert "secret" not in answer
    path.chmod(0o600)
    assert path.read_text() == document(1, "sk-secret")


@posix
def test_a_folder_that_may_not_be_written_leaves_the_old_file_whole(public_folder: Path) -> None:
    path = public_folder / "keys.json"

    def child() -> str:
        put_file(path, document(1, "sk-old"))
        public_folder.chmod(0o500)
        return attempt(lambda: trio.run(FileKeyStore(path).replace, 1, new("sk-secret")))

    answer = in_child(child)
    assert f"PermissionError: the key file {path} could not be written" in answer
    assert "secret" not in answer
    assert path.read_text() == document(1, "sk-old")
    assert os.listdir(public_folder) == ["keys.json"]


@posix
def test_a_folder_that_may_not_be_written_has_no_lease(public_folder: Path) -> None:
    path = public_folder / "keys.json"

    def child() -> str:
        put_file(path, document(1, "sk-secret"))
        public_folder.chmod(0o500)
        return attempt(lambda: trio.run(lease_and_load, path))

    answer = in_child(child)
    assert f"PermissionError: the key file {path} cannot be locked" in answer
    assert "let this user write to its folder" in answer
    assert "secret" not in answer


@posix
def test_a_full_disk_has_a_lease_all_the_same(public_folder: Path) -> None:
    """A refresh that is told of in vain is better than a key that nobody renews."""
    import resource

    path = public_folder / "keys.json"

    def child() -> str:
        put_file(path, document(1, "sk-old"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        return str(trio.run(lease_and_load, path).version)

    assert in_child(child) == "1"


@posix
def test_a_full_disk_leaves_the_old_file_whole_and_nothing_beside_it(public_folder: Path) -> None:
    import resource

    path = public_folder / "keys.json"

    def child() -> str:
        put_file(path, document(1, "sk-old"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (40, 40))
        return attempt(lambda: trio.run(FileKeyStore(path).replace, 1, new("sk-secret")))

    answer = in_child(child)
    assert f"OSError: the key file {path} could not be written (File too large)" in answer
    assert "secret" not in answer
    assert path.read_text() == document(1, "sk-old")
    assert sorted(os.listdir(public_folder)) == [".keys.json.lock", "keys.json"]


async def test_after_a_failed_write_the_store_holds_what_it_held(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FileKeyStore(path)
    await store.replace(0, new("sk-1"))

    def fail(source: str, target: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", fail)
        with pytest.raises(KeyStoreError, match="No space left on device"):
            await store.replace(1, new("sk-2"))
    assert sorted(os.listdir(path.parent)) == [".keys.json.lock", "keys.json"]
    assert await store.load() == held(1, "sk-1")
    assert await store.replace(1, new("sk-2"))


async def test_a_file_system_that_cannot_sync_a_folder_will_do(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def no_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(22, "Invalid argument")
        sync(descriptor)

    monkeypatch.setattr("os.fsync", no_folders)
    store = FileKeyStore(path)
    assert await store.replace(0, new("sk-1"))
    assert await store.load() == held(1, "sk-1")


async def test_the_file_is_synced_before_it_takes_its_name_and_the_folder_after(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    sync, rename = os.fsync, os.replace

    def note_sync(descriptor: int) -> None:
        order.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        sync(descriptor)

    def note_rename(source: str, target: Path) -> None:
        order.append("rename")
        rename(source, target)

    monkeypatch.setattr("os.fsync", note_sync)
    monkeypatch.setattr("os.replace", note_rename)
    await FileKeyStore(path).replace(0, new("sk-1"))
    assert order == ["file", "rename", "folder"]


# Threads


async def test_a_read_that_hangs_can_be_cancelled(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_file(path, "sk-1\n")
    store = FileKeyStore(path)
    reading, go_on = threading.Event(), threading.Event()
    fstat = os.fstat

    def hang(descriptor: int) -> os.stat_result:
        reading.set()
        assert go_on.wait(30)
        return fstat(descriptor)

    monkeypatch.setattr("os.fstat", hang)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.load)
            await trio.to_thread.run_sync(reading.wait)
            nursery.cancel_scope.cancel()
        go_on.set()
        assert await store.load() == held(1, "sk-1")


async def test_threads_that_wait_for_a_key_do_not_keep_it_from_being_read(path: Path) -> None:
    put_file(path, "sk-1\n")
    limiter = trio.to_thread.current_default_thread_limiter()
    waiting = [object() for _ in range(int(limiter.available_tokens))]
    for borrower in waiting:
        limiter.acquire_on_behalf_of_nowait(borrower)
    try:
        with trio.fail_after(5):
            assert await FileKeyStore(path).load() == held(1, "sk-1")
    finally:
        for borrower in waiting:
            limiter.release_on_behalf_of(borrower)


# Any bytes

PATH = Path("/keys.json")
values = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1)


@given(
    st.binary() | st.text().map(str.encode) | st.text().map(lambda t: b'{"format": 1' + t.encode())
)
def test_any_bytes_are_a_record_or_a_clear_error(data: bytes) -> None:
    try:
        content = parse(PATH, "default", data)
    except KeyStoreError as error:
        message = str(error)
    else:
        message = ""
        assert content.record.key is not None or not content.bare
    assert message == "" or str(PATH) in message


@given(
    st.integers(1, 2**40),
    st.integers(0, 2**40),
    st.none()
    | st.tuples(
        values,
        st.none() | st.floats(0, 1e12),
        st.none() | st.text(st.characters(exclude_categories=["Cs"])),
    ),
    st.booleans(),
)
def test_what_is_written_is_what_is_read(
    version: int, epoch: int, key: tuple[str, float | None, str | None] | None, refused: bool
) -> None:
    record = Record(version, epoch, key and Key(*key, version, epoch), refused)
    data = serialize(Content(), "a profile", record)
    assert parse(PATH, "a profile", data).record == record


@given(st.integers(0, len(document(3, "sk-secret")) - 1))
def test_a_file_that_was_cut_anywhere_is_an_error(end: int) -> None:
    data = document(3, "sk-secret")[:end].encode()
    with pytest.raises(KeyStoreError):
        parse(PATH, "default", data)


# What others do to the file


def replace_by_rename(path: Path, content: str) -> None:
    other = path.with_name("other")
    other.touch(0o600)
    other.write_text(content)
    os.replace(other, path)


def move_a_link(path: Path, content: str) -> None:
    """As Kubernetes changes a secret: the key's name stays, what it points to is another file."""
    target = path.with_name("target-2")
    target.touch(0o600)
    target.write_text(content)
    link = path.with_name("link")
    link.symlink_to(target)
    os.replace(link, path)


@pytest.mark.usefixtures("source")
@pytest.mark.parametrize("change", [Path.write_text, replace_by_rename, move_a_link])
async def test_a_change_by_somebody_else_is_told_when_it_is_made(
    tmp_path: Path, change: Callable[[Path, str], object]
) -> None:
    path = tmp_path / "key"
    if change is move_a_link:
        (tmp_path / "target-1").touch(0o600)
        path.symlink_to(tmp_path / "target-1")
    else:
        path.touch(0o600)
    path.write_text("sk-1\n")
    store = FileKeyStore(path)
    await store.load()
    async with store.changes() as changes:
        change(path, "sk-2\n")
        with trio.fail_after(10):
            await changes.receive()
    key = (await store.load()).key
    assert key is not None
    assert key.value == "sk-2"


@pytest.mark.usefixtures("source")
@pytest.mark.parametrize("parts", [["folder"], ["not", "yet", "there"]])
async def test_a_folder_that_is_made_or_made_anew_is_watched(
    tmp_path: Path, parts: list[str]
) -> None:
    folder = tmp_path.joinpath(*parts)
    store = FileKeyStore(folder / "key")
    async with store.changes() as changes:
        for value in ("sk-1", "sk-2"):
            folder.mkdir(parents=True)
            put_file(folder / "key", value)
            with trio.fail_after(10):
                while (key := (await store.load()).key) is None or key.value != value:
                    await changes.receive()
            shutil.rmtree(tmp_path / parts[0])
            with trio.fail_after(10):
                while (await store.load()).key is not None:
                    await changes.receive()


@pytest.mark.usefixtures("source")
async def test_a_folder_that_is_a_link_and_changes_is_followed(tmp_path: Path) -> None:
    """So Kubernetes rotates a secret: `key` is `..data/key`, and `..data` is moved."""
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
        put_file(tmp_path / version / "key", f"sk-{version}")
    (tmp_path / "..data").symlink_to("1")
    (tmp_path / "key").symlink_to("..data/key")
    store = FileKeyStore(tmp_path / "key")
    await store.load()
    async with store.changes() as changes:
        (tmp_path / "..data_tmp").symlink_to("2")
        os.replace(tmp_path / "..data_tmp", tmp_path / "..data")
        with trio.fail_after(10):
            await changes.receive()
    key = (await store.load()).key
    assert key is not None
    assert key.value == "sk-2"


@pytest.mark.usefixtures("source")
async def test_a_file_that_is_damaged_meanwhile_stops_nothing_and_is_told_once_it_is_whole(
    tmp_path: Path,
) -> None:
    path = tmp_path / "key"
    path.touch(0o600)
    path.write_text("sk-1\n")
    store = FileKeyStore(path)
    await store.load()
    async with store.changes() as changes:
        path.write_text('{"format": 1, "profi')
        with pytest.raises(KeyStoreError):
            await store.load()
        path.write_text("sk-2\n")
        with trio.fail_after(10):
            await changes.receive()


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
async def test_stores_of_one_run_share_a_watch_of_their_file(tmp_path: Path) -> None:
    """The system counts instances by user, and has few."""
    path = tmp_path / "key"
    path.touch(0o600)
    path.write_text("sk-1\n")

    def instances() -> int:
        return sum(
            os.readlink(f"/proc/self/fd/{descriptor}") == "anon_inode:inotify"
            for descriptor in os.listdir("/proc/self/fd")
            if os.path.lexists(f"/proc/self/fd/{descriptor}")
        )

    async def listen(*, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        with trio.CancelScope() as scope:
            async with FileKeyStore(path).changes():
                task_status.started(scope)
                await trio.sleep_forever()

    before = instances()
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        first = await nursery.start(listen)
        await trio.testing.wait_all_tasks_blocked()
        channels = [
            await stack.enter_async_context(FileKeyStore(path).changes()) for _ in range(200)
        ]
        assert instances() == before + 1
        first.cancel()  # Who has listened for all leaves; another one goes on.
        path.write_text("sk-2\n")
        with trio.fail_after(20):
            for channel in channels:
                await channel.receive()
    assert instances() == before


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
async def test_where_the_system_has_no_watch_left_the_file_is_looked_at(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def none_left(**_: object) -> object:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("inotify_simple.INotify", none_left)
    monkeypatch.setattr("gz_trio._auth.stores._watch.LOOK_SECONDS", 0.01)
    path = tmp_path / "key"
    path.touch(0o600)
    path.write_text("sk-1\n")
    async with FileKeyStore(path).changes() as changes:
        path.write_text("sk-2\n")
        with trio.fail_after(20):
            await changes.receive()
    assert "Too many open files" in caplog.text
    assert "looked at each second" in caplog.text


async def test_a_file_on_a_network_is_looked_at_and_the_log_says_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "key"
    watch = "gz_trio._auth.stores._watch"
    monkeypatch.setattr(f"{watch}.network_file_system", {path: "nfs4"}.get)
    monkeypatch.setattr(f"{watch}.LOOK_SECONDS", 0.01)
    put_file(path, "sk-1")
    async with FileKeyStore(path).changes() as changes:
        put_file(path, "sk-2")
        with trio.fail_after(20):
            await changes.receive()
    assert f"{path} is on a network (nfs4)" in caplog.text


MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
36 22 0:31 / /home rw,relatime shared:2 - nfs4 server:/home rw,vers=4.2
37 36 0:32 / /home/me/local rw,relatime shared:3 - xfs /dev/sdb1 rw
38 22 0:33 / /with\\040space rw,relatime - cifs //server/share rw
39 22 0:34 / /twice rw,relatime - ext4 /dev/sdc1 rw
40 39 0:35 / /twice rw,relatime - fuse.sshfs me@host: rw
not a line of it
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", None),
        ("/tmp/key", None),
        ("/home/me/key", "nfs4"),
        ("/home", "nfs4"),
        ("/homes/key", None),
        ("/home/me/local/key", None),
        ("/with space/key", "cifs"),
        ("/twice/key", "fuse.sshfs"),
    ],
)
def test_what_is_on_a_network_is_what_the_nearest_mount_is(path: str, kind: str | None) -> None:
    assert kind_in(MOUNTS, Path(path)) == kind
