"""The fake gateway as a server of its own, for people who test their own clients."""

from __future__ import annotations

import signal
import sys
import time
from contextlib import AsyncExitStack

import trio

from ..testing import FakeGateway, SeenRequest
from .run import UsageError


async def serve(
    gateway: FakeGateway, host: str, port: int, *, model: str, rotate_every: float | None
) -> int:
    """Serve until Ctrl-C or SIGTERM; gives the exit code.

    Raises:
        UsageError: The port cannot be had.
    """
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with AsyncExitStack() as stack:
            try:
                base_url = await stack.enter_async_context(gateway.listen(host, port))
            except OSError as error:
                raise UsageError(
                    f"cannot listen at {host}, port {port} ({error.strerror or error}): "
                    "give another --host or --port; port 0 takes any that is free"
                ) from None
            print_line(_introduction(gateway, base_url, model))
            async with trio.open_nursery() as nursery:
                if rotate_every is not None:
                    nursery.start_soon(_rotate, gateway, rotate_every)
                await anext(signals)
                nursery.cancel_scope.cancel()
    print_line("stopped")
    return 0


def log(seen: SeenRequest) -> None:
    """One line for a request that is over; no secrets in it."""
    words = [time.strftime("%H:%M:%S"), seen.method, seen.path, str(seen.status or "no answer")]
    if seen.generation is not None:
        words.append(f"key {seen.generation}")
    if seen.resumed_after is not None:
        words.append(f"resumed after event {seen.resumed_after}")
    if seen.tokens:
        words.append(f"{seen.tokens} tokens")
    if seen.status == 200 and not seen.complete:
        words.append("broken off")
    words += [f"fault {type(fault).__name__.strip('_')}" for fault in seen.faults]
    print_line(" ".join(words))


def print_line(words: str) -> None:
    """Write a line at once, also into a pipe."""
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


def _introduction(gateway: FakeGateway, base_url: str, model: str) -> str:
    root = base_url.removesuffix("/v1")
    return f"""\
base URL  {base_url}
key       {gateway.key}

curl -N {base_url}/chat/completions -H 'Authorization: Bearer {gateway.key}' \\
  -H 'Content-Type: application/json' \\
  -d '{{"model":"{model}","stream":true,"messages":[{{"role":"user","content":"hi"}}]}}'

A new key: curl -X POST {root}/auth -d '{{}}'
Ctrl-C ends it.
"""


async def _rotate(gateway: FakeGateway, seconds: float) -> None:
    while True:
        await trio.sleep(seconds)
        streams = gateway.open_streams
        print_line(
            f"{time.strftime('%H:%M:%S')} the key is now {gateway.rotate()}; "
            f"{streams} streams ran under the old one"
        )
