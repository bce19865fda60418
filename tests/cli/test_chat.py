"""`gz-trio chat`: at a terminal, at pipes, and what it says when something is wrong."""

import signal
import subprocess
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest
import trio

from gz_trio import Delta, FileKeyStore, Key, Record
from gz_trio.testing import Answer, Cut, FakeGateway, SeenRequest, Stall, Status
from tests.cli.terminal import COMMAND, Terminal, environment, run_piped, run_without, terminal

SIGNING_IN = "session expired, signing in again ..."
WORDS = [f"word{number} " for number in range(30)]


def words(body: Mapping[str, object], attempt: int) -> Sequence[str]:
    return WORDS


def count_messages(body: Mapping[str, object], attempt: int) -> Sequence[str]:
    messages = body["messages"]
    assert isinstance(messages, list)
    return [f"answer to {len(cast('list[object]', messages))}"]


def question(request: SeenRequest) -> object:
    """What the last message of a request says."""
    messages = (request.body or {})["messages"]
    return cast("list[dict[str, object]]", messages)[-1]["content"]


def gateway(
    answer: Answer = words,
    *,
    token_interval: float = 0.02,
    on_request: Callable[[SeenRequest], None] | None = None,
) -> FakeGateway:
    return FakeGateway(answer=answer, token_interval=token_interval, on_request=on_request)


@asynccontextmanager
async def chat_at_terminal(
    fake: FakeGateway, *options: str, columns: int = 80, lines: int = 24, **variables: str
) -> AsyncGenerator[Terminal]:
    async with (
        fake.listen() as base_url,
        terminal(
            "chat", "--base-url", base_url, "--model", "fake-model", *options,
            columns=columns, lines=lines, **{"GZ_API_KEY": fake.key, **variables},
        ) as chat,
    ):  # fmt: skip
        await until_prompt(chat)
        yield chat


async def until_prompt(chat: Terminal) -> None:
    await chat.until(lambda: chat.shown[-1:] == [">"])


class SignIn:
    """A refresh command that waits until the test has put a key into a file."""

    def __init__(self, folder: Path) -> None:
        self._key = folder / "issued"
        script = folder / "sign-in"
        script.write_text(f"until test -s {self._key}; do sleep 0.02; done; cat {self._key}\n")
        self.command = f"sh {script}"

    def issue(self, key: str) -> None:
        self._key.write_text(key)


# At a terminal


class TestAtATerminal:
    async def test_a_key_that_dies_in_mid_reply_is_replaced_and_the_line_goes_on(
        self, tmp_path: Path
    ) -> None:
        sign_in = SignIn(tmp_path)
        fake = gateway()
        async with chat_at_terminal(fake, "--refresh-command", sign_in.command) as chat:
            await chat.type("hello\r")
            await chat.until_shown("word7")
            fake.rotate("sk-new")
            await chat.until_shown(SIGNING_IN)
            so_far = "".join(chat.shown[3:-1])
            assert chat.shown[-1] == SIGNING_IN  # on the line below
            assert "word7" in so_far
            sign_in.issue("sk-new")
            await until_prompt(chat)
            assert SIGNING_IN not in " ".join(chat.shown)
            answer = "".join(line.ljust(80) for line in chat.shown[3:-1])
            assert answer.rstrip() == "".join(WORDS).rstrip()
        assert b"sk-new" not in chat.raw
        assert fake.rejected >= 1

    async def test_a_notice_at_the_last_line_of_the_screen_scrolls_it_and_is_erased_too(
        self, tmp_path: Path
    ) -> None:
        sign_in = SignIn(tmp_path)
        fake = gateway()
        async with chat_at_terminal(
            fake, "--refresh-command", sign_in.command, columns=20, lines=6
        ) as chat:
            await chat.type("hello\r")
            await chat.until_shown("word20")
            fake.rotate("sk-new")
            await chat.until_shown(SIGNING_IN[:19])  # as much as fits
            sign_in.issue("sk-new")
            await until_prompt(chat)
            whole = "".join(WORDS)
            rows = [whole[i : i + 20].rstrip() for i in range(0, len(whole), 20)]
            assert chat.shown == [*rows[-len(chat.shown) + 1 :], ">"]

    async def test_ctrl_c_stops_an_answer_and_the_chat_goes_on(self) -> None:
        over = trio.Event()
        fake = gateway(on_request=lambda _: over.set())
        async with chat_at_terminal(fake) as chat:
            await chat.type("hello\r")
            await chat.until_shown("word3")
            await chat.type("\x03")
            await until_prompt(chat)
            assert "word29" not in " ".join(chat.shown)
            with trio.fail_after(10):
                await over.wait()  # the gateway has noticed that nobody listens any more
            await chat.type("again\r")
            await chat.until_shown("word29")
            await until_prompt(chat)
            await chat.type("\x04")
            assert await chat.ended() == 0
        # The answer that was stopped is no part of the conversation.
        assert fake.requests[-1].body is not None
        assert fake.requests[-1].body["messages"] == [{"role": "user", "content": "again"}]

    async def test_ctrl_c_at_the_prompt_ends_it_and_leaves_the_terminal_as_it_was(self) -> None:
        async with chat_at_terminal(gateway()) as chat:
            await chat.type("half a lin")
            await chat.until_shown("half a lin")
            await chat.type("\x03")
            assert await chat.ended() == 130
            assert b"Traceback" not in chat.raw
            mode = chat.mode()
        async with terminal("--version") as untouched:
            await untouched.ended()
            assert mode == untouched.mode()

    async def test_lines_can_be_edited_and_recalled(self) -> None:
        fake = gateway()
        async with chat_at_terminal(fake) as chat:
            await chat.type("hallo\x1b[D\x1b[D\x1b[D\x7fe\r")  # left, left, left, backspace, e
            await chat.until_shown("word29")
            await until_prompt(chat)
            await chat.type("\x1b[A\r")  # up
            await chat.until(lambda: " ".join(chat.shown).count("word29") == 2)
        assert [question(request) for request in fake.requests] == ["hello", "hello"]

    async def test_an_answer_that_comes_again_in_other_words_takes_the_place_of_the_first(
        self,
    ) -> None:
        first, second = ["Once ", "upon ", "a ", "time\n", "a ", "fox"], ["Long ", "ago ", "a fox."]
        fake = gateway(
            answer=lambda _, attempt: first if attempt == 1 else second, token_interval=0.0
        )
        fake.fault(Cut(), token=5)
        async with chat_at_terminal(fake) as chat:
            await chat.type("hello\r")
            await chat.until_shown("Once upon")
            await until_prompt(chat)
            assert chat.shown[2:] == ["> hello", "Long ago a fox.", ">"]

    async def test_where_the_first_has_left_the_screen_the_second_comes_below(self) -> None:
        first = [f"line {number}\n" for number in range(30)]
        fake = gateway(
            answer=lambda _, attempt: first if attempt == 1 else ["other"], token_interval=0.0
        )
        fake.fault(Cut(), token=29)
        async with chat_at_terminal(fake, lines=10) as chat:
            await chat.type("hello\r")
            await chat.until_shown("(starting over)")
            await until_prompt(chat)
            assert chat.shown[-4:] == ["line 28", "(starting over)", "other", ">"]

    async def test_what_it_waits_for_is_said_in_words(self) -> None:
        fake = gateway()
        fake.fault(Status(429, headers={"retry-after": "1"}), request=1)
        fake.fault(Cut(), request=2, token=3)
        async with chat_at_terminal(fake) as chat:
            await chat.type("hello\r")
            await chat.until_shown("rate limit, going on in 1 s ...")
            await chat.until_shown("connection lost, connecting again ...")
            await until_prompt(chat)
            assert "word29" in " ".join(chat.shown)
            assert " ..." not in " ".join(chat.shown)

    async def test_reasoning_is_shown_before_the_answer(self) -> None:
        thoughts = [Delta(reasoning="Let me "), Delta(reasoning="think."), Delta(text="Yes.")]
        async with chat_at_terminal(gateway(answer=lambda _, _attempt: thoughts)) as chat:
            await chat.type("hello\r")
            await chat.until_shown("> hello")
            await until_prompt(chat)
            assert chat.shown[3:] == ["Let me think.", "Yes.", ">"]

    async def test_a_failed_turn_is_one_red_line_and_the_chat_goes_on(self) -> None:
        fake = gateway()
        async with chat_at_terminal(fake, columns=200) as chat:
            fake.fault(Status(400))
            await chat.type("hello\r")
            await chat.until_shown("> hello")
            await until_prompt(chat)
            assert len(chat.shown) == 5
            assert chat.shown[3].startswith("gz-trio: ")
            assert b"\x1b[31m" in chat.raw
            await chat.type("again\r")
            await chat.until_shown("word29")
            await until_prompt(chat)
            await chat.type("\x04")
            assert await chat.ended() == 0

    async def test_what_the_model_says_does_not_steer_the_terminal(self) -> None:
        evil = ["\x1b]0;owned\x07", "\x1b[2J", "a\r\nb\tc\x00\x7f", "\x9b31mred", "\x0e"]
        async with chat_at_terminal(gateway(answer=lambda _, _attempt: evil)) as chat:
            before = len(chat.raw)
            await chat.type("hello\r")
            await chat.until_shown("> hello")
            await until_prompt(chat)
            assert chat.shown[3:] == ["␛]0;owned␇␛[2Ja", "b       c␀␡<9b>31mred␎", ">"]
            assert not set(chat.raw[before:].decode()) & {"\x07", "\x00", "\x7f", "\x9b", "\x0e"}

    async def test_a_new_key_in_the_key_file_lets_a_waiting_answer_go_on(
        self, tmp_path: Path
    ) -> None:
        fake = gateway()
        key_file = tmp_path / "key"
        key_file.touch(0o600)
        key_file.write_text(f"{fake.key}\n")
        async with chat_at_terminal(fake, "--key-file", str(key_file), GZ_API_KEY="wrong") as chat:
            await chat.type("hello\r")
            await chat.until_shown("word7")
            fake.rotate("sk-new")
            await chat.until_shown(SIGNING_IN)
            key_file.write_text("sk-new\n")
            await until_prompt(chat)
            assert "word29" in " ".join(chat.shown)
        assert key_file.read_text() == "sk-new\n"


# At pipes


@asynccontextmanager
async def chat_options(fake: FakeGateway) -> AsyncGenerator[list[str]]:
    async with fake.listen() as base_url:
        yield ["chat", "--base-url", base_url, "--model", "fake-model"]


class TestAtPipes:
    async def test_each_line_is_a_turn_of_one_conversation(self) -> None:
        fake = gateway(answer=count_messages)
        async with chat_options(fake) as options:
            run = await run_piped(
                *options, "--system", "Be brief.", stdin="hi\n\nGrüße".encode(), GZ_API_KEY=fake.key
            )
        assert run.returncode == 0
        assert run.stdout == b"answer to 2\nanswer to 4\n"
        assert run.stderr == b""
        assert fake.requests[-1].body is not None
        assert fake.requests[-1].body["messages"] == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "answer to 2"},
            {"role": "user", "content": "Grüße"},
        ]

    async def test_notices_go_to_standard_error(self) -> None:
        fake = gateway()
        old = fake.key
        fake.rotate("sk-new")
        async with chat_options(fake) as options:
            run = await run_piped(
                *options, "--refresh-command", "echo sk-new", stdin=b"hi\n", OPENAI_API_KEY=old
            )
        assert run.returncode == 0
        assert run.stdout.decode() == "".join(WORDS) + "\n"
        assert run.stderr.decode() == f"{SIGNING_IN}\n"
        assert (fake.rejected, len(fake.requests)) == (1, 2)

    async def test_without_a_key_the_refresh_command_gives_the_first_one(self) -> None:
        fake = gateway()
        async with chat_options(fake) as options:
            run = await run_piped(*options, "--refresh-command", f"echo {fake.key}", stdin=b"hi\n")
        assert (run.returncode, run.stderr, fake.rejected) == (0, b"signing in ...\n", 0)

    async def test_gz_api_key_comes_before_openai_api_key(self) -> None:
        fake = gateway()
        async with chat_options(fake) as options:
            run = await run_piped(*options, stdin=b"hi\n", GZ_API_KEY=fake.key, OPENAI_API_KEY="no")
        assert (run.returncode, fake.rejected) == (0, 0)

    @pytest.mark.parametrize(
        ("over", "path"),
        [
            (["--api", "responses"], "/v1/responses"),
            (["--api", "messages"], "/v1/messages"),
            (
                ["--api", "responses", "--transport", "websocket"],
                "/v1/responses (websocket)",
            ),
        ],
    )
    async def test_another_api_is_a_conversation_too(self, over: list[str], path: str) -> None:
        fake = gateway()
        async with chat_options(fake) as options:
            run = await run_piped(*options, *over, stdin=b"one\ntwo\n", GZ_API_KEY=fake.key)
        assert run.returncode == 0
        assert run.stdout.decode().split() == [word.strip() for word in WORDS] * 2
        assert [request.path for request in fake.requests if request.body] == [path] * 2

    @pytest.mark.parametrize("place", [["--profile", "default"], ["--store", "file"]])
    async def test_a_place_that_is_named_comes_before_the_environment(
        self, place: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fake = gateway()
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
        await FileKeyStore().replace(0, Record(key=Key(fake.key)))
        async with chat_options(fake) as options:
            run = await run_piped(
                *options, *place, stdin=b"hi\n", GZ_API_KEY="wrong", XDG_STATE_HOME=str(tmp_path)
            )
        assert (run.returncode, fake.rejected) == (0, 0)

    async def test_a_failed_turn_makes_the_exit_code_1_and_the_next_ones_are_asked(self) -> None:
        fake = gateway()
        fake.fault(Status(400), request=1)
        async with chat_options(fake) as options:
            run = await run_piped(*options, stdin=b"one\ntwo\n", GZ_API_KEY=fake.key)
        assert run.returncode == 1
        assert run.stdout.decode() == "".join(WORDS) + "\n"
        assert len(run.stderr.splitlines()) == 1

    @pytest.mark.parametrize("stalls", [True, False], ids=["in an answer", "between two"])
    async def test_an_interrupt_ends_it_with_130(self, stalls: bool) -> None:
        fake = gateway()
        if stalls:
            fake.fault(Stall(), token=3)
        async with chat_options(fake) as options:
            process = await trio.lowlevel.open_process(
                [*COMMAND, *options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment({"GZ_API_KEY": fake.key}),
            )
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            async with process.stdin, process.stdout, process.stderr:
                with trio.fail_after(30):
                    await process.stdin.send_all(b"hi\n")
                    shown = b""
                    while (b"word2 " if stalls else b"word29 \n") not in shown:
                        shown += await process.stdout.receive_some()
                    process.send_signal(signal.SIGINT)
                    errors = b"".join([chunk async for chunk in process.stderr])
                    assert (await process.wait(), errors) == (130, b"")

    async def test_it_ends_quietly_when_nobody_reads_its_output(self) -> None:
        fake = gateway(token_interval=0.0)
        async with chat_options(fake) as options:
            run = await trio.run_process(
                ["sh", "-c", '"$@" | head -c 1', "sh", *COMMAND, *options],
                stdin=b"hi\n" * 3,
                capture_stdout=True,
                capture_stderr=True,
                env=environment({"GZ_API_KEY": fake.key}),
            )
        assert (run.stdout, run.stderr) == (b"w", b"")


# What is wrong is said in one line


async def complaint(*arguments: str, stdin: bytes = b"hi\n", **variables: str) -> str:
    run = await run_piped("chat", *arguments, stdin=stdin, **variables)
    assert run.returncode == 1
    assert run.stdout == b""
    *_, line = run.stderr.decode().splitlines()
    assert "Traceback" not in run.stderr.decode()
    assert line.startswith("gz-trio: ")
    return line


ANYWHERE = ["--base-url", "http://127.0.0.1:9/v1", "--model", "m"]


class TestWhatIsWrongIsSaidInOneLine:
    async def test_no_key_and_no_way_to_get_one(self) -> None:
        line = await complaint(*ANYWHERE)
        for way in ("GZ_API_KEY", "OPENAI_API_KEY", "--key-file", "--refresh-command"):
            assert way in line

    async def test_an_empty_variable_is_no_key(self) -> None:
        assert "no key" in await complaint(*ANYWHERE, GZ_API_KEY="", OPENAI_API_KEY="")

    @pytest.mark.parametrize("key", [" ", "sk\nx", "sk x"])
    async def test_a_key_that_cannot_be_sent(self, key: str) -> None:
        assert "API key" in await complaint(*ANYWHERE, GZ_API_KEY=key)

    @pytest.mark.parametrize(
        "url", ["api.gatewayz.ai/v1", "ftp://host", "https://", "http://host?q=1"]
    )
    async def test_a_base_url_that_is_none(self, url: str) -> None:
        line = await complaint("--base-url", url, "--model", "m", GZ_API_KEY="sk-1")
        assert "base URL" in line

    async def test_an_unknown_model(self) -> None:
        async with gateway().listen() as base_url:
            line = await complaint(
                "--base-url", base_url, "--model", "nope", GZ_API_KEY="gw_test_1"
            )
        assert "'nope'" in line

    async def test_a_gateway_that_is_not_there(self) -> None:
        line = await complaint(*ANYWHERE, "--max-retries", "0", GZ_API_KEY="sk-1")
        assert "no connection to http://127.0.0.1:9" in line

    async def test_a_rejected_key_that_nothing_replaces(self) -> None:
        async with gateway().listen() as base_url:
            line = await complaint(
                "--base-url", base_url, "--model", "fake-model", OPENAI_API_KEY="sk-secret"
            )
        assert "OPENAI_API_KEY" in line
        assert "sk-secret" not in line

    @pytest.mark.parametrize(
        ("command", "words"),
        [
            ("false", "exit status 1"),
            ("true", "printed nothing"),
            ("no-such-program-anywhere", "could not be started"),
        ],
    )
    async def test_a_refresh_command_that_gives_no_key(self, command: str, words: str) -> None:
        async with gateway().listen() as base_url:
            line = await complaint(
                "--base-url", base_url, "--model", "fake-model", "--refresh-command", command
            )
        assert repr(command) in line
        assert words in line

    @pytest.mark.parametrize("command", ["", "sh -c 'x"])
    async def test_a_refresh_command_that_is_none(self, command: str) -> None:
        assert "refresh command" in await complaint(*ANYWHERE, "--refresh-command", command)

    @pytest.mark.parametrize("content", [None, "", '{"profiles": '])
    async def test_a_key_file_without_a_key(self, tmp_path: Path, content: str | None) -> None:
        key_file = tmp_path / "key"
        if content is not None:
            key_file.touch(0o600)
            key_file.write_text(content)
        assert str(key_file) in await complaint(*ANYWHERE, "--key-file", str(key_file))
        assert key_file.exists() == (content is not None)
        assert content is None or key_file.read_text() == content

    async def test_a_key_file_that_others_can_read_is_warned_of(self, tmp_path: Path) -> None:
        fake = gateway()
        key_file = tmp_path / "key"
        key_file.write_text(f"{fake.key}\n")
        key_file.chmod(0o644)
        async with chat_options(fake) as options:
            run = await run_piped(*options, "--key-file", str(key_file), stdin=b"hi\n")
        assert run.returncode == 0
        warning = f"gz-trio: other users can read the key file {key_file}: chmod 600 {key_file}\n"
        assert run.stderr.decode() == warning

    async def test_closed_standard_input(self) -> None:
        run = await trio.run_process(
            ["sh", "-c", '"$@" <&-', "sh", *COMMAND, "chat", *ANYWHERE],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=environment({"GZ_API_KEY": "sk-1"}),
        )
        assert run.returncode == 1
        assert b"standard input is closed" in run.stderr
        assert b"Traceback" not in run.stderr


async def test_a_missing_extra_is_named() -> None:
    for package in ("cyclopts", "rich"):
        run = await run_without(package, "demo")
        assert (run.returncode, run.stdout) == (1, b"")
        assert run.stderr.decode() == (
            f"gz-trio: the command line needs the package {package}, which comes with the extra "
            "cli: pip install 'gz-trio[cli]'\n"
        )
