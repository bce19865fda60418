"""What users say: conversations, made up or from a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One request of a conversation.

    Attributes:
        messages: What it adds to the conversation.
        whole: Whether those are the whole prompt, in place of the conversation so far.
        output_tokens: That the answer is meant to have; `None`: as the workload says.
        input_tokens: That the messages are meant to have, as far as that is known.
        answer: The recorded answer, or `None`.
        due: When it is sent at the earliest, in nanoseconds from the start; `None`: at once.
        delay: Between the answer before and this, in nanoseconds; `None`: the workload's think
            time.
    """

    messages: tuple[dict[str, object], ...]
    whole: bool = False
    output_tokens: int | None = None
    input_tokens: int | None = None
    answer: str | None = None
    due: int | None = None
    delay: int | None = None


class Conversation(msgspec.Struct, frozen=True):
    """The turns of one session, in order."""

    turns: Sequence[Turn]


class Conversations(Protocol):
    """Where the conversations of a workload come from."""

    def __len__(self) -> int:
        """How many there are; those that are made up have no end, and give 0."""
        ...

    def conversation(self, number: int) -> Conversation:
        """The conversation of this session, always the same for the same number.

        There are fewer than sessions: they begin anew, unless they have times of their own.
        """
        ...


@dataclass
class Loaded:
    """Conversations from a file.

    Args:
        conversations: In the order of the file; of a trace, in the order of their times.
        skipped: How many lines or conversations were left out, by reason.
    """

    conversations: Sequence[Conversation]
    skipped: Counter[str] = field(default_factory=Counter[str])

    def __len__(self) -> int:
        return len(self.conversations)

    def conversation(self, number: int) -> Conversation:
        """See `Conversations`."""
        return self.conversations[number % len(self.conversations)]
