"""Requests by way of an httpx client: an adapter, for clients that a user has configured too.

`httpx2`, the maintained continuation, has the same API and the same names: a client of either
serves, and errors are told apart by the class that the client's own module gives them.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import ModuleType

import httpx
import trio

from .._protocol.errors import APIConnectionError, ProtocolError
from .interface import Request

CLOSE_SECONDS = 5.0


class HttpxTransport:
    """A transport over `client`, which stays its owner's: it is not closed here."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self.module = _module_of(client)

    async def send(self, request: Request) -> HttpxResponse:
        """Send `request`; see `Transport.send`. Redirects are not followed: they carry the key."""
        with self.errors_mapped(request.url):
            built = self._client.build_request(
                request.method,
                request.url,
                headers=dict(request.headers),
                content=request.content,
                timeout=httpx.Timeout(None, connect=request.connect_timeout)
                if self.module is httpx
                else self.module.Timeout(None, connect=request.connect_timeout),
            )
            for name in request.absent:
                built.headers.pop(name, None)
            response = await self._client.send(
                built, stream=True, follow_redirects=False, auth=None
            )
        return HttpxResponse(response, self)

    @contextmanager
    def errors_mapped(self, url: str) -> Iterator[None]:
        httpx_errors = self.module
        origin = str(httpx.URL(url).copy_with(raw_path=b"/")).rstrip("/")
        try:
            yield
        except (httpx_errors.ConnectError, httpx_errors.ConnectTimeout) as error:
            raise APIConnectionError(
                f"no connection to {origin}: is the gateway up, and the base URL right?"
            ) from error
        except (httpx_errors.LocalProtocolError, httpx_errors.UnsupportedProtocol):
            # Not chained: httpx quotes the header that it cannot send, and that may be the key's.
            raise ProtocolError(f"the request to {origin} cannot be sent by HTTP") from None
        except httpx_errors.DecodingError as error:
            raise ProtocolError(f"the answer of {origin} is badly compressed") from error
        except httpx_errors.TransportError as error:
            raise APIConnectionError(f"the connection to {origin} broke") from error


class HttpxResponse:
    """A response of an httpx client; see `Response`."""

    def __init__(self, response: httpx.Response, transport: HttpxTransport) -> None:
        self._response = response
        self._transport = transport
        self._chunks: AsyncIterator[bytes] = response.aiter_bytes()

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
        with self._transport.errors_mapped(str(self._response.request.url)):
            async for chunk in self._chunks:
                if chunk:
                    return chunk
        return b""

    async def aclose(self) -> None:
        """Close the response, in a bounded time even if cancelled."""
        with trio.move_on_after(CLOSE_SECONDS, shield=True):
            # Inside httpx are async generators within async generators. Left suspended, they
            # would be finalised by the garbage collector; a cancelled read unwinds them all.
            with suppress(self._transport.module.TransportError), trio.CancelScope() as unwinding:
                unwinding.cancel()
                async for _ in self._chunks:
                    pass
            await self._response.aclose()


def _module_of(client: httpx.AsyncClient) -> ModuleType:
    """The module, httpx or httpx2, whose `AsyncClient` this is."""
    for base in type(client).__mro__:
        if base.__name__ == "AsyncClient":
            return sys.modules[base.__module__.partition(".")[0]]
    raise TypeError(f"http_client is a {type(client).__name__}, but must be an httpx.AsyncClient")
