"""The clients that are compared: each decodes every token and gives it to the same caller's code.

A peer's module has a function for each of the tasks that it can do: `streams` opens
`load.streams` streams and reads them until they end, `requests` sends one request after another
on one connection. The rest are gz_trio's alone. Modules are imported in the client's process only,
and only the one that is measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

OPENING = 100
"""Streams that are being opened at once; gz_trio bounds that itself."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What a client is to do.

    Args:
        peer: A name in `PEERS`.
        task: A function of its module.
        base_url: Of the server.
        streams: How many are open at once.
        variant: As in `Peer`.
        count_reads: Whether reads are counted, where the peer can.
    """

    peer: str
    task: str
    base_url: str
    streams: int
    variant: str = ""
    count_reads: bool = False


@dataclass(frozen=True)
class Peer:
    """Where a client is.

    Args:
        label: As the reader of the table knows it.
        module: In this package.
        loop: What runs it.
        variant: Which of those in its module.
        packages: Whose versions matter.
    """

    label: str
    module: str
    loop: Literal["trio", "uvloop"]
    packages: tuple[str, ...]
    variant: str = ""


_GZ_TRIO = ("gz-trio", "trio", "httptools", "msgspec")

PEERS = {
    "gz_trio": Peer("gz_trio, async for", "gz", "trio", _GZ_TRIO),
    "gz_trio-drain": Peer("gz_trio, drain", "gz", "trio", _GZ_TRIO, "drain"),
    "gz_trio-bare": Peer("gz_trio, async for, no recovery", "gz", "trio", _GZ_TRIO, "bare"),
    "gz_trio-drain-bare": Peer("gz_trio, drain, no recovery", "gz", "trio", _GZ_TRIO, "drain bare"),
    "httpx": Peer("httpx on Trio", "httpx_trio", "trio", ("httpx", "httpcore", "trio"), "httpx"),
    "httpx2": Peer(
        "httpx2 on Trio", "httpx_trio", "trio", ("httpx2", "httpcore2", "trio"), "httpx2"
    ),
    "openai": Peer("OpenAI SDK on Trio", "openai_trio", "trio", ("openai", "httpx2", "trio")),
    "openai-transport": Peer(
        "OpenAI SDK over httpx_transport",
        "openai_trio",
        "trio",
        ("openai", "httpx2", *_GZ_TRIO),
        "transport",
    ),
    "openai-gateway": Peer(
        "OpenAI SDK over gateway.http_client",
        "openai_trio",
        "trio",
        ("openai", "httpx2", *_GZ_TRIO),
        "gateway",
    ),
    "aiohttp": Peer("aiohttp on uvloop", "aiohttp_uvloop", "uvloop", ("aiohttp", "uvloop")),
    "raw-trio": Peer("raw Trio stream", "raw_trio", "trio", ("trio", "httptools", "msgspec")),
    "uvloop-reader": Peer(
        "raw uvloop, reader", "raw_uvloop", "uvloop", ("uvloop", "httptools", "msgspec"), "reader"
    ),
    "uvloop-callback": Peer(
        "raw uvloop, callback",
        "raw_uvloop",
        "uvloop",
        ("uvloop", "httptools", "msgspec"),
        "callback",
    ),
    "gz_trio-websocket": Peer(
        "gz_trio, WebSocket",
        "gz",
        "trio",
        ("gz-trio", "trio", "trio-websocket", "wsproto", "msgspec"),
        "websocket",
    ),
    "websockets": Peer(
        "websockets on uvloop", "websockets_uvloop", "uvloop", ("websockets", "uvloop", "msgspec")
    ),
    "openai-websocket": Peer(
        "OpenAI SDK, WebSocket, on uvloop",
        "websockets_uvloop",
        "uvloop",
        ("openai", "websockets", "uvloop"),
        "openai",
    ),
    "trio-waiting": Peer(
        "gz_trio, waiting and reading alone", "waiting", "trio", ("gz-trio", "trio"), "trio"
    ),
    "uvloop-waiting": Peer(
        "raw uvloop, waiting and reading alone", "waiting", "uvloop", ("uvloop",), "uvloop"
    ),
}
