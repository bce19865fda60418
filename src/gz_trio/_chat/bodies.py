"""Whole bodies of responses, within bounds."""

from __future__ import annotations

from contextlib import suppress

import trio

from .._protocol.errors import GatewayError, ProtocolError
from .._transport.interface import Response

ERROR_BODY_SECONDS = 10.0
MAX_ERROR_BODY = 1024 * 1024
MAX_BODY = 64 * 1024 * 1024


async def read_error_body(response: Response) -> bytes:
    """The body as far as it comes: the status counts, whatever becomes of the rest."""
    body = bytearray()
    with suppress(GatewayError), trio.move_on_after(ERROR_BODY_SECONDS):
        while data := await response.receive():
            body += data
            if len(body) >= MAX_ERROR_BODY:
                break
    return bytes(body)  # noqa: ASYNC910 - one, unless `receive` fails before its own


async def read_body(response: Response) -> bytes:
    """The whole body.

    Raises:
        APIConnectionError: The connection broke before the body's end.
        ProtocolError: The body is longer than `MAX_BODY` bytes, or is not what HTTP allows.
    """
    body = bytearray()
    while data := await response.receive():
        body += data
        if len(body) > MAX_BODY:
            raise ProtocolError(f"the answer is longer than {MAX_BODY >> 20} MiB")
    return bytes(body)
