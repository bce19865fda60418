"""What was delivered of a reply, and the matching of a second answer against it.

A broken reply is asked for again. Where the second answer begins anew, whatever of it the reader
has already got is swallowed, character by character, however the server cuts it into chunks this
time; where it continues the first one, only the whitespace that was not sent along is. Text,
reasoning and each tool call are matched apart, per choice: servers interleave them freely. At the
first difference, or where the second answer ends before the first one's length, the reply has
diverged.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from .events import Delta, RawEvent, ToolCallDelta

Channel = tuple[int, str, int]
"""A stream of characters within a reply: choice, what it holds, index of the tool call."""


_FIRST_TEXT: Channel = (0, "text", 0)

# So many characters in a row are no coincidence.
_ENOUGH_TO_TELL = 32


class Diverged(Exception):
    """The second answer is another one than the first."""


class _Received:
    """The characters of one channel: those delivered, and how far this attempt has repeated them.

    Pieces are joined only when an attempt begins, so that a reply that never breaks pays nothing.
    """

    __slots__ = ("expected", "kept", "matched", "pieces")

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.kept = 0  # Characters that came before the answer which is being received.
        self.expected = ""
        self.matched = 0

    @property
    def text(self) -> str:
        """All that was delivered."""
        if len(self.pieces) > 1:
            self.pieces[:] = ["".join(self.pieces)]
        return self.pieces[0]

    def rewind(self, kept: int = 0) -> None:
        """An answer comes that repeats what was delivered after the first `kept` characters."""
        self.kept = kept
        self.expected = self.text[kept:]
        self.matched = 0

    def new_part(self, text: str) -> str:
        """What of `text` was not delivered yet; it counts as delivered from now on."""
        if self.matched < len(self.expected):
            known = self.expected[self.matched : self.matched + len(text)]
            if not text.startswith(known):
                raise Diverged
            self.matched += len(known)
            text = text[len(known) :]
        if text:
            self.pieces.append(text)
        return text

    @property
    def behind(self) -> bool:
        return self.matched < len(self.expected)


class Delivered:
    """What the reader of one reply has got, over all attempts.

    >>> delivered = Delivered()
    >>> delivered.new_part(Delta(text="Once upon")).text
    'Once upon'
    >>> delivered.begin_attempt()
    >>> delivered.new_part(Delta(text="Once "))  # swallowed
    >>> delivered.new_part(Delta(text="upon a time")).text
    ' a time'
    """

    __slots__ = (
        "_finish_reasons", "_first_text", "_held_back", "_last_kind", "_others", "_raw_events",
        "_raw_events_repeated", "_reasoning_is_over", "_tool_calls", "repeated", "repeating",
    )  # fmt: skip

    def __init__(self) -> None:
        # Most replies are one text, which streams for long: all else is made when it comes.
        self._first_text: _Received | None = None
        self._others: dict[Channel, _Received] | None = None
        self._finish_reasons: dict[int, str] | None = None
        self._tool_calls: set[tuple[int, int]] | None = None
        self._raw_events: dict[RawEvent, int] | None = None
        self._raw_events_repeated: dict[RawEvent, int] | None = None
        self._held_back: list[Delta] | None = None
        self._reasoning_is_over = False
        self._last_kind = ""
        self.repeating = False
        self.repeated = 0  # Characters that came once more, over all attempts.

    @property
    def _channels(self) -> dict[Channel, _Received]:
        """All that were begun."""
        first = {} if self._first_text is None else {_FIRST_TEXT: self._first_text}
        return first | (self._others or {})

    @property
    def content(self) -> bool:
        """Whether text, reasoning or a tool call was delivered."""
        return bool(self._first_text or self._others or self._tool_calls)

    @property
    def finish_reasons(self) -> list[str]:
        """The finish reason of each choice that has one, in the choices' order."""
        held = {delta.choice: delta.finish_reason or "" for delta in self._held_back or ()}
        return [reason for _, reason in sorted((held | (self._finish_reasons or {})).items())]

    @property
    def tool_calls(self) -> bool:
        """Whether a tool call was delivered, or the beginning of one."""
        return bool(self._tool_calls)

    @property
    def open_text(self) -> list[str] | None:
        """The pieces of the first choice's text, if more text is simply to be added to them.

        That is so where text came last, and nothing that came before bears on what comes next.
        """
        if self.repeating or self._finish_reasons or self._last_kind != "text":
            return None
        return None if self._first_text is None else self._first_text.pieces

    @property
    def characters(self) -> int:
        """How many characters an answer that begins anew has to repeat."""
        return sum(len(received.text) for received in self._channels.values())

    @property
    def continuable_text(self) -> str:
        """The text that a model can go on from, without the whitespace at its end.

        Some servers reject that whitespace, and templates trim it. Empty where there is more to
        the reply so far than one text: then the text is not all that the model would go on from.
        """
        others = any(
            choice or kind not in ("text", "reasoning") for choice, kind, _ in self._others or ()
        )
        if others or self._tool_calls or self._finish_reasons or self._last_kind != "text":
            return ""
        return "" if self._first_text is None else self._first_text.text.rstrip()

    def begins_with(self, deltas: Sequence[Delta]) -> bool | None:
        """Whether `deltas` say again what the answer began with; `None` where it is too early.

        Args:
            deltas: What comes next, in a stream that was taken up.
        """
        texts: dict[Channel, str] = {}
        for delta in deltas:
            if delta.tool_calls:
                return False
            for kind, text in (("text", delta.text), ("reasoning", delta.reasoning)):
                channel = (delta.choice, kind, 0)
                if text:
                    texts[channel] = texts.get(channel, "") + text
        if not texts:  # The end of an answer is no beginning.
            return False if any(delta.finish_reason for delta in deltas) else None
        enough, channels = False, self._channels
        for channel, text in texts.items():
            received = channels.get(channel)
            begin = "" if received is None else received.text[received.kept :]
            length = min(len(text), len(begin), _ENOUGH_TO_TELL)
            if not begin or text[:length] != begin[:length]:
                return False
            enough = enough or length == min(len(begin), _ENOUGH_TO_TELL)
        return True if enough else None

    def begin_attempt(self) -> None:
        """The same request was sent again: what follows begins anew."""
        self._reasoning_is_over = False
        self._held_back = None
        self.repeating = self.content or bool(self._finish_reasons)
        self._raw_events_repeated = None
        for channel in self._channels.values():
            channel.rewind()

    def begin_continuation(self, *, echo: bool) -> None:
        """The model was given `continuable_text` to go on from.

        Args:
            echo: Whether that comes first once more.
        """
        # Thoughts of a second run do not lead to the text of the first.
        channels = self._channels
        # What begins a message, a block or an item begins it again; the rest goes on.
        came = self._raw_events_repeated or {}
        self._raw_events_repeated = {event: times for event, times in came.items() if event.data}
        self._reasoning_is_over = (0, "reasoning", 0) in channels
        text = channels[_FIRST_TEXT]
        text.rewind(0 if echo else len(self.continuable_text))
        self.repeating = text.behind

    def restart(self) -> None:
        """The reader drops what it has."""
        self._first_text = self._others = None
        self._finish_reasons = self._tool_calls = None
        self._raw_events = self._raw_events_repeated = None
        self._held_back = None
        self._reasoning_is_over = False
        self._last_kind = ""
        self.repeating = False

    def is_new(self, event: RawEvent) -> bool:
        """Whether the reader has not got this event yet; an answer may hold it several times."""
        repeated = self._raw_events_repeated = self._raw_events_repeated or {}
        events = self._raw_events = self._raw_events or {}
        came = repeated[event] = repeated.get(event, 0) + 1
        if came <= events.get(event, 0):
            return False
        events[event] = came
        return True

    def new_part(self, delta: Delta) -> Delta | None:
        """What of `delta` the reader has not got yet; `None` where that is nothing.

        A finish reason that comes before any content is held back: it may be that of an empty
        reply, which is asked for again.

        Raises:
            Diverged: It says something else than what was delivered.
        """
        choice = delta.choice
        if delta.finish_reason is not None and not (
            delta.text or delta.reasoning or delta.tool_calls or self.content
        ):
            self._held_back = self._held_back or []
            self._held_back.append(delta)
            return None
        # Before the text beside it counts as delivered.
        if self._reasoning_is_over and delta.reasoning:
            raise Diverged
        text = self._new_text((choice, "text", 0), delta.text)
        reasoning = self._new_text((choice, "reasoning", 0), delta.reasoning)
        tool_calls = tuple(
            piece
            for call in delta.tool_calls
            if (piece := self._new_tool_call(choice, call)) is not None
        )
        finish_reason = self._new_finish_reason(delta)
        if not self.repeating:
            return delta
        self.repeating = bool(self._finish_reasons or self._tool_calls) or self._behind()
        goes_on = choice in (self._finish_reasons or ()) and finish_reason is None
        if goes_on and (text or reasoning or tool_calls):
            raise Diverged
        if not (text or reasoning or tool_calls or finish_reason or delta.usage):
            return None
        if (text, reasoning, tool_calls, finish_reason) == (
            delta.text,
            delta.reasoning,
            delta.tool_calls,
            delta.finish_reason,
        ):
            return delta
        return msgspec.structs.replace(
            delta,
            text=text,
            reasoning=reasoning,
            tool_calls=tool_calls,
            finish_reason=finish_reason,
            raw=b"",
        )

    def no_longer_held_back(self) -> list[Delta]:
        """What was held back, once content has come."""
        return self._release() if self._held_back and self.content else []

    def end_attempt(self) -> list[Delta]:
        """The answer is complete; what was held back of it.

        Raises:
            Diverged: It ended before the first one's length.
        """
        if self._behind():
            raise Diverged
        return self._release()

    def _release(self) -> list[Delta]:
        held, self._held_back = self._held_back or [], None
        for delta in held:
            self._new_finish_reason(delta)
        return held

    def _behind(self, choice: int | None = None) -> bool:
        """Whether this attempt has yet to repeat something, of one choice or of any."""
        return any(
            channel.behind for key, channel in self._channels.items() if choice in (None, key[0])
        )

    def _new_text(self, channel: Channel, text: str) -> str:
        if not text:
            return text
        self._last_kind = channel[1]
        if channel == _FIRST_TEXT:
            received = self._first_text = self._first_text or _Received()
        else:
            self._others = self._others or {}
            received = self._others.setdefault(channel, _Received())
        new = received.new_part(text)
        self.repeated += len(text) - len(new)
        return new

    def _new_tool_call(self, choice: int, call: ToolCallDelta) -> ToolCallDelta | None:
        calls = self._tool_calls = self._tool_calls or set()
        begun = (choice, call.index) in calls
        name = self._new_text((choice, "name", call.index), call.name or "")
        arguments = self._new_text((choice, "arguments", call.index), call.arguments)
        if not begun:
            calls.add((choice, call.index))
            return call
        if not (name or arguments):
            return None
        # The call that was handed out keeps the id under which it was: a second answer has others.
        return ToolCallDelta(index=call.index, name=name or None, arguments=arguments)

    def _new_finish_reason(self, delta: Delta) -> str | None:
        if delta.finish_reason is None:
            return None
        if self._behind(delta.choice):
            raise Diverged
        reasons = self._finish_reasons = self._finish_reasons or {}
        if delta.choice in reasons:
            return None
        reasons[delta.choice] = delta.finish_reason
        return delta.finish_reason
