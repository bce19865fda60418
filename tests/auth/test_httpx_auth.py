"""`GatewayAuth`: the authenticator's key for the clients of httpx and httpx2."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import httpx2
import pytest
import trio
from trio.testing import MockClock

from gz_trio import AuthenticationError, GatewayAuth, MemoryKeyStore, open_authenticator
from gz_trio.testing import FakeGateway, Status


@asynccontextmanager
async def open_client(
    fake: FakeGateway, *, key: str | None = None
) -> AsyncGenerator[httpx.AsyncClient]:
    async with (
        open_authenticator(MemoryKeyStore(fake.key if key is None else key), fake.refresh) as own,
        fake.http_client() as client,
    ):
        client.auth = GatewayAuth(own)
        yield client


async def test_a_401_is_sent_again_after_the_one_refresh(autojump_clock: MockClock) -> None:
    fake = FakeGateway(auth_latency=1.0)
    statuses: list[int] = []
    async with open_client(fake, key="dead") as client:

        async def ask() -> None:
            statuses.append((await client.get("/models")).status_code)

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(ask)
    assert statuses == [200] * 50
    assert fake.refreshes == 1


@pytest.mark.parametrize("module", [httpx, httpx2])
async def test_it_is_an_auth_of_either_module(module: Any) -> None:
    fake = FakeGateway()
    async with (
        fake.listen() as base_url,
        open_authenticator(MemoryKeyStore("dead"), fake.refresh) as authenticator,
    ):
        auth = GatewayAuth(authenticator)
        assert isinstance(auth, module.Auth)
        assert isinstance(auth, GatewayAuth)
        async with module.AsyncClient(base_url=base_url, auth=auth) as client:
            assert (await client.get("/models")).status_code == 200


async def test_a_second_401_is_the_response(autojump_clock: MockClock) -> None:
    fake = FakeGateway()
    fake.fault(Status(401), path="/v1/models", times=None)
    async with open_client(fake) as client:
        fake.rotate()
        response = await client.get("/models")
    assert response.status_code == 401
    assert len(fake.requests) == 2


async def test_where_the_refresh_is_refused_the_first_401_is_the_response(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway()
    fake.refuse_refresh = True
    async with open_client(fake, key="dead") as client:
        response = await client.get("/models")
    assert response.status_code == 401
    assert response.json()
    assert len(fake.requests) == 1


async def test_a_guest_is_told_to_sign_in_and_nothing_is_refreshed(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway()
    fake.fault(Status(401, code="GUEST_NOT_CONFIGURED", dialect="gatewayz"), path="/v1/models")
    async with open_client(fake) as client:
        assert (await client.get("/models")).status_code == 401
    assert fake.refreshes == 0


async def test_a_body_that_can_be_read_once_is_sent_again(autojump_clock: MockClock) -> None:
    fake = FakeGateway()

    async def content() -> AsyncGenerator[bytes]:
        await trio.lowlevel.checkpoint()
        yield b'{"title": "A", "model": "fake-model"}'

    async with open_client(fake, key="dead") as client:
        assert (await client.post("/chat/sessions", content=content())).is_success
    assert fake.requests[-1].body == {"title": "A", "model": "fake-model"}


async def test_no_other_key_goes_along_nor_this_one_to_another_host() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        elsewhere = {"location": "http://elsewhere.test/"}
        return httpx.Response(307 if len(seen) == 1 else 200, headers=elsewhere)

    async with (
        open_authenticator(MemoryKeyStore("sk-ours")) as authenticator,
        httpx.AsyncClient(
            transport=httpx.MockTransport(answer), auth=GatewayAuth(authenticator)
        ) as client,
    ):
        headers = {"x-api-key": "sk-theirs", "api-key": "sk-theirs"}
        await client.get("http://gateway.test/", headers=headers, follow_redirects=True)
    assert seen[0].headers["authorization"] == "Bearer sk-ours"
    for request in seen:
        assert "sk-theirs" not in str(request.headers.raw)
    assert "authorization" not in seen[1].headers


async def test_without_any_key_there_is_nothing_to_send() -> None:
    fake = FakeGateway()
    async with open_client(fake) as client, open_authenticator(MemoryKeyStore()) as signed_out:
        with pytest.raises(AuthenticationError):
            await client.get("/models", auth=GatewayAuth(signed_out))
    assert not fake.requests


async def test_it_is_for_asynchronous_clients_and_shows_no_key() -> None:
    async with open_authenticator(MemoryKeyStore("sk-1")) as authenticator:
        auth = GatewayAuth(authenticator)
        assert "sk-1" not in repr(auth)
        with pytest.raises(RuntimeError, match="AsyncClient"):
            auth.sync_auth_flow(httpx.Request("GET", "http://gateway.test/"))
