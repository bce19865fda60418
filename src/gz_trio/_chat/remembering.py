"""What saves the turns of one session in the gateway's history: a task that chatting never awaits.

    Session.stream --a turn that was read to its end--> memory channel --> saving task --> Saver

The task outlives a cancellation of the session's block, by `FLUSH_SECONDS` at most.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from math import inf

import trio
from trio.lowlevel import enable_ki_protection

from .._background import Background
from .._protocol.errors import BadRequestError, GatewayError, StreamTimeout
from .._protocol.history import (
    HistoryMessage,
    Outbox,
    SaveError,
    message_from,
    save_error,
    title_of,
)
from .history_calls import Call, HistoryCalls
from .reply import Reply
from .saving import Saver

FLUSH_SECONDS = 10.0
"""So long a block that is left waits for what is not saved yet."""

_log = logging.getLogger("gz_trio.history")


@dataclass(frozen=True, slots=True)
class _Turn:
    """What was said, and the account (the key's epoch) that it was said under."""

    messages: tuple[HistoryMessage, HistoryMessage]
    epoch: int


class Remembering:
    """Saves the turns of one session, one message after another. Made by `open_remembering`.

    Attributes:
        session_id: The session's in the history; `None` until it is begun there.
    """

    def __init__(
        self, calls: HistoryCalls, saver: Saver, model: str, session_id: int | str | None
    ) -> None:
        self._calls = calls
        self._saver = saver
        self._model = model
        self._send, self._receive = trio.open_memory_channel[_Turn](inf)
        self._scope = trio.CancelScope(shield=True)
        self._done = trio.Event()
        self._parting = False
        self._epoch: int | None = None
        self._pending: deque[HistoryMessage] = deque()
        self._refused: list[HistoryMessage] = []
        self._count = 0
        self._may_be_begun = False
        self._failure: GatewayError | None = None
        self.session_id = session_id

    def asked(self, message: Mapping[str, object]) -> HistoryMessage:
        """The user's message of a turn that begins now."""
        return self._said(message, tokens=0)

    def answered(self, question: HistoryMessage, reply: Reply) -> None:
        """Have a turn saved whose reply was read to its end. Never waits.

        Raises:
            trio.ClosedResourceError: The session's block has been left.
        """
        usage = reply.usage
        answer = self._said(reply.message, tokens=0 if usage is None else usage.completion_tokens)
        self._send.send_nowait(_Turn((question, answer), reply.attempts[-1].epoch))
        self._count += 2

    def _said(self, message: Mapping[str, object], *, tokens: int) -> HistoryMessage:
        text = message_from(message)
        return self._saver.stamped(
            HistoryMessage(role=text.role, content=text.content, model=self._model, tokens=tokens)
        )

    @enable_ki_protection
    async def run(self) -> None:
        """The saving task. Ends when all is saved, or tried, once `flush` is called."""
        try:
            with self._scope:
                async for turn in self._receive:
                    self._pending += turn.messages
                    # Of another account's turns nothing is saved: each call is for this one alone.
                    self._epoch = turn.epoch if self._epoch is None else self._epoch
                    await self._save_pending()
                await self._save_pending()  # what has failed so far: the last chance
        finally:
            self._done.set()

    async def _save_pending(self) -> None:  # noqa: ASYNC910 - one, where there is anything
        """Save in order; what fails stays, and is tried again with the next turn."""
        while self._pending:
            message = self._pending[0]
            try:
                call = self._calls.begin(epoch=self._epoch, parting=self._parting)
                if self.session_id is None:
                    self.session_id = await self._begin(call, title_of(message.content))
                outbox = Outbox([message])
                await self._saver.deliver(call, self.session_id, outbox, in_batches=False)
            except GatewayError as error:
                self._failure = error
                if not isinstance(error, BadRequestError) or error.retryable:
                    _log.warning("%d messages are not saved yet: %s", len(self._pending), error)
                    return  # noqa: ASYNC910 - the call was one
                _log.warning("a message will not be saved: %s", error)
                self._refused.append(message)  # never to be accepted; those after it may be
            self._pending.popleft()

    async def _begin(self, call: Call, title: str) -> int | str:
        look_first, self._may_be_begun = self._may_be_begun, True
        session = await self._saver.create(call, title, self._model, look_first=look_first)
        return session.id

    async def flush(self) -> None:
        """Save what is pending, within `FLUSH_SECONDS` even if cancelled. A checkpoint."""
        self._send.close()
        self._parting = True
        self._scope.deadline = trio.current_time() + FLUSH_SECONDS
        try:
            with trio.CancelScope(shield=True):  # bounded: the task ends by its own deadline
                await self._done.wait()
        finally:
            self._scope.cancel()  # a second Ctrl-C waits for nothing
        if self._scope.cancelled_caught:
            self._failure = StreamTimeout(
                f"it took longer than {FLUSH_SECONDS:g} s after the session was left"
            )

    def unsaved_error(self) -> SaveError | None:
        """The error for what is not saved, if there is any; once `flush` is over."""
        unsaved = [*self._refused, *self._pending]
        while True:
            try:
                unsaved += self._receive.receive_nowait().messages
            except (trio.EndOfChannel, trio.WouldBlock):
                break
        if not unsaved or self._failure is None:
            return None
        unsaved.sort(key=_time_of)
        error = save_error(unsaved, self._count, self._failure)
        _log.warning("%s", error)
        return error


def _time_of(message: HistoryMessage) -> datetime:
    return message.created_at or datetime.min.replace(tzinfo=UTC)


@asynccontextmanager
@enable_ki_protection
async def open_remembering(
    calls: HistoryCalls, saver: Saver, model: str, session_id: int | str | None
) -> AsyncGenerator[Remembering]:
    """Save turns for as long as the block runs, and until they are saved, within a bound.

    Args:
        calls: Of the history in which they are saved.
        saver: What saves there.
        model: Of the conversation.
        session_id: The session to go on with; `None` begins one with the first turn.

    Raises:
        SaveError: On exit, where the block raised nothing: not all could be saved.
    """
    remembering = Remembering(calls, saver, model, session_id)
    async with Background("session's history") as nursery:
        nursery.start_soon(remembering.run)
        try:
            yield remembering
        except BaseException as raised:
            await remembering.flush()  # noqa: ASYNC102 - shielded, and bounded
            error = remembering.unsaved_error()
            if error is not None and isinstance(raised, Exception):
                raised.add_note(f"also, {error}")
            raise
        await remembering.flush()
        if (error := remembering.unsaved_error()) is not None:
            raise error
