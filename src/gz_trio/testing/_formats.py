"""What the formats of the three APIs have in common: each makes the bytes of one answer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Protocol, cast

import msgspec

from .._protocol.events import Delta
from ._faults import FRAME_TYPES, ErrorFrame


class Format(Protocol):
    """Makes the bytes of one answer: events of a stream, or the whole as one object.

    Attributes:
        completion_tokens: How many tokens the model has made so far; to be set.
    """

    completion_tokens: int

    @property
    def goodbye(self) -> bytes:
        """What ends a stream, whether the answer has come to its end or not."""
        ...

    def events(self, delta: Delta) -> list[bytes]:
        """The events of one delta; of the first one, those that begin the answer too."""
        ...

    def end(self, endings: Sequence[Delta]) -> list[bytes]:
        """The events behind the last token, from deltas that hold the finish reasons."""
        ...

    def finish(self, finish_reason: str) -> bytes:
        """The events that end the answer before its time, but for `goodbye`."""
        ...

    def error(self, fault: ErrorFrame) -> bytes:
        """The event of an error in mid-stream."""
        ...

    def warning(self, message: str) -> bytes:
        """The event of a warning, which is no error."""
        ...

    def whole(self, deltas: Sequence[Delta]) -> bytes:
        """The answer to a request without `"stream": true`."""
        ...


def frame(content: object, name: str = "") -> bytes:
    """An event of an event stream.

    Args:
        content: Its data: bytes as they are, or anything that JSON can hold.
        name: Its name, if any.
    """
    data = content if isinstance(content, bytes) else msgspec.json.encode(content)
    return (f"event: {name}\n".encode() if name else b"") + b"data: " + data + b"\n\n"


def name_of(data: bytes | Mapping[str, object]) -> str:
    """The name of an event whose data has it as its type; else it is an error."""
    if isinstance(data, bytes):
        try:
            data = msgspec.json.decode(data, type=dict[str, object])
        except (msgspec.DecodeError, UnicodeDecodeError):
            return "error"
    kind = data.get("type")
    return kind if isinstance(kind, str) else "error"


def meaning(fault: ErrorFrame) -> tuple[int, str]:
    """The status and the message of an error frame."""
    status, message = FRAME_TYPES.get(fault.type, (500, "The stream failed"))
    return (
        status if fault.status is None else fault.status,
        message if fault.message is None else fault.message,
    )


def signature(text: str) -> str:
    """What the fake gateway signs thoughts with, which have to come back as they were."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def thoughts_were_changed(body: Mapping[str, object]) -> bool:
    """Whether thoughts came back that the gateway has not signed as they are."""
    for item in objects(body.get("input", body.get("messages"))):
        if item.get("encrypted_content") is not None:
            thought = text_in(item.get("content"))
            if item["encrypted_content"] != signature(thought):
                return True
        for block in objects(item.get("content")):
            thought = str(block.get("thinking"))
            if block.get("type") == "thinking" and block.get("signature") != signature(thought):
                return True
    return False


def conversation(body: Mapping[str, object]) -> list[dict[str, object]]:
    """Who said what, in order, by the body of a Responses request: roles and texts."""
    said = [] if body.get("instructions") is None else [_message("system", body["instructions"])]
    sent = body.get("input")
    if isinstance(sent, str):
        return [*said, _message("user", sent)]
    for item in objects(sent):
        match item.get("type"):
            case "reasoning":
                pass
            case "function_call" | "custom_tool_call":
                said.append(_message("assistant", f"{item.get('name')}({item.get('arguments')})"))
            case "function_call_output" | "custom_tool_call_output":
                said.append(_message("tool", item.get("output")))
            case _:
                said.append(_message(str(item.get("role")), item.get("content")))
    return said


def _message(role: str, content: object) -> dict[str, object]:
    return {"role": role, "content": text_in(content)}


def text_in(content: object) -> str:
    """The text in a message's content: a string, or parts of which some have text."""
    if isinstance(content, str):
        return content
    texts = (part.get("text") for part in objects(content))
    return "".join(text for text in texts if isinstance(text, str))


def objects(value: object) -> list[dict[str, object]]:
    """The JSON objects in a JSON array; none where `value` is no array."""
    if not isinstance(value, list):
        return []
    items = cast("list[object]", value)
    return [cast("dict[str, object]", item) for item in items if isinstance(item, dict)]
