"""`gz-trio proxy`: a gateway for the programs of this machine, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from typing import Literal

import trio

from .. import Authenticator, AuthStatus, open_authenticator, open_gateway
from .._open_files import allow_all_files
from ..proxy import Proxy, open_proxy
from .auth import IDENTITY_TOKEN, Place, Refresh, Source
from .gateway import print_line
from .keys import key_at_hand
from .run import UsageError

KeyHeader = Literal["Authorization", "x-api-key", "api-key"]

_HEADER = " -H 'Authorization: Bearer LOCAL_TOKEN'"


async def serve(
    base_url: str,
    host: str,
    port: int,
    *,
    place: Place,
    refresh_command: str | None,
    key_header: KeyHeader,
    model: str | None,
    local_token: bool,
    environment: Mapping[str, str],
) -> int:
    """Serve until Ctrl-C or SIGTERM; gives the exit code.

    Raises:
        UsageError: The gateway, the key or the port cannot be used as they are given.
    """
    allow_all_files()
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            async with AsyncExitStack() as stack:
                try:
                    refresh = _refresh(base_url, refresh_command, environment)
                    at_hand = key_at_hand(place, environment, refreshed=refresh is not None)
                    authenticator = await stack.enter_async_context(
                        open_authenticator(at_hand.store, refresh, wait_for_sign_in=True)
                    )
                    gateway = await stack.enter_async_context(
                        open_gateway(base_url, authenticator, key_header=key_header)
                    )
                    proxy = await stack.enter_async_context(
                        open_proxy(
                            gateway,
                            host=host,
                            port=port,
                            model=model,
                            local_token=local_token,
                            log=_log,
                        )
                    )
                except ValueError as error:
                    raise UsageError(str(error)) from None
                except OSError as error:
                    raise UsageError(
                        f"cannot listen at {host}, port {port} ({error.strerror or error}): give "
                        "another --port; port 0 takes any that is free"
                    ) from None
                print_line(_introduction(proxy))
                nursery.start_soon(_tell_of_key, authenticator, refresh is not None)
                await anext(signals)
                if proxy.open_requests:
                    print_line(
                        f"open requests: {proxy.open_requests}; ends when they have, or at the "
                        "next Ctrl-C"
                    )
                nursery.start_soon(_end_at_next, signals, proxy)
            nursery.cancel_scope.cancel()
    print_line("stopped")
    return 0


async def _end_at_next(signals: AsyncIterator[int], proxy: Proxy) -> None:
    await anext(signals)
    proxy.end_now()


async def _tell_of_key(authenticator: Authenticator, refreshed: bool) -> None:
    """A line whenever the key is another one, or there is none."""
    async with authenticator.subscribe() as states:
        before = None
        async for state in states:
            if state.status == before:
                continue
            before = state.status
            words = [f"key: {state.status}"]
            if state.error is not None:
                words.append(f"({state.error})")
            if not refreshed and state.status is not AuthStatus.AUTHENTICATED:
                words.append("- sign in on the page, or by gz-trio auth login --same-account")
            _log(" ".join(words))


def _refresh(
    base_url: str, refresh_command: str | None, environment: Mapping[str, str]
) -> Refresh | None:
    if refresh_command is not None:
        return Source(refresh_command=refresh_command).refresh(environment)
    if IDENTITY_TOKEN in environment:
        return Source(base_url=base_url).refresh(environment)
    return None


def _log(words: str) -> None:
    print_line(f"{time.strftime('%H:%M:%S')} {words}")


def _introduction(proxy: Proxy) -> str:
    return f"""\
OPENAI_BASE_URL={proxy.base_url}
ANTHROPIC_BASE_URL={proxy.url}
local token  {proxy.token or "none is wanted"}
page         {proxy.new_page_url()}

A new link to the page: curl -X POST {proxy.url}/page/link{_HEADER if proxy.token else ""}
Ctrl-C ends it.
"""
