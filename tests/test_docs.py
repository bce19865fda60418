"""What the README and the docs claim. Their code examples are run by `conftest.py`, as tests."""

import ast
import re
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import httpx
import httpx2
import openai
import pytest
import trio
from cyclopts import App
from trio.testing import MockClock

import gz_trio
import gz_trio.simulate
import gz_trio.testing
from gz_trio._cli.app import app
from gz_trio._protocol.retry import describe_table
from gz_trio.testing import Cut, EarlyDone, ErrorFrame, FakeGateway, Fault

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


async def test_the_readme_s_lines_run_as_they_stand_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (lines,) = re.findall(r"```python\n(.+?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)  # for its key.json
    gateway = FakeGateway(models=["gpt-4o-mini"])
    async with gateway.listen() as base_url:
        program = lines.replace("https://api.gatewayz.ai/v1", base_url)
        assert program != lines
        function = f"async def main():\n{textwrap.indent(program, '    ')}"
        namespace = {"gz_trio": gz_trio, "fetch_key": gateway.refresh}
        exec(compile(ast.parse(function), "README.md", "exec"), namespace)
        main: Callable[[], Awaitable[None]] = namespace["main"]  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
        await main()
    written = capsys.readouterr().out
    assert written.startswith(gateway.intended(gateway.requests[-1].body or {}))


def test_the_readme_s_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https:)([^)#]+)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_public_name_is_in_the_api_reference() -> None:
    names = [*gz_trio.__all__, *gz_trio.testing.__all__, *gz_trio.simulate.__all__]
    reference = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\.\. auto\w+:: (\w+)", reference, re.MULTILINE)
    assert set(names) <= set(documented)


def test_the_table_of_failures_is_the_one_that_decides() -> None:
    guide = (ROOT / "docs" / "refresh.md").read_text(encoding="utf-8")
    section = guide.partition("## Every failure")[2]
    rows = re.findall(r"^\| (?!failure)(.+) \| (.+) \|$", section, re.MULTILINE)
    assert rows == describe_table()


def test_the_page_of_the_command_line_has_the_options_that_there_are() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    documented = {
        command: re.findall(r"^\| `(--[\w-]+)` \|", section, re.MULTILINE)
        for command, section in re.findall(
            r"^## `gz-trio (\w+)`\n(.+?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL
        )
    }
    assert documented.pop("simulate") == []  # They are on a page of their own.
    assert documented == {
        command: options_of(app[command])
        for command in app
        if not command.startswith("-") and command != "simulate"
    }


def test_the_page_of_the_simulator_has_the_options_that_there_are() -> None:
    page = (ROOT / "docs" / "simulate.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\| `(--[\w-]+)` \|", page, re.MULTILINE)
    assert sorted(documented) == sorted(options_of(app["simulate"]))


def options_of(command: App) -> list[str]:
    """Its options, in their order; of a group those of all of its commands, each once."""
    names: dict[str, None] = {}
    for part in [name for name in command if not name.startswith("-")]:
        names |= dict.fromkeys(options_of(command[part]))
    if command.default_command is not None:
        for argument in command.assemble_argument_collection():
            names |= dict.fromkeys(name for name in argument.names if name.startswith("--"))
    return list(names)


# The examples' programs


async def run_example(name: str, *arguments: str, cwd: Path) -> str:
    """What the example prints. `run_process` needs a PATH on which the project is installed."""
    done = await trio.run_process(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        cwd=cwd,
        capture_stdout=True,
        stdin=subprocess.DEVNULL,
    )
    return done.stdout.decode()


@pytest.fixture
def command(tmp_path: Path) -> str:
    """A program that prints the fake gateway's key."""
    script = tmp_path / "print-a-key"
    script.write_text("#!/bin/sh\necho gw_test_1\n", encoding="utf-8")
    script.chmod(0o700)
    return str(script)


async def test_the_bot_answers_on_the_command_line(tmp_path: Path, command: str) -> None:
    gateway = FakeGateway()
    async with gateway.listen() as base_url:
        written = await run_example(
            "bot.py", base_url, "fake-model", "How do stories begin?", command, cwd=tmp_path
        )
    text = gateway.intended(gateway.requests[-1].body or {})
    assert written == f" (signing in ...) {text}\n"  # there is no key.json yet


async def test_many_chats_get_their_answers(tmp_path: Path, command: str) -> None:
    gateway = FakeGateway()
    async with gateway.listen() as base_url:
        written = await run_example(
            "many_chats.py", base_url, "fake-model", "20", command, cwd=tmp_path
        )
    assert written.startswith("20 answers, ")


# The README's table "When a key dies": one test for each row, both columns

BODY = {"model": "fake-model", "messages": [{"role": "user", "content": "How do stories begin?"}]}

# The OpenAI SDK leaves async generators to the garbage collector, which Trio warns of.
openai_sdk_leaks = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

Outcome = tuple[str, type[BaseException] | None]
"""The text that came, and what was raised."""


async def gz_trio_reply(gateway: FakeGateway, client: httpx.AsyncClient, key: str) -> Outcome:
    text = ""
    async with (
        gz_trio.open_authenticator(gz_trio.MemoryKeyStore(key), gateway.refresh) as authenticator,
        gz_trio.open_gateway(gateway.base_url, authenticator, http_client=client) as opened,
        opened.stream(BODY) as reply,
    ):
        try:
            async for delta in reply:
                text += delta.text
        except gz_trio.GatewayError as error:
            return text, type(error)
    return text, None


async def openai_reply(sdk: openai.AsyncOpenAI) -> Outcome:
    text = ""
    try:
        async with await sdk.chat.completions.create(
            model="fake-model",
            messages=[{"role": "user", "content": "How do stories begin?"}],
            stream=True,
        ) as stream:
            async for chunk in stream:
                text += "".join(choice.delta.content or "" for choice in chunk.choices)
    except openai.APIError as error:
        return text, type(error)
    return text, None


def openai_sdk(
    gateway: FakeGateway, client: httpx2.AsyncClient, api_key: Callable[[], Awaitable[str]]
) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=gateway.base_url, api_key=api_key, http_client=client)


@openai_sdk_leaks
async def test_a_key_rejected_before_the_first_byte() -> None:
    gateway = FakeGateway()
    async with gateway.http_client() as client:
        assert await gz_trio_reply(gateway, client, "gw_old") == (gateway.intended(BODY), None)
    async with gateway.http_client(httpx2) as client:
        sdk = openai_sdk(gateway, client, partial(key_after_checkpoint, "gw_old"))
        assert await openai_reply(sdk) == ("", openai.AuthenticationError)


async def key_after_checkpoint(key: str) -> str:
    await trio.lowlevel.checkpoint()
    return key


@openai_sdk_leaks
@pytest.mark.parametrize(
    ("fault", "openai_raises"),
    [
        (ErrorFrame("auth_error"), openai.APIError),
        (Cut(), openai.APIConnectionError),
        (EarlyDone(done=False), None),
    ],
    ids=["auth_error frame", "connection lost", "body ends early"],
)
async def test_a_break_in_mid_reply(
    fault: Fault, openai_raises: type[BaseException] | None, autojump_clock: MockClock
) -> None:
    gateway = FakeGateway()
    gateway.fault(fault, token=5)
    async with gateway.http_client() as client:
        assert await gz_trio_reply(gateway, client, gateway.key) == (gateway.intended(BODY), None)

    gateway.fault(fault, token=5)
    async with gateway.http_client(httpx2) as client:
        sdk = openai_sdk(gateway, client, partial(key_after_checkpoint, gateway.key))
        text, raised = await openai_reply(sdk)
    assert raised is openai_raises
    assert text != gateway.intended(BODY)
    assert gateway.intended(BODY).startswith(text)


@pytest.mark.parametrize("refused", [False, True], ids=["refreshed", "refused"])
async def test_a_hundred_streams_and_one_dead_key(refused: bool) -> None:
    gateway = FakeGateway(tokens=1)
    gateway.refuse_refresh = refused
    outcomes: list[Outcome] = []

    async def stream(opened: gz_trio.Gateway) -> None:
        text = ""
        async with opened.stream(BODY) as reply:
            try:
                async for delta in reply:
                    text += delta.text
            except gz_trio.GatewayError as error:
                outcomes.append((text, type(error)))
            else:
                outcomes.append((text, None))

    async with (
        gateway.http_client() as client,
        gz_trio.open_authenticator(
            gz_trio.MemoryKeyStore("gw_old"), gateway.refresh
        ) as authenticator,
        gz_trio.open_gateway(gateway.base_url, authenticator, http_client=client) as opened,
        trio.open_nursery() as nursery,
    ):
        for _ in range(100):
            nursery.start_soon(stream, opened)
    expected = ("", gz_trio.RefreshError) if refused else (gateway.intended(BODY), None)
    assert outcomes == [expected] * 100
    assert gateway.refreshes == 1


@openai_sdk_leaks
async def test_the_openai_sdk_asks_for_a_key_with_each_request() -> None:
    gateway = FakeGateway(tokens=1)
    calls = 0

    async def api_key() -> str:
        nonlocal calls
        calls += 1
        return await key_after_checkpoint(gateway.key)

    async with gateway.http_client(httpx2) as client, trio.open_nursery() as nursery:
        sdk = openai_sdk(gateway, client, api_key)
        for _ in range(100):
            nursery.start_soon(openai_reply, sdk)
    assert calls == 100
