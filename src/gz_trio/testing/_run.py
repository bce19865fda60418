"""A run of the model: the events of a streamed answer, made token by token, kept where asked."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from .._protocol.events import Delta
from ._chunks import marked
from ._formats import Format

_MOST_KEPT = 10_000


class Run:
    """One run of the model, in steps: a step for each token, and one for the end.

    Args:
        maker: Makes the events.
        tokens: The answer's.
        endings: Deltas without text that come after them.
        echo: What comes before them, though the model did not make it.
        ids: What each event's id begins with, before its number; `None`: events have no ids.
        kept: Whether steps can be had again.

    Attributes:
        format: What makes the events.
        mark: What each token from here on begins with.
        made: How many steps were made.
        stopped: Whether no further step is to be made.
    """

    def __init__(
        self,
        maker: Format,
        tokens: Sequence[Delta],
        endings: Sequence[Delta],
        *,
        echo: Sequence[Delta] = (),
        ids: str | None = None,
        kept: bool = False,
    ) -> None:
        self.format = maker
        self.tokens = tokens
        self.mark = ""
        self.made = 0
        self.stopped = False
        self._endings = endings
        self._echo = echo
        self._ids = ids
        self._kept: list[list[bytes]] | None = [] if kept else None
        self._events = 0
        self._events_before: list[int] = []  # each step's first event; kept with it

    def events(self, step: int) -> list[bytes]:
        """The events of a step: a kept one, or the next, which is made now."""
        if self._kept is not None and step < self.made:
            return self._kept[step]
        events = self._of(self._echo) if step == 0 else []
        if step < len(self.tokens):
            events += self._of([marked(self.tokens[step], self.mark)])
            self.format.completion_tokens += 1
        else:
            events += self.format.end(self._endings)
        if self._kept is not None:
            self._kept.append(events)
            self._events_before.append(self._events)
        if self._ids is not None:
            events[:] = [
                f"id: {self._ids}{number}\n".encode() + event
                for number, event in enumerate(events, self._events + 1)
            ]
        self._events += len(events)
        self.made = step + 1
        return events

    @property
    def kept_steps(self) -> list[list[bytes]]:
        """The events of the steps that can be had again."""
        return self._kept or []

    def whole(self) -> bytes:
        """The whole answer in one piece, in place of all steps."""
        tokens = [marked(delta, self.mark) for delta in self.tokens]
        self.format.completion_tokens = len(tokens)
        return self.format.whole([*self._echo, *tokens, *self._endings])

    def _of(self, deltas: Sequence[Delta]) -> list[bytes]:
        return [event for delta in deltas for event in self.format.events(delta)]

    def place_after(self, number: int) -> Place | None:
        """Where the stream goes on after this many events; `None` if it has not so many yet."""
        if number > self._events:
            return None
        if number == self._events:
            return Place(self.made, 0)
        step = bisect_right(self._events_before, number) - 1
        return Place(step, number - self._events_before[step])


@dataclass(frozen=True, slots=True)
class Place:
    """From where on a stream is sent: the step, and how many of that step's events not."""

    step: int = 0
    skip: int = 0


@dataclass(slots=True)
class KeptRuns:
    """The last runs whose events have ids, each for the request's body that it answers."""

    _runs: dict[str, tuple[bytes, Run]] = field(default_factory=dict[str, tuple[bytes, Run]])

    def keep(self, name: str, body: Mapping[str, object], run: Run) -> None:
        """Keep a run whose events' ids are `{name}-1`, `{name}-2` and so on."""
        if len(self._runs) >= _MOST_KEPT:
            del self._runs[next(iter(self._runs))]
        self._runs[name] = (canonical(body), run)

    def find(self, body: Mapping[str, object], event_id: str) -> tuple[Run, Place] | None:
        """The run that had this event, and where it goes on; only for the body that it is for."""
        name, _, number = event_id.rpartition("-")
        kept_body, run = self._runs.get(name, (b"", None))
        if run is None or kept_body != canonical(body):
            return None
        if not (number.isascii() and number.isdecimal()):
            return None
        place = run.place_after(int(number))
        return None if place is None else (run, place)

    def forget(self) -> None:
        """Keep none of them any longer."""
        self._runs.clear()


def canonical(body: Mapping[str, object]) -> bytes:
    """What two requests have in common whose bodies mean the same."""
    return msgspec.json.encode(body, order="deterministic")
