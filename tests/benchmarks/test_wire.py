"""The event-stream decoder of the raw peers: fast, and right however the bytes are cut."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load_server import CHUNK, TOKEN
from benchmarks.peers.wire import Chunk, EventStream

STREAM = (
    CHUNK % (b"one", b"null")
    + b": a comment\n\n"
    + CHUNK % (b"two", b"null")
    + b'data: {"choices":\ndata: [{"delta":{"content":"three"}}]}\n\n'
    + CHUNK % (b"", b'"stop"')
    + b'data: {"choices":[],"usage":{"total_tokens":3}}\n\n'
    + b"data: [DONE]\n\n"
)


def texts(chunks: list[Chunk]) -> list[str]:
    return [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]


def fed(pieces: list[bytes]) -> list[Chunk]:
    events = EventStream()
    return [chunk for piece in pieces for chunk in events.feed(piece)]


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_an_event_stream_is_the_same_however_it_is_cut(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    chunks = fed([STREAM[low:high] for low, high in pairwise(edges)])
    assert texts(chunks) == ["one", "two", "three", ""]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 3


@pytest.mark.parametrize("end", [b"\r\n", b"\r", b"\n"])
def test_every_end_of_a_line_is_known(end: bytes) -> None:
    stream = STREAM.replace(b"\n", end)
    for cut in range(len(stream)):
        assert texts(fed([stream[:cut], stream[cut:]])) == ["one", "two", "three", ""]


def test_a_token_of_the_load_server_is_as_large_as_a_real_one() -> None:
    assert 220 <= len(CHUNK % (b"0" * 33, b"null")) <= 260
    assert len(TOKEN % (1, 2)) == len(TOKEN % (10**15, 10**15))
