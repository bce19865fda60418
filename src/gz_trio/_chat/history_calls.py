"""Calls of the history's routes: each with one key and one budget of retries, as a reply has."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from math import inf
from typing import TypeVar
from urllib.parse import quote

import msgspec
import trio

from .._auth.authenticator import Authenticator
from .._protocol.errors import (
    AuthenticationError,
    GatewayError,
    NotFoundError,
    StreamTimeout,
    error_from_response,
)
from .._protocol.events import Paused, RateLimited
from .._protocol.history import may_have_been_done
from .._protocol.settings import RetryPolicy, Timeouts
from .._transport.interface import Request, Transport
from .bodies import read_body, read_error_body
from .recovering import Recovering

_T = TypeVar("_T")
_log = logging.getLogger("gz_trio.history")


class HistoryCalls:
    """Opens calls of one gateway's history.

    Args:
        transport: What sends the requests.
        authenticator: What holds the key.
        origin: Of the gateway.
        make_request: Gives a request for a method, a path and a key.
        retry: How often to try again.
        timeouts: How long to wait.
        now: Unix time in seconds.
    """

    def __init__(
        self,
        transport: Transport,
        authenticator: Authenticator,
        *,
        origin: str,
        make_request: Callable[..., Request],
        retry: RetryPolicy,
        timeouts: Timeouts,
        now: Callable[[], float],
    ) -> None:
        self._transport = transport
        self._authenticator = authenticator
        self._make_request = make_request
        self._retry = retry
        self._timeouts = timeouts
        self.origin = origin
        self.now = now

    def begin(self, *, epoch: int | None = None, parting: bool = False) -> Call:
        """A call that is about to be made.

        Args:
            epoch: The only account that it may be made for; `None`: whose key there is.
            parting: As for `Recovering`.
        """
        recovering = Recovering(
            self._authenticator,
            origin=self.origin,
            model=None,
            policy=self._retry,
            announce=_log_pause,
            parting=parting,
        )
        return Call(
            self._transport,
            recovering,
            epoch=epoch,
            origin=self.origin,
            make_request=self._make_request,
            timeouts=self._timeouts,
            now=self.now,
        )


class Call:
    """One call: its key and its retries, over as many requests as it takes.

    Args:
        transport: What sends them.
        recovering: Their key.
        epoch: The only account that they may be sent for; `None`: that of the first of them.
        origin: Of the gateway.
        make_request: Gives a request for a method, a path and a key.
        timeouts: How long to wait.
        now: Unix time in seconds.

    Attributes:
        in_doubt: Whether one of them may have been carried out, though its answer did not come.
    """

    def __init__(
        self,
        transport: Transport,
        recovering: Recovering,
        *,
        epoch: int | None,
        origin: str,
        make_request: Callable[..., Request],
        timeouts: Timeouts,
        now: Callable[[], float],
    ) -> None:
        self.recovering = recovering
        self.in_doubt = False
        self._transport = transport
        self._epoch = epoch
        self._origin = origin
        self._make_request = make_request
        self._timeouts = timeouts
        self._now = now

    async def ask(
        self, method: str, path: str, parse: Callable[[bytes], _T], body: object = None
    ) -> _T:
        """The answer to what may be asked twice."""
        while True:
            try:
                return await self._try_once(method, path, parse, body)
            except GatewayError as failure:
                self.in_doubt = self.in_doubt or may_have_been_done(failure)
                await self.recovering.after(failure)

    async def tell(self, path: str, parse: Callable[[bytes], _T | None], body: object) -> _T | None:
        """The answer to what must be done once.

        `None` where that may have been done or not, and the table says to go on: look first.
        """
        while True:
            try:
                return await self._try_once("POST", path, parse, body)
            except GatewayError as failure:
                await self.recovering.after(failure)
                if may_have_been_done(failure):
                    return None

    async def _try_once(
        self, method: str, path: str, parse: Callable[[bytes], _T], body: object
    ) -> _T:
        key = await self.recovering.next_key()
        if self._epoch is not None and key.epoch != self._epoch:
            raise AuthenticationError("another account has signed in: this is not its history")
        request = self._make_request(
            method,
            f"/chat{path}",
            key,
            content=b"" if body is None else msgspec.json.encode(body),
            connect_timeout=self._timeouts.connect,
        )
        seconds = self._timeouts.between_tokens
        with trio.move_on_after(inf if seconds is None else seconds):
            response = await self._transport.send(request)
            try:
                if not 200 <= response.status < 300:
                    refusal = await read_error_body(response)
                    raise self._error(response.status, response.headers, refusal)
                answer = parse(await read_body(response))
            finally:
                await response.aclose()
            self.recovering.accepted()
            return answer
        raise StreamTimeout(
            f"{self._origin} did not answer within {seconds:g} s", which="between_tokens"
        )

    def _error(self, status: int, headers: Mapping[str, str], body: bytes) -> GatewayError:
        error = error_from_response(status, headers, body, now=self._now())
        if isinstance(error, NotFoundError):
            return error.another(
                f"there is no such session at {self._origin}, or this gateway keeps no history"
            )
        return error


def path_of(session_id: int | str) -> str:
    """The path of a session."""
    return f"/sessions/{quote(str(session_id), safe='')}"


def _log_pause(event: Paused | RateLimited) -> None:
    _log.debug("a call of the history waits: %r", event)
