"""The OpenAI SDK on Trio, unpatched: over its own HTTP client, or over one of gz_trio's making."""

from __future__ import annotations

import math
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

import httpx2
import openai
import trio

import gz_trio

from ..tally import Tally
from . import OPENING, Load
from .wire import KEY, MODEL

STREAMS_A_CLIENT = 100
"""In one pool of the SDK's own client each request would cost a look at all connections."""


@asynccontextmanager
async def _clients(load: Load) -> AsyncGenerator[list[openai.AsyncOpenAI]]:
    """Clients that share the streams."""
    make = partial(openai.AsyncOpenAI, api_key=KEY, base_url=load.base_url, timeout=None)
    match load.variant:
        case "gateway":
            async with gz_trio.open_gateway(load.base_url, KEY) as gateway:
                yield [make(http_client=gateway.http_client(httpx2))]
        case "transport":
            async with gz_trio.httpx_transport(httpx2) as transport:
                yield [make(http_client=httpx2.AsyncClient(transport=transport))]
        case _:
            new_client = partial(
                openai.DefaultAsyncHttpxClient,
                verify=ssl.create_default_context(),
                limits=httpx2.Limits(max_connections=None),
            )
            count = -(-load.streams // STREAMS_A_CLIENT)
            yield [make(http_client=new_client()) for _ in range(count)]


async def streams(load: Load, tally: Tally) -> None:
    """Open the streams, and read them until they end."""
    # The gateway's client bounds that itself, and its heads come with the first token, which the
    # server sends when the last stream has been asked for.
    limiter = trio.CapacityLimiter(math.inf if load.variant == "gateway" else OPENING)

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

    async with _clients(load) as clients, trio.open_nursery() as nursery:
        for number in range(load.streams):
            nursery.start_soon(read, clients[number % len(clients)], number)
