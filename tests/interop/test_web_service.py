"""The example of a web service, run as it says, and asked by httpx."""

import os
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import httpx
import pytest
import trio

from gz_trio.testing import Cut, FakeGateway, OtherText
from tests.interop.conftest import shown_on_failure, until
from tests.interop.servers import child, free_port, listens, wait_for

EXAMPLE = Path(__file__).parents[2] / "examples" / "web_service.py"
NEXT_KEY = "gw_test_2"
QUESTION = {"question": "How do stories begin?"}


@pytest.fixture
def fake() -> FakeGateway:
    return FakeGateway(tokens=50, token_interval=0.01)


@pytest.fixture
async def key_file(fake: FakeGateway, tmp_path: Path) -> trio.Path:
    """What the service gets its keys from."""
    file = trio.Path(tmp_path, "key")
    await file.write_text(fake.key)
    return file


@pytest.fixture
async def client(
    fake: FakeGateway, key_file: trio.Path, tmp_path: Path
) -> AsyncGenerator[httpx.AsyncClient]:
    port, log = free_port(), tmp_path / "service.log"
    async with fake.listen() as base_url:
        variables = {"GATEWAY": base_url, "MODEL": "fake-model", "KEY_COMMAND": f"cat {key_file}"}
        command: list[str | Path] = [
            *(sys.executable, "-m", "hypercorn", "--worker-class", "trio"),
            *("--bind", f"127.0.0.1:{port}", "--workers", "0", str(EXAMPLE)),
        ]
        with (
            shown_on_failure(log),
            child(command, log, cwd=tmp_path, env=os.environ | variables) as process,
        ):
            await trio.to_thread.run_sync(
                wait_for, lambda: listens(port), "the service starts", process, log
            )
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                yield client


async def test_an_answer_outlives_a_rotation(
    fake: FakeGateway, key_file: trio.Path, client: httpx.AsyncClient
) -> None:
    text = ""
    async with client.stream("GET", "/answer", params=QUESTION) as answer:
        async for part in answer.aiter_text():
            text += part
            if fake.generation == 1:
                await key_file.write_text(NEXT_KEY)
                fake.rotate(NEXT_KEY)
    assert text == fake.intended(fake.requests[0].body or {})
    assert fake.auth_errors == 1


@pytest.mark.filterwarnings("ignore:Async generator '(httpx|httpcore)\\.:ResourceWarning")
async def test_it_ends_when_its_client_hangs_up(
    fake: FakeGateway, client: httpx.AsyncClient
) -> None:
    fake.tokens = 10_000
    async with client.stream("GET", "/answer", params=QUESTION) as answer:
        await anext(answer.aiter_text())
        assert fake.open_streams == 1
    with trio.fail_after(10.0):
        await until(lambda: fake.open_streams == 0)


async def test_one_that_fails_is_not_taken_for_a_whole_one(
    fake: FakeGateway, client: httpx.AsyncClient
) -> None:
    fake.fault(Cut(), token=10, request=1)
    fake.fault(OtherText(), token=5, request=2)
    with pytest.raises(httpx.RemoteProtocolError):
        await client.get("/answer", params=QUESTION)
