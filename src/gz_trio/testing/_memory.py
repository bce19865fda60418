"""In-memory connections to a fake gateway: streams that can break, and httpx over them."""

from __future__ import annotations

import importlib
import math
from collections.abc import Awaitable, Callable, Iterable
from types import ModuleType
from typing import Protocol, TypeVar

import trio
import trio.testing

_ClientT_co = TypeVar("_ClientT_co", covariant=True)


class HttpxModule(Protocol[_ClientT_co]):
    """The module `httpx`, or its maintained continuation `httpx2`: anything with that API."""

    @property
    def AsyncClient(self) -> Callable[..., _ClientT_co]:  # noqa: N802  httpx's own name
        """The class of its clients."""
        ...


class MemoryStream(trio.abc.Stream):
    """One end of an in-memory connection that, unlike `trio.testing`'s, can be reset."""

    def __init__(self, stream: trio.abc.HalfCloseableStream, wire: _Wire) -> None:
        self._stream = stream
        self._wire = wire

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self._stream.receive_some(max_bytes)
        if not data and self._wire.reset:
            raise trio.BrokenResourceError("connection reset by peer")
        return data

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def reset(self) -> None:
        """Close this end so that the other one breaks, once it has read what was sent."""
        self._wire.reset = True
        await trio.aclose_forcefully(self._stream)


class _Wire:
    reset = False


def memory_connection() -> tuple[MemoryStream, MemoryStream]:
    """The two ends of a new in-memory connection. Neither end ever waits for the other to read."""
    wire = _Wire()
    one, other = trio.testing.memory_stream_pair()
    return MemoryStream(one, wire), MemoryStream(other, wire)


class _Errors:
    """The exceptions of `httpcore`, or of `httpcore2` where the client is httpx2's."""

    def __init__(self, httpcore: ModuleType) -> None:
        self.connect: type[Exception] = httpcore.ConnectError
        self.read: type[Exception] = httpcore.ReadError
        self.read_timeout: type[Exception] = httpcore.ReadTimeout
        self.write: type[Exception] = httpcore.WriteError


class _NetworkStream:
    """A Trio stream as httpcore's `AsyncNetworkStream`."""

    def __init__(self, stream: trio.abc.Stream, errors: _Errors) -> None:
        self._stream = stream
        self._errors = errors

    async def read(
        self,
        max_bytes: int,
        timeout: float | None = None,  # httpcore's interface
    ) -> bytes:
        try:
            with trio.fail_after(math.inf if timeout is None else timeout):
                return bytes(await self._stream.receive_some(max_bytes))
        except trio.TooSlowError as exc:
            raise self._errors.read_timeout(str(exc)) from exc
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise self._errors.read(str(exc)) from exc

    async def write(
        self,
        buffer: bytes,
        timeout: float | None = None,  # noqa: ARG002
    ) -> None:
        try:
            await self._stream.send_all(buffer)  # in memory it never waits
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise self._errors.write(str(exc)) from exc

    async def aclose(self) -> None:
        await self._stream.aclose()

    def get_extra_info(self, info: str) -> object:  # noqa: ARG002  httpcore's interface
        return None


class _NetworkBackend:
    """httpcore's `AsyncNetworkBackend` for a network of one host."""

    def __init__(
        self, host: str, connect: Callable[[], Awaitable[trio.abc.Stream]], errors: _Errors
    ) -> None:
        self._host = host
        self._connect = connect
        self._errors = errors

    async def connect_tcp(
        self,
        host: str,
        port: int,  # noqa: ARG002
        timeout: float | None = None,  # noqa: ARG002  it never takes long
        local_address: str | None = None,  # noqa: ARG002
        socket_options: Iterable[object] | None = None,  # noqa: ARG002
    ) -> _NetworkStream:
        try:
            return _NetworkStream(await self.connect(host), self._errors)
        except OSError as exc:
            raise self._errors.connect(str(exc)) from exc

    async def connect(self, host: str) -> trio.abc.Stream:
        """A connection; raises `OSError` where there is none."""
        if host != self._host:
            raise OSError(
                f"no route to {host}: this client's connections end in memory, at {self._host}"
            )
        return await self._connect()


def memory_client(
    module: HttpxModule[_ClientT_co],
    base_url: str,
    host: str,
    connect: Callable[[], Awaitable[trio.abc.Stream]],
) -> _ClientT_co:
    """An `AsyncClient` of `module` whose connections come from `connect`."""
    # httpx has no parameter for a network backend, so the transport's pool is replaced.
    transport = getattr(module, "AsyncHTTPTransport")(verify=False, trust_env=False)  # noqa: B009
    httpcore = importlib.import_module(type(transport._pool).__module__.partition(".")[0])
    transport._pool = httpcore.AsyncConnectionPool(
        network_backend=_NetworkBackend(host, connect, _Errors(httpcore)),
        max_connections=None,
        # With many idle connections httpcore looks at each for each, on every request.
        max_keepalive_connections=20,
    )
    return module.AsyncClient(transport=transport, base_url=base_url, timeout=None, trust_env=False)
