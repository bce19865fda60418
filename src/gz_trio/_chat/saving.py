"""Saving exactly once: sessions that are begun, and messages put at their ends."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from urllib.parse import urlencode

import msgspec
import trio

from .._protocol.errors import InternalServerError
from .._protocol.history import (
    HistoryMessage,
    HistorySession,
    Outbox,
    Stored,
    batch_saved_from,
    message_from,
    message_to_send,
    saved_from,
    session_from,
    sessions_from,
)
from .history_calls import Call, path_of

MAX_SESSIONS = 10_000
"""Of so many sessions it is kept what is known to be stored in them: those used last."""

LOOK_BACK = 100
"""So many of the newest are looked through for one that was lost; gateways give no more."""

_MILLISECOND = timedelta(milliseconds=1)


@dataclass(slots=True)
class _Place:
    """A session that is saved to, by one task after another: its messages have an order."""

    stored: Stored
    lock: trio.Lock = field(default_factory=trio.Lock)


class Saver:
    """Saves for one gateway, and knows what is stored there.

    Args:
        now: Unix time in seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._last_stamp = datetime.min.replace(tzinfo=UTC)
        self._creating: Counter[tuple[str, str]] = Counter()
        self._places: OrderedDict[str, _Place] = OrderedDict()

    def stamped(self, message: HistoryMessage | Mapping[str, object]) -> HistoryMessage:
        """`message` with a time of its own, later than that of any other from here.

        In whole milliseconds: what gateways keep of a time, it is equal to what was sent.
        """
        if not isinstance(message, HistoryMessage):
            message = message_from(message)
        if message.created_at is not None:
            return message
        now = datetime.fromtimestamp(self._now(), UTC)
        now = now.replace(microsecond=now.microsecond // 1000 * 1000)
        self._last_stamp = max(now, self._last_stamp + _MILLISECOND)
        return msgspec.structs.replace(message, created_at=self._last_stamp)

    async def create(
        self, call: Call, title: str, model: str, *, look_first: bool = False
    ) -> HistorySession:
        """Begin a session.

        A gateway cannot be told that two requests mean one session. So where an answer was lost, a
        session of that title and model is looked for that holds no message and that nobody got from
        here. While another `create` of the same title and model is under way it may be that one's:
        then a further one is begun. An empty session too many is a lesser evil than two
        conversations in one.

        Args:
            call: How it is sent.
            title: The session's.
            model: The session's.
            look_first: Whether it may have been begun by an earlier call, which failed.

        Raises:
            GatewayError: It was not begun, as far as is known.
        """
        body = {"title": title, "model": model}
        under_way = (title, model)
        session = await self._find_created(call, title, model) if look_first else None
        while session is None:
            self._creating[under_way] += 1
            try:
                session = await call.tell("/sessions", session_from, body)
            finally:
                self._creating[under_way] -= 1
                self._creating += Counter()  # Forgets those of which none is under way.
            if session is None:
                session = await self._find_created(call, title, model)
        self.read(session)
        return session  # noqa: ASYNC910 - a call is one

    async def _find_created(self, call: Call, title: str, model: str) -> HistorySession | None:
        path = f"/sessions?{urlencode({'limit': LOOK_BACK, 'offset': 0})}"
        for listed in await call.ask("GET", path, sessions_from):
            if (listed.title, listed.model) != (title, model) or self._knows(listed):
                continue
            session = await call.ask("GET", path_of(listed.id), session_from)
            if not session.messages and not self._knows(session):
                return None if self._creating[title, model] else session
        return None

    async def deliver(
        self, call: Call, session_id: int | str, outbox: Outbox, *, in_batches: bool
    ) -> None:
        """Save all that is in `outbox` at the end of a session, in order, each once.

        Args:
            call: How it is sent.
            session_id: Which session.
            outbox: What is saved; in a failure, it tells how far this came.
            in_batches: Whether in one request, rather than one for each message.

        Raises:
            GatewayError: It was not all saved.
        """
        place = self._place(session_id)
        path = path_of(session_id)
        async with place.lock:
            stored = place.stored
            while pending := outbox.pending:
                if stored.in_doubt:
                    session = await call.ask("GET", path, session_from)
                    outbox.found(stored.new(session.messages))
                    continue
                stored.in_doubt = True  # Until an answer tells, whatever ends the wait for it.
                if in_batches:
                    body: object = {"messages": [message_to_send(m) for m in pending]}
                    parse = partial(batch_saved_from, sent=pending)
                    answers = await call.tell(f"{path}/messages/batch", parse, body)
                else:
                    parse = partial(saved_from, sent=pending)
                    body = message_to_send(pending[0])
                    answers = await call.tell(f"{path}/messages", parse, body)
                if answers is None:
                    continue
                outbox.answered(answers)
                stored.add(answer for answer in answers if answer is not None)
                if outbox.pending:
                    await call.recovering.after(
                        InternalServerError(
                            f"the gateway could not store {len(outbox.pending)} of "
                            f"{len(pending)} messages of a batch",
                            retryable=True,
                        )
                    )

    def read(self, session: HistorySession) -> None:
        """What a session holds is known from here on: it need not be read before saving to it."""
        if not self._knows(session):
            self._place(session.id).stored = Stored(session.messages)

    def forget(self, session_id: int | str) -> None:
        """A session was deleted."""
        self._places.pop(str(session_id), None)

    def _knows(self, session: HistorySession) -> bool:
        return str(session.id) in self._places

    def _place(self, session_id: int | str) -> _Place:
        place = self._places.pop(str(session_id), None) or _Place(Stored(None))
        self._places[str(session_id)] = place
        if len(self._places) > MAX_SESSIONS:
            oldest, old = next(iter(self._places.items()))
            if not old.lock.locked():
                del self._places[oldest]
        return place
