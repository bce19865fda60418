"""The client's side of HTTP/1.1 (RFC 9112): a request as bytes, and bytes as its response.

httptools (llhttp) takes heads and chunks apart, strictly. How long a body is, is decided here, and
a body that needs no taking apart never meets the parser. A reader reads one final response: what
follows it belongs to nobody, and makes the connection useless.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Final

from httptools import HttpParserError, HttpResponseParser

from .._protocol.errors import APIConnectionError, ProtocolError

MAX_HEAD_BYTES = 64 * 1024
"""Of all that is no body: the heads of interim responses count, and trailers."""

MAX_FIELDS = 256
"""Header fields, of all heads, and of trailers."""

MAX_INTERIM_RESPONSES = 100
"""A server that works for long may say so (102) now and then."""

_CR: Final = 0x0D
_H: Final = 0x48
_HEAD_END = b"\r\n\r\n"

_OTHER_PROTOCOLS = {
    0x15: "it is TLS: should the URL begin with https://?",
    0x16: "it is TLS: should the URL begin with https://?",
    0x00: "it may be HTTP/2, which was not asked for",
}
"""By the first byte: a TLS record (RFC 8446 section 5.1), the length of a frame (RFC 9113)."""

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"(?:[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)?")
_TARGET = re.compile(r"[!-~]+")
_HOST = re.compile(r"[0-9A-Za-z._~%!$&'()*+,;=:\[\]-]+")


def encode_request(
    method: str,
    target: str,
    host: str,
    headers: Mapping[str, str],
    content: bytes,
    *,
    absent: frozenset[str] = frozenset(),
) -> bytes:
    """A request, ready to be sent.

    `Host` comes first: the caller's, where `headers` has one, else `host`. The framing is made
    here, for the whole content is at hand: a `Content-Length` or `Transfer-Encoding` among
    `headers` is left out, as an httpx client gives them. `Accept-Encoding` is added where there
    is none. Everything else is sent as it is given, `Connection` too.

    Args:
        method: Not CONNECT: what answers that is no response as others are.
        target: Path and query, percent-encoded.
        host: Host, and the port if it is not the scheme's own.
        headers: Names in any case.
        content: The body, without any transfer coding.
        absent: Names in lower case that are not sent, whoever adds them.

    Raises:
        ProtocolError: It cannot be sent: something in it is not what HTTP allows, and might say
            another thing to the server than to us. The message never quotes a value, which may
            be the key.

    >>> encode_request("GET", "/v1/models", "gateway.test", {}, b"").splitlines()[:2]
    [b'GET /v1/models HTTP/1.1', b'Host: gateway.test']
    """
    lines: list[str] = []
    accept_encoding = "Accept-Encoding: gzip, deflate"
    for name, value in headers.items():
        lower = name.lower()
        if lower in absent:
            continue
        if not _TOKEN.fullmatch(name):
            raise _unsendable(host, "the name of a header is not one")
        if not _VALUE.fullmatch(value):
            raise _unsendable(
                host,
                f"the value of its header {name} begins or ends with a space, or holds a newline "
                "or another character that no header can hold",
            )
        match lower:
            case "host":
                host = value
            case "content-length":
                pass
            case "transfer-encoding":
                if value.lower() != "chunked":
                    raise _unsendable(host, "its content has a transfer coding already")
            case _:
                lines.append(f"{name}: {value}")
                if lower == "accept-encoding":
                    accept_encoding = ""
    if accept_encoding and "accept-encoding" not in absent:
        lines.append(accept_encoding)
    if content or method in ("POST", "PUT", "PATCH"):
        lines.append(f"Content-Length: {len(content)}")
    if not _HOST.fullmatch(host):
        raise ProtocolError("the request cannot be sent by HTTP: its host is not one")
    if method == "CONNECT" or not _TOKEN.fullmatch(method):
        raise _unsendable(host, "its method is not one that gets a response")
    if not _TARGET.fullmatch(target):
        raise _unsendable(
            host, "its path or query holds a space or another character to be percent-encoded"
        )
    head = "\r\n".join((f"{method} {target} HTTP/1.1", f"Host: {host}", *lines, "", ""))
    return head.encode("latin-1") + content


def _unsendable(host: str, why: str) -> ProtocolError:
    if not _HOST.fullmatch(host):
        host = "the gateway"
    return ProtocolError(f"the request to {host} cannot be sent by HTTP: {why}")


class ResponseReader:
    r"""Reads the response to one request, from the bytes of a connection.

    Args:
        method: Of the request: what answers HEAD has no body, whatever its headers say.
        origin: Whose response it is; messages name it.

    Attributes:
        begun: Whether any byte of a response has come.
        head_complete: Whether status and headers have come: those of the final response.
        complete: Whether all of it has come.
        status: The status.
        reason: The reason phrase, as it came.
        headers: Names in lower case; the values of several fields of one name are joined by
            commas (RFC 9110 section 5.3).
        pieces: What of the body came, its content coding still on, and was not taken yet.

    >>> reader = ResponseReader(method="GET", origin="http://gateway.test")
    >>> reader.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\nOnce upon")
    >>> reader.status, reader.headers, reader.take_body(), reader.complete
    (200, {'content-length': '16'}, b'Once upon', False)
    >>> reader.feed(b" a time")
    >>> reader.take_body(), reader.complete, reader.reusable
    (b' a time', True, True)
    """

    __slots__ = (
        "_chunks", "_has_body", "_head_bytes", "_head_tail", "_interim_responses", "_keep_alive",
        "_left", "_message", "_origin", "_parser", "_without_body", "begun", "complete",
        "head_complete", "headers", "pieces", "reason", "status",
    )  # fmt: skip

    def __init__(self, *, method: str, origin: object) -> None:
        self.begun = False
        self.head_complete = False
        self.complete = False
        self.status = 0
        self.reason = b""
        self.headers: Mapping[str, str] = {}
        self._origin = origin
        self._has_body = method != "HEAD"
        self._keep_alive = False
        self._interim_responses = 0
        self._head_bytes = 0
        self._head_tail = b""
        self.pieces: list[bytes] = []
        self._message = _Message(self.pieces.append, 0)
        self._parser = _parser_for(self._message)
        self._chunks: HttpResponseParser | None = None
        self._left: int | None = None
        self._without_body = 0

    @property
    def reusable(self) -> bool:
        """Whether the connection can take another request: all came, and nothing behind it."""
        return self.complete and self._keep_alive

    @property
    def raw_headers(self) -> list[tuple[bytes, bytes]]:
        """The headers for who takes them apart; `Set-Cookie`, which cannot be joined, is not."""
        fields = [
            (name.encode("ascii"), value.encode("latin-1"))
            for name, value in self.headers.items()
            if name != "set-cookie"
        ]
        return fields + [
            (b"set-cookie", value.encode("latin-1")) for value in self._message.cookies
        ]

    def feed(self, data: bytes | memoryview) -> None:
        """Take the next bytes of the connection.

        Raises:
            APIConnectionError: They are no HTTP/1.1, or more of a head than there may be.
        """
        chunks = self._chunks
        if chunks is None:
            self._feed_unchunked(bytes(data))
            return
        # All tokens of all streams come along here: measure what you change.
        try:
            if data[-4] != _CR:
                chunks.feed_data(data)
            else:
                self._feed_perhaps_end(chunks, data)
        except IndexError:
            self._feed_perhaps_end(chunks, data)
        except HttpParserError as error:
            self._end_chunks(error)
            self._keep_alive = False
        if self.pieces:
            self._without_body = 0
        else:
            self._without_body += len(data)
            if self._without_body > MAX_HEAD_BYTES:
                raise self._broken("too much that is no body")

    def feed_eof(self) -> None:
        """The server sends no more: a body that nothing else delimits is complete.

        Raises:
            APIConnectionError: The response is not.
        """
        self._keep_alive = False
        if self.complete or (self.head_complete and self._chunks is None and self._left is None):
            self.complete = True
            return
        missing = "all of the response had come" if self.begun else "a response came"
        raise APIConnectionError(
            f"the connection to {self._origin} broke: it was closed before {missing}"
        )

    def forget_headers(self) -> None:
        """They have been read: a body may stream for long."""
        self.headers = self._message.headers = _FORGOTTEN

    def take_body(self) -> bytes:
        """All of `pieces`, joined; they are gone from there."""
        pieces = self.pieces
        if len(pieces) == 1:
            return pieces.pop()
        body = b"".join(pieces)
        pieces.clear()
        return body

    # Chunks

    def _feed_perhaps_end(self, chunks: HttpResponseParser, data: bytes | memoryview) -> None:
        """Feed what may end the message, of which the last four bytes are CR LF CR LF.

        The parser does not tell how many of the bytes belonged to the message. So the last one
        goes alone: if the message ends before it, something is behind the message.
        """
        try:
            chunks.feed_data(data[:-1])
        except HttpParserError as error:
            self._end_chunks(error)
            self._keep_alive = False
            return
        try:
            chunks.feed_data(data[-1:])
        except HttpParserError as error:
            self._end_chunks(error)

    def _end_chunks(self, error: HttpParserError) -> None:
        self._check(error)
        self._chunks = None
        self.complete = True

    # Heads, and all other bodies

    def _feed_unchunked(self, data: bytes) -> None:
        while data and not self.head_complete:
            data = self._feed_head(data)
        if not data:
            return
        if self.complete:
            self._keep_alive = False
        elif self._chunks is not None:
            self.feed(data)
        elif self._left is None:
            self.pieces.append(data)
        elif len(data) < self._left:
            self._left -= len(data)
            self.pieces.append(data)
        else:
            self.pieces.append(data[: self._left])
            self._keep_alive = self._keep_alive and len(data) == self._left
            self.complete = True

    def _feed_head(self, data: bytes) -> bytes:
        """Feed what belongs to the head that is under way; the rest comes back."""
        if not self._head_tail:
            self.begun = True
            if data[0] != _H:
                raise self._broken(_OTHER_PROTOCOLS.get(data[0], "it does not begin with HTTP/"))
        seam = self._head_tail + data
        end = seam.find(_HEAD_END)
        size = len(data) if end < 0 else end + len(_HEAD_END) - len(self._head_tail)
        self._head_tail = seam[-3:]
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            raise self._broken("a head that is too long")
        try:
            self._parser.feed_data(data[:size])
        except HttpParserError as error:
            self._check(error)
        if self._message.head_complete:
            self._take_head()
        return data[size:]

    def _take_head(self) -> None:
        status, version = self._parser.get_status_code(), self._parser.get_http_version()
        if version not in ("1.0", "1.1"):
            raise self._broken("another version of HTTP")
        if status == 101 or status < 100:
            raise self._broken("a status that answers no request of ours")
        if status >= 200:
            self._begin_body(status, version)
            return
        self._interim_responses += 1
        if self._interim_responses > MAX_INTERIM_RESPONSES:
            raise self._broken("interim responses without end")
        self._message = _Message(self.pieces.append, self._message.fields)
        self._parser = _parser_for(self._message)
        self._head_tail = b""

    def _begin_body(self, status: int, version: str) -> None:
        """How long the body is: RFC 9112 section 6.3, where that lets us refuse, refused."""
        headers = self._message.headers
        options = [option.strip() for option in headers.get("connection", "").lower().split(",")]
        self._keep_alive = "close" not in options and (version == "1.1" or "keep-alive" in options)
        if not self._has_body or status in (204, 304):
            self.complete = True
        elif "transfer-encoding" in headers:
            if headers["transfer-encoding"].lower() != "chunked":
                raise self._broken("a transfer coding that was not asked for")
            self._keep_alive = self._keep_alive and version == "1.1"  # RFC 9112 section 6.1
            self._chunks = self._parser
        elif "content-length" in headers:
            # The parser has seen to it that there is one, and that it is a number.
            self._left = int(headers["content-length"])
            self.complete = self._left == 0
        self._message.room = MAX_HEAD_BYTES - self._head_bytes
        self.status, self.reason = status, self._message.reason
        self.headers = headers
        self.head_complete = True

    # What is wrong

    def _check(self, error: HttpParserError) -> None:
        """Raise what the parser stopped at, unless that is the end of the message."""
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__  # It struck while the parser was calling us.
        if not self._message.complete:
            # httptools quotes nothing that came.
            raise self._broken(self._message.problem or str(error)) from None

    def _broken(self, why: str) -> APIConnectionError:
        return APIConnectionError(
            f"the connection to {self._origin} broke: what came is no HTTP, or not all of it "
            f"({why})"
        )


def _parser_for(message: _Message) -> HttpResponseParser:
    parser = HttpResponseParser(message)
    # Servers pad sizes, and RFC 9112 section 7.1.1 wants spaces before an extension to be read.
    # No space can make a size another one.
    parser.set_dangerous_leniencies(lenient_spaces_after_chunk_size=True)
    return parser


@lru_cache(maxsize=128)
def _name_of_field(name: bytes) -> str:
    """The same string for the same name, however many streams are open."""
    return name.decode("ascii").lower()


_FORGOTTEN: dict[str, str] = {}  # One for all.


class _Stop(Exception):
    """Lets the parser stop where it is."""


class _Message:
    """What the parser tells of one message.

    It knows neither the parser nor the reader: a circle would keep them all until the garbage
    collector comes by.
    """

    __slots__ = (
        "complete", "cookies", "fields", "head_complete", "headers", "on_body", "problem",
        "reason", "room",
    )  # fmt: skip

    def __init__(self, on_body: Callable[[bytes], None], fields: int) -> None:
        self.on_body = on_body
        self.fields = fields
        self.headers: dict[str, str] = {}
        self.cookies: tuple[str, ...] = ()
        self.reason = b""
        self.room = 0
        self.head_complete = False
        self.complete = False
        self.problem = ""

    def on_status(self, reason: bytes) -> None:
        self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields += 1
        if self.fields > MAX_FIELDS:
            self.problem = "too many header fields"
            raise _Stop
        if self.head_complete:
            # Trailers are read, because they end the message, and not used.
            self.room -= len(name) + len(value)
            if self.room < 0:
                self.problem = "trailers that are too long"
                raise _Stop
            return
        headers, key = self.headers, _name_of_field(name)
        text = value.decode("latin-1").rstrip(" \t")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
        if key == "set-cookie":
            self.cookies += (text,)

    def on_headers_complete(self) -> None:
        self.head_complete = True

    def on_message_complete(self) -> None:
        self.complete = True
        raise _Stop  # Else it would go on and read another response.
