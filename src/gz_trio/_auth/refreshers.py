"""Ready refresh callables over HTTP: the gateway's own sign-in, and OAuth's refresh grant.

They tell how a refresh failed by what they raise (`classify_refresh_failure`), and finish an
exchange that was sent for 10 seconds after they were cancelled: a token may be good for one
exchange only, and what was paid for it is kept.
"""

from __future__ import annotations

import time
from base64 import b64encode
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Literal
from urllib.parse import quote_plus, urlencode

import httpx
import msgspec

from .._protocol.errors import AuthenticationError, RefreshError
from .._protocol.keys import Key
from .exchange import TokenExchange, http_url


class GatewayRefresh:
    """Refreshes by the gateway's sign-in, `POST /auth`, which gives an API key for a token.

    When the key ends, if that is known: what the answer says as `expires_at` or `expires_in`, else
    what the key itself says, if it is a JWT.

    Args:
        base_url: The gateway's base URL; a trailing `/v1` is left out, `/auth` added.
        token: The identity token of the user, as the sign-in service issued it; or an async
            function that gives a current one, called before each exchange.
        user: What the sign-in service says of the user, sent as it is (JSON).
        email: The user's address.
        is_new_user: The user signs in for the first time.
        environment_tag: `"live"`, `"test"` or `"development"`: what kind of key is wanted.
        auto_create_api_key: Have the gateway make a key for a user who has none.
        http_client: The `httpx.AsyncClient` (or httpx2's) to send it with; not closed. By default
            a connection of its own for each exchange. Redirects are never followed.
        now: Unix time in seconds, for `expires_in`, and for a `Retry-After` that is a date.

    Raises:
        ValueError: `base_url` is no http or https URL, `token` is blank.
        TypeError: `user` cannot be written as JSON.

    >>> async def main():
    ...     fake = FakeGateway()
    ...     async with fake.http_client() as client:
    ...         refresh = GatewayRefresh(fake.base_url, token="jwt", http_client=client)
    ...         print((await refresh(None)).value == fake.key)
    >>> trio.run(main)
    True
    """

    def __init__(
        self,
        base_url: str,
        *,
        token: str | Callable[[], Awaitable[str]],
        user: Mapping[str, object] | None = None,
        email: str | None = None,
        is_new_user: bool = False,
        environment_tag: Literal["live", "test", "development"] = "live",
        auto_create_api_key: bool = True,
        http_client: httpx.AsyncClient | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        url = http_url(base_url, "base URL")
        if url.query:
            raise ValueError("the base URL must not hold a query")
        url = url.copy_with(path=url.path.rstrip("/").removesuffix("/v1").rstrip("/") + "/auth")
        if isinstance(token, str) and not token.strip():
            raise ValueError("the identity token is empty: give the one that the sign-in issued")
        self._exchange = TokenExchange(
            url, "api_key", server="gateway", address="base URL", http_client=http_client
        )
        self._token = token
        self._fields = {
            "user": msgspec.Raw(msgspec.json.encode(dict(user or {}))),
            "email": email,
            "is_new_user": is_new_user,
            "environment_tag": environment_tag,
            "auto_create_api_key": auto_create_api_key,
        }
        self._now = now

    def __repr__(self) -> str:
        return f"<GatewayRefresh {self._exchange.origin}>"

    async def __call__(self, rejected: Key | None) -> Key:  # noqa: ARG002 - the token is sent
        """Exchange the token for a key, once. A checkpoint.

        Raises:
            AuthenticationError: The gateway refuses the token, or
            PermissionDeniedError: the user: sign in again.
            APIConnectionError: Nothing was exchanged: no connection, or the service is not
                available (503, a proxy's 403).
            RateLimitError: Nothing was exchanged: too many requests (429).
            RefreshError: There is no key in the answer, or the gateway does not accept the
                request. After a timeout, a broken connection or a failure of the server it is not
                known what became of the token.
        """
        token = self._token if isinstance(self._token, str) else await self._token()
        content = _encoded(self._fields | {"token": token}) if token.strip() else None
        if content is None:
            raise RefreshError("the identity token is empty or no text: sign in again")
        headers = {"content-type": "application/json"}
        return await self._exchange(headers, content, now=self._now())


def _encoded(fields: Mapping[str, object]) -> bytes | None:
    # Half of a surrogate pair; the error would hold the whole text.
    with suppress(UnicodeEncodeError):
        return msgspec.json.encode(fields)
    return None


class OAuthRefresh:
    """Refreshes by OAuth's refresh token grant (RFC 6749 section 6).

    It spends the refresh token that the store holds with the key. Where the server issues another
    one with the new key (rotation), that one is stored with it, in one write, before anybody is
    told; where it issues none, the old one is kept. A refusal (`invalid_grant`) is final: later
    rejections of the key fail at once, in every process, until somebody signs in.

    When the key ends, if that is known: what the answer says as `expires_in`, counted from when the
    request was sent, else what the key itself says, if it is a JWT.

    Args:
        token_url: The server's token endpoint.
        client_id: This program's name there.
        client_secret: Its password; `None` for a public client, which has none.
        client_auth: How the two are sent, by their names in RFC 7591: `"client_secret_basic"`, in
            the header `Authorization`, or `"client_secret_post"`, in the body. A public client's
            `client_id` is in the body always.
        scope: What is asked for; at most what was granted. `None`: the same as before.
        extra: More parameters: `{"resource": "https://api.example.org"}` (RFC 8707), `audience`.
            A sequence is sent as a parameter for each of its strings.
        http_client: The `httpx.AsyncClient` (or httpx2's) to send it with; not closed. By default
            a connection of its own for each exchange. Redirects are never followed.
        now: Unix time in seconds, for `expires_in`, and for a `Retry-After` that is a date.

    Raises:
        ValueError: `token_url` is no http or https URL, `client_id` is blank, or `extra` names a
            parameter that is sent anyway.

    >>> refresh = OAuthRefresh("https://id.example.org/token", client_id="my-program")
    >>> refresh
    <OAuthRefresh https://id.example.org>
    """

    def __init__(
        self,
        token_url: str,
        *,
        client_id: str,
        client_secret: str | None = None,
        client_auth: Literal["client_secret_basic", "client_secret_post"] = "client_secret_basic",
        scope: str | None = None,
        extra: Mapping[str, str | Sequence[str]] | None = None,
        http_client: httpx.AsyncClient | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        url = http_url(token_url, "token URL")
        if not client_id.strip():
            raise ValueError("the client id is empty: give the one that the server knows")
        self._headers = {"content-type": "application/x-www-form-urlencoded"}
        fields: dict[str, str | Sequence[str]] = {}
        if client_secret is not None and client_auth == "client_secret_basic":
            # RFC 6749 section 2.3.1: each is form-encoded before the two are joined.
            pair = f"{quote_plus(client_id)}:{quote_plus(client_secret)}"
            self._headers["authorization"] = f"Basic {b64encode(pair.encode()).decode()}"
        else:
            fields["client_id"] = client_id
            if client_secret is not None:
                fields["client_secret"] = client_secret
        if scope is not None:
            fields["scope"] = scope
        taken = {"grant_type", "refresh_token", "client_id", "client_secret", "scope"}
        if both := sorted(taken.intersection(extra or ())):
            raise ValueError(f"extra must not hold {both[0]}, which has a place of its own")
        self._fields = {**fields, **(extra or {})}
        self._exchange = TokenExchange(
            url,
            "access_token",
            server="authorization server",
            address="token URL",
            http_client=http_client,
        )
        self._now = now

    def __repr__(self) -> str:
        return f"<OAuthRefresh {self._exchange.origin}>"

    async def __call__(self, rejected: Key | None) -> Key:
        """Exchange the refresh token of `rejected` for a key, once. A checkpoint.

        Raises:
            AuthenticationError: There is no refresh token, or the server refuses it, or
            PermissionDeniedError: the user: sign in again.
            APIConnectionError: Nothing was exchanged: no connection, or the service is not
                available (503, a proxy's 403).
            RateLimitError: Nothing was exchanged: too many requests (429).
            RefreshError: There is no key in the answer, or the server does not accept the
                request. After a timeout, a broken connection or a failure of the server it is not
                known what became of the token.
        """
        token = None if rejected is None else rejected.refresh_token
        if token is None:
            raise AuthenticationError("there is no refresh token to get a new key by: sign in")
        fields = {"grant_type": "refresh_token", "refresh_token": token, **self._fields}
        content = urlencode(fields, doseq=True).encode()
        return await self._exchange(self._headers, content, now=self._now())
