"""What the fake gateway answers, and its shape as chat-completions chunks."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypeAlias, cast

import msgspec

from .._protocol.events import Delta
from ._faults import ErrorFrame
from ._formats import frame, meaning

Shape: TypeAlias = Literal["openai", "fireworks", "responses"]
"""Whose shape the chunks have; all three are seen behind one gateway."""

# What breaks clients: characters of two to four bytes in UTF-8, emoji of several code points,
# a combining accent, line and paragraph separators and NEL (ends of a line to `str.splitlines`,
# not to an event stream), a newline, quotes, and text that looks like the protocol itself.
_WORDS = (
    " the",
    " stream",
    " goes",
    " on",
    " and",
    " a",
    " key",
    " is",
    " new",
    ".",
    ",",
    " naïve",
    " Größe",
    " être",
    " e\u0301te\u0301",
    " Ελλάδα",
    " привет",
    "日本語",
    "你好",
    " नमस्ते",
    " 🦊",
    " 👩\u200d👩\u200d👧",
    " 🇪🇺",
    " \U0001d4afrio",
    "\n",
    "\n\n",
    " \u2028",
    " \u2029",
    " \u0085",
    ' "quoted"',
    " back\\slash",
    " data: [DONE]",
    " {}",
    " \u00a0",
)

DONE = b"data: [DONE]\n\n"


def default_answer(body: Mapping[str, object], said: object, tokens: int) -> list[Delta]:
    """Text that follows from what was said alone: other messages, another text."""
    messages = msgspec.json.encode(said, order="deterministic")
    choices = body.get("n")
    choices = choices if isinstance(choices, int) and choices > 0 else 1
    columns: list[list[str]] = []
    for choice in range(choices):
        digest = hashlib.sha256(b"%d " % choice + messages).hexdigest()
        pick = random.Random(digest)
        columns.append([digest[:8], *pick.choices(_WORDS, k=max(tokens - 1, 0))][:tokens])
    return [
        Delta(text=column[position], choice=choice)
        for position in range(tokens)
        for choice, column in enumerate(columns)
    ]


def split(
    answer: Sequence[str | Delta], body: Mapping[str, object]
) -> tuple[list[Delta], list[Delta]]:
    """The answer's tokens, and the deltas after them that give each choice its finish reason.

    No choice has more tokens than the request's `max_tokens`. A choice to which `answer` gave a
    finish reason itself needs no delta at the end.
    """
    limits = ("max_completion_tokens", "max_tokens", "max_output_tokens")
    limit = next((body[name] for name in limits if name in body), None)
    tokens: list[Delta] = []
    counts: dict[int, int] = {}
    reasons: dict[int, str | None] = {}
    for piece in answer:
        delta = Delta(text=piece) if isinstance(piece, str) else piece
        count = counts[delta.choice] = counts.get(delta.choice, 0) + 1
        if isinstance(limit, int) and count > limit:
            reasons[delta.choice] = "length"
            continue
        if delta.finish_reason is not None:
            reasons[delta.choice] = None
        elif delta.tool_calls:
            reasons.setdefault(delta.choice, "tool_calls")
        tokens.append(delta)
    endings = [
        Delta(choice=choice, finish_reason=reason)
        for choice in sorted(counts or {0: 0})
        if (reason := reasons.get(choice, "stop")) is not None
    ]
    return tokens, endings


def one_after_another(tokens: Sequence[Delta]) -> list[Delta]:
    """The tokens, those of each tool call together: but for chat's, no API has calls interleave."""
    ordered: list[Delta] = []
    for delta in tokens:
        indices = {call.index for call in delta.tool_calls}
        own = [
            position
            for position, other in enumerate(ordered, 1)
            if indices & {call.index for call in other.tool_calls}
        ]
        ordered.insert(own[-1] if own else len(ordered), delta)
    return ordered


def text_of(deltas: Iterable[Delta], choice: int = 0) -> str:
    """The text of one choice, joined."""
    return "".join(delta.text for delta in deltas if delta.choice == choice)


def marked(delta: Delta, mark: str) -> Delta:
    """The delta, its text with a mark before it."""
    if not mark or not (delta.text or delta.reasoning):
        return delta
    return msgspec.structs.replace(
        delta,
        text=mark + delta.text if delta.text else "",
        reasoning=mark + delta.reasoning if delta.reasoning else "",
    )


class ChatFormat:
    """See `Format`: chat-completions chunks, whoever's shape they have."""

    goodbye = DONE

    def __init__(
        self, number: int, body: Mapping[str, object], prompt_tokens: int, shape: Shape
    ) -> None:
        options = body.get("stream_options")
        self.include_usage = isinstance(options, dict) and bool(
            msgspec.convert(options, dict[str, object]).get("include_usage")
        )
        self.id = f"chatcmpl-{number}"
        self.request_id = f"req_{number}"
        self.model = str(body.get("model"))
        self.created = int(time.time())
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = 0
        self._shape = shape
        self._begun: set[int] = set()

    def events(self, delta: Delta) -> list[bytes]:
        """See `Format`: a choice's first one comes after a chunk with the role."""
        if delta.raw:
            return [frame(delta.raw)]
        events: list[bytes] = []
        if delta.choice not in self._begun:
            self._begun.add(delta.choice)
            events.append(self._chunk(delta.choice, {"role": "assistant", "content": ""}, None))
        content: dict[str, object] = {}
        if delta.text:
            content["content"] = delta.text
        if delta.reasoning:
            content["reasoning_content"] = delta.reasoning
        if delta.reasoning_details:
            content["reasoning_details"] = delta.reasoning_details
        if delta.tool_calls:
            content["tool_calls"] = [
                {
                    "index": call.index,
                    **({"id": call.id, "type": "function"} if call.id is not None else {}),
                    "function": {
                        **({"name": call.name} if call.name is not None else {}),
                        "arguments": call.arguments,
                    },
                }
                for call in delta.tool_calls
            ]
        events.append(self._chunk(delta.choice, content, delta.finish_reason))
        return [event for event in events if event]  # not every shape has one for every delta

    def end(self, endings: Sequence[Delta]) -> list[bytes]:
        """See `Format`; usage too, where the request asked for it."""
        events = [event for delta in endings for event in self.events(delta)]
        if self.include_usage:
            chunk: dict[str, object] = {"choices": [], "usage": self._usage()}
            events.append(frame(self._envelope() | chunk))
        return [*events, DONE]

    def finish(self, finish_reason: str) -> bytes:
        """See `Format`: the chunk that ends choice 0."""
        return self._chunk(0, {}, finish_reason)

    def error(self, fault: ErrorFrame) -> bytes:
        """See `Format`."""
        if fault.data is not None:
            return frame(fault.data)
        status, message = meaning(fault)
        if fault.dialect == "openrouter":
            choice = {"index": 0, "delta": {"content": ""}, "finish_reason": "error"}
            code = status if fault.code is None else fault.code
            error = {"code": code, "message": message, "metadata": {"error_type": fault.type}}
            return frame({**self._envelope(), "error": error, "choices": [choice]})
        code = str(status) if fault.code is None else fault.code
        return self._error(fault.type, message, code, status)

    def warning(self, message: str) -> bytes:
        """See `Format`: only its type tells it from an error."""
        return self._error("stream_normalization_warning", message, None, None)

    def _error(self, type: str, message: str, code: str | int | None, status: int | None) -> bytes:
        return frame(
            {
                "error": {
                    "message": message,
                    "type": type,
                    "code": code,
                    "status": status,
                    "provider": "fake",
                    "model": self.model,
                    "request_id": self.request_id,
                }
            }
        )

    def whole(self, deltas: Sequence[Delta]) -> bytes:
        """See `Format`."""
        choices: list[dict[str, object]] = []
        for choice in sorted({delta.choice for delta in deltas}):
            own = [delta for delta in deltas if delta.choice == choice]
            message: dict[str, object] = {
                "role": "assistant",
                "content": text_of(own, choice) or None,
                "refusal": None,
            }
            if reasoning := "".join(delta.reasoning for delta in own):
                message["reasoning_content"] = reasoning
            if details := [detail for delta in own for detail in delta.reasoning_details]:
                message["reasoning_details"] = details
            if calls := _whole_calls(own):
                message["tool_calls"] = calls
            finish_reasons = [delta.finish_reason for delta in own if delta.finish_reason]
            choices.append(
                {
                    "index": choice,
                    "message": message,
                    "logprobs": None,
                    "finish_reason": finish_reasons[-1],
                }
            )
        return msgspec.json.encode(
            {
                "id": self.id,
                "object": "chat.completion",
                "created": self.created,
                "model": self.model,
                "choices": choices,
                "usage": self._usage(),
            }
        )

    def _envelope(self) -> dict[str, object]:
        return {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
        }

    def _usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }

    def _chunk(self, choice: int, delta: dict[str, object], finish_reason: str | None) -> bytes:
        if self._shape == "responses":
            text = delta.get("content")
            if not text:
                return b""
            return frame({"type": "response.output_text.delta", "delta": text})
        if self._shape == "fireworks":
            output = {"index": choice, "delta": delta, "finish_reason": finish_reason}
            return frame({"output": [output]})
        chunk = self._envelope()
        chunk["choices"] = [
            {"index": choice, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        ]
        if self.include_usage:
            chunk["usage"] = None
        return frame(chunk)


def _whole_calls(deltas: Sequence[Delta]) -> list[dict[str, object]]:
    calls: dict[int, tuple[str, str, str]] = {}
    for piece in (piece for delta in deltas for piece in delta.tool_calls):
        call_id, name, arguments = calls.get(piece.index, ("", "", ""))
        calls[piece.index] = (piece.id or call_id, piece.name or name, arguments + piece.arguments)
    return [
        {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        for _, (call_id, name, arguments) in sorted(calls.items())
    ]


def count_words(content: object) -> int:
    """About how many tokens what was said has."""
    if isinstance(content, str):
        return len(content.split())
    if isinstance(content, list):
        return sum(count_words(item) for item in cast("list[object]", content))
    if isinstance(content, dict):
        item = cast("dict[str, object]", content)
        return count_words(item.get("content", item.get("text")))
    return 0
