"""The fake gateway's answers in the format of the Messages API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy

import msgspec

from .._protocol.events import Delta
from ._faults import ErrorFrame
from ._formats import frame, meaning, name_of, signature

_STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}
_ERROR_TYPES = {
    "auth_error": "authentication_error",
    "capacity_error": "overloaded_error",
    "provider_error": "api_error",
    "stream_error": "api_error",
    "stream_timeout": "timeout_error",
    "empty_stream_error": "api_error",
    "plan_limit_exceeded": "billing_error",
}


class MessagesFormat:
    """See `Format`.

    Args:
        number: Of the answer; its id has it.
        body: The request's.
        prompt_tokens: Of what was asked.
    """

    goodbye = b""

    def __init__(self, number: int, body: Mapping[str, object], prompt_tokens: int) -> None:
        self.completion_tokens = 0
        self._id = f"msg_{number}"
        self._number = number
        self._model = str(body.get("model"))
        self._prompt_tokens = prompt_tokens
        self._request_id = f"req_{number}"
        self._begun = False
        self._blocks: list[dict[str, object]] = []
        self._open: int | None = None
        self._reason: str | None = None  # Which the answer gave itself.
        self._arguments: dict[int, str] = {}  # By the block's index.
        self._calls: dict[int, int] = {}  # The block's index, by the call's.

    # Of a stream

    def events(self, delta: Delta) -> list[bytes]:
        """See `Format`."""
        if delta.raw:
            return [frame(delta.raw)]
        self._reason = delta.finish_reason or self._reason
        events = self._begin()
        if delta.reasoning:
            events += self._grow("thinking", delta.reasoning)
        if delta.text:
            events += self._grow("text", delta.text)
        for call in delta.tool_calls:
            index = self._calls.get(call.index)
            if index is None:
                call_id = call.id or f"toolu_{self._number}_{call.index}"
                name = call.name or ""
                fields: dict[str, object] = {"id": call_id, "name": name, "input": {}}
                events += self._open_block("tool_use", fields)
                index = self._calls[call.index] = len(self._blocks) - 1
                self._arguments[index] = ""
            if call.arguments:
                self._arguments[index] += call.arguments
                piece = {"type": "input_json_delta", "partial_json": call.arguments}
                events.append(self._delta(index, piece))
        return events

    def end(self, endings: Sequence[Delta]) -> list[bytes]:
        """See `Format`."""
        events = self._begin() + self._close()
        delta = {"stop_reason": self._stop_reason(endings), "stop_sequence": None}
        usage = {"output_tokens": self.completion_tokens}
        return [
            *events,
            self._event("message_delta", delta=delta, usage=usage),
            self._event("message_stop"),
        ]

    def finish(self, finish_reason: str) -> bytes:
        """See `Format`."""
        return b"".join(deepcopy(self).end([Delta(finish_reason=finish_reason)]))

    def error(self, fault: ErrorFrame) -> bytes:
        """See `Format`."""
        if fault.data is not None:
            return frame(fault.data, name_of(fault.data))
        error = {"type": _ERROR_TYPES.get(fault.type, fault.type), "message": meaning(fault)[1]}
        return self._event("error", error=error, request_id=self._request_id)

    def warning(self, message: str) -> bytes:
        """See `Format`: an event that the API does not know."""
        return self._event("stream_normalization_warning", message=message)

    def _begin(self) -> list[bytes]:
        if self._begun:
            return []
        self._begun = True
        return [self._event("message_start", message=self._message(None)), self._event("ping")]

    def _grow(self, kind: str, text: str) -> list[bytes]:
        events: list[bytes] = []
        if self._open is None or self._blocks[self._open]["type"] != kind:
            events += self._open_block(
                kind, {kind: "", **({"signature": ""} if kind == "thinking" else {})}
            )
        index = len(self._blocks) - 1
        block = self._blocks[index]
        block[kind] = f"{block[kind]}{text}"
        return [*events, self._delta(index, {"type": f"{kind}_delta", kind: text})]

    def _open_block(self, kind: str, fields: Mapping[str, object]) -> list[bytes]:
        events, block = self._close(), {"type": kind, **fields}
        index = self._open = len(self._blocks)
        self._blocks.append(block)
        return [*events, self._event("content_block_start", index=index, content_block=dict(block))]

    def _close(self) -> list[bytes]:
        """The block that is open is done."""
        index, self._open = self._open, None
        if index is None:
            return []
        block, events = self._blocks[index], list[bytes]()
        if block["type"] == "thinking":
            signed = block["signature"] = signature(str(block["thinking"]))
            events.append(self._delta(index, {"type": "signature_delta", "signature": signed}))
        return [*events, self._event("content_block_stop", index=index)]

    def _delta(self, index: int, delta: Mapping[str, str]) -> bytes:
        return self._event("content_block_delta", index=index, delta=delta)

    def _event(self, kind: str, **fields: object) -> bytes:
        return frame({"type": kind, **fields}, kind)

    # Of the whole

    def whole(self, deltas: Sequence[Delta]) -> bytes:
        """See `Format`."""
        for delta in deltas:
            self.events(delta)
        self._close()
        for index, arguments in self._arguments.items():
            try:
                self._blocks[index]["input"] = msgspec.json.decode(arguments or "{}")
            except msgspec.DecodeError:  # The limit cut it.
                self._blocks[index]["input"] = {}
        return msgspec.json.encode(self._message(self._stop_reason(deltas)))

    def _stop_reason(self, deltas: Sequence[Delta]) -> str:
        given = (delta.finish_reason for delta in reversed(deltas) if delta.finish_reason)
        reason = next(given, self._reason or "stop")
        return _STOP_REASONS.get(reason, reason)

    def _message(self, stop_reason: str | None) -> dict[str, object]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [] if stop_reason is None else self._blocks,
            "stop_reason": stop_reason,
            "stop_sequence": None,
            "usage": {
                "input_tokens": self._prompt_tokens,
                "output_tokens": self.completion_tokens if stop_reason else 1,
            },
        }
