"""Samples of a profiler become shares of layers."""

from pathlib import Path

import pytest
import trio

import gz_trio
from benchmarks.layers import shares

SOURCES = Path(gz_trio.__file__).parent


def frame(path: str, code: str) -> str:
    """A frame as py-spy writes it, at the first line of one of our files that has this code."""
    lines = (SOURCES / path).read_text(encoding="utf-8").splitlines()
    number = next(at for at, line in enumerate(lines, 1) if code in line)
    return f"function ({SOURCES / path}:{number})"


RUN = f"unrolled_run ({Path(trio.__file__).parent / '_core' / '_run.py'}:1)"
DEMUX = frame("_transport/demux.py", "data_received(")


@pytest.mark.parametrize(
    ("stack", "layer"),
    [
        ((RUN,), "task switch"),
        ((RUN, frame("_transport/demux.py", "= poll()")), "poll"),
        ((RUN, frame("_transport/demux.py", "receive(RECEIVE_BYTES)")), "recv"),
        ((RUN, DEMUX), "parse"),
        ((RUN, DEMUX, frame("_protocol/chat.py", "import msgspec")), "decode"),
        ((RUN, DEMUX, frame("_protocol/resume.py", "import")), "resume accounting"),
        ((RUN, DEMUX, frame("_chat/buffer.py", "import")), "reply and its buffer"),
        ((RUN, DEMUX, "in_a_library (/elsewhere/library.py:3)"), "parse"),
        (("thing (/elsewhere/library.py:3)",), "other"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_sample_counts_for_its_innermost_layer(stack: tuple[str, ...], layer: str) -> None:
    assert shares(f"{';'.join(stack)} 7") == {layer: 1.0}


def test_shares_are_of_all_samples_but_those_of_the_thread_that_obeys() -> None:
    samples = f"{RUN} 3\n{RUN};{DEMUX} 1\n_obey (/somewhere/client.py:29) 96"
    assert shares(samples) == {"parse": 0.25, "task switch": 0.75}
