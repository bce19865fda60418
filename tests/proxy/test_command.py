"""`gz-trio proxy` as a user has it: a process, what it prints, and how it ends."""

import re
import signal
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import cast

import httpx
import pytest
import trio

from gz_trio.testing import FakeGateway, Stall
from tests.cli.terminal import run_piped, run_without
from tests.proxy.fronts import BODY
from tests.servers import Server, open_server

CHAT = "/v1/chat/completions"


def server(*options: str, **variables: str) -> AbstractAsyncContextManager[Server]:
    return open_server("proxy", "--port", "0", *options, **variables)


async def client_of(proxy: Server) -> httpx.AsyncClient:
    """A client as the proxy's first lines say."""
    url = (await proxy.until_printed(r"^ANTHROPIC_BASE_URL=(http://127\.0\.0\.1:\d+)$"))[1]
    token = (await proxy.until_printed(r"^local token  (.+)$"))[1]
    headers = {"authorization": f"Bearer {token}"}
    return httpx.AsyncClient(base_url=url, headers=headers, timeout=30)


async def test_it_says_how_to_use_it_and_one_line_for_each_request() -> None:
    fake = FakeGateway(tokens=5)
    async with (
        fake.listen() as base_url,
        server("--base-url", base_url, GZ_API_KEY=fake.key) as proxy,
        await client_of(proxy) as client,
    ):
        assert f"OPENAI_BASE_URL={client.base_url}/v1\n" in proxy.printed
        answer = await client.post(CHAT, json=BODY)
        assert answer.content.endswith(b"data: [DONE]\n\n")
        await proxy.until_printed(rf"^\d\d:\d\d:\d\d POST {CHAT} 200 \d+\.\d\d s$")
        link = (await proxy.until_printed(r"^page +(\S+)$"))[1]
        assert (await client.get(link)).status_code == 303
        new_link = (await proxy.until_printed(r"(curl -X POST .+)$"))[1]
        token = client.headers["authorization"].removeprefix("Bearer ")
        shell = ["sh", "-c", new_link.replace("LOCAL_TOKEN", token) + " -s"]
        done = await trio.run_process(shell, capture_stdout=True)
        assert b"/?code=" in done.stdout
        await proxy.until_printed(r" POST /page/link 200 ")
        assert fake.key not in proxy.printed


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_it_once_open_streams_have_ended(end: signal.Signals) -> None:
    fake = FakeGateway(tokens=5)
    fake.fault(Stall(0.3), token=2)
    async with (
        fake.listen() as base_url,
        server("--base-url", base_url, GZ_API_KEY=fake.key) as proxy,
        await client_of(proxy) as client,
        client.stream("POST", CHAT, json=BODY) as response,
    ):
        proxy.process.send_signal(end)
        await proxy.until_printed(r"^open requests: 1;")
        assert (await response.aread()).endswith(b"data: [DONE]\n\n")
        await proxy.until_printed("^stopped$")
        assert await proxy.ended() == 0
    assert "Traceback" not in proxy.printed


async def test_a_second_signal_ends_it_at_once() -> None:
    fake = FakeGateway()
    fake.fault(Stall(), token=2)
    async with (
        fake.listen() as base_url,
        server("--base-url", base_url, GZ_API_KEY=fake.key) as proxy,
        await client_of(proxy) as client,
        client.stream("POST", CHAT, json=BODY) as response,
    ):
        proxy.process.send_signal(signal.SIGINT)
        await proxy.until_printed(r"^open requests: 1;")
        proxy.process.send_signal(signal.SIGINT)
        await proxy.until_printed("^stopped$")
        assert await proxy.ended() == 0
        with pytest.raises(httpx.RemoteProtocolError):
            await response.aread()
    assert "Traceback" not in proxy.printed


async def test_a_key_that_dies_is_replaced_by_the_refresh_command(tmp_path: Path) -> None:
    fake = FakeGateway()
    new = fake.rotate()
    key_file = tmp_path / "new"
    key_file.write_text(new)
    async with (
        fake.listen() as base_url,
        server(
            "--base-url", base_url, "--refresh-command", f"cat {key_file}", GZ_API_KEY="sk-old"
        ) as proxy,
        await client_of(proxy) as client,
    ):  # fmt: skip
        assert (await client.post(CHAT, json=BODY)).status_code == 200
    assert fake.rejected == 1


async def test_or_by_the_gateway_for_an_identity_token() -> None:
    fake = FakeGateway()
    fake.rotate()
    async with (
        fake.listen() as base_url,
        server("--base-url", base_url, GZ_API_KEY="sk-old", GZ_IDENTITY_TOKEN="mine") as proxy,
        await client_of(proxy) as client,
    ):
        assert (await client.post(CHAT, json=BODY)).status_code == 200
    assert fake.refreshes == 1


async def test_without_either_by_whoever_signs_in_again(tmp_path: Path) -> None:
    fake = FakeGateway()
    key_file = tmp_path / "key"
    key_file.touch(0o600)
    key_file.write_text("sk-old")
    async with (
        fake.listen() as base_url,
        server("--base-url", base_url, "--key-file", str(key_file)) as proxy,
        await client_of(proxy) as client,
        trio.open_nursery() as nursery,
    ):

        async def sign_in() -> None:
            await proxy.until_printed(r" key: authenticating - sign in on the page, or by ")
            key_file.write_text(fake.key)

        nursery.start_soon(sign_in)
        assert (await client.post(CHAT, json=BODY)).status_code == 200
        await proxy.until_printed(r" key: authenticated$")


async def test_it_starts_without_a_key_and_waits_for_a_sign_in_on_the_page(
    tmp_path: Path,
) -> None:
    fake = FakeGateway()
    async with (
        fake.listen() as base_url,
        server("--base-url", base_url, XDG_STATE_HOME=str(tmp_path)) as proxy,
        await client_of(proxy) as client,
    ):
        assert (await client.get("/healthz")).json()["auth"] == "unauthenticated"
        signed_in = await client.post(
            "/page/sign-in", json={"key": fake.key, "same_account": False}
        )
        assert signed_in.is_success
        assert (await client.post(CHAT, json=BODY)).status_code == 200


async def test_the_key_goes_into_the_header_that_the_gateway_wants_it_in() -> None:
    heads: list[bytes] = []

    async def answer(stream: trio.SocketStream) -> None:
        heads.append(bytes(await stream.receive_some()).lower())
        await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, answer, 0, host="127.0.0.1")
        (listener,) = cast("list[trio.SocketListener]", await nursery.start(serve))
        url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/v1"
        options = ("--base-url", url, "--key-header", "x-api-key")
        async with server(*options, GZ_API_KEY="sk-1") as proxy, await client_of(proxy) as client:
            assert (await client.get("/v1/models")).status_code == 200
        nursery.cancel_scope.cancel()
    assert b"\r\nx-api-key: sk-1\r\n" in heads[0]
    assert b"authorization" not in heads[0]


async def test_without_a_local_token_none_is_printed() -> None:
    nowhere = "http://127.0.0.1:9/v1"
    async with server("--base-url", nowhere, "--no-local-token", GZ_API_KEY="sk-1") as proxy:
        await proxy.until_printed(r"^local token  none is wanted$")
        link = (await proxy.until_printed(r"^page +(\S+)$"))[1]
        async with httpx.AsyncClient() as client:
            assert (await client.get(link)).status_code == 200


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "0.0.0.0"], "0.0.0.0 is no loopback address"),
        (["--base-url", "ftp://x"], "base URL"),
        (["--refresh-command", ""], "refresh command"),
        (["--store", "redis"], "GZ_REDIS_URL"),
    ],
)
async def test_what_is_wrong_is_said_in_one_line(options: list[str], words: str) -> None:
    base_url = [] if "--base-url" in options else ["--base-url", "http://127.0.0.1:9/v1"]
    run = await run_piped("proxy", "--port", "0", *base_url, *options, GZ_API_KEY="sk-1")
    assert run.returncode == 1
    (line,) = run.stderr.decode().splitlines()
    assert line.startswith("gz-trio: ")
    assert words in line


async def test_a_port_that_is_taken_is_one_clear_line() -> None:
    async with FakeGateway().listen() as base_url:
        port = base_url.removesuffix("/v1").rpartition(":")[2]
        run = await run_piped("proxy", "--base-url", base_url, "--port", port, GZ_API_KEY="sk-1")
    assert run.returncode == 1
    assert re.fullmatch(
        rf"gz-trio: cannot listen at 127.0.0.1, port {port} .*\n", run.stderr.decode()
    )


async def test_a_missing_extra_is_named() -> None:
    for package in ("hypercorn", "starlette", "prometheus_client"):
        run = await run_without(package, "proxy", "--base-url", "http://127.0.0.1:9/v1")
        assert (run.returncode, run.stdout) == (1, b"")
        assert run.stderr.decode() == (
            f"gz-trio: the proxy needs the package {package}, which comes with the extra "
            "proxy: pip install 'gz-trio[proxy]'\n"
        )
