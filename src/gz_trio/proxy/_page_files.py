"""The files of the page, and the headers that keep it to itself."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    # The icon; what a model says gets no images.
    "img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types dompurify"
)

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Else a browser looks up the host of every link that a model writes.
    "X-DNS-Prefetch-Control": "off",
}
"""Of every answer that the page gets."""

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}


class Files:
    """The page's files, read once."""

    def __init__(self) -> None:
        self._files = {
            entry.name: (entry.read_bytes(), _TYPES[entry.name[entry.name.rindex(".") :]])
            for entry in resources.files("gz_trio.proxy").joinpath("page").iterdir()
            if entry.name.endswith(tuple(_TYPES))
        }

    async def index(self, request: Request) -> Response:
        """`GET /`."""
        return self._respond(request, "index.html")

    async def file(self, request: Request) -> Response:
        """`GET /page/{name}`."""
        return self._respond(request, request.path_params["name"])

    def _respond(self, request: Request, name: str) -> Response:
        if name not in self._files:
            return Response("There is no such file.", 404, HEADERS, "text/plain")
        content, media_type = self._files[name]
        # Asked for anew each time, so that a page never runs with half of another version.
        tag = f'"{sha256(content).hexdigest()[:32]}"'
        headers = {**HEADERS, "Cache-Control": "no-cache", "ETag": tag}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, 200, headers, media_type)
