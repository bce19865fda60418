"""Draining a reply: each delta goes to a sink where it is read, and no task is woken for it."""

from __future__ import annotations

import logging
import random
import signal
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter_ns
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

from gz_trio import (
    APIConnectionError,
    AuthenticationError,
    BadRequestError,
    Delta,
    EmptyResponseError,
    Finished,
    Gateway,
    GatewayError,
    InternalServerError,
    Paused,
    PaymentRequiredError,
    PermissionDeniedError,
    ProtocolError,
    RateLimited,
    RateLimitError,
    RawEvent,
    RefreshError,
    RefreshTimeout,
    Reply,
    ReplyEvent,
    Restarted,
    Resumed,
    ResumePolicy,
    RetryPolicy,
    StreamInterrupted,
    StreamTimeout,
    Timeouts,
    ToolCallDelta,
    open_session,
)
from gz_trio._chat.buffer import BUFFER_BYTES
from gz_trio.testing import (
    Comment,
    Cut,
    EarlyDone,
    EmptyStream,
    ErrorFrame,
    FakeGateway,
    Insert,
    OtherText,
    Reset,
    Stall,
    Status,
    Warning_,
)
from tests.chats import BODY, RESTART, after_deltas, deltas_of, open_over, tell
from tests.ways import WAYS, Way


@dataclass
class Sink:
    """Keeps all that it is given; `on` is called with each event after that."""

    on: Callable[[ReplyEvent], object] = lambda _: None
    events: list[ReplyEvent] = field(default_factory=list[ReplyEvent])
    arrivals: list[int] = field(default_factory=list[int])

    def take(self, delta: Delta, arrived_ns: int) -> None:
        self.arrivals.append(arrived_ns)
        self.note(delta)

    def note(self, event: ReplyEvent) -> None:
        self.events.append(event)
        self.on(event)

    @property
    def deltas(self) -> list[Delta]:
        return [event for event in self.events if isinstance(event, Delta)]

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas if delta.choice == 0)

    async def drain(self, reply: Reply) -> None:
        await reply.drain(self.take, on_event=self.note)


def no_matter(_delta: Delta, _arrived_ns: int) -> None:
    """A sink."""


def nothing(event: ReplyEvent) -> None:
    """An `on_event` that is not to be called."""
    pytest.fail(f"{event} came")


def no_delta(delta: Delta, _arrived_ns: int) -> None:
    """A sink that is not to be called."""
    nothing(delta)


def at(count: int, action: Callable[[], object]) -> Callable[[ReplyEvent], object]:
    """For a sink: do something at the delta with text of this number."""
    seen = 0

    def on(event: ReplyEvent) -> None:
        nonlocal seen
        if isinstance(event, Delta) and event.text:
            seen += 1
            if seen == count:
                action()

    return on


def comparable(event: ReplyEvent) -> ReplyEvent:
    """Two completions are not made in the same second, always."""
    return msgspec.structs.replace(event, raw=b"") if isinstance(event, Delta) else event


async def drained(gateway: Gateway, sink: Sink, body: Mapping[str, object] = BODY) -> Reply:
    async with gateway.stream(body) as reply:
        await sink.drain(reply)
    return reply


# What comes

TOOL_CALLS = [
    Delta(text="Let me see."),
    Delta(tool_calls=(ToolCallDelta(0, "call_1", "weather", ""),)),
    Delta(tool_calls=(ToolCallDelta(0, arguments='{"city":'),)),
    Delta(tool_calls=(ToolCallDelta(0, arguments='"Kyiv"}'),)),
    Delta(tool_calls=(ToolCallDelta(1, "call_2", "time", "{}"),)),
]
CHOICES = [Delta(text=f"{number} ", choice=number % 3) for number in range(12)]
REASONING: list[str | Delta] = [
    Delta(reasoning="Hm"),
    Delta(reasoning=", so"),
    "Yes",
    ".",
    Delta(reasoning="?"),
    "!",
]
LARGE = [f"{number:<1000}" for number in range(600)]

ANSWERS: dict[str, list[str | Delta]] = {
    "text": [f"{number} " for number in range(40)],
    "reasoning": REASONING,
    "tool calls": [*TOOL_CALLS],
    "several choices": [*CHOICES],
    "one token": ["Yes"],
    "more than a buffer": [*LARGE],
}
each_answer = pytest.mark.parametrize("answer", ANSWERS.values(), ids=[*ANSWERS])


@each_answer
@pytest.mark.parametrize("interval", [0.0, 1.0])
async def test_the_sink_gets_what_a_reader_gets_each_delta_once_and_in_order(
    autojump_clock: MockClock, answer: list[str | Delta], interval: float
) -> None:
    fake = FakeGateway(answer=lambda _, __: answer, token_interval=interval)
    sink = Sink()
    async with open_over(fake) as gateway:
        told = await tell(gateway)
        reply = await drained(gateway, sink)
    assert [*map(comparable, sink.events)] == [*map(comparable, told.events)]
    assert [bool(delta.raw) for delta in sink.deltas] == [bool(d.raw) for d in deltas_of(told)]
    assert (reply.text, reply.message) == (told.reply.text, told.reply.message)
    assert (reply.usage, reply.finish_reason) == (told.reply.usage, told.reply.finish_reason)
    assert reply.complete
    (attempt,) = reply.attempts
    (other,) = told.reply.attempts
    assert (attempt.tokens, attempt.accepted) == (other.tokens, True)
    assert reply.timing.longest_gap == told.reply.timing.longest_gap == interval or len(answer) == 1


async def test_a_whole_completion_is_drained_too(autojump_clock: MockClock) -> None:
    completion = {
        "choices": [{"index": 0, "message": {"content": "Once"}, "finish_reason": "stop"}]
    }
    fake = FakeGateway()
    fake.fault(Status(200, body=completion))
    sink = Sink()
    before = perf_counter_ns()
    async with open_over(fake) as gateway:
        reply = await drained(gateway, sink)
    assert (reply.text, reply.complete) == ("Once", True)
    assert len(sink.arrivals) == 1
    assert before <= sink.arrivals[0] <= perf_counter_ns()


async def test_a_session_has_said_what_was_drained(autojump_clock: MockClock) -> None:
    fake = FakeGateway()
    async with (
        fake.http_client() as client,
        open_session(
            fake.base_url, model="fake-model", key=fake.key, http_client=client
        ) as session,
    ):
        async with session.stream("Tell me a story.") as reply:
            await reply.drain(no_matter)
        assert session.messages[-1] == {"role": "assistant", "content": reply.text}


async def test_the_reply_has_a_delta_when_the_sink_gets_it(autojump_clock: MockClock) -> None:
    fake = FakeGateway(token_interval=1.0)
    text = ""
    async with open_over(fake) as gateway, gateway.stream(BODY) as reply:

        def take(delta: Delta, _: int) -> None:
            nonlocal text
            text += delta.text
            assert reply.text == text
            assert not reply.complete
            assert repr(reply) == f"<Reply model='fake-model' streaming, {len(text)} characters>"

        await reply.drain(take)
    assert reply.text == text == fake.intended(BODY)


# When it came

CHUNKS = b"".join(
    b'data: {"choices":[{"index":0,"delta":{"content":"%d"}}]}\n\n' % number for number in range(5)
)


async def test_each_arrival_is_told_in_nanoseconds_of_perf_counter_and_never_goes_back(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(tokens=20, token_interval=1.0)
    for token in (5, 10, 15):
        fake.fault(Cut(), token=token)
    sink = Sink()
    before = perf_counter_ns()
    async with open_over(fake) as gateway:
        await drained(gateway, sink)
    assert before <= sink.arrivals[0]
    assert sink.arrivals == sorted(sink.arrivals)
    assert sink.arrivals[-1] <= perf_counter_ns()
    assert len(sink.arrivals) == len(sink.deltas)


async def test_deltas_of_one_receive_have_one_arrival_and_the_next_one_has_another(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(tokens=8, token_interval=1.0)
    fake.fault(Insert(CHUNKS), token=3)
    sink = Sink()
    async with open_over(fake) as gateway:
        await drained(gateway, sink)
    arrivals = {
        delta.text: arrived_ns
        for delta, arrived_ns in zip(sink.deltas, sink.arrivals, strict=True)
        if delta.text.isdigit()
    }
    assert [*arrivals] == ["0", "1", "2", "3", "4"]
    assert len({*arrivals.values()}) == 1
    # Eight tokens, a second apart, of which one may have come with the five that were put in.
    assert len({*sink.arrivals}) >= 8


async def test_what_waited_in_the_buffer_tells_when_it_came_and_not_when_it_was_read(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(tokens=5)
    sink = Sink()
    async with open_over(fake) as gateway, gateway.stream(BODY) as reply:
        await wait_all_tasks_blocked()
        came_by = perf_counter_ns()
        await sink.drain(reply)
    assert len(sink.arrivals) > 5
    assert max(sink.arrivals) <= came_by


# Tasks


class Steps(trio.abc.Instrument):
    """Counts how often tasks run, by their names."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._counts[task.name] += 1

    def of(self, name: str) -> int:
        return sum(count for task, count in self._counts.items() if task.endswith(f".{name}"))


@pytest.mark.parametrize("tokens", [10, 500])
async def test_no_task_is_woken_for_a_delta(
    autojump_clock: MockClock, transport: str, tokens: int
) -> None:
    fake = FakeGateway(tokens=tokens, token_interval=1.0)
    steps = Steps()

    async def drain(reply: Reply) -> None:
        await reply.drain(no_matter)

    async def iterate(reply: Reply) -> None:
        async for _ in reply:
            pass

    async with open_over(fake) as gateway:
        trio.lowlevel.add_instrument(steps)
        for read in (drain, iterate):
            async with gateway.stream(BODY) as reply, trio.open_nursery() as nursery:
                nursery.start_soon(read, reply)
                await trio.lowlevel.checkpoint()
        trio.lowlevel.remove_instrument(steps)
    assert steps.of("drain") <= 4
    assert steps.of("iterate") >= tokens
    if transport == "sockets":  # Any other stream is read by the task that receives the reply.
        assert 0 < steps.of("Receiver._run") <= 20  # For both replies.
        assert steps.of("Demux.run") >= 2 * tokens


# With what came before, and what comes after


async def test_what_was_buffered_before_comes_first(autojump_clock: MockClock) -> None:
    fake = FakeGateway(tokens=20, token_interval=1.0)
    sink = Sink()
    async with open_over(fake) as gateway, gateway.stream(BODY) as reply:
        await trio.sleep(10.5)
        assert reply.text == ""
        with trio.move_on_after(0):
            await sink.drain(reply)
        assert not sink.events  # its checkpoint comes before anything
        sink.on = at(10, lambda: trio.current_time() == 10.5 or pytest.fail("it was held up"))
        await sink.drain(reply)
    assert sink.text == reply.text == fake.intended(BODY)


async def test_iterated_then_drained_then_iterated_gives_each_delta_once(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(tokens=30, token_interval=1.0)
    sink = Sink()
    async with open_over(fake) as gateway, gateway.stream(BODY) as reply:
        text = ""
        async for delta in reply:
            text += delta.text
            if trio.current_time() >= 7:
                break
        with trio.move_on_after(10.5):
            await sink.drain(reply)
        assert 8 <= len(sink.deltas) <= 12
        text += sink.text
        assert reply.text == text
        async for event in reply.events():
            if isinstance(event, Delta):
                text += event.text
    assert text == reply.text == fake.intended(BODY)
    assert reply.complete


async def test_drained_over_and_over_each_time_cancelled_loses_and_doubles_nothing(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(tokens=50, token_interval=1.0)
    fake.fault(Cut(), token=20)
    rng = random.Random(1)
    sink = Sink()
    async with open_over(fake) as gateway, gateway.stream(BODY) as reply:
        while not reply.complete:
            with trio.move_on_after(rng.choice([0, 0.3, 2.5])):
                if rng.random() < 0.3:
                    sink.note(await anext(reply.events()))
                else:
                    await sink.drain(reply)
    assert sink.text == reply.text == fake.intended(BODY)
    assert [type(event) for event in sink.events if not isinstance(event, Delta)] == [
        Paused,
        Resumed,
        Finished,
    ]
    assert len(reply.attempts) == 2


@pytest.mark.parametrize("buffered", [0, 15.5])
async def test_a_sink_that_cancels_the_drain_gets_the_rest_another_time(
    autojump_clock: MockClock, buffered: float
) -> None:
    fake = FakeGateway(tokens=20, token_interval=1.0)
    sink = Sink()
    async with open_over(fake) as gateway, gateway.stream(BODY) as reply:
        await trio.sleep(buffered)
        with trio.CancelScope() as scope:
            sink.on = at(5, scope.cancel)
            await sink.drain(reply)
        assert scope.cancelled_caught
        first = len(sink.deltas)
        assert sum(bool(delta.text) for delta in sink.deltas) >= 5
        assert not reply.complete
        await trio.sleep(3.5)
        assert len(sink.deltas) == first
        await sink.drain(reply)
    assert sink.text == reply.text == fake.intended(BODY)


async def test_a_drain_lets_the_receiving_go_on_that_a_slow_reader_had_stopped(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(answer=lambda _, __: LARGE)
    sink = Sink()
    async with open_over(fake) as gateway, gateway.stream(BODY) as reply:
        await wait_all_tasks_blocked()
        await sink.drain(reply)
    assert sink.text == "".join(LARGE)


async def test_between_two_drains_the_buffer_is_bounded(autojump_clock: MockClock) -> None:
    fake = FakeGateway(answer=lambda _, __: LARGE)
    sink = Sink()
    async with open_over(fake) as gateway, gateway.stream(BODY) as reply:
        with trio.CancelScope() as scope:
            sink.on = at(10, scope.cancel)
            await sink.drain(reply)
        await wait_all_tasks_blocked()
        buffer = reply._buffer  # pyright: ignore[reportPrivateUsage]
        assert BUFFER_BYTES <= buffer.buffered_bytes <= BUFFER_BYTES + 65_536
        await sink.drain(reply)
    assert sink.text == "".join(LARGE)


# One reader


async def test_a_reply_that_is_read_cannot_be_drained_and_the_reader_is_not_disturbed(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(token_interval=1.0)
    text: list[str] = []

    async def read(reply: Reply) -> None:
        text.extend([delta.text async for delta in reply])

    async with (
        open_over(fake) as gateway,
        gateway.stream(BODY) as reply,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(read, reply)
        await trio.sleep(2.5)
        with pytest.raises(trio.BusyResourceError, match="another task is reading"):
            await reply.drain(no_matter)
    assert "".join(text) == reply.text == fake.intended(BODY)


async def test_a_reply_that_is_drained_cannot_be_read_and_the_sink_is_not_disturbed(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(token_interval=1.0)
    sink = Sink()
    async with (
        open_over(fake) as gateway,
        gateway.stream(BODY) as reply,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(sink.drain, reply)
        await trio.sleep(2.5)
        for read in (partial(anext, reply), partial(anext, reply.events())):
            with pytest.raises(trio.BusyResourceError, match="another task is reading"):
                await read()
        with pytest.raises(trio.BusyResourceError, match="another task is reading"):
            await reply.drain(no_matter)
    assert sink.text == reply.text == fake.intended(BODY)


# Everything that happens


@dataclass(frozen=True)
class Course:
    """What a reply goes through, and what is told of it beside its deltas.

    Args:
        arm: Called before.
        happened: The events.
        after_four: Called when four tokens have come.
    """

    arm: Callable[[FakeGateway], object]
    happened: list[type[ReplyEvent]]
    after_four: Callable[[FakeGateway], object] = lambda _: None
    way: Way = WAYS["replay"]
    resume: ResumePolicy | None = None
    refreshes: int = 0
    answer: Callable[[Mapping[str, object], int], list[str]] | None = None


def another_each_time(_: Mapping[str, object], attempt: int) -> list[str]:
    return [f"{attempt}: {number}, " for number in range(12)]


def cut_twice(fake: FakeGateway) -> None:
    fake.fault(Cut(), token=5)
    fake.fault(Cut(), token=10)


COURSES = {
    "nothing": Course(lambda _: None, [Finished]),
    "a key that is dead on arrival": Course(
        lambda fake: fake.expire(), [Paused, Resumed, Finished], refreshes=1
    ),
    "a key that dies in mid-stream": Course(
        lambda _: None,
        [Paused, Paused, Resumed, Finished],
        after_four=lambda fake: fake.expire(),
        refreshes=1,
    ),
    "a key that dies in mid-stream, with a cut": Course(
        lambda fake: setattr(fake, "on_rotation", "cut"),
        [Paused, Paused, Resumed, Finished],
        after_four=lambda fake: fake.expire(),
        refreshes=1,
    ),
    "a cut": Course(lambda fake: fake.fault(Cut(), token=5), [Paused, Resumed, Finished]),
    "a reset": Course(lambda fake: fake.fault(Reset(), token=5), [Paused, Resumed, Finished]),
    "a cut within an event": Course(
        lambda fake: fake.fault(Cut(after_bytes=20), token=5), [Paused, Resumed, Finished]
    ),
    "a silence": Course(lambda fake: fake.fault(Stall(), token=5), [Paused, Resumed, Finished]),
    "an error frame": Course(
        lambda fake: fake.fault(ErrorFrame("provider_error"), token=5), [Paused, Resumed, Finished]
    ),
    "an error beside text": Course(
        lambda fake: fake.fault(ErrorFrame("provider_error", dialect="openrouter"), token=5),
        [Paused, Resumed, Finished],
    ),
    "a rate limit": Course(
        lambda fake: fake.fault(Status(429, headers={"retry-after": "2"})),
        [RateLimited, Resumed, Finished],
    ),
    "a warning": Course(lambda fake: fake.fault(Warning_(), token=5), [RawEvent, Finished]),
    "a comment": Course(lambda fake: fake.fault(Comment(), token=5), [Finished]),
    "an empty answer": Course(lambda fake: fake.fault(EmptyStream()), [Paused, Resumed, Finished]),
    "every fifth token cut": Course(
        cut_twice,
        [Paused, Resumed, Paused, Resumed, Finished],
    ),
    "another answer": Course(
        lambda fake: fake.fault(Cut(), token=5),
        [Paused, Restarted, Resumed, Finished],
        resume=RESTART,
        answer=another_each_time,
    ),
    **{
        f"a cut, taken up by {name}": Course(
            lambda fake: fake.fault(Cut(), token=5), [Paused, Resumed, Finished], way=way
        )
        for name, way in WAYS.items()
    },
}
each_course = pytest.mark.parametrize("course", COURSES.values(), ids=[*COURSES])


def fake_of(course: Course) -> FakeGateway:
    fake = FakeGateway(token_interval=1.0, answer=course.answer, **course.way.server)
    course.arm(fake)
    return fake


@each_course
async def test_whatever_happens_the_sink_and_on_event_get_what_the_events_are_and_in_their_order(
    autojump_clock: MockClock, course: Course, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "random", lambda: 0.5)  # each wait is told
    resume = course.resume or course.way.policy()
    read_from, drained_from = fake_of(course), fake_of(course)
    async with open_over(read_from, resume=resume) as gateway:
        die = partial(course.after_four, read_from)
        told = await tell(gateway, on_event=after_deltas(4, die))
    sink = Sink(at(4, partial(course.after_four, drained_from)))
    async with open_over(drained_from, resume=resume) as gateway:
        reply = await drained(gateway, sink)
    assert [*map(comparable, sink.events)] == [*map(comparable, told.events)]
    assert [type(event) for event in told.happened] == course.happened
    assert told.error is None
    assert reply.complete
    assert (reply.text, reply.usage) == (told.reply.text, told.reply.usage)
    assert sink.events[-1] == Finished(reply.finish_reason, reply.usage)
    assert drained_from.refreshes == read_from.refreshes == course.refreshes
    assert len(drained_from.requests) == len(read_from.requests)
    assert [
        (attempt.tokens, attempt.repeated, attempt.resumed_by) for attempt in reply.attempts
    ] == [(attempt.tokens, attempt.repeated, attempt.resumed_by) for attempt in told.reply.attempts]
    assert (reply.timing.paused, reply.timing.longest_gap, reply.timing.between_tokens) == (
        told.reply.timing.paused,
        told.reply.timing.longest_gap,
        told.reply.timing.between_tokens,
    )
    if course.answer is None:
        assert sink.text == reply.text == drained_from.intended(BODY)


@each_course
async def test_on_event_may_be_left_out(autojump_clock: MockClock, course: Course) -> None:
    fake = fake_of(course)
    async with (
        open_over(fake, resume=course.resume or course.way.policy()) as gateway,
        gateway.stream(BODY) as reply,
    ):
        four = at(4, partial(course.after_four, fake))
        await reply.drain(lambda delta, _: four(delta))
    assert reply.complete


async def test_a_key_that_dies_under_fifty_drains_is_one_refresh_and_no_character_lost(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(tokens=20, token_interval=1.0, auth_latency=1.0)
    sinks = [Sink() for _ in range(50)]
    bodies = [
        {**BODY, "messages": [{"role": "user", "content": f"Story {number}"}]}
        for number in range(50)
    ]
    async with open_over(fake) as gateway, trio.open_nursery() as nursery:
        for sink, body in zip(sinks, bodies, strict=True):
            nursery.start_soon(drained, gateway, sink, body)
        await trio.sleep(7.5)
        fake.expire()
    assert [sink.text for sink in sinks] == [fake.intended(body) for body in bodies]
    assert (fake.refreshes, fake.generation) == (1, 2)


# A sink that raises


class Mine(Exception):
    """What a sink raises."""


RAISED = [
    Mine("no more"),
    KeyboardInterrupt(),
    # Of the kinds that mean something to the library: not these.
    APIConnectionError("the relay's own connection broke"),
    AuthenticationError("the relay's own key", status=401),
    trio.TooSlowError(),
    BaseExceptionGroup("a group of the sink's own", [Mine(), KeyboardInterrupt()]),
]
each_raised = pytest.mark.parametrize("raised", RAISED, ids=lambda error: type(error).__name__)


def raising(error: BaseException, at_event: Callable[[ReplyEvent], bool]) -> Sink:
    """A sink that raises at the first event that is so; what it is given after that, it keeps."""

    def on(event: ReplyEvent) -> None:
        if at_event(event):
            raise error

    return Sink(on)


def is_text(number: int) -> Callable[[ReplyEvent], bool]:
    """Whether it is the delta with text of this number."""
    seen = 0

    def at_event(event: ReplyEvent) -> bool:
        nonlocal seen
        seen += isinstance(event, Delta) and bool(event.text)
        return seen == number

    return at_event


PLACES: dict[str, tuple[float, Callable[[], Callable[[ReplyEvent], bool]]]] = {
    "the very first event": (0, lambda: lambda _: True),
    "the first text": (0, lambda: is_text(1)),
    "in the middle": (0, lambda: is_text(6)),
    "the first buffered one": (5.5, lambda: is_text(1)),
    "a buffered one in the middle": (8.5, lambda: is_text(6)),
    "behind those that were buffered": (5.5, lambda: is_text(8)),
    "where all of it was buffered": (100, lambda: is_text(6)),
    "the finish reason": (0, lambda: lambda event: getattr(event, "finish_reason", None) == "stop"),
    "the end": (0, lambda: lambda event: isinstance(event, Finished)),
    "the end, buffered": (100, lambda: lambda event: isinstance(event, Finished)),
}


@each_raised
@pytest.mark.parametrize("place", PLACES.values(), ids=[*PLACES])
async def test_a_sink_that_raises_ends_the_reply_with_that_very_exception(
    autojump_clock: MockClock,
    raised: BaseException,
    place: tuple[float, Callable[[], Callable[[ReplyEvent], bool]]],
) -> None:
    buffered, at_event = place
    fake = FakeGateway(token_interval=1.0)
    sink = raising(raised, at_event())
    other = Sink()
    async with open_over(fake) as gateway, trio.open_nursery() as nursery:
        nursery.start_soon(drained, gateway, other, {**BODY, "temperature": 0.5})
        await trio.sleep(0.1)
        async with gateway.stream(BODY) as reply:
            await trio.sleep(buffered)
            with pytest.raises(type(raised)) as caught:
                await sink.drain(reply)
            assert caught.value is raised
            given = len(sink.events)
            assert not reply.complete
            assert reply.timing.ended is not None
            # It is over for whoever comes now, too, and nothing is read any more.
            await trio.sleep(2)
            for again in (sink.drain(reply), anext(reply), anext(reply.events())):
                with pytest.raises(type(raised)) as caught:
                    await again
                assert caught.value is raised
            assert len(sink.events) == given
            assert fake.open_streams <= 1  # The other one's
            assert repr(reply).startswith("<Reply model='fake-model' ended")
        assert sink.text == reply.text
    assert other.text == fake.intended(BODY)
    assert isinstance(other.events[-1], Finished)
    assert len(fake.requests) == 2
    assert not fake.open_streams


@each_raised
@pytest.mark.parametrize("buffered", [0, 5.5])
async def test_what_a_sink_raises_comes_out_of_the_replys_block_and_the_gateways_as_it_is(
    autojump_clock: MockClock, raised: BaseException, buffered: float
) -> None:
    fake = FakeGateway(token_interval=1.0)
    sink = raising(raised, is_text(4))
    with pytest.raises(type(raised)) as caught:
        async with open_over(fake) as gateway, gateway.stream(BODY) as reply:
            await trio.sleep(buffered)
            await sink.drain(reply)
    assert caught.value is raised
    assert not hasattr(raised, "__notes__")
    assert (fake.open_streams, len(fake.requests)) == (0, 1)


def answer_otherwise(fake: FakeGateway) -> None:
    fake.fault(Cut(), request=1, token=5)
    fake.fault(OtherText(), request=2, token=0)


TOLD: dict[str, tuple[type[ReplyEvent], Callable[[FakeGateway], object]]] = {
    "a pause": (Paused, lambda fake: fake.fault(Cut(), token=5)),
    "its end": (Resumed, lambda fake: fake.fault(Cut(), token=5)),
    "a pause for a key": (Paused, lambda fake: fake.expire()),
    "a rate limit": (
        RateLimited,
        lambda fake: fake.fault(Status(429, headers={"retry-after": "2"})),
    ),
    "a restart": (Restarted, answer_otherwise),
    "a warning": (RawEvent, lambda fake: fake.fault(Warning_(), token=5)),
    "the end": (Finished, lambda _: None),
}


@pytest.mark.parametrize("told", TOLD.values(), ids=[*TOLD])
@each_raised
async def test_an_on_event_that_raises_ends_the_reply_likewise(
    autojump_clock: MockClock,
    told: tuple[type[ReplyEvent], Callable[[FakeGateway], object]],
    raised: BaseException,
) -> None:
    kind, arm = told
    fake = FakeGateway(token_interval=1.0)
    arm(fake)
    sink = raising(raised, lambda event: isinstance(event, kind))
    async with open_over(fake, resume=RESTART) as gateway:
        async with gateway.stream(BODY) as reply:
            with pytest.raises(type(raised)) as caught:
                await sink.drain(reply)
            assert caught.value is raised
            requests = len(fake.requests)
            await trio.sleep(50)
        assert isinstance(sink.events[-1], kind)
        assert not reply.complete
        assert reply.attempts[-1].ended is not None
    assert len(fake.requests) == requests
    assert not fake.open_streams


async def test_a_connection_whose_sink_raised_is_not_used_again(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(tokens=50, token_interval=1.0)
    async with open_over(fake) as gateway:
        for number in (1, 2, 3):
            async with gateway.stream(BODY) as reply:
                with pytest.raises(Mine):
                    await raising(Mine(), is_text(5)).drain(reply)
                await trio.sleep(1)
                assert not fake.open_streams
            assert fake.requests[-1].tokens < 10
            assert len(fake.requests) == number


def never_again(fake: FakeGateway) -> None:
    fake.fault(Cut(), token=10)
    fake.fault(Status(503), request=2, times=None)


UNDER_WAY: dict[str, tuple[list[str], Callable[[FakeGateway], object]]] = {
    "more than a buffer": (LARGE, lambda _: None),
    "a silence": (LARGE[:20], lambda fake: fake.fault(Stall(), token=10)),
    "a wait": (LARGE[:20], lambda fake: fake.fault(Cut(), token=10)),
    "a long wait": (LARGE[:20], never_again),
}


@pytest.mark.parametrize("under_way", UNDER_WAY.values(), ids=[*UNDER_WAY])
async def test_a_sink_that_raises_for_what_was_buffered_ends_at_once_what_is_under_way(
    autojump_clock: MockClock, under_way: tuple[list[str], Callable[[FakeGateway], object]]
) -> None:
    answer, arm = under_way
    fake = FakeGateway(answer=lambda _, __: answer)
    arm(fake)
    async with open_over(fake) as gateway, gateway.stream(BODY) as reply:
        await wait_all_tasks_blocked()
        before = trio.current_time()
        with pytest.raises(Mine):
            await raising(Mine(), is_text(5)).drain(reply)
        assert reply.timing.ended is not None
        assert reply.attempts[-1].ended is not None
        await wait_all_tasks_blocked()
        assert (fake.open_streams, trio.current_time()) == (0, before)
        buffer = reply._buffer  # pyright: ignore[reportPrivateUsage]
        assert (buffer.empty, buffer.buffered_bytes) == (True, 0)
        requests = len(fake.requests)
        await trio.sleep(1000)
        assert len(fake.requests) == requests


async def test_a_sink_that_cancels_and_raises_has_raised(autojump_clock: MockClock) -> None:
    """As in any function that does so: cancellation comes at the next checkpoint."""
    fake = FakeGateway(token_interval=1.0)
    async with open_over(fake) as gateway, gateway.stream(BODY) as reply:

        def stop() -> None:
            scope.cancel()
            raise KeyboardInterrupt

        sink = Sink(at(4, stop))
        with pytest.raises(KeyboardInterrupt), trio.CancelScope() as scope:
            await sink.drain(reply)
        await trio.sleep(5)
        assert len(sink.deltas) == 5  # The role's chunk, and four tokens
        with pytest.raises(KeyboardInterrupt):
            await anext(reply)


async def test_a_sinks_exception_is_no_failure_of_the_attempt(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeGateway(token_interval=1.0)
    caplog.set_level(logging.INFO, logger="gz_trio")
    async with open_over(fake) as gateway, gateway.stream(BODY) as reply:
        with pytest.raises(Mine):
            await raising(Mine("a secret of the sink's"), is_text(4)).drain(reply)
    assert [attempt.cause for attempt in reply.attempts] == [None]
    assert "SinkRaised" not in caplog.text
    assert "secret" not in caplog.text
    assert "failed after 3.000 s, attempts: 1: Mine" in caplog.text


# Ctrl-C


@pytest.mark.parametrize("buffered", [0, 100])
async def test_a_sink_and_on_event_can_be_interrupted(
    autojump_clock: MockClock, buffered: float
) -> None:
    fake = FakeGateway(token_interval=1.0)
    fake.expire()
    fake.fault(Cut(), request=2, token=5)
    fake.fault(Warning_(), token=7)
    protected: dict[str, bool] = {}

    def look(event: ReplyEvent) -> None:
        name = type(event).__name__
        protected[name] = protected.get(name, False) or trio.lowlevel.currently_ki_protected()

    sink = Sink(look)
    async with open_over(fake) as gateway, gateway.stream(BODY) as reply:
        await trio.sleep(buffered)
        await sink.drain(reply)
    assert protected == dict.fromkeys(("Paused", "Resumed", "Delta", "RawEvent", "Finished"), False)


@pytest.mark.parametrize("buffered", [0, 5.5])
async def test_ctrl_c_in_a_sink_comes_out_of_the_drain(
    autojump_clock: MockClock, buffered: float
) -> None:
    fake = FakeGateway(token_interval=1.0)
    sink = Sink(at(4, lambda: signal.raise_signal(signal.SIGINT)))
    async with open_over(fake) as gateway, gateway.stream(BODY) as reply:
        await trio.sleep(buffered)
        with pytest.raises(KeyboardInterrupt):
            await sink.drain(reply)
        assert not reply.complete
        await trio.sleep(2)
        assert len(sink.deltas) == 5
    assert not fake.open_streams


# How it fails

NO_RETRIES = RetryPolicy(max_retries=0)


@dataclass(frozen=True)
class Failure:
    arm: Callable[[FakeGateway], object]
    error: type[GatewayError]
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    answer: Callable[[Mapping[str, object], int], list[str]] | None = None


def refuse_refresh(fake: FakeGateway) -> None:
    fake.refuse_refresh = True
    fake.fault(Status(401), request=2, times=None)
    fake.fault(Cut(), token=5)


def never_refresh(fake: FakeGateway) -> None:
    fake.auth_latency = 1000.0
    fake.fault(Status(401), request=2, times=None)
    fake.fault(Cut(), token=5)


def answer_shorter(fake: FakeGateway) -> None:
    fake.fault(Cut(), token=5)
    fake.fault(EarlyDone("stop"), request=2, token=2)


def no_more(status: int) -> Callable[[FakeGateway], object]:
    """A cut, and then this status."""

    def arm(fake: FakeGateway) -> None:
        fake.fault(Cut(), token=5)
        fake.fault(Status(status), request=2, times=None)

    return arm


FAILURES = {
    "400": Failure(lambda fake: fake.fault(Status(400)), BadRequestError),
    "402 in mid-stream": Failure(no_more(402), PaymentRequiredError),
    "403 in mid-stream": Failure(no_more(403), PermissionDeniedError),
    "429 without retries": Failure(
        lambda fake: fake.fault(ErrorFrame("rate_limit_error"), token=5),
        RateLimitError,
        {"retry": NO_RETRIES},
    ),
    "a failing provider": Failure(
        lambda fake: fake.fault(ErrorFrame("provider_error"), token=5),
        InternalServerError,
        {"retry": NO_RETRIES},
    ),
    "a cut": Failure(
        lambda fake: fake.fault(Cut(), token=5), StreamInterrupted, {"retry": NO_RETRIES}
    ),
    "nobody there": Failure(
        lambda fake: setattr(fake, "refuse_connections", True),
        APIConnectionError,
        {"retry": NO_RETRIES},
    ),
    "another answer": Failure(
        lambda fake: fake.fault(Cut(), token=5), StreamInterrupted, answer=another_each_time
    ),
    "a shorter answer": Failure(answer_shorter, StreamInterrupted),
    "silence": Failure(lambda fake: fake.fault(Stall(), token=5, times=None), StreamTimeout),
    "too long": Failure(lambda _: None, StreamTimeout, {"timeouts": Timeouts(total=6.5)}),
    "nothing": Failure(
        lambda fake: fake.fault(EarlyDone("stop"), token=0, times=None),
        EmptyResponseError,
        {"retry": NO_RETRIES},
    ),
    "no JSON": Failure(
        lambda fake: fake.fault(Insert(b"data: {no\n\n"), token=5, times=None), ProtocolError
    ),
    "no stream": Failure(
        lambda fake: fake.fault(Status(200, body="Welcome!"), times=None), ProtocolError
    ),
    "a refused refresh": Failure(refuse_refresh, RefreshError),
    "a refresh that takes too long": Failure(never_refresh, RefreshTimeout),
    "no refresh": Failure(no_more(401), AuthenticationError, {"refresh": None}),
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=[*FAILURES])
async def test_a_reply_that_fails_raises_what_iterating_raises_with_the_text_so_far(
    autojump_clock: MockClock, failure: Failure
) -> None:
    fakes = [FakeGateway(token_interval=1.0, answer=failure.answer) for _ in range(2)]
    for fake in fakes:
        failure.arm(fake)
    async with open_over(fakes[0], **failure.settings) as gateway:
        told = await tell(gateway)
    sink = Sink()
    async with (
        open_over(fakes[1], **failure.settings) as gateway,
        gateway.stream(BODY) as reply,
    ):
        errors: list[GatewayError] = []
        for _ in range(3):
            with assert_checkpoints(), pytest.raises(GatewayError) as caught:
                await sink.drain(reply)
            errors.append(caught.value)
    assert told.error is not None
    assert type(told.error) is failure.error
    for error in errors:
        assert type(error) is failure.error
        assert (str(error), error.status, error.code) == (
            str(told.error),
            told.error.status,
            told.error.code,
        )
        assert error.partial == told.error.partial == sink.text == reply.text
    assert len({id(error) for error in errors}) == 3  # each of them an exception of its own
    assert [type(event) for event in sink.events] == [type(event) for event in told.events]
    assert not reply.complete
    assert [type(attempt.cause) for attempt in reply.attempts] == [
        type(attempt.cause) for attempt in told.reply.attempts
    ]
    assert len(fakes[1].requests) == len(fakes[0].requests)


# After the end


async def test_a_drain_after_the_end_returns_at_once_and_gives_nothing(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(token_interval=1.0)
    sink = Sink()
    async with open_over(fake) as gateway:
        async with gateway.stream(BODY) as reply:
            with assert_checkpoints():
                await sink.drain(reply)
            ended = trio.current_time()
            for _ in range(2):
                with assert_checkpoints():
                    await reply.drain(no_delta, on_event=nothing)
            with pytest.raises(StopAsyncIteration):
                await anext(reply)
        await reply.drain(no_delta, on_event=nothing)
        assert trio.current_time() == ended
    assert sink.text == fake.intended(BODY)


async def test_a_reply_that_had_ended_before_it_was_drained_is_given_whole(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway()
    sink = Sink()
    async with open_over(fake) as gateway:
        async with gateway.stream(BODY) as reply:
            await trio.sleep(10)
            assert not reply.complete
        await sink.drain(reply)  # outside the block, too
    assert sink.text == fake.intended(BODY)
    assert isinstance(sink.events[-1], Finished)
    assert reply.complete


async def test_when_the_block_is_left_under_a_drain_it_raises_closed_resource_error(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(token_interval=1.0)
    sink = Sink()

    async def drain(reply: Reply) -> None:
        for _ in range(2):
            with pytest.raises(trio.ClosedResourceError, match="left"):
                await sink.drain(reply)

    async with open_over(fake) as gateway, trio.open_nursery() as nursery:
        async with gateway.stream(BODY) as reply:
            nursery.start_soon(drain, reply)
            await trio.sleep(4.5)
        given = len(sink.events)
        await trio.sleep(10)
        assert len(sink.events) == given
        assert not fake.open_streams
    assert not reply.complete
    assert fake.intended(BODY).startswith(reply.text)
    assert reply.text == sink.text != ""


async def test_leaving_the_block_when_a_drain_was_cancelled_closes_the_connection(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(tokens=100, token_interval=1.0)
    async with open_over(fake) as gateway:
        with trio.move_on_after(5.5):
            async with gateway.stream(BODY) as reply:
                await reply.drain(no_matter)
        await wait_all_tasks_blocked()
        assert not fake.open_streams
        assert trio.current_time() == 5.5
