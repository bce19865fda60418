"""httpx or httpx2 on Trio, with the same decoding of events as the raw peers.

Both have one API; which of them is imported, the variant says.
"""

from __future__ import annotations

import importlib
import ssl
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import trio

from ..tally import Tally
from . import OPENING, Load
from .wire import KEY, EventStream, body

STREAMS_A_CLIENT = 100
"""In one pool each request would cost a look at all connections."""

if TYPE_CHECKING:
    import httpx

HEADERS = {"Authorization": f"Bearer {KEY}"}


def make_client(load: Load, context: ssl.SSLContext) -> httpx.AsyncClient:
    """A client without limits."""
    module = importlib.import_module(load.variant)
    client: httpx.AsyncClient = module.AsyncClient(
        verify=context, timeout=None, limits=module.Limits(max_connections=None)
    )
    return client


async def streams(load: Load, tally: Tally) -> None:
    """Open the streams, and read them until they end."""
    limiter = trio.CapacityLimiter(OPENING)
    url = f"{load.base_url}/chat/completions"

    async def read(client: httpx.AsyncClient, number: int) -> None:
        async with AsyncExitStack() as stack:
            async with limiter:
                response = await stack.enter_async_context(
                    client.stream("POST", url, json=body(number), headers=HEADERS)
                )
                response.raise_for_status()
            events = EventStream()
            async for data in response.aiter_bytes():
                for chunk in events.feed(data):
                    for choice in chunk.choices:
                        if choice.delta.content:
                            tally.take(choice.delta.content)

    context = ssl.create_default_context()
    clients = [make_client(load, context) for _ in range(-(-load.streams // STREAMS_A_CLIENT))]
    async with trio.open_nursery() as nursery:
        for number in range(load.streams):
            nursery.start_soon(read, clients[number // STREAMS_A_CLIENT], number)


async def requests(load: Load, tally: Tally) -> None:
    """One request after another on one connection."""
    url = f"{load.base_url}/chat/completions"
    async with make_client(load, ssl.create_default_context()) as client:
        while True:
            async with client.stream("POST", url, json=body(0), headers=HEADERS) as response:
                response.raise_for_status()
                events = EventStream()
                async for data in response.aiter_bytes():
                    for chunk in events.feed(data):
                        for choice in chunk.choices:
                            if choice.delta.content:
                                tally.take(choice.delta.content)
            tally.requests += 1
