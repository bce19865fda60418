"""The connection is cut after every byte of a response; the reply is whole, or says it is not.

What a reader must have got is read off the bytes that left the server, by h11, zlib and the `json`
of the standard library: not by the code under test.
"""

from __future__ import annotations

import json
import random
import socket
import struct
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import takewhile
from typing import Any, Literal, TypeAlias, TypeVar, cast, get_args

import h11
import httpx
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from gz_trio import (
    APIConnectionError,
    Delta,
    MemoryKeyStore,
    RetryPolicy,
    StreamInterrupted,
    ToolCallDelta,
    open_authenticator,
    open_gateway,
)
from gz_trio.testing import Answer as FakeAnswer
from gz_trio.testing import FakeGateway, Framing, SeenRequest
from gz_trio.testing._memory import MemoryStream, memory_client, memory_connection
from tests.chats import BODY, Told, tell
from tests.ways import WAYS, Channels, channels_of

T = TypeVar("T")

FRAMINGS: tuple[Framing, ...] = get_args(Framing)

How: TypeAlias = Literal["close", "reset"]
HOWS: tuple[How, ...] = get_args(How)


@dataclass(frozen=True)
class Break:
    """The server's end of a connection goes once it has sent so many bytes, the head included."""

    at: int
    how: How = "close"


class BreakingStream(trio.abc.Stream):
    """The server's end of a connection, which may break; keeps what was sent."""

    def __init__(self, stream: MemoryStream | trio.SocketStream, break_: Break | None) -> None:
        self.sent = bytearray()
        self._stream = stream
        self._break = break_

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._break is None:
            self.sent += data
            await self._stream.send_all(data)
            return
        room = self._break.at - len(self.sent)
        piece = bytes(data[:room])
        self.sent += piece
        if piece:
            await self._stream.send_all(piece)
        if len(self.sent) == self._break.at:
            if self._break.how == "close":
                await self._stream.aclose()
            elif isinstance(self._stream, MemoryStream):
                await self._stream.reset()
            else:
                # SO_LINGER with a time of 0: close sends RST instead of FIN.
                self._stream.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
                await trio.aclose_forcefully(self._stream)
        if len(data) > room:
            raise trio.BrokenResourceError

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._stream.aclose()


@dataclass
class Network:
    """The way to a fake gateway: each connection has the next of `breaks`, if there is one."""

    fake: FakeGateway
    breaks: Sequence[Break | None] = ()
    connections: list[BreakingStream] = field(default_factory=list[BreakingStream])

    async def serve(self, stream: MemoryStream | trio.SocketStream) -> None:
        number = len(self.connections)
        break_ = self.breaks[number] if number < len(self.breaks) else None
        self.connections.append(BreakingStream(stream, break_))
        await self.fake.serve_stream(self.connections[-1])

    @asynccontextmanager
    async def in_memory(self) -> AsyncGenerator[tuple[str, httpx.AsyncClient]]:
        async def connect() -> trio.abc.Stream:
            await trio.lowlevel.checkpoint()
            ours, theirs = memory_connection()
            nursery.start_soon(self.serve, ours)
            return theirs

        async with trio.open_nursery() as nursery:
            host = httpx.URL(self.fake.base_url).host
            async with memory_client(httpx, self.fake.base_url, host, connect) as client:
                yield self.fake.base_url, client

    @asynccontextmanager
    async def over_tcp(self) -> AsyncGenerator[tuple[str, httpx.AsyncClient]]:
        async with trio.open_nursery() as nursery, httpx.AsyncClient(trust_env=False) as client:
            serve = partial(trio.serve_tcp, self.serve, 0, host="127.0.0.1")
            listeners = cast("list[trio.SocketListener]", await nursery.start(serve))
            yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/v1", client
            nursery.cancel_scope.cancel()


def run(main: Callable[[], Awaitable[T]]) -> T:
    """Run `main` on a mock clock of its own, so that one test can do it many times."""
    return trio.run(main, clock=MockClock(autojump_threshold=0))


# What was sent, and what was got


@dataclass(frozen=True)
class Event:
    """An event of a response."""

    id: str | None
    data: bytes


@dataclass
class Received:
    """What events say."""

    channels: Channels = field(default_factory=dict[tuple[int, str], str])
    finished: dict[int, bool] = field(default_factory=dict[int, bool])
    done: bool = False

    @property
    def complete(self) -> bool:
        """Design section 4: every choice that began has ended, or all is said to be done."""
        return self.done or (bool(self.finished) and all(self.finished.values()))

    @property
    def reasons(self) -> bool:
        """Whether there is reasoning among it."""
        return any(kind == "reasoning" for _, kind in self.channels)


def body_in(wire: bytes) -> bytes:
    """The body of a response of which `wire` has come."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("host", "gateway.test")]))
    connection.send(h11.EndOfMessage())
    if wire:  # of nothing h11 would think that it is the end
        connection.receive_data(wire)
    body = b""
    decompress: Callable[[bytes], bytes] = bytes
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Response) and (b"content-encoding", b"gzip") in event.headers:
            decompress = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress
        elif isinstance(event, h11.Data):
            body += decompress(event.data)
        elif not isinstance(event, h11.Response):
            return body


def events_in(wire: bytes) -> list[Event]:
    """The events of a response of which `wire` has come: those that a blank line ends."""
    events: list[Event] = []
    for block in body_in(wire).split(b"\n\n")[:-1]:
        lines = [line.partition(b": ") for line in block.split(b"\n")]
        fields = {name: value for name, _, value in lines}
        events.append(Event(fields[b"id"].decode() if b"id" in fields else None, fields[b"data"]))
    return events


def received(events: Sequence[Event]) -> Received:
    """What a client knows that has got these events."""
    got = Received()
    for event in events:
        if event.data == b"[DONE]":
            got.done = True
            continue
        for choice in json.loads(event.data)["choices"]:
            got.finished[choice["index"]] = choice["finish_reason"] is not None
            for channel, text in _texts(choice["index"], choice["delta"]):
                if text:
                    got.channels[channel] = got.channels.get(channel, "") + text
    return got


def _texts(choice: int, delta: dict[str, Any]) -> list[tuple[tuple[int, str], str]]:
    texts = [
        ((choice, "text"), delta.get("content", "")),
        ((choice, "reasoning"), delta.get("reasoning_content", "")),
    ]
    for call in delta.get("tool_calls", ()):
        texts.append(((choice, f"name {call['index']}"), call["function"].get("name", "")))
        texts.append(((choice, f"arguments {call['index']}"), call["function"]["arguments"]))
    return texts


@dataclass(frozen=True)
class Exchange:
    """One request, and what left the server for it before the connection went."""

    seen: SeenRequest
    events: list[Event]

    @property
    def partial(self) -> str | None:
        """The text that the model was asked to go on from."""
        messages = cast("list[dict[str, str]]", (self.seen.body or {})["messages"])
        return messages[-1]["content"] if messages[-1]["role"] == "assistant" else None


def expected(exchanges: Sequence[Exchange], *, echo: bool) -> tuple[Channels, bool, int]:
    """What a reader must have got, whether that is all, and of how many of the exchanges."""
    delivered: Channels = {}
    kept: dict[str, list[Event]] = {}
    for number, exchange in enumerate(exchanges, 1):
        events, partial = exchange.events, exchange.partial
        if exchange.seen.resumed_after is not None:
            events = kept[exchange.seen.resumed_after.partition("-")[0]] + events
        if events and events[0].id is not None:
            kept[events[0].id.partition("-")[0]] = events
        again = partial is not None and (0, "reasoning") in delivered
        if again:  # a model that thinks once more does not go on with what it thought before
            events = list(takewhile(lambda e: not received([e]).reasons, events))
            again = len(events) < len(exchange.events)
        got = received(events)
        if partial is not None:
            # All but the text goes on where it was left.
            before = {**delivered, (0, "text"): "" if echo else partial}
            for channel, text in before.items():
                got.channels[channel] = text + got.channels.get(channel, "")
        joined = {
            channel: max(text, delivered.get(channel, ""), key=len)
            for channel, text in {**delivered, **got.channels}.items()
        }
        agrees = all(
            joined[channel].startswith(text)
            for part in (delivered, got.channels)
            for channel, text in part.items()
        )
        agrees = agrees and not (got.complete and joined != got.channels)
        if not agrees and partial is None:
            return delivered, False, number
        if agrees:
            delivered = joined
        if again or not agrees:
            continue  # it did not go on from there: then by replay
        if got.complete:
            return delivered, True, number
    return delivered, False, len(exchanges)  # it was given up


# What servers answer


def split_call(index: int, name: str, *arguments: str, attempt: int) -> list[Delta]:
    first = ToolCallDelta(index, f"call_{attempt}_{index}", name, arguments[0])
    rest = [ToolCallDelta(index, arguments=piece) for piece in arguments[1:]]
    return [Delta(tool_calls=(piece,)) for piece in (first, *rest)]


# The tokens of an answer, by the attempt at it.
Answer: TypeAlias = Callable[[int], Sequence[str | Delta]]

# Characters of two to four bytes, and several code points that are one to the eye: an emoji that
# is three people, a flag, an accent, each cut in two by the tokens.
CHARACTERS = [
    "é",
    "e",
    "\u0301",
    " 日本",
    "語 ",
    "👩",
    "\u200d👩\u200d",
    "👧🇪",
    "🇺\U0001d4af",
    " नम",
    "स्ते\u2028",
    "\n\n",
]

THE_SAME_AGAIN: dict[str, Answer] = {
    "multi-byte text": lambda _: CHARACTERS,
    "reasoning among the text": lambda _: [
        Delta(reasoning="Hm"), Delta(reasoning=", a 🦊"), "Once", Delta(reasoning=" again"),
        " upon", Delta(text=" a", reasoning="!"), " time", Delta(reasoning="end"), ".",
    ],
    "tool calls": lambda attempt: [
        "Let me ",
        "see.",
        *split_call(0, "weather", '{"ci', 'ty": "Köl', 'n"}', attempt=attempt),
        *split_call(1, "time", "{", "}", attempt=attempt),
    ],
    "choices": lambda _: [
        Delta(text=text, choice=choice)
        for choice, text in [(0, "yes"), (1, "no"), (1, ", no"), (0, ", 好"), (0, "."), (1, "!")]
    ],
}  # fmt: skip

STORY = ["Once", " upon", " a", " time", ", there", " was", " a", " 🦊"]

SAMPLED: dict[str, Answer] = {
    "other from the start": lambda attempt: STORY if attempt == 1 else ["Long", " ago"],
    "other from the fifth token": lambda attempt: (
        STORY if attempt == 1 else [*STORY[:4], ". The", " end"]
    ),
    "shorter": lambda attempt: STORY if attempt == 1 else STORY[:5],
    "longer": lambda attempt: STORY if attempt == 1 else [*STORY, ", and", " a", " key"],
    "other at each attempt": lambda attempt: [f"{attempt} ", "times"],
    "other thoughts, then the same": lambda attempt: [
        Delta(reasoning="Hm"), Delta(reasoning=f" {attempt}"), *STORY,
    ],
    "the same thoughts, then other words": lambda attempt: [
        Delta(reasoning="Hm"), Delta(reasoning=", well"), f"{attempt}", " of", " ten",
    ],
}  # fmt: skip

ANSWERS = THE_SAME_AGAIN | SAMPLED


def by_attempt(give: Answer) -> FakeAnswer:
    """What gives an answer by the attempt alone, as a fake gateway calls it."""
    return lambda _, attempt: give(attempt)


@dataclass(frozen=True)
class Server:
    """A gateway whose connections break."""

    answer: str | None = None
    """One of `ANSWERS`; `None`: the text that a fake gateway has of its own."""
    framing: Framing = "chunked"
    way: str = "replay"
    tokens: int = 12

    def __str__(self) -> str:
        return f"{self.framing}, {self.way}, {self.answer or f'{self.tokens} tokens'}"

    def fake(self) -> FakeGateway:
        answer = None if self.answer is None else by_attempt(ANSWERS[self.answer])
        return FakeGateway(
            tokens=self.tokens, answer=answer, framing=self.framing, **WAYS[self.way].server
        )

    async def ask(self, network: Network, *, tcp: bool = False) -> Told:
        """One reply by way of `network`."""
        body = {**BODY, "n": 2} if self.answer == "choices" else BODY
        async with (
            network.over_tcp() if tcp else network.in_memory() as (base_url, client),
            open_authenticator(MemoryKeyStore(network.fake.key)) as authenticator,
            open_gateway(
                base_url, authenticator, http_client=client, resume=WAYS[self.way].policy()
            ) as gateway,
        ):
            return await tell(gateway, body)

    def intended(self, attempt: int) -> Channels:
        """All that an attempt says if nothing cuts it."""
        if self.answer is None:
            return {(0, "text"): self.fake().intended(BODY)}
        tokens = ANSWERS[self.answer](attempt)
        return channels_of([Delta(text=t) if isinstance(t, str) else t for t in tokens])


@cache
def size(server: Server) -> int:
    """How many bytes a response has that nothing cuts, its head included."""

    async def main() -> int:
        network = Network(server.fake())
        await server.ask(network)
        return len(network.connections[0].sent)

    return run(main)


def check(server: Server, network: Network, told: Told) -> None:
    """All that must be true of a reply whose connections broke."""
    requests = network.fake.requests
    exchanges = [
        Exchange(seen, events_in(bytes(connection.sent)))
        for seen, connection in zip(requests, network.connections, strict=True)
    ]
    text, complete, attempts = expected(exchanges, echo=WAYS[server.way].echo)
    assert channels_of(told.events) == text
    assert told.reply.text == text.get((0, "text"), "")
    assert told.reply.complete == complete == (told.error is None)
    assert len(requests) == attempts, "asked again for what was whole, or known to be another"
    if told.error is None:
        anew = all(seen.resumed_after is None for seen in requests) and all(
            exchange.partial is None for exchange in exchanges
        )
        if anew or server.answer not in SAMPLED:
            assert text == server.intended(attempts if anew else 1)
        return
    assert told.error.partial == told.reply.text
    if attempts > RetryPolicy().max_retries and not text:
        assert type(told.error) is APIConnectionError
    else:
        assert type(told.error) is StreamInterrupted
        assert attempts > RetryPolicy().max_retries or server.answer in SAMPLED


async def cut_and_check(server: Server, *breaks: Break) -> None:
    network = Network(server.fake(), breaks)
    told = await server.ask(network)
    try:
        check(server, network, told)
    except AssertionError as error:
        error.add_note(f"{server}: {breaks}")
        raise


def cut_each(server: Server, cases: Iterable[Sequence[Break]]) -> None:
    """One reply for each of the cases; each is the breaks of its connections."""

    async def main() -> None:
        for breaks in cases:
            await cut_and_check(server, *breaks)

    run(main)


# Every offset


@pytest.mark.slow
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_reply_of_12_tokens_is_whole_after_whichever_byte_it_is_cut(
    framing: Framing, how: How
) -> None:
    server = Server(framing=framing)
    cut_each(server, ([Break(at, how)] for at in range(size(server) + 1)))


@pytest.mark.slow
@pytest.mark.parametrize("way", [way for way in WAYS if way != "replay"])
def test_however_a_reply_is_taken_up_it_is_whole_after_whichever_byte_it_is_cut(way: str) -> None:
    server = Server(way=way)
    cut_each(server, ([Break(at, HOWS[at % 2])] for at in range(size(server) + 1)))


@pytest.mark.slow
@pytest.mark.parametrize("answer", ANSWERS)
def test_whatever_a_reply_says_it_is_whole_or_interrupted_with_all_that_came(answer: str) -> None:
    server = Server(answer)
    cut_each(server, ([Break(at, HOWS[at // 2 % 2])] for at in range(0, size(server) + 1, 2)))


@pytest.mark.slow
@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_reply_of_100_tokens_that_is_cut_five_times_is_whole(framing: Framing) -> None:
    """Every seventh offset, in any order, five of them in each reply."""
    server = Server(framing=framing, tokens=100)
    breaks = [Break(at, HOWS[at % 2]) for at in range(0, size(server) + 1, 7)]
    random.Random(f"cuts of {framing}").shuffle(breaks)
    cut_each(server, (breaks[first : first + 5] for first in range(0, len(breaks), 5)))


# A sample of them

LIMIT = settings(max_examples=min(settings().max_examples // 2, 2_000))


@st.composite
def cases(
    draw: st.DrawFn, answers: Sequence[str | None], tokens: int, most: int
) -> tuple[Server, list[Break]]:
    """A server, and at most so many breaks."""
    server = Server(
        draw(st.sampled_from(answers)),
        draw(st.sampled_from(FRAMINGS)),
        draw(st.sampled_from(list(WAYS))),
        tokens,
    )
    break_ = st.builds(Break, st.integers(0, size(server)), st.sampled_from(HOWS))
    return server, draw(st.lists(break_, min_size=1, max_size=most))


@LIMIT
@given(cases([None, *ANSWERS], tokens=12, most=9))
def test_a_reply_that_is_cut_somewhere_is_whole_or_interrupted_with_all_that_came(
    case: tuple[Server, list[Break]],
) -> None:
    run(partial(cut_and_check, case[0], *case[1]))


@settings(LIMIT, max_examples=max(20, LIMIT.max_examples // 10))
@given(cases([None], tokens=100, most=7))
def test_a_long_reply_that_is_cut_here_and_there_is_whole(
    case: tuple[Server, list[Break]],
) -> None:
    run(partial(cut_and_check, case[0], *case[1]))


@pytest.mark.parametrize("answer", [None, "tool calls", "other from the fifth token"])
@pytest.mark.parametrize("framing", FRAMINGS)
def test_over_tcp_a_reply_that_is_cut_is_whole_or_interrupted_with_what_came(
    framing: Framing, answer: str | None
) -> None:
    """What a system does with bytes that nobody has read when a reset comes is its own affair."""
    server = Server(answer, framing)
    rng = random.Random(f"cuts of {server}")
    breaks = [Break(rng.randint(0, size(server)), how) for how in HOWS for _ in range(4)]

    async def main() -> None:
        for break_ in breaks:
            network = Network(server.fake(), [break_])
            told = await server.ask(network, tcp=True)
            if told.error is None:
                assert channels_of(told.events) == server.intended(len(network.connections))
            else:
                assert type(told.error) is StreamInterrupted
                assert told.error.partial == told.reply.text
                came = received(events_in(bytes(network.connections[0].sent))).channels
                assert came[0, "text"].startswith(told.reply.text)
                assert answer in SAMPLED

    # The waits of a client whose connection failed pass fifty times as fast.
    trio.run(main, clock=MockClock(rate=50))
