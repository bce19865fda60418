"""What shards tell becomes one run: whatever comes late, twice, or not at all."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gz_trio.simulate import ClientBound, Merge, RequestRecord, Result, Workload
from gz_trio.simulate._histograms import Samples
from gz_trio.simulate._intervals import Interval
from tests.simulate.records import MS, SECOND, a_record

MINUTE = Workload(users=4, duration="60s")


def interval(number: int, *records: RequestRecord, shard: int = 0, **more: Any) -> Interval:
    """What a shard tells of requests that were over in a second: as `_shard.Shard` does."""
    window, outside = Samples(), Samples()
    for record in records:
        samples, late = window if record.window else outside, record.sent - record.intended
        if record.outcome == "ok":
            samples.add("late", late)
            for name in ("ttft", "ttfo", "latency"):
                value: int = getattr(record, name)
                samples.add(name, value)
                samples.add(f"{name}_intended", value + late)
        elif record.outcome == "unfinished" and record.window:
            samples.add("age", record.ended - record.sent)
            samples.add("age_intended", record.ended - record.intended)
    values: dict[str, Any] = {
        "second": number,
        "histograms": window.take(),
        "outside": outside.take(),
        "records": list(records),
    }
    return Interval(shard=shard, number=number, **(values | more))


def merge_of(
    *intervals: Interval, workload: Workload = MINUTE, shards: int = 1, target: str = "x"
) -> Merge:
    merge = Merge(workload, target, 1.0, shards)
    for one in intervals:
        merge.take(one)
    return merge


def result_of(*records: RequestRecord, workload: Workload = MINUTE) -> Result:
    """Of one shard that told of all of them at once."""
    return merge_of(interval(0, *records, last=True), workload=workload).result()


class TestTheCounts:
    def test_each_outcome_is_counted_and_errors_by_kind(self) -> None:
        result = result_of(
            a_record(),
            a_record(),
            a_record(outcome="error", error="RateLimitError 429"),
            a_record(outcome="error", error="RateLimitError 429"),
            a_record(outcome="timeout", error="StreamTimeout"),
            a_record(outcome="unfinished"),
        )
        assert (result.ok, result.errors, result.timeouts, result.unfinished) == (2, 2, 1, 1)
        assert result.error_kinds == {"RateLimitError 429": 2, "StreamTimeout": 1}
        assert result.intended == 6
        assert result.good_fraction == pytest.approx(2 / 6)

    def test_what_users_left_is_counted_apart(self) -> None:
        result = result_of(a_record(), a_record(outcome="cancelled"))
        assert (result.intended, result.cancelled, result.ok) == (1, 1, 1)
        assert result.good_fraction == 1
        assert result.tokens == 11

    def test_what_is_outside_of_the_window_does_not_count(self) -> None:
        outside = [
            a_record(window=False, outcome=outcome)
            for outcome in ("ok", "error", "timeout", "cancelled", "unfinished")
        ]
        result = result_of(a_record(), *outside)
        assert (result.intended, result.ok, result.errors, result.cancelled) == (1, 1, 0, 0)
        assert result.error_kinds == {}
        assert result.figures["ttft"].count == 1
        assert result.with_failures["ttft"].count == 1

    def test_but_what_became_of_keys_and_streams_counts_wherever_it_happened(self) -> None:
        told = {"rejected": 1, "pauses": 2, "paused": SECOND // 2, "restarts": 1}
        result = result_of(
            a_record(taken_up="replay+cursor", **told),
            a_record(window=False, taken_up="replay", **told),
        )
        assert (result.rejected, result.pauses, result.restarts) == (2, 4, 2)
        assert result.paused_seconds == 1
        assert result.taken_up == {"replay": 2, "cursor": 1}

    def test_what_was_lost_is_unknown_unless_somebody_knows(self) -> None:
        assert (result_of(a_record()).lost, result_of(a_record()).doubled) == (None, None)
        result = result_of(a_record(), a_record(lost=0, doubled=0), a_record(lost=3, doubled=2))
        assert (result.lost, result.doubled) == (3, 2)

    def test_of_nothing_there_is_a_result_too(self) -> None:
        result = merge_of().result()
        assert (result.intended, result.good_fraction, result.goodput) == (0, 0, 0)
        assert result.figures == {}
        assert result.with_failures["latency"].count == 0


class TestTokens:
    @pytest.mark.parametrize(
        ("counted_by", "told"),
        [
            (["usage", "usage"], "usage"),
            (["tokenizer"], "tokenizer"),
            (["chunks"], "chunks"),
            (["usage", "chunks"], "mixed"),
            ([], "chunks"),
        ],
    )
    def test_it_is_told_who_counted_them(self, counted_by: list[str], told: str) -> None:
        result = result_of(*[a_record(tokens_by=by) for by in counted_by])
        assert result.tokens_by == told
        assert result.tokens == 11 * len(counted_by)

    def test_of_replies_that_failed_or_do_not_count_nobody_is_asked_who_counted(self) -> None:
        result = result_of(
            a_record(),
            a_record(outcome="error", tokens_by="chunks"),
            a_record(window=False, tokens_by="tokenizer"),
        )
        assert (result.tokens_by, result.tokens) == ("usage", 11)

    def test_where_nobody_counted_them_chunks_stand_for_them(self) -> None:
        assert result_of(a_record(output_tokens=None, chunks=7)).tokens == 7

    def test_answers_of_another_length_than_was_asked_for_are_counted(self) -> None:
        result = result_of(
            a_record(),
            a_record(output_tokens=10),
            a_record(output_tokens=12),
            a_record(output_tokens=None, chunks=3),  # nobody knows
        )
        assert result.wrong_lengths == 2


class TestGoodOnes:
    SLO = Workload(users=1, duration="10s", slo=("ttft=101ms", "itl=40ms"))

    def test_limits_hold_from_when_a_request_was_intended(self) -> None:
        late = a_record(sent=2 * MS, first=102 * MS, first_output=102 * MS, last=502 * MS)
        assert late.ttft == a_record().ttft
        result = result_of(a_record(), late, workload=self.SLO)
        assert result.good_fraction == 0.5

    def test_every_limit_has_to_hold(self) -> None:
        slow = a_record(last=502 * MS)
        assert result_of(slow, workload=self.SLO).good_fraction == 0

    def test_without_an_slo_those_are_good_that_ended_well(self) -> None:
        assert result_of(a_record(), a_record(outcome="error")).good_fraction == 0.5

    def test_goodput_is_the_good_ones_a_second_of_the_window(self) -> None:
        result = result_of(a_record(), a_record(), a_record(ended=99 * SECOND), workload=self.SLO)
        assert (result.seconds, result.goodput) == (10, 0.3)

    @settings(max_examples=40)
    @given(
        st.lists(st.integers(0, 200 * MS), min_size=4, max_size=4).map(sorted),
        st.integers(1, 20),
        st.integers(0, 100),
        st.dictionaries(
            st.sampled_from(["ttft", "ttfo", "itl", "icl", "latency"]), st.integers(0, 200)
        ),
    )
    def test_it_is_the_record_that_says_whether_it_is_good(
        self, instants: list[int], tokens: int, gap: int, limits: dict[str, int]
    ) -> None:
        sent, first, first_output, last = instants
        record = a_record(
            sent=sent,
            first=first,
            first_output=first_output,
            last=last,
            output_tokens=tokens,
            longest_gap=gap * MS,
        )
        slo = tuple(f"{name}={limit}ms" for name, limit in limits.items())
        workload = Workload(users=1, duration=1, slo=slo)
        good = result_of(record, workload=workload).good_fraction == 1
        assert good == record.keeps_to(workload.limits)


class TestFigures:
    def test_those_that_ended_well_are_from_sent_and_from_intended(self) -> None:
        figures = result_of(a_record(), a_record(outcome="error")).figures
        assert {name: of.p50 for name, of in figures.items()} == {
            "late": pytest.approx(1, rel=1e-3),
            "ttft": pytest.approx(100, rel=1e-3),
            "ttfo": pytest.approx(100, rel=1e-3),
            "latency": pytest.approx(500, rel=1e-3),
            "ttft_intended": pytest.approx(101, rel=1e-3),
            "ttfo_intended": pytest.approx(101, rel=1e-3),
            "latency_intended": pytest.approx(501, rel=1e-3),
        }

    def test_with_failures_those_have_no_end_and_unfinished_ones_are_as_old_as_they_were(
        self,
    ) -> None:
        old = a_record(outcome="unfinished", sent=2 * MS, ended=30 * SECOND)
        result = result_of(
            *[a_record()] * 6,
            old,
            a_record(outcome="error"),
            a_record(outcome="timeout"),
            a_record(outcome="cancelled"),
            a_record(outcome="error", window=False),
        )
        assert set(result.with_failures) == {
            *("ttft", "ttfo", "latency"),
            *("ttft_intended", "ttfo_intended", "latency_intended"),
        }
        for name, of in result.with_failures.items():
            assert (of.count, of.endless) == (9, 2)
            assert of.p50 == result.figures[name].p50
            assert (of.p90, of.p99, of.most) == (None, None, None)
            assert of.mean is not None
            assert of.mean > 4_000  # the old one is among them
        assert "age" not in result.figures

    def test_values_that_no_histogram_holds_are_told(self) -> None:
        result = merge_of(interval(0, a_record(), out_of_range={"icl": 2, "ttft": 1})).result()
        assert result.figures["ttft"].out_of_range == 1
        assert result.with_failures["ttft"].out_of_range == 1


class TestTheWindow:
    def test_it_is_as_long_as_the_workload_says(self) -> None:
        workload = Workload(users=1, warm_up="5s", duration="20s")
        result = result_of(a_record(ended=70 * SECOND), workload=workload)
        assert (result.warm_up, result.seconds) == (5, 20)

    def test_a_run_by_count_is_as_long_as_it_took(self) -> None:
        workload = Workload(users=1, requests=2, warm_up="5s")
        result = result_of(
            a_record(ended=15 * SECOND), a_record(ended=9 * SECOND), workload=workload
        )
        assert result.seconds == 10
        assert result.goodput == 0.2

    def test_a_run_that_was_stopped_is_as_long_as_it_went(self) -> None:
        workload = Workload(users=1, warm_up="5s", duration="20s")
        stopped = interval(0, a_record(ended=9 * SECOND), last=True, ended="interrupted")
        result = merge_of(stopped, workload=workload).result()
        assert (result.interrupted, result.seconds) == (True, 4)

    def test_a_run_that_was_stopped_in_its_warm_up_has_no_window(self) -> None:
        workload = Workload(users=1, warm_up="5s", duration="20s")
        record = a_record(window=False, ended=SECOND)
        stopped = interval(0, record, last=True, ended="interrupted", tokens_in_window=11)
        result = merge_of(stopped, workload=workload).result()
        assert (result.seconds, result.tokens_per_second, result.goodput) == (0, 0, 0)

    def test_a_stop_in_the_grace_does_not_make_it_longer(self) -> None:
        workload = Workload(users=1, duration="20s")
        stopped = interval(0, a_record(ended=25 * SECOND), last=True, ended="interrupted")
        assert merge_of(stopped, workload=workload).result().seconds == 20

    def test_replies_a_second_are_those_that_ended_within_it_whenever_they_began(self) -> None:
        workload = Workload(users=1, warm_up="5s", duration="10s")
        result = result_of(
            a_record(ended=4 * SECOND, window=False),
            a_record(ended=6 * SECOND, window=False),
            a_record(ended=14 * SECOND),
            a_record(ended=16 * SECOND),
            workload=workload,
        )
        assert result.requests_per_second == 0.2
        assert (result.ok, result.goodput) == (2, 0.2)

    def test_tokens_a_second_are_the_chunks_that_came_within_it(self) -> None:
        workload = Workload(users=1, duration="10s")
        merge = merge_of(
            interval(0, tokens=50),
            interval(1, tokens=30, tokens_in_window=70, last=True),
            workload=workload,
        )
        assert merge.result().tokens_per_second == 7
        assert merge.tokens == 80


class TestSeconds:
    def test_those_of_several_shards_add_up(self) -> None:
        told = {"tokens": 5, "sent": 2, "active": 3, "paused": 1}
        failed = a_record(outcome="error", rejected=3)
        merge = merge_of(
            interval(0, a_record(), failed, shard=0, **told),
            interval(0, a_record(), shard=1, **told),
            shards=2,
        )
        (second,) = merge.result().series
        assert (second.tokens, second.sent, second.active, second.paused) == (10, 4, 6, 2)
        assert (second.ok, second.failed, second.rejected) == (2, 1, 3)
        assert second.ttft_p50 == pytest.approx(100, rel=1e-3)

    def test_replies_in_the_warm_up_are_in_them_too(self) -> None:
        (second,) = result_of(a_record(window=False)).series
        assert second.ok == 1
        assert second.ttft_p50 == pytest.approx(100, rel=1e-3)

    def test_one_is_whole_when_every_shard_has_told_of_it(self) -> None:
        merge = merge_of(interval(0, shard=0, tokens=1), shards=2)
        assert merge.last.tokens == 0
        merge.take(interval(1, shard=0))
        merge.take(interval(0, shard=1, tokens=2))
        assert (merge.last.second, merge.last.tokens) == (0, 3)

    @pytest.mark.parametrize("how", ["it is done", "it is lost"])
    def test_nobody_waits_for_a_shard_that_tells_no_more(self, how: str) -> None:
        merge = merge_of(interval(0, shard=0), interval(0, shard=1), shards=2)
        if how == "it is done":
            merge.take(interval(1, shard=1, last=True))
        else:
            merge.lose(1, "it has died")
        for number in range(1, 4):
            merge.take(interval(number, shard=0))
            assert merge.last.second == number

    def test_they_come_in_order_and_none_is_made_up(self) -> None:
        merge = merge_of(
            interval(0, shard=0), interval(1, shard=0, second=3), interval(0, shard=1), shards=2
        )
        assert [second.second for second in merge.result().series] == [0, 3]


class TestWhatIsTwiceOrLacks:
    def test_an_interval_that_comes_again_counts_once(self) -> None:
        once = [interval(0, a_record(), tokens=11), interval(1, a_record(), tokens=11, last=True)]
        assert merge_of(*once).result() == merge_of(once[0], once[0], once[1], *once).result()

    def test_intervals_that_lack_are_told_as_lost(self) -> None:
        merge = merge_of(interval(0, a_record()), interval(3, a_record(), last=True))
        result = merge.result()
        assert result.lost_shards == ["shard 0: 2 seconds of it did not arrive"]
        assert result.ok == 2

    def test_one_that_was_given_up_is_not_counted_when_it_comes_after_all(self) -> None:
        merge = merge_of(interval(0), interval(2), interval(1, a_record()))
        assert merge.result().ok == 0

    def test_a_shard_that_died_is_named_and_what_it_told_stays(self) -> None:
        merge = merge_of(interval(0, a_record(), shard=1), shards=3)
        merge.lose(1, "it has died: killed")
        result = merge.result()
        assert (result.shards, result.ok) == (3, 1)
        assert result.lost_shards == ["shard 1: it has died: killed"]

    @given(st.data())
    @settings(max_examples=20)
    def test_the_order_in_which_shards_tell_does_not_matter(self, data: st.DataObject) -> None:
        shards = [
            [
                interval(number, a_record(sent=shard * MS), shard=shard, tokens=shard, sent=1)
                for number in range(count)
            ]
            for shard, count in enumerate(data.draw(st.lists(st.integers(1, 4), max_size=4)))
        ]
        turns = [shard for shard, intervals in enumerate(shards) for _ in intervals]
        left = [iter(intervals) for intervals in shards]
        mixed = [next(left[shard]) for shard in data.draw(st.permutations(turns))]
        in_order = [one for intervals in shards for one in intervals]
        count = len(shards)
        assert merge_of(*mixed, shards=count).result() == merge_of(*in_order, shards=count).result()


class TestClientBound:
    @pytest.mark.parametrize(
        ("seen", "bound"),
        [
            ({"late_ms": 1.0, "polls_ms": 1.0, "cpu": 0.9}, []),
            ({"late_ms": 1.2345}, [("late", 1.234, 1.0)]),
            ({"polls_ms": 3.0}, [("polls", 3.0, 1.0)]),
            ({"cpu": 0.95}, [("cpu", 0.95, 0.9)]),
            ({"polls_ms": 3.0, "cpu": 0.95}, [("polls", 3.0, 1.0), ("cpu", 0.95, 0.9)]),
        ],
    )
    def test_a_second_in_which_a_limit_is_exceeded_is_told(
        self, seen: dict[str, float], bound: list[tuple[Any, float, float]]
    ) -> None:
        merge = merge_of(interval(0, shard=0), interval(0, shard=1, second=7, **seen), shards=2)
        expected = [
            ClientBound(second=7, shard=1, why=why, value=value, limit=limit)
            for why, value, limit in bound
        ]
        assert merge.result().client_bound == list(merge.client_bound) == expected

    def test_the_limit_is_a_twentieth_of_the_tightest_of_the_slo(self) -> None:
        workload = Workload(users=1, slo=("itl=10ms", "ttft=1s"))
        (bound,) = merge_of(interval(0, late_ms=0.6), workload=workload).client_bound
        assert (bound.why, bound.limit) == ("late", 0.5)

    def test_what_is_left_of_a_second_at_the_end_is_none(self) -> None:
        assert not merge_of(interval(0, late_ms=9.0, cpu=1.0, last=True)).client_bound


def test_a_result_is_read_as_it_was_written(tmp_path: Any) -> None:
    merge = merge_of(
        interval(0, a_record(lost=0, doubled=0), a_record(outcome="error", error="E"), cpu=0.95),
        interval(1, last=True, skipped={"no JSON": 2}, refreshes=3),
        target="fake gateway",
    )
    result = merge.result(rotations=[5.0, 1.0])
    assert (result.rotations, result.skipped, result.refreshes) == ([1.0, 5.0], {"no JSON": 2}, 3)
    assert (result.target, result.workload) == ("fake gateway", MINUTE.settings)
    (tmp_path / "result.json").write_bytes(result.json())
    assert Result.read(tmp_path) == Result.read(tmp_path / "result.json") == result


@pytest.mark.parametrize("text", ["", "{}", "no JSON", '{"seconds": "x"}'])
def test_another_file_is_no_result(tmp_path: Any, text: str) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(ValueError, match=r"result\.json is no result of a simulation"):
        Result.read(tmp_path)
