"""The proxy for one gateway: opened, it listens; left, it lets open streams end."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import trio

from .. import Gateway
from .._background import Background
from ._app import App
from ._connections import Connections, listen
from ._forwarding import Forwarding
from ._guard import API, Guard, LocalSecrets
from ._metrics import Metrics
from ._page import open_page

END_SECONDS = 60.0
"""How long open streams may go on once the proxy is left."""


class Proxy:
    """A proxy that listens. Made by `open_proxy`.

    Attributes:
        url: Of its page, without a slash at its end: Anthropic's SDKs want it for a base URL.
        base_url: Of the API, as OpenAI's SDKs want it.
        token: What callers send in place of a key; `None`: nothing.
    """

    def __init__(
        self, url: str, token: str | None, app: App, metrics: Metrics, patience: trio.CancelScope
    ) -> None:
        self.url = url
        self.base_url = f"{url}{API}"
        self.token = token
        self._app = app
        self._metrics = metrics
        self._patience = patience

    @property
    def open_requests(self) -> int:
        """How many requests to the gateway are under way."""
        return self._metrics.open

    def new_page_url(self) -> str:
        """A URL of the page that lets a browser in, once; ends the one before."""
        return self._app.new_page_url()

    def end_now(self) -> None:
        """Do not wait for open streams when the block is left."""
        self._patience.cancel()


def loopback_address(host: str) -> str:
    """The address of a host that only this machine reaches.

    Raises:
        ValueError: Others reach it, too.

    >>> loopback_address("localhost"), loopback_address("127.0.0.2"), loopback_address("[::1]")
    ('127.0.0.1', '127.0.0.2', '::1')
    """
    address = "127.0.0.1" if host == "localhost" else host.removeprefix("[").removesuffix("]")
    try:
        loopback = ipaddress.ip_address(address).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise ValueError(
            f"{host} is no loopback address, and whoever can reach the proxy can try to spend the "
            "key: take 127.0.0.1 or ::1, and put a server that knows its users in front"
        )
    return address


@asynccontextmanager
async def open_proxy(
    gateway: Gateway,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    model: str | None = None,
    local_token: bool = True,
    log: Callable[[str], object],
) -> AsyncGenerator[Proxy]:
    """Serve one gateway's API, and the chat page, to the programs of this machine.

    Leaving the block accepts no more connections, and waits for the end of open streams, at most
    60 seconds.

    Args:
        gateway: Whose API it is, and whose key is spent.
        host: The loopback address to listen at.
        port: 0 takes any that is free.
        model: The page's default.
        local_token: Whether callers have to bring the local token, or the page its cookie.
        log: Called with a line for each request, without the time, that holds no secret.

    Raises:
        ValueError: `host` is no loopback address.
        OSError: The port cannot be had.
    """
    address = loopback_address(host)
    patience = trio.CancelScope()
    async with AsyncExitStack() as stack:
        listener = stack.enter_context(listen(address, port))
        port = listener.getsockname()[1]
        url = f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"
        secrets = LocalSecrets(port) if local_token else None
        metrics = Metrics(gateway.authenticator)
        nursery = await stack.enter_async_context(Background("proxy"))
        async with open_page(gateway, model=model) as page:
            app = App(
                url,
                guard=Guard(address, port, secrets),
                secrets=secrets,
                forwarding=Forwarding(gateway.http_client(), metrics),
                metrics=metrics,
                authenticator=gateway.authenticator,
                page=page,
                log=log,
            )
            connections = Connections(app, log)
            nursery.start_soon(connections.run, listener)
            nursery.start_soon(metrics.count_keys)
            yield Proxy(url, None if secrets is None else secrets.token, app, metrics, patience)
            connections.accept_no_more()
        patience.deadline = trio.current_time() + END_SECONDS
        with patience:
            await connections.over.wait()
