"""What the benchmark of the simulator sees of a run."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.load_server import Counts, Plan
from benchmarks.processes import serving
from benchmarks.simulation import cpu_seconds, peak_mib, simulate, tree
from benchmarks.simulator import kinds_of, noted_ms, simulating, slope, until_requests

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks run on Linux")


def test_the_cpu_of_a_process_and_of_those_that_it_starts_is_seen() -> None:
    child = "import sys; sum(range(10**7)); print(flush=True); sys.stdin.read()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = tree(process.pid)
        assert len(found) == 2
        (below,) = found.keys() - {process.pid}
        assert cpu_seconds(below) >= 0.05
        assert peak_mib(below) > 1
        process.communicate()


def test_a_simulation_is_measured_by_the_server_and_by_proc(tmp_path: Path) -> None:
    options = ["--users", "4", "--output-tokens", "5", "--requests", "100", "--spread", "100ms"]
    with (
        serving(Plan(tokens=5, interval=0.01)) as server,
        simulating(server, options, samples=tmp_path) as run,
    ):
        until_requests(server, 4)
        kinds = kinds_of(run)
        seen = slope(server, kinds, 0.2)
        result = run.end()
        counts = server.ask("mark", Counts)
    assert sorted(kinds.values()) == ["command", "shards"]
    assert seen.tokens > 0
    assert seen.answer_seconds >= 0.04
    assert set(run.peaks) >= set(kinds)
    assert (result.ok, result.tokens) == (100, 500)
    assert (counts.answers, counts.tokens) == (100, 500)
    delays, ways = noted_ms(tmp_path, 0, 3600)
    assert len(delays) == len(ways) == 500
    assert delays[0] > 0
    assert ways[0] > 0
    assert noted_ms(tmp_path, 3600, 7200) == ([], [])


def test_a_simulation_ends_with_the_block(tmp_path: Path) -> None:
    with simulate(tmp_path / "run", ["--users", "2"]) as run:
        while len(found := run.processes()) < 3:  # The command, its shard, and the fake gateway.
            time.sleep(0.05)
    while any(_runs(pid) for pid in found):
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"  # Nobody has waited for it yet.
