"""The pool as the transport of an httpx client, for those who want its speed and nothing else.

`httpx2`, the maintained continuation of `httpx`, has the same API and the same names. What a client
gets is an instance of its own module's classes, and raises its own module's errors: those that its
own transport would raise.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import cache
from math import inf
from types import ModuleType, TracebackType
from typing import Protocol, Self, TypeVar, cast, overload
from weakref import WeakKeyDictionary

import httpx
import trio

from .._protocol.errors import APIConnectionError, ProtocolError
from .connection import Exchange
from .interface import Request, Wait
from .origin import Origin
from .pool import Pool, open_pool

_T = TypeVar("_T")
_TransportT = TypeVar("_TransportT")
_TransportT_co = TypeVar("_TransportT_co", covariant=True)

IDEMPOTENT = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PUT", "TRACE"})  # RFC 9110, 9.2.2

_NOTHING: frozenset[str] = frozenset()
_ACCEPT_ENCODING = frozenset({"accept-encoding"})

_TIMEOUTS: dict[Wait, tuple[str, str]] = {
    "pool": ("PoolTimeout", "the request to {} had to wait for other connects for {:g} s"),
    "connect": ("ConnectTimeout", "no connection to {} within {:g} s"),
    "write": ("WriteTimeout", "{} took nothing more of the request for {:g} s"),
    "read": ("ReadTimeout", "{} sent nothing for {:g} s"),
}
"""The error of each wait, and its words, for an origin and seconds."""


class HttpxModule(Protocol[_TransportT_co]):
    """The module `httpx`, or its maintained continuation `httpx2`: anything with that API."""

    @property
    def AsyncBaseTransport(self) -> Callable[..., _TransportT_co]:  # noqa: N802  httpx's own name
        """The class of its transports."""
        ...


@overload
def httpx_transport(*, ssl_context: ssl.SSLContext | None = None) -> httpx.AsyncBaseTransport: ...


@overload
def httpx_transport(
    module: HttpxModule[_TransportT], *, ssl_context: ssl.SSLContext | None = None
) -> _TransportT: ...


def httpx_transport(
    module: HttpxModule[object] = httpx, *, ssl_context: ssl.SSLContext | None = None
) -> object:
    """A transport for an httpx client on Trio: this library's connections under httpx's API.

    One task reads all its connections, so a stream takes about half the CPU time that it takes
    with httpx's own transport; most of the rest is httpx itself. Redirects, cookies, authentication
    and content codings stay the client's. It raises the errors of the client's module that the
    client's own transport would.

    It has to be entered before the first request, for that task: either by itself, or by its
    client, which enters and leaves its transport with its own `async with`. Both at once is fine,
    and so are many clients: the first `async with` opens it, and the end of that one closes its
    connections. A client's `aclose()` does not. The OpenAI SDK never enters its client.

    The four timeouts of httpx hold. `pool` is the wait for other requests to get connected, at
    most 100 at once; the number of connections has no limit. `write` is how long the server may
    take nothing of the request. A request's content is read into memory before it is sent.

    A request that goes over a kept connection which the server closes just then is sent again if
    that can do no harm: GET, HEAD, OPTIONS, TRACE, PUT and DELETE (RFC 9110 section 9.2.2), and
    any other with an `Idempotency-Key`.

    There is no HTTP/2, no proxy, no Unix socket, no upgrade (WebSocket), and of httpx's request
    extensions only `timeout`.

    Args:
        module: The client's module: `httpx`, or `httpx2`.
        ssl_context: For `https://`, what certificates are trusted; `None`: those that httpx
            trusts. The client's own `verify=` is its own transport's.

    Returns:
        An `AsyncBaseTransport` of the module. A request raises `RuntimeError` while it is not
        entered.

    >>> import httpx
    >>> async def main() -> None:
    ...     fake = FakeGateway()
    ...     async with fake.listen() as base_url, httpx_transport() as transport:
    ...         client = httpx.AsyncClient(transport=transport)
    ...         response = await client.get(f"{base_url}/models")
    ...         print(response.status_code)
    >>> trio.run(main)
    401
    """
    named = cast("ModuleType", module)
    return with_base(_Transport, named.AsyncBaseTransport)(named, ssl_context)


@cache
def with_base(ours: type[_T], theirs: type) -> type[_T]:
    """`ours` as a class that is one of theirs too, whose methods do what ours has none for."""
    return cast("type[_T]", type(ours.__name__, (ours, theirs), {}))


class _Transport:
    """What `httpx_transport` gives, but for its base.

    Args:
        module: The client's.
        ssl_context: See `httpx_transport`.
    """

    def __init__(self, module: ModuleType, ssl_context: ssl.SSLContext | None) -> None:
        self._module = module
        self._body_class = with_base(_Body, module.AsyncByteStream)
        self._ssl_context = ssl_context
        self._pool: Pool | None = None
        self._opener: trio.lowlevel.Task | None = None
        self._entries = 0

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> Self:
        """Not a checkpoint: opening a nursery never waits."""
        task = trio.lowlevel.current_task()
        if self._pool is None:
            opened = open_pool(self._ssl_context)
            self._pool = await opened.__aenter__()
            self._opener = task
            _opened_in.setdefault(task, []).append((self, opened))
        if task is self._opener:
            self._entries += 1
        return self  # noqa: ASYNC910 - it never waits

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        """A checkpoint, where it closes connections.

        Only the task that opened the nursery can close it: for others it was there, and stays.
        """
        task = trio.lowlevel.current_task()
        if task is not self._opener:
            return  # noqa: ASYNC910 - there is nothing to close
        self._entries -= 1
        if self._entries:
            return  # noqa: ASYNC910 - likewise
        opened_here = _opened_in[task]
        self._pool = self._opener = None
        # Nurseries can only be left in the reverse order. A client with several transports leaves
        # them in the order in which it entered them: then the last one takes the others along.
        to_close: list[AbstractAsyncContextManager[Pool]] = []
        while opened_here and not opened_here[-1][0]._entries:
            to_close.append(opened_here.pop()[1])
        closing = AsyncExitStack()
        for opened in reversed(to_close):
            closing.push_async_exit(opened)
        # The one task of each is stopped, and has nothing to wait for.
        await closing.__aexit__(kind, error, traceback)  # noqa: ASYNC102 - see above

    @trio.lowlevel.enable_ki_protection  # or Ctrl-C may strike where nobody has the exchange yet
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send `request`, and wait for the head of its response. A checkpoint."""
        pool, module = self._pool, self._module
        if pool is None:
            raise RuntimeError(
                "this transport is not open: write `async with gz_trio.httpx_transport(...) as "
                "transport:` around what uses it, or enter its client, `async with "
                f"{module.__name__}.AsyncClient(transport=...) as client:`"
            )
        url = str(request.url)
        patience = _Patience(request.extensions.get("timeout", {}))
        headers = joined_headers(request.headers.raw)
        names = {name.lower() for name in headers}  # to ask httpx's own takes longer
        ours = Request(
            request.method,
            url,
            headers=headers,
            absent=_NOTHING if "accept-encoding" in names else _ACCEPT_ENCODING,
            content=await request.aread(),
            repeatable=request.method in IDEMPOTENT or "idempotency-key" in names,
            on_wait=patience.begin,
        )
        exchange: Exchange | None = None
        try:
            with patience.scope:
                exchange = await pool.send(ours)
        except ProtocolError as error:
            ours_too = request.url.scheme in ("http", "https")
            name = "LocalProtocolError" if ours_too else "UnsupportedProtocol"
            raise getattr(module, name)(str(error)) from None
        except (APIConnectionError, trio.ClosedResourceError) as error:
            if patience.waits_for in ("pool", "connect"):
                raise module.ConnectError(str(error)) from error
            raise _broken(module, error) from error
        if exchange is None:
            raise patience.too_late(module, Origin.of(url))
        exchange.keep_coding()
        response: httpx.Response = module.Response(
            exchange.status,
            headers=exchange.reader.raw_headers,
            stream=self._body_class(module, exchange, Origin.of(url), patience),
            extensions={"http_version": b"HTTP/1.1", "reason_phrase": exchange.reader.reason},
        )
        return response


_opened_in: WeakKeyDictionary[
    trio.lowlevel.Task, list[tuple[_Transport, AbstractAsyncContextManager[Pool]]]
] = WeakKeyDictionary()
"""What each task has opened, the last one last."""


class _Patience:
    """Runs the timeout of whatever a request waits for.

    Args:
        timeouts: Seconds, or `None`, by what is waited for: httpx's own names.

    Attributes:
        scope: What ends the wait; moved on with each new one.
        waits_for: What is waited for.
    """

    __slots__ = ("_timeouts", "scope", "waits_for")

    def __init__(self, timeouts: Mapping[Wait, float | None]) -> None:
        self._timeouts = timeouts
        self.scope = trio.CancelScope()
        self.waits_for: Wait = "read"

    def begin(self, wait: Wait) -> None:
        """Something else is waited for, or the same anew."""
        self.waits_for = wait
        self.scope.deadline = self.deadline(wait)

    def deadline(self, wait: Wait) -> float:
        """When a wait that begins now ends, in seconds on Trio's clock."""
        seconds = self._timeouts.get(wait)
        return inf if seconds is None else trio.current_time() + seconds

    def too_late(self, module: ModuleType, origin: Origin) -> Exception:
        """The error of the wait."""
        name, words = _TIMEOUTS[self.waits_for]
        error: Exception = getattr(module, name)(
            words.format(origin, self._timeouts.get(self.waits_for))
        )
        return error


class _Body:
    """The body of a response, as it came, and what iterates over it; but for its base.

    Args:
        module: The client's.
        exchange: Whose body it is.
        origin: Messages name it.
        patience: How long to wait for each piece.
    """

    def __init__(
        self, module: ModuleType, exchange: Exchange, origin: Origin, patience: _Patience
    ) -> None:
        self._module = module
        self._exchange = exchange
        self._origin = origin
        self._patience = patience
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    @trio.lowlevel.enable_ki_protection  # or Ctrl-C may leave the scope entered
    async def __anext__(self) -> bytes:
        """The next bytes, as they came. A checkpoint."""
        if self._closed:
            raise self._module.StreamClosed
        try:
            with trio.fail_at(self._patience.deadline("read")):
                piece = await self._exchange.receive()
        except trio.TooSlowError:
            raise self._patience.too_late(self._module, self._origin) from None
        except (APIConnectionError, trio.ClosedResourceError) as error:
            raise _broken(self._module, error) from error
        if not piece:
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:  # noqa: ASYNC910 - it never waits
        """Give the connection back, or close it. No checkpoint: it never waits."""
        self._closed = True
        self._exchange.close()


def joined_headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """The headers of a request; several of one name as one (RFC 9110 5.3, RFC 6265 5.4)."""
    headers: dict[str, str] = {}
    for name, value in raw:
        key, text = name.decode("latin-1"), value.decode("latin-1")
        if key in headers:
            text = f"{headers[key]}{'; ' if key.lower() == 'cookie' else ', '}{text}"
        headers[key] = text
    return headers


def _broken(module: ModuleType, error: Exception) -> Exception:
    """The error where a connection that stood did not give all of a response."""
    # What broke it comes with the error. If nothing did, the server has ended it too early, or
    # what it sent is no HTTP.
    broke = error.__cause__ is not None or isinstance(error, trio.ClosedResourceError)
    ours: Exception = (module.ReadError if broke else module.RemoteProtocolError)(str(error))
    return ours
