"""OpenAI's SDK for Node through the proxy: a program in another language, as it is."""

import os
import shutil
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from gz_trio import RetryPolicy
from gz_trio.proxy import _forwarding
from gz_trio.testing import Cut, FakeGateway, Stall
from tests.proxy.fronts import BODY, Front, open_front

PROGRAM = Path(__file__).parent / "node"


@pytest.fixture(scope="module")
def program() -> Path:
    """A program that asks by the SDK, with the SDK beside it."""
    if "CI" not in os.environ:
        if shutil.which("node") is None:
            pytest.skip("node is not installed")
        if not (PROGRAM / "node_modules").exists():
            pytest.skip(f"the SDK is not installed: `npm ci` in {PROGRAM}, as `nox -s tests` does")
    return PROGRAM / "ask.js"


@asynccontextmanager
async def running(program: Path, front: Front) -> AsyncGenerator[trio.abc.ReceiveStream]:
    """What it prints, piece by piece."""
    process = await trio.lowlevel.open_process(
        ["node", str(program)],
        stdout=subprocess.PIPE,
        env={
            **os.environ,
            "OPENAI_BASE_URL": front.proxy.base_url,
            "OPENAI_API_KEY": front.token,
        },
    )
    assert process.stdout is not None
    try:
        async with process.stdout:
            yield process.stdout
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def answer_of(program: Path, front: Front) -> str:
    async with running(program, front) as printed:
        with trio.fail_after(60):
            return b"".join([bytes(piece) async for piece in printed]).decode()


async def test_it_reads_on_over_a_rotation(program: Path) -> None:
    fake = FakeGateway(tokens=20, token_interval=0.02)
    async with open_front(fake) as front, running(program, front) as printed:
        text = bytes(await printed.receive_some())
        fake.rotate()
        with trio.fail_after(60):
            async for piece in printed:
                text += piece
    assert text.decode() == fake.intended(BODY)
    assert (fake.rejected, fake.refreshes) == (1, 1)


@pytest.mark.parametrize("token", [None, 5])
async def test_it_reads_through_the_comments(
    program: Path, token: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_forwarding, "SILENCE_SECONDS", 0.05)
    fake = FakeGateway(tokens=20)
    fake.fault(Stall(0.3), token=token)
    async with open_front(fake) as front:
        assert await answer_of(program, front) == fake.intended(BODY)


async def test_it_raises_for_a_stream_that_failed(program: Path) -> None:
    fake = FakeGateway(tokens=20)
    fake.fault(Cut(), token=5, times=None)
    async with open_front(fake, retry=RetryPolicy(max_retries=0)) as front:
        printed = await answer_of(program, front)
    assert printed.endswith("Error: the reply broke and could not be taken up again")


async def test_it_is_told_that_its_token_is_wrong(program: Path) -> None:
    async with open_front(FakeGateway()) as front:
        front.proxy.token = "wrong"
        printed = await answer_of(program, front)
    assert printed.startswith("AuthenticationError: 401 The local token is missing or wrong")
