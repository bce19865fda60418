"""The process in which the fake gateway runs; `open_fake_gateway` starts it.

python -m gz_trio.simulate._fake_gateway PLAN

PLAN is a `FakePlan` as JSON. A line of JSON says where it listens. Lines on its standard input tell
it what to do:

begin NS    the load begins at this instant of `time.perf_counter_ns`
counts      print what was seen so far, a `FakeCounts` as a line of JSON

The end of its standard input, and nothing else, ends it.
"""

from __future__ import annotations

import gc
import os
import random
import sys
import time
from collections.abc import Iterator
from heapq import heapify, heappop, heappush

import msgspec
import trio

from .._open_files import allow_all_files
from ..testing import FakeGateway, SeenRequest, Stall, add_fault
from ._fake import ALL_GROUPS, FakeCounts, FakePlan, intended_tokens, token_of
from ._values import Distribution

_COMPLETIONS = "/v1/chat/completions"
_LEAST_LIFE = 0.001


class Ledger:
    """Counts requests that are over, and rotations."""

    def __init__(self) -> None:
        self.requests = 0
        self.tokens = 0
        self.rotations: list[tuple[float, int]] = []

    def note(self, seen: SeenRequest) -> None:
        """Count a request."""
        self.requests += seen.path == _COMPLETIONS
        self.tokens += seen.tokens

    def counts(self, gateway: FakeGateway) -> FakeCounts:
        """All that is known."""
        return FakeCounts(
            requests=self.requests,
            rejected=gateway.rejected,
            refreshes=gateway.refreshes,
            auth_errors=gateway.auth_errors,
            tokens=self.tokens,
            rotations=self.rotations,
        )


def gateway_of(plan: FakePlan, ledger: Ledger) -> FakeGateway:
    """A gateway as it is planned."""
    gateway = FakeGateway(
        token_interval=plan.token_interval,
        on_rotation=plan.on_rotation,
        answer=lambda body, _attempt: intended_tokens(body),
        auth_latency=plan.auth_latency,
        models=None,
        ledger=False,
        on_request=ledger.note,
    )
    for group in range(plan.groups):
        gateway.add_account(token_of(group))
    if plan.first_token:
        gateway.fault(Stall(plan.first_token), token=0, times=None)
    for words in plan.faults:
        add_fault(gateway, words)
    return gateway


def rotations(plan: FakePlan) -> Iterator[tuple[float, int]]:
    """When keys are replaced, in seconds from the start, and whose; without end if keys age."""
    storms = [(when, ALL_GROUPS, 0) for when in plan.rotations]
    if plan.lifetime is None:
        yield from ((when, group) for when, group, _ in sorted(storms))
        return
    lifetimes = Distribution.parse(plan.lifetime, durations=True)
    keys = [0] * plan.groups

    def end_of_next_key(group: int, born: float) -> tuple[float, int, int]:
        keys[group] += 1
        # Each life has dice of its own: it is the same whatever became of other groups.
        dice = random.Random(f"{plan.seed}/{group}/{keys[group]}")
        return born + max(_LEAST_LIFE, lifetimes.draw(dice)), group, keys[group]

    ends = [*storms, *(end_of_next_key(group, 0.0) for group in range(plan.groups))]
    heapify(ends)
    while True:
        when, group, key = heappop(ends)
        if group != ALL_GROUPS and key != keys[group]:
            continue  # It did not live so long: a storm came first.
        yield when, group
        for reborn in range(plan.groups) if group == ALL_GROUPS else (group,):
            heappush(ends, end_of_next_key(reborn, when))


async def rotate(gateway: FakeGateway, plan: FakePlan, begin_ns: int, ledger: Ledger) -> None:
    """Replace keys when it is time."""
    start = trio.current_time() + (begin_ns - time.perf_counter_ns()) / 1e9
    for when, group in rotations(plan):
        await trio.sleep_until(start + when)
        for each in range(plan.groups) if group == ALL_GROUPS else (group,):
            gateway.rotate(account=token_of(each))
        ledger.rotations.append((trio.current_time() - start, group))


async def serve(plan: FakePlan) -> None:
    """Serve until the end of standard input."""
    ledger = Ledger()
    gateway = gateway_of(plan, ledger)
    async with gateway.listen() as base_url, trio.open_nursery() as nursery:
        _say({"base_url": base_url})
        begun = b""
        # The thread reads past `sys.stdin`, whose lock the end of the process would want.
        while data := await trio.to_thread.run_sync(os.read, 0, 4_096, abandon_on_cancel=True):
            *lines, begun = (begun + data).split(b"\n")
            for line in lines:
                match line.split():
                    case [b"begin", ns]:
                        nursery.start_soon(rotate, gateway, plan, int(ns), ledger)
                    case [b"counts"]:
                        _say(ledger.counts(gateway))
                    case _:
                        raise ValueError(f"{line!r} is nothing that the fake gateway can do")
        nursery.cancel_scope.cancel()


def _say(what: object) -> None:
    sys.stdout.write(msgspec.json.encode(what).decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    allow_all_files()
    # Looking for garbage among thousands of connections makes every stream late.
    gc.freeze()
    gc.set_threshold(50_000, 50, 50)
    trio.run(serve, msgspec.json.decode(sys.argv[1], type=FakePlan))
