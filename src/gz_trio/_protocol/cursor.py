"""Where a stream was left that the server keeps: the ids of its events.

A server that gives its events ids may take the stream up after the one in `Last-Event-ID` (WHATWG
HTML, section 9.2, "Server-sent events"). It may as well ignore the header, or have lost the
stream, and start over, with ids that look like anything. So the first event of its answer decides
which of the two it is. Where that cannot be told, the answer is of no use: a guess would double
text, or lose some.

The Responses API has a name for each stream and a number for each event, with which there is
nothing to guess.
"""

from __future__ import annotations

import re
from collections.abc import Set as AbstractSet
from typing import Literal, Protocol

import msgspec

from . import lenient_json
from .sse import ServerSentEvent

Place = Literal["here", "beginning", "unknown"]

# What any HTTP library sends as it is (RFC 9110, section 5.5), and of a size that servers take.
_FIELD_VALUE = re.compile(r"[!-~](?:[ -~]{0,1022}[!-~])?")

_NUMBERED = re.compile(r"(.*?)(0|[1-9][0-9]{0,17})", re.DOTALL)


class _Delta(msgspec.Struct, gc=False):
    role: object = None


class _Choice(msgspec.Struct, gc=False):
    index: object = None
    delta: _Delta | None = None


class _Head(msgspec.Struct, gc=False):
    """Of a chunk, what tells one answer from another."""

    id: object = None
    choices: list[_Choice] = []

    @property
    def roles(self) -> set[int]:
        """The choices of which it says who speaks."""
        return {
            choice.index if isinstance(choice.index, int) else position
            for position, choice in enumerate(self.choices)
            if choice.delta and choice.delta.role
        }


_decode_head = msgspec.json.Decoder(_Head).decode


def _head(data: bytes) -> _Head:
    try:
        return _decode_head(data)
    except lenient_json.MSGSPEC_ERRORS:
        return _Head()


def _numbered(event_id: str) -> tuple[str, int] | None:
    match = _NUMBERED.fullmatch(event_id)
    return None if match is None else (match[1], int(match[2]))


_NONE = range(0)


class _Ids:
    """A set of ids; those that are numbered one after another take no room."""

    __slots__ = ("_numbers", "_others", "_prefix")

    def __init__(self) -> None:
        self._prefix: str | None = None
        self._numbers = _NONE
        self._others: set[str] | None = None  # An empty one is large.

    def add(self, event_id: str) -> None:
        numbered = _numbered(event_id)
        if numbered is not None:
            prefix, number = numbered
            if self._prefix is None:
                self._prefix, self._numbers = prefix, range(number, number + 1)
                return
            if prefix == self._prefix and number == self._numbers.stop:
                self._numbers = range(self._numbers.start, number + 1)
                return
        self._others = self._others or set()
        self._others.add(event_id)

    @property
    def consecutive(self) -> bool:
        """Whether they are numbers, each one more than the one before."""
        return len(self._numbers) > 1 and not self._others

    def __contains__(self, event_id: str) -> bool:
        if self._others is not None and event_id in self._others:
            return True
        numbered = _numbered(event_id)
        return numbered is not None and numbered[0] == self._prefix and numbered[1] in self._numbers


class Cursor(Protocol):
    """The place in one kept stream, from its first event on."""

    @property
    def last_event_id(self) -> str | None:
        """Of the event to take up after; `None` where the stream cannot be taken up by it."""
        ...

    @property
    def names_the_stream(self) -> bool:
        """Whether what is asked for by it is that stream, or nothing."""
        ...

    def passed(self, event: ServerSentEvent) -> None:
        """`event` was taken; whatever comes next lies behind it."""
        ...

    def has_passed(self, event: ServerSentEvent) -> bool:
        """Whether `event` was taken already, by its id."""
        ...

    def place_of(self, event: ServerSentEvent, *, begun: AbstractSet[int]) -> Place:
        """Where an answer begins, by its first event.

        Args:
            event: The first one that came in answer to `last_event_id`.
            begun: The choices that the stream had begun.
        """
        ...


class SequenceCursor:
    """The place in a stream that is asked for by its name, and whose events are numbered.

    >>> cursor = SequenceCursor()
    >>> cursor.passed(ServerSentEvent("message", b"{}", id="7"))
    >>> cursor.place_of(ServerSentEvent("message", b"{}", id="9"), begun={0})
    'here'
    """

    __slots__ = ("_exact", "_first", "_last")

    names_the_stream = True
    """See `Cursor`."""

    def __init__(self) -> None:
        self._first: int | None = None
        self._last = -1
        self._exact = False

    @property
    def last_event_id(self) -> str | None:
        """See `Cursor`; `None` where events without a number came behind the last that has one."""
        return str(self._last) if self._exact else None

    def passed(self, event: ServerSentEvent) -> None:
        """See `Cursor`."""
        self._exact = event.id is not None
        if event.id is not None:
            number = int(event.id)
            self._first = number if self._first is None else self._first
            self._last = max(self._last, number)

    def has_passed(self, event: ServerSentEvent) -> bool:
        """See `Cursor`."""
        return event.id is not None and int(event.id) <= self._last

    def place_of(self, event: ServerSentEvent, *, begun: AbstractSet[int]) -> Place:  # noqa: ARG002 - see `Cursor`
        """See `Cursor`."""
        if event.id is None:
            return "unknown"
        return "beginning" if int(event.id) == self._first else "here"


class EventCursor:
    r"""The place in a stream whose events have ids of the server's choice.

    >>> cursor = EventCursor()
    >>> cursor.passed(ServerSentEvent("message", b'{"id":"chatcmpl-1"}', id="7"))
    >>> cursor.last_event_id
    '7'
    >>> cursor.place_of(ServerSentEvent("message", b'{"id":"chatcmpl-1"}', id="8"), begun={0})
    'here'
    >>> cursor.place_of(ServerSentEvent("message", b'{"id":"chatcmpl-2"}', id="1"), begun={0})
    'unknown'
    """

    __slots__ = ("_exact", "_first", "_ids", "_last")

    names_the_stream = False
    """See `Cursor`."""

    def __init__(self) -> None:
        self._ids: _Ids | None = None
        self._first: ServerSentEvent | None = None
        self._last: ServerSentEvent | None = None
        self._exact = False

    @property
    def last_event_id(self) -> str | None:
        """See `Cursor`: what to send as `Last-Event-ID`."""
        if self._last is None or self._last.id is None or not self._exact:
            return None
        return self._last.id if _FIELD_VALUE.fullmatch(self._last.id) else None

    def passed(self, event: ServerSentEvent) -> None:
        """See `Cursor`."""
        # The decoder hands the last id on to events that have none of their own: the server could
        # not tell whether those behind the last id were seen.
        self._exact = event.id is not None and (self._last is None or event.id != self._last.id)
        if event.id is None or not self._exact:
            return
        self._ids = self._ids or _Ids()
        self._ids.add(event.id)
        self._first = self._first or event
        self._last = event

    def has_passed(self, event: ServerSentEvent) -> bool:
        """See `Cursor`."""
        return event.id is not None and self._ids is not None and event.id in self._ids

    def place_of(self, event: ServerSentEvent, *, begun: AbstractSet[int]) -> Place:
        """See `Cursor`."""
        if event.id is None or self._first is None or self._last is None or self._ids is None:
            return "unknown"
        if event.id == self._first.id:
            return "beginning"
        ours, theirs = _head(self._last.data), _head(event.data)
        both_named = ours.id is not None and theirs.id is not None
        if self.has_passed(event):
            return "unknown" if both_named and ours.id != theirs.id else "here"
        if theirs.roles & begun and (self._last is self._first or not ours.roles):
            return "unknown"  # Only the beginning of an answer says who speaks.
        before, after = _numbered(self._last.id or ""), _numbered(event.id)
        if before is not None and after == (before[0], before[1] + 1):
            return "here"
        same = both_named and ours.id == theirs.id
        return "here" if same and not self._ids.consecutive else "unknown"
