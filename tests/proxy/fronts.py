"""What tests of the proxy share: a proxy in front of a fake gateway, both on real ports."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import trio

from gz_trio import (
    Gateway,
    Key,
    MemoryKeyStore,
    RetryPolicy,
    Timeouts,
    open_authenticator,
    open_gateway,
)
from gz_trio.proxy import Proxy, open_proxy
from gz_trio.testing import FakeGateway, Stall

BODY: dict[str, object] = {
    "model": "fake-model",
    "messages": [{"role": "user", "content": "Tell me a story."}],
    "stream": True,
}


@dataclass
class Front:
    """A proxy, the gateway behind it, and what it has logged."""

    fake: FakeGateway
    gateway: Gateway
    proxy: Proxy
    log: list[str]

    @property
    def port(self) -> int:
        return int(self.proxy.url.rpartition(":")[2])

    @property
    def token(self) -> str:
        return self.proxy.token or "any"

    def client(self, **headers: str) -> httpx.AsyncClient:
        """A client with the local token."""
        return httpx.AsyncClient(
            base_url=self.proxy.url,
            headers={
                "authorization": f"Bearer {self.token}",
                "anthropic-version": "2023-06-01",
                **headers,
            },
            timeout=30,
        )

    def stranger(self) -> httpx.AsyncClient:
        """A client without it."""
        return httpx.AsyncClient(base_url=self.proxy.url, timeout=30)


class Stalling(FakeGateway):
    """A gateway that falls silent in the middle of its answer.

    Attributes:
        asked: Set when there is a request.
        over: Set when it is answered, or its client gone.
    """

    def __init__(self, *, token: int) -> None:
        self.asked = trio.Event()
        self.over = trio.Event()
        super().__init__(answer=self._tokens, on_request=lambda _: self.over.set())
        self.fault(Stall(), token=token)

    def _tokens(self, body: Mapping[str, object], attempt: int) -> Sequence[str]:
        self.asked.set()
        return ["never ", "said ", "to ", "the ", "end"]


@asynccontextmanager
async def open_front(
    fake: FakeGateway,
    *,
    key: str | None = None,
    refresh: Callable[[Key | None], Awaitable[Key | str]] | None = None,
    retry: RetryPolicy | None = None,
    timeouts: Timeouts | None = None,
    base_url: str | None = None,
    local_token: bool = True,
) -> AsyncGenerator[Front]:
    """A proxy in front of `fake`, or of what is at `base_url`."""
    log: list[str] = []
    async with (
        fake.listen() as url_of_fake,
        open_authenticator(
            MemoryKeyStore(fake.key if key is None else key), refresh or fake.refresh
        ) as authenticator,
        open_gateway(
            base_url or url_of_fake, authenticator, retry=retry, timeouts=timeouts
        ) as gateway,
        open_proxy(gateway, local_token=local_token, log=log.append) as proxy,
    ):
        yield Front(fake, gateway, proxy, log)
