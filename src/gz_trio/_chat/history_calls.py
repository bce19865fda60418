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
from .._protocol.keys import Key
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
        self.transport = transport
        self.origin = origin
        self.make_request = make_request
        self.timeouts = timeouts
        self.now = now
        self._authenticator = authenticator
        self._retry = retry

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
        return Call(self, recovering, epoch)


class Call:
    """One call: its key and its retries, over as many requests as it takes.

    Args:
        calls: What opened it.
        recovering: The key of its requests.
        epoch: The only account that they may be sent for; `None`: that of the first of them.

    Attributes:
        in_doubt: Whether one of them may have been carried out, though its answer did not come.
    """

    def __init__(self, calls: HistoryCalls, recovering: Recovering, epoch: int | None) -> None:
        self.recovering = recovering
        self.in_doubt = False
        self._calls = calls
        self._epoch = epoch

    async def ask(
        self, method: str, path: str, parse: Callable[[bytes], _T], body: object = None
    ) -> _T:
        """The answer to what may be asked twice."""
        while True:
            key = await self._next_key()
            try:
                return await self._try_once(key, method, path, parse, body)
            except GatewayError as failure:
                self.in_doubt = self.in_doubt or may_have_been_done(failure)
                await self.recovering.after(failure)

    async def tell(self, path: str, parse: Callable[[bytes], _T | None], body: object) -> _T | None:
        """The answer to what must be done once.

        `None` where that may have been done or not, and the table says to go on: look first.
        """
        while True:
            key = await self._next_key()
            try:
                return await self._try_once(key, "POST", path, parse, body)
            except GatewayError as failure:
                await self.recovering.after(failure)
                if may_have_been_done(failure):
                    return None

    async def _next_key(self) -> Key:
        """Raises what no refresh can help with."""
        key = await self.recovering.next_key()
        if self._epoch is not None and key.epoch != self._epoch:
            raise AuthenticationError("another account has signed in: this is not its history")
        return key

    async def _try_once(
        self, key: Key, method: str, path: str, parse: Callable[[bytes], _T], body: object
    ) -> _T:
        calls = self._calls
        request = calls.make_request(
            method,
            f"/chat{path}",
            key,
            content=b"" if body is None else msgspec.json.encode(body),
            connect_timeout=calls.timeouts.connect,
        )
        seconds = calls.timeouts.between_tokens
        with trio.move_on_after(inf if seconds is None else seconds):
            response = await calls.transport.send(request)
            try:
                if not 200 <= response.status < 300:
                    refusal = await read_error_body(response)
                    raise self._error(response.status, response.headers, refusal)
                answer = parse(await read_body(response))
            finally:
                response.close()
            self.recovering.accepted()
            return answer
        raise StreamTimeout(
            f"{calls.origin} did not answer within {seconds:g} s", which="between_tokens"
        )

    def _error(self, status: int, headers: Mapping[str, str], body: bytes) -> GatewayError:
        error = error_from_response(status, headers, body, now=self._calls.now())
        if isinstance(error, NotFoundError):
            return error.another(
                f"there is no such session at {self._calls.origin}, or this gateway keeps no "
                "history"
            )
        return error


def path_of(session_id: int | str) -> str:
    """The path of a session."""
    return f"/sessions/{quote(str(session_id), safe='')}"


def _log_pause(event: Paused | RateLimited) -> None:
    _log.debug("a call of the history waits: %r", event)
