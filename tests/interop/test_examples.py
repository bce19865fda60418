"""The examples in which other people's clients use the proxy, run as they say."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from gz_trio.testing import FakeGateway
from tests.cli.terminal import environment
from tests.interop import plain
from tests.interop.conftest import until
from tests.proxy.fronts import open_front

EXAMPLES = Path(__file__).parents[2] / "examples"
QUESTION = "How do stories begin?"
Command = list[str | Path]


@pytest.fixture(params=["curl", "langchain", "node"])
def example(request: pytest.FixtureRequest) -> tuple[Command, Callable[[bytes], str]]:
    """A command, and what makes a text of its output."""
    match request.param:
        case "curl":
            return ["sh", EXAMPLES / "curl.sh", "fake-model"], plain.text_of
        case "langchain":
            program = EXAMPLES / "langchain_chat.py"
            return [sys.executable, program, "fake-model", QUESTION], bytes.decode
        case _:
            node = EXAMPLES / "node"
            if "CI" not in os.environ and not (node / "node_modules").exists():
                pytest.skip(f"the SDK is not installed: `npm ci` in {node}")
            return ["node", node / "chat.mjs", "fake-model", QUESTION], bytes.decode


async def test_an_example_outlives_a_rotation(
    example: tuple[Command, Callable[[bytes], str]],
) -> None:
    command, text_of = example
    fake = FakeGateway(tokens=50, token_interval=0.01)

    async def rotate() -> None:
        await until(lambda: any(request.tokens > 10 for request in fake.requests))
        fake.rotate()

    async with open_front(fake) as front, trio.open_nursery() as nursery:
        variables = {"OPENAI_BASE_URL": front.proxy.base_url, "OPENAI_API_KEY": front.token}
        nursery.start_soon(rotate)
        with trio.fail_after(60.0):
            process = await trio.run_process(
                command, capture_stdout=True, env=environment(variables)
            )
    assert text_of(process.stdout) == fake.intended({"messages": [plain.user(QUESTION)]})
    assert fake.refreshes == 1
