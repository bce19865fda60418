"""HTTP/1.1 from the client's side: what is sent, and what is made of whatever comes back."""

# pyright: reportPrivateUsage=false
from __future__ import annotations

import gc
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gz_trio import APIConnectionError, ProtocolError
from gz_trio._transport.http1 import (
    MAX_FIELDS,
    MAX_HEAD_BYTES,
    MAX_INTERIM_RESPONSES,
    ResponseReader,
    _Message,
    encode_request,
)

ORIGIN = "http://gateway.test"
KEY = "sk-secret"

# Requests


def lines_of(request: bytes) -> list[str]:
    return request.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")


def test_a_request_is_one_line_its_host_its_headers_and_its_content() -> None:
    request = encode_request(
        "POST",
        "/v1/chat/completions?a=%20b",
        "gateway.test:8080",
        {"Authorization": f"Bearer {KEY}", "x-title": "caf\xe9 \t au lait", "x-empty": ""},
        b"{}\r\n\r\n",
    )
    assert request == (
        b"POST /v1/chat/completions?a=%20b HTTP/1.1\r\n"
        b"Host: gateway.test:8080\r\n"
        b"Authorization: Bearer sk-secret\r\n"
        b"x-title: caf\xe9 \t au lait\r\n"
        b"x-empty: \r\n"
        b"Accept-Encoding: gzip, deflate\r\n"
        b"Content-Length: 6\r\n\r\n"
        b"{}\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("method", "content", "length"),
    [
        ("GET", b"", None),
        ("HEAD", b"", None),
        ("DELETE", b"", None),
        ("OPTIONS", b"", None),
        ("POST", b"", 0),
        ("PUT", b"", 0),
        ("PATCH", b"", 0),
        ("GET", b"content", 7),
        ("DELETE", b"content", 7),
        ("POST", b"content", 7),
    ],
)
def test_a_length_is_sent_where_there_is_content_or_content_is_expected(
    method: str, content: bytes, length: int | None
) -> None:
    lines = lines_of(encode_request(method, "/", "gateway.test", {}, content))
    expected = [] if length is None else [f"Content-Length: {length}"]
    assert [line for line in lines if line.startswith("Content-Length")] == expected


def test_what_an_httpx_client_gives_makes_one_request() -> None:
    headers = {
        "host": "other.test",
        "accept": "*/*",
        "accept-encoding": "gzip, br",
        "connection": "keep-alive",
        "user-agent": "python-httpx/0.28.1",
        "content-length": "7",
        "transfer-encoding": "Chunked",
    }
    assert lines_of(encode_request("POST", "/", "gateway.test", headers, b"content")) == [
        "POST / HTTP/1.1",
        "Host: other.test",
        "accept: */*",
        "accept-encoding: gzip, br",
        "connection: keep-alive",
        "user-agent: python-httpx/0.28.1",
        "Content-Length: 7",
    ]


def test_what_must_be_absent_is_not_sent_whoever_adds_it() -> None:
    headers = {"X-API-Key": f"{KEY}\r\n", "Authorization": "Bearer sk-1"}
    absent = frozenset({"x-api-key", "accept-encoding"})
    request = encode_request("GET", "/", "gateway.test", headers, b"", absent=absent)
    assert lines_of(request) == [
        "GET / HTTP/1.1",
        "Host: gateway.test",
        "Authorization: Bearer sk-1",
    ]


BAD_VALUES = ["\r\n", "\n", "\r", "\0", " ", "\t", "\x7f", "\x1b", "\u20ac", "\ud800"]


@pytest.mark.parametrize("bad", BAD_VALUES)
@pytest.mark.parametrize("place", ["{bad}{key}", "{key}{bad}", "{key}{bad}X-Injected: 1"])
def test_a_header_that_would_split_the_request_is_refused_and_not_quoted(
    bad: str, place: str
) -> None:
    value = place.format(bad=bad, key=KEY)
    if bad in " \t" and value.strip() == value:
        return
    with pytest.raises(ProtocolError) as caught:
        encode_request("GET", "/", "gateway.test", {"Authorization": value}, b"")
    assert str(caught.value) == (
        "the request to gateway.test cannot be sent by HTTP: the value of its header "
        "Authorization begins or ends with a space, or holds a newline or another character "
        "that no header can hold"
    )
    assert caught.value.__context__ is None


@pytest.mark.parametrize("name", ["", "x y", f"x: {KEY}\r\ny", "x:", "\u20ac", "x\n", '"x"'])
def test_a_name_that_is_no_token_is_refused_and_not_quoted(name: str) -> None:
    with pytest.raises(ProtocolError, match="the name of a header is not one") as caught:
        encode_request("GET", "/", "gateway.test", {name: KEY}, b"")
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "target", "host", "message"),
    [
        ("GET /", "/", "gateway.test", "its method is not one"),
        ("", "/", "gateway.test", "its method is not one"),
        ("CONNECT", "/", "gateway.test", "its method is not one"),
        ("GET\r\n", "/", "gateway.test", "its method is not one"),
        ("GET", "", "gateway.test", "its path or query"),
        ("GET", f"/ HTTP/1.1\r\nx: {KEY}", "gateway.test", "its path or query"),
        ("GET", f"/?key={KEY} ", "gateway.test", "its path or query"),
        ("GET", f"/\x7f{KEY}", "gateway.test", "its path or query"),
        ("GET", f"/caf\xe9{KEY}", "gateway.test", "its path or query"),
        ("GET", "/", "", "its host is not one"),
        ("GET", "/", f"gateway.test\r\nx: {KEY}", "its host is not one"),
        ("GET", "/", f"{KEY}@gateway.test", "its host is not one"),
        ("GET", "/", f"gateway.test/{KEY}", "its host is not one"),
    ],
)
def test_a_line_that_would_not_be_one_is_refused_and_not_quoted(
    method: str, target: str, host: str, message: str
) -> None:
    with pytest.raises(ProtocolError, match=message) as caught:
        encode_request(method, target, host, {}, b"")
    assert KEY not in str(caught.value)


def test_a_host_among_the_headers_is_looked_at_like_any_other() -> None:
    with pytest.raises(ProtocolError, match="its host is not one"):
        encode_request("GET", "/", "gateway.test", {"HOST": "a b"}, b"")


def test_a_bad_host_is_not_quoted_where_something_else_is_bad_too() -> None:
    with pytest.raises(ProtocolError, match="the request to the gateway cannot") as caught:
        encode_request("GET", "/", f"{KEY}\n", {"": ""}, b"")
    assert KEY not in str(caught.value)


def test_content_in_a_transfer_coding_is_refused() -> None:
    with pytest.raises(ProtocolError, match="transfer coding"):
        encode_request("POST", "/", "h", {"Transfer-Encoding": "gzip, chunked"}, b"\x1f\x8b")


# Of text that may or may not do, so that what is taken and what is refused are both drawn often.
texts = st.text(st.sampled_from("ab:/ \t\r\n\0\x7f\xe9\u20ac"), max_size=4)


@given(
    method=st.sampled_from(["GET", "POST"]) | texts,
    target=st.just("/v1") | texts,
    host=st.just("gateway.test") | texts,
    headers=st.dictionaries(st.sampled_from(["X-A", "X-B"]) | texts, texts, max_size=3),
    content=st.binary(max_size=20),
)
def test_what_is_not_refused_is_to_a_server_the_same_one_request(
    method: str, target: str, host: str, headers: dict[str, str], content: bytes
) -> None:
    try:
        request = encode_request(method, target, host, headers, content)
    except ProtocolError:
        return
    server = h11.Connection(h11.SERVER)
    server.receive_data(request)
    seen = server.next_event()
    assert isinstance(seen, h11.Request)
    assert (seen.method.decode(), seen.target.decode()) == (method, target)
    expected = [
        ("host", host),
        *((name.lower(), value) for name, value in headers.items()),
        ("accept-encoding", "gzip, deflate"),
    ]
    if content or method == "POST":
        expected.append(("content-length", str(len(content))))
    assert [(name.decode(), value.decode("latin-1")) for name, value in seen.headers] == expected
    body = b""
    while isinstance(event := server.next_event(), h11.Data):
        body += event.data
    assert body == content
    assert isinstance(event, h11.EndOfMessage)
    assert server.trailing_data == (b"", False)


# Responses


@dataclass(frozen=True)
class Outcome:
    """All that a reader tells."""

    status: int
    reason: bytes
    headers: dict[str, str]
    body: bytes
    complete: bool
    reusable: bool
    error: str | None


def read(
    pieces: Iterable[bytes | memoryview], *, method: str = "GET", eof: bool = False
) -> Outcome:
    """What is made of a response that comes in these pieces."""
    reader = ResponseReader(method=method, origin=ORIGIN)
    body = b""
    raised: APIConnectionError | None = None
    try:
        for piece in pieces:
            reader.feed(piece)
            body += reader.take_body()
        if eof:
            reader.feed_eof()
    except APIConnectionError as error:
        raised = error
    if raised is not None:
        assert type(raised) is APIConnectionError
        assert str(raised).startswith(f"the connection to {ORIGIN} broke: ")
        assert raised.__cause__ is None
        assert raised.__context__ is None or raised.__suppress_context__
    body += reader.take_body()
    assert reader.take_body() == b""
    assert reader.begun == any(pieces)
    assert reader.head_complete == (reader.status != 0)
    return Outcome(
        reader.status,
        reader.reason,
        dict(reader.headers),
        body,
        reader.complete,
        reader.reusable,
        None if raised is None else str(raised),
    )


def whole(response: bytes, *, method: str = "GET", eof: bool = False) -> Outcome:
    return read([response], method=method, eof=eof)


def response(*fields: str, status: str = "200 OK", version: str = "1.1") -> bytes:
    """The head of a response."""
    head = [f"HTTP/{version} {status}", *fields, "", ""]
    return "\r\n".join(head).encode("latin-1")


CHUNKED = response("Transfer-Encoding: chunked")


def test_a_reader_knows_nothing_before_a_byte_has_come() -> None:
    reader = ResponseReader(method="GET", origin=ORIGIN)
    reader.feed(b"")
    assert not any((reader.begun, reader.head_complete, reader.complete, reader.reusable))
    assert (reader.status, reader.headers, reader.take_body()) == (0, {}, b"")
    reader.feed(b"H")
    assert reader.begun
    assert not reader.head_complete


def test_a_head_is_there_before_the_body_is() -> None:
    reader = ResponseReader(method="GET", origin=ORIGIN)
    reader.feed(response("Content-Type: text/plain", "Content-Length: 3", status="404 Not Found"))
    assert reader.head_complete
    assert not reader.complete
    assert (reader.status, reader.reason) == (404, b"Not Found")
    assert reader.headers == {"content-type": "text/plain", "content-length": "3"}


@pytest.mark.parametrize("status", ["204", "204 ", "204 No Content", "204 \xe9", "999 Own"])
def test_a_reason_phrase_is_what_it_is(status: str) -> None:
    outcome = whole(response("Content-Length: 0", status=status))
    assert outcome.reason == status[4:].encode("latin-1")
    assert outcome.reusable


def test_fields_of_one_name_are_joined_and_cookies_kept_apart() -> None:
    reader = ResponseReader(method="GET", origin=ORIGIN)
    reader.feed(
        response(
            "Set-Cookie: a=1; Expires=Tue, 24 Nov 2026 00:00:00 GMT",
            "VARY: a",
            "set-cookie: b=2",
            "Vary:b \t",
            "X-Text:  caf\xe9, \t au lait  ",
            "X-Empty:",
            "Content-Length: 0",
        )
    )
    assert reader.headers == {
        "set-cookie": "a=1; Expires=Tue, 24 Nov 2026 00:00:00 GMT, b=2",
        "vary": "a, b",
        "x-text": "caf\xe9, \t au lait",
        "x-empty": "",
        "content-length": "0",
    }
    assert reader.raw_headers == [
        (b"vary", b"a, b"),
        (b"x-text", b"caf\xe9, \t au lait"),
        (b"x-empty", b""),
        (b"content-length", b"0"),
        (b"set-cookie", b"a=1; Expires=Tue, 24 Nov 2026 00:00:00 GMT"),
        (b"set-cookie", b"b=2"),
    ]


def test_body_bytes_are_given_as_they_come_and_once() -> None:
    reader = ResponseReader(method="GET", origin=ORIGIN)
    reader.feed(CHUNKED)
    reader.feed(b"5\r\nOnce \r\n5\r\nupo")
    assert reader.take_body() == b"Once upo"
    assert reader.take_body() == b""
    reader.feed(b"n \r\n0\r\n")
    assert reader.take_body() == b"n "
    assert not reader.complete
    reader.feed(b"\r\n")
    assert reader.complete
    assert reader.reusable


# What delimits a body


@pytest.mark.parametrize(
    ("name", "head", "body", "text"),
    [
        ("a length", response("Content-Length: 4"), b"Once", b"Once"),
        ("a length of nothing", response("Content-Length: 0"), b"", b""),
        ("chunks", CHUNKED, b"2\r\nOn\r\n00002\r\nce\r\n0\r\n\r\n", b"Once"),
        ("no chunk", CHUNKED, b"000\r\n\r\n", b""),
        ("upper case", response("TRANSFER-ENCODING: CHUNKED "), b"A\r\nOnce upon \r\n0\r\n\r\n",
         b"Once upon "),
        ("a chunk that ends in blank lines", CHUNKED, b"8\r\nOnce\r\n\r\n\r\n0\r\n\r\n",
         b"Once\r\n\r\n"),
        ("a chunk that looks like the end", CHUNKED, b"5\r\n0\r\n\r\n\r\n0\r\n\r\n",
         b"0\r\n\r\n"),
        ("extensions", CHUNKED, b'4;a;b=c;d="e;f"\r\nOnce\r\n0;last\r\n\r\n', b"Once"),
        ("spaces behind a size", CHUNKED, b"4  \r\nOn\r\n\r\n0\t\r\n\r\n", b"On\r\n"),
        ("spaces before an extension", CHUNKED, b"4 ;a\r\nOnce\r\n0 ;a\r\n\r\n", b"Once"),
        ("trailers", CHUNKED, b"4\r\nOnce\r\n0\r\nExpires: never\r\nX-Sum:\r\n\r\n", b"Once"),
    ],
)  # fmt: skip
def test_a_body_ends_where_its_framing_says(
    name: str, head: bytes, body: bytes, text: bytes
) -> None:
    outcome = whole(head + body)
    assert (outcome.body, outcome.complete, outcome.reusable) == (text, True, True), name
    for size in range(len(head), len(head + body)):
        cut = whole((head + body)[:size], eof=True)
        assert not cut.complete
        assert text.startswith(cut.body)
        assert cut.error == (
            f"the connection to {ORIGIN} broke: it was closed before all of the response had come"
        )


def test_trailers_are_no_headers() -> None:
    outcome = whole(
        CHUNKED + b"0\r\nTransfer-Encoding: gzip\r\nSet-Cookie: a\r\nConnection: close\r\n\r\n"
    )
    assert outcome.headers == {"transfer-encoding": "chunked"}
    assert outcome.reusable


@pytest.mark.parametrize(
    "head",
    [
        response(),
        response(version="1.0"),
        response("Connection: keep-alive", version="1.0"),
        response("Connection: close", "Content-Type: text/plain"),
    ],
)
def test_a_body_that_nothing_else_delimits_ends_with_the_connection(head: bytes) -> None:
    assert whole(head + b"Once\r\n\r\n") == Outcome(
        200, b"OK", whole(head).headers, b"Once\r\n\r\n", False, False, None
    )
    outcome = whole(head + b"Once\r\n\r\n", eof=True)
    assert (outcome.body, outcome.complete, outcome.reusable) == (b"Once\r\n\r\n", True, False)
    assert whole(head, eof=True).complete


@pytest.mark.parametrize(
    "fields",
    [
        (),
        ("Content-Length: 4",),
        ("Transfer-Encoding: chunked",),
        ("Transfer-Encoding: gzip",),
        ("Connection: close",),
    ],
)
@pytest.mark.parametrize(
    ("method", "status"),
    [("HEAD", "200 OK"), ("HEAD", "404 Not Found"), ("GET", "204 No"), ("POST", "304 Not")],
)
def test_some_responses_have_no_body_whatever_their_headers_say(
    method: str, status: str, fields: tuple[str, ...]
) -> None:
    outcome = whole(response(*fields, status=status), method=method)
    assert outcome.complete
    assert outcome.reusable == (fields != ("Connection: close",))
    behind = whole(response(*fields, status=status) + b"0\r\n\r\n", method=method)
    assert (behind.body, behind.complete, behind.reusable) == (b"", True, False)


def test_a_body_of_an_absurd_length_just_never_ends() -> None:
    head = response(f"Content-Length: {2**64 - 1}")
    assert whole(head + b"Once").body == b"Once"
    assert whole(head + b"Once", eof=True).error is not None


# Whether the connection can be used again


@pytest.mark.parametrize(
    ("version", "connection", "reusable"),
    [
        ("1.1", [], True),
        ("1.1", ["keep-alive"], True),
        ("1.1", ["close"], False),
        ("1.1", ["Close"], False),
        ("1.1", ["keep-alive, close"], False),
        ("1.1", ["keep-alive", "close"], False),
        ("1.1", ["x-close"], True),
        ("1.1", ["upgrade"], True),
        ("1.0", [], False),
        ("1.0", ["Keep-Alive"], True),
        ("1.0", ["x, keep-alive"], True),
        ("1.0", ["keep-alive", "close"], False),
    ],
)
def test_the_server_says_whether_the_connection_is_kept(
    version: str, connection: list[str], reusable: bool
) -> None:
    fields = [f"Connection: {value}" for value in connection]
    for method, length in (("GET", "Content-Length: 4"), ("HEAD", "Content-Length: 4")):
        head = response(*fields, length, version=version)
        outcome = whole(head + (b"Once" if method == "GET" else b""), method=method)
        assert (outcome.complete, outcome.reusable) == (True, reusable)
    chunked = response(*fields, "Transfer-Encoding: chunked", version=version)
    outcome = whole(chunked + b"4\r\nOnce\r\n0\r\n\r\n")
    # RFC 9112 section 6.1: HTTP/1.0 has no chunks, so who knows what else is wrong.
    assert outcome.reusable == (reusable and version == "1.1")
    assert outcome.body == b"Once"


COMPLETE = [
    pytest.param(response("Content-Length: 4") + b"Once", "GET", id="a length"),
    pytest.param(response("Content-Length: 0"), "GET", id="a length of nothing"),
    pytest.param(CHUNKED + b"4\r\nOnce\r\n0\r\n\r\n", "GET", id="chunks"),
    pytest.param(CHUNKED + b"4\r\nOnce\r\n0\r\nA: b\r\n\r\n", "GET", id="trailers"),
    pytest.param(response(status="204 No Content"), "GET", id="no content"),
    pytest.param(response("Content-Length: 4"), "HEAD", id="HEAD"),
    pytest.param(
        response(status="103 Early Hints") + response("Content-Length: 4") + b"Once",
        "GET",
        id="an interim response",
    ),
]


@pytest.mark.parametrize(
    "behind",
    [
        b"\r",
        b"\n",
        b"\r\n",
        b"\r\n\r\n",
        b"x",
        b"\0" * 100,
        response("Content-Length: 6") + b"forged",
        response("Content-Length: 6", "Connection: close") + b"forged",
        CHUNKED + b"6\r\nforged\r\n0\r\n\r\n",
        response() + b"forged",
    ],
)
@pytest.mark.parametrize(("wire", "method"), COMPLETE)
def test_what_is_behind_the_end_belongs_to_nobody_and_spoils_the_connection(
    wire: bytes, method: str, behind: bytes
) -> None:
    proper = whole(wire, method=method)
    assert proper.reusable
    for pieces in (
        [wire + behind],
        [wire, behind],
        [wire[:-1], wire[-1:] + behind],
        [bytes([byte]) for byte in wire + behind],
    ):
        outcome = read(pieces, method=method)
        assert not outcome.reusable
        assert (outcome.status, outcome.headers, outcome.body, outcome.complete) == (
            proper.status,
            proper.headers,
            proper.body,
            True,
        )
        assert outcome.error is None


@pytest.mark.parametrize(("wire", "method"), COMPLETE)
def test_a_connection_that_was_closed_is_not_used_again(wire: bytes, method: str) -> None:
    outcome = whole(wire, method=method, eof=True)
    assert (outcome.complete, outcome.reusable, outcome.error) == (True, False, None)


def test_a_connection_that_was_closed_before_a_response_says_so() -> None:
    assert read([], eof=True).error == (
        f"the connection to {ORIGIN} broke: it was closed before a response came"
    )


# Interim responses


@pytest.mark.parametrize(
    "interim",
    [
        response(status="100 Continue"),
        response("Link: </style.css>", status="103 Early Hints"),
        response(status="102 Processing") * 5 + response(status="199 Own"),
        response("Content-Length: 10", status="100 Continue"),
        response("Transfer-Encoding: gzip", "Connection: close", status="100 Continue"),
        response(status="100 Continue") * MAX_INTERIM_RESPONSES,
    ],
)
def test_interim_responses_are_not_the_response(interim: bytes) -> None:
    final = response("Content-Length: 4", "X-A: 1") + b"Once"
    for method in ("GET", "HEAD"):
        wire = interim + (final if method == "GET" else final[:-4])
        assert whole(wire, method=method) == whole(wire[len(interim) :], method=method)
    assert not whole(interim).complete
    assert whole(interim, eof=True).error is not None


@pytest.mark.parametrize(
    "wire",
    [
        response(status="102 Processing") * (MAX_INTERIM_RESPONSES + 1),
        response(status="101 Switching Protocols") + response("Content-Length: 0"),
        response("Connection: upgrade", "Upgrade: h2c", status="101 Switching Protocols"),
        response(status="100 Continue") + b"\r\n" + response("Content-Length: 0"),
        response(status="100 Continue") + b"garbage",
    ],
)
def test_an_interim_response_that_is_none_or_never_ends_is_refused(wire: bytes) -> None:
    outcome = whole(wire)
    assert outcome.error is not None
    assert (outcome.status, outcome.complete) == (0, False)


def test_an_offer_to_upgrade_is_only_an_offer() -> None:
    wire = response("Connection: upgrade", "Upgrade: h2c", "Content-Length: 4") + b"Once"
    assert whole(wire).reusable


# What is no HTTP/1.1

NO_HTTP = [
    b"HELLO sk-secret\r\n\r\n",
    b"\0" * 100,
    b"\x15\x03\x01\x00\x02\x02\x46",
    b"\x00\x00\x12\x04\x00\x00\x00\x00\x00",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"<html>sk-secret</html>",
    b"SSH-2.0-OpenSSH_9.2p1\r\n",
    b"220 mail.gateway.test ESMTP\r\n",
    b"GET / HTTP/1.1\r\nHost: gateway.test\r\n\r\n",
    b"http/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1sk-secret\r\n\r\n",
    b"\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    b" HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    response(version="2.0"),
    response(version="0.9"),
    response(version="1.2"),
    response(version="2"),
    b"ICE/1.0 200 OK\r\n\r\n",
    b"RTSP/1.0 200 OK\r\n\r\n",
    response(status="20"),
    response(status="099 Low"),
    response(status="1000 High"),
    response(status="-20 OK"),
    response(status="abc"),
    response(status="200 O\rK"),
    b"HTTP/1.1 200 OK\n\n",
    b"HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n",
]

NO_HEADERS = [
    ("Content-Length: 4\nX-A: b",),
    ("Content-Length: 4\rX-A: b",),
    ("X-A: b\r",),
    ("X-A: sk-secret\0",),
    ("X-A: \x7f",),
    ("X-A: b", " folded: sk-secret"),
    ("X-A: b", "\tfolded"),
    (" X-A: b",),
    ("X-A : b",),
    ("X A: b",),
    (": b",),
    ("sk-secret",),
    ("X-\xe9: b",),
    ("X(A): b",),
    ("X-A\0: b",),
]

NO_FRAMING = [
    ("Content-Length: 4", "Content-Length: 5"),
    ("Content-Length: 4", "Content-Length: 4"),
    ("Content-Length: 4, 5",),
    ("Content-Length: 4, 4",),
    ("Content-Length: -4",),
    ("Content-Length: +4",),
    ("Content-Length: 4 4",),
    ("Content-Length: 0x4",),
    ("Content-Length: 4.0",),
    ("Content-Length: \xb2",),
    ("Content-Length:",),
    ("Content-Length: sk-secret",),
    (f"Content-Length: {2**64}",),
    (f"Content-Length: {10**30}",),
    ("Content-Length : 4",),
    ("Content-Length: 4", "Transfer-Encoding: chunked"),
    ("Transfer-Encoding: chunked", "Content-Length: 4"),
    ("Transfer-Encoding: gzip",),
    ("Transfer-Encoding: gzip, chunked",),
    ("Transfer-Encoding: gzip", "Transfer-Encoding: chunked"),
    ("Transfer-Encoding: chunked, gzip",),
    ("Transfer-Encoding: chunked, chunked",),
    ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
    ("Transfer-Encoding: identity",),
    ("Transfer-Encoding: xchunked",),
    ("Transfer-Encoding: chunked;q=1",),
    ("Transfer-Encoding: \x0bchunked",),
    ("Transfer-Encoding: sk-secret",),
    ("Transfer-Encoding:",),
]

NO_CHUNKS = [
    b"g\r\n",
    b"-4\r\nOnce\r\n",
    b"+4\r\nOnce\r\n",
    b"0x4\r\nOnce\r\n",
    b"4_0\r\nOnce\r\n",
    b" 4\r\nOnce\r\n",
    b"4 4\r\nOnce\r\n",
    b"4 a\r\nOnce\r\n",
    b"\r\n4\r\nOnce\r\n",
    b"\r\n",
    b";a=b\r\n",
    b"4\nOnce\r\n",
    b"4\rOnce\r\n",
    b"4\r\nOnce\n0\r\n\r\n",
    b"4\r\nOnce0\r\n\r\n",
    b"4\r\nOnce!\r\n0\r\n\r\n",
    b"4\r\nOnce\r\r\n0\r\n\r\n",
    b"10000000000000000\r\nOnce",
    b"4;a\nb\r\nOnce\r\n0\r\n\r\n",
    b"4;a\rb\r\nOnce\r\n0\r\n\r\n",
    b"4;a\0b\r\nOnce\r\n0\r\n\r\n",
    b"4\r\nOnce\r\nHTTP/1.1 200 OK\r\n",
    b"0\r\n\n",
    b"0\n\r\n",
    b"0\r\nX-A b\r\n\r\n",
    b"0\r\n folded\r\n\r\n",
    b"0\r\nX-A: b\n\r\n",
    b"0\r\nX-A: sk-secret\0\r\n\r\n",
    b"0\r\nContent-Length: 4\r\n\r\n",
]

BROKEN = [
    *NO_HTTP,
    *(response(*fields) + b"4\r\nOnce\r\n0\r\n\r\n" for fields in NO_HEADERS + NO_FRAMING),
    *(CHUNKED + chunks for chunks in NO_CHUNKS),
]


@pytest.mark.parametrize("wire", BROKEN)
def test_what_is_no_http_breaks_the_connection_and_is_not_quoted(wire: bytes) -> None:
    outcome = whole(wire)
    assert outcome.error is not None
    assert "what came is no HTTP, or not all of it" in outcome.error
    assert KEY not in outcome.error
    assert not outcome.complete
    assert not outcome.reusable


@pytest.mark.parametrize("wire", [*BROKEN[: len(NO_HTTP)], CHUNKED + b"g"])
def test_what_is_no_http_is_found_out_before_it_ends(wire: bytes) -> None:
    if wire.startswith(b"HTTP/"):
        wire += b"\r\n\r\n"
    outcome = read([bytes([byte]) for byte in wire])
    assert outcome.error is not None


@pytest.mark.parametrize("fields", NO_HEADERS)
def test_bad_headers_are_bad_where_there_is_no_body_too(fields: tuple[str, ...]) -> None:
    assert whole(response(*fields, status="204 No Content"), method="HEAD").error is not None


@pytest.mark.parametrize(
    ("first", "words"),
    [
        (b"\x15\x03\x01\x00\x02\x02\x46", "it is TLS: should the URL begin with https://?"),
        (b"\x16\x03\x03\x00\x7a\x02", "it is TLS: should the URL begin with https://?"),
        (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00", "it may be HTTP/2, which was not asked for"),
        (b"Hello", None),
        (b"hello", "it does not begin with HTTP/"),
    ],
)
def test_a_server_that_speaks_something_else_is_recognised_by_the_first_byte(
    first: bytes, words: str | None
) -> None:
    outcome = read([bytes([byte]) for byte in first])
    assert outcome.error is not None
    assert words is None or f"({words})" in outcome.error


def test_a_broken_response_stays_broken() -> None:
    for wire in BROKEN:
        reader = ResponseReader(method="GET", origin=ORIGIN)
        with pytest.raises(APIConnectionError):
            reader.feed(wire)
        with pytest.raises(APIConnectionError):
            reader.feed_eof()
        assert not reader.reusable


# Limits


def one_by_one(wire: bytes, size: int) -> list[bytes]:
    return [wire[at : at + size] for at in range(0, len(wire), size)]


@pytest.mark.parametrize("size", [1000, 1_000_000])
@pytest.mark.parametrize("interim", [b"", response(status="103 Early Hints")])
def test_a_head_may_be_so_long_and_no_longer(interim: bytes, size: int) -> None:
    def wire(too_long: int) -> bytes:
        other = len(interim + response("X-A: ", "Content-Length: 0"))
        filler = "a" * (MAX_HEAD_BYTES - other + too_long)
        return interim + response(f"X-A: {filler}", "Content-Length: 0")

    assert read(one_by_one(wire(0), size)).reusable
    refused = read(one_by_one(wire(1), size))
    assert refused.error is not None
    assert "a head that is too long" in refused.error


@pytest.mark.parametrize(
    "start", [b"HTTP/1.1 200 ", b"HTTP/1.1 200 OK\r\nX-", CHUNKED[:-2] + b"A: "]
)
def test_a_head_without_end_is_given_up(start: bytes) -> None:
    endless = [start, *([b"a" * 1000] * 100)]
    refused = read(endless)
    assert refused.error is not None
    assert "a head that is too long" in refused.error


@pytest.mark.parametrize("size", [1000, 1_000_000])
def test_fields_are_counted_with_those_of_interim_responses_and_trailers(size: int) -> None:
    interim = response("X-A: 1", status="103 Early Hints")
    head = response("Transfer-Encoding: chunked", *["X-B: 2"] * (MAX_FIELDS - 4))
    body = b"4\r\nOnce\r\n0\r\nX-C: 3\r\nX-D: 4\r\n"
    assert read(one_by_one(interim + head + body + b"\r\n", size)).reusable
    refused = read(one_by_one(interim + head + body + b"X-E: 5\r\n\r\n", size))
    assert refused.error is not None
    assert "too many header fields" in refused.error
    refused = read(one_by_one(response(*["X-B: 2"] * (MAX_FIELDS + 1)), size))
    assert refused.error is not None
    assert "too many header fields" in refused.error


@pytest.mark.parametrize("size", [1000, 1_000_000])
def test_trailers_count_as_head(size: int) -> None:
    head = response("Transfer-Encoding: chunked", "X-A: " + "a" * 50_000)
    trailers = b"".join(b"X-%d: %s\r\n" % (at, b"b" * 1000) for at in range(100))
    assert read(one_by_one(head + b"0\r\n" + trailers[:10_070] + b"\r\n", size)).complete
    refused = read(one_by_one(head + b"0\r\n" + trailers + b"\r\n", size))
    assert refused.error is not None
    assert "trailers that are too long" in refused.error


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(b"4;", id="an extension"),
        pytest.param(b"4\r\nOnce\r\n0;", id="an extension of the last chunk"),
        pytest.param(b"4\r\nOnce\r\n0\r\nX-", id="the name of a trailer"),
        pytest.param(b"4\r\nOnce\r\n0\r\nX-A: ", id="the value of a trailer"),
        pytest.param(b"0", id="the size of a chunk"),
    ],
)
def test_what_is_no_body_does_not_go_on_for_ever(start: bytes) -> None:
    filler = b"0" if start == b"0" else b"a"
    reader = ResponseReader(method="GET", origin=ORIGIN)
    reader.feed(CHUNKED)
    reader.feed(start)
    reader.take_body()
    for _ in range(65):
        reader.feed(filler * 1000)
    with pytest.raises(APIConnectionError, match="too much that is no body"):
        reader.feed(filler * 1000)


def test_small_chunks_may_go_on_for_ever() -> None:
    reader = ResponseReader(method="GET", origin=ORIGIN)
    reader.feed(CHUNKED)
    for _ in range(MAX_HEAD_BYTES // 2):
        for piece in (b"1;a\r\n", b"a", b"\r\n"):
            reader.feed(piece)
        assert reader.take_body() == b"a"


# Pieces

WIRES: Sequence[tuple[bytes, str]] = [
    *((wire, "GET") for wire in BROKEN),
    (CHUNKED + b"8;a=b\r\nOnce\r\n\r\n\r\n2\r\n\r\n\r\n0\r\nA: b\r\nC: d\r\n\r\n", "GET"),
    (CHUNKED + b"4\r\nOnce\r\n0\r\n\r\n\r\n\r\n", "GET"),
    (CHUNKED + b"4\r\nOnce\r\n0\r\n\r\n" + CHUNKED + b"1\r\nx\r\n0\r\n\r\n", "GET"),
    (response("Content-Length: 8") + b"Once\r\n\r\n", "GET"),
    (response("Content-Length: 4") + b"Once\r\n\r\n", "GET"),
    (response("Content-Length: 4") + b"Once", "HEAD"),
    (response(version="1.0") + b"Once\r\n\r\n", "GET"),
    (response(status="103 Hints") + response("A:  b  ", "Content-Length: 1") + b"x", "GET"),
    (response(status="103 Hints") + response(status="204 No  Content ") + b"\r\n", "GET"),
    (response("Connection: upgrade", "Upgrade: x", status="101 Switching"), "GET"),
]


@pytest.mark.parametrize("eof", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7])
def test_pieces_of_any_size_say_the_same(size: int, eof: bool) -> None:
    for wire, method in WIRES:
        outcome = whole(wire, method=method, eof=eof)
        assert read(one_by_one(wire, size), method=method, eof=eof) == outcome, wire
        views = [memoryview(piece) for piece in one_by_one(wire, size)]
        assert read(views, method=method, eof=eof) == outcome, wire


@pytest.mark.parametrize(
    "wire",
    [
        CHUNKED + b"4\r\nOnce\r\n0\r\n\r\n",
        response("Content-Length: 4") + b"Once",
        response() + b"Once",
    ],
)
def test_a_buffer_may_be_used_again(wire: bytes) -> None:
    buffer = bytearray(wire)
    reader = ResponseReader(method="GET", origin=ORIGIN)
    reader.feed(memoryview(buffer))
    buffer[:] = bytes(len(buffer))
    assert reader.take_body() == b"Once"
    assert reader.headers == whole(wire).headers


def pieces_at(wire: bytes, cuts: Iterable[int]) -> list[bytes]:
    bounds = [0, *sorted(cut for cut in cuts if cut < len(wire)), len(wire)]
    return [wire[start:end] for start, end in pairwise(bounds)]


@given(
    wire=st.sampled_from(WIRES),
    cuts=st.sets(st.integers(0, 200), max_size=12),
    eof=st.booleans(),
)
def test_it_does_not_matter_where_a_response_is_cut(
    wire: tuple[bytes, str], cuts: set[int], eof: bool
) -> None:
    data, method = wire
    outcome = whole(data, method=method, eof=eof)
    assert read(pieces_at(data, cuts), method=method, eof=eof) == outcome


# h11 as an oracle


def read_by_h11(wire: bytes, *, method: str, eof: bool) -> Outcome | None:
    """What h11 makes of a response; `None` where it refuses it."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1_000_000)
    connection.send(h11.Request(method=method, target="/", headers=[("host", "gateway.test")]))
    connection.send(h11.EndOfMessage())
    if wire:
        connection.receive_data(wire)
    if eof:
        connection.receive_data(b"")
    final: h11.Response | None = None
    body = b""
    complete = False
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Response):
                final = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                complete = True
            elif not isinstance(event, h11.InformationalResponse):
                break
            if complete:
                break
    except h11.RemoteProtocolError:
        return None
    headers: dict[str, str] = {}
    for name, value in final.headers if final is not None else ():
        text = value.decode("latin-1")
        key = name.decode()
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    reusable = (
        complete
        and not eof
        and connection.their_state is h11.DONE
        and connection.trailing_data[0] == b""
    )
    if final is None:
        return Outcome(0, b"", {}, body, complete, reusable, None)
    reason = bytes(final.reason)
    return Outcome(final.status_code, reason, headers, body, complete, reusable, None)


field_values = st.text(st.sampled_from('ab, \t\xe9;="'), max_size=8).map(str.strip)
fields = st.lists(
    st.tuples(st.sampled_from(["X-A", "x-b", "Vary", "Connection"]), field_values).map(": ".join)
    | st.sampled_from(["Connection: close", "Connection: Keep-Alive", "Date: now"]),
    max_size=4,
)


@st.composite
def interim_responses(draw: st.DrawFn) -> bytes:
    status = draw(st.sampled_from(["100 Continue", "102", "103 Early Hints"]))
    return response(*draw(fields), status=status)


@st.composite
def responses(draw: st.DrawFn) -> tuple[bytes, str]:
    """A response as a server may send it, and the method of its request."""
    method = draw(st.sampled_from(["GET", "GET", "POST", "HEAD"]))
    status = draw(st.sampled_from(["200 OK", "201", "204 No Content", "304 ", "401 Not \xe9"]))
    version = draw(st.sampled_from(["1.1", "1.1", "1.0"]))
    wire = b"".join(draw(st.lists(interim_responses(), max_size=2)))
    pieces = draw(st.lists(st.sampled_from([b"", b"a", b"Once\r\n\r\n", b"0\r\n\r\n"]), max_size=4))
    headers = draw(fields)
    match draw(st.sampled_from(["chunks", "length", "close"])):
        case "chunks":
            headers.append("Transfer-Encoding: chunked")
            body = b""
            extensions = st.sampled_from([b"", b" ", b";a", b";a=b", b';a="b;c"'])
            for piece in filter(None, pieces):
                body += b"%X%s\r\n%s\r\n" % (len(piece), draw(extensions), piece)
            trailers = draw(st.lists(st.sampled_from([b"X-A: b\r\n", b"X-C:\r\n"]), max_size=2))
            body += b"0" + draw(extensions) + b"\r\n" + b"".join(trailers) + b"\r\n"
        case "length":
            body = b"".join(pieces)
            headers.append(f"Content-Length: {len(body)}")
        case _:
            body = b"".join(pieces)
    if method == "HEAD" or status.startswith(("204", "304")):
        body = b""
    return wire + response(*headers, status=status, version=version) + body, method


def assert_read_alike(ours: Outcome, theirs: Outcome) -> None:
    assert (ours.status, ours.headers, ours.body, ours.complete) == (
        theirs.status,
        theirs.headers,
        theirs.body,
        theirs.complete,
    )
    assert ours.reason == theirs.reason
    if ours.reusable:
        # To h11, HTTP/1.0 keeps no connection.
        assert theirs.complete


@given(
    wire=responses(),
    behind=st.sampled_from([b"", b"", b"x", b"\r\n", b"\r\n\r\n", response("Content-Length: 0")]),
    eof=st.booleans(),
    cuts=st.sets(st.integers(0, 300), max_size=5),
)
def test_a_response_says_to_us_what_it_says_to_h11(
    wire: tuple[bytes, str], behind: bytes, eof: bool, cuts: set[int]
) -> None:
    data, method = wire
    theirs = read_by_h11(data + behind, method=method, eof=eof)
    assert theirs is not None
    ours = read(pieces_at(data + behind, cuts), method=method, eof=eof)
    assert ours.error is None
    assert_read_alike(ours, theirs)
    if b"HTTP/1.0" not in data:
        assert ours.reusable == theirs.reusable


@given(wire=responses(), eof=st.booleans(), size=st.integers(0, 300))
def test_a_response_that_is_cut_is_to_us_what_it_is_to_h11(
    wire: tuple[bytes, str], eof: bool, size: int
) -> None:
    data, method = wire
    theirs = read_by_h11(data[:size], method=method, eof=eof)
    ours = whole(data[:size], method=method, eof=eof)
    if theirs is None or (eof and not theirs.complete):
        assert ours.error is not None
    else:
        assert ours.error is None
        assert_read_alike(ours, theirs)


@given(
    wire=responses(),
    damage=st.lists(
        st.tuples(
            st.integers(0, 200),
            st.integers(0, 2),
            st.sampled_from([b"", b"\r", b"\n", b"\r\n", b":", b" ", b"0", b"1", b",", b"\0"]),
        ),
        min_size=1,
        max_size=2,
    ),
    eof=st.booleans(),
)
def test_of_a_damaged_response_we_make_nothing_that_h11_would_not(
    wire: tuple[bytes, str], damage: list[tuple[int, int, bytes]], eof: bool
) -> None:
    data, method = wire
    for place, size, by in damage:
        at = place % len(data)
        data = data[:at] + by + data[at + size :]
    ours = whole(data, method=method, eof=eof)
    theirs = read_by_h11(data, method=method, eof=eof)
    if ours.complete and theirs is not None:
        assert_read_alike(ours, theirs)


@given(data=st.lists(st.binary(max_size=30)), start=st.sampled_from([b"", b"HTTP/1.1 ", CHUNKED]))
def test_garbage_raises_nothing_but_our_own(data: list[bytes], start: bytes) -> None:
    read([start, *data], eof=True)


# As a citizen


def test_a_reader_leaves_nothing_to_the_garbage_collector() -> None:
    def use() -> None:
        for wire, method in [*WIRES, (CHUNKED + b"4\r\nOnce", "GET")]:
            reader = ResponseReader(method=method, origin=ORIGIN)
            with suppress(APIConnectionError):
                reader.feed(wire)

    use()
    gc.collect()
    gc.disable()
    try:
        use()
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_ctrl_c_while_the_parser_calls_is_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(message: _Message, name: bytes, value: bytes) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_Message, "on_header", interrupted)
    reader = ResponseReader(method="GET", origin=ORIGIN)
    with pytest.raises(KeyboardInterrupt):
        reader.feed(CHUNKED)


def test_what_is_being_handled_meanwhile_has_nothing_to_do_with_it() -> None:
    reader = ResponseReader(method="GET", origin=ORIGIN)
    try:
        raise GeneratorExit
    except GeneratorExit:
        reader.feed(CHUNKED + b"0\r\n\r\n")
    assert reader.reusable
