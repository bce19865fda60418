"""The history of chats that a gateway keeps: listed, read, changed, and saved to exactly once."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from urllib.parse import urlencode

from .._protocol.errors import GatewayError, NotFoundError
from .._protocol.history import (
    HistoryFeedback,
    HistoryMessage,
    HistorySession,
    HistoryStats,
    Outbox,
    acknowledged,
    feedback_from,
    feedbacks_from,
    save_error,
    session_from,
    sessions_from,
    stats_from,
)
from .history_calls import HistoryCalls, path_of
from .saving import LOOK_BACK, Saver


class History:
    """The chats that a gateway keeps for the account of its key. `Gateway.history`.

    Every call is a checkpoint, goes through the gateway's authenticator, `RetryPolicy` and
    `Timeouts` (`connect`, and `between_tokens` for the answer to one request), and raises
    `GatewayError` where these give up: `NotFoundError` where there is no such session, or the
    gateway keeps no history.

    What is saved is saved once. If an answer was lost, the session is read before anything is sent
    again, and only what it lacks is sent.

    >>> async def main() -> None:
    ...     fake = FakeGateway()
    ...     async with (
    ...         fake.http_client() as client,
    ...         open_gateway(fake.base_url, fake.key, http_client=client) as gateway,
    ...     ):
    ...         chat = await gateway.history.create("A story", "fake-model")
    ...         await gateway.history.save(chat.id, {"role": "user", "content": "Hello"})
    ...         chat = await gateway.history.get(chat.id)
    ...         print(chat.title, [message.content for message in chat.messages])
    >>> trio.run(main)
    A story ['Hello']
    """

    def __init__(self, calls: HistoryCalls, saver: Saver) -> None:
        self._calls = calls
        self._saver = saver

    def __repr__(self) -> str:
        return f"<History of {self._calls.origin}>"

    # Sessions

    async def sessions(self, *, limit: int = 50, offset: int = 0) -> list[HistorySession]:
        """The account's sessions, the last used one first, without their messages.

        Args:
            limit: How many; gateways give 100 at most.
            offset: How many to leave out before them.
        """
        path = f"/sessions?{urlencode({'limit': limit, 'offset': offset})}"
        return await self._calls.begin().ask("GET", path, sessions_from)

    async def create(self, title: str, model: str) -> HistorySession:
        """Begin a session.

        If the answer was lost, a session of this title and model that holds no message, and that
        nobody else got from here, is taken for the one that was begun.

        Args:
            title: What a list of chats shows.
            model: The model that it is held with.
        """
        return await self._saver.create(self._calls.begin(), title, model)

    async def get(self, session_id: int | str) -> HistorySession:
        """One session, with its messages."""
        session = await self._calls.begin().ask("GET", path_of(session_id), session_from)
        self._saver.read(session)
        return session

    async def update(
        self, session_id: int | str, *, title: str | None = None, model: str | None = None
    ) -> HistorySession:
        """Change a session.

        Args:
            session_id: Which one.
            title: The new title; `None` leaves it.
            model: The new model; `None` leaves it.

        Raises:
            ValueError: There is nothing to change.
        """
        changes = {k: v for k, v in (("title", title), ("model", model)) if v is not None}
        if not changes:
            raise ValueError("nothing to change: give a title or a model")
        return await self._calls.begin().ask("PUT", path_of(session_id), session_from, changes)

    async def delete(self, session_id: int | str) -> None:  # noqa: ASYNC910 - a call is one
        """Delete a session, and all its messages."""
        call = self._calls.begin()
        try:
            await call.ask("DELETE", path_of(session_id), acknowledged)
        except NotFoundError:
            if not call.in_doubt:  # Else it was deleted by the request whose answer was lost.
                raise
        self._saver.forget(session_id)

    async def search(self, query: str, *, limit: int = 20) -> list[HistorySession]:
        """The sessions whose title or messages hold `query`, without their messages.

        Args:
            query: What is looked for.
            limit: How many.
        """
        return await self._calls.begin().ask(
            "POST", "/search", sessions_from, {"query": query, "limit": limit}
        )

    async def stats(self) -> HistoryStats:
        """How many sessions, messages and tokens the account has."""
        return await self._calls.begin().ask("GET", "/stats", stats_from)

    # Messages

    async def save(
        self, session_id: int | str, message: HistoryMessage | Mapping[str, object]
    ) -> HistoryMessage:
        """Save a message at the end of a session. Saves to one session wait for each other.

        Args:
            session_id: Which session.
            message: With `role` and `content`, as in `Session.messages`. Of content in parts the
                text is saved; a message that has no `created_at` gets one.

        Returns:
            The message as it is stored.
        """
        outbox = Outbox([self._saver.stamped(message)])
        await self._saver.deliver(self._calls.begin(), session_id, outbox, in_batches=False)
        return outbox.stored[0]

    async def save_many(
        self, session_id: int | str, messages: Sequence[HistoryMessage | Mapping[str, object]]
    ) -> list[HistoryMessage]:
        """Save messages at the end of a session, in order, in one request. See `save`.

        Of a batch that fails in part only what failed is sent again. It is stored later then, but
        its `created_at`, by which gateways order what they give, is the earlier one.

        Args:
            session_id: Which session.
            messages: As in `save`.

        Returns:
            The messages as they are stored.

        Raises:
            SaveError: Some could not be saved: its `unsaved`. Its `__cause__` says why.
        """
        outbox = Outbox(map(self._saver.stamped, messages))
        try:
            await self._saver.deliver(self._calls.begin(), session_id, outbox, in_batches=True)
        except GatewayError as error:
            raise save_error(outbox.pending, len(outbox), error) from error
        return outbox.stored

    async def feedback(
        self,
        feedback_type: str,
        *,
        session_id: int | str | None = None,
        message_id: int | str | None = None,
        rating: int | None = None,
        comment: str | None = None,
        model: str | None = None,
    ) -> HistoryFeedback:
        """Say what the user thinks of an answer.

        Args:
            feedback_type: `"thumbs_up"`, `"thumbs_down"` or `"regenerate"`.
            session_id: The chat that it is about.
            message_id: The message that it is about.
            rating: From 1 to 5.
            comment: In the user's words.
            model: The model that gave the answer.
        """
        # Gateways keep the metadata: by it a feedback whose answer was lost is found.
        metadata = {"client_request_id": uuid.uuid4().hex}
        body = {
            "feedback_type": feedback_type,
            "session_id": session_id,
            "message_id": message_id,
            "rating": rating,
            "comment": comment,
            "model": model,
            "metadata": metadata,
        }
        call = self._calls.begin()
        while True:
            given = await call.tell("/feedback", feedback_from, body)
            if given is not None:
                return given
            path = f"/feedback?{urlencode({'limit': LOOK_BACK})}"
            for given in await call.ask("GET", path, feedbacks_from):
                if given.raw.get("metadata") == metadata:
                    return given
