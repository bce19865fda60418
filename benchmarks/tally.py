"""What the streams of one client did: the caller's code, into whose hands each token is given.

Every peer calls it alike, so that what it costs is the same in each of their figures. Of one token
in thirteen the text is kept, which holds the server's stamps; they are read when nobody measures.
(Thirteen goes into none of the numbers of streams: the same streams would always be asked.)
"""

from __future__ import annotations

import os
import threading
import time
from time import perf_counter_ns

import msgspec

SAMPLED = 13
PAGE = os.sysconf("SC_PAGE_SIZE")


class Quantiles(msgspec.Struct, frozen=True):
    """Of a number of samples; microseconds."""

    samples: int
    p50: float
    p99: float
    max: float


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """What a client did so far, and the two clocks at that instant, in nanoseconds.

    Args:
        cpu: The process's CPU clock.
        now: `perf_counter_ns`.
        tokens: In the caller's hands.
        requests: Answered to their end; only where that is counted.
        reads: Reads from sockets that brought tokens; only where that is counted.
        paused: Replies that waited for a key; only where that is counted.
        resident: Bytes of memory.
        lateness: Since the mark before: written by the server minus due.
        arrival: Likewise: stamped by the client, where it does, minus written.
        delivery: Likewise: in the caller's hands minus written.
        errors: What went wrong.
    """

    cpu: int
    now: int
    tokens: int
    requests: int
    reads: int
    paused: int
    resident: int
    lateness: Quantiles | None
    arrival: Quantiles | None
    delivery: Quantiles | None
    errors: list[str]


class Tally:
    """Counts tokens; `granted` is set when the key may be renewed."""

    __slots__ = (
        "_arrived",
        "_samples",
        "errors",
        "granted",
        "paused",
        "reads",
        "requests",
        "tokens",
    )

    def __init__(self) -> None:
        self.tokens = 0
        self.requests = 0
        self.reads = 0
        self.paused = 0
        self.granted = threading.Event()
        self.errors: list[str] = []
        self._arrived = 0
        # Of each its text, arrival and delivery, one after the other: a tuple of them would be an
        # object that the garbage collector counts, and all that are kept would call it up.
        self._samples: list[str | int] = []

    def take(self, text: str) -> None:
        """Take one token."""
        self.tokens += 1
        if not self.tokens % SAMPLED:
            self._samples += (text, 0, perf_counter_ns())

    def take_stamped(self, text: str, arrived: int) -> None:
        """Take one token that the client has stamped when it arrived."""
        self.tokens += 1
        if not self.tokens % SAMPLED:
            self._samples += (text, arrived, perf_counter_ns())

    def count(self, _: object, __: int) -> None:
        """Take one delta, and do nothing else."""
        self.tokens += 1

    def take_counting_reads(self, _: str, arrived: int) -> None:
        """Take one token; those that arrived at the same instant were read at once."""
        self.tokens += 1
        if arrived != self._arrived:
            self._arrived = arrived
            self.reads += 1

    def mark(self) -> Mark:
        """What happened so far; samples are those since the mark before."""
        cpu, now, tokens = time.process_time_ns(), perf_counter_ns(), self.tokens
        samples, self._samples = self._samples, []
        lateness: list[int] = []
        arrival: list[int] = []
        delivery: list[int] = []
        for place in range(0, len(samples), 3):
            text, arrived, delivered = samples[place : place + 3]
            due, written = (int(stamp) for stamp in str(text).split())
            arrived, delivered = int(arrived), int(delivered)
            if not written:  # The server does not stamp.
                continue
            lateness.append(written - due)
            delivery.append(delivered - written)
            if arrived:
                arrival.append(arrived - written)
        with open("/proc/self/statm", encoding="ascii") as statm:
            resident = int(statm.read().split()[1]) * PAGE
        return Mark(
            cpu=cpu,
            now=now,
            tokens=tokens,
            requests=self.requests,
            reads=self.reads,
            paused=self.paused,
            resident=resident,
            lateness=_quantiles(lateness),
            arrival=_quantiles(arrival),
            delivery=_quantiles(delivery),
            errors=self.errors[:10],
        )


def _quantiles(nanoseconds: list[int]) -> Quantiles | None:
    if not nanoseconds:
        return None
    count = len(nanoseconds)
    nanoseconds.sort()
    p50, p99, last = (
        nanoseconds[place] / 1e3 for place in (count // 2, count * 99 // 100, count - 1)
    )
    return Quantiles(count, p50, p99, last)
