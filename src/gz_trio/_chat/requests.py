"""The requests to one gateway: its base URL, the headers of all of them, and the key's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from .._protocol.keys import KEY_HEADERS, Key
from .._protocol.resumption import NextRequest
from .._transport.interface import Request

KeyHeader = Literal["Authorization", "x-api-key", "api-key"]
"""The header that carries the key: OpenAI's, Anthropic's, Azure's."""

_OUR_HEADERS = KEY_HEADERS | {"content-type", "accept"}


class Requests:
    """Makes the requests to one gateway.

    Args:
        base_url: The gateway's, without a slash at its end.
        headers: Sent with every request, but for key headers, `Content-Type` and `Accept`.
        key_header: The header that carries the key.

    Raises:
        ValueError: There is no such `key_header`.
    """

    def __init__(
        self, base_url: str, headers: Mapping[str, str] | None, key_header: KeyHeader
    ) -> None:
        if key_header.lower() not in KEY_HEADERS:
            raise ValueError(
                f"key_header is {key_header!r}, but must be Authorization, x-api-key or api-key"
            )
        self.base_url = base_url
        self.headers = {
            name: value
            for name, value in (headers or {}).items()
            if name.lower() not in _OUR_HEADERS
        }
        self._given = {name.lower() for name in self.headers}  # Come before an API's own.
        self._key_header = key_header
        self._absent = KEY_HEADERS - {key_header.lower()}

    def of_reply(
        self,
        key: Key,
        request: NextRequest,
        *,
        headers: Mapping[str, str],
        connect_timeout: float | None,
    ) -> Request:
        """An attempt at a reply."""
        ours = {
            name: value
            for name, value in request.headers.items()
            if name.lower() not in self._given
        }
        return self.of_call(
            request.method,
            request.path,
            key,
            content=request.content,
            accept="text/event-stream",
            headers={**ours, **headers},
            connect_timeout=connect_timeout,
            repeatable=True,
        )

    def of_call(
        self,
        method: str,
        path: str,
        key: Key,
        *,
        content: bytes = b"",
        accept: str = "application/json",
        headers: Mapping[str, str] | None = None,
        connect_timeout: float | None,
        repeatable: bool = False,
    ) -> Request:
        """A request to `path`, which follows the base URL."""
        return self.with_key(
            method,
            f"{self.base_url}{path}",
            key,
            content=content,
            headers={
                **self.headers,
                **({"Content-Type": "application/json"} if content else {}),
                "Accept": accept,
                **(headers or {}),
            },
            connect_timeout=connect_timeout,
            repeatable=repeatable,
        )

    def with_key(
        self,
        method: str,
        url: str,
        key: Key,
        *,
        content: bytes,
        headers: Mapping[str, str],
        connect_timeout: float | None,
        repeatable: bool,
    ) -> Request:
        """A request with these headers and the key's, and no other header that may hold a key."""
        bearer = self._key_header.lower() == "authorization"
        return Request(
            method,
            url,
            headers={**headers, self._key_header: f"Bearer {key.value}" if bearer else key.value},
            absent=self._absent,
            content=content,
            connect_timeout=connect_timeout,
            repeatable=repeatable,
        )
