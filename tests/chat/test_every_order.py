"""Conversations, faults, rotations, sign-ins and readers in every order, on the mock clock.

A run is a list of what happens and when; hypothesis makes it up, and shrinks one that fails to the
few things that matter. Afterwards the fake gateway's ledger and the readers' text must agree,
character by character.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any, Literal, TypeAlias, cast

import msgspec
import trio
from hypothesis import Phase, given, note, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from gz_trio import (
    APIConnectionError,
    AuthenticationError,
    Authenticator,
    Delta,
    Finished,
    Gateway,
    GatewayError,
    InternalServerError,
    Key,
    MemoryKeyStore,
    NotFoundError,
    Paused,
    PaymentRequiredError,
    PermissionDeniedError,
    RateLimited,
    RateLimitError,
    RefreshError,
    RefreshTimeout,
    Reply,
    ReplyEvent,
    Restarted,
    Resumed,
    StreamInterrupted,
    StreamTimeout,
    ToolCallDelta,
    open_authenticator,
    open_gateway,
)
from gz_trio.testing import (
    Comment,
    Cut,
    Drip,
    EarlyDone,
    ErrorFrame,
    FakeGateway,
    Fault,
    Framing,
    Insert,
    Reset,
    SeenRequest,
    Stall,
    Status,
    Warning_,
)
from tests.ways import WAYS, Channels, Way, channels_of

# The server

Content: TypeAlias = Literal["text", "reasoning", "tool calls", "choices", "large events"]

WORDS = (" a", " key", " e\u0301", "日本", " 👩", "\u200d👧", "\n", " data: [DONE]", '"', " 🇪", "🇺")
TOKENS = 8


def tokens_of(content: Content, question: str, attempt: int) -> list[Delta]:
    """The tokens of an answer: another text to another question or attempt."""
    rng = random.Random(f"{question}, {attempt}")
    words = [f"{question} {attempt}", *rng.choices(WORDS, k=TOKENS - 1)]
    match content:
        case "text":
            return [Delta(text=word) for word in words]
        case "reasoning":
            return [
                Delta(reasoning=word) if rng.random() < 0.5 else Delta(text=word) for word in words
            ]
        case "tool calls":
            calls = [ToolCallDelta(0, f"call_{rng.random()}", "look_up", "{")]
            calls += [ToolCallDelta(0, arguments=word) for word in words[2:]]
            return [Delta(text=words[0]), *(Delta(tool_calls=(call,)) for call in calls)]
        case "choices":
            return [Delta(text=word, choice=rng.randrange(2)) for word in words]
        case "large events":  # together more than a reply keeps for a reader that does not read
            return [
                Delta(
                    text=word,
                    raw=msgspec.json.encode(
                        {"choices": [{"index": 0, "delta": {"content": word}}], "pad": "x" * 50_000}
                    ),
                )
                for word in words
            ]


def question_of(body: Mapping[str, object]) -> str:
    """What the user said last."""
    messages = cast("list[dict[str, str]]", body["messages"])
    return [message["content"] for message in messages if message["role"] == "user"][-1]


# And a server that gives its events ids, but takes up no stream by them.
ALL_WAYS = {**WAYS, "ids in vain": Way({"event_ids": "ignored"})}


@dataclass(frozen=True)
class Server:
    """A fake gateway's settings."""

    content: Content = "text"
    samples: bool = False
    """Whether each attempt at an answer is another one."""
    way: str = "replay"
    framing: Framing = "chunked"
    token_interval: float = 1.0
    auth_latency: float = 0.0
    on_rotation: Literal["frame", "cut", "ignore"] = "frame"

    def fake(self) -> FakeGateway:
        return FakeGateway(
            answer=lambda body, attempt: self.answer(question_of(body), attempt),
            framing=self.framing,
            token_interval=self.token_interval,
            auth_latency=self.auth_latency,
            on_rotation=self.on_rotation,
            **ALL_WAYS[self.way].server,
        )

    def answer(self, question: str, attempt: int) -> list[Delta]:
        return tokens_of(self.content, question, attempt if self.samples else 1)


@dataclass(frozen=True)
class Armed:
    """A fault and its moment; see `FakeGateway.fault`."""

    fault: Fault
    request: int | None = None
    token: int | None = None
    generation: int | None = None
    times: int = 1
    path: Literal["/v1/chat/completions", "/auth"] = "/v1/chat/completions"


# What happens


@dataclass(frozen=True)
class Read:
    """One read of a reader: after a pause, and cancelled if nothing comes for so long."""

    pause: float = 0.0
    patience: float | None = None


@dataclass(frozen=True)
class Talk:
    """A conversation begins: so many turns, read in this manner, over and over."""

    turns: int = 1
    by: Literal["events", "deltas", "ask"] = "events"
    reads: tuple[Read, ...] = (Read(),)
    leaves_after: int | None = None
    """Leaves each reply after so many events."""
    cancelled_after: float | None = None
    """Seconds, for the whole conversation."""


@dataclass(frozen=True)
class Rotate:
    """Another key is the valid one."""


@dataclass(frozen=True)
class Expire:
    """No key is valid until a refresh."""


@dataclass(frozen=True)
class SignIn:
    """Somebody signs in, with a new key."""

    same_account: bool


@dataclass(frozen=True)
class SignOut:
    """Somebody signs out."""


@dataclass(frozen=True)
class AskForRefresh:
    """Somebody wants a new key, though nothing is known against the old one."""


@dataclass(frozen=True)
class GoDown:
    """The gateway takes no connections for so many seconds."""

    seconds: float


Happening: TypeAlias = Talk | Rotate | Expire | SignIn | SignOut | AskForRefresh | GoDown


@dataclass(frozen=True)
class Run:
    """All that is made up of one run."""

    server: Server
    on_divergence: Literal["raise", "restart"]
    faults: tuple[Armed, ...]
    happenings: tuple[tuple[float, Happening], ...]
    """Each after so many seconds from the one before."""


# The run


@dataclass
class Told:
    """What a reader got of one reply."""

    question: str
    may_restart: bool
    reply: Reply | None = None
    events: list[ReplyEvent] = field(default_factory=list[ReplyEvent])
    text: str | None = None
    """Where it was asked for as a whole."""
    error: GatewayError | None = None
    left: bool = False

    @property
    def channels(self) -> Channels:
        """What the reader has made of it; after a restart, from there."""
        if self.text is not None:
            return {(0, "text"): self.text} if self.text else {}
        deltas: list[Delta] = []
        for event in self.events:
            if isinstance(event, Restarted):
                deltas.clear()
            elif isinstance(event, Delta):
                deltas.append(event)
        return channels_of(deltas)


class World:
    """A gateway, those who talk to it, and what becomes of them."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.fake = run.server.fake()
        for armed in run.faults:
            self.fake.fault(
                armed.fault,
                request=armed.request,
                token=armed.token,
                generation=armed.generation,
                times=armed.times,
                path=armed.path,
            )
        self.told: list[Told] = []
        self.rotations = 0
        self.failed_refreshes = 0
        self.accounts = [1]  # the generations of the key with which another account signed in
        self._talks = 0
        self._signing_in: trio.Event | None = None

    async def main(self) -> None:
        tasks = trio.lowlevel.current_statistics().tasks_living
        with trio.fail_after(100_000):  # nobody waits for ever
            async with AsyncExitStack() as stack:
                client = await stack.enter_async_context(self.fake.http_client())
                store = MemoryKeyStore(self.fake.key)
                authenticator = await stack.enter_async_context(
                    open_authenticator(store, self.refresh)
                )
                gateway = await stack.enter_async_context(
                    open_gateway(
                        self.fake.base_url,
                        authenticator,
                        http_client=client,
                        resume=ALL_WAYS[self.run.server.way].policy(self.run.on_divergence),
                    )
                )
                async with trio.open_nursery() as nursery:
                    for after, happening in self.run.happenings:
                        await trio.sleep(after)
                        await self.let(happening, nursery, authenticator, gateway)
        assert trio.lowlevel.current_statistics().tasks_living == tasks
        assert self.fake.open_streams == 0

    async def refresh(self, rejected: Key | None) -> str:
        while self._signing_in is not None:
            await self._signing_in.wait()
        account = self.accounts[-1]
        self.failed_refreshes += 1  # unless it gives a key
        key = await self.fake.refresh(rejected)
        self.failed_refreshes -= 1
        if account != self.accounts[-1]:
            # What the fake gave is the other account's: it knows only one at a time. The flight
            # ends by itself.
            await trio.sleep_forever()
        return key

    async def let(
        self,
        happening: Happening,
        nursery: trio.Nursery,
        authenticator: Authenticator,
        gateway: Gateway,
    ) -> None:
        match happening:
            case Talk():
                self._talks += 1
                nursery.start_soon(self.talk, self._talks, happening, gateway)
            case Rotate():
                self.rotations += 1
                self.fake.rotate()
            case Expire():
                self.rotations += 1
                self.fake.expire()
            case SignIn(same_account):
                self._signing_in = trio.Event()
                self.rotations += 1
                key = self.fake.rotate()
                if not same_account:
                    self.accounts.append(self.fake.generation)
                await authenticator.sign_in(key, same_account=same_account)
                self._signing_in.set()
                self._signing_in = None
            case SignOut():
                await authenticator.sign_out()
            case AskForRefresh():
                self.rotations += 1
                authenticator.request_refresh()
            case GoDown(seconds):
                nursery.start_soon(self.go_down, seconds)

    async def go_down(self, seconds: float) -> None:
        self.fake.refuse_connections = True
        await trio.sleep(seconds)
        self.fake.refuse_connections = False

    async def talk(self, number: int, talk: Talk, gateway: Gateway) -> None:
        """One conversation, to its end or the first error."""
        restart = talk.by == "ask" or self.run.on_divergence == "restart"
        patience = trio.CancelScope()
        if talk.cancelled_after is not None:
            patience.deadline = trio.current_time() + talk.cancelled_after
        with patience:
            more = {"n": 2} if self.run.server.content == "choices" else {}
            async with gateway.open_session("fake-model", extra_body=more) as session:
                for turn in range(talk.turns):
                    told = Told(f"talk {number}, turn {turn}", restart, left=True)
                    self.told.append(told)
                    before = list(session.messages)
                    try:
                        if talk.by == "ask":
                            told.text = await session.ask(told.question)
                        else:
                            async with session.stream(told.question) as told.reply:
                                try:
                                    whole = await self.read(talk, told.reply, told)
                                finally:
                                    if restart and talk.by == "deltas":
                                        # Who reads deltas sees no `Restarted`.
                                        told.text = told.reply.text
                                if not whole:
                                    continue
                    except GatewayError as error:
                        told.error = error
                        told.left = False
                        assert session.messages == before
                        return
                    told.left = False
                    answer = session.messages[-1]
                    assert session.messages[: len(before)] == before
                    assert session.messages[len(before)]["content"] == told.question
                    assert (answer["content"] or "") == told.channels.get((0, "text"), "")
                    assert len(session.messages) == len(before) + 2

    async def read(self, talk: Talk, reply: Reply, told: Told) -> bool:
        """Read a reply. Whether to its end."""
        source = reply.events() if talk.by == "events" else reply
        reads = cycle(talk.reads)
        while len(told.events) != talk.leaves_after:
            read = next(reads)
            await trio.sleep(read.pause)
            try:
                with trio.CancelScope() as scope:
                    if read.patience is not None:
                        scope.deadline = trio.current_time() + read.patience
                    told.events.append(await anext(source))
                if scope.cancelled_caught:
                    told.events.append(await anext(source))
            except StopAsyncIteration:
                return True
        return False


def run_on_mock_clock(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=MockClock(autojump_threshold=0))


# What must be true afterwards


@dataclass
class Sent:
    """An answer of the gateway, over all requests that took it up by an event's id."""

    partial: str
    """What it goes on from: the end of the request."""
    tokens: list[Delta]
    """All that the model has to say."""
    made: int = 0
    halved: bool = False
    """Whether a connection was left in the middle of a token."""
    requests: list[SeenRequest] = field(default_factory=list[SeenRequest])

    @property
    def most(self) -> Channels:
        """All that a reader can have got."""
        return channels_of([Delta(text=self.partial), *self.tokens[: self.made]])

    @property
    def least(self) -> Channels:
        """What a reader must have got who reads to the end."""
        surely = max(self.made - self.halved, 0)
        return channels_of([Delta(text=self.partial), *self.tokens[:surely]])


def rest_of(tokens: Sequence[Delta], partial: str) -> list[Delta]:
    """What comes after a text that they begin with."""
    left = list(tokens)
    while partial:
        token = left.pop(0)
        text = token.text[len(partial) :]
        partial = partial[len(token.text) :]
        if text:
            left.insert(0, Delta(text=text))
    return left


class Ledger:
    """What the gateway saw of one question, and what it sent."""

    def __init__(self, world: World, question: str) -> None:
        self.requests: list[SeenRequest] = []
        self.answers: list[Sent] = []
        self.server = world.run.server
        numbers: list[int] = []
        for number, seen in enumerate(world.fake.requests, 1):
            if seen.body is None or question_of(seen.body) != question:
                continue
            self.requests.append(seen)
            if seen.status != 200:
                continue
            if seen.resumed_after is None:
                sent = self.begun(seen, question)
                self.answers.append(sent)
                numbers.append(number)
            else:
                # An id begins with the number of the request that the answer began with.
                begun = int(seen.resumed_after.partition("-")[0])
                sent = self.answers[numbers.index(begun)]
            sent.requests.append(seen)
            sent.made += seen.tokens
            sent.halved |= any(
                isinstance(fault, Cut | Reset) and fault.after_bytes is not None
                for fault in seen.faults
            )
        self.faults = [fault for seen in self.requests for fault in seen.faults]

    def begun(self, seen: SeenRequest, question: str) -> Sent:
        """A new answer; by a server that samples, none goes on from a partial one."""
        last = cast("list[dict[str, str]]", (seen.body or {})["messages"])[-1]
        partial = last["content"] if last["role"] == "assistant" else ""
        tokens = self.server.answer(question, len(self.answers) + 1)
        return Sent(partial, rest_of(tokens, partial))


def begins(whole: Channels, part: Channels) -> bool:
    """Whether `whole` begins with `part`, channel by channel."""
    return all(whole.get(channel, "").startswith(text) for channel, text in part.items())


def check(world: World) -> None:
    for told in world.told:
        got = [e if not isinstance(e, Delta) else e.text or e.reasoning for e in told.events]
        note(f"{told.question}: {told.error!r} {got}")
        ledger = Ledger(world, told.question)
        check_text(told, ledger)
        check_end(world, told, ledger)
        check_events(told)
        check_account(world, ledger)
    check_refreshes(world)


def check_text(told: Told, ledger: Ledger) -> None:
    text, server = told.channels, ledger.server
    if told.error is None and not told.left:
        answer = next(sent for sent in ledger.answers if ledger.requests[-1] in sent.requests)
        last = answer.requests[-1]
        # A lie cannot be told from the truth if it is told at the first attempt.
        lied = any(isinstance(fault, EarlyDone) and fault.done for fault in last.faults)
        assert last.complete or lied or answer.made == len(answer.tokens)
        whole = channels_of(server.answer(told.question, ledger.answers.index(answer) + 1))
        whole = answer.least if lied else whole
        if told.text is not None:
            whole = {channel: part for channel, part in whole.items() if channel == (0, "text")}
        assert text == whole
    if told.reply is not None and told.text is None:
        assert told.reply.text == text.get((0, "text"), "")
    if told.error is not None and told.reply is not None:
        assert told.error.partial == told.reply.text
    # Never a mixture, and never more than was sent. (Of thoughts a continued answer has none.)
    thoughts = {channel: part for channel, part in text.items() if channel == (0, "reasoning")}
    assert not text or any(begins({**thoughts, **sent.most}, text) for sent in ledger.answers)
    if told.left or told.reply is None or told.text is not None:
        return
    # Never less, but for what a second answer took back, and what is not known to belong there.
    if server.way == "ids in vain" or (server.content == "reasoning" and server.way != "replay"):
        return
    if not server.samples:
        assert all(begins(text, sent.least) for sent in ledger.answers)
    elif not told.may_restart:
        begun = [sent.least for sent in ledger.answers if sent.least]
        assert all(begins(text, first) for first in begun[:1])


def check_end(world: World, told: Told, ledger: Ledger) -> None:
    """A reply ends in one of the documented ways, and for a reason."""
    struck = ledger.faults
    happenings = [happening for _, happening in world.run.happenings]
    statuses = {fault.status for fault in struck if isinstance(fault, Status)}
    frames = {fault.type for fault in struck if isinstance(fault, ErrorFrame)}
    why: bool
    match told.error:
        case None:
            return
        case AuthenticationError():
            kinds = (Rotate, Expire, SignIn, SignOut)
            why = any(isinstance(happening, kinds) for happening in happenings)
            # Whoever waits for a refresh shares its end, whosever 401 it was.
            said = [fault for seen in world.fake.requests for fault in seen.faults]
            why = why or any(
                (isinstance(fault, Status) and fault.status in (401, 500))
                or (isinstance(fault, ErrorFrame) and fault.type == "auth_error")
                for fault in said
            )
            assert type(told.error) in (AuthenticationError, RefreshError, RefreshTimeout)
        case RateLimitError():
            why = 429 in statuses or "rate_limit_error" in frames
        case PaymentRequiredError():
            why = 402 in statuses or "plan_limit_exceeded" in frames
        case PermissionDeniedError():
            why = 403 in statuses
        case NotFoundError():
            why = "not_found_error" in frames
        case InternalServerError():
            why = bool(statuses & {500, 502, 503, 529} or frames)
        case StreamTimeout():
            why = any(isinstance(fault, Stall) for fault in struck)
        case StreamInterrupted() | APIConnectionError():
            broke = (Cut, Reset, EarlyDone)
            why = any(isinstance(fault, broke) for fault in struck) or (
                world.run.server.samples
                or world.run.server.on_rotation == "cut"
                or any(isinstance(happening, GoDown) for happening in happenings)
            )
        case _:
            why = False
    assert why, f"{told.error!r} for no reason"


def check_events(told: Told) -> None:
    paused = False
    begun: set[int] = set()
    finished: set[int] = set()
    for position, event in enumerate(told.events):
        match event:
            case Paused() | RateLimited():
                paused = True
            case Resumed():
                assert paused, "resumed, but was not paused"
                paused = False
            case Restarted():
                assert told.may_restart
                begun.clear()
                finished.clear()
            case Finished():
                assert position == len(told.events) - 1
                assert told.error is None
            case Delta(choice=choice):
                by_events = any(not isinstance(other, Delta) for other in told.events)
                assert not (paused and by_events), "new text, but not resumed"
                if event.text or event.reasoning or event.tool_calls:
                    begun.add(choice)
                    assert choice not in finished, "more of a choice that had ended"
                if event.finish_reason is not None:
                    assert choice not in finished, "ended twice"
                    finished |= begun & {choice}  # an answer without any text is asked for again
            case _:
                pass
    if told.reply is None or told.left:
        return
    timing = told.reply.timing
    assert timing.ended is not None
    assert 0 <= timing.paused <= timing.ended
    assert told.reply.complete == (told.error is None)
    attempts = told.reply.attempts
    assert all(attempt.ended is not None for attempt in attempts)
    assert all(attempt.cause is not None for attempt in attempts[:-1])
    assert not attempts or told.reply.complete == (attempts[-1].cause is None)


def check_account(world: World, ledger: Ledger) -> None:
    """No reply goes on under the key of another account."""
    generations = [seen.generation for seen in ledger.requests if seen.generation is not None]
    accounts = {sum(first <= generation for first in world.accounts) for generation in generations}
    assert len(accounts) <= 1


def check_refreshes(world: World) -> None:
    """Never more refreshes that gave a key than keys that died, or were said to have died."""
    struck = [fault for seen in world.fake.requests for fault in seen.faults]
    said = sum(isinstance(fault, Status) and fault.status in (401, 500) for fault in struck)
    # At the first of them the reply asks again with the same key.
    frames = sum(isinstance(fault, ErrorFrame) and fault.type == "auth_error" for fault in struck)
    allowed = world.rotations + said + frames // 2
    assert world.fake.refreshes - world.failed_refreshes <= allowed


# What is made up

SECONDS = st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0, 4.5, 10.0, 45.0])


def seldom(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.integers(0, 7).flatmap(lambda number: strategy if number == 7 else st.none())


def armed(
    fault: st.SearchStrategy[Fault], token: st.SearchStrategy[int | None], times: int
) -> st.SearchStrategy[Armed]:
    return st.builds(
        Armed,
        fault,
        request=st.sampled_from([None, None, None, None, 1, 2, 3, 5]),
        token=token,
        generation=st.sampled_from([None, None, None, None, 1, 2, 3]),
        times=st.integers(1, times),
    )


TOKEN = st.integers(0, TOKENS)
LATE = st.integers(TOKENS - 2, TOKENS)  # a Drip takes long: a thousand bytes are a thousand waits
IN_PLACE_OF_THE_HEAD: st.SearchStrategy[int | None] = st.none()
BYTES = st.none() | st.integers(0, 600)

# A reply survives each of these by itself.
ENDS: st.SearchStrategy[Fault] = st.one_of(
    st.builds(Cut, BYTES), st.builds(Reset, BYTES), st.just(EarlyDone(done=False))
)
STATUSES: st.SearchStrategy[Fault] = st.sampled_from(
    [
        Status(429, headers={"retry-after": "2"}),
        Status(429, "Too many concurrent requests"),
        Status(502),
        Status(503, dialect="html"),
        Status(529),
    ]
)
FRAMES: st.SearchStrategy[Fault] = st.builds(
    ErrorFrame,
    st.sampled_from(["provider_error", "capacity_error", "rate_limit_error", "stream_error"]),
    dialect=st.sampled_from(["gatewayz", "openrouter"]),
    done=st.booleans(),
)
HARMLESS: st.SearchStrategy[Fault] = st.sampled_from(
    [
        Comment(),
        Warning_(),
        Stall(30.0),
        Stall(30.0),
        Insert(b'event: news\ndata: {"type": "news"}\n\n'),
        Insert(b"id: 7\nretry: 10\n\n"),
    ]
)
# Three stalls at one token are still shorter than the 120 seconds that a token may take.
SURVIVED = st.one_of(
    armed(ENDS, TOKEN, 1),
    armed(FRAMES, TOKEN, 1),
    armed(HARMLESS, TOKEN, 2),
    armed(st.just(Drip(0.001)), LATE, 1),
    armed(ENDS | STATUSES, IN_PLACE_OF_THE_HEAD, 1),
)
ONCE = armed(
    st.sampled_from([Stall(), ErrorFrame("auth_error")]), TOKEN, 1
)  # each may strike a reply once
AUTH_SURVIVED = st.builds(
    Armed,
    st.sampled_from([Stall(5.0), Status(429), Cut()]),
    path=st.just("/auth"),
)

ANY_FAULT = st.one_of(
    *2 * [armed(ENDS, TOKEN, 4), armed(FRAMES, TOKEN, 3)],  # so that many replies are taken up
    armed(HARMLESS, TOKEN, 3),
    armed(st.just(Drip(0.001)), LATE, 1),
    armed(ENDS | STATUSES, IN_PLACE_OF_THE_HEAD, 9),
    armed(
        st.sampled_from(
            [
                Stall(),
                ErrorFrame("auth_error"),
                ErrorFrame("not_found_error"),
                ErrorFrame("plan_limit_exceeded"),
                EarlyDone(),
                EarlyDone("stop"),
            ]
        ),
        TOKEN,
        3,
    ),
    armed(
        st.sampled_from(
            [
                Stall(),
                Status(401),
                Status(401, code="GUEST_NOT_CONFIGURED"),
                Status(402),
                Status(403),
                Status(429, headers={"retry-after": "500"}),
                Status(429, headers={"x-ratelimit-scope": "upstream"}),
                Status(500, "Failed to get chat stats: 401: Invalid API key"),
            ]
        ),
        IN_PLACE_OF_THE_HEAD,
        3,
    ),
    st.builds(
        Armed,
        st.sampled_from(
            [Stall(5.0), Stall(), Status(401), Status(403), Status(500), Status(503), Cut()]
        ),
        times=st.integers(1, 3),
        path=st.just("/auth"),
    ),
)

READS = st.lists(
    st.builds(
        Read, pause=st.sampled_from([0.0, 0.0, 0.3, 5.0, 200.0]), patience=st.none() | SECONDS
    ),
    min_size=1,
    max_size=4,
).map(tuple)

TALKS = st.builds(
    Talk,
    turns=st.integers(1, 2),
    by=st.sampled_from(["events", "events", "deltas", "ask"]),
    reads=READS,
    leaves_after=seldom(st.integers(0, TOKENS)),
    cancelled_after=seldom(SECONDS),
)


MANNERS: dict[str, st.SearchStrategy[Any]] = {
    "framing": st.sampled_from(["chunked", "plain", "gzip"]),
    "token_interval": st.sampled_from([1.0, 1.0, 0.0, 20.0]),
    "auth_latency": st.sampled_from([0.0, 5.0]),
    "on_rotation": st.sampled_from(["frame", "cut", "ignore"]),
}
SERVERS = st.builds(
    Server,
    content=st.sampled_from(["text", "text", "reasoning", "tool calls", "choices", "large events"]),
    way=st.sampled_from(list(ALL_WAYS)),
    **MANNERS,
)
SAMPLING_SERVERS = st.builds(
    Server,
    content=st.sampled_from(["text", "large events"]),
    samples=st.just(True),
    way=st.sampled_from(["replay", "cursor", "ids in vain"]),
    **MANNERS,
)


def happenings(
    *others: Happening, most: int
) -> st.SearchStrategy[tuple[tuple[float, Happening], ...]]:
    """Conversations, and as many of `others` as there may be."""
    one = st.tuples(SECONDS, TALKS | st.sampled_from(others))
    return st.lists(one, min_size=1, max_size=most).map(tuple)


OFTEN: list[Happening] = [Rotate(), Expire(), GoDown(3.0)]
SOMETIMES: list[Happening] = [
    SignIn(same_account=True),
    SignIn(same_account=False),
    SignOut(),
    AskForRefresh(),
    GoDown(1000.0),
]

ANY_RUN = st.builds(
    Run,
    server=SERVERS | SAMPLING_SERVERS,
    on_divergence=st.sampled_from(["raise", "restart"]),
    faults=st.lists(ANY_FAULT, min_size=1, max_size=6).map(tuple),
    happenings=happenings(*OFTEN, *OFTEN, *OFTEN, *SOMETIMES, most=10),
)

SURVIVABLE_RUN = st.builds(
    Run,
    server=SERVERS,
    on_divergence=st.sampled_from(["raise", "restart"]),
    faults=st.tuples(
        st.lists(SURVIVED, max_size=3),
        st.lists(ONCE, max_size=1),
        st.lists(AUTH_SURVIVED, max_size=1),
    ).map(lambda lists: tuple(armed for list_ in lists for armed in list_)),
    happenings=happenings(Rotate(), Expire(), GoDown(3.0), most=8).filter(
        lambda list_: (
            sum(isinstance(h, Rotate | Expire) for _, h in list_) <= 2
            and sum(isinstance(h, GoDown) for _, h in list_) <= 1
        )
    ),
)

SCARCE = settings(
    max_examples=max(25, min(settings().max_examples // 10, 500)),
    phases=[phase for phase in Phase if phase is not Phase.explain],
)


@SCARCE
@given(ANY_RUN, st.random_module())
def test_in_every_order_ledger_and_text_agree_and_each_reply_ends_as_documented(
    made_up: Run, seed: object
) -> None:
    world = World(made_up)
    run_on_mock_clock(world.main)
    check(world)


@SCARCE
@given(SURVIVABLE_RUN, st.random_module())
def test_in_every_order_a_reply_survives_what_can_be_survived(made_up: Run, seed: object) -> None:
    world = World(made_up)
    run_on_mock_clock(world.main)
    check(world)
    assert [told.error for told in world.told] == [None] * len(world.told)
