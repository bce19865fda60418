"""The history of chats that a gateway keeps: listed, read, changed, and saved to exactly once."""

from __future__ import annotations

import logging
import uuid
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from math import inf
from typing import TypeVar
from urllib.parse import quote, urlencode

import msgspec
import trio

from .._auth.authenticator import Authenticator
from .._protocol.errors import (
    AuthenticationError,
    GatewayError,
    InternalServerError,
    NotFoundError,
    StreamTimeout,
    error_from_response,
)
from .._protocol.events import Paused, RateLimited
from .._protocol.history import (
    HistoryFeedback,
    HistoryMessage,
    HistorySession,
    HistoryStats,
    Outbox,
    Stored,
    acknowledged,
    batch_saved_from,
    feedback_from,
    feedbacks_from,
    may_have_been_done,
    message_from,
    message_to_send,
    save_error,
    saved_from,
    session_from,
    sessions_from,
    stats_from,
)
from .._protocol.settings import RetryPolicy, Timeouts
from .._transport.interface import Request, Transport
from .bodies import read_body, read_error_body
from .recovering import Recovering

MAX_SESSIONS = 10_000
"""Of so many sessions it is kept what is known to be stored in them: those used last."""

LOOK_BACK = 100
"""So many of the newest sessions and feedbacks are looked through for one that was lost."""

_MILLISECOND = timedelta(milliseconds=1)

_T = TypeVar("_T")
_log = logging.getLogger("gz_trio.history")


@dataclass(slots=True)
class _Saving:
    """Saves to one session go one after another: a message's place is where it was saved."""

    stored: Stored
    lock: trio.Lock = field(default_factory=trio.Lock)


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

    def __init__(
        self,
        transport: Transport,
        authenticator: Authenticator,
        *,
        origin: str,
        make_request: Callable[..., Request],
        retry: RetryPolicy,
        timeouts: Timeouts,
        now: Callable[[], float],
    ) -> None:
        self._transport = transport
        self._authenticator = authenticator
        self._origin = origin
        self._make_request = make_request
        self._retry = retry
        self._timeouts = timeouts
        self._now = now
        self._last_stamp = datetime.min.replace(tzinfo=UTC)
        self._creating: Counter[tuple[str, str]] = Counter()
        self._savings: OrderedDict[str, _Saving] = OrderedDict()

    def __repr__(self) -> str:
        return f"<History of {self._origin}>"

    # Sessions

    async def sessions(self, *, limit: int = 50, offset: int = 0) -> list[HistorySession]:
        """The account's sessions, the last used one first, without their messages.

        Args:
            limit: How many; gateways give 100 at most.
            offset: How many to leave out before them.
        """
        path = f"/sessions?{urlencode({'limit': limit, 'offset': offset})}"
        return await self._call().ask("GET", path, sessions_from)

    async def create(self, title: str, model: str) -> HistorySession:
        """Begin a session.

        If the answer was lost, a session of this title and model that holds no message, and that
        nobody else got from here, is taken for the one that was begun.

        Args:
            title: What a list of chats shows.
            model: The model that it is held with.
        """
        return await self._create(self._call(), title, model)

    async def get(self, session_id: int | str) -> HistorySession:
        """One session, with its messages."""
        session = await self._call().ask("GET", _path_of(session_id), session_from)
        self._remember(session)
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
        return await self._call().ask("PUT", _path_of(session_id), session_from, changes)

    async def delete(self, session_id: int | str) -> None:
        """Delete a session, and all its messages."""
        call = self._call()
        try:
            await call.ask("DELETE", _path_of(session_id), acknowledged)
        except NotFoundError:
            if not call.in_doubt:  # Else it was deleted by the request whose answer was lost.
                raise
        self._savings.pop(str(session_id), None)

    async def search(self, query: str, *, limit: int = 20) -> list[HistorySession]:
        """The sessions whose title or messages hold `query`, without their messages.

        Args:
            query: What is looked for.
            limit: How many.
        """
        return await self._call().ask(
            "POST", "/search", sessions_from, {"query": query, "limit": limit}
        )

    async def stats(self) -> HistoryStats:
        """How many sessions, messages and tokens the account has."""
        return await self._call().ask("GET", "/stats", stats_from)

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
        outbox = Outbox([self.stamped(message)])
        await self._deliver(self._call(), session_id, outbox, in_batches=False)
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
        outbox = Outbox(map(self.stamped, messages))
        try:
            await self._deliver(self._call(), session_id, outbox, in_batches=True)
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
        call = self._call()
        while True:
            given = await call.tell("/feedback", feedback_from, body)
            if given is not None:
                return given
            path = f"/feedback?{urlencode({'limit': LOOK_BACK})}"
            for given in await call.ask("GET", path, feedbacks_from):
                if given.raw.get("metadata") == metadata:
                    return given

    # For remembered sessions too

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

    async def create_for(
        self, epoch: int | None, title: str, model: str, *, parting: bool
    ) -> HistorySession:
        """`create`, under the account of `epoch` alone; `parting` as for `Recovering`."""
        return await self._create(self._call(epoch, parting=parting), title, model)

    async def save_for(
        self,
        epoch: int | None,
        session_id: int | str,
        message: HistoryMessage,
        *,
        parting: bool,
    ) -> None:
        """`save`, under the account of `epoch` alone; `parting` as for `Recovering`."""
        call = self._call(epoch, parting=parting)
        await self._deliver(call, session_id, Outbox([message]), in_batches=False)

    # How

    def _call(self, epoch: int | None = None, *, parting: bool = False) -> _Call:
        return _Call(
            self._transport,
            Recovering(
                self._authenticator,
                origin=self._origin,
                model=None,
                policy=self._retry,
                announce=_log_pause,
                parting=parting,
            ),
            epoch=epoch,
            origin=self._origin,
            make_request=self._make_request,
            timeouts=self._timeouts,
            now=self._now,
        )

    async def _create(self, call: _Call, title: str, model: str) -> HistorySession:
        """A gateway cannot be told that two requests mean one session, so it is looked for.

        Where another `create` of the same title and model is under way, the session that is found
        may be that one's: then a further one is begun. An empty session too many is a lesser evil
        than two conversations in one.
        """
        body = {"title": title, "model": model}
        under_way = (title, model)
        session: HistorySession | None = None
        while session is None:
            self._creating[under_way] += 1
            try:
                session = await call.tell("/sessions", session_from, body)
            finally:
                self._creating[under_way] -= 1
                self._creating += Counter()  # Forgets those of which none is under way.
            if session is None:
                session = await self._find_created(call, title, model)
        self._remember(session)
        return session

    async def _find_created(self, call: _Call, title: str, model: str) -> HistorySession | None:
        path = f"/sessions?{urlencode({'limit': LOOK_BACK, 'offset': 0})}"
        for session in await call.ask("GET", path, sessions_from):
            if (session.title, session.model) != (title, model) or self._knows(session):
                continue
            session = await call.ask("GET", _path_of(session.id), session_from)  # noqa: PLW2901
            if not session.messages and not self._knows(session):
                return None if self._creating[title, model] else session
        return None

    async def _deliver(
        self, call: _Call, session_id: int | str, outbox: Outbox, *, in_batches: bool
    ) -> None:
        saving = self._saving(session_id)
        path = _path_of(session_id)
        async with saving.lock:
            stored = saving.stored
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

    def _knows(self, session: HistorySession) -> bool:
        return str(session.id) in self._savings

    def _remember(self, session: HistorySession) -> None:
        """What a session holds is known from here on: it need not be read before it is saved to."""
        if not self._knows(session):
            self._saving(session.id).stored = Stored(session.messages)

    def _saving(self, session_id: int | str) -> _Saving:
        saving = self._savings.pop(str(session_id), None) or _Saving(Stored(None))
        self._savings[str(session_id)] = saving
        if len(self._savings) > MAX_SESSIONS:
            oldest, old = next(iter(self._savings.items()))
            if not old.lock.locked():
                del self._savings[oldest]
        return saving


class _Call:
    """One call: its key and its retries, over as many requests as it takes.

    Args:
        transport: What sends them.
        recovering: Their key.
        epoch: The only account that they may be sent for; `None`: that of the first of them.
        origin: Of the gateway.
        make_request: Gives a request for a method, a path and a key.
        timeouts: How long to wait.
        now: Unix time in seconds.

    Attributes:
        in_doubt: Whether one of them may have been carried out, though its answer did not come.
    """

    def __init__(
        self,
        transport: Transport,
        recovering: Recovering,
        *,
        epoch: int | None,
        origin: str,
        make_request: Callable[..., Request],
        timeouts: Timeouts,
        now: Callable[[], float],
    ) -> None:
        self.recovering = recovering
        self.in_doubt = False
        self._transport = transport
        self._epoch = epoch
        self._origin = origin
        self._make_request = make_request
        self._timeouts = timeouts
        self._now = now

    async def ask(
        self, method: str, path: str, parse: Callable[[bytes], _T], body: object = None
    ) -> _T:
        """The answer to what may be asked twice."""
        while True:
            try:
                return await self._try_once(method, path, parse, body)
            except GatewayError as failure:
                self.in_doubt = self.in_doubt or may_have_been_done(failure)
                await self.recovering.after(failure)

    async def tell(self, path: str, parse: Callable[[bytes], _T | None], body: object) -> _T | None:
        """The answer to what must be done once.

        `None` where that may have been done or not, and the table says to go on: look first.
        """
        while True:
            try:
                return await self._try_once("POST", path, parse, body)
            except GatewayError as failure:
                await self.recovering.after(failure)
                if may_have_been_done(failure):
                    return None

    async def _try_once(
        self, method: str, path: str, parse: Callable[[bytes], _T], body: object
    ) -> _T:
        key = await self.recovering.next_key()
        if self._epoch is not None and key.epoch != self._epoch:
            raise AuthenticationError("another account has signed in: this is not its history")
        request = self._make_request(
            method,
            f"/chat{path}",
            key,
            content=b"" if body is None else msgspec.json.encode(body),
            connect_timeout=self._timeouts.connect,
        )
        seconds = self._timeouts.between_tokens
        with trio.move_on_after(inf if seconds is None else seconds):
            response = await self._transport.send(request)
            try:
                if not 200 <= response.status < 300:
                    refusal = await read_error_body(response)
                    raise self._error(response.status, response.headers, refusal)
                answer = parse(await read_body(response))
            finally:
                await response.aclose()
            self.recovering.accepted()
            return answer
        raise StreamTimeout(
            f"{self._origin} did not answer within {seconds:g} s", which="between_tokens"
        )

    def _error(self, status: int, headers: Mapping[str, str], body: bytes) -> GatewayError:
        error = error_from_response(status, headers, body, now=self._now())
        if isinstance(error, NotFoundError):
            return error.another(
                f"there is no such session at {self._origin}, or this gateway keeps no history"
            )
        return error


def _path_of(session_id: int | str) -> str:
    return f"/sessions/{quote(str(session_id), safe='')}"


def _log_pause(event: Paused | RateLimited) -> None:
    _log.debug("a call of the history waits: %r", event)
