"""`gz-trio auth`: sign in and out, and say what is there, without showing the key."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import trio

from gz_trio import FileKeyStore, Key, Record
from gz_trio.testing import FakeGateway
from tests.cli.terminal import run_piped, terminal
from tests.redis_server import redis_server

JWT = "eyJhbGciOiJub25lIn0.eyJleHAiOjQxMDI0NDQ4MDB9.c2ln"  # ends with the year 2099


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "keys.json"


async def auth(path: Path, *arguments: str, stdin: str = "", **variables: str) -> tuple[int, str]:
    """The exit code, and what was printed, errors included."""
    done = await run_piped(
        "auth", *arguments, "--key-file", str(path), stdin=stdin.encode(), **variables
    )
    return done.returncode, (done.stdout + done.stderr).decode()


async def key_in(path: Path, profile: str = "default") -> Key | None:
    return (await FileKeyStore(path, profile=profile).load()).key


def printing(text: str) -> str:
    """A program that prints it."""
    return shlex.join([sys.executable, "-c", f"print({text!r})"])


def once_more(_body: Mapping[str, object], _attempt: int) -> list[str]:
    return ["Once ", "more"]


def put_bare(path: Path, key: str) -> None:
    path.parent.mkdir()
    path.touch(0o600)
    path.write_text(f"{key}\n")


def content_of(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


async def test_a_key_that_is_piped_in_is_stored_and_never_shown(path: Path) -> None:
    code, said = await auth(path, "login", stdin="sk-secret\n")
    assert (code, "sk-secret" in said) == (0, False)
    assert said.startswith(f"signed in: profile default of {path}: a key, generation 1")
    assert await key_in(path) == Key("sk-secret", generation=1, epoch=1)
    code, said = await auth(path, "status")
    assert (code, "sk-secret" in said) == (0, False)
    assert await auth(path, "token") == (0, "sk-secret\n")


async def test_a_key_that_is_typed_is_not_shown_as_it_is_typed(path: Path) -> None:
    async with terminal("auth", "login", "--key-file", str(path)) as typed:
        await typed.until_shown("Key:")
        await typed.type("sk-secret\r")
        assert await typed.ended() == 0
        assert b"sk-secret" not in typed.raw
    assert await key_in(path) == Key("sk-secret", generation=1, epoch=1)


async def test_ctrl_c_at_the_prompt_stores_nothing(path: Path) -> None:
    async with terminal("auth", "login", "--key-file", str(path)) as typed:
        await typed.until_shown("Key:")
        await typed.type("sk-sec")

        async def press() -> None:
            # Python overlooks one that comes as it begins to read, as people's do not.
            while True:
                await typed.type("\x03")
                await trio.sleep(5)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(press)
            assert await typed.ended() == 130
            nursery.cancel_scope.cancel()
    assert content_of(path) is None


async def test_a_program_may_bring_a_refresh_token_too(path: Path) -> None:
    printed = '{"access_token": "sk-1", "refresh_token": "rt-1", "expires_in": 7200}'
    code, said = await auth(path, "login", "--refresh-command", printing(printed))
    assert code == 0
    assert "ends in 120 min, with a refresh token" in said
    key = await key_in(path)
    assert key is not None
    assert (key.value, key.refresh_token) == ("sk-1", "rt-1")


async def test_a_key_that_is_a_jwt_has_an_end(path: Path) -> None:
    code, said = await auth(path, "login", stdin=JWT)
    assert code == 0
    assert "days" in said
    assert await key_in(path) == Key(JWT, expires_at=4_102_444_800.0, generation=1, epoch=1)


async def test_a_sign_in_is_another_account_unless_it_is_said_to_be_the_same(path: Path) -> None:
    for arguments, epoch in (([], 1), ([], 2), (["--same-account"], 2), ([], 3)):
        assert (await auth(path, "login", *arguments, stdin=f"sk-{epoch}"))[0] == 0
        assert (await FileKeyStore(path).load()).epoch == epoch


async def test_profiles_are_apart(path: Path) -> None:
    assert (await auth(path, "login", "--profile", "work", stdin="sk-work"))[0] == 0
    assert (await auth(path, "login", stdin="sk-home"))[0] == 0
    assert await auth(path, "token", "--profile", "work") == (0, "sk-work\n")
    assert (await auth(path, "logout"))[0] == 0
    assert await key_in(path) is None
    assert await auth(path, "token", "--profile", "work") == (0, "sk-work\n")


async def test_status_says_what_is_there_and_by_its_exit_code_whether_it_is_of_use(
    path: Path,
) -> None:
    store = FileKeyStore(path)
    code, said = await auth(path, "status")
    assert (code, said) == (1, f"profile default of {path}: nobody has signed in yet\n")
    await store.replace(0, Record(epoch=1, key=Key("sk-1", expires_at=time.time() - 7200.5)))
    code, said = await auth(path, "status")
    assert (code, said) == (
        0,
        f"profile default of {path}: a key, generation 1, ended 2 h ago\n",
    )
    await store.replace(1, Record(epoch=1, key=Key("sk-1", expires_at=5.0), refused=True))
    code, said = await auth(path, "status")
    assert code == 1
    assert "refused: sign in again" in said
    code, said = await auth(path, "status", "--json")
    assert (code, json.loads(said)) == (
        1,
        {
            "store": str(path),
            "profile": "default",
            "signed_in": True,
            "refused": True,
            "version": 2,
            "epoch": 1,
            "generation": 1,
            "expires_at": 5.0,
            "refresh_token": False,
        },
    )
    assert (await auth(path, "logout"))[0] == 0
    code, said = await auth(path, "status")
    assert (code, said) == (1, f"profile default of {path}: signed out\n")


async def test_a_refresh_by_a_program(path: Path) -> None:
    await FileKeyStore(path).replace(0, Record(epoch=1, key=Key("sk-1")))
    code, said = await auth(path, "refresh", "--refresh-command", printing("sk-2"))
    assert (code, "sk-2" in said) == (0, False)
    assert await key_in(path) == Key("sk-2", generation=2, epoch=1)


async def test_a_refresh_by_the_gateway(path: Path) -> None:
    fake = FakeGateway()
    await FileKeyStore(path).replace(0, Record(epoch=1, key=Key("sk-1")))
    async with fake.listen() as base_url:
        code, said = await auth(path, "refresh", "--base-url", base_url, GZ_IDENTITY_TOKEN="jwt")
        assert (code, fake.key in said) == (0, False)
        assert await key_in(path) == Key(fake.key, generation=2, epoch=1)
        fake.refuse_refresh = True
        code, said = await auth(
            path, "refresh", "--base-url", base_url, GZ_IDENTITY_TOKEN="jwt-secret"
        )
    assert code == 1
    assert said == "gz-trio: the refresh was refused: sign in again\n"


async def test_a_refresh_by_a_refresh_token(path: Path) -> None:
    requests: list[bytes] = []

    async def answer(stream: trio.SocketStream) -> None:
        request = b""
        while b"refresh_token=rt-1" not in request:
            request += await stream.receive_some()
        requests.append(request)
        body = b'{"access_token": "sk-2", "refresh_token": "rt-2", "expires_in": 60}'
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    await FileKeyStore(path).replace(0, Record(epoch=1, key=Key("sk-1", refresh_token="rt-1")))
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, answer, listeners)
        url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/token"
        code, said = await auth(
            path, "refresh", "--token-url", url, "--client-id", "me", GZ_CLIENT_SECRET="cs"
        )
        nursery.cancel_scope.cancel()
    assert (code, "sk-2" in said) == (0, False)
    assert b"authorization: Basic bWU6Y3M=" in requests[0].replace(
        b"Authorization", b"authorization"
    )
    key = await key_in(path)
    assert key is not None
    assert (key.value, key.refresh_token) == ("sk-2", "rt-2")


@pytest.mark.parametrize(("ends_in", "shown"), [(60, "sk-1"), (-60, "sk-2"), (None, "sk-1")])
async def test_a_key_that_has_ended_is_replaced_before_it_is_printed(
    path: Path, ends_in: float | None, shown: str
) -> None:
    ends = None if ends_in is None else time.time() + ends_in
    await FileKeyStore(path).replace(0, Record(epoch=1, key=Key("sk-1", expires_at=ends)))
    command = printing("sk-2")
    assert await auth(path, "token", "--refresh-command", command) == (0, f"{shown}\n")


async def test_a_sign_out_forgets_the_key_and_leaves_a_mark(path: Path) -> None:
    await FileKeyStore(path).replace(0, Record(epoch=1, key=Key("sk-secret")))
    code, said = await auth(path, "logout")
    assert (code, said) == (0, f"signed out: profile default of {path}: signed out\n")
    assert await FileKeyStore(path).load() == Record(2, 2)
    assert "sk-secret" not in (content_of(path) or "")
    code, said = await auth(path, "token")
    assert code == 1
    assert "`gz-trio auth login` stores one" in said


@pytest.mark.parametrize("command", ["login", "refresh", "logout"])
async def test_a_file_of_one_bare_key_is_somebody_elses_to_write(path: Path, command: str) -> None:
    put_bare(path, "sk-1")
    more = ["--refresh-command", "echo sk-2"] if command == "refresh" else []
    code, said = await auth(path, command, *more, stdin="sk-2")
    assert code == 1
    assert "never rewritten" in said
    assert content_of(path) == "sk-1\n"
    assert await auth(path, "token") == (0, "sk-1\n")


@pytest.mark.parametrize(
    ("arguments", "stdin", "complaint"),
    [
        (["status", "--store", "redis"], "", "--key-file is for --store file"),
        (["login"], "", "no key"),
        (["login"], "\n", "no key"),
        (["login"], "sk secret", "holds a space"),
        (["login", "--base-url", "http://x"], "", "identity token in GZ_IDENTITY_TOKEN"),
        (["login", "--refresh-command", "a", "--base-url", "b"], "", "two ways to a key"),
        (["refresh"], "", "nothing says where a new key comes from"),
        (["refresh", "--token-url", "http://x"], "", "needs --client-id"),
        (["refresh", "--token-url", "x", "--client-id", "y"], "", "the token URL must begin"),
        (["refresh", "--refresh-command", "'"], "", "a quote or a backslash"),
    ],
)
async def test_what_cannot_be_used_is_said_in_a_line(
    path: Path, arguments: list[str], stdin: str, complaint: str
) -> None:
    code, said = await auth(path, *arguments, stdin=stdin)
    assert code in (1, 2)
    assert complaint in said
    assert "secret" not in said
    assert said.count("\n") == 1
    assert content_of(path) is None


@pytest.mark.parametrize(
    ("store", "complaint"),
    [("redis", "the server's URL in GZ_REDIS_URL"), ("keyring", "use FileKeyStore")],
)
async def test_a_store_that_is_not_there_is_said_in_a_line(store: str, complaint: str) -> None:
    nowhere = "keyring.backends.fail.Keyring"
    done = await run_piped(
        "auth", "login", "--store", store, stdin=b"sk-1", PYTHON_KEYRING_BACKEND=nowhere
    )
    assert done.returncode in (1, 2)
    assert complaint in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1


@pytest.mark.skipif(os.name != "posix", reason="the state folder is XDG's")
async def test_without_a_file_it_is_the_one_in_the_users_state_folder(tmp_path: Path) -> None:
    variables = {"XDG_STATE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    done = await run_piped("auth", "login", stdin=b"sk-1", **variables)
    assert done.returncode == 0, done.stderr
    fake = FakeGateway("sk-1")
    async with fake.listen() as base_url:
        arguments = ("chat", "--base-url", base_url, "--model", "fake-model")
        done = await run_piped(*arguments, stdin=b"hello\n", **variables)
        assert done.returncode == 0, done.stderr
        done = await run_piped(*arguments, "--profile", "work", stdin=b"hello\n", **variables)
    assert done.returncode == 1
    assert b"holds no key" in done.stderr


async def test_the_key_can_be_on_a_server(tmp_path: Path) -> None:
    async with redis_server(tmp_path) as server:
        variables = {"GZ_REDIS_URL": server.url.replace("redis://", "redis://:@")}
        for command, said in (
            ("login", f"signed in: profile work of {server.url}: a key, generation 1\n"),
            ("status", f"profile work of {server.url}: a key, generation 1\n"),
            ("token", "sk-1\n"),
            ("logout", f"signed out: profile work of {server.url}: signed out\n"),
        ):
            done = await run_piped(
                *("auth", command, "--store", "redis", "--profile", "work"),
                stdin=b"sk-1\n",
                **variables,
            )
            assert (done.returncode, done.stdout.decode(), done.stderr) == (0, said, b"")


async def test_a_chat_that_waits_for_a_key_goes_on_when_somebody_signs_in(path: Path) -> None:
    asked = trio.Event()
    fake = FakeGateway(answer=once_more, on_request=lambda _: asked.set())
    await FileKeyStore(path).replace(0, Record(epoch=1, key=Key(fake.key)))
    fake.rotate("sk-2")
    async with fake.listen() as base_url:
        chat = await trio.lowlevel.open_process(
            [sys.executable, "-m", "gz_trio.cli", "chat", "--base-url", base_url,
             "--model", "fake-model", "--key-file", str(path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert chat.stdin is not None
        assert chat.stdout is not None
        async with chat.stdin, chat.stdout:
            await chat.stdin.send_all(b"hello\n")
            await chat.stdin.aclose()
            with trio.fail_after(30):
                await asked.wait()
                assert (await auth(path, "login", "--same-account", stdin="sk-2"))[0] == 0
                output = b"".join([part async for part in chat.stdout])
        assert chat.stderr is not None
        await chat.stderr.aclose()
        assert await chat.wait() == 0
    assert output.strip() == b"Once more"
