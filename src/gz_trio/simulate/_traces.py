"""Files of conversations: JSON lines of messages, ShareGPT, and Mooncake's traces.

A line that cannot be used is left out and counted by its reason: such files are large, and come
from elsewhere.
"""

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, BinaryIO, TypeVar, overload

import msgspec

from ._conversations import Conversation, Loaded, Turn
from ._prompts import BLOCK_TOKENS, block_text, dice_of, made_up_text, user_message
from ._workload import Workload

_T = TypeVar("_T")

# No model takes more: a line that says so would fill the memory instead of a prompt.
_Tokens = Annotated[int, msgspec.Meta(ge=1, le=10_000_000)]
# Milliseconds, of an epoch too.
_Time = Annotated[float, msgspec.Meta(ge=0, le=1e15)]


def load(workload: Workload) -> Loaded:
    """Read the file that the workload names, in the format that it names.

    A trace's texts are made when they are asked for: all at once they would fill gigabytes.

    Args:
        workload: `prompts`, `prompts_format`, `speedup` and `seed` count.

    Raises:
        ValueError: It names no file, or the file cannot be read, or nothing in it can be used; the
            message says why.
    """
    if workload.prompts is None:
        raise ValueError("the workload names no file of prompts")
    path = Path(workload.prompts)
    skipped: Counter[str] = Counter()
    found: Sequence[Conversation]
    try:
        with path.open("rb") as file:
            match workload.prompts_format:
                case "messages":
                    found = _usable(_lines(file), _messages, skipped)
                case "sharegpt":
                    found = _usable(_lines_or_list(file), _sharegpt, skipped)
                case "mooncake":
                    found = _Trace(_usable(_lines(file), _decode_request, skipped), workload)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no list of conversations: {error}") from None
    if skipped and not found:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in skipped.most_common())
        raise ValueError(
            f"{path}: none of its {skipped.total()} entries can be used as "
            f"{workload.prompts_format}: {reasons}. Is prompts_format right?"
        )
    if not found:
        raise ValueError(f"{path} is empty")
    return Loaded(found, skipped)


def _usable(entries: Iterable[bytes], read: Callable[[str], _T], skipped: Counter[str]) -> list[_T]:
    usable: list[_T] = []
    for entry in entries:
        try:
            usable.append(read(entry.decode()))
        except UnicodeDecodeError:
            skipped["not UTF-8"] += 1
        except msgspec.ValidationError as error:
            skipped[_in_words(error)] += 1
        except (msgspec.DecodeError, RecursionError):
            skipped["no JSON"] += 1
    return usable


def _in_words(error: msgspec.ValidationError) -> str:
    """The reason without the quotes, and without the places in lists: they would never repeat."""
    what, _, where = str(error).replace("`", "").partition(" - at $")
    where = re.sub(r"\[\d+\]", "[]", where).removeprefix(".")
    return f"{where}: {what}" if where else what


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Those that are not blank."""
    first = file.readline().removeprefix(codecs.BOM_UTF8)  # Some programs on Windows write it.
    for line in chain([first], file):
        if stripped := line.strip():
            yield stripped


def _lines_or_list(file: BinaryIO) -> Iterator[bytes]:
    """The elements of the one JSON list that the file is, or its lines."""
    lines = _lines(file)
    first = next(lines, b"")
    if first.startswith(b"["):
        whole = first + b"\n" + file.read()
        yield from map(bytes, msgspec.json.decode(whole, type=list[msgspec.Raw]))
    elif first:
        yield first
        yield from lines


# Messages, and ShareGPT


class _Chat(msgspec.Struct):
    messages: list[dict[str, object]] = []  # each gets its own
    max_tokens: _Tokens | None = None
    output_tokens: _Tokens | None = None


class _Part(msgspec.Struct):
    text: str = ""


class _Said(msgspec.Struct):
    value: str
    speaker: str = msgspec.field(name="from")


class _Shared(msgspec.Struct):
    conversations: list[_Said] = []


_decode_chat = msgspec.json.Decoder(_Chat | list[dict[str, object]]).decode
_decode_shared = msgspec.json.Decoder(_Shared).decode

_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}

# A word; where a script has none, a character.
_WORD = re.compile(r"[\u2e80-\ua4cf\uac00-\ud7af]|[^\s\u2e80-\ua4cf\uac00-\ud7af]+")


def _messages(line: str) -> Conversation:
    chat = _decode_chat(line)
    if not isinstance(chat, _Chat):
        chat = _Chat(chat)
    if not chat.messages:
        raise msgspec.ValidationError("no messages")
    if not all(isinstance(message.get("role"), str) for message in chat.messages):
        raise msgspec.ValidationError("a message without a role")
    turns = _turns(chat.messages, output_tokens=chat.output_tokens or chat.max_tokens)
    if not turns:
        raise msgspec.ValidationError("no message of a user")
    return Conversation(tuple(turns))


def _sharegpt(entry: str) -> Conversation:
    said = _decode_shared(entry).conversations
    if not said:
        raise msgspec.ValidationError("no conversations")
    if not all(one.speaker in _ROLES for one in said):
        raise msgspec.ValidationError("a speaker whose role is not known")
    messages: list[dict[str, object]] = []
    asked = False
    for one in said:
        role = _ROLES[one.speaker]
        asked = asked or role == "user"
        # Long conversations were cut in parts, of which many begin with an answer.
        if asked or role == "system":
            messages.append({"role": role, "content": one.value})
    if not asked:
        raise msgspec.ValidationError("no message of a user")
    turns = [
        msgspec.structs.replace(turn, output_tokens=len(_WORD.findall(turn.answer)) or None)
        for turn in _turns(messages)
        if turn.answer is not None
    ]
    if not turns:
        raise msgspec.ValidationError("no answer")
    return Conversation(tuple(turns))


def _turns(messages: list[dict[str, object]], *, output_tokens: int | None = None) -> list[Turn]:
    """One for each answer, and one for a question that has none.

    An answer is what an assistant says to a question. When it calls tools, that is no answer but
    goes, with their results, into the prompt: no server would call them by the same ids.
    """
    turns: list[Turn] = []
    adds: list[dict[str, object]] = []
    asked = 0  # how many of those there are up to the last that wants an answer
    for message in messages:
        role = message["role"]
        if role == "assistant" and asked and not message.get("tool_calls"):
            answer = _text(message.get("content"))
            turns.append(Turn(messages=tuple(adds), answer=answer, output_tokens=output_tokens))
            adds, asked = [], 0
            continue
        adds.append(message)
        if role in {"user", "tool"}:
            asked = len(adds)
    if asked:
        turns.append(Turn(messages=tuple(adds[:asked]), output_tokens=output_tokens))
    return turns


def _text(content: object) -> str:
    """Of a message: a string, or parts of which some have text."""
    parts = msgspec.convert(content, str | list[_Part] | None)
    return parts if isinstance(parts, str) else "".join(part.text for part in parts or ())


# Traces


class _Request(msgspec.Struct, frozen=True):
    """A line of a Mooncake trace, as the FAST'25 traces have it, and AIPerf.

    Attributes:
        input_length: Of the prompt, in tokens.
        output_length: Of the answer, in tokens; `None`: as the workload says.
        hash_ids: Its blocks of 512 tokens: where two requests have the same, the text is the same.
        timestamp: When it came, in milliseconds.
        session_id: Which conversation it is a turn of; `None`: one of its own.
        delay: Between the answer before and this, in milliseconds.
    """

    input_length: _Tokens
    output_length: _Tokens | None = None
    hash_ids: tuple[int, ...] | None = None
    timestamp: _Time | None = None
    session_id: str | int | None = None
    delay: _Time | None = None


_decode_request = msgspec.json.Decoder(_Request).decode


class _Trace(Sequence[Conversation]):
    """The conversations of a trace, by the time of their first turn.

    Args:
        requests: In the order of the file.
        workload: Its `speedup` and `seed` count.
    """

    def __init__(self, requests: Sequence[_Request], workload: Workload) -> None:
        self._requests = requests
        self._workload = workload
        self._began = min((r.timestamp for r in requests if r.timestamp is not None), default=0.0)
        sessions: dict[object, list[tuple[float, int]]] = {}
        for number, request in enumerate(requests):
            # A tuple is no session's id.
            key = (number,) if request.session_id is None else request.session_id
            turns = sessions.setdefault(key, [])
            # One that has no time stays behind the one before it.
            before = turns[-1][0] if turns else self._began
            turns.append((before if request.timestamp is None else request.timestamp, number))
        in_time = sorted(sorted(turns) for turns in sessions.values())
        self._sessions = [tuple(number for _, number in turns) for turns in in_time]

    def __len__(self) -> int:
        return len(self._sessions)

    @overload
    def __getitem__(self, index: int) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice) -> list[Conversation]: ...
    def __getitem__(self, index: int | slice) -> Conversation | list[Conversation]:
        if isinstance(index, slice):
            return [self._conversation(session) for session in self._sessions[index]]
        return self._conversation(self._sessions[index])

    def _conversation(self, session: tuple[int, ...]) -> Conversation:
        return Conversation(tuple(self._turn(number) for number in session))

    def _turn(self, number: int) -> Turn:
        request = self._requests[number]
        at = request.timestamp
        return Turn(
            messages=(user_message(self._prompt(number, request)),),
            whole=bool(request.hash_ids),
            input_tokens=request.input_length,
            output_tokens=request.output_length,
            due=None if at is None else self._nanoseconds(at - self._began),
            delay=None if request.delay is None else self._nanoseconds(request.delay),
        )

    def _nanoseconds(self, milliseconds: float) -> int:
        return round(milliseconds * 1e6 / self._workload.speedup)

    def _prompt(self, number: int, request: _Request) -> str:
        """The blocks, cut to the length; what they are too short for is this request's alone."""
        pieces: list[str] = []
        left = request.input_length
        for hash_id in request.hash_ids or ():
            if not left:
                break
            tokens = min(left, BLOCK_TOKENS)
            pieces.append(block_text(hash_id, tokens))
            left -= tokens
        if left:
            pieces.append(made_up_text(number, left, dice_of(self._workload, number)))
        return " ".join(pieces)
