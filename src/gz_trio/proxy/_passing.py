"""What goes through the proxy as it is, in both directions, and what does not."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import unquote_to_bytes

from ._guard import API

RawHeaders = list[tuple[bytes, bytes]]

# RFC 9110 section 7.6.1: they are of one connection.
_HOP_BY_HOP = {
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization",
    b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
}  # fmt: skip

_NOT_TO_GATEWAY = _HOP_BY_HOP | {
    # What is between the caller and the proxy.
    b"authorization", b"x-api-key", b"api-key", b"cookie", b"expect", b"host", b"origin",
    b"referer",
    # Of the body as it was sent to us.
    b"accept-encoding", b"content-length",
}  # fmt: skip

_NOT_TO_CALLER = _HOP_BY_HOP | {
    # To a browser they would say something about the proxy.
    b"alt-svc", b"clear-site-data", b"content-security-policy", b"service-worker-allowed",
    b"set-cookie", b"strict-transport-security", b"x-content-type-options",
}  # fmt: skip

_CORS = b"access-control-"

# Whatever a gateway sends, a browser that is led there runs nothing of it as the proxy's page.
_INERT = [
    (b"content-security-policy", b"sandbox; default-src 'none'"),
    (b"x-content-type-options", b"nosniff"),
]


def path_at_gateway(raw_path: bytes) -> str | None:
    """The part of a path that follows the gateway's base URL; `None` if it leads out of it.

    >>> path_at_gateway(b"/v1/models/a%2Fb")
    '/models/a%2Fb'
    >>> path_at_gateway(b"/v1/%2e%2E/admin")
    """
    path = raw_path[len(API) :]
    steps = unquote_to_bytes(path).replace(b"\\", b"/").split(b"/")
    return None if {b".", b".."} & set(steps) else path.decode("ascii")


def to_gateway(headers: Iterable[tuple[bytes, bytes]]) -> RawHeaders:
    """The headers of a request that go on to the gateway; names in lower case."""
    return _without(headers, _NOT_TO_GATEWAY)


def to_caller(headers: Iterable[tuple[bytes, bytes]]) -> RawHeaders:
    """The headers of the gateway's answer that go on to the caller; names in lower case."""
    kept = _without(headers, _NOT_TO_CALLER)
    return [pair for pair in kept if not pair[0].startswith(_CORS)] + _INERT


def _without(headers: Iterable[tuple[bytes, bytes]], left_out: set[bytes]) -> RawHeaders:
    pairs = [(name.lower(), value) for name, value in headers]
    named = {
        name.strip().lower()
        for header, value in pairs
        if header == b"connection"
        for name in value.split(b",")
    }
    return [pair for pair in pairs if pair[0] not in left_out and pair[0] not in named]
