"""Requests by way of an httpx client: an adapter, for clients that a user has configured too.

`httpx2`, the maintained continuation, has the same API and the same names: a client of either
serves, and errors are told apart by the class that the client's own module gives them.
"""

from __future__ import annotations

import ssl
import sys
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from time import perf_counter_ns
from types import ModuleType
from typing import cast

import httpx
import trio

from .._background import Background
from .._protocol.errors import APIConnectionError, ProtocolError
from . import consumers
from .content_coding import ContentDecoder, content_decoder
from .interface import BodyConsumer, Request
from .origin import Origin
from .tls import default_ssl_context

CLOSE_SECONDS = 5.0

REQUESTS_PER_CLIENT = 8
"""Each request makes httpcore look at all connections of its pool, several times over."""


@dataclass(slots=True, eq=False)
class _Lane:
    """A client, and how many requests are under way in it."""

    client: httpx.AsyncClient
    active: int = 0


class HttpxTransport:
    """A transport over httpx clients. Made by `open_httpx_transport`.

    Args:
        client: The one client to use; `None`: as many of our own as are needed.
        ssl_context: For those.
        nursery: Where responses are read, and closed.
    """

    def __init__(
        self,
        client: httpx.AsyncClient | None,
        ssl_context: ssl.SSLContext | None,
        nursery: trio.Nursery,
    ) -> None:
        self.nursery = nursery
        self.module = httpx if client is None else _module_of(client)
        self._unreachable: tuple[type[Exception], ...] = (
            self.module.ConnectError,
            self.module.ConnectTimeout,
        )
        self._may_add_lanes = client is None
        self._ssl_context = ssl_context
        # The first one at once: httpx reads the environment then, and what is wrong there is told.
        self._lanes = [self._new_lane() if client is None else _Lane(client)]

    def _choose_lane(self) -> _Lane:
        """Connections in one httpx client cost each request time; so no client gets many."""
        for lane in self._lanes:
            if not self._may_add_lanes or lane.active < REQUESTS_PER_CLIENT:
                return lane
        lane = self._new_lane()
        self._lanes.append(lane)
        return lane

    def _new_lane(self) -> _Lane:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        verify = self._ssl_context or default_ssl_context()
        try:
            return _Lane(httpx.AsyncClient(limits=limits, verify=verify))
        except ImportError as error:
            raise ValueError(
                "the environment (`ALL_PROXY`, ...) names a SOCKS proxy: for that, "
                "pip install 'httpx[socks]'"
            ) from error

    async def aclose(self) -> None:  # noqa: ASYNC910 - where there are clients
        """Close the clients of our own, in a bounded time even if cancelled.

        A checkpoint, unless there are none.
        """
        with trio.move_on_after(CLOSE_SECONDS, shield=True):  # noqa: ASYNC912 - likewise
            for lane in self._lanes:
                await lane.client.aclose()

    async def send(self, request: Request) -> HttpxResponse:
        """Send `request`; see `Transport.send`. Redirects are not followed: they carry the key."""
        lane = self._choose_lane()
        lane.active += 1
        try:
            with self.errors_mapped(request.url, request.connect_timeout):
                built = lane.client.build_request(
                    request.method,
                    request.url,
                    headers={**request.headers, "Accept-Encoding": "gzip"},
                    content=request.content,
                    timeout=self.module.Timeout(None, connect=request.connect_timeout),
                )
                for name in request.absent:
                    built.headers.pop(name, None)
                response = await lane.client.send(
                    built, stream=True, follow_redirects=False, auth=None
                )
        except BaseException:
            lane.active -= 1
            raise
        return HttpxResponse(response, self, lane)

    @contextmanager
    def errors_mapped(self, url: str, connect_timeout: float | None = None) -> Generator[None]:
        httpx_errors = self.module
        try:
            yield
        except self._unreachable as error:
            within = ""
            if isinstance(error, httpx_errors.ConnectTimeout) and connect_timeout is not None:
                within = f" within {connect_timeout:g} s"
            raise APIConnectionError(
                f"no connection to {Origin.of(url)}{within}: is the gateway up, and the base URL "
                "right?"
            ) from error
        except (httpx_errors.LocalProtocolError, httpx_errors.UnsupportedProtocol):
            # Not chained: httpx quotes the header that it cannot send, and that may be the key's.
            raise ProtocolError(f"the request to {Origin.of(url)} cannot be sent by HTTP") from None
        except httpx_errors.RemoteProtocolError:
            # Not chained either: it quotes what came, and servers echo keys.
            raise APIConnectionError(
                f"the connection to {Origin.of(url)} broke: what came is no HTTP, or not all of it"
            ) from None
        except httpx_errors.TransportError as error:
            raise APIConnectionError(f"the connection to {Origin.of(url)} broke") from error


class HttpxResponse:
    """A response of an httpx client; see `Response`."""

    def __init__(self, response: httpx.Response, transport: HttpxTransport, lane: _Lane) -> None:
        self._response = response
        self._transport = transport
        self._lane = lane
        self._url = str(response.request.url)
        # Not `aiter_bytes`: where it cannot decompress, it drops the iterator beneath it unclosed.
        # Not `aiter_raw`: of a response that a user's fake transport made whole, it gives nothing.
        self._chunks = aiter(cast("httpx.AsyncByteStream", response.stream))
        coding = response.headers.get("content-encoding", "")
        self._decoder = content_decoder(coding, Origin.of(self._url))
        self._feeding: trio.CancelScope | None = None
        self._closed = False

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self._response.status_code

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers, names in lower case."""
        return self._response.headers

    async def receive(self) -> bytes:
        """The next bytes of the body; see `Response.receive`."""
        with self._transport.errors_mapped(self._url):
            decoder = self._decoder
            if decoder is None:
                async for chunk in self._chunks:
                    if chunk:
                        return chunk
                return b""
            if data := await _more_of(decoder):
                return data
            async for chunk in self._chunks:
                if data := decoder.decode(chunk) or await _more_of(decoder):
                    return data
            decoder.finish()
        return b""

    def start(self, consumer: BodyConsumer) -> None:
        """Hand the body over as it comes; see `Response.start`."""
        self._feeding = trio.CancelScope()
        self._transport.nursery.start_soon(self._feed, consumer, self._feeding)

    @trio.lowlevel.enable_ki_protection
    async def _feed(  # noqa: ASYNC910 - a task of its own, whose end is one
        self, consumer: BodyConsumer, scope: trio.CancelScope
    ) -> None:
        error: BaseException | None = None
        enough = False
        try:
            with scope:
                while not enough:
                    with trio.fail_at(consumer.deadline()):
                        data = await self.receive()
                    if not data:
                        break
                    enough = consumer.receive(data, perf_counter_ns())
                self._feeding = None
        except trio.Cancelled:
            error = trio.ClosedResourceError("the transport was closed")
            raise
        except BaseException as raised:  # noqa: ASYNC103 - told to the consumer
            error = raised
        finally:
            if not enough:
                if self._left():
                    consumers.stop(consumer, error)
                await self._aclose()  # noqa: ASYNC102 - it is shielded, and bounded

    def close(self) -> None:
        """Close the response, soon; a bounded time later it is closed."""
        if self._left():
            if self._feeding is not None:
                self._feeding.cancel()
            else:
                self._transport.nursery.start_soon(self._aclose)

    def _left(self) -> bool:
        """Nothing more is wanted; whether that is new."""
        if self._closed:
            return False
        self._closed = True
        self._lane.active -= 1
        return True

    async def _aclose(self) -> None:
        with trio.move_on_after(CLOSE_SECONDS, shield=True):
            # Inside httpx are async generators within async generators. Left suspended, they
            # would be finalised by the garbage collector; a cancelled read unwinds them all.
            with suppress(self._transport.module.TransportError), trio.CancelScope() as unwinding:
                unwinding.cancel()
                async for _ in self._chunks:
                    pass
            await self._response.aclose()


@asynccontextmanager
async def open_httpx_transport(
    client: httpx.AsyncClient | None, ssl_context: ssl.SSLContext | None = None
) -> AsyncGenerator[HttpxTransport]:
    """A transport over `client`, which stays its owner's, or over clients of our own.

    Raises:
        ValueError: The environment names a proxy that our own clients cannot use.
    """
    async with Background("connections") as nursery:
        transport = HttpxTransport(client, ssl_context, nursery)
        try:
            yield transport
        finally:
            if client is None:
                await transport.aclose()


async def _more_of(decoder: ContentDecoder) -> bytes:
    """The next of what is left of an earlier piece. A checkpoint, unless there is nothing."""
    while decoder.has_more:
        await trio.lowlevel.checkpoint()
        if data := decoder.decode(b""):
            return data
    return b""  # noqa: ASYNC910 - nothing was waited for


def _module_of(client: httpx.AsyncClient) -> ModuleType:
    """The module, httpx or httpx2, whose `AsyncClient` this is."""
    for base in type(client).__mro__:
        if base.__name__ == "AsyncClient":
            return sys.modules[base.__module__.partition(".")[0]]
    raise TypeError(f"http_client is a {type(client).__name__}, but must be an httpx.AsyncClient")
