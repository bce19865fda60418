"""Content codings: what a compressed body says, however it is cut, a bounded piece at a time."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gz_trio import APIConnectionError, ProtocolError
from gz_trio._transport.content_coding import (
    DECOMPRESSED_BYTES,
    ContentDecoder,
    content_decoder,
)

ORIGIN = "http://gateway.test"
TEXT = b"Once upon a time there was a gateway. " * 40


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


def stored(data: bytes) -> bytes:
    """Raw deflate that compresses nothing: the first byte is that of a stored block."""
    compressor = zlib.compressobj(0, wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


ONE_MEMBER = [
    pytest.param("gzip", gzip.compress(TEXT), id="gzip"),
    pytest.param("x-gzip", gzip.compress(TEXT), id="x-gzip"),
    pytest.param(" GZip ", gzip.compress(TEXT), id="gzip in another case"),
    pytest.param("gzip", zlib.compress(TEXT), id="gzip that is zlib"),
    pytest.param("deflate", zlib.compress(TEXT), id="deflate"),
    pytest.param("deflate", raw_deflate(TEXT), id="deflate without zlib's frame"),
    pytest.param("deflate", stored(TEXT), id="deflate that is stored, without zlib's frame"),
    pytest.param("deflate", gzip.compress(TEXT), id="deflate that is gzip"),
]

MANY_MEMBERS = [
    pytest.param(
        "gzip",
        b"".join(gzip.compress(TEXT[at : at + 100]) for at in range(0, len(TEXT), 100)),
        id="gzip of many members",
    ),
    pytest.param("gzip", gzip.compress(b"") + gzip.compress(TEXT), id="gzip, an empty member"),
]


def decoder_of(coding: str) -> ContentDecoder:
    decoder = content_decoder(coding, ORIGIN)
    assert decoder is not None
    return decoder


def pieces_of(decoder: ContentDecoder, data: Iterable[bytes]) -> list[bytes]:
    pieces: list[bytes] = []
    for piece in data:
        pieces.append(decoder.decode(piece))
        while decoder.has_more:
            pieces.append(decoder.decode(b""))
    return pieces


def cut(data: bytes, *, every: int) -> list[bytes]:
    return [data[at : at + every] for at in range(0, len(data), every)]


@pytest.mark.parametrize("coding", ["", "identity", "Identity", " identity "])
def test_a_body_that_is_not_encoded_has_no_decoder(coding: str) -> None:
    assert content_decoder(coding, ORIGIN) is None


@pytest.mark.parametrize("every", [1, 2, 3, 7, 100, 10_000])
@pytest.mark.parametrize(("coding", "body"), ONE_MEMBER + MANY_MEMBERS)
def test_a_body_is_decoded_however_it_is_cut(coding: str, body: bytes, every: int) -> None:
    decoder = decoder_of(coding)
    assert b"".join(pieces_of(decoder, cut(body, every=every))) == TEXT
    decoder.finish()
    decoder.finish()  # and stays finished


@given(
    texts=st.lists(st.binary(max_size=300), min_size=1, max_size=5),
    cuts=st.lists(st.integers(0, 2000), max_size=8),
)
def test_members_are_one_text_wherever_they_are_cut(texts: list[bytes], cuts: list[int]) -> None:
    body = b"".join(map(gzip.compress, texts))
    bounds = [0, *sorted(cuts), len(body)]
    data = [body[start:end] for start, end in pairwise(bounds)]
    decoder = decoder_of("gzip")
    assert b"".join(pieces_of(decoder, data)) == b"".join(texts)
    decoder.finish()


def test_what_was_flushed_can_be_read_before_the_end() -> None:
    compressor = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    decoder = decoder_of("gzip")
    for text in (b"Once ", b"upon ", b"a time"):
        data = compressor.compress(text) + compressor.flush(zlib.Z_SYNC_FLUSH)
        assert decoder.decode(data) == text
    assert not decoder.has_more


@pytest.mark.parametrize("size", [DECOMPRESSED_BYTES - 1, DECOMPRESSED_BYTES, 20_000_000])
@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress, raw_deflate])
def test_a_few_bytes_become_many_only_a_piece_at_a_time(
    compress: Callable[[bytes], bytes], size: int
) -> None:
    coding = "gzip" if compress is gzip.compress else "deflate"
    decoder = decoder_of(coding)
    pieces = pieces_of(decoder, [compress(b"\0" * size)])
    assert max(map(len, pieces)) <= DECOMPRESSED_BYTES
    assert b"".join(pieces) == b"\0" * size
    decoder.finish()


@pytest.mark.parametrize("every", range(60, 70))
def test_nothing_is_held_back_where_nothing_is_left(every: int) -> None:
    decoder, unbounded = decoder_of("gzip"), zlib.decompressobj(zlib.MAX_WBITS | 16)
    for data in cut(gzip.compress(b"\0" * 2_000_000), every=every):
        assert b"".join(pieces_of(decoder, [data])) == unbounded.decompress(data)


def test_new_data_may_come_before_all_of_the_old_was_taken() -> None:
    text = b"\0" * 1_000_000
    decoder = decoder_of("gzip")
    pieces = [decoder.decode(piece) for piece in cut(gzip.compress(text), every=10)]
    while decoder.has_more:
        pieces.append(decoder.decode(b""))
    assert max(map(len, pieces)) <= DECOMPRESSED_BYTES
    assert b"".join(pieces) == text


def test_nothing_comes_only_where_nothing_is_left() -> None:
    decoder = decoder_of("gzip")
    assert decoder.decode(gzip.compress(b"") * 100 + gzip.compress(b"a") * 2) == b"a"
    assert decoder.has_more
    assert decoder.decode(b"") == b"a"
    assert not decoder.has_more


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br"])
def test_an_empty_body_needs_no_decoding(coding: str) -> None:
    decoder = decoder_of(coding)
    assert decoder.decode(b"") == b""
    decoder.finish()


@pytest.mark.parametrize(("coding", "body"), ONE_MEMBER)
def test_a_body_that_was_cut_is_no_end(coding: str, body: bytes) -> None:
    for size in (1, 2, len(body) // 2, len(body) - 1):
        decoder = decoder_of(coding)
        text = b"".join(pieces_of(decoder, [body[:size]]))
        assert TEXT.startswith(text)
        with pytest.raises(APIConnectionError, match=r"http://gateway\.test broke"):
            decoder.finish()


@pytest.mark.parametrize("every", [1, 100_000])
@pytest.mark.parametrize("behind", [b"\0" * 100, b"\r\n", b"\n<!-- \x1f\x8b a proxy -->"])
@pytest.mark.parametrize(
    ("coding", "body"),
    [("gzip", gzip.compress(TEXT, mtime=0)), ("deflate", zlib.compress(TEXT))],
)
def test_what_stands_behind_the_end_is_no_text(
    coding: str, body: bytes, behind: bytes, every: int
) -> None:
    decoder = decoder_of(coding)
    assert b"".join(pieces_of(decoder, cut(body + behind, every=every))) == TEXT
    decoder.finish()


def test_deflate_has_one_member() -> None:
    decoder = decoder_of("deflate")
    assert b"".join(pieces_of(decoder, [zlib.compress(b"a") + gzip.compress(b"b")])) == b"a"


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", b"sk-secret is no gzip"),
        ("gzip", raw_deflate(TEXT)),
        ("gzip", gzip.compress(TEXT, mtime=0)[:-8] + b"\0" * 8),
        ("gzip", gzip.compress(TEXT, mtime=0) + b"\x1f\x8b\x00 is no member"),
        ("deflate", b"\x1f\x1f"),
        ("deflate", b"\xff" * 10),
        ("deflate", zlib.compress(TEXT)[:-4] + b"\0" * 4),
    ],
)
def test_what_is_badly_compressed_is_an_error_that_quotes_nothing(coding: str, body: bytes) -> None:
    decoder = decoder_of(coding)
    with pytest.raises(ProtocolError) as caught:
        pieces_of(decoder, [body])
    assert str(caught.value) == "the answer of http://gateway.test is badly compressed"


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip", "sk-secret"])
def test_a_coding_that_is_not_known_is_an_error_that_quotes_nothing(coding: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        decoder_of(coding).decode(b"a body")
    assert str(caught.value) == ("http://gateway.test compresses in a way that was not asked for")


@given(data=st.lists(st.binary(max_size=50)), coding=st.sampled_from(["gzip", "deflate"]))
def test_garbage_raises_nothing_of_zlibs(data: list[bytes], coding: str) -> None:
    decoder = decoder_of(coding)
    try:
        pieces_of(decoder, data)
        decoder.finish()
    except (APIConnectionError, ProtocolError):
        pass
