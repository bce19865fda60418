"""Where gz_trio's time goes: the share of each layer, from samples of a client under load.

py-spy takes them, from outside: the client runs at its usual speed. A sample counts for the first
layer that its frames, innermost first, belong to; time in C counts for the line that called it. A
client that waits is not sampled.
"""

from __future__ import annotations

import linecache
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from .measure import Bench
from .processes import Pair
from .rows import AT_1600

PY_SPY = Path(sys.executable).with_name("py-spy")
SECONDS = 20
SAMPLES_A_SECOND = 500
OBEYING = "_obey ("
"""Of the thread that waits for commands, which py-spy may take for busy."""

PACE = AT_1600
"""Where the client hardly ever waits: py-spy cannot always tell a short wait from work."""

LAYERS: tuple[tuple[str, str, str], ...] = (
    # Path of the file, the line in it, the layer.
    (r"_transport/demux\.py", r"\bpoll\(", "poll"),
    (r"_transport/demux\.py", r"receive\(", "recv"),
    (r"_transport/tls\.py", r"", "TLS"),
    (r"_transport/|_protocol/sse\.py", r"", "parse"),
    (r"_protocol/chat\.py", r"", "decode"),
    (r"_protocol/(resum\w+|cursor)\.py|_chat/attempts\.py", r"", "resume accounting"),
    (r"_chat/", r"", "reply and its buffer"),
    (r"trio/_core/_io_epoll\.py", r"", "poll"),
    (r"trio/|outcome/", r"", "task switch"),
    (r"benchmarks/", r"", "the caller's code"),
)
ORDER = (*dict.fromkeys(layer for _, _, layer in LAYERS), "other")
_FRAME = re.compile(r".+ \((?P<path>.+):(?P<line>\d+)\)")


def shares(samples: str) -> dict[str, float]:
    """The share of each layer.

    Args:
        samples: As py-spy writes them `--format raw --full-filenames`: a line for each stack, its
            frames from the outermost, and how often it was seen.
    """
    counts: Counter[str] = Counter()
    for line in samples.splitlines():
        if OBEYING in line:
            continue
        stack, _, count = line.rpartition(" ")
        counts[_layer_of(stack)] += int(count)
    total = sum(counts.values())
    return {layer: counts[layer] / total for layer in ORDER if counts[layer]}


def _layer_of(stack: str) -> str:
    for frame in reversed(stack.split(";")):
        found = _FRAME.fullmatch(frame)
        if found is None:
            continue
        path = found["path"]
        source = linecache.getline(path, int(found["line"]))
        for pattern, code, layer in LAYERS:
            if re.search(pattern, path) and re.search(code, source):
                return layer
    return "other"


def measure(bench: Bench, peer: str) -> dict[str, float]:
    """The shares for one peer."""
    with tempfile.TemporaryDirectory() as folder:
        samples = Path(folder, "samples")

        def sample(pair: Pair) -> None:
            subprocess.run(
                [
                    *(PY_SPY, "record", "--full-filenames"),
                    *("--format", "raw", "--output", samples),
                    *("--duration", str(SECONDS), "--rate", str(SAMPLES_A_SECOND)),
                    *("--pid", str(pair.client_pid)),
                ],
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

        bench.while_steady(peer, PACE, sample)
        return shares(samples.read_text(encoding="utf-8"))
