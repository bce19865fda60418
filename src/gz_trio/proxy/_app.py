"""The proxy as an ASGI application: who may come in, and who then answers."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from pathlib import PurePath
from urllib.parse import parse_qs

import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from .. import Authenticator
from .._background import leaves
from ._exchange import ClientGone, Exchange
from ._failure import Failure
from ._forwarding import Forwarding
from ._guard import API, Guard, LocalSecrets, Refusal, is_api
from ._metrics import MEDIA_TYPE, Metrics

_HTTP_2 = Refusal(505, "http_version", "This proxy speaks HTTP/1.1: ask it in that.")
_USED_CODE = Refusal(
    401,
    "used_link",
    "This link was used before, or there is a newer one. For another, ask as `gz-trio proxy` said "
    "when it started.",
)
_MOST_PATH = 200
_INTERNAL = Refusal(500, "internal_error", "The proxy failed; its output says where.")


class App:
    """The application.

    Args:
        url: The proxy's own, without a slash at its end.
        guard: Who may come in.
        secrets: The local ones; `None`: there are none.
        forwarding: Answers what is the gateway's.
        metrics: Where all is counted.
        authenticator: Whose state `/healthz` tells.
        page: The routes of the page.
        log: Called with a line for each request.
    """

    def __init__(
        self,
        url: str,
        *,
        guard: Guard,
        secrets: LocalSecrets | None,
        forwarding: Forwarding,
        metrics: Metrics,
        authenticator: Authenticator,
        page: Sequence[BaseRoute],
        log: Callable[[str], object],
    ) -> None:
        self._url = url
        self._guard = guard
        self._secrets = secrets
        self._forwarding = forwarding
        self._metrics = metrics
        self._authenticator = authenticator
        self._log = log
        self._own = Starlette(
            routes=[
                Route("/healthz", self._healthz),
                Route("/metrics", self._show_metrics),
                Route("/page/link", self._new_link, methods=["POST"]),
                *page,
            ],
            exception_handlers={404: self._not_found},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as ASGI has it."""
        if scope["type"] != "http":  # a WebSocket, which no route here is
            await send({"type": "websocket.close"})
            return
        exchange = Exchange(scope, receive, send)
        began = trio.current_time()
        try:
            with self._metrics.counting(exchange):
                await self._answer_or_tell(exchange)
        finally:
            self._log(_line(exchange, trio.current_time() - began))

    def new_page_url(self) -> str:
        """A URL of the page that lets a browser in, once; ends the one before."""
        if self._secrets is None:
            return f"{self._url}/"
        return f"{self._url}/?code={self._secrets.new_code()}"

    async def _answer_or_tell(self, exchange: Exchange) -> None:
        try:
            await self._answer(exchange)
        except* ClientGone:
            exchange.remark = "hung up"
        except* Exception as group:
            if exchange.status is None:
                await exchange.refuse(_INTERNAL)
            exchange.remark = f"internal error: {_place(group)}"

    async def _answer(self, exchange: Exchange) -> None:
        refusal = self._refusal(exchange)
        unread = await exchange.read_body(keep=refusal is None)
        refusal = refusal or unread
        if refusal is not None:
            await exchange.refuse(refusal)
        elif is_api(exchange.path):
            await self._forwarding.forward(exchange)
        elif (code := _code_of(exchange)) is not None:
            await self._let_in(exchange, code)
        else:
            await self._own(exchange.scope, exchange.receive, exchange.send)

    def _refusal(self, exchange: Exchange) -> Refusal | None:
        if exchange.scope["http_version"] not in ("1.0", "1.1"):
            return _HTTP_2
        asked = (exchange.method, exchange.path, exchange.headers)
        refusal = self._guard.refuse_origin(*asked)
        if refusal is None and _code_of(exchange) is None:
            refusal = self._guard.refuse_stranger(*asked)
        return refusal

    async def _let_in(self, exchange: Exchange, code: str) -> None:
        """Turn the page's one-time code into its cookie."""
        more = [("location", "/"), ("referrer-policy", "no-referrer")]
        if self._secrets is not None:
            if not self._secrets.redeem(code):
                await exchange.refuse(_USED_CODE)
                return
            more.append(("set-cookie", self._secrets.set_cookie))
        await exchange.answer(303, "text/plain", b"", *more)

    async def _healthz(self, _: Request) -> Response:
        return JSONResponse({"status": "ok", "auth": self._authenticator.state.status.value})

    async def _show_metrics(self, _: Request) -> Response:
        return Response(self._metrics.text(), media_type=MEDIA_TYPE)

    async def _not_found(self, request: Request, _: Exception) -> Response:
        failure = Failure(
            f"There is no {request.url.path} here: the gateway's API is under {API}, so a base URL "
            f"ends in {API} for OpenAI's SDKs, and does not for Anthropic's.",
            "invalid_request_error",
            "not_found",
        )
        return Response(failure.body(None), 404, media_type="application/json")

    async def _new_link(self, _: Request) -> Response:
        return JSONResponse({"url": self.new_page_url()}, headers={"cache-control": "no-store"})


def _code_of(exchange: Exchange) -> str | None:
    if (exchange.method, exchange.path) != ("GET", "/"):
        return None
    codes = parse_qs(exchange.query, keep_blank_values=True).get("code")
    return None if codes is None else codes[0]


def _line(exchange: Exchange, seconds: float) -> str:
    """One request for the log; the query may hold a secret, and is not in it."""
    status = "no answer" if exchange.status is None else str(exchange.status)
    words = [exchange.method, exchange.path[:_MOST_PATH], status, f"{seconds:.2f} s"]
    if exchange.remark:
        words.append(exchange.remark)
    elif exchange.status is not None and not exchange.ended:
        words.append("broken off")
    return " ".join(words)


def _place(error: BaseException) -> str:
    """Which exception, and where, without its message, which might hold anything."""
    for leaf in leaves(error):
        frames = traceback.extract_tb(leaf.__traceback__)
        at = f" at {PurePath(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
        return f"{type(leaf).__name__}{at}"
    return type(error).__name__
