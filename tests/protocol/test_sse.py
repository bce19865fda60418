"""The event stream decoder follows the WHATWG rules, however the bytes are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gz_trio._protocol.errors import ProtocolError
from gz_trio._protocol.sse import EventStreamDecoder, ServerSentEvent


def decode(*pieces: bytes) -> list[ServerSentEvent]:
    decoder = EventStreamDecoder()
    return [event for piece in pieces for event in decoder.feed(piece)]


def message(data: bytes) -> ServerSentEvent:
    return ServerSentEvent("message", data)


def reference(stream: bytes) -> list[ServerSentEvent]:
    """The rules of the specification, sentence by sentence, one byte at a time."""
    if stream.startswith(b"\xef\xbb\xbf"):
        stream = stream[3:]
    lines: list[bytes] = []
    line = b""
    at = 0
    while at < len(stream):
        byte = stream[at : at + 1]
        if byte in (b"\r", b"\n"):
            if stream[at : at + 2] == b"\r\n":
                at += 1
            lines.append(line)
            line = b""
        else:
            line += byte
        at += 1

    events: list[ServerSentEvent] = []
    data, event, last_id, retry = b"", b"", b"", None
    for line in lines:
        if line == b"":
            if data != b"":
                events.append(
                    ServerSentEvent(
                        event.decode("utf-8", "replace") or "message",
                        data[:-1],  # Without the last line feed.
                        last_id.decode("utf-8", "replace") or None,
                        retry,
                    )
                )
            data, event = b"", b""
            continue
        if line[0:1] == b":":
            continue
        field, value = line, b""
        if b":" in line:
            colon = line.index(b":")
            field, value = line[:colon], line[colon + 1 :]
            if value[0:1] == b" ":
                value = value[1:]
        if field == b"event":
            event = value
        elif field == b"data":
            data += value + b"\n"
        elif field == b"id" and b"\0" not in value:
            last_id = value
        elif field == b"retry" and value != b"" and all(byte in b"0123456789" for byte in value):
            retry = int(value)
    return events


# Streams made of what the rules tell apart, more often than chance would.
streams = st.lists(
    st.sampled_from(
        [
            *(b"data", b"data:", b"data: ", b"event: ", b"id: ", b"id", b"retry: ", b": ping"),
            *(b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b"\r\n\r\n", b"\n\r"),
            *(b"a", b"7", b"-", b":", b" ", b"\0", b"\xef\xbb\xbf", b"\xef", b"\xc3\xa9", b"\xff"),
            *(b"\x0b", b"\x0c", b"\x1c", b"\x85", b"\xe2\x80\xa8"),  # No line endings, here.
        ]
    ),
    max_size=60,
).map(b"".join)


@given(streams | st.binary(max_size=200), st.data())
def test_any_stream_cut_anywhere_gives_the_events_of_the_specification(
    stream: bytes, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)), max_size=len(stream))))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert decode(*pieces) == reference(stream)


@given(streams)
def test_a_stream_fed_byte_by_byte_gives_the_same_events(stream: bytes) -> None:
    assert decode(*(bytes((byte,)) for byte in stream)) == reference(stream)


@pytest.mark.parametrize("ending", [b"\n", b"\r", b"\r\n"])
def test_every_line_ending_ends_a_line(ending: bytes) -> None:
    stream = ending.join([b"event: a", b"data: 1", b"data: 2", b"", b"data: 3", b"", b""])
    assert decode(stream) == [ServerSentEvent("a", b"1\n2"), message(b"3")]


def test_a_crlf_that_is_cut_in_the_middle_is_one_ending() -> None:
    assert decode(b"data: 1\r", b"\ndata: 2\r", b"\n\r", b"\n") == [message(b"1\n2")]


def test_an_event_comes_at_its_cr_and_does_not_wait_for_an_lf() -> None:
    assert EventStreamDecoder().feed(b"data: 1\r\r") == [message(b"1")]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        pytest.param(b": OPENROUTER PROCESSING\n\n: ping\n\n", [], id="comments are no events"),
        pytest.param(b"\n\n\n", [], id="blank lines are no events"),
        pytest.param(b"event: a\n\ndata: 1\n\n", [message(b"1")], id="a name alone is forgotten"),
        pytest.param(b"data:1\n\n", [message(b"1")], id="no space after the colon"),
        pytest.param(b"data:  1 \n\n", [message(b" 1 ")], id="one leading space is stripped"),
        pytest.param(b"data\n\n", [message(b"")], id="data without a colon is an empty line"),
        pytest.param(b"data\ndata\n\ndata:", [message(b"\n")], id="the specification's example"),
        pytest.param(b"data: a:b\n\n", [message(b"a:b")], id="the first colon divides"),
        pytest.param(b"DATA: 1\n\n", [], id="field names are case-sensitive"),
        pytest.param(b" data: 1\n\n", [], id="a space before the name is part of it"),
        pytest.param(b"data : 1\n\n", [], id="a space behind the name is part of it"),
        pytest.param(b"foo: 1\ndata: 2\n\n", [message(b"2")], id="unknown fields are skipped"),
        pytest.param(b"data: \xff\n\n", [message(b"\xff")], id="data stays bytes"),
        pytest.param(
            b"event: \xff\ndata: 1\n\n",
            [ServerSentEvent("\ufffd", b"1")],
            id="names are decoded with replacement",
        ),
    ],
)
def test_fields(stream: bytes, events: list[ServerSentEvent]) -> None:
    assert decode(stream) == events


def test_a_byte_order_mark_is_skipped_only_at_the_start() -> None:
    mark = b"\xef\xbb\xbf"
    assert decode(mark + b"data: 1\n\n" + mark + b"data: 2\n\n") == [message(b"1")]
    assert decode(b"\xef", b"\xbb", b"\xbf", b"data: 1\n\n") == [message(b"1")]
    assert decode(mark + mark + b"data: 1\n\n") == []


@pytest.mark.parametrize("end", [b"data: 2", b"data: 2\n", b"data: 2\nevent: a\n"])
def test_an_event_that_is_incomplete_at_the_end_of_the_stream_is_none(end: bytes) -> None:
    assert decode(b"data: 1\n\n" + end) == [message(b"1")]


def test_the_last_id_stays_until_another_comes() -> None:
    events = decode(b"id: 1\ndata: a\n\ndata: b\n\nid: 2\ndata: c\n\nid\ndata: d\n\n")
    assert [event.id for event in events] == ["1", "1", "2", None]


def test_an_id_with_nul_is_ignored() -> None:
    assert decode(b"id: 1\nid: 2\0\ndata: a\n\n") == [ServerSentEvent("message", b"a", "1")]


def test_the_last_event_id_is_that_of_the_last_block_that_ended() -> None:
    decoder = EventStreamDecoder()
    assert decoder.last_event_id is None
    decoder.feed(b"id: 1\ndata: a\n")
    assert decoder.last_event_id is None
    decoder.feed(b"\n")
    assert decoder.last_event_id == "1"
    decoder.feed(b"id: 2\n\n")  # Without data: no event, but its id counts.
    assert decoder.last_event_id == "2"


@pytest.mark.parametrize(
    ("value", "retry"),
    [("3000", 3000), ("0", 0), ("", None), ("+1", None), ("1.5", None), ("1s", None), ("²", None)],
)
def test_a_reconnection_time_is_made_of_digits_alone(value: str, retry: int | None) -> None:
    stream = f"retry: {value}\n\ndata: 1\n\n".encode()
    assert decode(stream) == [ServerSentEvent("message", b"1", retry=retry)]


def test_a_reconnection_time_of_a_million_digits_is_ignored() -> None:
    assert decode(b"retry: " + b"9" * 1_000_000 + b"\ndata: 1\n\n") == [message(b"1")]


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(b"data: " + b"x" * 95 + b"\n\n", id="one line"),
        pytest.param(b"data: 1234\n" * 11 + b"\n", id="many lines"),
        pytest.param(b"data\n" * 26 + b"\n", id="many empty lines"),
        pytest.param(b"data: " + b"x" * 95, id="a line that does not end"),
        pytest.param(b": " + b"x" * 99, id="a comment that does not end"),
        pytest.param(b"data: 1234567890\n" * 5 + b"data: " + b"x" * 25, id="both"),
    ],
)
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_an_event_above_the_limit_is_a_protocol_error(stream: bytes, step: int) -> None:
    decoder = EventStreamDecoder(max_event_size=100)
    pieces = [stream[at : at + step] for at in range(0, len(stream), step)]
    with pytest.raises(ProtocolError, match="larger than the limit of 100 bytes"):
        list(map(decoder.feed, pieces))


@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_the_limit_is_of_one_event_not_of_the_stream(step: int) -> None:
    stream = (b"data: " + b"x" * 94 + b"\n: " + b"c" * 94 + b"\n\n") * 50
    decoder = EventStreamDecoder(max_event_size=200)
    pieces = (stream[at : at + step] for at in range(0, len(stream), step))
    assert sum(len(decoder.feed(piece)) for piece in pieces) == 50


def test_a_large_event_in_small_pieces_comes_whole() -> None:
    data = bytes(range(0x20, 0x7F)) * 3_000
    stream = b"data: " + data + b"\n\n"
    assert decode(*(stream[at : at + 3] for at in range(0, len(stream), 3))) == [message(data)]


# The shortcut


def in_short(*pieces: bytes) -> list[ServerSentEvent]:
    """As `decode`, the short way where there is one."""
    decoder = EventStreamDecoder()
    events: list[ServerSentEvent] = []
    for piece in pieces:
        data = decoder.split(piece)
        events += decoder.feed(piece) if data is None else map(message, data)
    return events


def without_retry(events: list[ServerSentEvent]) -> list[ServerSentEvent]:
    """What the shortcut does not tell: nobody asks for it there."""
    return [ServerSentEvent(event.event, event.data, event.id) for event in events]


# Pieces that begin and end where events do, more often than chance would.
blocks = st.sampled_from(
    [
        *(b"data: 1\n\n", b"data: 1\n\n", b"data: 1\n\n", b"data: 1\n\ndata: 2\n\n"),
        *(
            b"data:3\n\n",
            b"data:  4\n\n",
            b"data: \n\n",
            b"data:\n\n",
            b"data\n\n",
            b"datas: 5\n\n",
        ),
        *(b"data: 6\ndata: 7\n\n", b"data: 8\n\n\n", b"\n", b"\n\n", b"\ndata: 9\n\n"),
        *(b"data: 10\n", b"data: 11", b": ping\n\n", b": ping\n", b"x\n\n", b"retry: 1\n"),
        *(b"event: e\n", b"event: e\n\n", b"event:\n", b"event: f\ndata: 12\n\n"),
        *(b"id: 5\n", b"id: 6\n\n", b"id:\n", b"id:\n\n", b"id: 7\ndata: 13\n\n", b"id: \0\n\n"),
        *(b"data: 14\r\n\r\n", b"data: 15\r\r", b"\r", b"data: 1\r6\n\n", b"\xef\xbb\xbf"),
        *(
            b"\xef\xbb\xbfdata: 17\n\n",
            b"data: \xff\xe2\x80\xa8\x85\x0c\n\n",
            b'data: {"a": "data: "}\n\n',
        ),
    ]
)


@given(st.lists(st.lists(blocks, min_size=1, max_size=3).map(b"".join) | streams, max_size=12))
def test_the_shortcut_gives_the_events_of_the_specification(pieces: list[bytes]) -> None:
    assert without_retry(in_short(*pieces)) == without_retry(reference(b"".join(pieces)))


@given(st.lists(blocks, max_size=8))
def test_the_shortcut_leaves_the_last_event_id_as_it_would_be(pieces: list[bytes]) -> None:
    short, long = EventStreamDecoder(), EventStreamDecoder()
    for piece in pieces:
        if short.split(piece) is None:
            short.feed(piece)
        long.feed(piece)
        assert short.last_event_id == long.last_event_id


@pytest.mark.parametrize(
    ("piece", "data"),
    [
        (b"data: 1\n\n", [b"1"]),
        (b"data: 1\n\ndata: 2\n\n", [b"1", b"2"]),
        (b"data: \n\n", [b""]),
        (b"data:  1\n\n", [b" 1"]),
        (b"data: \xff\xe2\x80\xa8\n\n", [b"\xff\xe2\x80\xa8"]),
    ],
)
@pytest.mark.parametrize("before", [b"data: 0\n\n", b": ping\n\n", b": ping\n", b"event: a\n\n"])
def test_whole_events_of_one_line_of_data_take_the_shortcut(
    before: bytes, piece: bytes, data: list[bytes]
) -> None:
    decoder = EventStreamDecoder()
    decoder.feed(before)
    assert decoder.split(piece) == data
    assert decoder.split(piece) == data  # and so it goes on


@pytest.mark.parametrize(
    "piece",
    [
        b"",
        b"\n\n",
        b": ping\n\n",
        b"data: 1\n",
        b"data: 1",
        b"data:1\n\n",
        b"data\n\n",
        b"datas: 1\n\n",
        b"event: a\ndata: 1\n\n",
        b"data: 1\nid: 5\n\n",
        b"data: 1\nretry: 5\n\n",
        b"data: 1\ndata: 2\n\n",
        b"data: 1\n\n\n",
        b"\ndata: 1\n\n",
        b"data: 1\n\n: ping\n\n",
        b"data: 1\n\n: ping\ndata: 2\n\n",
        b"data: 1\n\nid: 5\ndata: 2\n\n",
        b"data: 1\r\n\r\n",
        b"data: 1\r\r",
        b"data: 1\r\n\n",
        b"data: 1\r2\n\n",
        b"\xef\xbb\xbfdata: 1\n\n",
    ],
)
def test_nothing_else_takes_the_shortcut(piece: bytes) -> None:
    decoder = EventStreamDecoder()
    decoder.feed(b"data: 0\n\n")
    assert decoder.split(piece) is None
    # It has taken nothing, either.
    assert decoder.feed(piece) == decode(b"data: 0\n\n", piece)[1:]


PARTS = [
    *(b"data: 1\n\n", b"data: 22\n\ndata: 3\n\n", b": ping\n\n", b"data: 4\r\n\r\n", b"\n"),
    *(b"event: a\ndata: 5\n\n", b"data:6\n\n", b"data: 7\ndata: 8\n\n", b"data: 9\r\r"),
]


@pytest.mark.parametrize("rest", [b"d", b"data: 2", b"data: 2\n", b"event: a\nda", b"id"])
@pytest.mark.parametrize("piece", [b"data: 3\n\n", b"", b": 4\n\ndata: 5\n\n", b"\r\n", b"\nx"])
def test_what_the_shortcut_leaves_belongs_to_what_comes_next(rest: bytes, piece: bytes) -> None:
    decoder = EventStreamDecoder()
    decoder.feed(b"data: 0\n\n")
    assert decoder.split(b"data: 1\n\n" + rest) == [b"1"]
    texts = decoder.split(piece)
    if texts is None:
        texts = [event.data for event in decoder.feed(piece)]
    assert texts == [event.data for event in decode(rest + piece)]


@given(st.lists(st.sampled_from(PARTS), max_size=8), st.data())
def test_the_shortcut_and_the_decoder_take_turns(parts: list[bytes], data: st.DataObject) -> None:
    wire = b"data: 0\n\n" + b"".join(parts)
    decoder = EventStreamDecoder()
    events: list[bytes] = []
    while wire:
        size = data.draw(st.integers(1, len(wire)))
        piece, wire = wire[:size], wire[size:]
        texts = decoder.split(piece) if data.draw(st.booleans()) else None
        if texts is None:
            texts = [event.data for event in decoder.feed(piece)]
        events += texts
    assert events == [event.data for event in decode(b"data: 0\n\n", *parts)]


@pytest.mark.parametrize(
    "before",
    [
        b"",
        b"\xef",
        b"data: 0",
        b"data: 0\n",
        b"data: 0\r",
        b"data: 0\r\r",
        b"da",
        b": pi",
        b"event: a\n",
        b"retry: 5",
        b"id: 5\n",
        b"id: 5\n\n",
        b"id: 5\ndata: 0\n\n",
        b"id: 5\n\nid:\n",
    ],
)
def test_nor_does_anything_behind_what_bears_on_it(before: bytes) -> None:
    decoder = EventStreamDecoder()
    decoder.feed(before)
    assert decoder.split(b"data: 1\n\n") is None
