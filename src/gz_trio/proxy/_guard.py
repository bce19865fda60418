"""Who may ask the proxy for what: rules that keep the web and other users from the user's key.

Any page of the web can make the user's browser send requests to this machine, and any program on it
can too. So a request has to name this proxy (`Host`, against DNS rebinding), must not come from a
page of somebody else's (`Origin`, `Sec-Fetch-Site`), and has to bring the local token, or the
cookie that the proxy's own page was given. Nothing here does input or output.
"""

from __future__ import annotations

from dataclasses import dataclass
from secrets import compare_digest, token_urlsafe

from starlette.datastructures import Headers
from starlette.requests import cookie_parser

OPEN_PATHS = frozenset({"/healthz"})
"""What needs no token."""

API = "/v1"
"""Before the paths that are the gateway's."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not answered; `message` says what to do."""

    status: int
    code: str
    message: str


class LocalSecrets:
    """The local token, the page's cookie, and the code that can be turned into it once.

    All of them are made up anew by each start.

    Args:
        port: The proxy's: cookies are shared by all ports of a host.

    >>> secrets = LocalSecrets(8399)
    >>> code = secrets.new_code()
    >>> secrets.redeem(code), secrets.redeem(code)
    (True, False)
    """

    def __init__(self, port: int) -> None:
        self.token = f"gz-local-{token_urlsafe(32)}"
        self._cookie_name = f"gz_trio_{port}"
        self._cookie = token_urlsafe(32)
        self._code: str | None = None

    def new_code(self) -> str:
        """A code for the page's one-time URL; ends the one before."""
        self._code = token_urlsafe(24)
        return self._code

    def redeem(self, code: str) -> bool:
        """Whether this is the code. It is none any more then."""
        if self._code is None or not _same(code, self._code):
            return False
        self._code = None
        return True

    @property
    def set_cookie(self) -> str:
        """The header that gives a browser the cookie, until it is closed."""
        return f"{self._cookie_name}={self._cookie}; HttpOnly; SameSite=Strict; Path=/"

    def token_in(self, headers: Headers) -> bool:
        """Whether one of the three key headers holds the local token."""
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = [bearer.strip()] if scheme.lower() == "bearer" else []
        given += [headers.get(name, "") for name in ("x-api-key", "api-key")]
        return any(_same(value, self.token) for value in given)

    def cookie_in(self, headers: Headers) -> bool:
        """Whether the page's cookie is among the cookies."""
        cookies = cookie_parser("; ".join(headers.getlist("cookie")))
        return _same(cookies.get(self._cookie_name, ""), self._cookie)


class Guard:
    """The rules for one proxy.

    Args:
        host: The loopback address at which it listens.
        port: Its port.
        secrets: What a caller has to bring; `None`: nothing.
    """

    def __init__(self, host: str, port: int, secrets: LocalSecrets | None) -> None:
        names = {f"[{host}]" if ":" in host else host, "localhost", "[::1]"}
        self._hosts = {f"{name}:{port}" for name in names}
        if port == 80:
            self._hosts |= names
        self._secrets = secrets

    def refuse_origin(self, method: str, path: str, headers: Headers) -> Refusal | None:
        """Why the request is none of this proxy's, or of a page that is not; `None`: it is fine."""
        host = headers.get("host", "").lower()
        if host not in self._hosts:
            return Refusal(
                421,
                "wrong_host",
                "This proxy answers under its own address alone: use the URL that it printed.",
            )
        if any(origin.lower() != f"http://{host}" for origin in headers.getlist("origin")):
            return Refusal(
                403,
                "foreign_origin",
                "This proxy takes no requests from other pages: use the page at / instead.",
            )
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and not (
            (method, path) == ("GET", "/")
            and headers.get("sec-fetch-mode") == "navigate"
            and headers.get("sec-fetch-dest") == "document"
        ):
            return Refusal(
                403,
                "foreign_site",
                "This proxy takes no requests from other sites: open the page at / instead.",
            )
        return None

    def refuse_stranger(self, method: str, path: str, headers: Headers) -> Refusal | None:
        """Why the request may not be answered to whoever sent it; `None`: it may.

        Args:
            method: In capitals.
            path: Without the query.
            headers: Which `refuse_origin` has let through.
        """
        secrets = self._secrets
        if secrets is None or path in OPEN_PATHS or secrets.token_in(headers):
            return None
        # The cookie goes along with what pages at other ports of this machine ask for, too.
        ours = "origin" in headers or headers.get("sec-fetch-site") == "same-origin"
        read_of_page = method in ("GET", "HEAD") and not is_api(path)
        if secrets.cookie_in(headers) and (ours or read_of_page):
            return None
        if path == "/":
            return Refusal(
                401,
                "no_link",
                "Open the link that `gz-trio proxy` printed when it started, or ask for a new one "
                "as it said there.",
            )
        return Refusal(
            401,
            "local_token",
            "The local token is missing or wrong: send the one that the proxy printed when it "
            "started, as `Authorization: Bearer`, `x-api-key` or `api-key`.",
        )


def is_api(path: str) -> bool:
    """Whether a path is the gateway's.

    >>> is_api("/v1/models"), is_api("/v1"), is_api("/v10")
    (True, True, False)
    """
    return path == API or path.startswith(f"{API}/")


def _same(given: str, wanted: str) -> bool:
    return compare_digest(given.encode("latin-1", "replace"), wanted.encode())
