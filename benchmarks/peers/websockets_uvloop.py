"""The `websockets` library on uvloop: by itself, and under the OpenAI SDK, whose own it is."""

from __future__ import annotations

import asyncio

import msgspec
import openai
import websockets
from openai.types.responses.responses_client_event_param import ResponseCreate

from ..tally import Tally
from . import OPENING, Load
from .wire import KEY, MODEL


class Event(msgspec.Struct, gc=False):
    """A frame; msgspec skips the fields that are not here."""

    type: str
    delta: str = ""


_decode = msgspec.json.Decoder(Event).decode


def _turn(number: int) -> ResponseCreate:
    return {"type": "response.create", "model": MODEL, "input": f"Question {number}"}


def _url(load: Load) -> str:
    return load.base_url.replace("http", "ws", 1)


async def _alone(load: Load, tally: Tally) -> None:
    """Open the streams, each on a connection of its own, and take frames apart by hand."""
    limiter = asyncio.Semaphore(OPENING)

    async def read(number: int) -> None:
        async with limiter:
            connection = await websockets.connect(
                f"{_url(load)}/responses",
                additional_headers={"Authorization": f"Bearer {KEY}"},
                max_size=None,
                compression=None,
            )
        async with connection:
            await connection.send(msgspec.json.encode(_turn(number)), text=True)
            async for message in connection:
                event = _decode(message)
                if event.type == "response.output_text.delta":
                    tally.take(event.delta)

    async with asyncio.TaskGroup() as group:
        for number in range(load.streams):
            group.create_task(read(number))


async def _by_the_sdk(load: Load, tally: Tally) -> None:
    """Open the streams by the SDK, each on a connection of its own."""
    limiter = asyncio.Semaphore(OPENING)

    async def read(number: int) -> None:
        manager = client.responses.connect()
        async with limiter:
            connection = await manager.enter()
        await connection.send(_turn(number))
        async for event in connection:
            if event.type == "response.output_text.delta":
                tally.take(event.delta)

    async with (
        openai.AsyncOpenAI(
            api_key=KEY, base_url=load.base_url, websocket_base_url=_url(load)
        ) as client,
        asyncio.TaskGroup() as group,
    ):
        for number in range(load.streams):
            group.create_task(read(number))


async def streams(load: Load, tally: Tally) -> None:
    """Open the streams, and read them until they end."""
    await (_by_the_sdk if load.variant == "openai" else _alone)(load, tally)
