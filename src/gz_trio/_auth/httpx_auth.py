"""The authenticator as an `Auth` of httpx, for those who keep their client as it is."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Generator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Self, cast

import httpx

from .._protocol.errors import GatewayError, error_from_response
from .._protocol.keys import KEY_HEADERS, Key
from .._protocol.retry import Refresh, RetryHistory, decide
from .._protocol.settings import RetryPolicy
from .authenticator import Authenticator

if TYPE_CHECKING:
    import httpx2

    class _Auth(httpx.Auth, httpx2.Auth):  # type: ignore[misc]  # each has requests of its own
        pass

else:
    _Auth = httpx.Auth


class GatewayAuth(_Auth):
    """Sends the authenticator's key with each request of an httpx client, on Trio.

    On a 401 it waits for the one refresh, whoever else asked for it, and sends the request once
    more. That is all: a stream that breaks later stays broken (`Gateway.http_client` has it go
    on), and a second 401, or one for which no other key can be had, is the client's response.

    The key goes into `Authorization: Bearer`, which httpx leaves out where a redirect leads to
    another host; other headers that may hold a key are left out. A request's content is read into
    memory first, to be sent again. It is an `Auth` of `httpx` and, where that is installed, of
    `httpx2`; for the Anthropic SDK, say, whose client is one of `httpx2`.

    Args:
        authenticator: What holds the key. Give it to clients of that gateway alone: it cannot know
            where a request ought not to go.

    A request raises:

    - `AuthenticationError`: there is no key, and none can be had.
    - `RefreshError`, `RefreshTimeout`: there was none yet, and getting the first one failed.
    - `RuntimeError`: the client is not an asynchronous one.

    >>> import httpx
    >>> async def main() -> None:
    ...     fake = FakeGateway(key="sk-2")
    ...     async with (
    ...         fake.listen() as base_url,
    ...         open_authenticator(MemoryKeyStore("sk-1"), fake.refresh) as authenticator,
    ...         httpx.AsyncClient(base_url=base_url, auth=GatewayAuth(authenticator)) as client,
    ...     ):
    ...         print((await client.get("/models")).status_code, fake.refreshes)
    >>> trio.run(main)
    200 1
    """

    def __new__(cls, authenticator: Authenticator) -> Self:  # noqa: ARG004 - __init__ takes it
        # mypy does not take a class for something hashable, which the cache wants.
        return super().__new__(cast("type[Self]", _of_both_modules(cls)))  # type: ignore[arg-type]

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator

    def __repr__(self) -> str:
        return f"<GatewayAuth of {self._authenticator!r}>"

    def sync_auth_flow(  # type: ignore[override]  # see `_Auth`
        self,
        request: httpx.Request,  # noqa: ARG002 - httpx's own name
    ) -> Generator[httpx.Request, httpx.Response]:
        """Refuses: there is no waiting for a refresh without Trio."""
        raise RuntimeError("GatewayAuth is for an AsyncClient, on Trio")

    # Of the two modules' requests it takes either, which no type says; httpx closes the generator.
    async def async_auth_flow(  # type: ignore[override]  # noqa: ASYNC900, ASYNC911 - see above
        self, request: httpx.Request
    ) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """See `httpx.Auth`, which closes it."""
        await request.aread()
        origin = f"{request.url.scheme}://{request.url.netloc.decode('ascii')}"
        key = await self._authenticator.key()
        _put(key, request)
        response = yield request
        if response.status_code == 401:
            body = await response.aread()
            error = error_from_response(401, response.headers, body, now=time.time())
            step = decide(error, history=RetryHistory(), policy=RetryPolicy(), jitter=0.0)
            if not isinstance(step, Refresh):
                return
            try:
                key = await self._authenticator.refresh(key, origin=origin)
            except GatewayError:
                return  # The response says it.
            _put(key, request)
            response = yield request
        if response.status_code < 400:
            self._authenticator.accepted(key, origin=origin)


def _put(key: Key, request: httpx.Request) -> None:
    for name in KEY_HEADERS:
        request.headers.pop(name, None)
    request.headers["Authorization"] = f"Bearer {key.value}"


@cache
def _of_both_modules(cls: type) -> type:
    """The class as an `Auth` of httpx2 too, if that is there: imported only when it is needed."""
    if find_spec("httpx2") is None:
        return cls
    return type(cls.__name__, (cls, import_module("httpx2").Auth), {"__module__": cls.__module__})
