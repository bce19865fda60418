"""What an answer says, as its bytes come: decoded, compared with what was delivered, handed on.

Called by whatever reads the connection, for each piece of each stream: so nothing here waits, and
the usual event, some more text, takes the shortest way through.
"""

from __future__ import annotations

from math import inf
from time import perf_counter_ns
from typing import Literal, Protocol

import trio

from .._protocol.apis import RESPONSES
from .._protocol.chat import MessageBuilder
from .._protocol.decoding import DONE, Item
from .._protocol.errors import (
    APIConnectionError,
    EmptyResponseError,
    GatewayError,
    StreamTimeout,
)
from .._protocol.events import (
    Delta,
    Finished,
    Paused,
    RateLimited,
    RawEvent,
    Restarted,
    Resumed,
    Usage,
)
from .._protocol.resumption import Resumption
from .._protocol.settings import Timeouts
from .._protocol.sse import EventStreamDecoder, ServerSentEvent
from .attempts import Attempt, Timing
from .buffer import EventBuffer
from .recovering import Recovering
from .telemetry import ReplyTelemetry

GOODBYE_SECONDS = 1.0


class ErrorFrame(Exception):
    """The answer ended in `error`, a frame of the stream."""

    def __init__(self, error: GatewayError) -> None:
        self.error = error


class Owner(Protocol):
    """Whose answers are taken."""

    def answer_stopped(self, error: BaseException | None) -> None:
        """An answer is over; as `BodyConsumer.stopped`."""
        ...

    def reader_has_room(self) -> None:
        """The buffer was full, and is no longer."""
        ...


class Taking:
    """Fills a buffer with what is new in the answers to one reply's attempts.

    For each attempt `begin`, then as a `BodyConsumer`, or `take_completion`; then `finish`.

    Args:
        resumption: Knows what was delivered.
        recovering: Is told what becomes of the reply.
        timeouts: How long an answer may be silent.
        buffer: What is filled.
        telemetry: Is told too.
        owner: Is told when an answer is over, and when it may go on.
    """

    __slots__ = (
        "_arrived_ns", "_attempt", "_buffer", "_clock", "_events", "_first_token_by",
        "_full_since", "_heard", "_owner", "_paused_at", "_reasoning", "_recovering", "_resumption",
        "_telemetry", "_timeouts", "_total_by", "done", "last_usage", "timing", "total_left",
    )  # fmt: skip

    def __init__(
        self,
        resumption: Resumption,
        recovering: Recovering,
        *,
        timeouts: Timeouts,
        buffer: EventBuffer,
        telemetry: ReplyTelemetry,
        owner: Owner,
    ) -> None:
        self._resumption = resumption
        self._recovering = recovering
        self._timeouts = timeouts
        self._buffer = buffer
        self._telemetry = telemetry
        self._owner: Owner | None = owner
        self._clock = trio.lowlevel.current_clock()
        self._arrived_ns = 0
        self._paused_at: float | None = None
        self.timing = Timing(self._clock.current_time())
        self._reasoning: MessageBuilder | None = None
        self.last_usage: Usage | None = None
        self.total_left = timeouts.total
        """Seconds that are left of the time for the whole reply."""

    def begin(self, attempt: Attempt) -> None:
        """An attempt is about to be sent."""
        self._attempt = attempt
        self._events = EventStreamDecoder()
        self._heard: float | None = None  # When bytes came last.
        self._first_token_by = attempt.started + (self._timeouts.first_token or inf)
        self._total_by = attempt.started + (inf if self.total_left is None else self.total_left)
        self._full_since: float | None = None
        self.done = False
        """Whether the stream said that it is, and the reader was told."""

    def answer(self, message: dict[str, object]) -> list[dict[str, object]]:
        """What the next turn sends back of the answer whose deltas make `message`."""
        if self._reasoning is not None:
            # All of one answer: signatures in them hold for that one alone.
            message |= {"reasoning_details": self._reasoning.message["reasoning_details"]}
        return self._resumption.api.answer(self._resumption.decoder.output, message)

    def message(self, message: dict[str, object]) -> dict[str, object]:
        """The same, where it is one message; else `message` as it is."""
        return message if self._resumption.api is RESPONSES else self.answer(message)[0]

    # Deadlines

    def deadline(self) -> float:
        """When the next bytes have to be here, in seconds on Trio's clock."""
        if self.done:
            return (self._heard or 0.0) + GOODBYE_SECONDS
        if self._heard is None:
            return min(self._first_token_by, self._total_by)
        return min(self._heard + (self._timeouts.between_tokens or inf), self._total_by)

    def has_room(self) -> bool:
        """Whether the reader had enough, and wants more now. His time is not the gateway's."""
        if self._full_since is None:
            return False
        seconds = self._clock.current_time() - self._full_since
        self._full_since = None
        self._heard = self._clock.current_time()
        self._total_by += seconds
        if self.total_left is not None:
            self.total_left += seconds
        return True

    def too_late(self) -> StreamTimeout:
        """The deadline has passed."""
        which: Literal["first_token", "between_tokens"]
        timeouts = self._timeouts
        if self._total_by <= self.deadline():
            message = f"the reply was not complete after {timeouts.total:g} s"
            return StreamTimeout(message, which="total", retryable=False)
        if self._heard is None:
            which, message = "first_token", f"no first token came within {timeouts.first_token:g} s"
        else:
            which = "between_tokens"
            message = f"no next token came within {timeouts.between_tokens:g} s"
        return StreamTimeout(message, which=which)

    def stopped(self, error: BaseException | None) -> None:
        """The answer is over; see `BodyConsumer`."""
        if self._owner is not None:
            self._owner.answer_stopped(error)

    def part(self) -> None:
        """The reply's block has been left: the owner is told nothing any more.

        It keeps this; kept by it in turn, only the garbage collector could take the two.
        """
        self._owner = None

    # What came

    def receive(self, data: bytes, arrived_ns: int) -> bool:
        """Take bytes of the event stream; see `BodyConsumer`.

        Raises:
            ErrorFrame: The stream says that the answer has failed.
            SinkRaised: The reader's sink did.
            ProtocolError, CannotResume, StartedOver, Diverged: It is not to be read on.
        """
        self._arrived_ns = arrived_ns
        resumption = self._resumption
        if resumption.open_text is not None and (texts := self._events.split(data)) is not None:
            deltas = resumption.decoder.decode_texts(texts)
            if deltas is not None:
                self._heard = now = self._clock.current_time()
                resumption.append(deltas)
                self._attempt.tokens += len(deltas)
                self.timing.tokens_came(now, len(deltas))
                return self._buffer.put_texts(deltas, arrived_ns) and self._is_full()
            events = [ServerSentEvent("message", text) for text in texts]
        elif self.done:
            return False
        else:
            events = self._events.feed(data)
        self._heard = self._clock.current_time()
        for event in events:
            if self._take_event(event):
                return self._is_done()
        return self._buffer.full and self._is_full()

    def _is_full(self) -> bool:
        self._full_since = self._clock.current_time()
        if self._owner is not None:
            self._buffer.on_room = self._owner.reader_has_room
        return True

    def _is_done(self) -> bool:
        """The reader has its end now.

        What remains is the end of the body, which comes with the last event or not at all, and
        lets the connection be used again.
        """
        self.finish()
        self.done = True
        return False

    def take_completion(self, body: bytes) -> None:
        """Take a whole completion, which servers send that ignore `stream`. Raises as `receive`."""
        self._heard = self._clock.current_time()
        self._arrived_ns = perf_counter_ns()
        self._begin_answer(None, body)
        self._take(self._resumption.decoder.decode_completion(body), len(body))

    def _begin_answer(self, event: ServerSentEvent | None, data: bytes) -> None:
        if not self._resumption.begin(event):
            return
        self._telemetry.answered(data)
        self._attempt.resumed_by = self._resumption.way
        if self._attempt.resumed_by in ("replay", None):
            self._reasoning = None

    def _take_event(self, event: ServerSentEvent) -> bool:
        """Give the reader what is new in `event`. Whether the stream said that it is done."""
        resumption = self._resumption
        if resumption.api.identified is not None:
            event = resumption.api.identified(event)
        if not resumption.begun:
            self._begin_answer(event, event.data)
        if resumption.begun and resumption.is_repeat(event):
            self._accept()
            return False
        items = resumption.decoder.decode(event)
        try:
            done = self._take(items, len(event.data))
        except ErrorFrame:
            if not isinstance(items[0], GatewayError):
                resumption.passed(event)
            raise
        if items:
            resumption.passed(event)
        return done

    def _take(self, items: tuple[Item, ...], size: int) -> bool:
        for item in items:
            if isinstance(item, GatewayError):
                raise ErrorFrame(item)
            if item is DONE:
                return True
            self._accept()
            if isinstance(item, RawEvent):
                if (event := self._resumption.new_event(item)) is not None:
                    self._buffer.put(event, 0, size)
                continue
            self._attempt.tokens += bool(item.text or item.reasoning or item.tool_calls)
            if item.reasoning_details:
                self._reasoning = self._reasoning or MessageBuilder()
                self._reasoning.feed(Delta(reasoning_details=item.reasoning_details))
            parts = self._resumption.new_parts(item)
            for part in parts:
                self._give(part, size if len(parts) == 1 else None)
        return False

    def _accept(self) -> None:
        if not self._attempt.accepted:
            self._attempt.accepted = True
            self._recovering.accepted()

    def _give(self, part: Delta | Restarted, size: int | None = None) -> None:
        if isinstance(part, Restarted):
            self._recovering.restarted()
            self._tell(part)
            return
        now = self._clock.current_time() if self._heard is None else self._heard
        self.last_usage = part.usage or self.last_usage
        if self._unpause(now):
            self._tell(Resumed())
        if part.text or part.reasoning or part.tool_calls:
            self._recovering.progressed()
            is_first = self.timing.first_token is None
            self.timing.tokens_came(now)
            if is_first:
                self._telemetry.first_token(now - self.timing.started)
        self._buffer.put(part, self._arrived_ns, len(part.raw) if size is None else size)

    def finish(self) -> None:
        """The response has ended: is the reply whole? Then the reader has it.

        Raises:
            APIConnectionError: It was cut.
            EmptyResponseError: It holds nothing.
            SinkRaised, StartedOver, Diverged: As for `receive`.
        """
        resumption = self._resumption
        if not resumption.decoder.complete:
            resumption.ended_early(None)
            raise APIConnectionError("the connection was closed before the reply was complete")
        if not resumption.content and resumption.finish_reason in ("stop", None):
            raise EmptyResponseError("the model's answer is empty: no text and no tool call")
        for part in resumption.end():
            self._give(part)
        self._buffer.put(Finished(resumption.finish_reason, self.last_usage))
        self.end(None)

    def end(self, error: BaseException | None) -> None:
        """The reply is over; the first time counts."""
        if self._buffer.end(error):
            now = self._clock.current_time()
            self._unpause(now)
            self.timing.ended = now - self.timing.started
            self._telemetry.ended(
                error,
                self.timing,
                finish_reasons=self._resumption.finish_reasons,
                usage=self.last_usage,
            )

    # Pauses

    def pause(self, event: Paused | RateLimited) -> None:
        """The reply waits, for the reason that `event` tells."""
        if self._paused_at is None:
            self._paused_at = self._clock.current_time()
        self._tell(event)

    def _tell(self, event: Paused | RateLimited | Resumed | Restarted) -> None:
        self._telemetry.announced(event)
        self._buffer.put(event)

    def _unpause(self, now: float) -> bool:
        if self._paused_at is None:
            return False
        self.timing.was_paused(now - self._paused_at)
        self._paused_at = None
        return True
