"""`gz-trio demo`: what it counts, what it shows, and how it ends."""

import json
import re
import signal
import subprocess
import unicodedata

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from gz_trio._cli.demo import Demo, Result
from gz_trio._cli.text import visible
from gz_trio.testing import EarlyDone, Fault, Insert, Stall, Status, lost_and_doubled
from tests.cli.terminal import COMMAND, environment, run_piped, terminal

KEYS = [
    "sessions", "streams", "tokens", "rejected", "refreshes", "interrupted", "lost", "doubled",
    "paused_ms_p50", "paused_ms_max", "seconds",
]  # fmt: skip


async def test_each_rotation_meets_every_chat_and_no_character_is_lost_or_doubled() -> None:
    run = await run_piped("demo", "--json", "--sessions", "20")
    assert (run.returncode, run.stderr) == (0, b"")
    figures = json.loads(run.stdout)
    assert list(figures) == KEYS
    assert figures["sessions"] == 20
    assert figures["streams"] >= 20
    assert figures["tokens"] == 60 * figures["streams"]
    assert figures["refreshes"] == 3
    # Each stream meets each dead key once at least: by a 401 or by a frame that leads to one.
    assert 3 <= figures["rejected"] <= 3 * 20 * 2
    assert (figures["interrupted"], figures["lost"], figures["doubled"]) == (0, 0, 0)
    assert 0 < figures["paused_ms_p50"] <= figures["paused_ms_max"] < 1000 * figures["seconds"]


@pytest.mark.parametrize(
    "over",
    [
        ["--api", "responses"],
        ["--api", "messages"],
        ["--api", "responses", "--transport", "websocket"],
    ],
    ids=" ".join,
)
async def test_the_other_apis_lose_and_double_nothing_either(over: list[str]) -> None:
    run = await run_piped("demo", "--json", "--sessions", "5", "--rotations", "1", *over)
    assert (run.returncode, run.stderr) == (0, b"")
    figures = json.loads(run.stdout)
    assert figures["refreshes"] == 1
    assert figures["rejected"] >= 5
    assert (figures["interrupted"], figures["lost"], figures["doubled"]) == (0, 0, 0)


async def test_without_a_rotation_nothing_pauses() -> None:
    run = await run_piped("demo", "--json", "--sessions", "3", "--rotations", "0")
    figures = json.loads(run.stdout)
    assert run.returncode == 0
    assert (figures["streams"], figures["tokens"]) == (3, 180)
    assert (figures["rejected"], figures["refreshes"]) == (0, 0)
    assert (figures["paused_ms_p50"], figures["paused_ms_max"]) == (0.0, 0.0)


async def test_a_pipe_gets_plain_lines_and_the_figures() -> None:
    run = await run_piped("demo", "--sessions", "4", "--rotations", "1")
    text = run.stdout.decode()
    assert (run.returncode, run.stderr) == (0, b"")
    assert "\x1b" not in text
    assert "4 chats share one key" in text
    assert "rotation 1 of 1: 4 streams" in text
    for line in (
        r"streams +4",
        r"refreshes made +1",
        r"characters lost +0",
        r"whole run +[\d.]+ s",
    ):
        assert re.search(f"^{line}$", text, re.MULTILINE), line


def watched_text(shown: list[str]) -> str:
    """What the panel of the first chat shows."""
    begin = next(number for number, line in enumerate(shown) if line.startswith("╭─ chat 1 "))
    return " ".join(line.strip("│ ") for line in shown[begin + 1 : begin + 6]).rstrip()


async def test_a_terminal_shows_the_chats_and_the_text_of_one_as_it_pauses_and_goes_on() -> None:
    async with terminal("demo", "--sessions", "30", "--rotations", "1", columns=100, lines=40) as t:
        await t.until_shown("30 chats, one key")
        await t.until_shown("30 streaming")
        await t.until_shown("30 paused")
        await t.until_shown("session expired, signing in again ...")
        before = (
            watched_text(t.shown).removesuffix("session expired, signing in again ...").rstrip()
        )
        await t.until_shown("30 resumed")
        assert len(before) > 20
        assert watched_text(t.shown).startswith(before)
        await t.until_shown("30 done")
        await t.until_shown("Every reply is whole")
        assert await t.ended() == 0
        assert b"\x1b[?25l" in t.raw  # the cursor was hidden
        assert t.raw.rindex(b"\x1b[?25h") > t.raw.rindex(b"\x1b[?25l")  # and is there again


async def test_ctrl_c_ends_it_with_130_and_the_terminal_as_it_was() -> None:
    async with terminal("demo", "--sessions", "10") as t:
        mode = t.mode()
        await t.until_shown("10 streaming")
        await t.type("\x03")
        assert await t.ended() == 130
        assert b"Traceback" not in t.raw
        assert t.raw.rindex(b"\x1b[?25h") > t.raw.rindex(b"\x1b[?25l")
        assert t.mode() == mode


async def test_an_interrupt_ends_it_without_a_terminal_too() -> None:
    process = await trio.lowlevel.open_process(
        [*COMMAND, "demo", "--sessions", "5"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment({}),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    async with process.stdout, process.stderr:
        assert b"5 chats" in await process.stdout.receive_some()
        process.send_signal(signal.SIGINT)
        with trio.fail_after(30):
            errors = b"".join([chunk async for chunk in process.stderr])
            assert (await process.wait(), errors) == (130, b"")


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--sessions", "0"], "--sessions"),
        (["--sessions", "many"], "--sessions"),
        (["--rotations", "-1"], "--rotations"),
        (["--loud"], "--loud"),
    ],
)
async def test_bad_values_are_named_and_end_it_with_2(arguments: list[str], names: str) -> None:
    run = await run_piped("demo", *arguments)
    assert (run.returncode, run.stdout) == (2, b"")
    assert names in run.stderr.decode()
    assert "Traceback" not in run.stderr.decode()


async def demonstrate(*faults: Fault, token: int | None = None, rotations: int = 0) -> Result:
    """A small demo whose gateway does these things wrong, once each."""
    demo = Demo(3, rotations, lambda _words: None)
    demo.fake.token_interval = 0.001
    demo.fake.auth_latency = 0.0
    for fault in faults:
        demo.fake.fault(fault, token=token)
    return await demo.run()


class TestTheFiguresTellWhatTheGatewayMeantToSend:
    async def test_a_reply_that_ends_too_early_has_lost_characters(self) -> None:
        result = await demonstrate(EarlyDone("stop"), token=50)
        assert (result.interrupted, result.doubled) == (0, 0)
        assert result.lost > 10
        assert not result.passes(0)

    async def test_text_that_was_never_meant_is_doubled(self) -> None:
        more = b'data: {"choices":[{"index":0,"delta":{"content":"\\u2603\\u2603"}}]}\n\n'
        result = await demonstrate(Insert(more), token=50)
        assert (result.interrupted, result.lost, result.doubled) == (0, 0, 2)
        assert not result.passes(0)

    async def test_a_stream_that_fails_is_interrupted_and_the_others_are_whole(self) -> None:
        result = await demonstrate(Status(400))
        assert (result.streams, result.interrupted, result.tokens) == (3, 1, 120)
        assert not result.passes(0)

    async def test_a_stream_that_stays_silent_is_not_waited_for_for_ever(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gz_trio._cli.demo.PATIENCE_SECONDS", 0.5)
        result = await demonstrate(Stall(), token=30, rotations=1)
        assert result.interrupted >= 1
        assert result.lost > 0

    async def test_rotations_that_one_reply_cannot_meet_are_met_by_the_next_ones(self) -> None:
        result = await demonstrate(rotations=30)
        assert result.streams > result.sessions
        assert (result.refreshes, result.passes(30)) == (30, True)

    async def test_all_is_well_where_nothing_goes_wrong(self) -> None:
        result = await demonstrate(rotations=2)
        assert result.passes(2)
        assert not result.passes(1)  # two refreshes


@given(st.text("abc", max_size=30), st.text("abc", max_size=30))
def test_lost_and_doubled_are_what_the_best_alignment_leaves(intended: str, handed: str) -> None:
    common = [[0] * (len(handed) + 1) for _ in range(len(intended) + 1)]
    for i, a in enumerate(intended):
        for j, b in enumerate(handed):
            common[i + 1][j + 1] = (
                common[i][j] + 1 if a == b else max(common[i][j + 1], common[i + 1][j])
            )
    longest = common[-1][-1]
    assert lost_and_doubled(intended, handed) == (len(intended) - longest, len(handed) - longest)


@given(st.text())
def test_visible_text_holds_no_control_character_but_newline_and_tab(text: str) -> None:
    shown = visible(text)
    assert not any(unicodedata.category(c) == "Cc" for c in shown if c not in "\n\t")
    if not any(unicodedata.category(c) == "Cc" for c in text if c not in "\n\t"):
        assert shown == text
