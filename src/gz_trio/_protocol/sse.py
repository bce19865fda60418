"""The event stream: bytes in, events out, by the WHATWG rules.

The rules: https://html.spec.whatwg.org/multipage/server-sent-events.html, sections 9.2.5 ("Parsing
an event stream") and 9.2.6 ("Interpreting an event stream"). One thing is left out: data stays
bytes. It is JSON, which the reader decodes from bytes, and which decides what broken UTF-8 becomes
(`lenient_json`); names and ids are decoded here, with U+FFFD in place of what is no UTF-8.
"""

from __future__ import annotations

from typing import Final

import msgspec

from .errors import ProtocolError

_LF: Final = 0x0A
_BOM = b"\xef\xbb\xbf"

# More digits than this are no time that anybody waits for, and Python's `int` refuses very many.
_MAX_RETRY_DIGITS = 18


class ServerSentEvent(msgspec.Struct, frozen=True, gc=False):
    r"""One event.

    Args:
        event: Its name, `"message"` where the server gave none.
        data: The values of its `data` lines, joined by `\n`. May be empty: a `data` line without
            a value is an event by the rules; a block without any `data` line is none.
        id: The last id that the server sent, with this event or an earlier one; `None` where it
            sent none, or took it back by an empty one.
        retry: The last reconnection time in milliseconds that the server sent, or `None`.
    """

    event: str
    data: bytes
    id: str | None = None
    retry: int | None = None


class EventStreamDecoder:
    r"""Decodes one event stream, fed in pieces of any size.

    What is incomplete when the stream ends is no event: drop the decoder with it.

    Args:
        max_event_size: The most bytes that one event may have.

    >>> decoder = EventStreamDecoder()
    >>> decoder.feed(b": ping\n\ndata: [DO")
    []
    >>> decoder.feed(b"NE]\n\n")
    [ServerSentEvent(event='message', data=b'[DONE]', id=None, retry=None)]
    """

    __slots__ = (
        "_at_event", "_begun", "_data", "_event", "_id", "_last_event_id", "_max_event_size",
        "_rest", "_retry", "_size", "_skip_lf", "_tail",
    )  # fmt: skip

    def __init__(self, max_event_size: int = 64 * 1024 * 1024) -> None:
        self._max_event_size = max_event_size
        self._at_event = False  # Where an event begins, if no id goes with it; but for `_rest`.
        self._rest = b""  # What `split` has left.
        self._begun = False  # A byte order mark may still come.
        self._skip_lf = False  # The last piece ended in CR: an LF belongs to it.
        self._tail: bytearray | None = None  # The line that has not ended yet.
        self._data: list[bytes] | None = None
        self._size = 0  # Of the lines in `_data`.
        self._event = ""
        self._id: str | None = None
        self._last_event_id: str | None = None
        self._retry: int | None = None

    @property
    def last_event_id(self) -> str | None:
        """What to send as `Last-Event-ID`: the id as of the last block that ended, or `None`."""
        return self._last_event_id

    def split(self, data: bytes) -> list[bytes] | None:
        r"""The data of the events that end within `data`, if they are what most servers write.

        That is events of one `data` line each, where no id was sent. A shortcut: where it gives
        `None`, use `feed`, else do not.

        >>> decoder = EventStreamDecoder()
        >>> decoder.split(b"data: 1\n\n") is None  # A byte order mark might have come.
        True
        >>> decoder.feed(b"data: 1\n\n")[0].data
        b'1'
        >>> decoder.split(b"data: 2\n\ndata: 3\n\nda")
        [b'2', b'3']
        """
        if not self._at_event:
            return None
        if self._rest:
            data = self._rest + data
        # For each token: measure what you change (`find` is faster than `in`).
        if data.find(b"\r") >= 0 or not data.startswith(b"data: "):
            return None
        end = len(data) - 2
        if data.find(b"\n") == end and data[-1] == _LF:
            self._rest = b""
            return [data[6:end]]
        end = data.rfind(b"\n\n")
        if end < 0:
            return None
        texts = data[6:end].split(b"\n\ndata: ")
        if data.count(b"\n", 0, end) != 2 * len(texts) - 2:
            return None
        self._rest = data[end + 2 :]
        return texts

    def feed(self, data: bytes) -> list[ServerSentEvent]:
        """The events that end within `data`, in order.

        Raises:
            ProtocolError: An event is larger than `max_event_size`. The decoder is of no use after
                that.
        """
        self._at_event = False
        if self._rest:
            data, self._rest = self._rest + data, b""
        if not self._begun:
            data = self._take_tail() + data
            if len(data) < len(_BOM) and _BOM.startswith(data):
                self._tail = bytearray(data)
                return []
            self._begun = True
            data = data.removeprefix(_BOM)
        if self._skip_lf and data:
            self._skip_lf = False
            data = data.removeprefix(b"\n")

        end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        if not end:
            self._tail = self._tail or bytearray()
            self._tail += data
            self._check_size(self._size + len(self._tail))
            return []
        lines = data if end == len(data) else data[:end]
        if self._tail:
            lines = self._take_tail() + lines
        if end < len(data):
            self._tail = bytearray(data[end:])
        self._skip_lf = end == len(data) and data.endswith(b"\r")

        events: list[ServerSentEvent] = []
        # Of bytes, `splitlines` knows exactly the three line endings of the rules.
        for line in lines.splitlines():
            if not line:
                self._last_event_id = self._id
                if self._data:
                    payload = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
                    events.append(
                        ServerSentEvent(self._event or "message", payload, self._id, self._retry)
                    )
                    self._data = None
                    self._size = 0
                self._event = ""
            elif line.startswith(b"data:"):
                self._size += len(line)
                self._check_size(self._size)
                self._data = self._data or []
                self._data.append(line[6:] if line.startswith(b"data: ") else line[5:])
            else:
                self._field(line)
        self._check_size(self._size + len(self._tail or b""))
        self._at_event = not (
            self._tail
            or self._skip_lf
            or self._data
            or self._event
            or self._id
            or self._last_event_id
        )
        return events

    def _take_tail(self) -> bytes:
        tail, self._tail = self._tail, None
        return bytes(tail or b"")

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._size += len(line)
            self._check_size(self._size)
            self._data = self._data or []
            self._data.append(value)
        elif name == b"event":
            self._event = value.decode("utf-8", "replace")
        elif name == b"id":
            if b"\0" not in value:
                self._id = value.decode("utf-8", "replace") or None
        elif name == b"retry" and value.isdigit() and len(value) <= _MAX_RETRY_DIGITS:
            self._retry = int(value)

    def _check_size(self, size: int) -> None:
        if size > self._max_event_size:
            raise ProtocolError(
                "The gateway sent an event that is larger than the limit of "
                f"{self._max_event_size} bytes: is the base URL that of a chat gateway?"
            )


def encode_event(name: str | None, data: bytes) -> bytes:
    r"""An event as it is written into a stream.

    Without an id or a retry time, and never empty: there are decoders that fail on those.

    Args:
        name: The event's type; `None` where it has none of its own.
        data: Not empty, as `ServerSentEvent.data`: the ends of its lines are newlines.

    >>> encode_event("ping", b"{}")
    b'event: ping\ndata: {}\n\n'
    """
    field = b"" if name is None else b"event: %s\n" % name.encode()
    return b"%sdata: %s\n\n" % (field, data.replace(b"\n", b"\ndata: "))
