"""The fake gateway as a target: a process of its own, which lives as long as a block.

What it answers follows from the request alone, so whoever sent one knows what is meant to come.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from itertools import product
from typing import Literal, cast

import msgspec
import trio

from ..testing import FakeGateway, add_fault
from ._errors import TargetError
from ._process import LineProcess, open_line_process
from ._values import Distribution

ALL_GROUPS = -1
"""In place of a group: the keys of all are replaced at once."""

DEFAULT_TOKENS = 50

# 4,096 words, no two of which are the same, so that what was lost or doubled can be told; by a
# stride, so that neighbours are not alike.
_SYLLABLES = [
    "ba",
    "de",
    "fi",
    "go",
    "hu",
    "ka",
    "le",
    "mi",
    "no",
    "pu",
    "ra",
    "se",
    "ti",
    "vo",
    "wu",
    "ze",
]
_BY_SYLLABLE = [f" {''.join(syllables)}" for syllables in product(_SYLLABLES, repeat=3)]
_WORDS = [_BY_SYLLABLE[place * 1_237 % len(_BY_SYLLABLE)] for place in range(len(_BY_SYLLABLE))]


class FakePlan(msgspec.Struct, frozen=True, kw_only=True):
    """How the fake gateway is, and what goes wrong there.

    Attributes:
        groups: How many accounts it has, each with a key of its own.
        first_token: How long it thinks before an answer, in seconds.
        token_interval: Between two tokens, in seconds.
        auth_latency: What signing in takes, in seconds.
        on_rotation: What becomes of streams whose key dies.
        faults: What goes wrong, in the words of `gz_trio.testing.add_fault`.
        rotations: When all keys are replaced, in seconds from the start of the load.
        lifetime: How long a key lives, a distribution of durations; `None`: for ever.
        seed: Of the lifetimes.

    Raises:
        ValueError: A fault is none, or the lifetime no distribution.
    """

    groups: int = 1
    first_token: float = 0.0
    token_interval: float = 0.0
    auth_latency: float = 0.0
    on_rotation: Literal["frame", "cut", "ignore"] = "frame"
    faults: tuple[str, ...] = ()
    rotations: tuple[float, ...] = ()
    lifetime: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        # Here, not in the other process: whoever made the mistake is still listening.
        for words in self.faults:
            add_fault(FakeGateway(), words)
        if self.lifetime is not None:
            Distribution.parse(self.lifetime, durations=True)


class FakeCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What the fake gateway saw so far.

    Attributes:
        requests: Requests for an answer that are over, however they ended.
        rejected: 401s.
        refreshes: How often somebody signed in, or tried to.
        auth_errors: `auth_error` frames: streams that ended because their key died.
        tokens: That the model made for the requests that are over.
        rotations: When keys were replaced, in seconds from the start of the load, and of which
            group, or `ALL_GROUPS`.
    """

    requests: int = 0
    rejected: int = 0
    refreshes: int = 0
    auth_errors: int = 0
    tokens: int = 0
    rotations: list[tuple[float, int]] = []


def token_of(group: int) -> str:
    """The identity token with which a group signs in."""
    return f"group-{group}"


def intended_tokens(body: Mapping[str, object]) -> list[str]:
    """The answer to a request: as many tokens as its `max_tokens`, which follow from its messages.

    Other conversations have other answers. It costs microseconds, however long they are: only the
    first message and the last two are looked at, of which the answer before is one.

    >>> from gz_trio.simulate._fake import intended_tokens
    >>> body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    >>> intended_tokens(body)
    ['09058baa0236', ' wuwuwu', ' gotigo', ' nopuno']
    """
    messages = cast("list[object]", body["messages"])
    said = msgspec.json.encode([messages[:1], messages[-2:]], order="deterministic")
    name = hashlib.blake2b(b"%d " % len(messages) + said, digest_size=6).hexdigest()
    count = cast("int", body.get("max_tokens", DEFAULT_TOKENS))
    start = int(name, 16) % len(_WORDS)
    tokens = [name, *_WORDS[start : start + count - 1]]
    while len(tokens) < count:
        tokens += _WORDS[: count - len(tokens)]
    return tokens[:count]


def intended_text(body: Mapping[str, object]) -> str:
    """The same in one piece."""
    return "".join(intended_tokens(body))


class Fake:
    """A fake gateway that runs in a process of its own.

    Attributes:
        base_url: Where it listens.
        process: What it runs in.
    """

    def __init__(self, lines: LineProcess, base_url: str) -> None:
        self.base_url = base_url
        self.process = lines.process
        self._lines = lines
        self._lock = trio.Lock()
        self._unanswered = 0

    def token(self, group: int) -> str:
        """The identity token with which this group signs in, by `POST /auth`."""
        return token_of(group)

    async def begin(self, ns: int) -> None:
        """Say when the load begins: rotations and lifetimes count from then.

        Args:
            ns: An instant of `time.perf_counter_ns`.
        """
        async with self._lock:
            await self._lines.send(b"begin %d" % ns)

    async def counts(self) -> FakeCounts:
        """What it saw so far.

        Raises:
            TargetError: The process has ended.
        """
        async with self._lock:
            await self._lines.send(b"counts")
            self._unanswered += 1
            line = b""
            while self._unanswered:  # Also by those who were cancelled before their answer came.
                line = await _line_of(self._lines)
                self._unanswered -= 1
        return msgspec.json.decode(line, type=FakeCounts)


@asynccontextmanager
async def open_fake_gateway(plan: FakePlan) -> AsyncGenerator[Fake]:
    """Start a fake gateway in a process of its own, which ends with the block.

    Args:
        plan: How it is.

    Raises:
        TargetError: It does not start.
    """
    async with open_line_process("_fake_gateway", msgspec.json.encode(plan).decode()) as process:
        said = msgspec.json.decode(await _line_of(process), type=dict[str, str])
        yield Fake(process, said["base_url"])


async def _line_of(process: LineProcess) -> bytes:
    """The next line that it prints.

    Raises:
        TargetError: It has ended.
    """
    line = await process.line()
    if line is None:
        raise TargetError(f"the fake gateway has ended: {await process.last_words()}")
    return line
