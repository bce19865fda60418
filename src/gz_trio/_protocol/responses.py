"""The Responses API: what a server's events mean.

An answer is a list of output items, each with parts; events add to them, by the place of the item
(`output_index`) and of the part in it. The events that end a part, an item and the answer have it
whole once more, and some servers send only those: so of a whole is told what had not come in
pieces.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Annotated, Literal, get_args

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
from .errors import AuthenticationError, GatewayError, error_from_frame
from .events import Delta, RawEvent, ToolCallDelta
from .sse import ServerSentEvent

CALLS = {"function_call": "arguments", "custom_tool_call": "input"}
"""The kinds of output item that are calls of the caller's tools, and where their input is."""

# Why an answer is incomplete, in the words of chat completions; other reasons as they come.
_INCOMPLETE = {"max_output_tokens": "length"}

# Errors of a response that may pass; others are of the request.
_PASSING = {"server_error", "rate_limit_exceeded"}

# Known, and nothing in them that is not in another event.
_SAYS_NOTHING = {
    "response.created",
    "response.queued",
    "response.in_progress",
    "response.content_part.added",
    "response.reasoning_summary_part.added",
    "response.reasoning_summary_part.done",
}


# Whatever servers send in several shapes is `object` and looked at later.
class _Event(msgspec.Struct, gc=False):
    type: object = None
    delta: object = None
    text: object = None
    refusal: object = None
    arguments: object = None
    input: object = None
    part: object = None
    item: object = None
    item_id: object = None
    output_index: object = None
    content_index: object = None
    summary_index: object = None
    response: object = None
    error: object = None
    detail: object = None
    message: object = None


class _Numbered(msgspec.Struct, gc=False):
    sequence_number: Annotated[int, msgspec.Meta(ge=0)]


_decode_event = msgspec.json.Decoder(_Event).decode
_decode_number = msgspec.json.Decoder(_Numbered).decode

_Kind = Literal["text", "refusal", "reasoning", "summary"]
_KINDS: tuple[_Kind, ...] = get_args(_Kind)
_Part = tuple[_Kind, object, int]
"""What it holds, and the places of its item and of itself in that."""


def identified(event: ServerSentEvent) -> ServerSentEvent:
    """`event` with the number that the server gave it as its id; without one, it has no id.

    >>> identified(ServerSentEvent("message", b'{"sequence_number":4}')).id
    '4'
    """
    try:
        number: str | None = str(_decode_number(event.data).sequence_number)
    except lenient_json.MSGSPEC_ERRORS:
        number = _number_of(event.data)
    return event if event.id == number else msgspec.structs.replace(event, id=number)


def _number_of(data: bytes) -> str | None:
    try:
        frame = lenient_json.as_object(lenient_json.decode(data)) or {}
    except ValueError:
        return None
    number = frame.get("sequence_number")
    return str(number) if type(number) is int and number >= 0 else None


class ResponsesDecoder:
    """Decodes the events of one attempt at one reply; see `Decoder`.

    - Text and refusals are text; reasoning, and summaries of it, are reasoning.
    - Calls of the caller's functions and custom tools are tool calls, numbered from 0.
    - The end has a finish reason in the words of chat completions: `"stop"`, `"tool_calls"`,
      `"length"` for `max_output_tokens`, `"content_filter"`, or what the server said.

    >>> decoder = ResponsesDecoder()
    >>> event = b'{"type":"response.output_text.delta","output_index":0,"delta":"Hi"}'
    >>> [delta.text for delta in decoder.decode(ServerSentEvent("message", event))]
    ['Hi']
    >>> decoder.complete
    False
    """

    __slots__ = (
        "_call_ids",
        "_calls",
        "_complete",
        "_failed",
        "_halves",
        "_items",
        "_named",
        "_parts",
        "_places",
        "_told_arguments",
        "_told_texts",
        "output",
        "over",
        "response_id",
    )  # fmt: skip

    def __init__(self) -> None:
        self._complete = False
        self._failed = False
        self._places: dict[str, object] = {}  # Of items, by their ids.
        self._parts: set[_Part] = set()  # Of which some characters came.
        self._told_texts: dict[_Kind, list[str]] = {}
        # Ours, by the item's place, and by the call's id.
        self._calls: dict[object, int] = {}
        self._call_ids: dict[str, int] = {}
        self._named: set[int] = set()  # Calls whose id and name were told.
        self._told_arguments: set[int] = set()
        self._items: list[tuple[int, dict[str, object]]] = []
        self._halves = Halves()
        self.output: list[dict[str, object]] | None = None
        """See `Decoder`: the output items, once all are there."""
        self.response_id: str | None = None
        """See `Decoder`."""
        self.over = False
        """See `Decoder`."""

    @property
    def complete(self) -> bool:
        """See `Decoder`: `response.completed` or `response.incomplete` came."""
        return self._complete and not self._failed

    @property
    def choices(self) -> AbstractSet[int]:
        """See `Decoder`: there is one."""
        return {0}

    def take_up(self) -> None:
        """See `Decoder`."""
        self._failed = False

    def decode_texts(self, events: list[bytes]) -> None:
        """See `Decoder`: there is no shortcut, for each event has a name and a number."""

    def decode(self, event: ServerSentEvent) -> tuple[Item, ...]:
        """See `Decoder`."""
        data, frame = event.data, read_event(event, _decode_event, _Event)
        if isinstance(frame, tuple):
            self._failed = self._failed or any(isinstance(item, GatewayError) for item in frame)
            return frame
        kind = text_of(frame.type)
        if "error" in (kind, event.event):
            return (self._error(data),)
        if not kind:
            # What the body of a response would be: `{"error": ...}`, `{"detail": ...}`.
            failed = frame.error or frame.detail or frame.message
            return (self._error(data) if failed else RawEvent(event.event, data),)
        return self._decode(event, kind, frame)

    def decode_completion(self, body: bytes) -> tuple[Item, ...]:
        """See `Decoder`: a `response` object, whose status says how it ended."""
        event = ServerSentEvent("message", body)
        try:
            response = lenient_json.as_object(lenient_json.decode(body)) or {}
        except ValueError:
            response = {}
        status = response.get("status")
        if status in ("failed", "cancelled"):
            return (self._failure(body, response),)
        if status in ("completed", "incomplete"):
            return self._end(event, response, incomplete=status == "incomplete")
        self._failed = True
        if response.get("error") or response.get("detail"):
            return (error_from_frame(response, body=body),)
        return (unreadable(event),)

    def _decode(self, event: ServerSentEvent, kind: str, frame: _Event) -> tuple[Item, ...]:
        data = event.data
        match kind:
            case "response.output_text.delta":
                return (self._text("text", frame, frame.delta, data),)
            case "response.output_text.done":
                return (self._text("text", frame, frame.text, data, done=True),)
            case "response.refusal.delta":
                return (self._text("refusal", frame, frame.delta, data),)
            case "response.refusal.done":
                return (self._text("refusal", frame, frame.refusal, data, done=True),)
            case "response.reasoning_text.delta":
                return (self._text("reasoning", frame, frame.delta, data),)
            case "response.reasoning_text.done":
                return (self._text("reasoning", frame, frame.text, data, done=True),)
            case "response.reasoning_summary_text.delta":
                return (self._text("summary", frame, frame.delta, data),)
            case "response.reasoning_summary_text.done":
                return (self._text("summary", frame, frame.text, data, done=True),)
            case "response.function_call_arguments.delta" | "response.custom_tool_call_input.delta":
                return (self._arguments(frame, frame.delta, data),)
            case "response.function_call_arguments.done":
                return (self._arguments(frame, frame.arguments, data, done=True),)
            case "response.custom_tool_call_input.done":
                return (self._arguments(frame, frame.input, data, done=True),)
            case "response.output_item.added" | "response.output_item.done":
                return (self._item(frame, data, done=kind.endswith("done")),)
            case "response.completed" | "response.incomplete":
                response = lenient_json.as_object(frame.response) or {}
                return self._end(event, response, incomplete=kind == "response.incomplete")
            case "response.failed" | "response.cancelled":
                return (self._failure(data, lenient_json.as_object(frame.response) or {}),)
            case "response.content_part.done":
                return (Delta(raw=data),)  # What it has was told when its text was done.
            case _ if kind in _SAYS_NOTHING:
                response = lenient_json.as_object(frame.response) or {}
                self.response_id = text_of(response.get("id")) or self.response_id
                return (Delta(raw=data),)
            case _:
                return (RawEvent(kind if event.event == "message" else event.event, data),)

    # Text

    def _text(
        self, kind: _Kind, frame: _Event, text: object, raw: bytes, *, done: bool = False
    ) -> Delta:
        """More of a part's text, or once it is done all of it."""
        index = frame.summary_index if kind == "summary" else frame.content_index
        place = self._place(frame)
        part = (kind, place, index if isinstance(index, int) else 0)
        told_before = self._told_so_far(kind) if done and place is None else ""
        more = self._told(part, text_of(text), whole=done, told_before=told_before)
        if kind in ("text", "refusal"):
            return Delta(text=more, raw=raw)
        return Delta(reasoning=more, raw=raw)

    def _told(self, part: _Part, text: str, *, whole: bool, told_before: str = "") -> str:
        """What of `text` is to be told: more of a part, or the whole of it.

        Args:
            part: Which one.
            text: Its text.
            whole: Whether that is all of it.
            told_before: What was told of its kind, where the server does not say which part it is:
                then it is known by what it says.
        """
        if whole and (part in self._parts or text in told_before):
            text = ""
        if text:
            self._parts.add(part)
            self._told_texts.setdefault(part[0], []).append(text)
        return self._halves.mend(part, text, end=whole)

    def _told_so_far(self, kind: _Kind) -> str:
        return pair_surrogates("".join(self._told_texts.get(kind, ())))

    # Tool calls

    def _arguments(
        self, frame: _Event, arguments: object, raw: bytes, *, done: bool = False
    ) -> Delta:
        place = self._place(frame)
        index = self._calls.setdefault(place, len(self._calls))
        begins = index not in self._told_arguments and index not in self._named
        more = self._told_of_call(index, text_of(arguments), whole=done)
        calls = (ToolCallDelta(index, arguments=more),) if more or begins else ()
        return Delta(tool_calls=calls, raw=raw)

    def _told_of_call(self, index: int, arguments: str, *, whole: bool) -> str:
        if whole and index in self._told_arguments:
            arguments = ""
        if arguments:
            self._told_arguments.add(index)
        return self._halves.mend(("arguments", index), arguments, end=whole)

    def _call(
        self, place: object, item: Mapping[str, object], *, whole: bool
    ) -> tuple[ToolCallDelta, ...]:
        """A call's id and name, and of a whole its arguments, as far as they did not come."""
        call_id = text_of(item.get("call_id")) or text_of(item.get("id"))
        index = self._call_ids.get(call_id, self._calls.get(place, len(self._calls)))
        self._calls.setdefault(place, index)
        self._call_ids.setdefault(call_id, index)
        more = ""
        if whole:
            field = CALLS[text_of(item.get("type"))]
            more = self._told_of_call(index, text_of(item.get(field)), whole=True)
        if index in self._named:
            return (ToolCallDelta(index, arguments=more),) if more else ()
        self._named.add(index)
        return (ToolCallDelta(index, call_id or None, text_of(item.get("name")) or None, more),)

    # Items, and the end

    def _place(self, frame: _Event) -> object:
        """What tells the items of an answer apart; `None` where nothing does."""
        item = lenient_json.as_object(frame.item) or {}
        item_id = text_of(frame.item_id) or text_of(item.get("id"))
        if isinstance(frame.output_index, int):
            return (
                self._places.setdefault(item_id, frame.output_index)
                if item_id
                else (frame.output_index)
            )
        return self._places.setdefault(item_id, item_id) if item_id else None

    def _item(self, frame: _Event, raw: bytes, *, done: bool) -> Delta:
        """An item begins, or is done."""
        item = lenient_json.as_object(frame.item) or {}
        place = self._place(frame)
        if done:
            self._items.append((place if isinstance(place, int) else len(self._items), item))
            return self._whole([(place, place is not None, item)], raw)
        if text_of(item.get("type")) in CALLS:
            return Delta(tool_calls=self._call(place, item, whole=False), raw=raw)
        return Delta(raw=raw)

    def _whole(self, items: Iterable[tuple[object, bool, dict[str, object]]], raw: bytes) -> Delta:
        """What did not come of items that are there whole.

        Args:
            items: The place of each, whether the server has named it, and itself.
            raw: Of the delta.
        """
        text = reasoning = ""
        calls: list[ToolCallDelta] = []
        told_before = {kind: self._told_so_far(kind) for kind in _KINDS}
        for place, named, item in items:
            if text_of(item.get("type")) in CALLS:
                calls += self._call(place, item, whole=True)
            for kind, index, whole in _texts(item):
                told = "" if named else told_before[kind]
                more = self._told((kind, place, index), whole, whole=True, told_before=told)
                if kind in ("text", "refusal"):
                    text += more
                else:
                    reasoning += more
        return Delta(text=text, reasoning=reasoning, tool_calls=tuple(calls), raw=raw)

    def _end(
        self, event: ServerSentEvent, response: dict[str, object], *, incomplete: bool
    ) -> tuple[Item, ...]:
        self._complete = True
        self.response_id = text_of(response.get("id")) or self.response_id
        output = lenient_json.objects(response.get("output"))
        ids = [text_of(item.get("id")) for item in output]
        named = [item_id in self._places for item_id in ids]
        places = [self._places.get(item_id, place) for place, item_id in enumerate(ids)]
        delta = self._whole(zip(places, named, output, strict=True), event.data)
        done = [item for _, item in sorted(self._items, key=lambda placed: placed[0])]
        self.output = [mended(item) for item in output or done]
        finish_reason = "tool_calls" if self._calls else "stop"
        if incomplete:
            details = lenient_json.as_object(response.get("incomplete_details")) or {}
            reason = text_of(details.get("reason")) or "incomplete"
            finish_reason = _INCOMPLETE.get(reason, reason)
        return (
            msgspec.structs.replace(
                delta,
                text=delta.text + self._halves.rest("text", "refusal"),
                reasoning=delta.reasoning + self._halves.rest("reasoning", "summary"),
                finish_reason=finish_reason,
                usage=usage_of(response.get("usage")),
            ),
            DONE,
        )

    # Failures

    def _error(self, data: bytes) -> GatewayError:
        self._failed = True
        return error_in(data)

    def _failure(self, data: bytes, response: dict[str, object]) -> GatewayError:
        self._failed = self.over = True
        sent = lenient_json.as_object(response.get("error")) or {}
        error = error_from_frame({"error": sent}, body=data)
        if text_of(sent.get("code")) not in _PASSING and not isinstance(error, AuthenticationError):
            error.retryable = False
        return error


def _texts(item: dict[str, object]) -> Iterator[tuple[_Kind, int, str]]:
    """The texts in a whole item: what each is, its place, and itself."""
    for index, part in enumerate(lenient_json.objects(item.get("content"))):
        match part.get("type"):
            case "output_text":
                yield "text", index, text_of(part.get("text"))
            case "refusal":
                yield "refusal", index, text_of(part.get("refusal"))
            case "reasoning_text":
                yield "reasoning", index, text_of(part.get("text"))
            case _:
                pass
    for index, part in enumerate(lenient_json.objects(item.get("summary"))):
        yield "summary", index, text_of(part.get("text"))
