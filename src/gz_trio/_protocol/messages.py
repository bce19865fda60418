"""The Messages API (Anthropic's): what a server's events mean.

An answer is a list of content blocks, which events begin, add to, and end. They go back in the next
turn as they came: signatures in them hold for the exact text that they came with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Set as AbstractSet

import msgspec

from . import lenient_json
from .decoding import (
    DONE,
    Halves,
    Item,
    error_in,
    mended,
    pair_surrogates,
    read_event,
    text_of,
    unreadable,
    usage_of,
)
from .errors import GatewayError, error_from_frame
from .events import Delta, RawEvent, ToolCallDelta
from .sse import ServerSentEvent

# Why the model stopped, in the words of chat completions; other reasons as they come.
_FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}

CALLS = {"tool_use": "input"}
"""The kinds of block that are calls of the caller's tools, and where their input is."""

# The kinds of delta, the field that each has, and the field of the block that it adds to.
_GROWING = {
    "text_delta": ("text", "text"),
    "thinking_delta": ("thinking", "thinking"),
    "signature_delta": ("signature", "signature"),
    "input_json_delta": ("partial_json", "input"),
}


class _Event(msgspec.Struct, gc=False):
    type: object = None
    index: object = None
    delta: object = None
    content_block: object = None
    message: object = None
    usage: object = None
    error: object = None
    detail: object = None


_decode_event = msgspec.json.Decoder(_Event).decode


class MessagesDecoder:
    """Decodes the events of one attempt at one reply; see `Decoder`.

    - Thinking is reasoning; calls of the caller's tools are tool calls, numbered from 0.
    - The end has a finish reason in the words of chat completions (`"stop"`, `"tool_calls"`,
      `"length"`, `"content_filter"`), or what the server said.
    - `usage` is the last, merged with what the beginning said.

    >>> decoder = MessagesDecoder()
    >>> event = b'{"type":"content_block_delta","delta":{"type":"text_delta","text":"Hi"}}'
    >>> [delta.text for delta in decoder.decode(ServerSentEvent("content_block_delta", event))]
    ['Hi']
    """

    __slots__ = ("_blocks", "_calls", "_done", "_failed", "_finished", "_halves", "_usage")

    def __init__(self) -> None:
        self._failed = False
        self._finished = False  # There is a stop reason.
        self._done = False
        self._usage: dict[str, object] = {}
        self._blocks: dict[int, _Block] = {}
        self._calls: dict[int, int] = {}  # Ours, by the block's index.
        self._halves = Halves()

    @property
    def complete(self) -> bool:
        """See `Decoder`: `message_stop` came, or a stop reason."""
        return (self._finished or self._done) and not self._failed

    @property
    def choices(self) -> AbstractSet[int]:
        """See `Decoder`: there is one."""
        return {0}

    @property
    def output(self) -> list[dict[str, object]]:
        """See `Decoder`: the content blocks so far, but for empty ones of text."""
        wholes = (block.whole() for _, block in sorted(self._blocks.items()))
        return [whole for whole in wholes if whole.get("type") != "text" or whole.get("text")]

    @property
    def response_id(self) -> None:
        """See `Decoder`: nothing is kept."""

    @property
    def over(self) -> bool:
        """See `Decoder`: nothing is kept."""
        return False

    def take_up(self) -> None:
        """See `Decoder`."""
        self._failed = self._done = False

    def decode_texts(self, events: list[bytes]) -> None:
        """See `Decoder`: there is no shortcut, for each event has a name."""

    def decode(self, event: ServerSentEvent) -> tuple[Item, ...]:
        """See `Decoder`."""
        data, frame = event.data, read_event(event, _decode_event, _Event)
        if isinstance(frame, tuple):
            self._failed = self._failed or any(isinstance(item, GatewayError) for item in frame)
            return frame
        kind = text_of(frame.type)
        match kind:
            case _ if "error" in (kind, event.event):
                return (self._error(data),)
            case "message_start":
                message = lenient_json.as_object(frame.message) or {}
                return (self._count(message.get("usage"), Delta(raw=data)),)
            case "content_block_start":
                return (self._begin(_index(frame), frame.content_block, data),)
            case "content_block_delta":
                return (self._grow(event, _index(frame), frame.delta),)
            case "content_block_stop":
                return (self._end_block(_index(frame), data),)
            case "message_delta":
                delta = self._finish(frame.delta, data)
                return (self._count(frame.usage, delta),)
            case "message_stop":
                self._done = True
                return (Delta(raw=data), DONE)
            case "ping":
                return ()
            case "" if frame.error or frame.detail or isinstance(frame.message, str):
                # What the body of a response would be: `{"error": ...}`, `{"detail": ...}`.
                return (self._error(data),)
            case _:
                named = event.event != "message" or not kind
                return (RawEvent(event.event if named else kind, data),)

    def decode_completion(self, body: bytes) -> tuple[Item, ...]:
        """See `Decoder`: a `message` object."""
        try:
            message = lenient_json.as_object(lenient_json.decode(body)) or {}
        except ValueError:
            message = {}
        if message.get("type") != "message":
            self._failed = True
            if message.get("error") or message.get("detail"):
                return (error_from_frame(message, body=body),)
            return (unreadable(ServerSentEvent("message", body)),)
        whole = self._finish(message, body)
        for index, block in enumerate(lenient_json.objects(message.get("content"))):
            delta = self._begin(index, block, b"", whole=True)
            whole = msgspec.structs.replace(
                whole,
                text=whole.text + delta.text,
                reasoning=whole.reasoning + delta.reasoning,
                tool_calls=whole.tool_calls + delta.tool_calls,
            )
        self._done = True
        return (self._count(message.get("usage"), whole), DONE)

    # Blocks

    def _begin(self, index: int, sent: object, raw: bytes, *, whole: bool = False) -> Delta:
        block = lenient_json.as_object(sent) or {}
        self._blocks[index] = _Block(block)
        text, reasoning = text_of(block.get("text")), text_of(block.get("thinking"))
        calls: tuple[ToolCallDelta, ...] = ()
        field = CALLS.get(text_of(block.get("type")))
        if field is not None:
            ours = self._calls[index] = len(self._calls)
            given = lenient_json.as_object(block.get(field))
            # At the beginning of a block that is still to come it is empty, whatever follows.
            arguments = _as_json(given) if given or whole else ""
            name, call_id = text_of(block.get("name")), text_of(block.get("id"))
            calls = (ToolCallDelta(ours, call_id or None, name or None, arguments),)
        return Delta(
            text=self._halves.mend((index, "text"), text, end=whole),
            reasoning=self._halves.mend((index, "thinking"), reasoning, end=whole),
            tool_calls=calls,
            raw=raw,
        )

    def _grow(self, event: ServerSentEvent, index: int, sent: object) -> Delta | RawEvent:
        delta = lenient_json.as_object(sent) or {}
        # A server that left out the beginning of a block has said of what kind it is, even so.
        block = self._blocks.get(index)
        if block is None:
            block = self._blocks[index] = _Block(_block_of(delta))
        if delta.get("type") == "citations_delta":
            block.cite(delta.get("citation"))
            return Delta(raw=event.data)
        source, field = _GROWING.get(text_of(delta.get("type")), ("", ""))
        if not field:
            return RawEvent(event.event, event.data)
        piece = text_of(delta.get(source))
        block.grow(field, piece)
        told = self._halves.mend((index, field), piece)
        match field:
            case "text":
                return Delta(text=told, raw=event.data)
            case "thinking":
                return Delta(reasoning=told, raw=event.data)
            case "input" if index in self._calls and told:
                call = ToolCallDelta(self._calls[index], arguments=told)
                return Delta(tool_calls=(call,), raw=event.data)
            case _:
                return Delta(raw=event.data)

    def _end_block(self, index: int, raw: bytes) -> Delta:
        # Half a character that waits for its other half comes out alone.
        return Delta(
            text=self._halves.mend((index, "text"), "", end=True),
            reasoning=self._halves.mend((index, "thinking"), "", end=True),
            raw=raw,
        )

    # The end

    def _finish(self, sent: object, raw: bytes) -> Delta:
        reason = text_of((lenient_json.as_object(sent) or {}).get("stop_reason"))
        if not reason:
            return Delta(raw=raw)
        self._finished = True
        return Delta(finish_reason=_FINISH_REASONS.get(reason, reason), raw=raw)

    def _count(self, sent: object, delta: Delta) -> Delta:
        """`delta` with all that was counted so far; what is not said again stays as it was."""
        counted = lenient_json.as_object(sent)
        if not counted:
            return delta
        self._usage |= {name: value for name, value in counted.items() if value is not None}
        return msgspec.structs.replace(delta, usage=usage_of(dict(self._usage)))

    def _error(self, data: bytes) -> GatewayError:
        self._failed = True
        return error_in(data)


class _Block:
    """A content block, and the pieces that came of its fields."""

    __slots__ = ("_citations", "_fields", "_pieces")

    def __init__(self, fields: Mapping[str, object]) -> None:
        self._fields = dict(fields)
        self._pieces: dict[str, list[str]] = {}
        self._citations: list[object] = []

    def grow(self, field: str, piece: str) -> None:
        self._pieces.setdefault(field, []).append(piece)

    def cite(self, citation: object) -> None:
        self._citations.append(citation)

    def whole(self) -> dict[str, object]:
        """As it goes back to the server."""
        fields = dict(self._fields)
        for field, pieces in self._pieces.items():
            joined = "".join(pieces)
            if field != "input":
                fields[field] = text_of(fields.get(field)) + joined
            elif joined:
                fields[field] = _input(pair_surrogates(joined))
        if self._citations:
            before = fields.get("citations")
            fields["citations"] = [*(before if isinstance(before, list) else ()), *self._citations]
        return mended(fields)


def _input(text: str) -> dict[str, object]:
    """A tool's input, which has to be an object even where the model was cut off in it."""
    try:
        value = lenient_json.as_object(lenient_json.decode(text.encode("utf-8", "replace")))
    except ValueError:
        value = None
    if value is None and text.strip():
        return {"INVALID_JSON": text}  # As Anthropic's documentation advises.
    return value or {}


def _as_json(value: object) -> str:
    try:
        return json.dumps(value or {}, separators=(",", ":"))
    except RecursionError:  # Nested so deep that it can be read, but not written again.
        return "{}"


def _index(frame: _Event) -> int:
    return frame.index if isinstance(frame.index, int) else 0


def _block_of(delta: Mapping[str, object]) -> dict[str, object]:
    return {"type": "thinking" if delta.get("type") == "thinking_delta" else "text"}
