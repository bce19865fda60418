"""What is measured, and the bounds that are held to: the table of issue 6.

A row names its bounds, a bound its two cases; a case is measured once a round, however many bounds
ask for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from .measure import Pace

Kind = Literal["steady", "opening", "request", "memory", "refresh", "capacity"]
Figure = Literal["cpu", "rate", "delivery", "memory", "capacity"]

AT_200 = Pace(streams=200)
AT_1600 = Pace(streams=1600)
TLS = Pace(streams=400, tls=True)
COARSE = Pace(streams=200, tick=0.001)
SLOW = Pace(streams=5000, interval=1.0)
SDK = Pace(streams=500, interval=0.2)
FLAT_1 = Pace(streams=100, interval=0.0)
FLAT_20 = Pace(streams=100, interval=0.0, per_write=20)
PAUSED_STREAMS = 10_000
OPENED = Pace(streams=1000)
OPENED_TLS = Pace(streams=1000, tls=True)


@dataclass(frozen=True)
class Case:
    """One thing to measure: of `pace` what the kind needs."""

    kind: Kind
    peer: str
    pace: Pace = AT_200

    @property
    def seconds(self) -> float:
        """About how long it takes in a full run."""
        pace = self.pace
        match self.kind:
            case "steady":
                rate = pace.streams / pace.interval if pace.interval else 1e6
                return 3 + pace.streams * 0.0015 + max(5.0, 50_000 / rate)
            case "opening":
                return 1 + pace.streams * 0.0012
            case "request":
                return 6.5
            case "memory":
                return 14
            case "refresh":
                return 45
            case "capacity":
                return 30


@dataclass(frozen=True)
class Bound:
    """What a figure may be, as a ratio to a peer's or, without a peer, by itself.

    Args:
        ours: What it is about.
        peer: What it is compared to.
        limit: The bound.
        figure: Which figure of theirs.
        at_most: Whether the bound is one from above.
        reached: What is held to instead, where the bound itself is not met. Why not is in
            docs/benchmarks.md.
    """

    ours: Case
    peer: Case | None
    limit: float
    figure: Figure = "cpu"
    at_most: bool = True
    reached: float | None = None

    @property
    def held_to(self) -> float:
        """What a run that passes has to meet."""
        return self.limit if self.reached is None else self.reached


@dataclass(frozen=True)
class Row:
    """A line of the issue's table.

    Args:
        name: To ask for it.
        title: To read it.
        unit: Of the figure.
        bounds: What it is held to.
        others: Measured in a few rounds and shown, held to nothing.
    """

    name: str
    title: str
    unit: str
    bounds: tuple[Bound, ...]
    others: tuple[Case, ...] = ()

    @property
    def cases(self) -> tuple[Case, ...]:
        """What a bound asks for."""
        both = (case for bound in self.bounds for case in (bound.ours, bound.peer))
        return tuple(dict.fromkeys(case for case in both if case is not None))

    @property
    def figure(self) -> Figure:
        """Which figure it is about."""
        return self.bounds[0].figure if self.bounds else "cpu"


OURS = ("gz_trio", "gz_trio-drain")


def _against(
    kind: Kind, pace: Pace, *limits: tuple[str, str, float] | tuple[str, str, float, float]
) -> tuple[Bound, ...]:
    """CPU at most so much of a peer's; each as ours, peer, limit, and what is reached instead."""
    return tuple(
        Bound(
            Case(kind, ours, pace),
            Case(kind, peer, pace),
            limit,
            reached=reached[0] if reached else None,
        )
        for ours, peer, limit, *reached in limits
    )


def _in_step(bounds: tuple[Bound, ...]) -> tuple[Case, ...]:
    """The same cases with all streams in step."""
    cases = (case for bound in bounds for case in (bound.ours, bound.peer))
    return tuple(
        dict.fromkeys(
            replace(case, pace=replace(case.pace, in_step=True))
            for case in cases
            if case is not None
        )
    )


_CAPACITY = tuple(
    Bound(
        Case("capacity", ours),
        Case("capacity", peer),
        limit,
        "capacity",
        at_most=False,
        reached=reached,
    )
    for ours, peer, limit, reached in (
        ("gz_trio", "aiohttp", 1.15, 0.8),
        ("gz_trio", "httpx", 4.0, 2.4),
        ("gz_trio-drain", "aiohttp", 1.15, None),
        ("gz_trio-drain", "httpx", 4.0, None),
        ("gz_trio-drain", "uvloop-reader", 1.0, None),
    )
)
_AT_200 = _against(
    "steady",
    AT_200,
    ("gz_trio", "uvloop-reader", 1.5, 1.7),
    ("gz_trio", "aiohttp", 0.95, 1.3),
    ("gz_trio", "httpx", 0.33, 0.5),
    ("gz_trio-drain", "uvloop-reader", 1.1, 1.5),
    ("gz_trio-drain", "aiohttp", 0.7, 1.1),
    ("gz_trio-drain", "httpx", 0.25, 0.44),
)
_AT_1600 = _against(
    "steady",
    AT_1600,
    ("gz_trio", "uvloop-reader", 1.4, 1.75),
    ("gz_trio-drain", "uvloop-reader", 0.95, 1.25),
)
_TLS = _against(
    "steady", TLS, ("gz_trio", "uvloop-reader", 1.3), ("gz_trio-drain", "uvloop-reader", 1.0)
)
_OPENERS = ("gz_trio", "uvloop-reader", "aiohttp", "httpx")

ROWS = (
    Row("capacity", "Streams a core holds, 40 ms each, p99 in 5 ms", "streams", _CAPACITY),
    Row("200", "200 streams, every 40 ms", "µs/token", _AT_200, _in_step(_AT_200)),
    Row("1600", "1,600 streams, every 40 ms", "µs/token", _AT_1600, _in_step(_AT_1600)),
    Row("tls", "400 streams, every 40 ms, TLS", "µs/token", _TLS, _in_step(_TLS)),
    Row(
        "flat-20",
        "Flat out, 100 streams, 20 tokens a write",
        "tokens/s",
        (
            Bound(
                Case("steady", "gz_trio-drain", FLAT_20),
                Case("steady", "uvloop-reader", FLAT_20),
                1.0,
                "rate",
                at_most=False,
            ),
        ),
    ),
    Row(
        "flat-1",
        "Flat out, 100 streams, 1 token a write",
        "µs/token",
        _against("steady", FLAT_1, ("gz_trio-drain", "uvloop-reader", 1.0, 1.15)),
    ),
    Row(
        "recovery",
        "With recovery against without, 200 streams",
        "µs/token",
        _against(
            "steady",
            AT_200,
            ("gz_trio", "gz_trio-bare", 1.1),
            ("gz_trio-drain", "gz_trio-drain-bare", 1.1),
        ),
    ),
    Row(
        "slow",
        "5,000 streams every second against 200 every 40 ms",
        "µs/token",
        tuple(
            Bound(Case("steady", ours, SLOW), Case("steady", ours, AT_200), 1.3) for ours in OURS
        ),
    ),
    Row(
        "memory",
        "Memory of an open stream, 5,000 streams",
        "KiB",
        (Bound(Case("memory", "gz_trio"), None, 10.0, "memory"),),
        tuple(Case("memory", peer) for peer in ("httpx", "openai", "aiohttp")),
    ),
    Row(
        "delay",
        "Delivery, 1,600 streams every 40 ms, p99",
        "ms",
        tuple(
            Bound(
                Case("steady", ours, AT_1600),
                Case("steady", "aiohttp", AT_1600),
                1.0,
                "delivery",
                reached=reached,
            )
            for ours, reached in zip(OURS, (2.0, None), strict=True)
        ),
    ),
    Row(
        "refresh",
        "10,000 paused streams take up again, against as many fresh requests",
        "µs/stream",
        (
            Bound(
                Case("refresh", "gz_trio", Pace(streams=PAUSED_STREAMS)),
                Case("opening", "gz_trio", Pace(streams=PAUSED_STREAMS)),
                1.3,
            ),
        ),
    ),
    Row(
        "request",
        "A request of one token on a warm connection",
        "µs/request",
        _against("request", AT_200, ("gz_trio", "httpx", 0.5)),
    ),
    Row(
        "opening",
        "Connect, ask, first token",
        "µs/stream",
        (),
        tuple(Case("opening", peer, OPENED) for peer in _OPENERS),
    ),
    Row(
        "opening-tls",
        "Connect, shake hands, ask, first token",
        "µs/stream",
        (),
        tuple(Case("opening", peer, OPENED_TLS) for peer in _OPENERS),
    ),
    Row(
        "peers",
        "200 streams, every 40 ms: the other peers",
        "µs/token",
        (),
        tuple(
            Case("steady", peer)
            for peer in (
                *("uvloop-callback", "raw-trio", "httpx2", "openai"),
                *("uvloop-waiting", "trio-waiting"),
            )
        ),
    ),
    Row(
        "sdk",
        "500 streams of the OpenAI SDK, every 200 ms",
        "µs/token",
        (),
        tuple(
            Case("steady", peer, SDK) for peer in ("openai", "openai-transport", "openai-gateway")
        ),
    ),
    Row(
        "websocket",
        "200 streams over WebSocket, every 40 ms",
        "µs/token",
        (),
        tuple(
            Case("steady", peer) for peer in ("gz_trio-websocket", "websockets", "openai-websocket")
        ),
    ),
    Row(
        "coarse",
        "200 streams, every 40 ms, from a server whose shortest sleep is 1 ms",
        "µs/token",
        (),
        tuple(
            Case("steady", peer, COARSE)
            for peer in (*OURS, "uvloop-reader", "aiohttp", "uvloop-waiting", "trio-waiting")
        ),
    ),
)

QUICK = (
    Row("1600", "1,600 streams, every 40 ms", "µs/token", _AT_1600),
    Row("tls", "400 streams, every 40 ms, TLS", "µs/token", _TLS),
)
"""Three peers, two rows."""
