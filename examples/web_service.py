"""Answers over HTTP, as they are written: FastAPI on Trio.

GATEWAY=https://api.gatewayz.ai/v1 MODEL=gpt-4o-mini KEY_COMMAND=print-a-key \
    hypercorn --worker-class trio examples/web_service.py
curl -N 'http://127.0.0.1:8000/answer?question=How+do+stories+begin%3F'

It needs the packages fastapi and hypercorn. KEY_COMMAND is a program that prints a key: it is run
once at first, and once whenever a key is rejected, and all answers that are under way go on.
"""

import os
import shlex
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, Request
from fastapi.responses import StreamingResponse

import gz_trio


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[dict[str, gz_trio.Gateway]]:
    """Keep one gateway, and so one key, for all requests."""
    refresh = gz_trio.CommandRefresh(shlex.split(os.environ["KEY_COMMAND"]))
    async with (
        gz_trio.open_authenticator(gz_trio.MemoryKeyStore(), refresh) as authenticator,
        gz_trio.open_gateway(os.environ["GATEWAY"], authenticator) as gateway,
    ):
        yield {"gateway": gateway}


async def reply_to(request: Request, question: str) -> AsyncGenerator[gz_trio.Reply]:
    """Ask the gateway; its stream is closed when the response is sent, or its client is gone."""
    gateway: gz_trio.Gateway = request.state.gateway
    async with (
        gateway.open_session(os.environ["MODEL"]) as session,
        session.stream(question) as reply,
    ):
        yield reply  # noqa: ASYNC119 - FastAPI makes a context manager of it


app = FastAPI(lifespan=lifespan)


@app.get("/answer")
async def answer(reply: Annotated[gz_trio.Reply, Depends(reply_to)]) -> StreamingResponse:
    """If the reply fails, the response breaks off, so that nobody takes it for a whole one."""
    texts = (delta.text async for delta in reply)
    return StreamingResponse(texts, media_type="text/plain; charset=utf-8")
