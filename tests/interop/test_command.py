"""`gz-trio chat` at a terminal, with nginx and a real engine at the other end."""

import unicodedata
from pathlib import Path

import trio

from tests.cli.terminal import terminal
from tests.interop import plain
from tests.interop.conftest import FIRST_KEY
from tests.interop.servers import MODEL, Engine, Front

CANDIDATES = [[f"Chat {number}: hello.", "Go on."] for number in range(60)]
CONNECTING = "connection lost, connecting again ..."
SIGNING_IN = "session expired, signing in again ..."

# The command lets no model steer the terminal: it shows control characters by symbols.
SYMBOLS = {
    **{code: chr(0x2400 + code) for code in range(0x20)},
    0x7F: "␡",
    **{code: f"<{code:02x}>" for code in range(0x80, 0xA0)},
    ord("\n"): "\n",
    ord("\r"): "",
}


def shown(text: str) -> list[str]:
    """The lines of an answer on the screen, which tells no blanks from nothing."""
    return [line.rstrip() for line in text.translate(SYMBOLS).split("\n") if line.strip()]


def easy_to_show(text: str) -> bool:
    """Whether each character takes one column, as far as Unicode and all terminals agree."""
    return not any(
        character == "\t"
        or unicodedata.category(character) in ("Mn", "Me", "Cf")
        or unicodedata.east_asian_width(character) in "WF"
        for character in text
    )


async def test_a_chat_at_a_terminal_outlives_rotations(
    engine: Engine, front: Front, tmp_path: Path
) -> None:
    chats = await plain.whole_chats(engine.base_url, CANDIDATES)
    # Long enough to be cut.
    question, answer, next_question, next_answer = next(
        chat for chat in chats if len(chat[1]) > 40 and all(map(easy_to_show, chat))
    )
    key_file = tmp_path / "key"
    key_file.touch(0o600)
    key_file.write_text(f"{FIRST_KEY}\n")
    # Signing in takes as long as the test wants, so that there is time to look at the screen.
    issued = tmp_path / "issued.key"
    sign_in = tmp_path / "sign-in"
    sign_in.write_text(f"until test -s {issued}; do sleep 0.05; done; cat {issued}; rm {issued}\n")

    async with terminal(
        "chat", "--base-url", front.base_url, "--model", MODEL,
        "--key-file", str(key_file), "--refresh-command", f"sh {sign_in}",
        columns=200,
    ) as chat:  # fmt: skip
        title = [f"{MODEL} at {front.base_url}", "Ctrl-C stops an answer, Ctrl-D ends the chat."]
        await chat.until(lambda: chat.shown == [*title, ">"])

        # In the middle of the answer nginx goes down, and comes back with another key.
        expected = [*title, f"> {question}"]
        with engine.slowed():
            await chat.type(f"{question}\r")
            await chat.until(lambda: len("".join(chat.shown[3:])) > 2)
            await trio.to_thread.run_sync(front.stop)
        await chat.until(lambda: chat.shown[-1] == CONNECTING)
        front.accept_only("sk-interop-2")
        await trio.to_thread.run_sync(front.start)
        await chat.until(lambda: chat.shown[-1] == SIGNING_IN)
        assert chat.shown[:3] == expected
        so_far = "\n".join(chat.shown[3:-1])
        assert "" != so_far != "\n".join(shown(answer))
        assert "\n".join(shown(answer)).startswith(so_far)
        issued.write_text("sk-interop-2\n")
        expected += shown(answer)
        await chat.until(lambda: chat.shown == [*expected, ">"])

        # The next key is rotated between two answers.
        front.accept_only("sk-interop-3")
        await trio.to_thread.run_sync(front.reload)
        await chat.type(f"{next_question}\r")
        await chat.until(lambda: chat.shown[-1] == SIGNING_IN)
        issued.write_text("sk-interop-3\n")
        expected += [f"> {next_question}", *shown(next_answer)]
        await chat.until(lambda: chat.shown == [*expected, ">"])

        await chat.type("\x04")
        assert await chat.ended() == 0
    assert key_file.read_text() == f"{FIRST_KEY}\n"
