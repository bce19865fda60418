"""One measurement: a peer in a fresh process, against a fresh server, between two instants."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from .certificates import Certificates
from .load_server import TICK, Plan
from .peers import PEERS, Load
from .peers.wire import NEW_KEY
from .processes import PATIENCE_SECONDS, Moment, Pair, start
from .tally import Mark, Quantiles

SETTLE_SECONDS = 1.0
POLL_SECONDS = 0.05
MEMORY_STREAMS = (1000, 5000)
WARM_REQUESTS = 200


class Failed(Exception):
    """The peer could not do it."""


class Window(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was seen between two marks.

    Args:
        seconds: How long it was.
        tokens: That the client's code got in it.
        cpu: Microseconds of the client's CPU: a token, or what else is said to be counted.
        client: How busy the client was, of its core.
        server: How busy the server was, of its own.
        others: How busy the client's core was with something else. More than a few percent, and
            the machine was not quiet.
        lateness: Written by the server minus due.
        arrival: Stamped by the client, where it does, minus written.
        delivery: In the caller's hands minus written.
        tokens_per_read: Where that is counted.
    """

    seconds: float
    tokens: int
    cpu: float
    client: float
    server: float
    others: float
    lateness: Quantiles | None = None
    arrival: Quantiles | None = None
    delivery: Quantiles | None = None
    tokens_per_read: float | None = None


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How streams run.

    Args:
        streams: How many.
        interval: Seconds between the tokens of one; 0: as fast as it goes.
        per_write: Tokens a write of the server.
        tls: Whether over TLS.
        in_step: Whether all have their tokens at the same instant.
        tick: Seconds of the server's shortest sleep: what is due meanwhile is written together.
    """

    streams: int
    interval: float = 0.04
    per_write: int = 1
    tls: bool = False
    in_step: bool = False
    tick: float = TICK

    def plan(self, seed: int, certificates: Certificates) -> Plan:
        """What the server has to do for it."""
        return Plan(
            streams=self.streams,
            interval=self.interval,
            per_write=self.per_write,
            in_step=self.in_step,
            tick=self.tick,
            seed=seed,
            certificate=certificates.server if self.tls else None,
        )


class Bench:
    """Takes measurements.

    Args:
        certificates: For those over TLS.
        seconds: The least that a slope is taken over.
        tokens: Likewise.
        warm_up: Seconds between the first tokens and the slope.
    """

    def __init__(
        self, certificates: Certificates, seconds: float, tokens: int, warm_up: float
    ) -> None:
        self._warm_up = warm_up
        self._certificates = certificates
        self._seconds = seconds
        self._tokens = tokens

    def steady(self, peer: str, pace: Pace, seed: int, *, seconds: float | None = None) -> Window:
        """With every stream open: CPU a token, and delays.

        Args:
            peer: A name in `PEERS`.
            pace: How the streams run.
            seed: Of their phases.
            seconds: In place of the least that a slope is taken over; there is no least number of
                tokens then.
        """
        plan = pace.plan(seed, self._certificates)
        if seconds is None:
            seconds = max(self._seconds, 1.02 * self._tokens * pace.interval / pace.streams)
        load = _load(peer, "streams", pace.streams, count_reads=pace.interval == 0)
        with start(plan, load, self._certificates.authority) as pair:
            pair.mark("go")
            _wait_for_tokens(pair, pace.streams)
            time.sleep(self._warm_up)  # Part of the measurement: nothing is counted yet.
            before = pair.mark()
            time.sleep(seconds)  # Nothing is asked of the client meanwhile: it would cost CPU.
            after = pair.mark()
            if after.client.errors:
                raise Failed(after.client.errors[0])
            if after.server.streams != pace.streams:
                raise Failed(f"{after.server.streams} of {pace.streams} streams were open")
            window = _window(before, after, after.client.tokens - before.client.tokens)
            client = after.client
            return msgspec.structs.replace(
                window,
                lateness=client.lateness,
                arrival=client.arrival,
                delivery=client.delivery,
            )

    def while_steady(self, peer: str, pace: Pace, do: Callable[[Pair], None]) -> None:
        """Do something with every stream open."""
        load = _load(peer, "streams", pace.streams)
        with start(pace.plan(0, self._certificates), load, self._certificates.authority) as pair:
            pair.mark("go")
            _wait_for_tokens(pair, pace.streams)
            time.sleep(self._warm_up)  # Part of the measurement: nothing is counted yet.
            do(pair)

    def opening(self, peer: str, streams: int, *, tls: bool) -> Window:
        """CPU a stream: connect, shake hands, ask, and get the first token."""
        certificate = self._certificates.server if tls else None
        plan = Plan(first=1, certificate=certificate)
        with start(plan, _load(peer, "streams", streams), self._certificates.authority) as pair:
            before = pair.mark("go")
            after = _wait_for_tokens(pair, streams)
            return _window(before, after, streams)

    def request(self, peer: str) -> Window:
        """CPU a request of one token, one after another on one connection."""
        with start(Plan(first=1, finish=True), _load(peer, "requests", 1)) as pair:
            pair.mark("go")
            before = _wait(pair, lambda client: client.requests >= WARM_REQUESTS)
            time.sleep(self._seconds)  # Part of it too: requests go on meanwhile.
            after = pair.mark()
            if after.server.accepted != 1:
                raise Failed(f"{after.server.accepted} connections for requests one by one")
            return _window(before, after, after.client.requests - before.client.requests)

    def memory(self, peer: str) -> float:
        """KiB an open stream, with its session where there are sessions."""
        task = "sessions" if PEERS[peer].module == "gz" else "streams"
        resident: list[int] = []
        for streams in MEMORY_STREAMS:
            with start(Plan(first=1), _load(peer, task, streams)) as pair:
                pair.mark("go")
                _wait_for_tokens(pair, streams)
                time.sleep(SETTLE_SECONDS)  # What opening took is given back by then.
                resident.append(pair.mark().client.resident)
        few, many = MEMORY_STREAMS
        return (resident[1] - resident[0]) / (many - few) / 1024

    def refresh(self, peer: str, streams: int) -> Window:
        """CPU a stream from a granted refresh until all are streaming again."""
        with start(Plan(first=1, stamped=False), _load(peer, "refreshed", streams)) as pair:
            pair.mark("go")
            _wait_for_tokens(pair, streams)
            pair.rotate(NEW_KEY)
            _wait(pair, lambda client: client.paused >= streams)
            time.sleep(SETTLE_SECONDS)  # What the pause took is over by then.
            before = pair.mark("grant")
            after = _wait_for_tokens(pair, 2 * streams)
            return _window(before, after, streams)


def _load(peer: str, task: str, streams: int, *, count_reads: bool = False) -> Load:
    return Load(
        peer=peer,
        task=task,
        base_url="",
        streams=streams,
        variant=PEERS[peer].variant,
        count_reads=count_reads,
    )


def _wait(pair: Pair, condition: Callable[[Mark], bool]) -> Moment:
    """Wait until it holds."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        moment = pair.mark()
        if moment.client.errors:
            raise Failed(moment.client.errors[0])
        if condition(moment.client):
            return moment
        if time.monotonic() > deadline:
            raise Failed(f"not there after {PATIENCE_SECONDS} s: {moment}")
        time.sleep(POLL_SECONDS)  # The client is asked seldom: asking costs it CPU.


def _wait_for_tokens(pair: Pair, tokens: int) -> Moment:
    return _wait(pair, lambda client: client.tokens >= tokens)


def _window(before: Moment, after: Moment, count: int) -> Window:
    """What was between two instants; CPU is that of one out of `count`."""
    client, server = after.client, after.server
    took = client.now - before.client.now
    cpu = client.cpu - before.client.cpu
    tokens = client.tokens - before.client.tokens
    reads = client.reads - before.client.reads
    return Window(
        seconds=took / 1e9,
        tokens=tokens,
        cpu=cpu / max(count, 1) / 1e3,
        client=cpu / took,
        server=(server.cpu - before.server.cpu) / (server.now - before.server.now),
        others=max(0.0, (after.core - before.core) * 1e9 / took - cpu / took),
        tokens_per_read=tokens / reads if reads else None,
    )
