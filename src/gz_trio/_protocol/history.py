"""The history that a gateway keeps of chats: what its answers mean, and what a save still owes.

Saving is not idempotent on the server. So after an answer that was lost the session is read before
anything is sent again, and what is new in it is held against what was sent (`Stored`, `Outbox`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import cast

import msgspec

from . import lenient_json
from .errors import (
    APIConnectionError,
    GatewayError,
    InternalServerError,
    ProtocolError,
    StreamTimeout,
    error_from_response,
)

TITLE_CHARACTERS = 60


class HistoryMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message in the gateway's history.

    Args:
        role: `"user"`, `"assistant"`, ...
        content: Its text.
        model: The model that it was said to, or that said it.
        tokens: Its tokens, as the gateway counted them; 0 where nobody did.
        created_at: When it was said; aware of its time zone.
        id: The gateway's, or `None` before it is saved.
        raw: The gateway's object as it came.

    >>> HistoryMessage(role="user", content="Hello").tokens
    0
    """

    role: str
    content: str
    model: str | None = None
    tokens: int = 0
    created_at: datetime | None = None
    id: int | str | None = None
    raw: dict[str, object] = {}


class HistorySession(msgspec.Struct, frozen=True, kw_only=True):
    """A chat in the gateway's history.

    Args:
        id: The gateway's.
        title: What a list of chats shows.
        model: The model that it was last held with.
        created_at: When it began; aware of its time zone.
        updated_at: When it last changed.
        messages: In their order; empty in lists of sessions, where gateways leave them out.
        raw: The gateway's object as it came.
    """

    id: int | str
    title: str = ""
    model: str | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    messages: tuple[HistoryMessage, ...] = ()
    raw: dict[str, object] = {}


class HistoryStats(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway counts of an account's history; `raw` is its object as it came."""

    total_sessions: int = 0
    total_messages: int = 0
    total_tokens: int = 0
    raw: dict[str, object] = {}


class HistoryFeedback(msgspec.Struct, frozen=True, kw_only=True):
    """What a user said of an answer.

    Args:
        id: The gateway's.
        feedback_type: `"thumbs_up"`, `"thumbs_down"`, `"regenerate"`.
        session_id: The chat that it is about.
        message_id: The message that it is about.
        rating: From 1 to 5.
        comment: In the user's words.
        created_at: When it was given; aware of its time zone.
        raw: The gateway's object as it came.
    """

    id: int | str
    feedback_type: str = ""
    session_id: int | str | None = None
    message_id: int | str | None = None
    rating: int | None = None
    comment: str | None = None
    created_at: datetime | None = None
    raw: dict[str, object] = {}


class SaveError(GatewayError):
    """Messages could not be saved in the gateway's history; `__cause__` says why.

    Attributes:
        unsaved: Those messages, in order. Of the first of them it may be unknown whether they
            were stored; giving them to `History.save_many` of the same gateway finds out first.
    """

    unsaved: tuple[HistoryMessage, ...] = ()


def save_error(unsaved: Sequence[HistoryMessage], total: int, cause: GatewayError) -> SaveError:
    """The error for messages that could not be saved, with what the gateway said.

    Args:
        unsaved: Those messages.
        total: How many there were to save.
        cause: What happened.

    >>> print(save_error([HistoryMessage(role="user", content="Hi")], 2, GatewayError("no time")))
    1 of 2 messages could not be saved in the gateway's history: no time
    """
    error = SaveError(
        f"{len(unsaved)} of {total} messages could not be saved in the gateway's history: {cause}",
        status=cause.status,
        code=cause.code,
        type=cause.type,
        request_id=cause.request_id,
        retryable=cause.retryable,
        body=cause.body,
    )
    error.unsaved = tuple(unsaved)
    error.__cause__ = cause
    return error


def may_have_been_done(error: GatewayError) -> bool:
    """Whether a request that failed so may have been carried out nevertheless.

    A 503 comes from a gateway, or from a proxy in front of it, that did not take the request. After
    any other 5xx, and where no answer came or none that can be read, nobody knows.

    >>> may_have_been_done(APIConnectionError("cut"))
    True
    """
    if isinstance(error, APIConnectionError | StreamTimeout | ProtocolError):
        return True
    status = error.status or 0
    return status == 408 or (
        isinstance(error, InternalServerError) and status >= 500 and status != 503
    )


def title_of(text: str) -> str:
    """A session's title: the first words of the text that it began with.

    >>> title_of("Tell me   a story. ")
    'Tell me a story.'
    """
    words = " ".join(text.split())
    if len(words) <= TITLE_CHARACTERS:
        return words or "New chat"
    cut = words[: TITLE_CHARACTERS - 1]
    return f"{cut.rpartition(' ')[0] or cut}…"


def text_of(content: object) -> str:
    """The text of a message's `content`: of content in parts, that of its text parts.

    >>> text_of([{"type": "text", "text": "Look:"}, {"type": "image_url", "image_url": {}}])
    'Look:'
    """
    if isinstance(content, str):
        return content
    return "".join(
        text for part in lenient_json.objects(content) if isinstance(text := part.get("text"), str)
    )


def message_from(value: Mapping[str, object]) -> HistoryMessage:
    """A message of a gateway's history, or of a conversation; whatever is odd in it is left out.

    >>> message_from({"role": "user", "content": "Hi", "id": "7", "tokens": "3"}).tokens
    3
    """
    return HistoryMessage(
        role=_text(value.get("role")) or "",
        content=text_of(value.get("content")),
        model=_text(value.get("model")),
        tokens=_number(value.get("tokens")) or 0,
        created_at=_time(value.get("created_at")),
        id=_id(value, "id"),
        raw=dict(value),
    )


def message_to_send(message: HistoryMessage) -> dict[str, object]:
    """The JSON object that saves `message`."""
    return {
        "role": message.role,
        "content": message.content,
        "model": message.model,
        "tokens": message.tokens,
        "created_at": message.created_at and message.created_at.isoformat(),
    }


# Answers. The envelope is `{"success", "data", "message", "count"}`, or there is none.


def session_from(body: bytes) -> HistorySession:
    """The session in an answer.

    Raises:
        GatewayError: There is none.

    >>> session_from(b'{"success": true, "data": {"id": 7, "title": "A story"}}').title
    'A story'
    >>> session_from(b'{"id": "a7"}').id
    'a7'
    """
    session = _session(_object(body, "data", "session"))
    if session is None:
        raise _unreadable(body)
    return session


def sessions_from(body: bytes) -> list[HistorySession]:
    """The sessions in an answer; what is none is left out.

    Raises:
        GatewayError: There is no list of sessions.
    """
    values = _list(body, "data", "sessions", "results")
    return [session for value in values if (session := _session(value)) is not None]


def stats_from(body: bytes) -> HistoryStats:
    """The statistics in an answer, which come as `stats` or, in older gateways, as `data`.

    Raises:
        GatewayError: There are none.

    >>> stats_from(b'{"success": true, "stats": {"total_sessions": 2}}').total_sessions
    2
    """
    raw = _object(body, "stats", "data")
    return HistoryStats(
        total_sessions=_number(raw.get("total_sessions")) or 0,
        total_messages=_number(raw.get("total_messages")) or 0,
        total_tokens=_number(raw.get("total_tokens")) or 0,
        raw=raw,
    )


def feedback_from(body: bytes) -> HistoryFeedback:
    """The feedback in an answer.

    Raises:
        GatewayError: There is none.
    """
    feedback = _feedback(_object(body, "data", "feedback"))
    if feedback is None:
        raise _unreadable(body)
    return feedback


def feedbacks_from(body: bytes) -> list[HistoryFeedback]:
    """All the feedback in an answer; what is none is left out.

    Raises:
        GatewayError: There is no list.
    """
    values = _list(body, "data", "feedback")
    return [feedback for value in values if (feedback := _feedback(value)) is not None]


def acknowledged(body: bytes) -> None:
    """An answer that says only that it is done; one without a body says so too.

    Raises:
        GatewayError: It says that it is not.
    """
    if body.strip():
        _content(body)


def saved_from(body: bytes, sent: Sequence[HistoryMessage]) -> list[HistoryMessage | None]:
    """What the answer to one message says of it: how it is stored.

    Raises:
        GatewayError: It is not.
    """
    return [_stored(_content(body, "data"), sent[0])]


def batch_saved_from(body: bytes, sent: Sequence[HistoryMessage]) -> list[HistoryMessage | None]:
    """What the answer to a batch says of each of its messages: how it is stored, or `None`.

    Gatewayz names those that failed only by the first characters of their content; so what counts
    here is what is stored.

    Raises:
        GatewayError: The batch as a whole failed; or, a retryable `ProtocolError`, the answer does
            not tell which messages did.
    """
    content = _content(body, "data", "saved")
    answer = lenient_json.as_object(content)
    saved: object = content if answer is None else answer.get("saved")
    entries = list(cast("list[object]", saved)) if isinstance(saved, list) else []
    failed = None if answer is None else answer.get("failed")
    failures = len(cast("list[object]", failed)) if isinstance(failed, list) else 0
    counts = answer or {}
    failures = max(failures, _number(counts.get("failure_count")) or 0)
    successes = max(len(entries), _number(counts.get("success_count")) or 0)
    if not failures and successes in (0, len(sent)):
        # Nothing failed. Whatever is said of each: they are in the order in which they were sent.
        entries += [None] * (len(sent) - len(entries))
        return [_stored(entry, message) for entry, message in zip(entries, sent, strict=True)]
    outbox = Outbox(sent)
    outbox.found(_stored(entry, None) for entry in entries)
    if len(outbox.stored) == successes == len(sent) - failures:
        return outbox.answers
    raise ProtocolError(
        "The gateway's answer does not tell which messages of a batch it has stored.",
        retryable=True,
        body=body,
    )


def _stored(entry: object, sent: HistoryMessage | None) -> HistoryMessage:
    """One stored message, as a gateway told of it: whole, in an envelope, or by its id alone."""
    outer = lenient_json.as_object(entry)
    if outer is None:
        outer = {} if entry is None else {"id": entry}
    inner = _inner(outer) or outer
    message = message_from(inner)
    if sent is not None and "content" not in inner:
        message = msgspec.structs.replace(sent, raw=outer)
    ids = {**outer, "inner_id": _id(inner, "id")}
    return msgspec.structs.replace(message, id=_id(ids, "inner_id", "message_id", "id"))


def _inner(entry: dict[str, object]) -> dict[str, object] | None:
    return lenient_json.as_object(entry.get("data")) or lenient_json.as_object(entry.get("message"))


def _session(value: dict[str, object]) -> HistorySession | None:
    session_id = _id(value, "id", "session_id")
    if session_id is None:
        return None
    return HistorySession(
        id=session_id,
        title=_text(value.get("title")) or "",
        model=_text(value.get("model")),
        created_at=_time(value.get("created_at")),
        updated_at=_time(value.get("updated_at")),
        messages=tuple(map(message_from, lenient_json.objects(value.get("messages")))),
        raw=value,
    )


def _feedback(value: dict[str, object]) -> HistoryFeedback | None:
    feedback_id = _id(value, "id", "feedback_id")
    if feedback_id is None:
        return None
    return HistoryFeedback(
        id=feedback_id,
        feedback_type=_text(value.get("feedback_type")) or "",
        session_id=_id(value, "session_id"),
        message_id=_id(value, "message_id"),
        rating=_number(value.get("rating")),
        comment=_text(value.get("comment")),
        created_at=_time(value.get("created_at")),
        raw=value,
    )


def _content(body: bytes, *names: str) -> object:
    """What an answer is about: under the first of `names` that it has, else the answer itself."""
    try:
        value = lenient_json.decode(body)
    except ValueError:
        raise _unreadable(body) from None
    answer = lenient_json.as_object(value)
    if answer is None:
        return value
    for name in names:
        if answer.get(name) is not None:
            return answer[name]
    if answer.get("error"):
        raise error_from_response(200, {}, body, now=0.0)
    if answer.get("success") is False:
        raise InternalServerError(
            "The gateway says that it could not do this; the error's `body` is what it said.",
            status=200,
            retryable=False,
            body=body,
        )
    return answer


def _object(body: bytes, *names: str) -> dict[str, object]:
    content = lenient_json.as_object(_content(body, *names))
    if content is None:
        raise _unreadable(body)
    return content


def _list(body: bytes, *names: str) -> list[dict[str, object]]:
    content = _content(body, *names)
    if not isinstance(content, list):
        raise _unreadable(body)
    return lenient_json.objects(cast("list[object]", content))


def _unreadable(body: bytes) -> ProtocolError:
    return ProtocolError(
        "The gateway's answer is none that its history gives: does it keep one? The error's "
        "`body` is what it sent.",
        body=body,
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _id(value: Mapping[str, object], *names: str) -> int | str | None:
    """The first of `names` that holds an id: a number, or text."""
    for name in names:
        found = value.get(name)
        if isinstance(found, float) and found.is_integer():
            return int(found)
        if isinstance(found, int | str) and not isinstance(found, bool) and found != "":
            return found
    return None


def _number(value: object) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _time(value: object) -> datetime | None:
    """A time as servers write them: ISO 8601, in UTC where it names no zone, or Unix time."""
    try:
        if isinstance(value, str):
            time = datetime.fromisoformat(value.strip())
            return time.replace(tzinfo=UTC) if time.tzinfo is None else time
        if isinstance(value, int | float) and not isinstance(value, bool):
            return datetime.fromtimestamp(value / 1000 if value > 1e12 else value, UTC)
    except (ValueError, OverflowError, OSError):
        pass
    return None


# What is stored, and what is still to be sent


class Stored:
    """What is known to be stored in one session: tells what is new there from what was there.

    A message that was sent and one that was said before may be equal in all but their place: a
    user says "yes" twice. So what is looked for is looked for in what is new alone.

    Args:
        messages: What the session holds; `None` where that is not known.

    Attributes:
        in_doubt: Whether the session must be read before anything is sent: something was sent of
            which no answer told what became of it, or what it holds is not known.

    >>> yes = HistoryMessage(role="user", content="yes", id=1)
    >>> stored = Stored([yes])
    >>> stored.new([yes, HistoryMessage(role="user", content="yes", id=2)])[0].id
    2
    """

    def __init__(self, messages: Iterable[HistoryMessage] | None) -> None:
        self._known = None if messages is None else Counter(map(_identity, messages))
        self.in_doubt = messages is None

    def add(self, messages: Iterable[HistoryMessage]) -> None:
        """An answer told that these are stored now, and nothing else is in doubt."""
        self.in_doubt = False
        for message in messages:
            if message.id is None:
                # What it is called there must be read, next time.
                self._known = None
                self.in_doubt = True
            elif self._known is not None:
                self._known[_identity(message)] += 1

    def new(self, messages: Sequence[HistoryMessage]) -> list[HistoryMessage]:
        """The session was read and holds `messages`: those of them that were not known."""
        known = self._known
        self._known = Counter(map(_identity, messages))
        self.in_doubt = False
        if known is None:
            return []
        new: list[HistoryMessage] = []
        for message in messages:
            identity = _identity(message)
            if known[identity]:
                known[identity] -= 1
            else:
                new.append(message)
        return new


def _identity(message: HistoryMessage) -> object:
    if message.id is not None:
        return str(message.id)
    return message.role, message.content, message.created_at


class Outbox:
    """Messages on their way into one session: which of them are stored, and which are not yet.

    >>> outbox = Outbox([HistoryMessage(role="user", content=text) for text in ("yes", "yes")])
    >>> outbox.found([HistoryMessage(role="user", content="yes", id=7)])
    >>> len(outbox.pending), outbox.stored[0].id
    (1, 7)
    """

    def __init__(self, messages: Iterable[HistoryMessage]) -> None:
        self._messages = tuple(messages)
        self.answers: list[HistoryMessage | None] = [None] * len(self._messages)
        """For each message how it is stored, or `None`."""

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def pending(self) -> list[HistoryMessage]:
        """What is to be sent, in order."""
        pairs = zip(self._messages, self.answers, strict=True)
        return [message for message, answer in pairs if answer is None]

    @property
    def stored(self) -> list[HistoryMessage]:
        """What is stored, as the gateway has it, in the order in which it was sent."""
        return [answer for answer in self.answers if answer is not None]

    def answered(self, answers: Iterable[HistoryMessage | None]) -> None:
        """What was said of each message that was pending: how it is stored, or `None`."""
        waiting = [place for place, answer in enumerate(self.answers) if answer is None]
        for place, answer in zip(waiting, answers, strict=True):
            self.answers[place] = answer

    def found(self, stored: Iterable[HistoryMessage]) -> None:
        """These are stored, it is not said in place of which: find them among what is pending.

        The time that we gave a message tells it from its equals; where a gateway sets a time of its
        own they are told by their order.
        """
        left = list(stored)
        for same in (_same_time, _same_text):
            for place, message in enumerate(self._messages):
                if self.answers[place] is not None:
                    continue
                for number, other in enumerate(left):
                    if same(message, other):
                        self.answers[place] = left.pop(number)
                        break


def _same_text(one: HistoryMessage, other: HistoryMessage) -> bool:
    # Some gateways trim what they store.
    return one.role == other.role and one.content.strip() == other.content.strip()


def _same_time(one: HistoryMessage, other: HistoryMessage) -> bool:
    return one.created_at == other.created_at is not None and _same_text(one, other)
