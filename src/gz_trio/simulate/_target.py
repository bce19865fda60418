"""The gateway that is tried, and the keys to it: each group of sessions has one of its own."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import msgspec
import trio

from .. import (
    APIConnectionError,
    Authenticator,
    Gateway,
    GatewayError,
    GatewayRefresh,
    Key,
    MemoryKeyStore,
    ResumePolicy,
    Timeouts,
    open_authenticator,
    open_gateway,
)
from ._errors import TargetError

SIGNING_IN_AT_ONCE = 50


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where requests go, and what for a key.

    Attributes:
        base_url: The gateway's.
        keys: Plain keys, which the groups take in turn; none of them is ever refreshed.
        tokens: Identity tokens, which the groups take in turn: with them `POST /auth` gives each
            its keys.
        fake: Whether it is the fake gateway, of which is known what it means to send.
    """

    base_url: str
    keys: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    fake: bool = False

    def __post_init__(self) -> None:
        if bool(self.keys) == bool(self.tokens):
            raise ValueError("give keys or identity tokens, one of both")

    def __repr__(self) -> str:
        return f"<Target {self.base_url} keys={len(self.keys)} tokens={len(self.tokens)}>"


@dataclass
class Group:
    """Sessions that share a key.

    Args:
        gateway: What they ask.
        authenticator: Where keys can be refreshed.
        refreshes: How often they were, the first sign-in left out.
    """

    gateway: Gateway
    authenticator: Authenticator | None
    refreshes: int = field(default=0)


@asynccontextmanager
async def open_groups(
    target: Target, accounts: list[int], *, timeout: float | None
) -> AsyncGenerator[list[Group]]:
    """A gateway for each group, signed in.

    Args:
        target: Where to.
        accounts: The number of each group's account, among all shards.
        timeout: What a reply may take in all, in seconds.

    Raises:
        TargetError: A key cannot be had, or no file be opened; the message says why.
    """
    groups: list[Group] = []
    # A second answer may be another one: people read on, and so do these users.
    resume = ResumePolicy(on_divergence="restart")
    timeouts = Timeouts(total=timeout)
    async with AsyncExitStack() as stack:
        try:
            for account in accounts:
                if target.keys:
                    key = target.keys[account % len(target.keys)]
                    gateway = await stack.enter_async_context(
                        open_gateway(target.base_url, key, resume=resume, timeouts=timeouts)
                    )
                    groups.append(Group(gateway, None))
                    continue
                sign_in = _SignIn(target.base_url, target.tokens[account % len(target.tokens)])
                authenticator = await stack.enter_async_context(
                    open_authenticator(MemoryKeyStore(), sign_in)
                )
                gateway = await stack.enter_async_context(
                    open_gateway(target.base_url, authenticator, resume=resume, timeouts=timeouts)
                )
                sign_in.group = Group(gateway, authenticator)
                groups.append(sign_in.group)
        except GatewayError as error:
            raise TargetError(f"{target.base_url} cannot be asked: {error}") from error
        await _sign_in(groups)
        yield groups


class _SignIn:
    """Signs a group in, and counts it."""

    def __init__(self, base_url: str, token: str) -> None:
        self._refresh = GatewayRefresh(base_url, token=token)
        self.group: Group | None = None

    async def __call__(self, rejected: Key | None) -> Key:
        try:
            key = await self._refresh(rejected)
        except APIConnectionError as error:
            if rejected is not None:
                raise
            # A gateway that is down from the start is not waited for.
            raise TargetError(str(error)) from error
        if self.group is not None:
            self.group.refreshes += 1
        return key


async def _sign_in(groups: list[Group]) -> None:
    """Get every group its first key.

    Raises:
        TargetError: One of them cannot be had.
    """
    limiter = trio.CapacityLimiter(SIGNING_IN_AT_ONCE)
    failed: list[GatewayError] = []

    async def sign_in(group: Group, authenticator: Authenticator) -> None:
        async with limiter:
            if failed:
                return
            try:
                await authenticator.key()
            except GatewayError as error:
                failed.append(error)
            group.refreshes = 0

    async with trio.open_nursery() as nursery:
        for group in groups:
            if group.authenticator is not None:
                nursery.start_soon(sign_in, group, group.authenticator)
    if failed:
        cause = failed[0].__cause__
        why = cause if isinstance(cause, TargetError) else failed[0]
        raise TargetError(f"signing in failed: {why}") from failed[0]
