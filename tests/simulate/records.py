"""What tests of the simulator share: the record of a request that went as it should."""

from __future__ import annotations

from typing import Any

from gz_trio.simulate import RequestRecord

SECOND = 1_000_000_000
MS = 1_000_000


def a_record(**changes: Any) -> RequestRecord:
    """One of half a second and eleven tokens, sent a millisecond late, but for `changes`."""
    values: dict[str, Any] = {
        "session": 0,
        "turn": 0,
        "model": "fake-model",
        "intended": 0,
        "sent": 1 * MS,
        "first": 101 * MS,
        "first_output": 101 * MS,
        "last": 501 * MS,
        "ended": 502 * MS,
        "outcome": "ok",
        "chunks": 11,
        "output_tokens": 11,
        "tokens_by": "usage",
        "asked_tokens": 11,
        "longest_gap": 40 * MS,
    }
    return RequestRecord(**(values | changes))
