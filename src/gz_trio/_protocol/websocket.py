"""The WebSocket mode of the Responses API: what is sent, and what comes back.

One connection has many turns. Each begins with a frame of ours, a `response.create`, and ends with
a terminal event of the server; in between come the same events as over HTTP, one JSON object a
frame. Turns at the same time are told apart by a `stream_id`, where the server knows of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import msgspec

from . import lenient_json
from .decoding import text_of
from .errors import (
    APIConnectionError,
    AuthenticationError,
    BadRequestError,
    GatewayError,
    PermissionDeniedError,
    ProtocolError,
)

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Of one frame's JSON: the whole of an answer comes once more in its last one."""

MAX_FRAGMENTS, BYTES_A_FRAGMENT = 1024, 64
"""In so many fragments may a message come, and one more for so many bytes: else it has no end."""

LIFETIME_SECONDS = 55 * 60.0
"""Servers close a connection after 60 minutes: before that, and between turns, another is made."""

# In a request these are of HTTP alone.
_ONLY_HTTP = ("stream", "background", "stream_options")

_TERMINAL = {
    "response.completed",
    "response.incomplete",
    "response.failed",
    "response.cancelled",
    "error",
}

# By the codes of errors that are not about the turn.
LIMIT_REACHED = "websocket_connection_limit_reached"
PREVIOUS_NOT_FOUND = "previous_response_not_found"
_NO_LANES = {"invalid_stream_id", "websocket_stream_limit_reached"}

_ABOUT_THE_KEY = re.compile(
    r"auth|api.?key|token|credential|sign.?in|unauthori[sz]ed", re.IGNORECASE
)


class _Sent(msgspec.Struct, gc=False):
    type: object = None
    stream_id: object = None
    status: object = None
    code: object = None
    param: object = None
    error: object = None


_decode_sent = msgspec.json.Decoder(_Sent).decode


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame that came.

    Args:
        data: Its JSON.
        kind: The event's type; empty where it has none.
        stream_id: Of the turn, where the server gives it.
        code: Of an error.
        status: Of an error: what HTTP would have answered.
        headers: Of an error, likewise; names in lower case.
        about_stream_id: Whether an error is that the server has no turns at the same time.
    """

    data: bytes
    kind: str = ""
    stream_id: str | None = None
    code: str = ""
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    about_stream_id: bool = False

    @property
    def terminal(self) -> bool:
        """Whether it ends its turn."""
        return self.kind in _TERMINAL

    @classmethod
    def of(cls, data: bytes) -> Frame:
        """A frame as it came; whatever it is, there is one.

        >>> Frame.of(b'{"type":"response.completed","response":{}}').terminal
        True
        """
        try:
            sent = _decode_sent(data)
        except lenient_json.MSGSPEC_ERRORS:
            return cls(data)  # The decoder of the reply says what is wrong with it.
        kind, stream_id = text_of(sent.type), text_of(sent.stream_id) or None
        if kind != "error":
            return cls(data, kind, stream_id)
        error = lenient_json.as_object(sent.error) or {}
        code = text_of(sent.code) or text_of(error.get("code"))
        param = text_of(sent.param) or text_of(error.get("param"))
        headers = lenient_json.as_object(error.get("headers")) or {}
        return cls(
            data,
            kind,
            stream_id,
            code,
            sent.status if isinstance(sent.status, int) and 400 <= sent.status < 600 else None,
            {name.lower(): str(value) for name, value in headers.items()},
            about_stream_id=code in _NO_LANES or param == "stream_id",
        )


def as_event(data: bytes) -> bytes:
    r"""A frame's JSON as an event of an event stream.

    >>> as_event(b'{"a":\n1}')
    b'data: {"a":\ndata: 1}\n\n'
    """
    if data.find(b"\n") >= 0 or data.find(b"\r") >= 0:
        # Between the tokens of JSON, where any of them may stand for another.
        data = b"\ndata: ".join(data.splitlines())
    return b"data: " + data + b"\n\n"


def turn_of(content: bytes) -> dict[str, object]:
    """What a request over HTTP says, without what is of HTTP alone."""
    body = cast("dict[str, object]", msgspec.json.decode(content))
    return {name: value for name, value in body.items() if name not in _ONLY_HTTP}


def create_frame(turn: Mapping[str, object], stream_id: str | None) -> str:
    """The frame that begins a turn."""
    lane = {} if stream_id is None else {"stream_id": stream_id}
    return msgspec.json.encode({"type": "response.create", **lane, **turn}).decode()


class Chain:
    """What the server knows of a conversation already: the turn before, by its id.

    >>> chain = Chain()
    >>> first = {"input": [{"role": "user", "content": "Hi"}]}
    >>> chain.completed(first, b'{"response":{"id":"resp_1","output":[{"type":"message"}]}}')
    >>> chain.shortened({"input": [*first["input"], {"type": "message"}, {"role": "user"}]})
    {'input': [{'role': 'user'}], 'previous_response_id': 'resp_1'}
    """

    def __init__(self) -> None:
        self._response_id: str | None = None
        self._items: list[object] = []

    def shortened(self, turn: Mapping[str, object]) -> dict[str, object]:
        """`turn` with only what the server does not know; as it is, if that is all."""
        items, known = _items(turn), self._items
        is_next = len(items) > len(known) and items[: len(known)] == known
        if self._response_id is None or "previous_response_id" in turn or not is_next:
            return dict(turn)
        return {**turn, "input": items[len(known) :], "previous_response_id": self._response_id}

    def completed(self, turn: Mapping[str, object], data: bytes) -> None:
        """`turn`, in full, was answered; `data` is the terminal event."""
        try:
            event = lenient_json.as_object(lenient_json.decode(data)) or {}
        except ValueError:
            event = {}
        response = lenient_json.as_object(event.get("response")) or {}
        output = lenient_json.objects(response.get("output"))
        response_id = text_of(response.get("id"))
        if response_id and output and "previous_response_id" not in turn:
            self._response_id, self._items = response_id, [*_items(turn), *output]

    def forget(self) -> None:
        """The server does not know it any more."""
        self._response_id = None
        self._items = []


def _items(turn: Mapping[str, object]) -> list[object]:
    given = turn.get("input")
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    return cast("list[object]", given) if isinstance(given, list) else []


def error_from_close(code: int | None, reason: str, origin: str) -> GatewayError:
    """The error that the end of a connection means to whoever waits for an answer.

    Args:
        code: Of the close frame (RFC 6455 section 7.4); `None` where there was none.
        reason: What it says, which is never shown.
        origin: Who closed it; messages name it.

    >>> error_from_close(4401, "", "https://gateway.test").status
    401
    """
    if code in (3000, 4001, 4401) or (code == 1008 and _ABOUT_THE_KEY.search(reason)):
        return AuthenticationError(
            f"{origin} closed the connection and rejected the API key ({code}): sign in again, or "
            "give a valid key.",
            status=401,
        )
    if code in (3003, 4403):
        return PermissionDeniedError(
            f"{origin} closed the connection: the API key has no right to this ({code}).",
            status=403,
        )
    if code == 1009:
        return BadRequestError(f"the request is too large for {origin} (1009): send less of it")
    if code in (1002, 1003, 1007, 1008, 1010):
        return ProtocolError(
            f"{origin} closed the connection, for it does not take what was sent ({code}): is the "
            "base URL that of an API with a WebSocket mode?"
        )
    number = "without saying why" if code in (None, 1005, 1006) else f"with the code {code}"
    return APIConnectionError(f"the connection to {origin} broke: it was closed {number}")
