"""Which transport a gateway gets: our own, unless its user or the environment asks for httpx's."""

from __future__ import annotations

import ssl
from contextlib import AbstractAsyncContextManager
from urllib.request import getproxies, proxy_bypass

import httpx

from .httpx import open_httpx_transport
from .interface import Transport
from .origin import Origin
from .pool import Pool, open_pool
from .websocket import open_websocket_transport


def open_transport(
    base_url: str, http_client: httpx.AsyncClient | None, ssl_context: ssl.SSLContext | None
) -> AbstractAsyncContextManager[Transport]:
    """The transport for `base_url`.

    Args:
        base_url: Where all requests go.
        http_client: To go by that client.
        ssl_context: What certificates are trusted; not with `http_client`, which has its own.

    Raises:
        ValueError: Both are given; or, once it is opened, the environment's proxy cannot be used.
    """
    if http_client is not None:
        if ssl_context is not None:
            raise ValueError("give ssl_context to the http_client: its connections are its own")
        return open_httpx_transport(http_client)
    if goes_by_proxy(base_url):
        return open_httpx_transport(None, ssl_context)
    return open_pool(ssl_context)


def open_websocket(transport: Transport) -> AbstractAsyncContextManager[Transport]:
    """A transport over WebSocket, with connections as `transport` has them.

    Raises:
        ValueError: `transport` is not our own.
    """
    if not isinstance(transport, Pool):
        raise ValueError(
            "WebSocket needs connections of the library's own: it goes neither by an http_client "
            "nor by a proxy"
        )
    return open_websocket_transport(transport.open_stream)


def goes_by_proxy(url: str) -> bool:
    """Whether the environment (`HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`, ...) has a proxy for it."""
    origin = Origin.of(url)
    proxies = getproxies()
    return bool(
        (proxies.get(origin.scheme) or proxies.get("all"))
        and not proxy_bypass(f"{origin.host}:{origin.port}")
    )
