"""A reader that pauses while the server has ten minutes of tokens to send: what that costs.

Offered is what the fastest models would send in ten minutes: 1,000 tokens a second, some 200 bytes
each as events. A pause lasts until the server has got stuck in its sends, from when on nothing
changes however long it lasts; then the reader reads on, and is to get every token. The memory is
what Python's allocations come to at their peak in a pause, all of the client's: a reply opened in
the pause with everything that belongs to it. What the kernel holds of the connection is not in it.
"""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

import gz_trio

from .rotation import Load, Row, Server, body, serve

OFFERED_BYTES = 1000 * 600 * 200
ENVELOPE_BYTES = 170
"""Of an event, beside the text of its token."""

STUCK_SECONDS = 0.2
PATIENCE_SECONDS = 600
LIMIT_KIB = 4 * 1024
"""For a reply that is paused. It has a buffer of 256 KiB, and what objects cost beside bytes."""


@dataclass
class _Reader:
    """Reads one reply, and pauses after each `every` tokens, the first time before any."""

    tokens: int
    characters: int
    every: int
    token: int = 0
    wrong: bool = False
    paused: trio.Event = field(default_factory=trio.Event)
    go_on: trio.Event = field(default_factory=trio.Event)

    async def run(self, gateway: gz_trio.Gateway, number: int) -> None:
        async with gateway.stream(body(number)) as reply:
            await self._pause()
            async for delta in reply:
                if delta.text:
                    self.wrong |= delta.text != f"{self.token:<{self.characters}}"
                    self.token += 1
                    if self.token % self.every == 0 and self.token < self.tokens:
                        await self._pause()

    async def _pause(self) -> None:
        self.paused.set()
        await self.go_on.wait()
        self.go_on = trio.Event()


async def gz_trio_paused(load: Load) -> Row:
    """One reply, paused three times."""
    return await _paused("gz_trio, a reader that pauses", load, replies=1, pauses=3)


async def gz_trio_many_paused(load: Load) -> Row:
    """Twenty replies, paused at once, with as much to send between them."""
    return await _paused("gz_trio, 20 readers that pause", load, replies=20, pauses=1)


async def _paused(name: str, load: Load, *, replies: int, pauses: int) -> Row:
    characters = load.paused_token_characters
    tokens = OFFERED_BYTES // replies // (characters + ENVELOPE_BYTES)
    every = -(-tokens // pauses)
    readers = [_Reader(tokens, characters, every) for _ in range(replies)]
    peaks: list[float] = []
    ahead: list[int] = []
    async with (
        serve(tokens, 0, characters) as server,
        gz_trio.open_gateway(server.base_url, "sk-1") as gateway,
    ):
        with trio.fail_after(PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                async with _peak_kib() as peak:
                    for number, reader in enumerate(readers):
                        nursery.start_soon(reader.run, gateway, number)
                    ahead.append(await _until_stuck(server, readers))
                peaks += peak
                for _ in range(pauses - 1):
                    _go_on(readers)
                    for reader in readers:
                        await reader.paused.wait()
                    async with _peak_kib() as peak:
                        ahead.append(await _until_stuck(server, readers))
                    peaks += peak
                _go_on(readers)
    kib = max(peaks) / replies
    broken = [
        f"reply {number}: {reader.token} tokens of {tokens}, or another text than was meant"
        for number, reader in enumerate(readers)
        if reader.wrong or reader.token != tokens
    ]
    if kib > LIMIT_KIB:
        broken.append(f"a paused reply takes {kib:.0f} KiB, and may take {LIMIT_KIB}")
    return Row(
        name,
        {
            "offered_mib": replies * tokens * (characters + ENVELOPE_BYTES) / 2**20,
            "sent_ahead_mib_max": max(ahead) * (characters + ENVELOPE_BYTES) / 2**20,
            "peak_kib_per_paused_reply": kib,
        },
        tuple(broken),
    )


def _go_on(readers: list[_Reader]) -> None:
    for reader in readers:
        reader.paused = trio.Event()
        reader.go_on.set()


async def _until_stuck(server: Server, readers: list[_Reader]) -> int:
    """Wait until the server sends no more; by how many tokens it is ahead of the readers."""
    for reader in readers:
        await reader.paused.wait()
    sent = 0
    while True:
        before = sent
        sent = int(json.loads(await server.tell("counts"))["tokens"])
        if before == sent > 0:
            return sent - sum(reader.token for reader in readers)
        await trio.sleep(STUCK_SECONDS)


@asynccontextmanager
async def _peak_kib() -> AsyncGenerator[list[float]]:
    """The most that was allocated in the block, in KiB; in the list after it."""
    peak: list[float] = []
    tracemalloc.start()
    try:
        yield peak
    finally:
        peak.append(tracemalloc.get_traced_memory()[1] / 1024)
        tracemalloc.stop()
