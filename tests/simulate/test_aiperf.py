"""The figures mean what AIPerf's mean: both are computed from one `requests.csv`.

On the left what a run tells. On the right the formulas of AIPerf's metrics reference
(https://docs.nvidia.com/aiperf/reference/ai-perf-metrics-reference), written out, on what AIPerf
would have of the same requests: when each was sent, when its first and last response with content
came, and how many tokens it has.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from gz_trio.simulate import Percentiles, Result, Workload
from gz_trio.simulate._files import RunFolder
from gz_trio.simulate._run import run_in_processes

SLO = {"ttft": "400ms", "itl": "12ms"}
DIGITS = 1e-3
HISTOGRAM_MS = 0.001
"""Histograms count whole microseconds."""


@dataclass(frozen=True)
class Request:
    """What AIPerf keeps of a request, in nanoseconds of one clock."""

    start_perf_ns: int
    first_content_ns: int
    first_output_ns: int
    last_content_ns: int
    output_sequence_length: int
    valid: bool

    @property
    def time_to_first_token(self) -> int:
        """`content_responses[0].perf_ns - start_perf_ns`."""
        return self.first_content_ns - self.start_perf_ns

    @property
    def time_to_first_output_token(self) -> int:
        """`first_non_reasoning_token_perf_ns - start_perf_ns`."""
        return self.first_output_ns - self.start_perf_ns

    @property
    def request_latency(self) -> int:
        """`content_responses[-1].perf_ns - start_perf_ns`."""
        return self.last_content_ns - self.start_perf_ns

    @property
    def inter_token_latency(self) -> float:
        """`(request_latency - time_to_first_token) / (output_sequence_length - 1)`."""
        after_the_first = self.request_latency - self.time_to_first_token
        return after_the_first / (self.output_sequence_length - 1)


@dataclass(frozen=True)
class Benchmark:
    """What AIPerf would tell of them all."""

    requests: Sequence[Request]

    @property
    def valid(self) -> list[Request]:
        return [request for request in self.requests if request.valid]

    @property
    def benchmark_duration_seconds(self) -> float:
        """`max_response_timestamp - min_request_timestamp`."""
        first = min(request.start_perf_ns for request in self.valid)
        return (max(request.last_content_ns for request in self.valid) - first) / 1e9

    @property
    def output_token_throughput(self) -> float:
        """`total_osl / benchmark_duration_seconds`."""
        total_osl = sum(request.output_sequence_length for request in self.valid)
        return total_osl / self.benchmark_duration_seconds

    @property
    def request_throughput(self) -> float:
        """`request_count / benchmark_duration_seconds`."""
        return len(self.valid) / self.benchmark_duration_seconds

    @property
    def good_request_count(self) -> int:
        """`sum(1 for r in records if r.all_slos_met)`, limits in milliseconds."""
        return sum(
            request.time_to_first_token / 1e6 <= 400 and request.inter_token_latency / 1e6 <= 12
            for request in self.valid
        )

    @property
    def goodput(self) -> float:
        """`good_request_count / benchmark_duration_seconds`."""
        return self.good_request_count / self.benchmark_duration_seconds

    @property
    def good_request_fraction(self) -> float:
        """`good_request_count / (request_count + error_request_count)`."""
        return self.good_request_count / len(self.requests)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Benchmark]:
    """A load of which some requests are slow, and two fail; and its file."""
    folder = tmp_path_factory.mktemp("run") / "here"
    workload = Workload(
        users=4,
        requests=60,
        spread="50ms",
        output_tokens="uniform(5, 40)",
        slo=tuple(f"{name}={limit}" for name, limit in SLO.items()),
        fake_token_interval="2ms",
        fake_faults=(
            *[f"stall=0.6 token=0 request={number}" for number in (3, 20, 41)],
            *[f"stall=1 token=2 request={number}" for number in (7, 30)],
            *[f"status=400 request={number}" for number in (11, 12)],
        ),
    )

    async def measure() -> Result:
        with RunFolder(folder, workload) as files:
            result = await run_in_processes(
                workload,
                None,
                processes=1,
                scheduler=None,
                stop=trio.Event(),
                on_second=lambda _: None,
                on_records=files.add,
            )
            files.finish(result)
        return result

    return trio.run(measure), Benchmark(read(folder / "requests.csv"))


def read(path: Path) -> list[Request]:
    """AIPerf's view of our file: it knows of no time before a request is sent."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        Request(
            start_perf_ns=int(row["sent"]),
            first_content_ns=int(row["first"] or 0),
            first_output_ns=int(row["first_output"] or 0),
            last_content_ns=int(row["last"] or 0),
            output_sequence_length=int(row["output_tokens"] or 0),
            valid=row["outcome"] == "ok",
        )
        for row in rows
        if row["window"] == "true" and row["outcome"] != "cancelled"
    ]


def nearest_rank(values: Sequence[float], percent: float) -> float:
    return sorted(values)[max(1, int(percent * len(values) / 100 + 0.5)) - 1]


def same_distribution(ours: Percentiles, theirs_ns: Sequence[float]) -> None:
    milliseconds = [value / 1e6 for value in theirs_ns]
    assert ours.count == len(milliseconds)
    for mine, truth in (
        (ours.mean, statistics.fmean(milliseconds)),
        (ours.least, min(milliseconds)),
        (ours.p50, nearest_rank(milliseconds, 50)),
        (ours.p90, nearest_rank(milliseconds, 90)),
        (ours.p95, nearest_rank(milliseconds, 95)),
        (ours.p99, nearest_rank(milliseconds, 99)),
        (ours.most, max(milliseconds)),
    ):
        assert mine == pytest.approx(truth, rel=DIGITS, abs=HISTOGRAM_MS)


def test_the_load_is_one_of_which_something_can_be_said(
    run: tuple[Result, Benchmark],
) -> None:
    result, aiperf = run
    assert (result.intended, result.ok, result.errors) == (60, 58, 2)
    assert (len(aiperf.requests), len(aiperf.valid)) == (60, 58)
    assert 0 < aiperf.good_request_count < 58
    assert len({request.output_sequence_length for request in aiperf.valid}) > 10


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("ttft", "time_to_first_token"),
        ("ttfo", "time_to_first_output_token"),
        ("itl", "inter_token_latency"),
        ("latency", "request_latency"),
    ],
)
def test_what_is_told_of_each_request_is_the_same(
    run: tuple[Result, Benchmark], ours: str, theirs: str
) -> None:
    result, aiperf = run
    values: list[float] = [getattr(request, theirs) for request in aiperf.valid]
    same_distribution(result.figures[ours], values)


def test_inter_chunk_latency_is_the_gap_between_chunks(run: tuple[Result, Benchmark]) -> None:
    # `content_responses[i].perf_ns - content_responses[i - 1].perf_ns`: their sum is the time
    # after the first one. The fake gateway sends a token a chunk.
    result, aiperf = run
    icl = result.figures["icl"]
    assert icl.count == sum(request.output_sequence_length - 1 for request in aiperf.valid)
    assert icl.mean is not None
    total = sum(request.request_latency - request.time_to_first_token for request in aiperf.valid)
    assert icl.mean * icl.count == pytest.approx(total / 1e6, rel=DIGITS, abs=icl.count * 0.001)


def test_tokens_are_the_output_sequence_lengths(run: tuple[Result, Benchmark]) -> None:
    result, aiperf = run
    assert result.tokens == sum(request.output_sequence_length for request in aiperf.valid)
    assert result.tokens_by == "usage"


def test_rates_are_the_same_but_for_the_time_that_they_are_of(
    run: tuple[Result, Benchmark],
) -> None:
    result, aiperf = run
    duration = aiperf.benchmark_duration_seconds
    for ours, theirs in (
        (result.requests_per_second, aiperf.request_throughput),
        (result.goodput, aiperf.goodput),
        (result.tokens_per_second, aiperf.output_token_throughput),
    ):
        # AIPerf's begins with the first request and ends with the last response; ours is the
        # window: here from the beginning of the load until the last reply was over.
        assert ours * result.seconds == pytest.approx(theirs * duration, rel=DIGITS)
    assert result.seconds >= duration - DIGITS
    assert math.isclose(result.seconds, duration, abs_tol=0.5)


def test_the_good_fraction_counts_failures_as_attempts(run: tuple[Result, Benchmark]) -> None:
    result, aiperf = run
    assert result.good_fraction == pytest.approx(aiperf.good_request_fraction)
