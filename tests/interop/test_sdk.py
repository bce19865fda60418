"""OpenAI's own SDK, as it is, with a client of the library for a connection."""

from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx2
import openai
import pytest
import trio

from tests.interop import plain
from tests.interop.line import laid, open_gateway
from tests.interop.servers import MODEL, Engine

CANDIDATES = [[f"Chat {number}: tell me a story."] for number in range(24)]
Texts = defaultdict[str, str]


async def complete(client: openai.AsyncOpenAI, question: str, texts: Texts) -> None:
    stream = await client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": question}], stream=True
    )
    async for chunk in stream:
        texts[question] += chunk.choices[0].delta.content or ""


async def respond(client: openai.AsyncOpenAI, question: str, texts: Texts) -> None:
    stream = await client.responses.create(model=MODEL, input=question, stream=True)
    async for event in stream:
        if event.type == "response.output_text.delta":
            texts[question] += event.delta


@pytest.mark.parametrize("ask", [complete, respond])
# The SDK stops at `[DONE]` and leaves its generators, and httpx's, to the garbage collector.
@pytest.mark.filterwarnings("ignore:Async generator '(openai|httpx2):ResourceWarning")
async def test_its_streams_outlive_a_rotation(
    engine: Engine,
    nginx: Path,
    ask: Callable[[openai.AsyncOpenAI, str, Texts], Awaitable[None]],
) -> None:
    expected = dict(await plain.whole_chats(engine.base_url, CANDIDATES))
    texts = Texts(str)
    async with laid(engine, nginx) as line, open_gateway(line) as gateway:
        client = openai.AsyncOpenAI(
            base_url=line.front.base_url,
            api_key="the library has it",
            http_client=gateway.http_client(httpx2),
            max_retries=0,
        )
        with trio.fail_after(60.0):
            async with trio.open_nursery() as nursery:
                for question in expected:
                    nursery.start_soon(ask, client, question, texts)
                await line.rotate(texts.get, expected)
    assert texts == expected
