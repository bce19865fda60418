"""What is told of one reply, moment by moment, by the names that OpenTelemetry gives them."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec
import pytest
import trio
from opentelemetry import baggage, context, trace
from opentelemetry.trace import SpanKind, StatusCode
from trio.testing import MockClock

from gz_trio import (
    APIConnectionError,
    Attempt,
    AuthenticationError,
    GatewayError,
    Paused,
    RateLimited,
    RateLimitError,
    Restarted,
    Resumed,
    StreamInterrupted,
    Timing,
    Usage,
    _telemetry,
)
from gz_trio._chat.telemetry import ReplyTelemetry
from tests.secrets_guard import secret
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
ORIGIN = "https://gateway.example"
BODY: dict[str, object] = {
    "model": "fake-model",
    "messages": [{"role": "user", "content": secret("question")}],
}


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> Collected:
    return collect(monkeypatch)


def an_attempt(generation: int = 1, resumed_by: Literal["replay"] | None = None) -> Attempt:
    return Attempt(trio.current_time(), generation, resumed_by)


def chunk(**fields: object) -> bytes:
    return msgspec.json.encode({"choices": [{"delta": {"content": secret("answer")}}], **fields})


def timing(*tokens: float, paused: float = 0.0, ended: float = 0.0) -> Timing:
    """Of a reply whose tokens came at these seconds."""
    timing = Timing(0.0, paused=paused, ended=ended)
    for at in tokens:
        timing.tokens_came(at)
    return timing


@contextmanager
def attempt_of(telemetry: ReplyTelemetry, attempt: Attempt) -> Generator[None]:
    """One attempt, which the reader leaves where the block is cancelled."""
    left = True
    try:
        with telemetry.begin_attempt(attempt):
            yield
        left = False
    except GatewayError as error:
        attempt.cause, left = error, False
        raise
    finally:
        telemetry.end_attempt(attempt, left=left)


def tell_complete(
    telemetry: ReplyTelemetry, timing: Timing | None = None, usage: Usage | None = None
) -> None:
    """A reply whose first attempt brought it whole."""
    timing = timing or Timing(0.0, first_token=0.25, ended=2.0)
    with telemetry.receiving():
        first = an_attempt()
        with attempt_of(telemetry, first):
            telemetry.responded(200)
            telemetry.answered(chunk(id="chatcmpl-1", model="fake-model-2026"))
            telemetry.first_token(timing.first_token or 0.0)
            first.tokens = 3
            telemetry.ended(None, timing, finish_reasons=["stop"], usage=usage)


# The span of the reply


async def test_a_reply_is_one_client_span_with_the_names_of_the_conventions(
    collected: Collected,
) -> None:
    telemetry = ReplyTelemetry(BODY, ORIGIN)
    details: dict[str, object] = {
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 1},
    }
    times = timing(0.5, 1.0, 2.5, paused=1.5, ended=4.0)
    usage = Usage(prompt_tokens=7, completion_tokens=3, raw=details)
    tell_complete(telemetry, times, usage)
    span = collected.span("chat fake-model")
    assert span.kind is SpanKind.CLIENT
    assert span.status.status_code is StatusCode.UNSET
    attributes = attributes_of(span)
    assert isinstance(attributes.pop("gz_trio.reply.id"), int)
    assert attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "fake-model",
        "gen_ai.request.stream": True,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.model": "fake-model-2026",
        "gen_ai.response.time_to_first_chunk": 0.5,
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 4,
        "gen_ai.usage.reasoning.output_tokens": 1,
        "gz_trio.outcome": "complete",
        "gz_trio.reply.attempts": 1,
        "gz_trio.reply.between_tokens": 1.0,
        "gz_trio.reply.longest_gap": 1.5,
        "gz_trio.reply.paused": 1.5,
        "server.address": "gateway.example",
        "server.port": 443,
    }


async def test_the_scope_says_which_version_of_the_conventions_is_spoken(
    collected: Collected,
) -> None:
    tell_complete(ReplyTelemetry(BODY, ORIGIN))
    scope = collected.span("chat fake-model").instrumentation_scope
    assert scope is not None
    assert (scope.name, scope.schema_url) == ("gz_trio", "https://opentelemetry.io/schemas/1.41.0")


@pytest.mark.parametrize(
    ("body", "attributes"),
    [
        ({"max_tokens": 100}, {"gen_ai.request.max_tokens": 100}),
        ({"max_completion_tokens": 100}, {"gen_ai.request.max_tokens": 100}),
        ({"temperature": 0}, {"gen_ai.request.temperature": 0.0}),
        ({"top_p": 0.5, "top_k": 40}, {"gen_ai.request.top_p": 0.5, "gen_ai.request.top_k": 40.0}),
        ({"frequency_penalty": 1}, {"gen_ai.request.frequency_penalty": 1.0}),
        ({"presence_penalty": 1}, {"gen_ai.request.presence_penalty": 1.0}),
        ({"seed": 7}, {"gen_ai.request.seed": 7}),
        ({"stop": "\n"}, {"gen_ai.request.stop_sequences": ("\n",)}),
        ({"stop": ["a", "b"]}, {"gen_ai.request.stop_sequences": ("a", "b")}),
        ({"n": 2}, {"gen_ai.request.choice.count": 2}),
        ({"n": 1}, {}),
        ({"response_format": {"type": "json_schema"}}, {"gen_ai.output.type": "json"}),
        ({"response_format": {"type": "text"}}, {"gen_ai.output.type": "text"}),
        # What a server would reject is left to the server.
        ({"max_tokens": "many", "temperature": None, "top_p": True, "n": None, "stop": 1}, {}),
        ({"seed": 0.5, "response_format": "json"}, {}),
        ({"temperature": 10**400, "seed": 10**400, "top_p": float("nan")}, {}),
    ],
)
async def test_the_parameters_of_the_request_are_attributes(
    collected: Collected, body: dict[str, object], attributes: dict[str, object]
) -> None:
    ReplyTelemetry({**BODY, **body}, ORIGIN).ended(None, timing())
    found = attributes_of(collected.span("chat fake-model"))
    plain = {"gen_ai.request.model", "gen_ai.request.stream"}
    parameters = ("gen_ai.request.", "gen_ai.output.")
    assert attributes == {
        name: value
        for name, value in found.items()
        if name.startswith(parameters) and name not in plain
    }


@pytest.mark.parametrize(
    ("origin", "provider", "address", "port"),
    [
        ("https://gateway.example", "openai", "gateway.example", 443),
        ("http://127.0.0.1:8000", "openai", "127.0.0.1", 8000),
        ("http://[::1]", "openai", "::1", 80),
        ("https://api.openai.com", "openai", "api.openai.com", 443),
        ("https://api.deepseek.com", "deepseek", "api.deepseek.com", 443),
        ("https://api.mistral.ai", "mistral_ai", "api.mistral.ai", 443),
        ("https://mine.openai.azure.com", "azure.ai.openai", "mine.openai.azure.com", 443),
    ],
)
async def test_the_origin_gives_the_server_and_the_provider(
    collected: Collected, origin: str, provider: str, address: str, port: int
) -> None:
    ReplyTelemetry(BODY, origin).ended(None, timing())
    attributes = attributes_of(collected.span("chat fake-model"))
    assert attributes["gen_ai.provider.name"] == provider
    assert attributes["server.address"] == address
    assert attributes["server.port"] == port


async def test_a_request_without_a_model_has_a_span_without_one(collected: Collected) -> None:
    ReplyTelemetry({"messages": []}, ORIGIN).ended(None, timing())
    assert "gen_ai.request.model" not in attributes_of(collected.span("chat"))


async def test_a_failed_reply_says_how_and_quotes_only_our_own_words(
    collected: Collected,
) -> None:
    error = RateLimitError("too many requests", status=429, body=secret("body").encode())
    ReplyTelemetry(BODY, ORIGIN).ended(error, timing())
    span = collected.span("chat fake-model")
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "too many requests"
    assert attributes_of(span)["error.type"] == "RateLimitError"
    assert attributes_of(span)["gz_trio.outcome"] == "failed"
    assert span.events == ()


async def test_the_message_of_an_error_that_is_not_ours_is_left_out(collected: Collected) -> None:
    ReplyTelemetry(BODY, ORIGIN).ended(ValueError(secret("value")), timing())
    span = collected.span("chat fake-model")
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, None)
    assert attributes_of(span)["error.type"] == "ValueError"


async def test_a_reply_that_its_reader_left_is_no_failure(collected: Collected) -> None:
    telemetry = ReplyTelemetry(BODY, ORIGIN)
    with trio.move_on_after(0), telemetry.receiving(), attempt_of(telemetry, an_attempt()):
        await trio.sleep_forever()
    telemetry.ended(trio.ClosedResourceError("the reply's block has been left"), timing())
    for name in ("chat fake-model", "gz_trio.attempt"):
        span = collected.span(name)
        assert span.status.status_code is StatusCode.UNSET
        assert attributes_of(span)["gz_trio.outcome"] == "left"
        assert "error.type" not in attributes_of(span)


async def test_the_first_end_counts(collected: Collected) -> None:
    telemetry = ReplyTelemetry(BODY, ORIGIN)
    telemetry.ended(None, timing())
    telemetry.ended(APIConnectionError("later"), timing())
    assert attributes_of(collected.span("chat fake-model"))["gz_trio.outcome"] == "complete"
    assert collected.points("gen_ai.client.operation.duration")[0].count == 1


# Attempts


async def test_each_attempt_is_a_span_within_the_reply_s(collected: Collected) -> None:
    telemetry = ReplyTelemetry(BODY, ORIGIN)
    rejection = AuthenticationError("the key was rejected", status=401)
    with telemetry.receiving():
        first = an_attempt()
        with attempt_of(telemetry, first):
            telemetry.responded(401)
            first.cause = rejection
        second = an_attempt(generation=2, resumed_by="replay")
        with attempt_of(telemetry, second):
            telemetry.responded(200)
            telemetry.answered(chunk(id="chatcmpl-2"))
            second.tokens, second.repeated = 5, 17
        telemetry.ended(None, timing())
    one, two, reply = collected.spans
    assert [span.name for span in (one, two)] == ["gz_trio.attempt"] * 2
    assert [parent_of(span) for span in (one, two)] == [id_of(reply)] * 2
    assert [span.kind for span in (one, two)] == [SpanKind.CLIENT] * 2
    where = {"server.address": "gateway.example", "server.port": 443}
    assert attributes_of(one) == where | {
        "error.type": "AuthenticationError",
        "gz_trio.attempt.number": 1,
        "gz_trio.attempt.tokens": 0,
        "gz_trio.key.generation": 1,
        "gz_trio.outcome": "failed",
        "http.response.status_code": 401,
    }
    assert (one.status.status_code, one.status.description) == (
        StatusCode.ERROR,
        "the key was rejected",
    )
    assert attributes_of(two) == where | {
        "gen_ai.response.id": "chatcmpl-2",
        "gz_trio.attempt.number": 2,
        "gz_trio.attempt.repeated": 17,
        "gz_trio.attempt.resumed_by": "replay",
        "gz_trio.attempt.tokens": 5,
        "gz_trio.key.generation": 2,
        "gz_trio.outcome": "complete",
        "http.response.status_code": 200,
    }
    # Errors that were recovered from are not the reply's.
    assert reply.status.status_code is StatusCode.UNSET
    assert attributes_of(reply)["gz_trio.reply.attempts"] == 2


async def test_an_error_that_leaves_the_attempt_s_block_is_the_attempt_s(
    collected: Collected,
) -> None:
    telemetry = ReplyTelemetry(BODY, ORIGIN)
    with pytest.raises(StreamInterrupted), attempt_of(telemetry, an_attempt()):
        raise StreamInterrupted("the second answer was a different one")
    assert attributes_of(collected.span("gz_trio.attempt"))["error.type"] == "StreamInterrupted"


async def test_a_reader_who_leaves_behind_the_end_of_the_reply_left_no_attempt(
    collected: Collected,
) -> None:
    telemetry = ReplyTelemetry(BODY, ORIGIN)
    with trio.move_on_after(0), attempt_of(telemetry, an_attempt()):
        telemetry.ended(None, timing())
        await trio.sleep_forever()  # for the end of the body
    for span in collected.spans:
        assert attributes_of(span)["gz_trio.outcome"] == "complete"
    assert len(collected.spans) == 2


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"\xff", b'{"id": 1, "model": null}', b'{"id": "", "model": {}}']
)
async def test_an_answer_that_does_not_say_what_it_is_has_neither_id_nor_model(
    collected: Collected, raw: bytes
) -> None:
    telemetry = ReplyTelemetry(BODY, ORIGIN)
    telemetry.answered(raw)
    telemetry.ended(None, timing())
    attributes = attributes_of(collected.span("chat fake-model"))
    assert not {"gen_ai.response.id", "gen_ai.response.model"} & set(attributes)


# Pauses


async def test_pauses_are_events_of_the_reply_s_span(
    collected: Collected, mock_clock: MockClock
) -> None:
    telemetry = ReplyTelemetry(BODY, ORIGIN)
    telemetry.announced(Paused("refresh"))
    mock_clock.jump(1)
    telemetry.announced(RateLimited(2.0))
    telemetry.announced(Paused("reconnect"))
    mock_clock.jump(2)
    telemetry.announced(Resumed())
    telemetry.announced(Restarted())
    telemetry.announced(Paused("reconnect"))
    mock_clock.jump(4)
    telemetry.ended(APIConnectionError("no connection"), timing())
    span = collected.span("chat fake-model")
    assert events_of(span) == [
        ("gz_trio.paused", {"gz_trio.pause.reason": "refresh"}),
        ("gz_trio.paused", {"gz_trio.pause.reason": "rate_limit", "gz_trio.pause.wait": 2.0}),
        ("gz_trio.paused", {"gz_trio.pause.reason": "reconnect"}),
        ("gz_trio.resumed", {"gz_trio.pause.duration": 3.0}),
        ("gz_trio.restarted", {}),
        ("gz_trio.paused", {"gz_trio.pause.reason": "reconnect"}),
    ]
    # What began a pause is its reason.
    assert collected.sums("gz_trio.pause.duration", "gz_trio.pause.reason") == {
        "refresh": 3.0,
        "reconnect": 4.0,
    }


# Metrics


async def test_the_metrics_of_the_conventions_are_recorded_once_a_reply(
    collected: Collected,
) -> None:
    telemetry = ReplyTelemetry(BODY, ORIGIN)
    usage = Usage(prompt_tokens=7, completion_tokens=3)
    tell_complete(telemetry, timing(0.5, 1.0, ended=4.0), usage)
    labels = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "fake-model",
        "gen_ai.response.model": "fake-model-2026",
        "server.address": "gateway.example",
        "server.port": 443,
    }
    (duration,) = collected.points("gen_ai.client.operation.duration")
    assert dict(duration.attributes or {}) == labels | {"gz_trio.outcome": "complete"}
    assert (duration.count, duration.sum) == (1, 4.0)
    (first,) = collected.points("gen_ai.client.operation.time_to_first_chunk")
    assert (dict(first.attributes or {}), first.count, first.sum) == (labels, 1, 0.5)
    assert collected.sums("gen_ai.client.token.usage", "gen_ai.token.type") == {
        "input": 7,
        "output": 3,
    }
    for point in collected.points("gen_ai.client.token.usage"):
        assert labels.items() <= dict(point.attributes or {}).items()


async def test_the_buckets_are_those_that_the_conventions_advise(collected: Collected) -> None:
    telemetry = ReplyTelemetry(BODY, ORIGIN)
    telemetry.announced(Paused("refresh"))
    tell_complete(telemetry, usage=Usage(prompt_tokens=7, completion_tokens=3))
    seconds = (
        *(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64),
        *(1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92),
    )
    tokens = (
        *(1, 4, 16, 64, 256, 1024, 4096, 16384, 65536),
        *(262144, 1048576, 4194304, 16777216, 67108864),
    )
    assert {
        name: (metric.unit, tuple(collected.points(name)[0].explicit_bounds))
        for name, metric in collected.metrics.items()
    } == {
        "gen_ai.client.operation.duration": ("s", seconds),
        "gen_ai.client.operation.time_to_first_chunk": ("s", seconds),
        "gen_ai.client.token.usage": ("{token}", tokens),
        "gz_trio.pause.duration": ("s", seconds),
    }


async def test_a_failed_reply_s_duration_says_how_and_has_no_tokens(collected: Collected) -> None:
    ReplyTelemetry(BODY, ORIGIN).ended(RateLimitError("too many requests"), timing())
    (duration,) = collected.points("gen_ai.client.operation.duration")
    attributes = dict(duration.attributes or {})
    assert attributes["error.type"] == "RateLimitError"
    assert attributes["gz_trio.outcome"] == "failed"
    assert set(collected.metrics) == {"gen_ai.client.operation.duration"}


# Whose spans are whose


async def test_the_reply_is_part_of_its_reader_s_span_and_never_current_there(
    collected: Collected,
) -> None:
    async def receive(telemetry: ReplyTelemetry) -> None:
        with telemetry.receiving():
            with collected.tracer.start_as_current_span("between attempts"):
                await trio.lowlevel.checkpoint()
            with (
                attempt_of(telemetry, an_attempt()),
                collected.tracer.start_as_current_span("in an attempt"),
            ):
                await trio.lowlevel.checkpoint()
        telemetry.ended(None, timing())

    with collected.tracer.start_as_current_span("the reader's") as reader:
        telemetry = ReplyTelemetry(BODY, ORIGIN)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive, telemetry)
            for _ in range(3):
                assert trace.get_current_span() is reader
                await trio.lowlevel.checkpoint()
    parents = {span.name: parent_of(span) for span in collected.spans}
    ids = {span.name: id_of(span) for span in collected.spans}
    assert parents == {
        "the reader's": None,
        "chat fake-model": ids["the reader's"],
        "between attempts": ids["chat fake-model"],
        "gz_trio.attempt": ids["chat fake-model"],
        "in an attempt": ids["gz_trio.attempt"],
    }


async def test_a_request_carries_its_attempt_s_trace_and_no_baggage(collected: Collected) -> None:
    token = context.attach(baggage.set_baggage("user", secret("user")))
    telemetry = ReplyTelemetry(BODY, ORIGIN)
    assert telemetry.headers() == {}
    with attempt_of(telemetry, an_attempt()):
        headers = telemetry.headers()
    assert telemetry.headers() == {}
    context.detach(token)
    attempt = collected.span("gz_trio.attempt").context
    assert attempt is not None
    ids = f"{attempt.trace_id:032x}-{attempt.span_id:016x}"
    assert headers == {"traceparent": f"00-{ids}-{attempt.trace_flags:02x}"}


async def test_without_an_sdk_a_request_carries_the_trace_that_it_came_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gz_trio._telemetry.api", _telemetry.Api(trace.NoOpTracerProvider()))
    outside = trace.SpanContext(0xA, 0xB, is_remote=True, trace_flags=trace.TraceFlags(1))
    token = context.attach(trace.set_span_in_context(trace.NonRecordingSpan(outside)))
    within = ReplyTelemetry(BODY, ORIGIN)
    context.detach(token)
    for telemetry, expected in (
        (within, {"traceparent": f"00-{0xA:032x}-{0xB:016x}-01"}),
        (ReplyTelemetry(BODY, ORIGIN), {}),
    ):
        attempt = an_attempt()
        with telemetry.receiving(), attempt_of(telemetry, attempt):
            assert telemetry.headers() == expected
        telemetry.ended(None, timing())


# Log records


async def test_every_moment_is_a_log_record_with_the_same_names(
    caplog: pytest.LogCaptureFixture, mock_clock: MockClock
) -> None:
    caplog.set_level(logging.DEBUG, "gz_trio")
    telemetry = ReplyTelemetry(BODY, ORIGIN)
    first = an_attempt()
    with attempt_of(telemetry, first):
        telemetry.responded(401)
        first.cause = AuthenticationError("the key was rejected", status=401)
    telemetry.announced(Paused("refresh"))
    mock_clock.jump(1)
    with attempt_of(telemetry, an_attempt(generation=2, resumed_by="replay")):
        telemetry.responded(200)
        telemetry.announced(Resumed())
        telemetry.first_token(1.0)
        telemetry.ended(None, timing(1.0, ended=1.0), finish_reasons=["stop"])
    records = told(caplog.records, "gz_trio.reply")
    (reply,) = {fields["gz_trio.reply.id"] for _, _, fields in records}
    assert isinstance(reply, int)
    for _, _, fields in records:
        assert fields["gen_ai.request.model"] == "fake-model"
        assert fields["server.address"] == "gateway.example"
    assert [(level, event) for level, event, _ in records] == [
        ("DEBUG", "gz_trio.reply.started"),
        ("DEBUG", "gz_trio.attempt.started"),
        ("INFO", "gz_trio.attempt.ended"),
        ("INFO", "gz_trio.paused"),
        ("DEBUG", "gz_trio.attempt.started"),
        ("INFO", "gz_trio.resumed"),
        ("DEBUG", "gz_trio.first_token"),
        ("DEBUG", "gz_trio.reply.ended"),
        ("DEBUG", "gz_trio.attempt.ended"),
    ]
    failed, paused, resumed, ended = (records[index][2] for index in (2, 3, 5, 7))
    assert failed["error.type"] == "AuthenticationError"
    assert failed["http.response.status_code"] == 401
    assert failed["gz_trio.attempt.number"] == 1
    assert paused["gz_trio.pause.reason"] == "refresh"
    assert resumed["gz_trio.pause.duration"] == 1.0
    assert ended["gz_trio.outcome"] == "complete"
    assert ended["gen_ai.response.finish_reasons"] == ("stop",)
    assert [record.getMessage() for record in caplog.records] == [
        "a reply begins",
        "attempt 1 begins",
        "attempt 1 failed: AuthenticationError",
        "paused: refresh",
        "attempt 2 begins",
        "goes on after 1.000 s",
        "the first token came after 1.000 s",
        "complete after 1.000 s, attempts: 2",
        "attempt 2: complete",
    ]


async def test_each_reply_has_a_number_of_its_own_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "gz_trio")
    for _ in range(2):
        ReplyTelemetry(BODY, ORIGIN).ended(None, timing())
    records = told(caplog.records, "gz_trio.reply")
    assert len({fields["gz_trio.reply.id"] for _, _, fields in records}) == 2


@pytest.mark.parametrize(
    ("had_text", "level"), [(False, "INFO"), (True, "WARNING")], ids=["before", "after"]
)
async def test_a_warning_says_that_an_answer_was_lost_which_had_begun(
    caplog: pytest.LogCaptureFixture, had_text: bool, level: str
) -> None:
    caplog.set_level(logging.DEBUG, "gz_trio")
    times = timing(1.0) if had_text else timing()
    ReplyTelemetry(BODY, ORIGIN).ended(APIConnectionError("no connection"), times)
    assert told(caplog.records, "gz_trio.reply")[-1][:2] == (level, "gz_trio.reply.ended")
    assert caplog.messages[-1].endswith("attempts: 0: no connection")


async def test_what_was_asked_and_answered_is_told_nowhere(
    collected: Collected, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "gz_trio")
    telemetry = ReplyTelemetry(BODY, ORIGIN)
    first = an_attempt()
    with attempt_of(telemetry, first):
        first.cause = APIConnectionError("no connection", body=secret("body").encode())
    tell_complete(telemetry, usage=Usage(prompt_tokens=1, completion_tokens=1))
    shown = [span.to_json() for span in collected.spans]
    shown += [repr(point) for name in collected.metrics for point in collected.points(name)]
    shown += [repr(vars(record)) for record in caplog.records]
    assert len(collected.spans) == 3
    assert [each for each in shown if "s3cr3t" in each] == []


# Where OpenTelemetry is not


async def test_without_the_api_only_the_log_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_telemetry, "api", None)
    caplog.set_level(logging.DEBUG, "gz_trio")
    telemetry = ReplyTelemetry(BODY, ORIGIN)
    with attempt_of(telemetry, an_attempt()):
        assert telemetry.headers() == {}
    telemetry.announced(RateLimited(1.5))
    telemetry.announced(Restarted())
    tell_complete(telemetry, usage=Usage(prompt_tokens=7, completion_tokens=3))
    events = [event for _, event, _ in told(caplog.records, "gz_trio.reply")]
    assert events[0] == "gz_trio.reply.started"
    assert events[-2:] == ["gz_trio.reply.ended", "gz_trio.attempt.ended"]


ASK = """
import trio
import gz_trio
from gz_trio.testing import FakeGateway

async def main():
    fake = FakeGateway(key="gw_test_2")
    async with (
        fake.http_client() as client,
        gz_trio.open_session(
            fake.base_url, model="fake-model", key="gw_test_1", refresh=fake.refresh,
            http_client=client,
        ) as session,
    ):
        print(await session.ask("Tell me a story.") != "")

async def refuse(rejected):
    raise gz_trio.PermissionDeniedError("the account is closed")

async def fail():  # with a warning in the log
    fake = FakeGateway(key="gw_test_2")
    async with fake.http_client() as client, gz_trio.open_session(
        fake.base_url, model="fake-model", key="gw_test_1", refresh=refuse, http_client=client
    ) as session:
        try:
            await session.ask("Tell me a story.")
        except gz_trio.GatewayError as error:
            print(type(error).__name__)

trio.run(main)
trio.run(fail)
"""
BLOCKED = "import sys\nsys.modules['opentelemetry'] = None\n"
# An API before 1.30 does not know the advice on buckets.
OLD = """
from opentelemetry import metrics

class OldMeter(metrics.NoOpMeter):
    def create_histogram(self, name, unit="", description=""):
        return super().create_histogram(name, unit, description)

metrics.get_meter = lambda *arguments: OldMeter("old")
"""


@pytest.mark.parametrize("before", [BLOCKED, OLD, ""], ids=["none", "old", "no-sdk"])
def test_chats_work_and_are_silent_without_it(before: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", before + ASK], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == ("True\nRefreshError\n", "", 0)


# The page


def test_the_page_has_every_name_that_is_told() -> None:
    page = (ROOT / "docs" / "telemetry.md").read_text(encoding="utf-8")
    modules = ("_telemetry.py", "_auth/telemetry.py", "_chat/telemetry.py")
    names = {
        name
        for module in modules
        for name in re.findall(
            r'"((?:gen_ai|gz_trio|http|server|error)\.[a-z_.]+)"',
            (ROOT / "src" / "gz_trio" / module).read_text(encoding="utf-8"),
        )
    }
    assert len(names) > 50
    assert sorted(names - set(re.findall(r"`([a-z_.]+)`", page))) == []


def test_the_page_has_every_metric_with_its_unit() -> None:
    page = (ROOT / "docs" / "telemetry.md").read_text(encoding="utf-8")
    section = page.partition("### Metrics")[2].partition("## Log records")[0]
    rows = re.findall(r"^\| `([a-z_.]+)` \| (\S+) \|", section, re.MULTILINE)
    assert rows == [(metric.name, metric.unit) for metric in _telemetry.HISTOGRAMS]
