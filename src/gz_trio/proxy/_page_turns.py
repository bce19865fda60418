"""The turns of the page's chats, and how a reader is told of them: by what it has not seen yet.

Nothing is queued for a reader, however slow: it keeps how far it has come (`Seen`), and what it is
told is worked out from the turn when it looks again. So a reader that comes late, in the middle of
an answer, is told the same as one that was there from the beginning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from .. import (
    Delta,
    Paused,
    RateLimited,
    ReplyEvent,
    Restarted,
    Resumed,
)


class News(msgspec.Struct, frozen=True, tag_field="event"):
    """Something that the page is told, as a JSON object; `event` says what."""


class Asked(News, frozen=True, tag="asked"):
    """A question was asked; the answer to it follows.

    Args:
        turn: The turn's id; the tab that asked has made it up.
        session: The session that it belongs to; `None` for one that is about to begin.
        model: Who is asked.
        question: The user's words.
    """

    turn: str
    session: str | None
    model: str
    question: str


class Said(News, frozen=True, tag="delta"):
    """More of the answer."""

    turn: str
    text: str
    reasoning: str


class Waits(News, frozen=True, tag="paused"):
    """The answer waits: for a new key, for a connection, or because the gateway said so.

    Args:
        turn: Which one.
        reason: Why.
        seconds: How long, where that is known.
    """

    turn: str
    reason: str
    seconds: float | None = None


class GoesOn(News, frozen=True, tag="resumed"):
    """The answer goes on."""

    turn: str


class StartsOver(News, frozen=True, tag="restarted"):
    """What was said of the answer so far does not count."""

    turn: str


class Complete(News, frozen=True, tag="finished"):
    """The answer is complete.

    Args:
        turn: Which one.
        session: Where the turn is saved; `None` where it is not.
        finish_reason: Why the model stopped.
        unsaved: Why the turn is not saved, though it should be.
    """

    turn: str
    session: str | None
    finish_reason: str | None
    unsaved: str | None = None


class Stopped(News, frozen=True, tag="stopped"):
    """Whoever asked has left; the turn is not saved."""

    turn: str


class Failed(News, frozen=True, tag="error"):
    """There will be no more of the answer; the turn is not saved.

    Args:
        turn: Which one.
        message: Why, in words for the user.
        sign_in: Whether signing in again would help.
    """

    turn: str
    message: str
    sign_in: bool


End = Complete | Stopped | Failed


@dataclass(slots=True)
class Seen:
    """How far a reader of a turn has come."""

    asked: bool = False
    restarts: int = 0
    text: int = 0
    reasoning: int = 0
    waits: Waits | None = None
    end: End | None = None


class Turn:
    """A question, and the answer as far as it has come.

    Args:
        asked: The question.
        tab: The tab that it was asked in.

    >>> turn = Turn(Asked("1", None, "a-model", "Hello?"), tab="")
    >>> turn.add(Delta(text="Hel"))
    >>> seen = Seen()
    >>> [news.__class__.__name__ for news in turn.news(seen)]
    ['Asked', 'Said']
    >>> turn.add(Delta(text="l"))
    >>> turn.add(Delta(text="o!"))
    >>> list(turn.news(seen))
    [Said(turn='1', text='lo!', reasoning='')]
    """

    __slots__ = ("_reasoning", "_restarts", "_text", "_waits", "asked", "end", "tab")

    def __init__(self, asked: Asked, *, tab: str) -> None:
        self.asked = asked
        self.tab = tab
        self.end: End | None = None
        self._text = ""
        self._reasoning = ""
        self._restarts = 0
        self._waits: Waits | None = None

    def add(self, event: ReplyEvent) -> None:
        """Something came of the answer."""
        match event:
            case Delta():
                self._text += event.text
                self._reasoning += event.reasoning
            case Paused(reason):
                self._waits = Waits(self.asked.turn, reason)
            case RateLimited(wait):
                self._waits = Waits(self.asked.turn, "rate_limit", wait)
            case Resumed():
                self._waits = None
            case Restarted():
                self._text = self._reasoning = ""
                self._restarts += 1
            case _:
                pass

    def news(self, seen: Seen) -> Iterator[News]:
        """What a reader is told that has come as far as `seen`, which is moved on."""
        turn = self.asked.turn
        if not seen.asked:
            seen.asked = True
            seen.restarts = self._restarts
            yield self.asked
        if seen.restarts != self._restarts:
            seen.restarts = self._restarts
            seen.text = seen.reasoning = 0
            yield StartsOver(turn)
        text, reasoning = self._text[seen.text :], self._reasoning[seen.reasoning :]
        if text or reasoning:
            seen.text += len(text)
            seen.reasoning += len(reasoning)
            yield Said(turn, text, reasoning)
        if seen.waits != self._waits:
            seen.waits = self._waits
            yield self._waits or GoesOn(turn)
        yield from self.outcome(seen)

    def outcome(self, seen: Seen) -> Iterator[News]:
        """Of `news`, the end alone."""
        if seen.end is None and self.end is not None:
            seen.end = self.end
            yield self.end
