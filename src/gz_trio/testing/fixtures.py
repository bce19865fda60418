"""Pytest fixtures of the fake gateway, for pytest-trio.

A test suite asks for them in its top-level `conftest.py`:

```python
pytest_plugins = ["gz_trio.testing.fixtures"]
```

A suite that wants another gateway in all of them (longer answers, say) overrides `fake_gateway`
with a fixture of its own; the others follow it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

import httpx
import pytest

from ._gateway import FakeGateway


@pytest.fixture
def fake_gateway() -> FakeGateway:
    """A `FakeGateway` as it comes."""
    return FakeGateway()


@pytest.fixture
async def fake_gateway_client(fake_gateway: FakeGateway) -> AsyncGenerator[httpx.AsyncClient]:
    """An `httpx.AsyncClient` over in-memory streams to `fake_gateway`; goes with a mock clock."""
    async with fake_gateway.http_client() as client:
        yield client


@pytest.fixture
async def fake_gateway_url(fake_gateway: FakeGateway) -> AsyncGenerator[str]:
    """The base URL of `fake_gateway` on a loopback TCP port, for clients that need a socket."""
    async with fake_gateway.listen() as base_url:
        yield base_url
