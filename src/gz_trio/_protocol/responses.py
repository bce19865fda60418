"""The Responses API: what a server's events mean.

An answer is a list of output items, each with parts; events add to them, by the place of the item
(`output_index`) and of the part in it. The events that end a part, an item and the answer have it
whole once more, and some servers send only those: so each kind of text is taken from the kind of
event that had some of it first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Annotated, Literal

import msgspec

from . import lenient_json
from .decoding import DONE, Halves, Item, text_of, unreadable, usage_of
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

_Kind = Literal["text", "refusal", "reasoning", "summary", "arguments"]
_Teller = Literal["piece", "part", "item", "answer"]
"""What has some text: the events that bring a piece of it, end a part or an item, or the answer."""


def identified(event: ServerSentEvent) -> ServerSentEvent:
    """`event` with the number that the server gave it as its id; without one, it has no id.

    >>> identified(ServerSentEvent("message", b'{"sequence_number":4}')).id
    '4'
    """
    try:
        number = str(_decode_number(event.data).sequence_number)
    except lenient_json.MSGSPEC_ERRORS:
        number = None
    return event if event.id == number else msgspec.structs.replace(event, id=number)


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
        "_calls",
        "_complete",
        "_failed",
        "_halves",
        "_items",
        "_tellers",
        "output",
        "over",
        "response_id",
    )  # fmt: skip

    def __init__(self) -> None:
        self._complete = False
        self._failed = False
        self._calls: dict[object, int] = {}  # Ours, by the item's place.
        self._tellers: dict[_Kind, _Teller] = {}  # What each kind of text is taken from.
        self._items: dict[int, dict[str, object]] = {}
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
        data = event.data
        try:
            frame = _decode_event(data)
        except lenient_json.MSGSPEC_ERRORS:
            word = data.strip()
            if word == b"[DONE]":
                return (DONE,)
            if not word:
                return ()
            try:
                frame = msgspec.convert(lenient_json.decode(data), _Event)
            except msgspec.ValidationError:
                return (RawEvent(event.event, data),)
            except ValueError:
                self._failed = True
                return (unreadable(event),)
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
                return (RawEvent(event.event if event.event != "message" else kind, data),)

    # Text

    def _text(
        self, kind: _Kind, frame: _Event, text: object, raw: bytes, *, done: bool = False
    ) -> Delta:
        """More of a part's text, or once it is done all of it."""
        index = frame.summary_index if kind == "summary" else frame.content_index
        more = self._told(
            kind, "part" if done else "piece", (_place(frame), index), text, done=done
        )
        if kind in ("text", "refusal"):
            return Delta(text=more, raw=raw)
        return Delta(reasoning=more, raw=raw)

    def _told(
        self, kind: _Kind, teller: _Teller, part: tuple[object, object], text: object, *, done: bool
    ) -> str:
        """What of `text` is to be told."""
        new = text_of(text)
        if new and self._tellers.setdefault(kind, teller) != teller:
            new = ""
        return self._halves.mend((kind, *part), new, end=done)

    # Tool calls

    def _arguments(
        self, frame: _Event, arguments: object, raw: bytes, *, done: bool = False
    ) -> Delta:
        teller: _Teller = "part" if done else "piece"
        calls = self._call(_place(frame), {}, arguments, teller, done=done)
        return Delta(tool_calls=calls, raw=raw)

    def _call(
        self,
        place: object,
        item: Mapping[str, object],
        arguments: object,
        teller: _Teller,
        *,
        done: bool,
    ) -> tuple[ToolCallDelta, ...]:
        """A call's beginning, and more of its arguments."""
        more = self._told("arguments", teller, (place, 0), arguments, done=done)
        index = self._calls.get(place)
        if index is not None:
            return (ToolCallDelta(index, arguments=more),) if more else ()
        index = self._calls[place] = len(self._calls)
        call_id = text_of(item.get("call_id")) or text_of(item.get("id"))
        return (ToolCallDelta(index, call_id or None, text_of(item.get("name")) or None, more),)

    # Items, and the end

    def _item(self, frame: _Event, raw: bytes, *, done: bool) -> Delta:
        """An item begins, or is done."""
        item = lenient_json.as_object(frame.item) or {}
        place = _place(frame)
        if done:
            if isinstance(place, int):
                self._items[place] = item
            return self._whole([(place, item)], "item", raw)
        if item.get("type") in CALLS:
            return Delta(tool_calls=self._call(place, item, "", "piece", done=False), raw=raw)
        return Delta(raw=raw)

    def _whole(
        self, items: list[tuple[object, dict[str, object]]], teller: _Teller, raw: bytes
    ) -> Delta:
        """Items that are there whole."""
        text = reasoning = ""
        calls: list[ToolCallDelta] = []
        for place, item in items:
            field = CALLS.get(text_of(item.get("type")))
            if field is not None:
                calls += self._call(place, item, item.get(field), teller, done=True)
            for kind, index, whole in _texts(item):
                more = self._told(kind, teller, (place, index), whole, done=True)
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
        # Which of the calls that came are these, a server's numbers may not say.
        items = [item for item in output if not (self._calls and item.get("type") in CALLS)]
        delta = self._whole([*enumerate(items)], "answer", event.data)
        self.output = output or [item for _, item in sorted(self._items.items())]
        finish_reason = "tool_calls" if self._calls else "stop"
        if incomplete:
            details = lenient_json.as_object(response.get("incomplete_details")) or {}
            reason = text_of(details.get("reason")) or "incomplete"
            finish_reason = _INCOMPLETE.get(reason, reason)
        return (
            msgspec.structs.replace(
                delta, finish_reason=finish_reason, usage=usage_of(response.get("usage"))
            ),
            DONE,
        )

    # Failures

    def _error(self, data: bytes) -> GatewayError:
        self._failed = True
        try:
            frame = lenient_json.as_object(lenient_json.decode(data)) or {}
        except ValueError:
            frame = {}
        return error_from_frame(frame, body=data)

    def _failure(self, data: bytes, response: dict[str, object]) -> GatewayError:
        self._failed = self.over = True
        sent = lenient_json.as_object(response.get("error")) or {}
        error = error_from_frame({"error": sent}, body=data)
        if sent.get("code") not in _PASSING and not isinstance(error, AuthenticationError):
            error.retryable = False
        return error


def _place(frame: _Event) -> object:
    """What tells the items of an answer apart."""
    if isinstance(frame.output_index, int):
        return frame.output_index
    item = lenient_json.as_object(frame.item) or {}
    return text_of(frame.item_id) or text_of(item.get("id")) or 0


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
