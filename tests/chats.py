"""What tests of replies share: one reply over a fake gateway, and all that came of it."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

import trio

from gz_trio import (
    Authenticator,
    Delta,
    Gateway,
    GatewayError,
    KeyStore,
    MemoryKeyStore,
    Reply,
    ReplyEvent,
    Restarted,
    ResumePolicy,
    RetryPolicy,
    Timeouts,
    open_authenticator,
    open_gateway,
)
from gz_trio._auth.authenticator import Refresh
from gz_trio._protocol.apis import ApiName
from gz_trio.testing import FakeGateway

BODY: dict[str, object] = {
    "model": "fake-model",
    "messages": [{"role": "user", "content": "Tell me a story."}],
    "stream_options": {"include_usage": True},
}

RESTART = ResumePolicy(on_divergence="restart")


@asynccontextmanager
async def open_over(
    fake: FakeGateway,
    *,
    key: str | None = None,
    store: KeyStore | None = None,
    refresh: Refresh | Literal["fake"] | None = "fake",
    authenticator: Authenticator | None = None,
    retry: RetryPolicy | None = None,
    resume: ResumePolicy | None = None,
    timeouts: Timeouts | None = None,
    now: Callable[[], float] = time.time,
) -> AsyncGenerator[Gateway]:
    """A gateway over in-memory connections to `fake`, with its key unless another is given."""
    store = store or MemoryKeyStore(fake.key if key is None else key)
    refresh = fake.refresh if refresh == "fake" else refresh
    async with (
        fake.http_client() as client,
        open_authenticator(store, refresh) as own,
        open_gateway(
            fake.base_url,
            authenticator or own,
            http_client=client,
            retry=retry,
            resume=resume,
            timeouts=timeouts,
            now=now,
        ) as gateway,
    ):
        yield gateway


@dataclass
class Told:
    """What a reader got of one reply."""

    reply: Reply
    events: list[ReplyEvent] = field(default_factory=list[ReplyEvent])
    error: GatewayError | None = None
    seconds: float = 0.0

    @property
    def text(self) -> str:
        """The deltas' text, joined by the reader; after a restart, from there."""
        text = ""
        for event in self.events:
            if isinstance(event, Restarted):
                text = ""
            elif isinstance(event, Delta) and event.choice == 0:
                text += event.text
        return text

    @property
    def happened(self) -> list[ReplyEvent]:
        """Everything but the deltas."""
        return [event for event in self.events if not isinstance(event, Delta)]


async def tell(
    gateway: Gateway,
    body: Mapping[str, object] = BODY,
    *,
    api: ApiName = "chat",
    on_event: Callable[[Told], object] = lambda _: None,
) -> Told:
    """Read one reply to its end, whichever it is; `on_event` is called after each event."""
    started = trio.current_time()
    async with gateway.stream(body, api=api) as reply:
        told = Told(reply)
        try:
            async for event in reply.events():
                told.events.append(event)
                on_event(told)
        except GatewayError as error:
            told.error = error
        told.seconds = trio.current_time() - started
    return told


def deltas_of(told: Told) -> list[Delta]:
    return [event for event in told.events if isinstance(event, Delta)]


def after_deltas(count: int, action: Callable[[], object]) -> Callable[[Told], object]:
    """For `tell`: do something once, when so many deltas with text have been read."""
    done = False

    def on_event(told: Told) -> None:
        nonlocal done
        if not done and sum(bool(delta.text) for delta in deltas_of(told)) >= count:
            done = True
            action()

    return on_event


class Ticks(trio.abc.Instrument):
    """Counts the turns of Trio's scheduler: in one of them every task that can run does."""

    def __init__(self) -> None:
        self.now = 0

    def after_io_wait(self, timeout: float) -> None:
        self.now += 1
