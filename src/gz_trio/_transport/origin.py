"""Where a URL leads: what connections are kept for, and a key is proven at."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import httpx

from .._protocol.errors import ProtocolError

_PORTS = {"http": 80, "https": 443}


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
        port = parsed.port or _PORTS[parsed.scheme]
    except (httpx.InvalidURL, KeyError):
        raise ProtocolError("only URLs with http:// or https:// and a host can be asked") from None
    if not host:
        raise ProtocolError("only URLs with http:// or https:// and a host can be asked")
    return (
        Origin(parsed.scheme, host, port),
        parsed.netloc.decode("ascii"),
        parsed.raw_path.decode("ascii"),
    )
