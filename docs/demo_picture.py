"""Draws docs/_static/demo.svg, the README's moving picture of the demo, from a run of it.

python docs/demo_picture.py
"""

import io
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import trio
from rich.console import Console, RenderableType
from rich.text import Text

from gz_trio._cli.demo import Demo, Stage
from gz_trio._cli.demo_screen import Screen, summary

PICTURE = Path(__file__).parent / "_static" / "demo.svg"
CHATS, ROTATIONS = 50, 3
COLUMNS, LINES = 88, 36
FRAME_SECONDS, LAST_SECONDS = 2.5, 8.0
# A picture on somebody's page must not load a font from elsewhere.
FONT_FACE = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)

SHOWN, HIDDEN = "{ visibility: visible }", "{ visibility: hidden }"


def all_are(stage: Stage, words: int) -> Callable[[Demo], bool]:
    """Whether all chats are at this stage, the first with so many words of its text."""
    return lambda demo: (
        {chat.stage for chat in demo.chats} == {stage} and len(demo.chats[0].text.split()) >= words
    )


def some_go_on(demo: Demo) -> bool:
    """Whether some chats go on already, and others are paused still."""
    stages = Counter(chat.stage for chat in demo.chats)
    return min(stages[Stage.PAUSED], stages[Stage.RESUMED]) >= CHATS // 5


MOMENTS = [
    all_are(Stage.STREAMING, 8),
    all_are(Stage.PAUSED, 8),
    some_go_on,
    all_are(Stage.RESUMED, 18),
    all_are(Stage.PAUSED, 30),
    all_are(Stage.RESUMED, 40),
]


async def main() -> None:
    """Run the demo, and draw it at these moments and at its end."""
    said: list[str] = []
    frames: list[str] = []
    demo = Demo(CHATS, ROTATIONS, lambda words: said.append(f"{demo.seconds:5.1f} s  {words}"))

    def draw(*more: RenderableType) -> None:
        console = Console(
            file=io.StringIO(), record=True, width=COLUMNS, height=LINES, force_terminal=True
        )
        lines = [Text(line) for line in said]
        parts: list[RenderableType] = [*lines, Screen(demo), *more]
        height = sum(len(console.render_lines(part)) for part in parts)
        # All frames are of one height.
        console.print(*parts, *[Text()] * (LINES - height), sep="\n")
        frames.append(
            FONT_FACE.sub(
                "", console.export_svg(title="gz-trio demo", unique_id=f"frame{len(frames)}")
            )
        )

    async def draw_moments() -> None:
        for reached in MOMENTS:
            while not reached(demo):  # noqa: ASYNC110  no event is set for it
                await trio.sleep(0.02)
            draw()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(draw_moments)
        result = await demo.run()
        draw(summary(result, ROTATIONS))
        nursery.cancel_scope.cancel()
    if len(frames) != len(MOMENTS) + 1 or not result.passes(ROTATIONS):
        raise SystemExit("this run has missed a moment: run it again")
    PICTURE.write_text(animated(frames), encoding="utf-8")


def animated(frames: list[str]) -> str:
    """One picture that shows the frames in turn; the last alone to who wants no motion."""
    last = len(frames) - 1
    seconds = FRAME_SECONDS * last + LAST_SECONDS
    styles: list[str] = []
    turns: list[str] = []
    for number, frame in enumerate(frames):
        begin = 100 * FRAME_SECONDS * number / seconds
        end = 100.0 if number == last else 100 * FRAME_SECONDS * (number + 1) / seconds
        steps = f"0% {HIDDEN} {begin:.2f}% {SHOWN} {end:.2f}% {HIDDEN}"
        styles.append(f"@keyframes turn{number} {{ {steps} }}")
        styles.append(f"#turn{number} {{ animation: turn{number} {seconds}s step-end infinite }}")
        # Where nothing moves, the end is shown.
        visibility = "visible" if number == last else "hidden"
        turns.append(f'<g id="turn{number}" visibility="{visibility}">{frame}</g>')
    view_box = frames[0].partition('viewBox="')[2].partition('"')[0]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{view_box}">',
            "<style>",
            *styles,
            "@media (prefers-reduced-motion: reduce) { svg > g { animation: none !important } }",
            "</style>",
            *turns,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    trio.run(main)
