"""aiohttp on uvloop, with the same decoding of events as the raw peers."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import aiohttp

from ..tally import Tally
from . import OPENING, Load
from .wire import KEY, EventStream, body


async def streams(load: Load, tally: Tally) -> None:
    """Open the streams, and read them until they end."""
    limiter = asyncio.Semaphore(OPENING)
    url = f"{load.base_url}/chat/completions"

    async def read(number: int) -> None:
        async with AsyncExitStack() as stack:
            async with limiter:
                response = await stack.enter_async_context(session.post(url, json=body(number)))
                response.raise_for_status()
            events = EventStream()
            async for data in response.content.iter_any():
                for chunk in events.feed(data):
                    for choice in chunk.choices:
                        if choice.delta.content:
                            tally.take(choice.delta.content)

    async with (
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            headers={"Authorization": f"Bearer {KEY}"},
        ) as session,
        asyncio.TaskGroup() as group,
    ):
        for number in range(load.streams):
            group.create_task(read(number))
