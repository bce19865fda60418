"""One measurement: a peer in a fresh process, against a fresh server, between two instants."""

from __future__ import annotations

import time

import msgspec

from .load_server import Counts, Plan
from .peers import PEERS, Load
from .processes import PATIENCE_SECONDS, Pair, start
from .tally import Mark, Quantiles

WARM_UP_SECONDS = 1.0
POLL_SECONDS = 0.1
LONGEST_SECONDS = 30.0


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen between two marks.

    Args:
        seconds: How long it was.
        tokens: That the client's code got in it.
        cpu: Microseconds of the client's CPU, a token.
        client: How busy the client was, of its core.
        server: How busy the server was.
        lateness: Written by the server minus due; microseconds, as all that follows.
        arrival: Stamped by the client, where it does, minus written.
        delivery: In the caller's hands minus written.
        tokens_per_read: Where that is counted.
    """

    seconds: float
    tokens: int
    cpu: float
    client: float
    server: float
    lateness: Quantiles | None
    arrival: Quantiles | None
    delivery: Quantiles | None
    tokens_per_read: float | None


class Failed(Exception):
    """The peer could not do it."""


def make_load(peer: str, task: str, streams: int, *, count_reads: bool = False) -> Load:
    """What a client is to do, but for the URL."""
    return Load(
        peer=peer,
        task=task,
        base_url="",
        streams=streams,
        variant=PEERS[peer].variant,
        count_reads=count_reads,
    )


def steady(
    peer: str, plan: Plan, seconds: float, tokens: int, authority: str | None = None
) -> Window:
    """With every stream open: at least so many seconds and so many tokens."""
    load = make_load(peer, "streams", plan.streams, count_reads=plan.interval == 0)
    with start(plan, load, authority) as pair:
        pair.mark("go")
        _until_tokens(pair, plan.streams)
        time.sleep(WARM_UP_SECONDS)
        before = pair.mark()
        began = time.monotonic()
        time.sleep(seconds)
        after = pair.mark()
        while (
            after[0].tokens - before[0].tokens < tokens
            and time.monotonic() - began < LONGEST_SECONDS
        ):
            time.sleep(POLL_SECONDS)
            after = pair.mark()
        _check(after, plan.streams)
        return window(before, after)


def window(before: tuple[Mark, Counts], after: tuple[Mark, Counts]) -> Window:
    """What was between two marks."""
    (client, server), (client_after, server_after) = before, after
    took = client_after.now - client.now
    tokens = client_after.tokens - client.tokens
    reads = client_after.reads - client.reads
    cpu = client_after.cpu - client.cpu
    return Window(
        seconds=took / 1e9,
        tokens=tokens,
        cpu=cpu / max(tokens, 1) / 1e3,
        client=cpu / took,
        server=(server_after.cpu - server.cpu) / (server_after.now - server.now),
        lateness=client_after.lateness,
        arrival=client_after.arrival,
        delivery=client_after.delivery,
        tokens_per_read=tokens / reads if reads else None,
    )


def _until_tokens(pair: Pair, tokens: int) -> tuple[Mark, Counts]:
    """Wait until the client has had so many tokens."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        mark = pair.mark()
        if mark[0].errors:
            raise Failed(mark[0].errors[0])
        if mark[0].tokens >= tokens:
            return mark
        if time.monotonic() > deadline:
            raise Failed(f"{mark[0].tokens} of {tokens} tokens after {PATIENCE_SECONDS} s: {mark}")
        time.sleep(POLL_SECONDS)


def _check(mark: tuple[Mark, Counts], streams: int) -> None:
    client, server = mark
    if client.errors:
        raise Failed(client.errors[0])
    if server.streams != streams:
        raise Failed(f"{server.streams} of {streams} streams were open at the end")
