"""What the proxy counts, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import trio
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .. import Authenticator, AuthStatus
from ._exchange import Exchange
from ._failure import APIS
from ._guard import is_api

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """The figures of one proxy.

    Args:
        authenticator: Whose key it spends.

    Attributes:
        open: How many requests to the gateway are under way.
    """

    def __init__(self, authenticator: Authenticator) -> None:
        registry = self._registry = CollectorRegistry()
        self._requests = Counter(
            "gz_trio_proxy_requests",
            "Requests that are over; the status is 0 where there was no answer.",
            ["route", "status"],
            registry=registry,
        )
        self._unfinished = Counter(
            "gz_trio_proxy_unfinished",
            "Answers that began and did not come to their end.",
            ["route"],
            registry=registry,
        )
        self._head = Histogram(
            "gz_trio_proxy_head_seconds",
            "From the request until its answer began.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._bytes = Counter(
            "gz_trio_proxy_forwarded_bytes",
            "Bytes of bodies that went from the gateway to clients.",
            registry=registry,
        )
        self._keys = Counter(
            "gz_trio_proxy_keys", "Keys that took the place of another.", registry=registry
        )
        self.open = 0
        open_ = Gauge(
            "gz_trio_proxy_open_requests", "Requests to the gateway under way.", registry=registry
        )
        open_.set_function(lambda: self.open)
        signed_in = Gauge("gz_trio_proxy_signed_in", "1 if there is a key.", registry=registry)
        signed_in.set_function(
            lambda: float(authenticator.state.status is AuthStatus.AUTHENTICATED)
        )
        self._authenticator = authenticator

    async def count_keys(self) -> None:
        """Count, until it is cancelled, how often the key is another one."""
        async with self._authenticator.subscribe() as states:
            last = None
            async for state in states:
                if state.key is not None and state.key != last:
                    if last is not None:
                        self._keys.inc()
                    last = state.key

    @contextmanager
    def counting(self, exchange: Exchange) -> Generator[None]:
        """Count one exchange, all of which is in the block."""
        route = _route(exchange)
        began = trio.current_time()
        to_gateway = is_api(exchange.path)
        self.open += to_gateway
        try:
            yield
        finally:
            self.open -= to_gateway
            if exchange.began is not None:
                self._head.labels(route).observe(exchange.began - began)
            self._requests.labels(route, exchange.status or 0).inc()
            if exchange.status is not None and not exchange.ended:
                self._unfinished.labels(route).inc()

    def forwarded(self, size: int) -> None:
        """Count bytes of a body."""
        self._bytes.inc(size)

    def text(self) -> bytes:
        """All of them, of `MEDIA_TYPE`."""
        return generate_latest(self._registry)


def _route(exchange: Exchange) -> str:
    """A name for the path, of which there are few: a label for each path would be for ever."""
    if is_api(exchange.path):
        return APIS.get(exchange.path, "other")
    return "page" if exchange.path.startswith("/page/") or exchange.path == "/" else "proxy"
