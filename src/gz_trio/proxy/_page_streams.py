"""An answer that is a stream of news, for as long as there is somebody who reads it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

import msgspec
import trio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ._exchange import hung_up
from ._page_files import HEADERS
from ._page_turns import News

Tell = Callable[[Iterable[News]], Awaitable[None]]
"""Sends news to whoever reads; waits while he is slow."""


class NewsStream(Response):
    """A stream of news.

    Args:
        media_type: `application/x-ndjson`, or `text/event-stream`.
        work: Called to tell them, and cancelled if the reader hangs up.
    """

    def __init__(self, media_type: str, work: Callable[[Tell], Awaitable[None]]) -> None:
        super().__init__(headers={**HEADERS, "Cache-Control": "no-store"}, media_type=media_type)
        del self.headers["Content-Length"]
        self._frame = b"data: %b\n\n" if media_type == "text/event-stream" else b"%b\n"
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI
        """Answer; returns when the work is done, or when nobody reads any more."""

        async def tell(news: Iterable[News]) -> None:
            body = b"".join(self._frame % msgspec.json.encode(each) for each in news)
            if body:
                await send({"type": "http.response.body", "body": body, "more_body": True})

        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_when_gone, receive, nursery.cancel_scope)
            head = {"status": self.status_code, "headers": self.raw_headers}
            await send({"type": "http.response.start", **head})
            await self._work(tell)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            nursery.cancel_scope.cancel()


async def _cancel_when_gone(receive: Receive, scope: trio.CancelScope) -> None:
    await hung_up(receive)
    scope.cancel()
