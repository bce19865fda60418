"""Streams and a rotation: the key dies while each of them runs, and all go on to their end.

1,000 of gz_trio's own, and 500 of the OpenAI SDK over `gateway.http_client()`. No other peer takes
part: each of its streams would be lost. Client and server each have a core where there are two.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import httpx2
import openai
import trio

import gz_trio
from gz_trio.testing import FakeGateway

from .processes import SERVER_CORE, pin

OPEN_SECONDS = 60
SDK_STREAMS = 500


@dataclass(frozen=True)
class Load:
    """How many streams, and how they run: tokens each, seconds between tokens.

    `paused_token_characters`: of the tokens that are offered to a reader that pauses.
    """

    streams: int
    tokens: int
    token_interval: float
    paused_token_characters: int


@dataclass
class Counts:
    """What the streams of one row did so far."""

    open: int = 0
    all_open: trio.Event = field(default_factory=trio.Event)
    errors: list[str] = field(default_factory=list[str])

    def opened(self, load: Load) -> None:
        """One more stream has its first token."""
        self.open += 1
        if self.open == load.streams:
            self.all_open.set()


@dataclass(frozen=True)
class Row:
    """One line of the result."""

    name: str
    figures: dict[str, float]
    broken: tuple[str, ...] = ()


class Server:
    """The server process, told what to do by lines."""

    def __init__(self, process: trio.Process, base_url: str) -> None:
        self._process = process
        self.base_url = base_url

    async def tell(self, command: str) -> str:
        """Send one command; the line that answers it."""
        assert self._process.stdin is not None
        await self._process.stdin.send_all(f"{command}\n".encode())
        return await _line(self._process)


@asynccontextmanager
async def serve(
    tokens: int, token_interval: float, token_characters: int | None = None
) -> AsyncGenerator[Server]:
    """Start the server process; stop it at the end."""
    async with trio.open_nursery() as nursery:
        command = [
            *(sys.executable, "-m", "benchmarks.fake_gateway"),
            *("--tokens", str(tokens)),
            *("--token-interval", str(token_interval)),
        ]
        if token_characters is not None:
            command += ["--token-characters", str(token_characters)]
        run = partial(trio.run_process, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        process: trio.Process = await nursery.start(run)
        pin(process.pid, SERVER_CORE)
        yield Server(process, await _line(process))
        assert process.stdin is not None
        await process.stdin.aclose()


async def _line(process: trio.Process) -> str:
    assert process.stdout is not None
    line = b""
    while not line.endswith(b"\n"):
        data = await process.stdout.receive_some()
        if not data:
            raise RuntimeError("the benchmark's server has died")
        line += data
    return line.decode().strip()


def body(number: int) -> dict[str, object]:
    """The request of one stream."""
    return {
        "model": "fake-model",
        "messages": [{"role": "user", "content": f"Question {number}"}],
        "stream": True,
    }


async def gz_trio_rotation(load: Load) -> Row:
    """gz_trio: the key dies while every stream runs; all of them go on to their end."""
    pauses: list[float] = []

    def reader(gateway: gz_trio.Gateway, _: str) -> Reader:
        async def read(number: int, opened: Callable[[], None]) -> str:
            text = ""
            async with gateway.stream(body(number)) as reply:
                async for delta in reply:
                    if not text and delta.text:
                        opened()
                    text += delta.text
            pauses.append(reply.timing.paused)
            return text

        return read

    row = await _rotation(load, "gz_trio, the key dies", reader)
    pauses.sort()
    row.figures["paused_ms_p50"] = pauses[len(pauses) // 2] * 1e3 if pauses else 0.0
    row.figures["paused_ms_max"] = pauses[-1] * 1e3 if pauses else 0.0
    return row


async def openai_rotation(load: Load) -> Row:
    """The OpenAI SDK over `gateway.http_client()`: likewise, and it is told nothing of it."""

    def reader(gateway: gz_trio.Gateway, base_url: str) -> Reader:
        sdk = openai.AsyncOpenAI(
            api_key="not the gateway's",
            base_url=base_url,
            max_retries=0,
            http_client=gateway.http_client(httpx2),
        )

        async def read(number: int, opened: Callable[[], None]) -> str:
            text = ""
            stream = await sdk.chat.completions.create(
                model="fake-model",
                messages=[{"role": "user", "content": f"Question {number}"}],
                stream=True,
            )
            async for chunk in stream:
                for choice in chunk.choices:
                    if not text and choice.delta.content:
                        opened()
                    text += choice.delta.content or ""
            return text

        return read

    of_sdk = replace(load, streams=SDK_STREAMS)
    return await _rotation(of_sdk, "the OpenAI SDK, the key dies", reader)


Reader = Callable[[int, Callable[[], None]], Awaitable[str]]
"""Reads the stream of that number to its end, tells when its first token is there, and gives its
text."""


async def _rotation(
    load: Load, name: str, new_reader: Callable[[gz_trio.Gateway, str], Reader]
) -> Row:
    """The key dies when each of the streams has its first token.

    Args:
        load: The streams.
        name: Of the row.
        new_reader: What reads through a gateway, given its base URL too.
    """
    counts = Counts()
    intended = FakeGateway(tokens=load.tokens).intended
    calls: list[gz_trio.Key | None] = []

    async def refresh(rejected: gz_trio.Key | None) -> str:
        calls.append(rejected)
        return "sk-2"

    async def stream(read: Reader, number: int) -> None:
        text = ""
        try:
            text = await read(number, partial(counts.opened, load))
        except (gz_trio.GatewayError, openai.OpenAIError) as error:
            counts.errors.append(f"stream {number}: {error}")
        if text != intended(body(number)):
            counts.errors.append(f"stream {number} has another text than was meant")

    async with (
        serve(load.tokens, load.token_interval) as server,
        gz_trio.open_authenticator(gz_trio.MemoryKeyStore("sk-1"), refresh) as authenticator,
        gz_trio.open_gateway(server.base_url, authenticator) as gateway,
    ):
        read = new_reader(gateway, server.base_url)
        async with trio.open_nursery() as nursery:
            for number in range(load.streams):
                nursery.start_soon(stream, read, number)
            with trio.fail_after(OPEN_SECONDS):
                await counts.all_open.wait()
            cpu = time.process_time()
            await server.tell("rotate")
        cpu = time.process_time() - cpu
        rejected = json.loads(await server.tell("counts"))["rejected"]
    if len(calls) != 1:
        counts.errors.append(f"{len(calls)} refreshes for one rotation")
    return Row(
        name,
        {
            "streams": load.streams,
            "rejected": rejected,
            "refreshes": len(calls),
            "cpu_ms_per_stream_to_its_end": cpu / load.streams * 1e3,
        },
        tuple(counts.errors),
    )
