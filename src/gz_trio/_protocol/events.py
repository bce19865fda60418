"""What a reply gives to its reader: deltas, and the events that a user interface shows."""

from __future__ import annotations

from typing import Literal

import msgspec


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens used, as the server counted them; `raw` is the server's object as it came."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    raw: dict[str, object] = {}


class ToolCallDelta(msgspec.Struct, frozen=True):
    """A piece of a tool call. Pieces of one call share `index`; `arguments` are to be joined."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class Delta(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one event added to one choice of the reply.

    `text` and `reasoning` are in characters, either may be empty. `raw` is the data of the
    server's event, as bytes, that says the same: on the first delta of an event that holds
    several choices, empty on the rest.
    """

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    finish_reason: str | None = None
    usage: Usage | None = None
    choice: int = 0
    reasoning_details: tuple[dict[str, object], ...] = ()
    raw: bytes = b""


class Paused(msgspec.Struct, frozen=True):
    """The reply waits: for a new key (`"refresh"`), or to connect again (`"reconnect"`)."""

    reason: Literal["refresh", "reconnect"]


class Resumed(msgspec.Struct, frozen=True):
    """The reply goes on after `Paused` or `RateLimited`; what follows is new text."""


class RateLimited(msgspec.Struct, frozen=True):
    """The gateway asked to wait; the reply goes on by itself after `wait` seconds."""

    wait: float


class Restarted(msgspec.Struct, frozen=True):
    """The second answer differs: drop what you have, the text starts anew."""


class Finished(msgspec.Struct, frozen=True):
    """The reply is complete. Always the last event."""

    finish_reason: str | None
    usage: Usage | None


class RawEvent(msgspec.Struct, frozen=True):
    """An event that this version of the library does not know, or a server's warning.

    `event` is the name from the event stream (`"message"` where it had none), `data` its bytes.
    """

    event: str
    data: bytes


ReplyEvent = Delta | Paused | Resumed | RateLimited | Restarted | Finished | RawEvent
