"""What tests of broken replies share: how they are taken up, and what a reader got of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from gz_trio import Delta, ReplyEvent, ResumePolicy

Channels: TypeAlias = dict[tuple[int, str], str]
"""Characters by what they are: choice and `"text"`, `"reasoning"` or a part of a tool call."""


def channels_of(events: Sequence[ReplyEvent]) -> Channels:
    """What a reader makes of a reply's deltas."""
    channels: Channels = {}
    for delta in events:
        if not isinstance(delta, Delta):
            continue
        parts = [("text", delta.text), ("reasoning", delta.reasoning)]
        for call in delta.tool_calls:
            parts.append((f"name {call.index}", call.name or ""))
            parts.append((f"arguments {call.index}", call.arguments))
        for kind, text in parts:
            if text:
                channel = (delta.choice, kind)
                channels[channel] = channels.get(channel, "") + text
    return channels


@dataclass(frozen=True)
class Way:
    """How a broken reply is taken up.

    Args:
        server: What the server can do: arguments of `FakeGateway`.
        continue_: As which the client was told that the server continues; see `ResumePolicy`.
        echo: Likewise.
    """

    server: Mapping[str, Any]
    continue_: Literal["vllm", "prefix", "prefill"] | None = None
    echo: bool = False

    def policy(self, on_divergence: Literal["raise", "restart"] = "raise") -> ResumePolicy:
        """What the client is told."""
        return ResumePolicy(continue_=self.continue_, echo=self.echo, on_divergence=on_divergence)


def _continuing(how: Literal["vllm", "prefix", "prefill"], *, echo: bool, **also: object) -> Way:
    return Way({"continues": how, "echo": echo, **also}, how, echo)


WAYS = {
    "replay": Way({}),
    "cursor": Way({"event_ids": True}),
    "vllm": _continuing("vllm", echo=False),
    "vllm with echo": _continuing("vllm", echo=True),
    "prefix": _continuing("prefix", echo=False),
    "prefix with echo": _continuing("prefix", echo=True),
    "prefill": _continuing("prefill", echo=False),
    "prefill with echo": _continuing("prefill", echo=True),
    "cursor before vllm": _continuing("vllm", echo=False, event_ids=True),
}
