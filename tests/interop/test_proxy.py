"""`gz-trio proxy` between nginx with an engine and clients that know of no rotation."""

import json
import subprocess
from collections import defaultdict
from contextlib import AbstractAsyncContextManager
from itertools import cycle
from pathlib import Path

import openai
import pytest
import trio

from tests.interop import plain
from tests.interop.conftest import FIRST_KEY
from tests.interop.line import NEXT_KEY, Line, laid
from tests.interop.servers import MODEL, Engine
from tests.servers import Server, open_server

CANDIDATES = [[f"Chat {number}: tell me a story."] for number in range(16)]
Texts = defaultdict[str, str]


def server(line: Line) -> AbstractAsyncContextManager[Server]:
    return open_server(
        *("proxy", "--port", "0", "--base-url", line.front.base_url),
        *("--refresh-command", f"echo {NEXT_KEY}"),
        GZ_API_KEY=FIRST_KEY,
    )


async def ask_by_sdk(base_url: str, token: str, question: str, texts: Texts) -> None:
    """OpenAI's SDK without async, in a thread."""

    def ask() -> None:
        with openai.OpenAI(base_url=base_url, api_key=token, timeout=60.0, max_retries=0) as client:
            for chunk in client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": question}], stream=True
            ):
                texts[question] += chunk.choices[0].delta.content or ""

    await trio.to_thread.run_sync(ask)


async def ask_by_async_sdk(base_url: str, token: str, question: str, texts: Texts) -> None:
    async with openai.AsyncOpenAI(base_url=base_url, api_key=token, max_retries=0) as client:
        async for chunk in await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": question}], stream=True
        ):
            texts[question] += chunk.choices[0].delta.content or ""


async def ask_by_curl(base_url: str, token: str, question: str, texts: Texts) -> None:
    body = {"model": MODEL, "messages": [plain.user(question)], "stream": True}
    process = await trio.lowlevel.open_process(
        [
            "curl", "--no-buffer", "--silent", "--show-error", "--fail-with-body",
            "--oauth2-bearer", token, "--json", json.dumps(body), f"{base_url}/chat/completions",
        ],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    received = b""
    assert process.stdout is not None
    async with process.stdout:
        async for part in process.stdout:
            received += part
            whole, end, _ = received.rpartition(b"\n\n")
            texts[question] = plain.text_of(whole + end)
    assert await process.wait() == 0
    assert received.endswith(b"data: [DONE]\n\n")


# The SDK stops at `[DONE]` and leaves its generators, and httpx's, to the garbage collector.
@pytest.mark.filterwarnings("ignore:Async generator '(openai|httpx2|httpcore2):ResourceWarning")
async def test_the_sdk_and_curl_see_nothing_of_a_rotation_in_mid_reply(
    engine: Engine, nginx: Path
) -> None:
    expected = dict(await plain.whole_chats(engine.base_url, CANDIDATES))
    ways = cycle((ask_by_sdk, ask_by_async_sdk, ask_by_curl))
    texts = Texts(str)
    async with laid(engine, nginx) as line, server(line) as proxy:
        base_url = (await proxy.until_printed(r"^OPENAI_BASE_URL=(\S+)$"))[1]
        token = (await proxy.until_printed(r"^local token +(\S+)$"))[1]
        with trio.fail_after(60.0):
            async with trio.open_nursery() as nursery:
                for question, ask in zip(expected, ways, strict=False):
                    nursery.start_soon(ask, base_url, token, question, texts)
                await line.rotate(texts.get, expected)
    assert texts == expected
    assert line.front.statuses()[401] > 0
