"""What is kept of each request: the row of the file, from which every figure follows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

Outcome = Literal["ok", "error", "timeout", "cancelled", "unfinished"]
TokensBy = Literal["usage", "tokenizer", "chunks"]


class RequestRecord(msgspec.Struct, kw_only=True, gc=False, omit_defaults=True):
    """One request, over all its attempts. Instants are nanoseconds since the load began.

    A *chunk* is an event with text, reasoning or a piece of a tool call.

    Attributes:
        shard: Which process sent it.
        session: The number of its conversation, over all shards.
        turn: Which turn of that conversation, from 0.
        group: The group of sessions that share a key.
        model: The model that was asked.
        intended: When it should have been sent: by the schedule, or the user's previous reply and
            think time.
        sent: When it was sent.
        first: When the first chunk came, or `None`.
        first_output: When the first chunk with text or a tool call came, or `None`.
        last: When the last chunk came, or `None`.
        ended: When the last of it came, or it failed: the user's think time begins.
        outcome: How it ended. `cancelled`: the user left, as the workload wants; `unfinished`: the
            run ended first.
        error: The class of the error that it ended with, or `""`.
        window: Whether it counts: intended after the warm-up, and before the end.
        chunks: How many came.
        output_tokens: As the server counted them, or a tokenizer; `None`: nobody did.
        tokens_by: Who counted the output tokens: the server (`"usage"`), a `"tokenizer"`, or
            nobody: then `"chunks"` stand for them.
        input_tokens: Likewise, of the prompt, by the server alone.
        asked_tokens: How many the answer was meant to have.
        rejected: 401s, and their equals in a stream.
        pauses: How often the reply paused.
        paused: How long, in nanoseconds.
        taken_up: How it was taken up again, in order: `"replay"`, `"continue"`, `"cursor"`, with
            `+` between them; `""` if it never was.
        restarts: How often a second answer took the place of the first.
        longest_gap: The longest time between two chunks, pauses included, in nanoseconds.
        lost: Characters that the gateway meant to send and that did not come; known of the fake
            gateway alone, else `None`.
        doubled: Characters that came twice; likewise.
    """

    shard: int = 0
    session: int
    turn: int
    group: int = 0
    model: str
    intended: int
    sent: int
    first: int | None = None
    first_output: int | None = None
    last: int | None = None
    ended: int
    outcome: Outcome
    error: str = ""
    window: bool = True
    chunks: int = 0
    output_tokens: int | None = None
    tokens_by: TokensBy = "chunks"
    input_tokens: int | None = None
    asked_tokens: int | None = None
    rejected: int = 0
    pauses: int = 0
    paused: int = 0
    taken_up: str = ""
    restarts: int = 0
    longest_gap: int = 0
    lost: int | None = None
    doubled: int | None = None

    @property
    def tokens(self) -> int:
        """Output tokens; where nobody counted them, chunks."""
        return self.chunks if self.output_tokens is None else self.output_tokens

    @property
    def ttft(self) -> int | None:
        """Time to the first chunk from when it was sent."""
        return None if self.first is None else self.first - self.sent

    @property
    def ttfo(self) -> int | None:
        """Time to the first chunk of the output from when it was sent: reasoning is none."""
        return None if self.first_output is None else self.first_output - self.sent

    @property
    def latency(self) -> int | None:
        """Time to the last chunk from when it was sent."""
        return None if self.last is None else self.last - self.sent

    @property
    def itl(self) -> float | None:
        """The mean time between two tokens: latency minus ttft over output tokens minus one."""
        if self.first is None or self.last is None or self.tokens < 2:
            return None
        return (self.last - self.first) / (self.tokens - 1)

    def keeps_to(self, limits: Mapping[str, float]) -> bool:
        """Whether a request that ended well is a good one, from when it was intended.

        Args:
            limits: In seconds, by figure, as `Workload.limits` has them.
        """
        late = self.sent - self.intended
        took = {
            "ttft": None if self.ttft is None else self.ttft + late,
            "ttfo": None if self.ttfo is None else self.ttfo + late,
            "latency": None if self.latency is None else self.latency + late,
            "itl": self.itl or 0.0,
            "icl": self.longest_gap,
        }
        return all(
            (value := took[name]) is not None and value <= limit * 1e9
            for name, limit in limits.items()
        )
