"""A reader of a turn is told what it has not seen, whenever it looks, and nothing twice."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gz_trio import Delta, Finished, Paused, RateLimited, RawEvent, ReplyEvent, Restarted, Resumed
from gz_trio.proxy._page_turns import (
    Asked,
    Complete,
    End,
    Failed,
    GoesOn,
    News,
    Said,
    Seen,
    StartsOver,
    Stopped,
    Turn,
    Waits,
)

ASKED = Asked("1", None, "a-model", "Hello?")

EVENTS = st.one_of(
    st.builds(Delta, text=st.text(max_size=3), reasoning=st.text(max_size=3)),
    st.sampled_from(
        [
            Paused("refresh"),
            Paused("reconnect"),
            RateLimited(2.5),
            Resumed(),
            Restarted(),
            RawEvent("ping", b""),
            Finished("stop", None),
        ]
    ),
)

ENDS: list[End] = [Complete("1", "7", "stop"), Stopped("1"), Failed("1", "No.", sign_in=False)]


@dataclass
class Page:
    """What a page makes of the news of one turn."""

    seen: Seen = field(default_factory=Seen)
    asked: Asked | None = None
    text: str = ""
    reasoning: str = ""
    waits: Waits | None = None
    end: News | None = None

    def look(self, turn: Turn) -> None:
        for news in turn.news(self.seen):
            assert self.end is None, "there is nothing after the end"
            match news:
                case Asked():
                    assert self.asked is None
                    self.asked = news
                case Said(_, text, reasoning):
                    assert text or reasoning
                    self.text += text
                    self.reasoning += reasoning
                case StartsOver():
                    self.text = self.reasoning = ""
                case Waits():
                    self.waits = news
                case GoesOn():
                    self.waits = None
                case _:
                    self.end = news


def waits_after(events: list[ReplyEvent]) -> Waits | None:
    for event in reversed(events):
        match event:
            case Resumed():
                return None
            case Paused(reason):
                return Waits("1", reason)
            case RateLimited(seconds):
                return Waits("1", "rate_limit", seconds)
            case _:
                pass
    return None


@given(st.lists(st.tuples(EVENTS, st.booleans())), st.sampled_from(ENDS))
def test_however_often_a_reader_looks_it_has_the_answer_in_the_end(
    events: list[tuple[ReplyEvent, bool]], end: End
) -> None:
    turn = Turn(ASKED, tab="a")
    often, once = Page(), Page()
    for event, looks in events:
        turn.add(event)
        if looks:
            often.look(turn)
    turn.end = end
    often.look(turn)
    once.look(turn)
    restart = max((at for at, (event, _) in enumerate(events) if event == Restarted()), default=0)
    counts = [event for event, _ in events[restart:] if isinstance(event, Delta)]
    for page in (often, once):
        assert page.asked == ASKED
        assert page.text == "".join(event.text for event in counts)
        assert page.reasoning == "".join(event.reasoning for event in counts)
        assert page.waits == waits_after([event for event, _ in events])
        assert page.end == end
    often.look(turn)  # is told nothing more, or the page would complain


@pytest.mark.parametrize(
    ("event", "news"),
    [
        (Delta(text="a", reasoning="b"), Said("1", "a", "b")),
        (Paused("refresh"), Waits("1", "refresh")),
        (Paused("reconnect"), Waits("1", "reconnect")),
        (RateLimited(2.5), Waits("1", "rate_limit", 2.5)),
        (Delta(finish_reason="stop"), None),
        (RawEvent("ping", b""), None),
        (Finished("stop", None), None),
    ],
)
def test_what_a_reader_is_told_of_an_event(event: ReplyEvent, news: News | None) -> None:
    turn = Turn(ASKED, tab="a")
    seen = Seen()
    assert list(turn.news(seen)) == [ASKED]
    turn.add(event)
    assert list(turn.news(seen)) == ([] if news is None else [news])


def test_a_pause_that_was_over_before_a_reader_looked_is_not_told() -> None:
    turn = Turn(ASKED, tab="a")
    turn.add(Paused("refresh"))
    turn.add(Resumed())
    assert list(turn.news(Seen())) == [ASKED]


def test_whoever_wants_the_outcome_alone_is_told_it_once() -> None:
    turn = Turn(ASKED, tab="a")
    seen = Seen()
    turn.add(Delta(text="a"))
    assert list(turn.outcome(seen)) == []
    turn.end = Stopped("1")
    assert list(turn.outcome(seen)) == [Stopped("1")]
    assert list(turn.outcome(seen)) == []
