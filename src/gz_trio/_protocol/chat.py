"""Chat completions: what a server's events mean, in all the shapes that gateways pass on.

`ChatDecoder` makes deltas and errors of the events of one attempt, and knows whether the reply
was complete; `MessageBuilder` makes of deltas the message that the next turn sends back.
"""

from __future__ import annotations

import json
from collections.abc import Set as AbstractSet
from typing import Annotated, ClassVar, Literal

import msgspec

from . import lenient_json
from .decoding import DONE, Halves, Item, pair_surrogates, text_of, unreadable, usage_of
from .errors import GatewayError, error_from_frame
from .events import Delta, RawEvent, ToolCallDelta
from .sse import ServerSentEvent

# A warning in the shape of an error; the stream goes on (Gatewayz).
_WARNING = "stream_normalization_warning"


# The parts of a chunk that are read; msgspec skips the rest. Whatever servers send in several
# shapes is `object` and looked at later: one odd field must not cost the text beside it.
class _Fields(msgspec.Struct, gc=False):
    content: object = None
    refusal: object = None
    reasoning_content: object = None
    reasoning: object = None
    thinking: object = None
    analysis: object = None
    reasoning_details: object = None
    tool_calls: object = None


class _Choice(msgspec.Struct, gc=False):
    index: object = None
    delta: _Fields | None = None
    finish_reason: object = None


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: object = None
    error: object = None
    output: object = None
    type: object = None
    kind: object = msgspec.field(default=None, name="object")
    delta: object = None
    detail: object = None
    message: object = None
    tool_call_id: object = None
    name: object = None
    arguments: object = None


# A chunk that holds some more text of one choice, and nothing else that is read.
class _TextFields(msgspec.Struct, gc=False):
    content: Annotated[str, msgspec.Meta(min_length=1)]
    refusal: None = None
    reasoning_content: None = None
    reasoning: None = None
    thinking: None = None
    analysis: None = None
    reasoning_details: None = None
    tool_calls: None = None


class _TextChoice(msgspec.Struct, gc=False):
    delta: _TextFields
    index: Literal[0] = 0
    finish_reason: None = None


class _TextChunk(msgspec.Struct, gc=False):
    choices: tuple[_TextChoice]
    usage: None = None
    error: None = None


_NO_FIELDS = _Fields()
_decode_text_chunk = msgspec.json.Decoder(_TextChunk).decode
_decode_chunk = msgspec.json.Decoder(_Chunk).decode


class ChatDecoder:
    """Decodes the events of one attempt at one reply.

    >>> decoder = ChatDecoder()
    >>> chunk = b'{"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":"stop"}]}'
    >>> [delta.text for delta in decoder.decode(ServerSentEvent("message", chunk))]
    ['Hi']
    >>> decoder.complete
    True
    """

    __slots__ = (
        "_answered", "_calls", "_done", "_failed", "_first_finished", "_halves", "_others_finished",
    )  # fmt: skip

    def __init__(self) -> None:
        self._failed = False
        self._answered = False  # A delta came.
        self._done = False
        # Most replies are one text, which streams for long: all else is made when it comes.
        self._first_finished: bool | None = None  # The first choice; `None` before it began.
        self._others_finished: dict[int, bool] | None = None  # The others that began.
        self._calls: dict[int, _ToolCalls] | None = None
        self._halves: Halves | None = None

    @property
    def complete(self) -> bool:
        """Whether the reply is whole; if not when the stream ends, the stream was cut.

        It is if no error came, and every choice that began has a finish reason other than
        `error`, or `[DONE]` came after at least one delta.
        """
        if self._failed:
            return False
        if self._done and self._answered:
            return True
        finished = self._finished
        return bool(finished) and all(finished.values())

    @property
    def choices(self) -> AbstractSet[int]:
        """The choices that have begun."""
        return self._finished.keys()

    @property
    def _finished(self) -> dict[int, bool]:
        """For each choice that began."""
        first = {} if self._first_finished is None else {0: self._first_finished}
        return first | (self._others_finished or {})

    def _goes_on(self, choice: int, *, finished: bool) -> None:
        if choice == 0:
            self._first_finished = self._first_finished or finished
        else:
            others = self._others_finished = self._others_finished or {}
            others[choice] = others.get(choice, False) or finished

    @property
    def output(self) -> None:
        """See `Decoder`: `MessageBuilder` makes it of the deltas."""

    @property
    def response_id(self) -> None:
        """See `Decoder`: none is known to keep a stream by it."""

    @property
    def over(self) -> bool:
        """See `Decoder`: a server that keeps a stream may go on with it."""
        return False

    def take_up(self) -> None:
        """The attempt failed, and the same answer goes on in another response."""
        self._failed = self._done = False

    def decode_texts(self, events: list[bytes]) -> list[Delta] | None:
        """The deltas of events that each add text to the first choice, and nothing else.

        A shortcut for what nearly all events are, once the choice has begun: where it gives
        `None`, because one of them is another one, use `decode`.

        Args:
            events: The data of each, none of which has a name.
        """
        if self._halves:
            return None
        deltas: list[Delta] = []
        try:
            for data in events:
                text = _decode_text_chunk(data).choices[0].delta.content
                deltas.append(Delta(text=text, raw=data))
        except lenient_json.MSGSPEC_ERRORS:
            return None
        return deltas

    def decode(self, event: ServerSentEvent) -> tuple[Item, ...]:
        """What `event` means, in order. Never raises.

        - A `Delta` for each choice in a chunk. A chunk without choices (usage alone) is a delta
          of choice 0. A tool call's index is normalised: a call of its own has an index of its
          own, whatever the server numbers; its id and name come once. A refusal is text: it is
          what the model says. Broken UTF-8 is U+FFFD.
        - A `GatewayError` for an error frame, for a finish reason `error`, and (`ProtocolError`)
          for what is no JSON. The text beside it, if any, comes before it.
        - `DONE` for `[DONE]`.
        - A `RawEvent` for a warning, for a tool's result, and for what is unknown.
        - Nothing for an event without data.
        """
        data = event.data
        mend = bool(self._halves)
        try:
            chunk = _decode_chunk(data)
        except lenient_json.MSGSPEC_ERRORS:
            word = data.strip()
            if word == b"[DONE]":
                self._done = True
                return (DONE,)
            if not word:
                return ()
            try:
                chunk = msgspec.convert(lenient_json.decode(data), _Chunk)
            except msgspec.ValidationError:
                if event.event != "error":
                    return (RawEvent(event.event, data),)
                return (self._unreadable(event),)
            except ValueError:
                return (self._unreadable(event),)
            mend = True
        try:
            if chunk.choices is None or chunk.error or event.event == "error":
                return self._uncommon(event, chunk, mend)
            return self._deltas(event, chunk.choices, chunk.usage, mend)
        except RecursionError:  # Nested so deep that it can be read, but not written again.
            return (self._unreadable(event),)

    def decode_completion(self, body: bytes) -> tuple[Item, ...]:
        """What a whole `chat.completion` means, which servers send that ignore `stream`.

        The same as `decode`, as if it had come in one chunk; the first delta's `raw` is that
        chunk. A body that is neither a completion nor an error is a `ProtocolError`.
        """
        event = ServerSentEvent("message", body)
        try:
            frame = lenient_json.as_object(lenient_json.decode(body)) or {}
        except ValueError:
            return (self._unreadable(event),)
        choices = lenient_json.objects(frame.get("choices"))
        if not choices:
            items = self.decode(event)
            is_error = items and isinstance(items[-1], GatewayError)
            return items if is_error else (self._unreadable(event),)
        for choice in choices:
            message = lenient_json.as_object(choice.pop("message", None)) or {}
            for position, call in enumerate(lenient_json.objects(message.get("tool_calls"))):
                call.setdefault("index", position)
            choice["delta"] = message
        frame |= {"object": "chat.completion.chunk", "choices": choices}
        try:
            event = ServerSentEvent("message", json.dumps(frame).encode())
        except RecursionError:
            return (self._unreadable(event),)
        self._done = True
        return self.decode(event)

    def _deltas(
        self,
        event: ServerSentEvent,
        choices: list[_Choice],
        sent_usage: object,
        mend: bool,
        *,
        failed: bool = False,
    ) -> tuple[Item, ...]:
        """The deltas of a chunk, and the error behind them where it `failed` or says so."""
        usage = None if sent_usage is None else usage_of(sent_usage)
        raw = event.data
        deltas: list[Delta] = []
        for position, choice in enumerate(choices):
            index = choice.index if type(choice.index) is int else position
            fields = choice.delta or _NO_FIELDS
            text = fields.content
            reasoning = text_of(
                fields.reasoning_content or fields.reasoning or fields.thinking or fields.analysis
            )
            if not isinstance(text, str):
                text, thoughts = _parts(text)
                reasoning = reasoning or thoughts
            if fields.refusal:
                text += text_of(fields.refusal)
            finish_reason = text_of(choice.finish_reason) or None
            if finish_reason == "error":
                failed = True
                finish_reason = None
            self._goes_on(index, finished=finish_reason is not None)
            calls: tuple[ToolCallDelta, ...] = ()
            if fields.tool_calls:
                self._calls = self._calls or {}
                join = self._calls.setdefault(index, _ToolCalls()).join
                calls = tuple(map(join, lenient_json.objects(fields.tool_calls)))
            details: tuple[dict[str, object], ...] = ()
            if fields.reasoning_details:
                details = tuple(lenient_json.objects(fields.reasoning_details))
            if mend:
                halves = self._halves = self._halves or Halves()
                end = finish_reason is not None
                text = halves.mend((index, "text"), text, end=end)
                reasoning = halves.mend((index, "reasoning"), reasoning, end=end)
                calls = tuple(
                    msgspec.structs.replace(
                        call,
                        arguments=halves.mend((index, call.index), call.arguments, end=end),
                    )
                    for call in calls
                )
            deltas.append(
                Delta(
                    text=text,
                    reasoning=reasoning,
                    tool_calls=calls,
                    finish_reason=finish_reason,
                    usage=usage,
                    choice=index,
                    reasoning_details=details,
                    raw=raw,
                )
            )
            usage, raw = None, b""
        if not choices:
            deltas.append(Delta(usage=usage, raw=raw))
        self._answered = True
        return self._failure(event, deltas) if failed else tuple(deltas)

    def _uncommon(self, event: ServerSentEvent, chunk: _Chunk, mend: bool) -> tuple[Item, ...]:
        """Everything but a plain chunk."""
        error = lenient_json.as_object(chunk.error) or {}
        if chunk.type == "tool_result" or _WARNING in (chunk.type, error.get("type")):
            return (RawEvent(event.event, event.data),)
        plain = chunk.type is None and chunk.choices is None and chunk.output is None
        if (
            chunk.error
            or "error" in (event.event, chunk.type, chunk.kind)
            # What a response's body would be: `{"detail": ...}`, `{"message": ...}`.
            or (plain and (chunk.detail or isinstance(chunk.message, str)))
        ):
            return self._deltas(event, chunk.choices or [], chunk.usage, mend, failed=True)
        if chunk.type == "tool_call":
            call = {"id": chunk.tool_call_id, "name": chunk.name, "arguments": chunk.arguments}
            choices = [_Choice(0, _Fields(tool_calls=[call]))]
        elif chunk.type == "response.output_text.delta":
            choices = [_Choice(0, _Fields(content=chunk.delta))]
        elif any("delta" in choice for choice in lenient_json.objects(chunk.output)):
            try:
                choices = msgspec.convert(chunk.output, list[_Choice])
            except msgspec.ValidationError:
                return (RawEvent(event.event, event.data),)
        elif plain and chunk.usage:
            choices = []
        else:
            return (RawEvent(event.event, event.data),)
        return self._deltas(event, choices, chunk.usage, mend)

    def _failure(self, event: ServerSentEvent, deltas: list[Delta]) -> tuple[Item, ...]:
        self._failed = True
        try:
            frame = lenient_json.as_object(lenient_json.decode(event.data)) or {}
        except ValueError:  # Nested so deep that msgspec can skip it, but not read it.
            frame = {}
        error = error_from_frame(frame, body=event.data)
        deltas = [delta for delta in deltas if delta != Delta(choice=delta.choice, raw=delta.raw)]
        if not deltas:
            return (error,)
        # The text goes on to readers of `raw` without the failure, which may yet be mended.
        choices = lenient_json.objects(frame.get("choices"))
        for choice in choices:
            if choice.get("finish_reason") == "error":
                choice["finish_reason"] = None
        frame = {key: value for key, value in frame.items() if key != "error"}
        raws = (json.dumps(frame).encode(), *[b""] * len(deltas))
        kept = (
            msgspec.structs.replace(delta, raw=raw)
            for delta, raw in zip(deltas, raws, strict=False)
        )
        return (*kept, error)

    def _unreadable(self, event: ServerSentEvent) -> GatewayError:
        self._failed = True
        return unreadable(event)


class _ToolCalls:
    """Gives the pieces of one choice's tool calls an index that joins them, whatever is sent."""

    def __init__(self) -> None:
        self._ours: dict[int, int] = {}  # By the server's index, the latest call there.
        self._ids: list[str] = []  # By our index; empty where none came yet.
        self._names: list[str] = []
        self._last = 0

    def join(self, call: dict[str, object]) -> ToolCallDelta:
        function = lenient_json.as_object(call.get("function")) or call
        call_id, name = text_of(call.get("id")), text_of(function.get("name"))
        arguments = function.get("arguments")
        if not isinstance(arguments, str):
            arguments = "" if arguments is None else json.dumps(arguments)
        ours = self._last = self._index(call.get("index"), call_id)
        new_id = call_id if not self._ids[ours] else ""
        new_name = name if not self._names[ours] else ""
        self._ids[ours] = self._ids[ours] or call_id
        self._names[ours] = self._names[ours] or name
        return ToolCallDelta(ours, new_id or None, new_name or None, arguments)

    def _index(self, index: object, call_id: str) -> int:
        known = self._ids.index(call_id) if call_id and call_id in self._ids else None
        if isinstance(index, int):
            ours = self._ours.get(index)
            if ours is None:
                ours = self._new()
            elif call_id and self._ids[ours] not in ("", call_id):
                # Gemini starts its indices anew: another id is another call.
                ours = self._new() if known is None else known
            self._ours[index] = ours
            return ours
        if known is not None:
            return known
        return self._new() if call_id or not self._ids else self._last

    def _new(self) -> int:
        self._ids.append("")
        self._names.append("")
        return len(self._ids) - 1


def _parts(content: object) -> tuple[str, str]:
    """Text and reasoning of content that comes in parts (a list, or one object)."""
    text = reasoning = ""
    one = lenient_json.as_object(content)
    for part in lenient_json.objects(content) if one is None else [one]:
        thoughts = part.get("thinking")
        if thoughts is not None:
            reasoning += thoughts if isinstance(thoughts, str) else _parts(thoughts)[0]
        else:
            text += text_of(part.get("text"))
    return text, reasoning


class MessageBuilder:
    """Makes the assistant's message of choice 0, as the next turn sends it back.

    >>> builder = MessageBuilder()
    >>> for text in ("Hel", "lo"):
    ...     builder.feed(Delta(text=text))
    >>> builder.message
    {'role': 'assistant', 'content': 'Hello'}
    """

    __slots__ = ("_calls", "_details", "texts")

    def __init__(self) -> None:
        self.texts: list[str] = []
        """The pieces of the text so far, to which more text may simply be added."""
        self._calls: dict[int, _Call] | None = None
        self._details: list[_Detail] | None = None

    def clear(self) -> None:
        """Begins anew."""
        self.texts.clear()
        self._calls = self._details = None

    def feed(self, delta: Delta) -> None:
        """Adds what `delta` holds, if it is of choice 0."""
        if delta.choice != 0:
            return
        if delta.text:
            self.texts.append(delta.text)
        for piece in delta.tool_calls:
            self._calls = self._calls or {}
            self._calls.setdefault(piece.index, _Call()).feed(piece)
        for detail in delta.reasoning_details:
            self._details = self._details or []
            if not self._details or not self._details[-1].feed(detail):
                self._details.append(_Detail(detail))

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self.texts)

    @property
    def message(self) -> dict[str, object]:
        """The message so far: `role`, `content`, and `tool_calls`, `reasoning_details` if any.

        `content` is `None` where there are tool calls and no text. A call whose server gave it
        no id has one of ours. Pieces of one reasoning detail are joined, as OpenRouter wants
        them back; all else in them is as the server sent it.
        """
        text = self.text
        message: dict[str, object] = {"role": "assistant", "content": text}
        if self._calls:
            message["content"] = text or None
            message["tool_calls"] = [
                call.whole(index) for index, call in sorted(self._calls.items())
            ]
        if self._details:
            message["reasoning_details"] = [detail.whole() for detail in self._details]
        return message


class _Call:
    def __init__(self) -> None:
        self._id = self._name = ""
        self._arguments: list[str] = []

    def feed(self, piece: ToolCallDelta) -> None:
        self._id = self._id or piece.id or ""
        self._name = self._name or piece.name or ""
        self._arguments.append(piece.arguments)

    def whole(self, index: int) -> dict[str, object]:
        # A call without arguments comes back as an empty object: servers parse the string.
        arguments = "".join(self._arguments)
        return {
            "id": self._id or f"call_{index}",
            "type": "function",
            "function": {
                "name": self._name,
                "arguments": "{}" if arguments.isspace() or not arguments else arguments,
            },
        }


class _Detail:
    """One reasoning detail; OpenRouter streams its text in pieces, the signature with the last."""

    _GROWS: ClassVar = {"reasoning.text": "text", "reasoning.summary": "summary"}

    def __init__(self, first: dict[str, object]) -> None:
        self._fields = dict(first)
        self._growing = self._GROWS.get(text_of(first.get("type")), "")
        self._pieces = [text_of(first.get(self._growing))]

    def feed(self, piece: dict[str, object]) -> bool:
        """Joins `piece`, or says that it is not of this detail."""
        ids = {text_of(self._fields.get("id")), text_of(piece.get("id"))} - {""}
        same = all(piece.get(key) == self._fields.get(key) for key in ("type", "index"))
        if not self._growing or not same or len(ids) > 1:
            return False
        self._pieces.append(text_of(piece.get(self._growing)))
        self._fields |= {key: value for key, value in piece.items() if value not in (None, "")}
        return True

    def whole(self) -> dict[str, object]:
        text = pair_surrogates("".join(self._pieces))
        return self._fields | ({self._growing: text} if text else {})
