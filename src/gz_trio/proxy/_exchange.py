"""One request to the proxy, and the answer to it, as ASGI has them.

A request's body is read to its end before anything is answered: hypercorn would never get to close
a connection of which the application left more unread than fits into its queue.
"""

from __future__ import annotations

import trio
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from ._failure import APIS, Failure
from ._guard import Refusal
from ._passing import RawHeaders

MOST_BODY_BYTES = 64 * 2**20
BODY_SECONDS = 60.0

# Of one that is too large, so that the client gets to read why; then the connection is closed.
_MOST_READ_BYTES = 4 * MOST_BODY_BYTES

_TYPES = {401: "authentication_error", 403: "permission_error", 500: "api_error"}

_TOO_LARGE = Refusal(
    413, "too_large", f"The request is larger than {MOST_BODY_BYTES >> 20} MiB: send less."
)
_TOO_SLOW = Refusal(
    408, "too_slow", f"The request did not come within {BODY_SECONDS:g} seconds: send it again."
)


class ClientGone(Exception):
    """The client has hung up in the middle of its request."""


class Exchange:
    """A request, and what is answered.

    Args:
        scope: As ASGI's application is called with.
        receive: Likewise.
        send: Likewise.

    Attributes:
        method: In capitals.
        raw_path: As it was sent, without the query.
        path: Likewise, as text.
        query: Without the question mark.
        headers: Of the request.
        body: Of the request, once it was read.
        status: Of the answer, once it has begun.
        began: When that was, by Trio's clock.
        ended: Whether the answer is whole, or its end is being sent.
        remark: What is to be said of it in the log.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.method: str = scope["method"]
        self.raw_path: bytes = scope["raw_path"]
        self.path = self.raw_path.decode("ascii")
        self.query = scope["query_string"].decode("ascii")
        self.headers = Headers(scope=scope)
        self.body = b""
        self.status: int | None = None
        self.began: float | None = None
        self.ended = False
        self.remark = ""
        self._receive = receive
        self._send = send
        self._replayed = False

    # The request

    async def read_body(self, *, keep: bool = True) -> Refusal | None:
        """Read the body, to its end even if nobody wants it: clients send first, and read then.

        Args:
            keep: Whether it is wanted.

        Returns:
            Why there is none; `None`: it is in `body`, if it is wanted.

        Raises:
            ClientGone: There will be no more of it.
        """
        pieces: list[bytes] = []
        size = 0
        with trio.move_on_after(BODY_SECONDS) as scope:
            while True:
                message = await self._receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                size += len(message["body"])
                if keep and size <= MOST_BODY_BYTES:
                    pieces.append(message["body"])
                else:
                    pieces.clear()
                if not message["more_body"] or size > _MOST_READ_BYTES:
                    break
        if scope.cancelled_caught:
            return _TOO_SLOW
        if size > MOST_BODY_BYTES:
            return _TOO_LARGE
        self.body = b"".join(pieces)
        return None

    async def hung_up(self) -> None:
        """Wait until the client goes; its request has to be read."""
        await hung_up(self._receive)

    async def receive(self) -> Message:
        """ASGI's, for applications: gives the body, which was read before, once more."""
        if not self._replayed:
            self._replayed = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        return await self._receive()

    # The answer

    async def send(self, message: Message) -> None:
        """ASGI's, for applications."""
        if message["type"] == "http.response.start":
            self._begun(message["status"])
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self.ended = True
        await self._send(message)

    async def start(self, status: int, headers: RawHeaders) -> None:
        """Begin the answer."""
        self._begun(status)
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, data: bytes) -> None:
        """Send a piece of the answer's body; waits while the client is slow to take it."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        """Send the end of the answer's body."""
        self.ended = True
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def answer(
        self, status: int, media_type: str, body: bytes, *more: tuple[str, str]
    ) -> None:
        """Send a whole answer of our own.

        Args:
            status: Its status.
            media_type: What `body` is.
            body: Its body.
            more: Further headers.
        """
        headers = [
            (b"content-type", media_type.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
            *((name.encode(), value.encode()) for name, value in more),
        ]
        await self.start(status, headers)
        await self.end(body)

    async def refuse(self, refusal: Refusal) -> None:
        """Say why it is not answered: to a person at `/`, else in the shape of the API."""
        self.remark = refusal.code
        if self.path == "/":
            media_type, body = "text/plain; charset=utf-8", f"{refusal.message}\n".encode()
        else:
            type_ = _TYPES.get(refusal.status, "invalid_request_error")
            failure = Failure(refusal.message, type_, refusal.code)
            media_type, body = "application/json", failure.body(APIS.get(self.path))
        async with trio.open_nursery() as nursery:
            # What is left of a request that came too slowly: see above.
            nursery.start_soon(self.hung_up)
            await self.answer(refusal.status, media_type, body)
            nursery.cancel_scope.cancel()

    def _begun(self, status: int) -> None:
        self.status = status
        self.began = trio.current_time()


async def hung_up(receive: Receive) -> None:
    """Wait until a client goes; ASGI's `receive` tells, once its request was read."""
    while (await receive())["type"] != "http.disconnect":
        pass
