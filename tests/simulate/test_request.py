"""One request while it runs, and the record that is left of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gz_trio import (
    APIConnectionError,
    Delta,
    GatewayError,
    InternalServerError,
    Paused,
    RateLimited,
    Restarted,
    Resumed,
    StreamTimeout,
    ToolCallDelta,
    Usage,
)
from gz_trio.simulate import RequestRecord, _request
from gz_trio.simulate._request import Left, Running
from tests.simulate.records import a_record

BEGAN = 1_000_000
TEXT = Delta(text="Hello")
REASONING = Delta(reasoning="Hm")
TOOL = Delta(tool_calls=(ToolCallDelta(0, "1", "search"),))
ROLE = Delta()
USAGE = Delta(usage=Usage(completion_tokens=5))


def record_of(running: Running, error: BaseException | None = None) -> RequestRecord:
    return running.record(
        None,
        error,
        began=BEGAN,
        session=1,
        turn=0,
        group=0,
        model="m",
        intended=BEGAN + 10,
        sent=BEGAN + 12,
        asked_tokens=5,
    )


def received(*events: tuple[Delta, int]) -> Running:
    """Deltas, and when they came, in nanoseconds since the load began."""
    running = Running()
    for delta, instant in events:
        running.take(delta, BEGAN + instant)
    return running


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    now = [BEGAN]
    monkeypatch.setattr(_request, "perf_counter_ns", lambda: now[0])
    return now


class TestWhatAChunkIs:
    def test_text_reasoning_and_tool_calls_are(self) -> None:
        record = record_of(received((REASONING, 20), (TOOL, 30), (TEXT, 45)))
        assert (record.chunks, record.first, record.last) == (3, 20, 45)
        assert (record.ttft, record.latency, record.longest_gap) == (8, 33, 15)

    def test_roles_and_usage_are_none(self) -> None:
        record = record_of(received((ROLE, 15), (TEXT, 20), (TEXT, 30), (USAGE, 60)))
        assert (record.chunks, record.first, record.last, record.ended) == (2, 20, 30, 60)
        assert (record.latency, record.longest_gap) == (18, 10)

    @pytest.mark.parametrize("output", [TEXT, TOOL])
    def test_the_output_begins_with_what_is_no_reasoning(self, output: Delta) -> None:
        record = record_of(received((REASONING, 20), (output, 30), (TEXT, 45)))
        assert (record.first_output, record.ttfo) == (30, 18)

    def test_of_reasoning_alone_there_is_no_output(self) -> None:
        record = record_of(received((REASONING, 20)))
        assert (record.first_output, record.ttfo) == (None, None)

    def test_nothing_at_all_is_no_chunk(self) -> None:
        record = record_of(received((ROLE, 15)))
        assert (record.chunks, record.first, record.last, record.ended) == (0, None, None, 15)
        assert (record.ttft, record.latency, record.itl, record.longest_gap) == (None,) * 3 + (0,)


class TestHowItEnded:
    @pytest.mark.parametrize(
        ("error", "outcome", "kind"),
        [
            (None, "ok", ""),
            (Left(), "cancelled", ""),
            (StreamTimeout("slow"), "timeout", "StreamTimeout"),
            (APIConnectionError("down"), "error", "APIConnectionError"),
            (InternalServerError("no", status=503), "error", "InternalServerError 503"),
            (KeyboardInterrupt(), "unfinished", ""),
        ],
    )
    def test_it_is_told_by_the_error(
        self, error: BaseException | None, outcome: str, kind: str
    ) -> None:
        record = record_of(received((TEXT, 20)), error)
        assert (record.outcome, record.error) == (outcome, kind)

    def test_of_a_failure_the_end_is_when_it_is_noticed(self, clock: list[int]) -> None:
        clock[0] = BEGAN + 99
        assert record_of(received((TEXT, 20)), GatewayError("no")).ended == 99
        assert record_of(received((TEXT, 20))).ended == 20

    def test_a_user_leaves_at_a_chunk(self) -> None:
        running = Running(leave_after=2)
        running.take(ROLE, BEGAN)
        running.take(TEXT, BEGAN + 20)
        with pytest.raises(Left):
            running.take(TEXT, BEGAN + 30)
        assert record_of(running, Left()).chunks == 2

    def test_nobody_counted_its_tokens(self) -> None:
        record = record_of(received((TEXT, 20), (TEXT, 30)))
        assert (record.output_tokens, record.tokens_by, record.tokens) == (None, "chunks", 2)


class TestPauses:
    def test_it_waits_until_it_is_resumed(self, clock: list[int]) -> None:
        running = received((TEXT, 20))
        running.note(Paused("refresh"))
        assert running.waits
        clock[0] += 500
        running.note(Resumed())
        assert not running.waits
        running.take(TEXT, BEGAN + 600)
        record = record_of(running)
        assert (record.pauses, record.paused) == (1, 500)

    def test_a_rate_limit_is_a_pause(self, clock: list[int]) -> None:
        running = Running()
        running.note(RateLimited(2.0))
        clock[0] += 2
        running.note(Resumed())
        assert (running.pauses, running.paused) == (1, 2)

    def test_two_reasons_are_one_pause(self, clock: list[int]) -> None:
        running = Running()
        running.note(RateLimited(2.0))
        clock[0] += 2
        running.note(Paused("refresh"))
        clock[0] += 3
        running.note(Resumed())
        assert (running.pauses, running.paused) == (1, 5)

    def test_one_that_never_ends_ends_with_the_reply(self, clock: list[int]) -> None:
        running = Running()
        running.note(Paused("reconnect"))
        clock[0] += 7
        record = record_of(running, GatewayError("no"))
        assert (record.pauses, record.paused) == (1, 7)

    def test_the_gaps_with_a_pause_are_known(self) -> None:
        running = received((TEXT, 20), (TEXT, 30))
        running.note(Paused("refresh"))
        running.note(Resumed())
        running.take(TEXT, BEGAN + 100)
        running.take(TEXT, BEGAN + 105)
        assert running.paused_gaps() == [70]

    def test_two_pauses_in_one_gap_are_one_gap(self) -> None:
        running = received((TEXT, 20))
        for _ in range(2):
            running.note(Paused("refresh"))
            running.note(Resumed())
        running.take(TEXT, BEGAN + 100)
        assert running.paused_gaps() == [80]
        assert running.pauses == 2

    def test_a_pause_before_the_first_chunk_or_after_the_last_is_in_no_gap(self) -> None:
        running = Running()
        running.note(Paused("refresh"))
        running.note(Resumed())
        running.take(TEXT, BEGAN + 20)
        running.note(Paused("refresh"))
        assert running.paused_gaps() == []

    def test_another_answer_in_its_place_is_noted_and_what_the_first_thought_forgotten(
        self,
    ) -> None:
        running = Running(keep_unsaid=True)
        running.take(REASONING, BEGAN + 20)
        running.note(Restarted())
        running.take(TOOL, BEGAN + 30)
        assert record_of(running).restarts == 1
        assert "".join(running.unsaid or ()) == "search"


class TestFigures:
    """Of one record: as AIPerf has them, from when it was sent."""

    def record(self, **changes: int | None) -> RequestRecord:
        values: dict[str, int | None] = {
            "sent": 100,
            "first": 300,
            "first_output": 500,
            "last": 1300,
            "ended": 1400,
            "chunks": 4,
            "output_tokens": None,
        }
        return a_record(**(values | changes))

    def test_they_count_from_when_it_was_sent(self) -> None:
        record = self.record()
        assert (record.ttft, record.ttfo, record.latency) == (200, 400, 1200)

    def test_itl_divides_by_the_gaps_between_tokens_not_between_chunks(self) -> None:
        assert self.record(output_tokens=11).itl == 100
        assert self.record().itl == pytest.approx(1000 / 3)

    @pytest.mark.parametrize("tokens", [0, 1])
    def test_less_than_two_tokens_have_no_itl(self, tokens: int) -> None:
        assert self.record(output_tokens=tokens).itl is None

    @pytest.mark.parametrize(
        ("limits", "good"),
        [
            ({}, True),
            ({"ttft": 300e-9}, True),
            ({"ttft": 299e-9}, False),
            ({"ttfo": 500e-9}, True),
            ({"ttfo": 499e-9}, False),
            ({"latency": 1300e-9}, True),
            ({"latency": 1299e-9}, False),
            ({"itl": 334e-9}, True),
            ({"itl": 333e-9}, False),
            ({"icl": 50e-9}, True),
            ({"icl": 49e-9}, False),
            ({"ttft": 1.0, "icl": 49e-9}, False),
        ],
    )
    def test_it_keeps_to_limits_from_when_it_was_intended(
        self, limits: dict[str, float], good: bool
    ) -> None:
        assert self.record(longest_gap=50).keeps_to(limits) is good

    def test_without_a_first_output_there_is_none_in_time(self) -> None:
        assert not self.record(first_output=None).keeps_to({"ttfo": 9.0})

    @given(st.integers(0, 10**12), st.integers(0, 10**12), st.integers(2, 10**5))
    def test_itl_times_the_gaps_is_the_time_after_the_first_token(
        self, ttft: int, decoding: int, tokens: int
    ) -> None:
        record = self.record(first=100 + ttft, last=100 + ttft + decoding, output_tokens=tokens)
        assert record.itl is not None
        assert record.itl * (tokens - 1) == pytest.approx(decoding)
        assert record.latency == ttft + decoding
