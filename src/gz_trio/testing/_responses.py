"""The fake gateway's answers in the format of the Responses API."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from copy import deepcopy

import msgspec

from .._protocol.events import Delta, ToolCallDelta
from ._faults import ErrorFrame
from ._formats import frame, meaning, name_of, signature

_ID_PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc"}
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


class ResponsesFormat:
    """See `Format`.

    Args:
        number: Of the answer; its id has it.
        body: The request's.
        prompt_tokens: Of what was asked.
        websocket: Whether it is for a WebSocket, where errors are nested.
        stream_id: Of the turn there, which its events carry.
    """

    goodbye = b""

    def __init__(
        self,
        number: int,
        body: Mapping[str, object],
        prompt_tokens: int,
        *,
        websocket: bool = False,
        stream_id: str | None = None,
    ) -> None:
        self._websocket = websocket
        self._lane = {} if stream_id is None else {"stream_id": stream_id}
        self.id = f"resp_{number}"
        self.completion_tokens = 0
        self.status = "in_progress"
        self.output: list[dict[str, object]] = []
        self._body = body
        self._number = number
        self._prompt_tokens = prompt_tokens
        self._created = int(time.time())
        self._sequence = 0
        self._open: _Item | None = None
        self._calls: dict[int, _Item] = {}
        self._reasoning_tokens = 0
        self._reason: str | None = None  # Which the answer gave itself.
        self._incomplete: str | None = None

    # Of a stream

    def events(self, delta: Delta) -> list[bytes]:
        """See `Format`."""
        if delta.raw:
            return [frame(delta.raw)]
        self._reason = delta.finish_reason or self._reason
        events = self._begin()
        if delta.reasoning:
            self._reasoning_tokens += 1
            events += self._grow("reasoning", delta.reasoning)
        if delta.text:
            events += self._grow("message", delta.text)
        for call in delta.tool_calls:
            events += self._call(call)
        return events

    def end(self, endings: Sequence[Delta]) -> list[bytes]:
        """See `Format`."""
        events = self._begin()
        reasons = [delta.finish_reason for delta in endings if delta.finish_reason]
        self._incomplete = _INCOMPLETE.get(reasons[-1] if reasons else self._reason or "")
        self.status = "completed" if self._incomplete is None else "incomplete"
        events += self._close(self.status)
        return [*events, self._event(f"response.{self.status}", response=self.response())]

    def finish(self, finish_reason: str) -> bytes:
        """See `Format`."""
        # What is kept of the answer goes on as if nothing had been.
        return b"".join(deepcopy(self).end([Delta(finish_reason=finish_reason)]))

    def error(self, fault: ErrorFrame) -> bytes:
        """See `Format`: an `error` event, which ends the stream and is none of the answer's."""
        if fault.data is not None:
            return frame(fault.data, name_of(fault.data))
        code = fault.type if fault.code is None else fault.code
        if self._websocket:
            status, message = meaning(fault)
            return frame(error_event(status, code, message, **self._lane), "error")
        return frame(
            {
                "type": "error",
                "sequence_number": self._sequence,
                "code": code,
                "message": meaning(fault)[1],
                "param": None,
            },
            "error",
        )

    def warning(self, message: str) -> bytes:
        """See `Format`: an event that the API does not know."""
        kind = "gatewayz.stream_normalization_warning"
        return frame({"type": kind, "message": message}, kind)

    def failed(self, code: str, message: str) -> bytes:
        """The event of an answer that has failed for good."""
        self.status = "failed"
        failed = {**self.response(), "error": {"code": code, "message": message}}
        return self._event("response.failed", response=failed)

    def _begin(self) -> list[bytes]:
        if self._sequence:
            return []
        return [
            self._event("response.created", response=self.response()),
            self._event("response.in_progress", response=self.response()),
        ]

    def _grow(self, kind: str, text: str) -> list[bytes]:
        events: list[bytes] = []
        if self._open is None or self._open.kind != kind:
            events += self._close()
            self._open = self._new_item(kind)
            events += self._added(self._open)
        item = self._open
        item.text += text
        name = "output_text" if kind == "message" else "reasoning_text"
        more: dict[str, object] = {"logprobs": []} if kind == "message" else {}
        return [*events, self._event(f"response.{name}.delta", **item.part, delta=text, **more)]

    def _call(self, call: ToolCallDelta) -> list[bytes]:
        item = self._calls.get(call.index)
        events: list[bytes] = []
        if item is None:
            events += self._close()
            item = self._calls[call.index] = self._open = self._new_item("function_call")
            item.call_id = call.id or f"call_{self._number}_{call.index}"
            item.name = call.name or ""
            events += self._added(item)
        if call.arguments:
            item.text += call.arguments
            events.append(
                self._event(
                    "response.function_call_arguments.delta", **item.place, delta=call.arguments
                )
            )
        return events

    def _new_item(self, kind: str) -> _Item:
        place = len(self.output)
        item = _Item(kind, f"{_ID_PREFIXES[kind]}_{self._number}_{place}", place)
        self.output.append({})
        return item

    def _added(self, item: _Item) -> list[bytes]:
        index = item.place["output_index"]
        added = item.whole("in_progress")
        events = [self._event("response.output_item.added", output_index=index, item=added)]
        if item.kind == "function_call":
            return events
        part = {**item.part, "part": item.content("")}
        return [*events, self._event("response.content_part.added", **part)]

    def _close(self, status: str = "completed") -> list[bytes]:
        """The item that is open is done."""
        item, self._open = self._open, None
        if item is None:
            return []
        events: list[bytes] = []
        if item.kind == "function_call":
            name, whole = "function_call_arguments", {**item.place, "arguments": item.text}
        else:
            name = "output_text" if item.kind == "message" else "reasoning_text"
            more: dict[str, object] = {"logprobs": []} if item.kind == "message" else {}
            whole = {**item.part, "text": item.text, **more}
        events.append(self._event(f"response.{name}.done", **whole))
        if item.kind != "function_call":
            part = {**item.part, "part": item.content(item.text)}
            events.append(self._event("response.content_part.done", **part))
        self.output[item.index] = done = item.whole(status)
        place = {"output_index": item.index, "item": done}
        return [*events, self._event("response.output_item.done", **place)]

    def _event(self, kind: str, **fields: object) -> bytes:
        number, self._sequence = self._sequence, self._sequence + 1
        return frame({"type": kind, "sequence_number": number, **self._lane, **fields}, kind)

    # Of the whole

    def whole(self, deltas: Sequence[Delta]) -> bytes:
        """See `Format`."""
        for delta in deltas:
            self.events(delta)
        self.end([delta for delta in deltas if delta.finish_reason])
        return msgspec.json.encode(self.response())

    def response(self) -> dict[str, object]:
        """The response object as it is now."""
        body = self._body
        usage = None
        if self.status in ("completed", "incomplete"):
            usage = {
                "input_tokens": self._prompt_tokens,
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens": self.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": self._reasoning_tokens},
                "total_tokens": self._prompt_tokens + self.completion_tokens,
            }
        incomplete = None if self._incomplete is None else {"reason": self._incomplete}
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "status": self.status,
            "background": body.get("background") is True,
            "error": None,
            "incomplete_details": incomplete,
            "instructions": body.get("instructions"),
            "max_output_tokens": body.get("max_output_tokens"),
            "metadata": body.get("metadata") or {},
            "model": str(body.get("model")),
            "output": [item for item in self.output if item],
            "parallel_tool_calls": True,
            "previous_response_id": body.get("previous_response_id"),
            "store": body.get("store") is not False,
            "temperature": 1.0,
            "tool_choice": "auto",
            "tools": body.get("tools") or [],
            "top_p": 1.0,
            "usage": usage,
        }


def error_event(
    status: int, code: str | int | None, message: str, *, param: str | None = None, **lane: str
) -> dict[str, object]:
    """An error on a WebSocket."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"type": kind, "code": code, "message": message, "param": param}
    return {"type": "error", "status": status, "error": error, **lane}


class _Item:
    """An output item that is being made."""

    def __init__(self, kind: str, item_id: str, index: int) -> None:
        self.kind = kind
        self.index = index
        self.text = ""
        self.call_id = self.name = ""
        self._id = item_id
        self.place: dict[str, object] = {"item_id": item_id, "output_index": index}
        self.part: dict[str, object] = {**self.place, "content_index": 0}

    def content(self, text: str) -> dict[str, object]:
        if self.kind == "message":
            return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
        return {"type": "reasoning_text", "text": text}

    def whole(self, status: str) -> dict[str, object]:
        item: dict[str, object] = {"id": self._id, "type": self.kind, "status": status}
        done = status != "in_progress"
        match self.kind:
            case "message":
                content = [self.content(self.text)] if done else []
                return {**item, "role": "assistant", "content": content}
            case "reasoning":
                content = [self.content(self.text)] if done else []
                signed = signature(self.text) if done else None
                return {**item, "summary": [], "content": content, "encrypted_content": signed}
            case _:
                call = {"call_id": self.call_id, "name": self.name}
                return {**item, **call, "arguments": self.text}
