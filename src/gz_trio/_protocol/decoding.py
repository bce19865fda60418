"""What the decoders of the three APIs have in common: what they are, and what they give.

Each makes deltas and errors of the events of one attempt at one reply, in the same terms, so that
whatever reads them need not know which API the server speaks.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Final, Protocol, TypeVar, cast

import msgspec

from . import lenient_json
from .errors import GatewayError, ProtocolError, error_from_frame
from .events import Delta, RawEvent, Usage
from .sse import ServerSentEvent

T = TypeVar("T")


class Done(enum.Enum):
    """The type of `DONE`, which stands for the event that says that the answer is over."""

    DONE = "[DONE]"


DONE: Final = Done.DONE

Item = Delta | RawEvent | GatewayError | Done


class Decoder(Protocol):
    """Decodes the events of one attempt at one reply."""

    @property
    def complete(self) -> bool:
        """Whether the reply is whole; if not when the stream ends, the stream was cut."""
        ...

    @property
    def choices(self) -> AbstractSet[int]:
        """The choices that have begun."""
        ...

    @property
    def output(self) -> list[dict[str, object]] | None:
        """What the next turn sends back, as the server sent it; `None` if the deltas say it all."""
        ...

    @property
    def response_id(self) -> str | None:
        """The id by which the server keeps the answer, if it does."""
        ...

    @property
    def over(self) -> bool:
        """Whether the server said that the answer has failed, for good: none of it follows."""
        ...

    def take_up(self) -> None:
        """The attempt failed, and the same answer goes on in another response."""
        ...

    def decode_texts(self, events: list[bytes]) -> list[Delta] | None:
        """The deltas of events that each add text and nothing else; a shortcut.

        Where it gives `None`, use `decode`.
        """
        ...

    def decode(self, event: ServerSentEvent) -> tuple[Item, ...]:
        """What `event` means, in order. Never raises.

        Every event but a sign of life is in it: as a `Delta`, which may be empty but for `raw`, as
        a `RawEvent` where it is unknown, as the error that it tells of, or as `DONE`.
        """
        ...

    def decode_completion(self, body: bytes) -> tuple[Item, ...]:
        """What a whole answer means, which servers send that ignore `stream`."""
        ...


def text_of(value: object) -> str:
    """`value` if it is text."""
    return value if isinstance(value, str) else ""


def usage_of(sent: object) -> Usage | None:
    """What a server counted, in any API's words."""
    raw = lenient_json.as_object(sent)
    if not raw:
        return None

    def count(*names: str) -> int:
        return next((n for name in names if isinstance(n := raw.get(name), int)), 0)

    prompt = count("prompt_tokens", "input_tokens")
    if not {"prompt_tokens", "total_tokens"} & raw.keys():
        # The Messages API counts apart what a cache had.
        prompt += count("cache_read_input_tokens") + count("cache_creation_input_tokens")
    completion = count("completion_tokens", "output_tokens")
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=count("total_tokens") or prompt + completion,
        raw=raw,
    )


def read_event(
    event: ServerSentEvent, decode: Callable[[bytes], T], shape: type[T]
) -> T | tuple[Item, ...]:
    """An event's data as a struct; or what it means, where it is none.

    Args:
        event: The event.
        decode: Decodes strict JSON.
        shape: What it gives.
    """
    try:
        return decode(event.data)
    except lenient_json.MSGSPEC_ERRORS:
        pass
    word = event.data.strip()
    if not word:
        return ()
    if word == b"[DONE]":
        return (DONE,)
    try:
        return msgspec.convert(lenient_json.decode(event.data), shape)
    except msgspec.ValidationError:
        is_error = event.event == "error"
        return (unreadable(event) if is_error else RawEvent(event.event, event.data),)
    except ValueError:
        return (unreadable(event),)


def error_in(data: bytes) -> GatewayError:
    """The error that a frame is, whatever there is in it."""
    try:
        frame = lenient_json.as_object(lenient_json.decode(data)) or {}
    except ValueError:
        frame = {}
    return error_from_frame(frame, body=data)


def unreadable(event: ServerSentEvent) -> GatewayError:
    """The error for an event that is nothing that a model's reply could hold."""
    if event.event == "error":
        return error_from_frame({}, body=event.data)
    return ProtocolError(
        "The gateway sent something that is no reply of a model: is the base URL that of an "
        "OpenAI-compatible API? The error's `body` is what it sent.",
        body=event.data,
    )


class Halves:
    r"""Joins the halves of surrogate pairs that servers escape apart, as `\ud83d` and `\ude00`."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: dict[tuple[object, ...], str] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def mend(self, channel: tuple[object, ...], piece: str, *, end: bool = False) -> str:
        """`piece` without a first half at its end, which waits for the second.

        Args:
            channel: The stream of characters that it is of.
            piece: The next characters there.
            end: Whether they are the last.
        """
        piece = self._waiting.pop(channel, "") + piece
        if not end and "\ud800" <= piece[-1:] <= "\udbff":
            self._waiting[channel] = piece[-1]
            piece = piece[:-1]
        return pair_surrogates(piece)

    def rest(self, *kinds: object) -> str:
        """What still waits in channels that begin with one of these: their ends did not come."""
        waiting = [channel for channel in self._waiting if channel[0] in kinds]
        return "".join(self.mend(channel, "", end=True) for channel in waiting)


def mended(value: dict[str, object]) -> dict[str, object]:
    """What goes back to the server, such that it can be sent.

    Without halves of surrogate pairs, then; and what is nested so deep that it can be read, but not
    written again, is an empty object.
    """
    if _can_be_sent(value):
        return value
    try:
        return cast("dict[str, object]", _mended(value))
    except RecursionError:
        return {name: field if _can_be_sent(field) else {} for name, field in value.items()}


def _can_be_sent(value: object) -> bool:
    try:
        msgspec.json.encode(value)
    except (UnicodeEncodeError, RecursionError):
        return False
    return True


def _mended(value: object) -> object:
    match value:
        case str():
            return pair_surrogates(value)
        case dict():
            fields = cast("dict[str, object]", value)
            return {pair_surrogates(name): _mended(field) for name, field in fields.items()}
        case list():
            return [_mended(item) for item in cast("list[object]", value)]
        case _:
            return value


def pair_surrogates(text: str) -> str:
    """Halves that lie side by side are one character; one that is alone is U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
