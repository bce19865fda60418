"""What the tests of the fake gateway share."""

import pytest

from tests.testing.fake_gateway_wire import Connect, in_memory, over_tcp


@pytest.fixture(params=[in_memory, over_tcp])
def connect(request: pytest.FixtureRequest) -> Connect:
    """Opens a connection, once in memory, once over TCP."""
    connect: Connect = request.param
    return connect


@pytest.fixture
def transport() -> str:
    """The fake gateway's own streams in memory: they are what is tested here."""
    return "httpx"
