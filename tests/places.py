"""Where the key is that several processes share: a file, and a Redis server."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from tests.redis_server import redis_server


@pytest.fixture(params=["file", "redis"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[str]:
    """For `tests.children.store_at`."""
    if request.param == "file":
        yield str(tmp_path / "keys.json")
        return
    async with redis_server(tmp_path) as server:
        yield server.url
