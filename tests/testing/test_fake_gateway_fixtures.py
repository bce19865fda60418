"""The fixtures, used as another project's suite uses them."""

import httpx
import trio

from gz_trio.testing import FakeGateway, Stall

pytest_plugins = ["gz_trio.testing.fixtures"]


async def test_a_client_in_memory_goes_with_a_mock_clock(
    fake_gateway: FakeGateway,
    fake_gateway_client: httpx.AsyncClient,
    autojump_clock: trio.testing.MockClock,
) -> None:
    fake_gateway.fault(Stall(3600), path="/v1/models")
    headers = {"authorization": f"Bearer {fake_gateway.key}"}
    answer = await fake_gateway_client.get("/models", headers=headers)
    assert answer.json()["data"][0]["id"] == "fake-model"
    assert trio.current_time() == 3600


async def test_a_url_over_tcp_is_of_the_same_gateway(
    fake_gateway: FakeGateway, fake_gateway_url: str
) -> None:
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"{fake_gateway_url}/models")).status_code == 401
    assert fake_gateway.rejected == 1
