"""The demo: many chats that share one key stream while it is rotated."""

from __future__ import annotations

import json
import random
import re
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

import trio

from .. import (
    Delta,
    Gateway,
    GatewayError,
    GatewayRefresh,
    MemoryKeyStore,
    Paused,
    RateLimited,
    Resumed,
    ResumePolicy,
    Session,
    open_authenticator,
    open_gateway,
)
from ..testing import FakeGateway, lost_and_doubled
from .chat import ApiName, TransportName

TOKENS_IN_ALL = 12_000
"""What the chats are meant to get together, in replies of 16 to 60 tokens."""

TOKENS_PER_SECOND = 1_500
"""What one process can send and receive; more chats get their tokens less often."""

TOKEN_SECONDS = 0.03
AUTH_SECONDS = 0.3
PATIENCE_SECONDS = 60.0

_SENTENCES = (
    "The lighthouse keeper wrote one word into the log each night.",
    "Nobody in Kærøy remembered who had built the bridge, or why it sang.",
    "“Which way?” asked the fox — and the river, as rivers do, said both.",
    "It snowed upwards for an hour, then the sky thought better of it.",
    "Her grandmother's clock ran backwards on Sundays, café time, she called it.",
    "At the Straße end of the market a man sold echoes by the metre.",
    "The map showed a village, 雨村, that moved whenever it rained.",
    "Three keys hung by the door; the fourth opened the first three.",
    "A letter came from the sea, addressed to whoever was awake.",
    "The train waited, patient as a cow, for its passengers to be born.",
    "He counted the stairs twice and got two numbers, both correct.",
    "In the naïve hour before dawn even the statues practised their lines.",
    "Somebody had knitted the orchard a scarf, and the pears were grateful.",
    "The orchestra tuned to the kettle, which was flat.",
    "Every ninth wave brought a word, and the ninth word was always “again”.",
    "So the night went on where it had stopped, and nobody noticed the join.",
)


class Stage(Enum):
    """Where a chat is."""

    WAITING = "waiting"
    STREAMING = "streaming"
    PAUSED = "paused"
    RESUMED = "resumed"
    DONE = "done"
    INTERRUPTED = "interrupted"


@dataclass(slots=True, eq=False)
class Chat:
    """One chat, as far as it has come.

    Attributes:
        number: From 1.
        stage: Where it is.
        text: Of the reply that it streams.
        fresh: Tokens since the last rotation.
    """

    number: int
    stage: Stage = Stage.WAITING
    text: str = ""
    fresh: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """The demo's figures; the names are those of `--json`."""

    sessions: int
    streams: int
    tokens: int
    rejected: int
    refreshes: int
    interrupted: int
    lost: int
    doubled: int
    paused_ms_p50: float
    paused_ms_max: float
    seconds: float

    def passes(self, rotations: int) -> bool:
        """Whether every character arrived once, with no more refreshes than rotations."""
        return not (self.interrupted or self.lost or self.doubled) and self.refreshes <= rotations


class Demo:
    """A run of the demo; its attributes are what a screen shows of it.

    Args:
        sessions: How many chats.
        rotations: How often the key is rotated.
        say: Told in words what happens.
        api: Which API they speak.
        transport: What they speak it over.
    """

    def __init__(
        self,
        sessions: int,
        rotations: int,
        say: Callable[[str], None],
        *,
        api: ApiName = "chat",
        transport: TransportName = "http",
    ) -> None:
        self._api: ApiName = api
        self._transport: TransportName = transport
        self.rotations = rotations
        self.rotated = 0
        self.streams = 0
        self.tokens = 0
        self.interrupted = 0
        self.lost = 0
        self.doubled = 0
        self.chats = [Chat(number + 1) for number in range(sessions)]
        tokens = max(16, min(60, TOKENS_IN_ALL // sessions))
        self.fake = FakeGateway(
            tokens=tokens,
            token_interval=max(TOKEN_SECONDS, sessions / TOKENS_PER_SECOND),
            auth_latency=AUTH_SECONDS,
            answer=lambda body, _attempt: story(body, tokens),
            ledger=False,
        )
        self._say = say
        self._enough = max(3, tokens // (rotations + 2))
        self._pauses: list[float] = []
        self._running = set(self.chats)
        self._silent: set[Chat] = set()
        self._behind: set[Chat] = set()
        self._caught_up = trio.Event()
        self._started = trio.current_time()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return trio.current_time() - self._started

    async def run(self) -> Result:
        """Run it. Ends by itself, also if streams do not."""
        sessions = len(self.chats)
        self._await_new_text()
        async with (
            self.fake.listen() as base_url,
            open_authenticator(
                MemoryKeyStore(self.fake.key),
                GatewayRefresh(base_url, token="any-token"),  # noqa: S106  the fake takes any
            ) as authenticator,
            open_gateway(base_url, authenticator, resume=ResumePolicy(background=True)) as gateway,
            trio.open_nursery() as nursery,
        ):
            self._say(f"{sessions} chats share one key and stream from {base_url}")
            nursery.start_soon(self._rotate, nursery.cancel_scope)
            for chat in self.chats:
                nursery.start_soon(self._converse, gateway, chat)
        return Result(
            sessions=sessions,
            streams=self.streams,
            tokens=self.tokens,
            rejected=self.fake.rejected,
            refreshes=self.fake.refreshes,
            interrupted=self.interrupted,
            lost=self.lost,
            doubled=self.doubled,
            paused_ms_p50=round(1000 * statistics.median(self._pauses or [0.0]), 1),
            paused_ms_max=round(1000 * max(self._pauses, default=0.0), 1),
            seconds=round(self.seconds, 2),
        )

    # The gateway's side

    async def _rotate(self, everything: trio.CancelScope) -> None:
        """Rotate the key whenever all chats have got over the rotation before."""
        patience = PATIENCE_SECONDS + len(self.chats) / 10
        while True:
            with trio.move_on_after(patience) as scope:
                await self._caught_up.wait()
            if scope.cancelled_caught:
                self._say(f"no new text for {patience:.0f} s in {len(self._behind)} chats")
                everything.cancel()
            if not self._running or scope.cancelled_caught:
                return
            self.rotated += 1
            self.fake.rotate()
            self._say(
                f"rotation {self.rotated} of {self.rotations}: "
                f"{self.fake.open_streams} streams are ended, their key is dead"
            )
            self._await_new_text()

    def _await_new_text(self) -> None:
        """Every chat has to stream some text more, or after the last rotation, to its end."""
        self._caught_up = trio.Event()
        self._silent = set(self._running)
        self._behind = set(self._running)
        for chat in self._running:
            chat.fresh = 0

    # The chats' side

    async def _converse(self, gateway: Gateway, chat: Chat) -> None:
        """Stream one reply after another until the last rotation is over."""
        try:
            async with gateway.open_session(
                "fake-model", api=self._api, transport=self._transport
            ) as session:
                whole = await self._stream(session, chat, "Tell me a story.")
                while whole and self.rotated < self.rotations:
                    whole = await self._stream(session, chat, "And then?")
        finally:
            for group in (self._running, self._silent, self._behind):
                group.discard(chat)
            self._look_up()

    async def _stream(self, session: Session, chat: Chat, question: str) -> bool:
        """Stream one reply; whether it came to its end."""
        messages = [*session.messages, {"role": "user", "content": question}]
        field = "input" if self._api == "responses" else "messages"
        intended = self.fake.intended({field: messages})
        self.streams += 1
        chat.text = ""
        complete = False
        paused_at: float | None = None
        try:
            async with session.stream(question) as reply:
                async for event in reply.events():
                    match event:
                        case Delta():
                            self._took(chat, event.text)
                        case Paused() | RateLimited():
                            chat.stage = Stage.PAUSED
                            if paused_at is None:
                                paused_at = trio.current_time()
                        case Resumed() if paused_at is not None:
                            chat.stage = Stage.RESUMED
                            self._pauses.append(trio.current_time() - paused_at)
                            paused_at = None
                        case _:
                            pass
                complete = reply.complete
        except GatewayError as error:
            self._say(f"chat {chat.number} is interrupted: {error}")
        finally:
            lost, doubled = lost_and_doubled(intended, chat.text)
            self.lost += lost
            self.doubled += doubled
            self.interrupted += not complete
            chat.stage = Stage.DONE if complete else Stage.INTERRUPTED
        return complete

    def _took(self, chat: Chat, text: str) -> None:
        if not text:
            return
        if chat.stage in (Stage.WAITING, Stage.DONE):
            chat.stage = Stage.STREAMING
        chat.text += text
        chat.fresh += 1
        self.tokens += 1
        if chat in self._silent:
            self._silent.discard(chat)
            if self.rotated and not self._silent:
                self._say(
                    f"all chats go on, after {self.fake.refreshes} "
                    f"refresh{'es' if self.fake.refreshes > 1 else ''} in all"
                )
        if chat.fresh == self._enough and self.rotated < self.rotations:
            self._behind.discard(chat)
            self._look_up()

    def _look_up(self) -> None:
        if not self._behind:
            self._caught_up.set()


def story(body: Mapping[str, object], tokens: int) -> list[str]:
    """A text of so many tokens that follows from the messages."""
    pick = random.Random(json.dumps(body.get("input", body.get("messages"))))
    text = " ".join(pick.sample(_SENTENCES, len(_SENTENCES)))
    return re.findall(r"\S+\s*", text)[:tokens]
