"""The simulator: whether its figures are true, and what it costs beside its own transport.

`gz-trio simulate` runs as people run it, with the live screen at a terminal and each request
written to a file, all of its processes on one core and the load server on another. Who judges it
is the server, which stamps when it read each request and wrote each token, and /proc.

A round in which the server itself was late says nothing, and is left out.
"""

from __future__ import annotations

import tempfile
import time
from array import array
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from gz_trio.simulate import Result

from .capacity import SERVER_BUSY
from .figures import Beside, Figure, Row, ScenarioFailed, until
from .load_server import Counts, Lateness, Plan
from .peers import Load
from .peers.gz import SPREAD_SECONDS, TOKENS, TURNS
from .processes import CLIENT_CORE, SERVER_CORE, Process, busy_seconds, pin, serving, start
from .simulation import (
    FAKE_GATEWAY,
    SHARD,
    Simulation,
    cpu_seconds,
    simulate,
)

USERS, INTERVAL = 1000, 0.04
MANY_USERS, MANY_TOKENS, MANY_INTERVAL = 10_000, 20, 1.0
STORM_USERS, STORM_GROUP = 200, 20
SHARED_REQUESTS = 12_000

ROUNDS = 5
WARM_UP, DURATION = 5.0, 20.0
SLOPE_SECONDS = 10.0
SETTLE_SECONDS = 4.0
"""Between the first requests of all users and the slope: two answers' time."""

PATIENCE_SECONDS = 90.0
SERVER_LATE_MS = 3.0
NS = 1e9


@dataclass(frozen=True)
class Slope:
    """What was seen between two instants of a steady load.

    Args:
        cpu: Microseconds a token, by what it is for: the command, its shards, Dask's own; or the
            transport alone.
        tokens: That the server wrote.
        seconds: How long it was.
        server: How busy the server was, of its core.
        others: How busy the client's core was with something else.
        late: Of the server.
        answer_seconds: How long the server took for an answer, the mean.
        open: Connections at its end.
    """

    cpu: dict[str, float]
    tokens: int
    seconds: float
    server: float
    others: float
    late: Lateness
    answer_seconds: float
    open: int

    @property
    def total(self) -> float:
        """CPU a token of all of them."""
        return sum(self.cpu.values())


def see(beside: Beside, slope: Slope) -> None:
    """What every slope tells."""
    beside.see(
        tokens_a_second=slope.tokens / slope.seconds,
        server_busy=slope.server,
        server_late_p99_ms=slope.late.p99,
        others_on_the_clients_core=slope.others,
    )


# One run


@contextmanager
def simulating(
    server: Process, options: Sequence[str], *, samples: Path | None = None
) -> Generator[Simulation]:
    """A run against the server."""
    url = f"http://127.0.0.1:{int(server.read())}/v1"
    with (
        tempfile.TemporaryDirectory() as folder,
        simulate(Path(folder, "run"), ["--base-url", url, *options], samples=samples) as run,
    ):
        yield run


def options_of(users: int, tokens: int = TOKENS, **others: str) -> list[str]:
    """Of the command line."""
    named = {"users": users, "turns": TURNS, "output_tokens": tokens, **others}
    return [
        word
        for name, value in named.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]


def until_requests(server: Process, count: int) -> None:
    """Wait until the server has read so many.

    Raises:
        ScenarioFailed: It takes too long.
    """
    until(
        lambda: server.ask("mark", Counts).requests >= count, f"{count} requests", PATIENCE_SECONDS
    )


def slope(server: Process, kinds: dict[int, str], seconds: float) -> Slope:
    """Watch a load that is steady.

    Args:
        server: Whose tokens are counted.
        kinds: The processes whose CPU is taken, and by which name.
        seconds: How long.
    """

    def look() -> tuple[Counts, dict[int, float], float]:
        taken = {pid: cpu_seconds(pid) for pid in kinds}
        return server.ask("mark", Counts), taken, busy_seconds(CLIENT_CORE)

    server.ask("lateness", Lateness)
    before, taken_before, busy_before = look()
    time.sleep(seconds)  # Nothing is asked meanwhile: it would cost CPU.
    after, taken_after, busy_after = look()
    tokens, took = after.tokens - before.tokens, (after.now - before.now) / NS
    cpu: dict[str, float] = {}
    for pid, kind in kinds.items():
        micro = (taken_after[pid] - taken_before[pid]) / max(tokens, 1) * 1e6
        cpu[kind] = cpu.get(kind, 0.0) + micro
    ours = sum(cpu.values()) * tokens / took / 1e6
    answers = after.answers - before.answers
    return Slope(
        cpu=cpu,
        tokens=tokens,
        seconds=took,
        server=(after.cpu - before.cpu) / NS / took,
        others=max(0.0, (busy_after - busy_before) / took - ours),
        late=server.ask("lateness", Lateness),
        answer_seconds=(after.answering - before.answering) / NS / max(answers, 1),
        open=after.open,
    )


def kinds_of(run: Simulation) -> dict[int, str]:
    """Of each process of a run, what it is."""
    return {
        pid: "command" if pid == run.pid else "shards" if SHARD in command else "dask"
        for pid, command in run.processes().items()
    }


def noted_ms(folder: Path, begin: float, end: float) -> tuple[list[float], list[float]]:
    """What `probe/sitecustomize.py` has noted of requests intended between these, sorted.

    Args:
        folder: Where it has.
        begin: Seconds from the start of the load.
        end: Likewise.

    Returns:
        Of each token, how late its request was sent plus how late it was stamped; and how long
        after it was sent the server had read its request.
    """
    delays: list[float] = []
    ways: list[float] = []
    for path in folder.glob("samples-*"):
        noted = array("q")
        noted.frombytes(path.read_bytes())
        for intended, delay, way in zip(noted[::3], noted[1::3], noted[2::3], strict=True):
            if begin * NS <= intended < end * NS:
                delays.append(delay / 1e6)
                ways.append(way / 1e6)
    return sorted(delays), sorted(ways)


# The rows


def true_figures(rounds: int) -> Row:
    """1,000 users: how late requests are sent and tokens are stamped, and at what rate."""
    delay = Figure(what="sent late, plus stamped late, p99", unit="ms", limit=5.0)
    rate = Figure(what="requests, of those possible", unit="", limit=0.99, at_most=False)
    beside = Beside()
    for _ in range(rounds):
        options = options_of(USERS, duration=f"{DURATION:g}s", warm_up=f"{WARM_UP:g}s")
        with (
            serving(Plan(tokens=TOKENS, interval=INTERVAL)) as server,
            tempfile.TemporaryDirectory() as samples,
        ):
            with simulating(server, options, samples=Path(samples)) as run:
                until_requests(server, USERS)
                time.sleep(WARM_UP)  # The window has begun, all users are on their way.
                seen = slope(server, kinds_of(run), SLOPE_SECONDS)
                result = run.end()
            delays, ways = noted_ms(Path(samples), WARM_UP, WARM_UP + DURATION)
        p99 = delays[int(len(delays) * 0.99)]
        share = result.requests_per_second / (USERS / seen.answer_seconds)
        see(beside, seen)
        beside.see(
            p50_ms=delays[len(delays) // 2],
            p99_ms=p99,
            sent_until_read_by_the_server_p50_ms=ways[len(ways) // 2],
            sent_until_read_by_the_server_p99_ms=ways[int(len(ways) * 0.99)],
            requests_of_those_possible=share,
            seconds_that_it_calls_client_bound=_seconds_bound(result),
        )
        if seen.late.p99 > SERVER_LATE_MS:
            for figure in (delay, rate):
                figure.left_out.append(f"the server was late: {seen.late.p99:.2f} ms, p99")
            continue
        delay.values.append(p99)
        rate.values.append(share)
    return Row(
        title="1,000 users, a token every 40 ms, 50 tokens, ten turns",
        figures=[delay, rate],
        beside=beside.medians(),
    )


def cost(rounds: int) -> Row:
    """The same: CPU a token, beside that of the transport alone."""
    ratio = Figure(what="CPU a token, of the bare transport's drain", unit="", limit=1.3)
    beside = Beside()
    for number in range(rounds):
        pair = [_cost_of_simulator, _cost_of_transport]
        seen = {measure: measure() for measure in (pair if number % 2 else pair[::-1])}
        ours, bare = seen[_cost_of_simulator], seen[_cost_of_transport]
        see(beside, ours)
        beside.see(
            command_us_a_token=ours.cpu["command"],
            shard_us_a_token=ours.cpu["shards"],
            transport_us_a_token=bare.total,
        )
        if (busy := max(ours.server, bare.server)) >= SERVER_BUSY:
            ratio.left_out.append(f"the server was busy: {busy:.0%}")
            continue
        ratio.values.append(ours.total / bare.total)
    return Row(title="The same: what the simulator costs", figures=[ratio], beside=beside.medians())


def _cost_of_simulator() -> Slope:
    options = options_of(USERS, duration="60s")  # It is broken off.
    with (
        serving(Plan(tokens=TOKENS, interval=INTERVAL)) as server,
        simulating(server, options) as run,
    ):
        until_requests(server, USERS)
        time.sleep(SETTLE_SECONDS)  # All users are on their way.
        return slope(server, kinds_of(run), SLOPE_SECONDS)


def _cost_of_transport() -> Slope:
    load = Load(peer="gz_trio-drain", task="conversations", base_url="", streams=USERS)
    load = msgspec.structs.replace(load, variant="drain")
    with start(Plan(tokens=TOKENS, interval=INTERVAL), load) as pair:
        pair.mark("go")
        until_requests(pair.server, USERS)
        time.sleep(SETTLE_SECONDS)  # As above.
        seen = slope(pair.server, {pair.client_pid: "transport"}, SLOPE_SECONDS)
        errors = pair.mark().client.errors
        if errors:
            raise ScenarioFailed(errors[0])
        return seen


def many_users(_: int) -> Row:
    """10,000 users: all are on their way, in little memory."""
    memory = Figure(what="the most memory, of shard and command", unit="MiB", limit=400.0)
    row = Row(title="10,000 users, a token every second", figures=[memory])
    options = options_of(MANY_USERS, MANY_TOKENS, duration="25s", warm_up="20s")
    with (
        serving(Plan(tokens=MANY_TOKENS, interval=MANY_INTERVAL)) as server,
        simulating(server, options) as run,
    ):
        until_requests(server, MANY_USERS + 1)  # The first one tries the server out.
        time.sleep(SETTLE_SECONDS)  # As above.
        kinds = kinds_of(run)
        seen = slope(server, kinds, SLOPE_SECONDS)
        result = run.end()
    memory.values.append(sum(run.peaks[pid] for pid in kinds))
    beside = Beside()
    see(beside, seen)
    beside.see(
        shard_us_a_token=seen.cpu["shards"],
        command_us_a_token=seen.cpu["command"],
        shard_mib=max(run.peaks[pid] for pid, kind in kinds.items() if kind == "shards"),
        seconds_that_it_calls_client_bound=_seconds_bound(result),
        shard_busy=seen.cpu["shards"] * seen.tokens / seen.seconds / 1e6,
    )
    row.beside = beside.medians()
    if seen.open != MANY_USERS:
        row.broken.append(f"{seen.open} of {MANY_USERS} streams were open")
    row.broken += _failures(result)
    return row


def storm(_: int) -> Row:
    """A rotation in the middle of a load, at the fake gateway, which has a ledger."""
    row = Row(title="200 users in ten groups, and all keys die at once, twice")
    groups = STORM_USERS // STORM_GROUP
    options = options_of(STORM_USERS, duration="15s", warm_up="5s", key_group=str(STORM_GROUP))
    options += ["--rotations", "8s", "--rotations", "14s"]
    with (
        tempfile.TemporaryDirectory() as folder,
        simulate(Path(folder, "run"), options) as run,
    ):
        _pin_fake_gateway(run)
        result = run.end()
    row.beside = {
        "groups": groups,
        "refreshes": result.refreshes,
        "401s": result.rejected,
        "replies that paused": result.pauses,
        "characters lost": -1 if result.lost is None else result.lost,
        "characters doubled": -1 if result.doubled is None else result.doubled,
    }
    if result.refreshes != 2 * groups:
        row.broken.append(f"{result.refreshes} refreshes for {groups} groups and two rotations")
    if (result.lost, result.doubled) != (0, 0):
        row.broken.append(f"{result.lost} characters lost, {result.doubled} doubled")
    row.broken += _failures(result)
    return row


def _pin_fake_gateway(run: Simulation) -> None:
    """It is the server here: it goes to the server's core."""

    def pinned() -> bool:
        for pid, command in run.processes().items():
            if FAKE_GATEWAY in command:
                pin(pid, SERVER_CORE)
                return True
        return False

    until(pinned, "a fake gateway of the simulation's", PATIENCE_SECONDS)


def two_processes(rounds: int) -> Row:
    """The load in two processes, beside half of it in one; and whether nothing gets lost.

    Dask's own processes count. All share a core, as the load server has the other one.
    """
    ratio = Figure(what="CPU a token, of one process with half the load", unit="", limit=1.1)
    row = Row(title="The load in two processes, on a local Dask cluster", figures=[ratio])
    beside = Beside()
    for number in range(rounds):
        cases = [(USERS, 2), (USERS // 2, 1)]
        seen: dict[int, Slope] = {}
        for users, processes in cases if number % 2 else cases[::-1]:
            seen[processes], broken = _shared(users, processes)
            row.broken += broken
        both, half = seen[2], seen[1]
        see(beside, both)
        beside.see(
            two_shards_us_a_token=both.cpu["shards"],
            their_command_us_a_token=both.cpu["command"],
            dask_us_a_token=both.cpu.get("dask", 0.0),
            one_shard_us_a_token=half.cpu["shards"],
            its_command_us_a_token=half.cpu["command"],
            ratio_without_dask=(both.total - both.cpu.get("dask", 0.0)) / half.total,
        )
        if both.server >= SERVER_BUSY:
            ratio.left_out.append(f"the server was busy: {both.server:.0%}")
            continue
        ratio.values.append(both.total / half.total)
    row.beside = beside.medians()
    return row


def _shared(users: int, processes: int) -> tuple[Slope, list[str]]:
    """So many requests by so many processes; and where the result differs from the server's."""
    requests = SHARED_REQUESTS * users // USERS
    options = options_of(
        users, requests=str(requests), processes=str(processes), spread=f"{SPREAD_SECONDS:g}s"
    )
    with (
        serving(Plan(tokens=TOKENS, interval=INTERVAL)) as server,
        simulating(server, options) as run,
    ):
        until_requests(server, users)
        time.sleep(SETTLE_SECONDS)  # As above.
        seen = slope(server, kinds_of(run), SLOPE_SECONDS)
        result = run.end()
        counts = server.ask("mark", Counts)
    broken = _failures(result)
    for what, told, true in (
        ("requests", result.ok, counts.answers),
        ("tokens", result.tokens, counts.tokens),
        ("chunks", sum(second.tokens for second in result.series), counts.tokens),
    ):
        if told != true:
            broken.append(f"{processes} processes tell of {told} {what}, the server of {true}")
    if result.ok != requests:
        broken.append(f"{result.ok} of {requests} requests ended well")
    return seen, broken


def _failures(result: Result) -> list[str]:
    kinds = ", ".join(f"{count} {kind}" for kind, count in result.error_kinds.items())
    return [
        f"{count} {what} {kinds}"
        for what, count in (
            ("errors:", result.errors),
            ("time-outs:", result.timeouts),
            ("unfinished", result.unfinished),
            ("of another length than asked", result.wrong_lengths),
            ("shards lost", len(result.lost_shards)),
        )
        if count
    ]


def _seconds_bound(result: Result) -> int:
    return len({bound.second for bound in result.client_bound})


SCENARIOS: tuple[Callable[[int], Row], ...] = (
    true_figures,
    cost,
    many_users,
    storm,
    two_processes,
)
