"""What a shard's process and whoever began it say to each other, as lines of JSON."""

from __future__ import annotations

import msgspec

from ._intervals import Interval
from ._target import Target


class Plan(msgspec.Struct, kw_only=True):
    """What a shard is to do.

    Attributes:
        workload: As `Workload.settings` has it.
        target: Where.
        number: Which shard.
        shards: Of how many.
    """

    workload: dict[str, object]
    target: Target
    number: int
    shards: int


class Ready(msgspec.Struct, tag="ready"):
    """The shard is signed in and waits.

    Attributes:
        clock_error_ms: How far its clock, as compared with that of whoever began it, may be off.
    """

    clock_error_ms: float = 0.0


class Failed(msgspec.Struct, tag="failed"):
    """The shard cannot begin, and why: a message for people."""

    why: str


class Told(msgspec.Struct, tag="interval"):
    """A second of the shard."""

    interval: Interval


Message = Ready | Failed | Told
"""What a shard writes."""
