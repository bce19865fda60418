"""What the demo shows: a live screen on a terminal, plain lines elsewhere, and the summary."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import asdict
from itertools import groupby

import trio
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from .chat import ApiName, TransportName
from .demo import Demo, Result, Stage
from .run import UsageError
from .text import visible

FRAME_SECONDS = 0.1
WATCHED_LINES = 5
DOTS = 1_000
"""A screen shows no more chats one by one."""

_STYLES = {
    Stage.WAITING: ("·", "dim"),
    Stage.STREAMING: ("●", "green"),
    Stage.PAUSED: ("○", "yellow"),
    Stage.RESUMED: ("●", "cyan"),
    Stage.DONE: ("✓", "dim"),
    Stage.INTERRUPTED: ("✗", "bold red"),
}


class Screen:
    """The demo as something that rich draws anew for each frame."""

    def __init__(self, demo: Demo) -> None:
        self._demo = demo

    def __rich_console__(self, console: Console, options: object) -> list[RenderableType]:
        demo = self._demo
        stages = Counter(chat.stage for chat in demo.chats)
        counts = Text("  ").join(
            Text.assemble((f"{_STYLES[stage][0]} ", _STYLES[stage][1]), f"{count} {stage.value}")
            for stage in Stage
            if (count := stages[stage]) or stage in (Stage.STREAMING, Stage.PAUSED, Stage.RESUMED)
        )
        figures = Text(
            f"tokens {demo.tokens}  401s {demo.fake.rejected}  "
            f"rotations {demo.rotated}  refreshes {demo.fake.refreshes}"
        )
        dots = Text(overflow="fold")
        shown = demo.chats[:DOTS]
        for stage, chats in groupby(shown, key=lambda chat: chat.stage):
            mark, style = _STYLES[stage]
            dots.append(mark * len(list(chats)), style)
        if len(demo.chats) > DOTS:
            dots.append(f" and {len(demo.chats) - DOTS} more", "dim")
        return [
            Panel(
                Group(counts, figures, Text(), dots),
                title=f"{len(demo.chats)} chats, one key",
                title_align="left",
            ),
            Panel(self._watched(console), title="chat 1", title_align="left"),
        ]

    def _watched(self, console: Console) -> Text:
        """The end of the first chat's text, as many lines as there is room for."""
        chat = self._demo.chats[0]
        text = Text(visible(chat.text))
        if chat.stage is Stage.PAUSED:
            text.append(" session expired, signing in again ...", "yellow")
        elif chat.stage in (Stage.STREAMING, Stage.RESUMED):
            text.append("▌", _STYLES[chat.stage][1])
        lines = text.wrap(console, max(console.width - 4, 8))[-WATCHED_LINES:]
        padding = [Text()] * (WATCHED_LINES - len(lines))
        return Text("\n").join([*lines, *padding])


def summary(result: Result, rotations: int) -> RenderableType:
    """The figures in words, and whether all went well."""
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    for name, value in (
        ("streams", f"{result.streams}"),
        ("tokens", f"{result.tokens}"),
        ("401s met", f"{result.rejected}"),
        ("key rotations", f"{rotations}"),
        ("refreshes made", f"{result.refreshes}"),
        ("interrupted streams", f"{result.interrupted}"),
        ("characters lost", f"{result.lost}"),
        ("characters doubled", f"{result.doubled}"),
        ("time paused, p50", f"{result.paused_ms_p50 / 1000:.2f} s"),
        ("time paused, max", f"{result.paused_ms_max / 1000:.2f} s"),
        ("whole run", f"{result.seconds:.1f} s"),
    ):
        table.add_row(name, value)
    verdict = (
        Text("Every reply is whole: what the gateway meant to send, each character once.", "green")
        if result.passes(rotations)
        else Text("FAILED: see the figures above.", "bold red")
    )
    return Group(Text(), table, Text(), verdict)


async def demo(
    sessions: int, rotations: int, *, api: ApiName, transport: TransportName, as_json: bool
) -> int:
    """Run the demo on this terminal; gives the exit code."""
    allow_open_files(2 * sessions + 100)
    console = Console()

    def say(words: str) -> None:
        if not as_json:
            console.print(f"{run.seconds:5.1f} s  {words}", highlight=False, markup=False)

    if transport == "websocket" and api != "responses":
        raise UsageError("--transport websocket is the WebSocket mode of --api responses")
    run = Demo(sessions, rotations, say, api=api, transport=transport)
    if as_json or not console.is_terminal:
        result = await run.run()
    else:
        with Live(Screen(run), console=console, auto_refresh=False) as live:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_draw, live)
                result = await run.run()
                nursery.cancel_scope.cancel()
            live.refresh()
    if as_json:
        sys.stdout.write(json.dumps(asdict(result)) + "\n")
    else:
        console.print(summary(result, rotations))
    return 0 if result.passes(rotations) else 1


async def _draw(live: Live) -> None:
    while True:
        live.refresh()
        await trio.sleep(FRAME_SECONDS)


def allow_open_files(number: int) -> None:
    """Both ends of every connection are open files of this process.

    Raises:
        UsageError: The system does not allow so many.
    """
    if sys.platform == "win32":
        return
    import resource  # noqa: PLC0415  there is none on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= number:
        return
    if hard != resource.RLIM_INFINITY and hard < number:
        raise UsageError(
            f"so many chats need {number} open files, and the system allows {hard}: "
            "take fewer, or raise the limit (ulimit -Hn)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
