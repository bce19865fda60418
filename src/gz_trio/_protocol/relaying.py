"""What a server's event is to those who hand events on, where their reader has some of it already.

A replay says everything again, and a continuation the beginning of it. The texts are compared by
`resume`; here is, for each API, the event that says a part of a text alone, and the events which
an answer has once: that an item, a part or a block begins or is over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import msgspec

from . import lenient_json
from .decoding import text_of
from .events import Delta, RawEvent, ToolCallDelta

Retell = Callable[[bytes, Delta], bytes]
"""Gives an event that says what a delta says, from the one that it is a part of."""

Mark = Callable[[bytes], RawEvent | None]
"""Gives what stands for an event that an answer has once; `None` for others."""


class Relaying:
    """Keeps the `raw` of deltas true: to hand on each of them is to say everything once.

    Args:
        retell: Of the API.
        mark: Of the API; `None` where an answer has no such events.
        is_new: Whether the reader has not got the event that a mark stands for.
        identities: Of the API.
    """

    __slots__ = ("_again", "_apart", "_identities", "_is_new", "_mark", "_retell")

    def __init__(
        self,
        retell: Retell,
        mark: Mark | None,
        is_new: Callable[[RawEvent], bool],
        identities: Identities | None,
    ) -> None:
        self._retell = retell
        self._mark = mark
        self._is_new = is_new
        self._identities = identities
        self._again = False
        self._apart = b""

    @property
    def renamed(self) -> Mapping[str, str]:
        """By the ids that the reader has been told, those that the server knows."""
        return {} if self._identities is None else self._identities.renamed

    def begin_again(self, last_number: str | None) -> None:
        """The reader has some of the answer that begins now.

        Args:
            last_number: Of the last event that he has; `None` where they have no numbers.
        """
        self._again = True
        if self._identities is not None:
            self._identities.begin_again(last_number)

    def part(self, sent: Delta, new: Delta | None, *, repeating: bool) -> Delta | None:
        """What of a delta goes to the reader, its `raw` with it.

        Args:
            sent: The delta.
            new: What of it the reader has not got, or `None`.
            repeating: Whether, before it, the answer was saying again what the reader has.
        """
        mark = self._mark(sent.raw) if self._mark is not None and sent.raw else None
        if mark is None:
            given = self._piece(sent, new, repeating=repeating)
        else:
            if self._identities is not None:
                self._identities.learn(sent.raw)
            given = self._once(sent, new, is_new=self._is_new(mark))
        if given is None or not self._again or self._identities is None or not given.raw:
            return given
        return msgspec.structs.replace(given, raw=self._identities.rename(given.raw))

    def event(self, event: RawEvent) -> RawEvent:
        """An event that no delta is made of, as it goes to the reader."""
        if not self._again or self._identities is None:
            return event
        return RawEvent(event.event, self._identities.rename(event.data))

    def _piece(self, sent: Delta, new: Delta | None, *, repeating: bool) -> Delta | None:
        if sent.raw:
            # All deltas of the event: `raw` on the first one says the others, too.
            self._apart = sent.raw if self._again and repeating else b""
        if new is None:
            return None
        if self._again and self._mark is None and not _adds(new):
            return None  # The role: SDKs would add it to the one that they have.
        if self._apart:
            return msgspec.structs.replace(new, raw=self._retell(self._apart, new))
        return new

    def _once(self, sent: Delta, new: Delta | None, *, is_new: bool) -> Delta | None:
        if is_new:
            if new is not None:
                return msgspec.structs.replace(new, raw=sent.raw)
            # Of a finish reason the reader is told later.
            return None if sent.finish_reason else Delta(choice=sent.choice, raw=sent.raw)
        return msgspec.structs.replace(new, raw=b"") if new is not None and _adds(new) else None


class Identities:
    """The ids and numbers in the events of one answer of the Responses API.

    A second answer has others. Its reader has been told those of the first, by which SDKs know
    what belongs together; the server, which may be asked about them, knows those of the last.
    """

    def __init__(self) -> None:
        self._told: dict[str, str] = {}  # By what has the id.
        self._names: dict[str, str] = {}  # By an id of the server's, what the reader was told.
        self._number: int | None = None

    @property
    def renamed(self) -> Mapping[str, str]:
        """See `Relaying`."""
        return {told: sent for sent, told in self._names.items()}

    def begin_again(self, last_number: str | None) -> None:
        """See `Relaying`."""
        self._names.clear()
        if last_number is not None:
            self._number = max(int(last_number), self._number or 0)

    def learn(self, data: bytes) -> None:
        """Look for ids in an event."""
        if text_of(_named(data).type) not in _INTRODUCING:
            return
        frame = _frame(data)
        if response := lenient_json.as_object(frame.get("response")):
            self._is_now("response", response.get("id"))
        if item := lenient_json.as_object(frame.get("item")):
            self._is_now(f"item {frame.get('output_index')}", item.get("id"))
            self._is_now(f"call {frame.get('output_index')}", item.get("call_id"))

    def _is_now(self, what: str, sent: object) -> None:
        if isinstance(sent, str) and sent:
            told = self._told.setdefault(what, sent)
            if told != sent:
                self._names[sent] = told

    def rename(self, data: bytes) -> bytes:
        """An event of a second answer as one of the first."""
        frame = _frame(data)
        if "sequence_number" in frame and self._number is not None:
            self._number += 1
            frame["sequence_number"] = self._number
        return msgspec.json.encode(with_names(frame, self._names))


_INTRODUCING = {
    "response.created", "response.queued", "response.in_progress", "response.output_item.added",
}  # fmt: skip


def with_names(value: object, names: Mapping[str, str]) -> object:
    """A JSON value with other names in place of some that it holds as texts.

    >>> with_names({"id": "msg_2", "text": "of msg_2"}, {"msg_2": "msg_1"})
    {'id': 'msg_1', 'text': 'of msg_2'}
    """
    match value:
        case str():
            return names.get(value, value)
        case dict():
            fields = cast("dict[str, object]", value)
            return {name: with_names(field, names) for name, field in fields.items()}
        case list():
            return [with_names(item, names) for item in cast("list[object]", value)]
        case _:
            return value


def _adds(delta: Delta) -> bool:
    """Whether it says something beside its `raw`."""
    return delta != Delta(choice=delta.choice, raw=delta.raw)


class _Named(msgspec.Struct, gc=False):
    type: object = None
    output_index: object = None
    content_index: object = None
    summary_index: object = None
    index: object = None
    delta: object = None


_decode_named = msgspec.json.Decoder(_Named).decode


def event_name(data: bytes) -> str | None:
    """The name of an event of the Responses or the Messages API: its `type`.

    >>> event_name(b'{"type":"message_stop"}')
    'message_stop'
    """
    return text_of(_named(data).type) or None


def responses_mark(data: bytes) -> RawEvent | None:
    """Stands for an event that an answer has once: for the same one in another answer, too.

    `None` for a piece of a text, and what else there may be many of.

    >>> responses_mark(b'{"type":"response.output_item.added","output_index":1,"item":{}}')
    RawEvent(event='response.output_item.added 1 None None', data=b'')
    >>> responses_mark(b'{"type":"response.output_text.delta","output_index":1,"delta":"a"}')
    """
    event = _named(data)
    kind = text_of(event.type)
    if not kind or kind.endswith(".delta"):
        return None
    place = f"{event.output_index} {event.content_index} {event.summary_index}"
    return RawEvent(f"{kind} {place}", b"")


def messages_mark(data: bytes) -> RawEvent | None:
    """As `responses_mark`; signatures and citations of a block are told apart by what they say."""
    event = _named(data)
    match text_of(event.type):
        case "message_start" | "content_block_start" | "content_block_stop" as kind:
            return RawEvent(f"{kind} {event.index}", b"")
        case "content_block_delta":
            delta = lenient_json.as_object(event.delta) or {}
            match text_of(delta.get("type")):
                case "signature_delta":
                    return RawEvent(f"signature_delta {event.index}", b"")
                case "citations_delta":
                    return RawEvent("citations_delta", data)
                case _:
                    return None
        case _:
            return None


def chat_retold(data: bytes, delta: Delta) -> bytes:
    """A chunk that says what `delta` does, with what `data` says of the completion.

    >>> whole = b'{"model":"m","choices":[{"delta":{"role":"assistant","content":"Once upon"}}]}'
    >>> b'"delta":{"content":" upon"}' in chat_retold(whole, Delta(text=" upon"))
    True
    """
    frame = _frame(data)
    fields: dict[str, object] = {}
    if delta.text:
        fields["content"] = delta.text
    if delta.reasoning:
        fields[_reasoning_field(frame, delta.choice)] = delta.reasoning
    if delta.tool_calls:
        fields["tool_calls"] = [_chat_call(call) for call in delta.tool_calls]
    if delta.reasoning_details:
        fields["reasoning_details"] = delta.reasoning_details
    choice = {"index": delta.choice, "delta": fields, "finish_reason": delta.finish_reason}
    return msgspec.json.encode(
        {
            **{name: frame[name] for name in _OF_THE_COMPLETION if name in frame},
            "object": "chat.completion.chunk",
            "choices": [choice] if fields or delta.finish_reason else [],
            **({"usage": delta.usage.raw} if delta.usage else {}),
        }
    )


_OF_THE_COMPLETION = ("id", "created", "model", "system_fingerprint", "service_tier", "provider")
_REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking", "analysis")


def _reasoning_field(frame: dict[str, object], choice: int) -> str:
    """In which of its fields the server sends reasoning."""
    for position, sent in enumerate(lenient_json.objects(frame.get("choices"))):
        if sent.get("index", position) == choice:
            fields = lenient_json.as_object(sent.get("delta")) or {}
            return next((name for name in _REASONING_FIELDS if fields.get(name)), "reasoning")
    return "reasoning_content"


def _chat_call(call: ToolCallDelta) -> dict[str, object]:
    function = {"name": call.name} if call.name else {}
    begin = {"id": call.id, "type": "function"} if call.id else {}
    return {"index": call.index, **begin, "function": {**function, "arguments": call.arguments}}


def responses_retold(data: bytes, delta: Delta) -> bytes:
    """The event with what `delta` says in place of its own; what is no piece stays whole."""
    frame = _frame(data)
    if not text_of(frame.get("type")).endswith(".delta"):
        return data
    return msgspec.json.encode({**frame, "delta": _piece(delta)})


def messages_retold(data: bytes, delta: Delta) -> bytes:
    """As `responses_retold`."""
    frame = _frame(data)
    sent = lenient_json.as_object(frame.get("delta")) or {}
    field = _PIECES.get(text_of(sent.get("type")))
    if field is None:
        return data
    return msgspec.json.encode({**frame, "delta": {**sent, field: _piece(delta)}})


_PIECES = {
    "text_delta": "text",
    "thinking_delta": "thinking",
    "input_json_delta": "partial_json",
}


def _piece(delta: Delta) -> str:
    """The one text of a delta of an API that says one thing in each event."""
    calls = "".join(call.arguments for call in delta.tool_calls)
    return delta.text or delta.reasoning or calls


def _named(data: bytes) -> _Named:
    try:
        return _decode_named(data)
    except lenient_json.MSGSPEC_ERRORS:
        pass
    frame = _frame(data)
    return _Named(**{name: frame.get(name) for name in _Named.__struct_fields__})


def _frame(data: bytes) -> dict[str, object]:
    try:
        return lenient_json.as_object(lenient_json.decode(data)) or {}
    except ValueError:
        return {}
