"""The refresh callable that runs a program: what it may print, how it fails, how it ends."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trio.testing

from gz_trio import CommandRefresh
from gz_trio._protocol.errors import RefreshError
from gz_trio._protocol.keys import Key
from gz_trio._protocol.refresh import RefreshFailure, classify_refresh_failure
from tests.auth.quoting import assert_quotes_nothing

posix = pytest.mark.skipif(os.name != "posix", reason="signals, FIFOs and modes are POSIX's")

REJECTED = Key("sk-rejected", generation=3, epoch=1)


def python(code: str, *arguments: str) -> CommandRefresh:
    return CommandRefresh([sys.executable, "-c", code, *arguments], now=lambda: 1_000.0)


def printing(output: str | bytes) -> CommandRefresh:
    data = output.encode() if isinstance(output, str) else output
    return python(f"import sys; sys.stdout.buffer.write({data!r})")


@pytest.mark.parametrize(
    ("output", "key"),
    [
        ("sk-new", Key("sk-new")),
        ("sk-new\n", Key("sk-new")),
        ("\r\n  sk-new \r\n", Key("sk-new")),
        ('{"api_key": "sk-new"}', Key("sk-new")),
        ('{\n  "key": "sk-new"\n}\n', Key("sk-new")),
        ('{"access_token": "sk-new", "token_type": "Bearer"}', Key("sk-new")),
        ('{"api_key": null, "key": "", "access_token": "sk-new"}', Key("sk-new")),
        ('{"key": "sk-new", "expires_at": 1700000000}', Key("sk-new", 1_700_000_000.0)),
        ('{"key": "sk-new", "expires_at": 1700000000.5}', Key("sk-new", 1_700_000_000.5)),
        ('{"key": "sk-new", "expires_at": "1970-01-01T02:00:30+02:00"}', Key("sk-new", 30.0)),
        ('{"key": "sk-new", "expires_at": "1970-01-01T00:00:30.25Z"}', Key("sk-new", 30.25)),
        ('{"key": "sk-new", "expires_in": 3600}', Key("sk-new", 4_600.0)),
        ('{"key": "sk-new", "expires_at": 5, "expires_in": 3600}', Key("sk-new", 5.0)),
        ('{"key": "sk-new", "refresh_token": "rt-new"}', Key("sk-new", None, "rt-new")),
        ('{"key": "sk-new", "refresh_token": ""}', Key("sk-new")),
    ],
)
async def test_the_key_is_what_the_program_prints(output: str, key: Key) -> None:
    assert await printing(output)(REJECTED) == key


PROBLEMS: dict[str, tuple[str | bytes, str]] = {
    "nothing": ("", "printed nothing"),
    "blank": (" \n\n", "printed nothing"),
    "several lines": ("Logging in...\nsk-secret\n", "several lines"),
    "a key with a space": ("Bearer sk-secret", "no key"),
    "a quoted key": ('"sk-secret"', "no key"),
    "bytes that are no text": (b"\xff\xfesk-secret", "no key"),
    "a NUL": (b"sk-secret\0", "no key"),
    "no ASCII": ("sk-secret-é", "no key"),
    "half an object": ('{"key": "sk-secret"', "no key"),
    "an object without a key": ('{"token": "sk-secret"}', "no key"),
    "an object with an empty key": ('{"key": "", "password": "sk-secret"}', "no key"),
    "a key that is no text": ('{"key": ["sk-secret"]}', "no key"),
    "an object's key with a newline": ('{"key": "sk-secret\\nX: y"}', "no key"),
    "an end that is no time": ('{"key": "sk-secret", "expires_at": "tomorrow"}', "RFC 3339"),
    "an end without a zone": ('{"key": "sk-secret", "expires_at": "2030-01-01T00:00:00"}', "3339"),
    "an end out of range": ('{"key": "sk-secret", "expires_in": 1e999}', "no key"),
    "an array": ('["sk-secret"]', "no key"),
    "nested deep": ('{"key": ' + "[" * 60_000, "no key"),
}


@pytest.mark.parametrize("name", PROBLEMS)
async def test_a_program_that_prints_no_key_is_named_and_not_quoted(name: str) -> None:
    output, message = PROBLEMS[name]
    with pytest.raises(RefreshError, match=message) as caught:
        await printing(output)(REJECTED)
    error = caught.value
    assert f"the refresh command {sys.executable!r}" in str(error)
    assert error.__cause__ is None
    assert error.__context__ is None
    assert "secret" not in str(error)
    assert classify_refresh_failure(error) is RefreshFailure.BROKEN


async def test_a_program_that_prints_without_end_is_stopped() -> None:
    with trio.fail_after(20), pytest.raises(RefreshError, match="more than 64 KiB"):
        await python("while True: print('sk-secret' * 1000)")(None)


async def test_64_kib_may_be_printed() -> None:
    value = "k" * (64 << 10)
    assert await python("print('k' * (64 << 10), end='')")(None) == Key(value)


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("print('sk-secret'); raise SystemExit(3)", "exit status 3"),
        pytest.param(
            "import os; print('sk-secret', flush=True); os.kill(os.getpid(), 9)",
            "signal SIGKILL",
            marks=posix,
        ),
    ],
)
async def test_a_program_that_fails_gives_no_key_whatever_it_prints(code: str, how: str) -> None:
    with pytest.raises(RefreshError, match=how) as caught:
        await python(code, "--password=hunter2")(None)
    assert f"the refresh command {sys.executable!r}" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


async def test_a_program_that_is_not_there_is_an_error() -> None:
    refresh = CommandRefresh(["no-such-program", "--password=hunter2"])
    with pytest.raises(RefreshError, match="'no-such-program' could not be started") as caught:
        await refresh(None)
    assert "is it installed" in str(caught.value)
    assert_quotes_nothing(caught.value, "hunter2")


@posix
@pytest.mark.parametrize("mode", [0o644, 0o755])
async def test_a_file_that_is_no_program_is_an_error(tmp_path: Path, mode: int) -> None:
    program = tmp_path / "get-key"
    program.write_text("echo sk-secret\n")
    program.chmod(mode)
    why = "Permission denied" if mode == 0o644 else "Exec format error"
    with pytest.raises(RefreshError, match=rf"get-key' could not be started \({why}\)"):
        await CommandRefresh([str(program)])(None)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ([], "is empty"),
        (["", "hunter2"], "is empty"),
        ("get-key 'hunter2", "nothing closes"),
        ("TOKEN=hunter2 get-key", "env NAME=value"),
        (["TOKEN=hunter2", "get-key"], "env NAME=value"),
        (["get-key", "hunter2\0"], "NUL"),
    ],
)
def test_a_command_that_can_be_none_is_refused_at_once(
    command: str | Sequence[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        CommandRefresh(command)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__context__ is None


@posix
async def test_a_string_is_split_as_a_shell_does_but_there_is_no_shell() -> None:
    code = "import sys; print(len(sys.argv), *sys.argv[1:], sep=':')"
    refresh = CommandRefresh(f"'{sys.executable}' -c \"{code}\" 'one;two' $HOME `three` \\>four")
    assert await refresh(None) == Key("5:one;two:$HOME:`three`:>four")


def test_its_repr_shows_no_arguments() -> None:
    assert repr(CommandRefresh("get-key --password hunter2")) == "<CommandRefresh 'get-key'>"


async def test_the_program_is_told_nothing_of_the_rejected_key() -> None:
    code = """
import os, sys
told = [*sys.argv, *os.environ, *os.environ.values(), sys.stdin.read()]
print("sk-told" if any("sk-rejected" in text for text in told) else "sk-new")
"""
    assert await python(code)(REJECTED) == Key("sk-new")


async def test_its_standard_input_is_empty_whatever_this_process_is_given() -> None:
    ours = os.dup(0)
    reader, writer = os.pipe()
    os.write(writer, b"what the user types")
    os.close(writer)
    os.dup2(reader, 0)
    try:
        key = await python("import sys; print('sk-' + (sys.stdin.read() or 'new'))")(None)
    finally:
        os.dup2(ours, 0)
        os.close(ours)
        os.close(reader)
    assert key == Key("sk-new")


async def test_what_it_writes_to_standard_error_is_for_the_user(
    capfd: pytest.CaptureFixture[str],
) -> None:
    await python("import sys; print('Touch your token', file=sys.stderr); print('sk-new')")(None)
    assert capfd.readouterr() == ("", "Touch your token\n")


@posix
async def test_a_child_that_it_leaves_behind_with_the_pipe_is_not_waited_for(
    tmp_path: Path,
) -> None:
    code = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open(sys.argv[1], "w").write(str(child.pid))
print("sk-new")
"""
    with trio.fail_after(20):
        assert await python(code, str(tmp_path / "pid"))(None) == Key("sk-new")
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


# Programs that are cancelled


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


async def open_fifo(fifo: Path, mode: str) -> int:
    """Opens it once the program has opened the other end."""
    flags = os.O_RDONLY if mode == "r" else os.O_WRONLY
    with trio.fail_after(20):
        return await trio.to_thread.run_sync(os.open, fifo, flags)


def open_descriptors() -> int:
    return len(os.listdir("/dev/fd"))


async def pid_of_program(fifo: Path) -> int:
    descriptor = await open_fifo(fifo, "r")
    async with trio.lowlevel.FdStream(descriptor) as stream:
        return int(b"".join([chunk async for chunk in stream]))


def assert_gone(pid: int) -> None:
    """Ended, and no zombie."""
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@posix
async def test_a_program_that_runs_may_finish_after_a_cancellation(fifo: Path) -> None:
    kept: list[Key] = []
    scope = trio.CancelScope()

    async def refresh() -> None:
        with scope:
            code = "import sys; open(sys.argv[1]).read(); print('sk-paid-for')"
            kept.append(await python(code, str(fifo))(None))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(refresh)
        descriptor = await open_fifo(fifo, "w")
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        os.close(descriptor)
    assert kept == [Key("sk-paid-for")]


@posix
@pytest.mark.parametrize(
    "prepare",
    [
        pytest.param("", id="a program that ends when it is asked to"),
        pytest.param("signal.signal(signal.SIGTERM, signal.SIG_IGN)", id="one that does not"),
    ],
)
async def test_a_program_that_does_not_finish_is_ended_and_nothing_is_left(
    fifo: Path, monkeypatch: pytest.MonkeyPatch, prepare: str
) -> None:
    monkeypatch.setattr("gz_trio._auth.command_refresh.FINISH_SECONDS", 0.05)
    monkeypatch.setattr("gz_trio._auth.command_refresh._TERMINATE_SECONDS", 0.5)
    code = f"""
import os, signal, sys, time
{prepare}
with open(sys.argv[1], "w") as fifo:
    fifo.write(str(os.getpid()))
time.sleep(60)
"""
    before = open_descriptors()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(python(code, str(fifo)), None)
            pid = await pid_of_program(fifo)
            nursery.cancel_scope.cancel()
    assert_gone(pid)
    assert open_descriptors() == before


@posix
async def test_however_it_ends_no_pipe_is_left() -> None:
    before = open_descriptors()
    for refresh in (printing("sk-new"), printing(""), CommandRefresh("no-such-program")):
        with suppress(RefreshError):
            await refresh(None)
    assert open_descriptors() == before


async def test_a_refresh_that_is_cancelled_already_starts_no_program(tmp_path: Path) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await python("import sys; open(sys.argv[1], 'w')", str(tmp_path / "started"))(None)
    assert scope.cancelled_caught
    assert os.listdir(tmp_path) == []
