"""What all tabs of the page are told: the signed-in state, sessions that changed, others' turns."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio

from .. import Authenticator
from ._page_turns import Asked, News, Seen, Stopped, Turn

_MOST_ENDED = 64


class Account(News, frozen=True, tag="account"):
    """The signed-in state.

    Args:
        status: `AuthStatus`, as text.
        epoch: Keys of two epochs may belong to two accounts; `None` where there is no key.
        message: Why there is no key that works.
    """

    status: str
    epoch: int | None
    message: str | None


class Changed(News, frozen=True, tag="changed"):
    """These sessions are not what they were, or are new, or no more."""

    sessions: list[str]


@dataclass(slots=True)
class Reader:
    """How far a tab has come.

    Args:
        tab: Its id; it reads its own turns elsewhere.
    """

    tab: str
    account: Account | None = None
    revision: int | None = None
    turns: dict[Turn, Seen] = field(default_factory=dict[Turn, Seen])


class Board:
    """Holds the turns that run, and some that have ended; wakes whoever waits for news.

    Args:
        authenticator: Whose state is told.

    Attributes:
        closed: Whether readers are to leave.
    """

    def __init__(self, authenticator: Authenticator) -> None:
        self.closed = False
        self._authenticator = authenticator
        self._turns: list[Turn] = []
        self._revision = 0
        self._changed: dict[str, int] = {}
        self._news = trio.Event()

    @property
    def next_news(self) -> trio.Event:
        """Set when there is more to see. Take it first, then look, then wait for it."""
        return self._news

    def tell(self) -> None:
        """There is something new to see."""
        self._news.set()
        self._news = trio.Event()

    def tell_change(self, session: str) -> None:
        """A session in the history is not what it was."""
        self._revision += 1
        self._changed[session] = self._revision
        self.tell()

    def close(self) -> None:
        """Have all readers leave."""
        self.closed = True
        self.tell()

    # Turns

    @contextmanager
    def open_turn(self, asked: Asked, *, tab: str) -> Generator[Turn]:
        """A turn that runs for as long as the block does."""
        turn = Turn(asked, tab=tab)
        self._turns.append(turn)
        self.tell()
        try:
            yield turn
        finally:
            if turn.end is None:
                turn.end = Stopped(asked.turn)
            # A tab whose stream was interrupted is told, when it is back, what became of its turn.
            ended = [turn for turn in self._turns if turn.end is not None]
            for old in ended[:-_MOST_ENDED]:
                self._turns.remove(old)
            self.tell()

    async def wait_for(self, turn: Turn) -> None:
        """Wait until the turns before this one in its session are over."""
        while True:
            news = self._news
            before = self._turns[: self._turns.index(turn)]
            session = turn.asked.session
            if session is None or all(
                other.end is not None or other.asked.session != session for other in before
            ):
                return
            await news.wait()

    # What a reader is told

    def news(self, reader: Reader) -> Iterator[News]:
        """What a tab is told that has come as far as `reader`, which is moved on."""
        account = self._account()
        if reader.account != account:
            reader.account = account
            yield account
        reader.turns = {turn: reader.turns.get(turn) or Seen() for turn in self._turns}
        for turn, seen in reader.turns.items():
            own = turn.tab == reader.tab or turn.asked.session is None
            over = turn.end is not None and not seen.asked
            yield from turn.outcome(seen) if own or over else turn.news(seen)
        if reader.revision is None:
            reader.revision = self._revision  # It reads the sessions when it comes.
        if reader.revision != self._revision:
            since, reader.revision = reader.revision, self._revision
            yield Changed([name for name, when in self._changed.items() if when > since])

    def _account(self) -> Account:
        state = self._authenticator.state
        return Account(
            state.status.value,
            None if state.key is None else state.key.epoch,
            None if state.error is None else str(state.error),
        )
