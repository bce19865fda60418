"""Sends requests on to the gateway, and its answers back, with signs of life while they wait.

Two tasks serve an exchange. One forwards: it takes an event from the gateway, sends it to the
client, and takes the next one only when that is gone, so a slow client slows its gateway. The other
waits for the client to hang up, and when nothing was sent for a while it sends a comment, which an
event stream's reader skips. Both write whole events, so a comment stands between two of them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from math import inf
from typing import cast

import httpx
import msgspec
import trio

from .. import AuthenticationError, GatewayError
from ._exchange import Exchange
from ._failure import APIS, ApiName, Failure
from ._guard import Refusal
from ._metrics import Metrics
from ._passing import RawHeaders, path_at_gateway, to_caller, to_gateway

SILENCE_SECONDS = 5.0
"""After so long a client is told that its stream is alive."""

# One line ending, no blank line: of that the OpenAI SDK would make an empty event, and fail on it.
COMMENT = b": waiting\n"

_EVENT_STREAM: RawHeaders = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache"),
]
_REDIRECTS = {301, 302, 303, 307, 308}
_CLOSE_SECONDS = 5.0
_NO_RETRY = ("x-should-retry", "false")

_REDIRECTED = Failure(
    "the gateway sends requests elsewhere, and the key goes to it alone: start the proxy with the "
    "address where it is now as --base-url",
    code="redirected",
)
_LEADS_OUT = Refusal(
    400, "bad_path", "The path leads out of the gateway's base URL: leave out `.` and `..`."
)


class Forwarding:
    """Forwards to one gateway.

    Args:
        client: `Gateway.http_client()` of it.
        metrics: Where things are counted.
    """

    def __init__(self, client: httpx.AsyncClient, metrics: Metrics) -> None:
        self._client = client
        self._base_url = str(client.base_url).rstrip("/")
        self._metrics = metrics

    async def forward(self, exchange: Exchange) -> None:
        """Answer with what the gateway answers. The request's body has to be read."""
        path = path_at_gateway(exchange.raw_path)
        if path is None:
            await exchange.refuse(_LEADS_OUT)
            return
        request = self._client.build_request(
            exchange.method,
            f"{self._base_url}{path}{exchange.query and '?'}{exchange.query}",
            headers=to_gateway(exchange.headers.raw),
            content=exchange.body or None,
        )
        api = APIS.get(exchange.path) if exchange.method == "POST" else None
        answer = _Answer(exchange, api, streams=api is not None and _wants_stream(exchange.body))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer.watch, nursery.cancel_scope)
            await self._relay(request, answer)
            nursery.cancel_scope.cancel()

    async def _relay(self, request: httpx.Request, answer: _Answer) -> None:
        try:
            response = await self._client.send(request, stream=True)
        except httpx.TransportError as error:
            await answer.fail(_status_of(error), _failure_of(error))
            return
        try:
            await self._hand_on(response, answer)
        finally:
            # It ends the gateway's work, whatever has ended ours.
            with trio.move_on_after(_CLOSE_SECONDS, shield=True):
                await response.aclose()

    async def _hand_on(self, response: httpx.Response, answer: _Answer) -> None:
        status = response.status_code
        if status in _REDIRECTS:
            await answer.fail(502, _REDIRECTED)
            return
        streams = answer.streams and status == 200
        headers = to_caller(response.headers.raw)
        if not await answer.begin(status, headers, streams=streams) and not streams:
            # We have begun a stream, to show life, and there will be none.
            await answer.fail(status, Failure.of_answer(status, await response.aread()))
            return
        try:
            # Not `aiter_raw`: what that reads from would be left to the garbage collector.
            stream = aiter(cast("httpx.AsyncByteStream", response.stream))
            async with aclosing(cast("AsyncGenerator[bytes]", stream)) as pieces:
                async for piece in pieces:
                    await answer.write(piece)
                    self._metrics.forwarded(len(piece))
        except httpx.TransportError as error:
            await answer.fail(_status_of(error), _failure_of(error))
        else:
            await answer.end()


class _Answer:
    """The answer to one exchange, which two tasks write.

    Args:
        exchange: It.
        api: The API that is asked; `None`: another route.
        streams: Whether it is asked for a stream that is taken up again.

    Attributes:
        streams: Likewise; once it has begun, whether it is one.
    """

    def __init__(self, exchange: Exchange, api: ApiName | None, *, streams: bool) -> None:
        self.streams = streams
        self._exchange = exchange
        self._api: ApiName | None = api
        self._beginning = trio.Lock()
        self._sending = False
        # When the client is to be told that it is still served.
        self._due = trio.current_time() + SILENCE_SECONDS if streams else inf

    async def watch(self, forwarding: trio.CancelScope) -> None:
        """Keep the client waiting, and end `forwarding` when it hangs up."""
        while True:
            with trio.move_on_at(self._due):
                await self._exchange.hung_up()
                # ASGI tells of the end of an answer in the same words.
                if not self._exchange.ended:
                    self._exchange.remark = "hung up"
                    forwarding.cancel()
                return
            await self._show_life()

    async def _show_life(self) -> None:
        now = trio.current_time()
        if now < self._due:  # Something was sent meanwhile.
            return
        self._due = now + SILENCE_SECONDS
        if self._sending:  # It is the client that is slow.
            return
        await self.begin(200, _EVENT_STREAM, streams=True)
        if self._due < inf:
            await self._exchange.write(COMMENT)

    async def begin(self, status: int, headers: RawHeaders, *, streams: bool) -> bool:
        """Begin it, unless the other task has.

        Args:
            status: Its status.
            headers: Its headers.
            streams: Whether events follow, between which there may be comments.

        Returns:
            Whether this is how it has begun.
        """
        async with self._beginning:
            if self._exchange.status is not None:
                return False
            self.streams = streams
            self._sending = True
            await self._exchange.start(status, headers)
            self._sent()
        return True

    async def write(self, piece: bytes) -> None:
        """Send a piece of its body: of a stream, whole events."""
        self._sending = True
        await self._exchange.write(piece)
        self._sent()

    async def end(self) -> None:
        """Send the end of its body."""
        self._due = inf
        await self._exchange.end()

    async def fail(self, status: int, failure: Failure) -> None:
        """Tell a failure: by an answer, or if it has begun by a frame, which nothing follows.

        Nothing: not even the end of the body, which would say that it is whole.
        """
        async with self._beginning:
            if self._exchange.status is None:
                self._due = inf
                retry = [_NO_RETRY] if self._api is not None else []
                body = failure.body(self._api)
                await self._exchange.answer(status, "application/json", body, *retry)
                return
        if self._api is not None and self.streams:
            await self.write(failure.frame(self._api))

    def _sent(self) -> None:
        self._sending = False
        self._due = trio.current_time() + SILENCE_SECONDS if self.streams else inf


def _wants_stream(body: bytes) -> bool:
    try:
        return msgspec.json.decode(body, type=_Asked).stream is True
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


class _Asked(msgspec.Struct):
    stream: object = None


def _status_of(error: httpx.TransportError) -> int:
    return 504 if isinstance(error, httpx.TimeoutException) else 502


def _failure_of(error: httpx.TransportError) -> Failure:
    cause = error.__cause__
    if isinstance(cause, GatewayError):
        kind = "authentication_error" if isinstance(cause, AuthenticationError) else "api_error"
        return Failure(str(cause), cause.type or kind, cause.code)
    return Failure(f"the request to the gateway failed: {type(error).__name__}")
