"""Where a URL leads: what connections are kept for, and a key is proven at."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import httpx

from .._protocol.errors import ProtocolError

_PORTS = {"http": 80, "https": 443}

_NO_URL = "only URLs with http:// or https://, a host and, if any, a valid port can be asked"


class Origin(NamedTuple):
    """Scheme, host and port (RFC 6454).

    >>> str(Origin.of("https://gateway.test:443/v1/models"))
    'https://gateway.test'
    """

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Origin:
        """The origin of an absolute URL.

        Raises:
            ProtocolError: It is no URL of HTTP.
        """
        return parse_url(url)[0]

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = self.port == _PORTS.get(self.scheme)
        return f"{self.scheme}://{host}" if default else f"{self.scheme}://{host}:{self.port}"


@lru_cache(maxsize=256)
def parse_url(url: str) -> tuple[Origin, str, str]:
    """Origin, value of the `Host` field, and request target (RFC 9112 section 3.2) of a URL.

    Raises:
        ProtocolError: It is no URL of HTTP.
    """
    try:
        parsed = httpx.URL(url)
        host = parsed.raw_host.decode("ascii")
        port = _PORTS[parsed.scheme] if parsed.port is None else parsed.port
    except (httpx.InvalidURL, KeyError):
        raise ProtocolError(_NO_URL) from None
    if not host or not 0 < port < 65536:
        raise ProtocolError(_NO_URL)
    return (
        Origin(parsed.scheme, host, port),
        parsed.netloc.decode("ascii"),
        parsed.raw_path.decode("ascii"),
    )
