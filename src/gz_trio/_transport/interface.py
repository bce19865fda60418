"""What a transport does: one request out, one streamed response back. The seam for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Literal, Protocol, TypeAlias

Wait: TypeAlias = Literal["pool", "connect", "write", "read"]
"""What a request waits for: its turn to connect, a connection, to be taken, and to be answered.

The names are those of httpx's timeouts.
"""


def untold(_wait: Wait) -> None:
    """For who does not want to know what is waited for."""


def seconds_of(timeout: float | None) -> float:
    """A timeout in seconds, as Trio takes it: without end where there is none."""
    return inf if timeout is None else timeout


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request, with its key: `repr` shows neither headers nor content.

    Args:
        method: `"POST"`, say.
        url: Absolute.
        headers: All that are to be sent but those of the transport itself (`Host`, framing).
        absent: Names of headers, in lower case, that must not be sent, whoever adds them.
        content: The body.
        connect_timeout: Seconds until the connection stands, or `None`.
        repeatable: Whether it is sent again, once, where the server closes a kept connection just
            then: it may have read it.
        on_wait: Called before each wait of the library's own transport, until the head of the
            response has come; and so again whenever some bytes went or came.
    """

    method: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    absent: frozenset[str] = frozenset()
    content: bytes = field(default=b"", repr=False)
    connect_timeout: float | None = None
    repeatable: bool = False
    on_wait: Callable[[Wait], None] = field(default=untold, repr=False)


class BodyConsumer(Protocol):
    """Takes a response's body; called by whichever task reads the connection."""

    def receive(self, data: bytes, arrived_ns: int) -> bool:
        """Take the next bytes, as `Response.receive` gives them; whether that is enough for now.

        What it raises closes the response, and comes back by `stopped`.

        Args:
            data: Not empty.
            arrived_ns: When they came, in nanoseconds on the clock of `time.perf_counter_ns`.
        """
        ...

    def deadline(self) -> float:
        """When the next bytes have to be here, in seconds on Trio's clock.

        Asked when a response is started, at the first bytes after that, and whenever what was said
        then has passed: so it may move on with each `receive`.
        """
        ...

    def stopped(self, error: BaseException | None) -> None:
        """No more comes, and the response is closed. Must not raise.

        Args:
            error: `None` at the body's proper end; `trio.TooSlowError` where the deadline has
                passed; else what `Response.receive` would have raised, or `receive` has.
        """
        ...


class Response(Protocol):
    """A response whose head has come."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers, names in lower case. Not kept while the body is handed over (`start`)."""
        ...

    async def receive(self) -> bytes:
        """The next bytes of the body, decoded by `Content-Encoding`; `b""` at its proper end.

        A checkpoint. Cancelling it may break the connection.

        Raises:
            APIConnectionError: The connection broke before the end.
            ProtocolError: The bytes are not what HTTP allows.
        """
        ...

    def start(self, consumer: BodyConsumer) -> None:
        """Hand the body over as it comes, without any task to wait for it.

        What is there already is handed over at once. Until the consumer has had enough: then it
        may be started again.
        """
        ...

    def close(self) -> None:
        """Give the connection back where the body was read to its end, else close it.

        A consumer hears nothing more. Any number of times.
        """
        ...


class Transport(Protocol):
    """Sends requests."""

    async def send(self, request: Request) -> Response:
        """Send `request`, wait for the head of its response. The caller closes the response.

        Raises:
            APIConnectionError: No connection, or it broke before a head came.
            ProtocolError: The bytes are not what HTTP allows.
        """
        ...
