"""Fifty chats through nginx to a real engine: the key is rotated twice, nginx goes down twice."""

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import trio

import gz_trio
from gz_trio import APIConnectionError, AuthenticationError
from tests.interop import plain
from tests.interop.conftest import FIRST_KEY, until
from tests.interop.servers import MODEL, Engine, Front

CHATS = 50
CANDIDATES = [
    [f"Chat {number}: tell me a story.", "Go on.", "And how does it end?"] for number in range(90)
]
TURN_SECONDS = 60.0
MANY = CHATS // 4
"""So many replies at least have to be hit in the middle of their text for a fault to count."""


@dataclass
class Chat:
    """A chat, what the engine says in it when nothing is in between, and what its reader saw."""

    session: gz_trio.Session
    questions: list[str]
    expected: list[str]
    texts: list[str] = field(default_factory=list[str])
    replies: list[gz_trio.Reply] = field(default_factory=list[gz_trio.Reply])
    in_mid_reply: bool = False
    pauses: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    """Why the last reply paused, and the text that it had then."""

    async def listen(self, turn: int) -> None:
        """Ask the question of `turn`, and read the reply to its end."""
        self.pauses = []
        async with self.session.stream(self.questions[turn]) as reply:
            self.replies.append(reply)
            async for event in reply.events():
                if isinstance(event, gz_trio.Paused):
                    self.pauses.append((event.reason, reply.text))
                self.in_mid_reply = bool(reply.text) and not isinstance(event, gz_trio.Finished)
        self.texts.append(reply.text)

    def has_begun(self, turn: int) -> bool:
        return len(self.replies) > turn and self.replies[turn].text != ""

    def paused_in_mid_reply(self, reason: str) -> bool:
        return any(why == reason and text != "" for why, text in self.pauses)


def refused(reply: gz_trio.Reply) -> bool:
    """Whether an attempt of this reply ended before it began."""
    return any(
        isinstance(attempt.cause, APIConnectionError) and attempt.tokens == 0
        for attempt in reply.attempts
    )


async def test_fifty_chats_outlive_two_rotations_and_two_outages(
    engine: Engine, front: Front, tmp_path: Path
) -> None:
    issued = trio.Path(tmp_path, "issued.key")
    await issued.write_text(FIRST_KEY)
    rejected: list[str] = []

    async def refresh(key: gz_trio.Key | None) -> str:
        assert key is not None
        rejected.append(key.value)
        return await issued.read_text()

    async def ask_all(turn: int, fault: Callable[[], Awaitable[None]]) -> None:
        """A turn in every chat at once, with `fault` when every reply has some text."""
        with trio.fail_after(TURN_SECONDS):
            async with trio.open_nursery() as nursery:
                for chat in chats:
                    nursery.start_soon(chat.listen, turn)
                await until(lambda: all(chat.has_begun(turn) for chat in chats))
                await fault()

    async def rotate_by_reload() -> None:
        front.accept_only("sk-interop-3")
        await trio.to_thread.run_sync(front.reload)
        await issued.write_text("sk-interop-3")
        assert any(chat.in_mid_reply for chat in chats)

    async def restart() -> None:
        await trio.to_thread.run_sync(front.stop)
        await until(lambda: any(refused(chat.replies[-1]) for chat in chats))
        await trio.to_thread.run_sync(front.start)

    async def rotate_by_restart() -> None:
        front.accept_only("sk-interop-2")
        await issued.write_text("sk-interop-2")
        await restart()

    async with AsyncExitStack() as stack:
        store = gz_trio.MemoryKeyStore(FIRST_KEY)
        authenticator = await stack.enter_async_context(gz_trio.open_authenticator(store, refresh))
        gateway = await stack.enter_async_context(
            gz_trio.open_gateway(front.base_url, authenticator)
        )
        chats = [
            Chat(
                await stack.enter_async_context(gateway.open_session(MODEL)),
                questions=messages[::2],
                expected=messages[1::2],
            )
            for messages in await plain.whole_chats(engine.base_url, CANDIDATES)
        ][:CHATS]
        assert len(chats) == CHATS

        # A cut, a refusal, and the rejection of the key in mid-reply; then a replay.
        await ask_all(0, rotate_by_restart)
        assert rejected == [FIRST_KEY]
        assert sum(chat.paused_in_mid_reply("reconnect") for chat in chats) >= MANY
        # Not many: most come back when the new key is there.
        assert any(chat.paused_in_mid_reply("refresh") for chat in chats)

        # From here on the old key is rejected, but not in the replies that have begun.
        await ask_all(1, rotate_by_reload)
        assert [chat.pauses for chat in chats] == [[]] * CHATS
        assert rejected == [FIRST_KEY]

        # Now the rejection, before the first byte; then a cut, a refusal, and a replay.
        await ask_all(2, restart)
        assert rejected == [FIRST_KEY, "sk-interop-2"]
        assert sum(chat.paused_in_mid_reply("reconnect") for chat in chats) >= MANY

    assert [chat.texts for chat in chats] == [chat.expected for chat in chats]
    for chat in chats:
        assert [message["content"] for message in chat.session.messages[1::2]] == chat.texts
    # What nginx saw is what the replies saw.
    attempts = [attempt for chat in chats for reply in chat.replies for attempt in reply.attempts]
    unauthorized = sum(isinstance(attempt.cause, AuthenticationError) for attempt in attempts)
    assert front.statuses()[401] == unauthorized
