"""The picture of a run: CPU a token beside the peers, and how many streams a core holds."""

# pyright: reportUnknownMemberType=false
# Matplotlib says of many of its parameters no type.

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .peers import PEERS
from .rows import AT_200, Case
from .run import Rounds, figure_of

OURS, THEIRS = "#1f6feb", "#9aa4b2"

# The same figures make the same file, and text stays text.
mpl.rcParams.update(
    {"svg.hashsalt": "gz_trio", "svg.fonttype": "none", "font.family": "sans-serif"}
)


def draw(rounds: Rounds, path: Path) -> None:
    """Write the picture as SVG."""
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    cpu, held = figure.subplots(1, 2)
    _bars(
        cpu,
        "CPU per token, µs: less is better\n200 streams, a token every 40 ms",
        {
            peer: rounds.median(Case("steady", peer, AT_200), lambda one: figure_of(one, "cpu"))
            for peer in PEERS
            if "bare" not in peer
        },
        ascending=True,
    )
    _bars(
        held,
        "Streams a core holds:\nmore is better",
        {
            peer: rounds.median(Case("capacity", peer), lambda one: figure_of(one, "capacity"))
            for peer in PEERS
        },
        ascending=False,
    )
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _bars(axes: Axes, title: str, values: dict[str, float | None], *, ascending: bool) -> None:
    known = [(peer, value) for peer, value in values.items() if value is not None]
    known.sort(key=lambda pair: pair[1], reverse=ascending)
    labels = [PEERS[peer].label for peer, _ in known]
    colours = [OURS if PEERS[peer].module == "gz" else THEIRS for peer, _ in known]
    bars = axes.barh(labels, [value for _, value in known], color=colours)
    axes.bar_label(
        bars, fmt=lambda value: f"{value:,.0f}" if value >= 100 else f"{value:.1f}", padding=3
    )
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(left=False, bottom=False, labelbottom=False)
    axes.margins(x=0.18)
