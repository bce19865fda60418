"""The OpenAI SDK on Trio, which brings its own HTTP client, decoding and types."""

from __future__ import annotations

import ssl

import httpx2
import openai
import trio

from ..tally import Tally
from . import OPENING, Load
from .wire import KEY, MODEL

STREAMS_A_CLIENT = 100
"""In one pool each request would cost a look at all connections."""


async def streams(load: Load, tally: Tally) -> None:
    """Open the streams, and read them until they end."""
    limiter = trio.CapacityLimiter(OPENING)
    context = ssl.create_default_context()

    def make_client() -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            api_key=KEY,
            base_url=load.base_url,
            timeout=None,
            http_client=openai.DefaultAsyncHttpxClient(
                verify=context, limits=httpx2.Limits(max_connections=None)
            ),
        )

    async def read(client: openai.AsyncOpenAI, number: int) -> None:
        async with limiter:
            stream = await client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": f"Question {number}"}],
                stream=True,
            )
        async for chunk in stream:
            for choice in chunk.choices:
                if choice.delta.content:
                    tally.take(choice.delta.content)

    clients = [make_client() for _ in range(-(-load.streams // STREAMS_A_CLIENT))]
    async with trio.open_nursery() as nursery:
        for number in range(load.streams):
            nursery.start_soon(read, clients[number // STREAMS_A_CLIENT], number)
