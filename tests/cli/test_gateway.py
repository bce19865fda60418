"""`gz-trio gateway`: a server for other people's clients, the OpenAI SDK here."""

import re
import signal
from contextlib import AbstractAsyncContextManager

import httpx2
import openai
import pytest
import trio

from gz_trio.testing import FakeGateway
from tests.cli.terminal import run_piped
from tests.servers import Server, open_server
from tests.testing.fake_gateway_wire import chat

# The SDK stops at `[DONE]` and leaves its generators, and httpx's, to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Async generator '(openai|httpx2|httpcore2):ResourceWarning"
)


def server(*options: str) -> AbstractAsyncContextManager[Server]:
    return open_server("gateway", "--port", "0", "--token-interval", "0", *options)


async def base_url_of(gateway: Server) -> str:
    return (await gateway.until_printed(r"^base URL  (\S+)$"))[1]


def sdk(base_url: str, key: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=base_url,
        api_key=key,
        max_retries=0,
        http_client=httpx2.AsyncClient(base_url=base_url),
    )


async def ask(client: openai.AsyncOpenAI, model: str = "any") -> int:
    """How many pieces of text the answer has."""
    stream = await client.chat.completions.create(
        model=model, stream=True, messages=[{"role": "user", "content": "hi"}]
    )
    return len(
        [chunk async for chunk in stream if chunk.choices and chunk.choices[0].delta.content]
    )


async def test_the_openai_sdk_talks_to_it_and_each_request_is_one_line() -> None:
    async with server("--tokens", "7", "--key", "sk-test") as gateway:
        base_url = await base_url_of(gateway)
        assert await gateway.until_printed(r"^key       sk-test$")
        async with sdk(base_url, "sk-test") as client, sdk(base_url, "sk-mine") as stranger:
            assert await ask(client) == 7
            with pytest.raises(openai.AuthenticationError):
                await ask(stranger)
        await gateway.until_printed(r" 401$")  # not a part of the port
        assert gateway.log == [
            "POST /v1/chat/completions 200 key 1 7 tokens",
            "POST /v1/chat/completions 401",
        ]
        assert "sk-mine" not in gateway.printed


async def test_the_curl_line_that_it_prints_works() -> None:
    async with server("--tokens", "3") as gateway:
        await gateway.until_printed(r"^Ctrl-C")
        command = gateway.printed.split("\n\n")[1]
        assert command.startswith("curl ")
        answer = await trio.run_process(["sh", "-c", f"{command} -s"], capture_stdout=True)
        assert answer.stdout.endswith(b"data: [DONE]\n\n")


async def test_faults_strike_where_the_options_say() -> None:
    async with server(
        "--fault", "status=429 header.retry-after=2 request=1",
        "--fault", "cut token=3 times=2",
        "--fault", "status=503 path=/auth times=forever",
    ) as gateway:  # fmt: skip
        base_url = await base_url_of(gateway)
        async with sdk(base_url, "gw_test_1") as client:
            with pytest.raises(openai.RateLimitError) as limited:
                await ask(client)
            assert limited.value.response.headers["retry-after"] == "2"
            for _ in range(2):
                with pytest.raises((openai.APIConnectionError, httpx2.RemoteProtocolError)):
                    await ask(client)
            assert await ask(client) == 60
        root = base_url.removesuffix("/v1")
        async with httpx2.AsyncClient() as client_of_auth:
            for _ in range(3):
                assert (await client_of_auth.post(f"{root}/auth", json={})).status_code == 503
        await gateway.until_printed(r"(/auth 503.*\s+[^$]*){3}")
        assert gateway.log == [
            "POST /v1/chat/completions 429 key 1 fault Status",
            *["POST /v1/chat/completions 200 key 1 3 tokens broken off fault Cut"] * 2,
            "POST /v1/chat/completions 200 key 1 60 tokens",
            *["POST /auth 503 fault Status"] * 3,
        ]


async def test_the_key_is_rotated_and_auth_gives_the_new_one() -> None:
    async with server("--rotate-every", "0.2") as gateway:
        base_url = await base_url_of(gateway)
        await gateway.until_printed(r"the key is now gw_test_3; 0 streams")
        async with sdk(base_url, "gw_test_1") as client:
            with pytest.raises(openai.AuthenticationError):
                await ask(client)
        async with httpx2.AsyncClient() as client_of_auth:
            answer = await client_of_auth.post(base_url.removesuffix("/v1") + "/auth", json={})
        assert re.fullmatch(r"gw_test_\d+", answer.json()["api_key"])


async def test_with_models_named_there_are_no_others() -> None:
    async with (
        server("--model", "small", "--model", "large", "--tokens", "2") as gateway,
        sdk(await base_url_of(gateway), "gw_test_1") as client,
    ):
        assert await ask(client, "large") == 2
        with pytest.raises(openai.NotFoundError):
            await ask(client, "other")


async def test_it_compresses_keeps_streams_and_goes_on_from_a_partial_answer() -> None:
    async with server(
        "--framing", "gzip", "--event-ids", "--continues", "prefill", "--echo", "--tokens", "5"
    ) as gateway:  # fmt: skip
        base_url = await base_url_of(gateway)
        url = f"{base_url}/chat/completions"
        async with httpx2.AsyncClient(headers={"authorization": "Bearer gw_test_1"}) as client:
            first = await client.post(url, json=chat())
            assert first.headers["content-encoding"] == "gzip"
            rest = await client.post(url, json=chat(), headers={"last-event-id": "1-4"})
            assert first.text.endswith(rest.text)
            assert rest.text.startswith("id: 1-5\n")
            body = chat(stream=False)
            whole = (await client.post(url, json=body)).json()["choices"][0]["message"]
            partial = {"role": "assistant", "content": whole["content"][:5]}
            body["messages"] = [{"role": "user", "content": "Hello"}, partial]
            again = (await client.post(url, json=body)).json()["choices"][0]["message"]
            assert again == whole
        await gateway.until_printed("resumed")
        assert gateway.log[:2] == [
            "POST /v1/chat/completions 200 key 1 5 tokens",
            "POST /v1/chat/completions 200 key 1 resumed after event 1-4",
        ]


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
async def test_it_stops_cleanly_while_it_streams(end: signal.Signals) -> None:
    async with server("--fault", "stall token=1") as gateway:
        base_url = await base_url_of(gateway)
        headers = {"authorization": "Bearer gw_test_1"}
        async with (
            httpx2.AsyncClient(timeout=30) as client,
            client.stream(
                "POST", f"{base_url}/chat/completions", json=chat(), headers=headers
            ) as response,
        ):
            assert response.status_code == 200
            gateway.process.send_signal(end)
            await gateway.until_printed("^stopped$")
            assert await gateway.ended() == 0
            with pytest.raises(httpx2.RemoteProtocolError):
                await response.aread()


async def test_a_port_that_is_taken_is_one_clear_line() -> None:
    async with FakeGateway().listen() as base_url:
        port = base_url.removesuffix("/v1").rpartition(":")[2]
        run = await run_piped("gateway", "--port", port)
    assert run.returncode == 1
    assert run.stdout == b""
    assert re.fullmatch(
        rf"gz-trio: cannot listen at 127.0.0.1, port {port} .*\n", run.stderr.decode()
    )


async def test_a_bad_fault_ends_the_command_with_2() -> None:
    run = await run_piped("gateway", "--port", "0", "--fault", "explode")
    assert (run.returncode, run.stdout) == (2, b"")
    assert run.stderr.decode().startswith("gz-trio: fault 'explode': there is no 'explode'")
