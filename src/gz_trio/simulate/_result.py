"""The result of a run: all its figures, as the program has them and as the JSON file holds them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from ._histograms import Percentiles


class Second(msgspec.Struct, kw_only=True):
    """One second of the run, over all shards. Latencies in milliseconds.

    Attributes:
        second: Its number, from the start of the load: warm-up and grace are there too.
        tokens: Chunks that came in it.
        sent: Requests that were sent in it.
        ok: Replies that ended well in it.
        failed: Requests that failed in it.
        active: Requests under way at its end.
        paused: Replies that waited for a key at its end.
        rejected: 401s in it.
        ttft_p50: Of the replies that ended in it.
        ttft_p99: Likewise.
        latency_p99: Likewise.
        icl_p50: Gaps between the chunks of those.
        icl_p99: Likewise.
    """

    second: int
    tokens: int = 0
    sent: int = 0
    ok: int = 0
    failed: int = 0
    active: int = 0
    paused: int = 0
    rejected: int = 0
    ttft_p50: float | None = None
    ttft_p99: float | None = None
    latency_p99: float | None = None
    icl_p50: float | None = None
    icl_p99: float | None = None


class ClientBound(msgspec.Struct, frozen=True, kw_only=True):
    """A second in which the simulator itself was too slow: its figures are not the gateway's.

    Attributes:
        second: Its number.
        shard: Which process.
        why: `"late"`: p99 of sent minus intended; `"polls"`: p99 of the time between two looks at
            the sockets; `"cpu"`: the share of a core that it used.
        value: Milliseconds, or the share.
        limit: What it must not exceed.
    """

    second: int
    shard: int
    why: Literal["late", "polls", "cpu"]
    value: float
    limit: float


class Result(msgspec.Struct, kw_only=True):
    """What came out of a run.

    Attributes:
        workload: Its settings, as the TOML file has them.
        target: The base URL, or `"fake gateway"`.
        began: When the load began, Unix time in seconds.
        machine: What it ran on, and with which versions.
        shards: How many processes sent it.
        clock_error_ms: How far apart, at most, they began, as their clocks may be off.
        closed_loop: Whether users waited for replies: then a slow server is asked less often, and
            its figures look better than they would for arrivals that do not wait.
        warm_up: Seconds at the start that do not count.
        seconds: How long the window was: requests that were intended in it count.
        intended: Requests that count, those that users left not among them.
        ok: Of these, how many ended well.
        errors: How many failed.
        timeouts: How many failed because time was up.
        unfinished: How many were still under way at the end of the grace.
        cancelled: How many more were left by their users, on purpose.
        error_kinds: Errors and time-outs by their class.
        figures: Of the requests that ended well: `ttft`, `ttfo`, `latency`, each also as
            `..._intended` (from when it was intended, not from when it was sent), `itl`, `icl`,
            `icl_paused` (those gaps that a pause was in), `late` (sent minus intended).
        with_failures: Of all requests: `ttft`, `ttfo`, `latency` and `..._intended` again, failed
            ones as endless, unfinished ones as old as they were.
        tokens: Output tokens of the requests that ended well.
        tokens_by: Who counted them: the server (`"usage"`), a `"tokenizer"`, nobody (`"chunks"`),
            or not all of them the same (`"mixed"`).
        tokens_per_second: Chunks that came in the window, a second.
        requests_per_second: Replies that ended well in the window, a second.
        goodput: Good requests a second: those that kept to the SLO.
        good_fraction: The good of the intended; without an SLO those that ended well.
        rejected: 401s.
        refreshes: How often a key was refreshed.
        pauses: How often replies paused.
        paused_seconds: How long, all together.
        taken_up: How often replies were taken up again, by how.
        restarts: How often a second answer replaced the first.
        lost: Characters lost; `None` where nobody can know.
        doubled: Characters doubled; likewise.
        wrong_lengths: Answers that have another number of tokens than was asked for.
        client_bound: When the simulator itself was the limit.
        series: Second by second.
        rotations: When keys were replaced, seconds from the start of the load.
        skipped: Lines of the prompts' file that were left out, by reason.
        lost_shards: Processes that died, or fell silent: what they did is not in here.
        interrupted: Whether the run was stopped before its end.
        histograms: Of each figure, as HdrHistogram encodes it, in microseconds.
    """

    workload: dict[str, object]
    target: str
    began: float
    machine: dict[str, str]
    shards: int = 1
    clock_error_ms: float = 0.0
    closed_loop: bool
    warm_up: float
    seconds: float
    intended: int = 0
    ok: int = 0
    errors: int = 0
    timeouts: int = 0
    unfinished: int = 0
    cancelled: int = 0
    error_kinds: dict[str, int] = {}
    figures: dict[str, Percentiles] = {}
    with_failures: dict[str, Percentiles] = {}
    tokens: int = 0
    tokens_by: Literal["usage", "tokenizer", "chunks", "mixed"] = "chunks"
    tokens_per_second: float = 0.0
    requests_per_second: float = 0.0
    goodput: float = 0.0
    good_fraction: float = 0.0
    rejected: int = 0
    refreshes: int = 0
    pauses: int = 0
    paused_seconds: float = 0.0
    taken_up: dict[str, int] = {}
    restarts: int = 0
    lost: int | None = None
    doubled: int | None = None
    wrong_lengths: int = 0
    client_bound: list[ClientBound] = []
    series: list[Second] = []
    rotations: list[float] = []
    skipped: dict[str, int] = {}
    lost_shards: list[str] = []
    interrupted: bool = False
    histograms: dict[str, str] = {}

    @classmethod
    def read(cls, path: str | Path) -> Result:
        """Read the `result.json` of a run, or that in a folder of results.

        Raises:
            OSError: It cannot be read.
            ValueError: It is no result.
        """
        path = Path(path)
        path = path / "result.json" if path.is_dir() else path
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except msgspec.DecodeError as error:
            raise ValueError(f"{path} is no result of a simulation: {error}") from None

    def json(self) -> bytes:
        """What `read` reads."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1)
