"""What whole replies tell OpenTelemetry and the log, whatever becomes of them."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode
from trio.testing import MockClock

from gz_trio import StreamInterrupted
from gz_trio.testing import Cut, ErrorFrame, FakeGateway, Fault, OtherText, Status
from tests.chats import BODY, RESTART, Told, after_deltas, open_over, tell
from tests.telemetry import (
    Collected,
    attributes_of,
    collect,
    events_of,
    id_of,
    parent_of,
    told,
)

ROOT = Path(__file__).parents[2]
REPLY = "chat fake-model"


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> Collected:
    return collect(monkeypatch)


def attempts_of(collected: Collected) -> list[ReadableSpan]:
    """The spans of all attempts, the first one first."""
    attempts = [span for span in collected.spans if span.name == "gz_trio.attempt"]
    return sorted(attempts, key=lambda span: str(attributes_of(span)["gz_trio.attempt.number"]))


async def test_a_whole_reply_says_what_the_server_said_of_it(
    collected: Collected, autojump_clock: MockClock
) -> None:
    fake = FakeGateway(token_interval=0.25)
    async with open_over(fake) as gateway:
        one = await tell(gateway, {**BODY, "temperature": 0})
    attributes = attributes_of(collected.span(REPLY))
    usage, timing = one.reply.usage, one.reply.timing
    assert usage is not None
    expected = {
        "gen_ai.provider.name": "openai",
        "gen_ai.request.temperature": 0.0,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.model": "fake-model",
        "gen_ai.response.time_to_first_chunk": timing.first_token,
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "gz_trio.outcome": "complete",
        "gz_trio.reply.attempts": 1,
        "gz_trio.reply.between_tokens": timing.between_tokens,
        "gz_trio.reply.paused": 0.0,
    }
    assert expected.items() <= attributes.items()
    duration = collected.sums("gen_ai.client.operation.duration", "gz_trio.outcome")
    assert duration == {"complete": timing.ended}
    assert collected.sums("gen_ai.client.token.usage", "gen_ai.token.type") == {
        "input": usage.prompt_tokens,
        "output": usage.completion_tokens,
    }


async def test_a_trace_shows_the_refresh_between_two_attempts(
    collected: Collected, autojump_clock: MockClock
) -> None:
    fake = FakeGateway(key="gw_test_2", auth_latency=1.5)
    async with open_over(fake, key="gw_test_1") as gateway:
        one = await tell(gateway)
    reply, refresh = collected.span(REPLY), collected.span("gz_trio.refresh")
    first, second = attempts_of(collected)
    assert [parent_of(span) for span in (first, refresh, second)] == [id_of(reply)] * 3
    assert first.end_time is not None
    assert refresh.start_time is not None
    assert refresh.end_time is not None
    assert second.start_time is not None
    assert first.end_time <= refresh.start_time <= refresh.end_time <= second.start_time
    assert attributes_of(first)["http.response.status_code"] == 401
    assert attributes_of(first)["error.type"] == "AuthenticationError"
    assert attributes_of(second)["http.response.status_code"] == 200
    generations = [attributes_of(span)["gz_trio.key.generation"] for span in (first, second)]
    assert generations == [attempt.generation for attempt in one.reply.attempts]
    assert events_of(reply)[0] == ("gz_trio.paused", {"gz_trio.pause.reason": "refresh"})
    assert events_of(reply)[1] == (
        "gz_trio.resumed",
        {"gz_trio.pause.duration": one.reply.timing.paused},
    )
    assert reply.status.status_code is StatusCode.UNSET
    assert collected.sums("gz_trio.pause.duration", "gz_trio.pause.reason") == {
        "refresh": one.reply.timing.paused
    }
    assert collected.sums("gz_trio.refresh.duration", "gz_trio.outcome") == {"complete": 1.5}


async def test_a_thousand_tokens_after_a_break_in_mid_reply_are_two_attempts(
    collected: Collected, autojump_clock: MockClock
) -> None:
    fake = FakeGateway(tokens=1000)
    fake.fault(Cut(), token=500)
    async with open_over(fake) as gateway:
        one = await tell(gateway)
    assert [span.name for span in collected.spans].count("gz_trio.attempt") == 2
    assert len(collected.spans) == 3
    for span, attempt in zip(attempts_of(collected), one.reply.attempts, strict=True):
        assert attributes_of(span)["gz_trio.attempt.tokens"] == attempt.tokens
        assert attributes_of(span).get("gz_trio.attempt.resumed_by") == attempt.resumed_by
    broken, resumed = map(attributes_of, attempts_of(collected))
    assert broken["error.type"] == "APIConnectionError"
    assert resumed["gz_trio.attempt.resumed_by"] == "replay"
    assert resumed["gz_trio.attempt.repeated"] == one.reply.attempts[1].repeated
    assert attributes_of(collected.span(REPLY))["gen_ai.response.id"] == "chatcmpl-2"
    assert resumed["gen_ai.response.id"] == "chatcmpl-2"


@pytest.mark.parametrize(
    ("fault", "reason", "ended"),
    [
        (Status(429, headers={"retry-after": "2"}), "rate_limit", ("RateLimitError", 429)),
        (Status(503), "reconnect", ("InternalServerError", 503)),
        (ErrorFrame("provider_error"), "reconnect", ("InternalServerError", 200)),
        (ErrorFrame("auth_error"), "reconnect", ("AuthenticationError", 200)),
    ],
    ids=["429", "503", "frame", "auth-frame"],
)
async def test_what_failed_and_why_the_reply_paused(
    collected: Collected,
    autojump_clock: MockClock,
    fault: Fault,
    reason: str,
    ended: tuple[str, int],
) -> None:
    fake = FakeGateway()
    if isinstance(fault, ErrorFrame):
        fake.fault(fault, token=5)
    else:
        fake.fault(fault)
    async with open_over(fake) as gateway:
        await tell(gateway)
    failed = attributes_of(attempts_of(collected)[0])
    assert (failed["error.type"], failed["http.response.status_code"]) == ended
    name, attributes = events_of(collected.span(REPLY))[-2]
    assert (name, attributes["gz_trio.pause.reason"]) == ("gz_trio.paused", reason)
    assert attributes_of(collected.span(REPLY))["gz_trio.outcome"] == "complete"


async def test_a_second_answer_in_other_words_is_an_event(
    collected: Collected, autojump_clock: MockClock
) -> None:
    fake = FakeGateway()
    fake.fault(Cut(), token=5)
    fake.fault(OtherText(), request=2, token=3)
    async with open_over(fake, resume=RESTART) as gateway:
        await tell(gateway)
    names = [name for name, _ in events_of(collected.span(REPLY))]
    assert names.count("gz_trio.restarted") == 1


async def test_a_reply_that_could_not_be_saved_is_an_error_and_a_warning(
    collected: Collected, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gz_trio")
    fake = FakeGateway()
    fake.fault(Cut(), token=5)
    fake.fault(OtherText(), request=2, token=3)
    async with open_over(fake) as gateway:
        one = await tell(gateway)
    assert isinstance(one.error, StreamInterrupted)
    reply = collected.span(REPLY)
    assert reply.status.status_code is StatusCode.ERROR
    assert reply.status.description == str(one.error)
    assert attributes_of(reply)["error.type"] == "StreamInterrupted"
    assert collected.sums("gen_ai.client.operation.duration", "error.type") == {
        "StreamInterrupted": one.reply.timing.ended
    }
    levels = [(level, event) for level, event, _ in told(caplog.records, "gz_trio.reply")]
    assert levels[-1] == ("WARNING", "gz_trio.reply.ended")
    assert "WARNING" not in {level for level, _ in levels[:-1]}


async def test_a_reader_who_leaves_ends_the_span_without_an_error(
    collected: Collected, autojump_clock: MockClock
) -> None:
    fake = FakeGateway(token_interval=1)
    async with open_over(fake) as gateway, gateway.stream(BODY) as reply:
        await anext(reply)
    span = collected.span(REPLY)
    assert span.status.status_code is StatusCode.UNSET
    assert attributes_of(span)["gz_trio.outcome"] == "left"
    assert attributes_of(attempts_of(collected)[0])["gz_trio.outcome"] == "left"


async def test_several_choices_have_several_finish_reasons(
    collected: Collected, autojump_clock: MockClock
) -> None:
    async with open_over(FakeGateway()) as gateway:
        await tell(gateway, {**BODY, "n": 3})
    attributes = attributes_of(collected.span(REPLY))
    assert attributes["gen_ai.response.finish_reasons"] == ("stop",) * 3
    assert attributes["gen_ai.request.choice.count"] == 3


async def test_a_whole_completion_names_itself_too(
    collected: Collected, autojump_clock: MockClock
) -> None:
    message = {"role": "assistant", "content": "Once upon a time"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    fake = FakeGateway()
    fake.fault(Status(200, body={"id": "chatcmpl-x", "model": "m", "choices": [choice]}))
    async with open_over(fake) as gateway:
        await tell(gateway)
    attributes = attributes_of(collected.span(REPLY))
    assert attributes["gen_ai.response.id"] == "chatcmpl-x"
    assert attributes["gen_ai.response.model"] == "m"
    assert attributes["gz_trio.outcome"] == "complete"


async def test_a_hundred_replies_have_one_refresh_among_them(
    collected: Collected, autojump_clock: MockClock
) -> None:
    fake = FakeGateway(key="gw_test_2", auth_latency=1)
    async with open_over(fake, key="gw_test_1") as gateway, trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(tell, gateway)
    replies = [span for span in collected.spans if span.name == REPLY]
    assert len(replies) == 100
    assert len(attempts_of(collected)) == 200
    assert parent_of(collected.span("gz_trio.refresh")) in {id_of(reply) for reply in replies}
    (pauses,) = collected.points("gz_trio.pause.duration")
    assert pauses.count == 100


async def test_each_request_carries_the_trace_of_its_attempt(
    collected: Collected, autojump_clock: MockClock
) -> None:
    fake = FakeGateway()
    fake.fault(Status(503))
    async with open_over(fake) as gateway:
        await tell(gateway)
    parents = [request.headers["traceparent"].split("-")[2] for request in fake.requests]
    assert parents == [f"{id_of(span):016x}" for span in attempts_of(collected)]


async def test_the_reader_s_own_span_stays_current_in_its_block(
    collected: Collected, autojump_clock: MockClock
) -> None:
    fake = FakeGateway()
    fake.fault(Cut(), token=3)
    seen: set[object] = set()

    def look(_: Told) -> None:
        seen.add(trace.get_current_span())

    async with open_over(fake) as gateway:
        with collected.tracer.start_as_current_span("the reader's") as reader:
            await tell(gateway, on_event=look)
            look_after = trace.get_current_span()
    assert seen == {reader}
    assert look_after is reader
    assert parent_of(collected.span(REPLY)) == id_of(collected.span("the reader's"))


async def test_no_key_and_no_word_of_the_conversation_is_told(
    collected: Collected, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "gz_trio")
    fake = FakeGateway(answer=lambda _, __: ["wombat ", "wombat"])
    async with open_over(fake) as gateway:
        body = {**BODY, "messages": [{"role": "user", "content": "quokka"}]}
        one = await tell(gateway, body, on_event=after_deltas(1, fake.rotate))
    assert one.text == "wombat wombat"
    shown = [span.to_json() for span in collected.spans]
    shown += [repr(point) for name in collected.metrics for point in collected.points(name)]
    shown += [repr(vars(record)) for record in caplog.records]
    for word in ("gw_test", "quokka", "wombat"):
        assert [each for each in shown if word in each] == []


def test_the_example_prints_what_the_page_says() -> None:
    page = (ROOT / "docs" / "telemetry.md").read_text(encoding="utf-8")
    (printed,) = re.findall(r"```text\n(.+?)```", page, re.DOTALL)
    example = ROOT / "examples" / "traced.py"
    done = subprocess.run([sys.executable, example], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (printed, "")
