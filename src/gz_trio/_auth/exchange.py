"""One exchange of a token for a key over HTTP: sent once, and what became of it.

A token may be good for one exchange only. So what fails is told apart by whether anything had been
sent, and an exchange that was sent may finish after a cancellation.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import datetime

import httpx
import trio

from .._protocol import lenient_json
from .._protocol.errors import (
    APIConnectionError,
    AuthenticationError,
    GatewayError,
    PermissionDeniedError,
    RateLimitError,
    RefreshError,
    error_from_response,
)
from .._protocol.keys import Key, jwt_expiry
from .._protocol.refresh import RefreshOutcomeUnknown
from .shield import FINISH_SECONDS, shielded_after_cancel

_CONNECT_SECONDS = 10.0
# For callers that set no limit of their own: longer than an authenticator's 30 s and the 10 s
# in which an exchange may finish after them.
_ANSWER_SECONDS = 60.0
_ANSWER_LIMIT = 1 << 20  # bytes

# RFC 6749 section 5.2, but `invalid_request`: that is a mistake of ours, not a refusal.
_REFUSALS = frozenset(
    {
        "invalid_grant",
        "invalid_client",
        "unauthorized_client",
        "invalid_scope",
        "unsupported_grant_type",
    }
)
# Before anything of the request was sent. By name: httpx2 has classes of its own, so called.
_NOT_SENT = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError"})
_CANNOT_BE_SENT = frozenset({"LocalProtocolError", "UnsupportedProtocol"})


class TokenExchange:
    """Exchanges tokens for keys at one address.

    Args:
        url: The address.
        field: Where in the answer the key is.
        server: What the server is, for messages: `"gateway"`.
        address: What the user calls the address, for messages: `"base URL"`.
        http_client: To send with; not closed. `None`: a connection of its own for each exchange.
    """

    def __init__(
        self,
        url: httpx.URL,
        field: str,
        *,
        server: str,
        address: str,
        http_client: httpx.AsyncClient | None,
    ) -> None:
        self.origin = str(url.copy_with(raw_path=b"/")).rstrip("/")
        self._name = f"the {server} {self.origin}"
        self._url = str(url)
        self._field = field
        self._address = address
        self._http_client = http_client
        # Made here: it takes tens of milliseconds, in which no stream would move.
        self._ssl_context = httpx.create_ssl_context() if http_client is None else None

    async def __call__(self, headers: Mapping[str, str], content: bytes, *, now: float) -> Key:
        """Send a token once, and give the key that the server answers with. A checkpoint.

        A cancellation ends it at once for as long as nothing was sent; after that the answer has
        `FINISH_SECONDS` to come. Redirects are not followed.

        Args:
            headers: Beside the usual ones.
            content: The request's body.
            now: Unix time in seconds, for `expires_in`, and a `Retry-After` that is a date.

        Raises:
            AuthenticationError: The server refuses the token, or
            PermissionDeniedError: the user.
            APIConnectionError: Nothing was sent, or the service is not available.
            RateLimitError: Too many requests (429).
            RefreshOutcomeUnknown: Anything that went wrong later.
            RefreshError: The request cannot be sent or is not accepted, or there is no key in the
                answer.
        """
        status, answer_headers, body = await self._send(headers, content)
        if not 200 <= status < 300:
            raise self._error_of_answer(status, answer_headers, body, now)
        answer = _json_object(body)
        if answer is None:
            raise RefreshOutcomeUnknown(
                f"the answer of {self._name} to the sign-in is not JSON: is the {self._address} "
                "right?",
                status=status,
            )
        value = answer.get(self._field)
        if not isinstance(value, str) or not value.strip():
            if _is_refusal(answer):
                raise self._error_of_answer(status, answer_headers, body, now)
            raise RefreshError(
                f"{self._name} signed in but gave no API key: does the user have one, and is the "
                f"{self._address} right?",
                status=status,
                body=body,
            )
        kind = answer.get("token_type")
        if isinstance(kind, str) and kind.lower() != "bearer":
            raise RefreshError(
                f"{self._name} gave a key that is to be used in another way than as a Bearer "
                "token (RFC 6750)"
            )
        with suppress(ValueError):
            return _issued_key(answer, value, now)
        raise RefreshError(f"{self._name} gave an API key that cannot be sent in a header")

    async def _send(
        self, headers: Mapping[str, str], content: bytes
    ) -> tuple[int, Mapping[str, str], bytes]:
        """The whole answer: its status, headers and body."""
        sent = False

        async def trace(event: str, _info: object) -> None:
            nonlocal sent
            await trio.lowlevel.checkpoint()
            if event.endswith(".send_request_headers.started"):
                sent = True

        async def post() -> tuple[int, Mapping[str, str], bytes]:
            # The client is opened and closed in here: to close it is a checkpoint, where a
            # cancellation would cost the answer.
            async with self._client() as client:
                request = client.build_request(
                    "POST",
                    self._url,
                    content=content,
                    headers={
                        "accept": "application/json",
                        "accept-encoding": "identity",
                        **headers,
                    },
                    timeout=(_CONNECT_SECONDS, _ANSWER_SECONDS, _ANSWER_SECONDS, _CONNECT_SECONDS),
                    extensions={"trace": trace},
                )
                response = await client.send(
                    request, stream=True, follow_redirects=False, auth=None
                )
                body = bytearray()
                try:
                    with trio.CancelScope() as too_long:
                        async for chunk in response.aiter_bytes():
                            body += chunk
                            if len(body) > _ANSWER_LIMIT:
                                too_long.cancel()
                finally:
                    await response.aclose()
            if too_long.cancel_called:
                raise RefreshOutcomeUnknown(
                    f"the answer of {self._name} is longer than any sign-in's: is the "
                    f"{self._address} right?"
                )
            return response.status_code, response.headers, bytes(body)

        try:
            return await shielded_after_cancel(lambda: FINISH_SECONDS if sent else 0.0, post)
        except Exception as error:
            names = {base.__name__ for base in type(error).__mro__}
            if "RequestError" not in names:
                raise
            failure = self._error_of_transport(names)
        # Without its cause: httpx's errors carry the request, and with it the token.
        raise failure

    @asynccontextmanager
    async def _client(self) -> AsyncGenerator[httpx.AsyncClient]:
        if self._http_client is not None:
            yield self._http_client
            return
        async with httpx.AsyncClient(verify=self._ssl_context or True) as client:
            yield client

    def _error_of_transport(self, names: set[str]) -> GatewayError:
        if names & _NOT_SENT:
            return APIConnectionError(
                f"no connection to {self._name}: is it up, and the {self._address} right?"
            )
        if names & _CANNOT_BE_SENT:
            return RefreshError(
                f"the request to {self._name} cannot be sent by HTTP: check the client's headers"
            )
        what = "took too long" if "TimeoutException" in names else "broke"
        return RefreshOutcomeUnknown(
            f"the exchange with {self._name} {what} after the token was sent, which may be spent: "
            "try again, and sign in again if that is refused"
        )

    def _error_of_answer(
        self, status: int, headers: Mapping[str, str], body: bytes, now: float
    ) -> GatewayError:
        """What an answer without a key means: refused, unreachable, unknown, or none of them."""
        sent = error_from_response(status, headers, body, now=now)
        answer = _json_object(body)
        kind: type[GatewayError]
        if status == 401 or (answer is not None and _is_refusal(answer)):
            kind, what = AuthenticationError, "refuses the sign-in: sign in again"
        elif status == 403 and answer is not None:
            kind, what = PermissionDeniedError, "does not let this user in: sign in as another"
        elif status == 403:
            kind, what = APIConnectionError, "is behind a proxy that does not let this through"
        elif status == 429:
            kind, what = RateLimitError, "has had too many sign-ins: wait"
        elif status == 503:
            kind, what = APIConnectionError, "is not available: try again later"
        elif status >= 500 or status == 408:
            kind, what = RefreshOutcomeUnknown, "failed while it signed in: try again later"
        elif 300 <= status < 400:
            kind = RefreshError
            what = (
                "redirects, which is not followed with a token: give the new address as "
                f"{self._address}"
            )
        else:
            kind = RefreshError
            what = (
                f"does not accept the sign-in: check the {self._address}; its words are in `body`"
            )
        return kind(
            f"{self._name} {what} ({status})",
            status=status,
            code=sent.code,
            type=sent.type,
            request_id=sent.request_id,
            body=body,
            hints=sent.hints,
        )


def http_url(url: str, what: str) -> httpx.URL:
    """`url` as a URL that a token can be sent to.

    Args:
        url: The URL.
        what: What it is, for messages: `"base URL"`.

    Raises:
        ValueError: It is no http or https URL, or holds a user name or a fragment.
    """
    parsed = None
    with suppress(httpx.InvalidURL):
        parsed = httpx.URL(url)
    if parsed is None or parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"the {what} must begin with https:// or http:// and name a host")
    if parsed.userinfo or parsed.fragment:
        raise ValueError(f"the {what} must not hold a user name, a password or a fragment")
    return parsed


def _issued_key(answer: Mapping[str, object], value: str, now: float) -> Key:
    """The key that a server has issued, with what its answer says of it.

    When it ends: `expires_at`, in Unix time or as RFC 3339 has it, or `expires_in`, in seconds;
    else what the key itself says, if it is a JWT.

    Raises:
        ValueError: `value` can be no key.
    """
    ends = _moment(answer.get("expires_at"))
    if ends is None:
        seconds = _number(answer.get("expires_in"))
        # Some servers say 0 or -1 of a key that does not end.
        ends = now + seconds if seconds is not None and seconds > 0 else jwt_expiry(value)
    token = answer.get("refresh_token")
    return Key(
        value,
        expires_at=ends,
        refresh_token=token if isinstance(token, str) and token.strip() else None,
    )


def _number(value: object) -> float | None:
    """A number, or one in quotes, as some servers send it."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    with suppress(ValueError, OverflowError):
        number = float(value)
        return number if math.isfinite(number) else None
    return None


def _moment(value: object) -> float | None:
    number = _number(value)
    if number is not None:
        return number if number > 0 else None
    with suppress(ValueError, OverflowError):
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
        if moment is not None and moment.tzinfo is not None:
            return moment.timestamp()
    return None


def _is_refusal(answer: Mapping[str, object]) -> bool:
    """Whether `answer` holds an error code of RFC 6749 section 5.2 that is final."""
    error = answer.get("error")
    return isinstance(error, str) and error.lower() in _REFUSALS


def _json_object(body: bytes) -> dict[str, object] | None:
    with suppress(ValueError):
        return lenient_json.as_object(lenient_json.decode(body))
    return None
