"""The proxy: how much later a token comes through it, what it costs, and whether it loses any.

`gz-trio proxy` runs as people run it, alone on a core. The load server has the other one, and so
has the client, with the proxy and without: a raw reader, which adds next to nothing. A round in
which others were busy on the proxy's core says nothing, and is left out.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from .figures import Beside, Figure, Row, ScenarioFailed, until
from .load_server import Plan
from .peers import PEERS, Load
from .peers.wire import KEY
from .processes import CLIENT_CORE, ROOT, SERVER_CORE, Moment, Pair, asking, pin, serving
from .simulation import cpu_seconds, peak_mib
from .tally import Quantiles

STREAMS, INTERVAL = 100, 0.04
MANY, MANY_TOKENS, MANY_INTERVAL = 1000, 40, 0.5

ROUNDS = 5
SLOPE_SECONDS = 5.0
SETTLE_SECONDS = 1.0
PATIENCE_SECONDS = 60.0
OTHERS_BUSY = 0.25
"""So much of the proxy's core, and a token's way is as long as others let it be."""

NS = 1e9


@contextmanager
def proxying(base_url: str) -> Generator[tuple[int, str]]:
    """The proxy, on a core that no other process has, until the end of the block.

    Args:
        base_url: The gateway's.

    Yields:
        Its process, and the base URL that programs are given.

    Raises:
        ScenarioFailed: It does not start, or does not end well.
    """
    command = [
        *(sys.executable, "-m", "gz_trio.cli", "proxy", "--base-url", base_url),
        *("--port", "0", "--no-local-token"),
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "GZ_API_KEY": KEY}
    ) as process:
        assert process.stdout is not None
        pin(process.pid, CLIENT_CORE)
        name, _, own_url = process.stdout.readline().strip().partition("=")
        # Its lines, one a request: it would wait for who reads them.
        reader = threading.Thread(target=process.stdout.read)
        reader.start()
        try:
            if name != "OPENAI_BASE_URL":
                raise ScenarioFailed("the proxy has not started")
            yield process.pid, own_url
            process.terminate()
            if process.wait(PATIENCE_SECONDS):
                raise ScenarioFailed(f"the proxy has ended with {process.returncode}")
        finally:
            process.kill()
            reader.join()


@contextmanager
def streams(plan: Plan, count: int, *, proxied: bool) -> Generator[tuple[Pair, int | None]]:
    """A client that reads so many streams, of the server or through a proxy; it has not begun.

    Args:
        plan: What the server does.
        count: How many.
        proxied: Whether through a proxy, whose process is given too.
    """
    with ExitStack() as stack:
        server = stack.enter_context(serving(plan))
        base_url = f"http://127.0.0.1:{int(server.read())}/v1"
        proxy = None
        if proxied:
            proxy, base_url = stack.enter_context(proxying(base_url))
        load = Load(
            peer="uvloop-reader",
            task="streams",
            base_url=base_url,
            streams=count,
            variant=PEERS["uvloop-reader"].variant,
        )
        yield Pair(stack.enter_context(asking(load, SERVER_CORE, {})), server), proxy


def until_loaded(pair: Pair, condition: Callable[[Moment], bool], what: str) -> None:
    """Wait until the load is that far.

    Raises:
        ScenarioFailed: It takes too long, or a stream broke.
    """

    def reached() -> bool:
        moment = pair.mark()
        if condition(moment):
            return True
        if moment.client.errors:
            raise ScenarioFailed(moment.client.errors[0])
        return False

    until(reached, what, PATIENCE_SECONDS)


# The rows


@dataclass(frozen=True)
class Seen:
    """What was seen of a steady load between two instants.

    Args:
        way: Of a token, from the server's write into the hands of the client's code.
        tokens: That the client got.
        seconds: How long it was.
        cpu: Of the proxy, in seconds; 0 without one.
        server: How busy the load server was, of its core.
        others: How busy the proxy's core was with something else.
    """

    way: Quantiles
    tokens: int
    seconds: float
    cpu: float
    server: float
    others: float


def watch(pair: Pair, proxy: int | None) -> Seen:
    """Watch a load that is steady.

    Raises:
        ScenarioFailed: A stream broke.
    """
    taken = cpu_seconds(proxy) if proxy is not None else 0.0
    before = pair.mark()
    time.sleep(SLOPE_SECONDS)  # Nothing is asked meanwhile: it would cost CPU.
    after = pair.mark()
    taken = (cpu_seconds(proxy) if proxy is not None else 0.0) - taken
    if after.client.errors:
        raise ScenarioFailed(after.client.errors[0])
    if after.client.delivery is None:
        raise ScenarioFailed("no token has come")
    seconds = (after.client.now - before.client.now) / NS
    return Seen(
        way=after.client.delivery,
        tokens=after.client.tokens - before.client.tokens,
        seconds=seconds,
        cpu=taken,
        server=(after.server.cpu - before.server.cpu) / NS / seconds,
        others=max(0.0, (after.core - before.core - taken) / seconds),
    )


def added_delay(rounds: int) -> Row:
    """100 streams, a token every 40 ms: how much later a token comes through the proxy."""
    added = Figure(what="added to a token's way, p50", unit="ms", limit=0.5)
    beside = Beside()
    for number in range(rounds):
        ways = (False, True) if number % 2 else (True, False)
        seen = {proxied: _steady(proxied=proxied) for proxied in ways}
        direct, through = seen[False], seen[True]
        if through.others > OTHERS_BUSY:
            added.left_out.append(f"others had {through.others:.0%} of the proxy's core")
        else:
            added.values.append((through.way.p50 - direct.way.p50) / 1e3)
        beside.see(
            added_p99_ms=(through.way.p99 - direct.way.p99) / 1e3,
            direct_p50_ms=direct.way.p50 / 1e3,
            direct_p99_ms=direct.way.p99 / 1e3,
            through_the_proxy_p50_ms=through.way.p50 / 1e3,
            through_the_proxy_p99_ms=through.way.p99 / 1e3,
            CPU_of_the_proxy_us_a_token=through.cpu / through.tokens * 1e6,
            proxy_busy=through.cpu / through.seconds,
            server_busy=through.server,
            others_on_the_proxys_core=through.others,
        )
    return Row(
        title="100 streams, a token every 40 ms each", figures=[added], beside=beside.medians()
    )


def _steady(*, proxied: bool) -> Seen:
    # The first token comes at once: the proxy's answer begins with it.
    plan = Plan(streams=STREAMS, interval=INTERVAL, first=1)
    with streams(plan, STREAMS, proxied=proxied) as (pair, proxy):
        pair.mark("go")
        until_loaded(pair, lambda now: now.client.tokens > 2 * STREAMS, "streaming")
        time.sleep(SETTLE_SECONDS)  # What opening all of them held up is through by then.
        return watch(pair, proxy)


def many_streams(_: int) -> Row:
    """1,000 streams at once through the proxy, each to its end."""
    row = Row(title="1,000 streams at once through the proxy, a token every 500 ms each")
    expected = MANY * MANY_TOKENS
    with streams(Plan(tokens=MANY_TOKENS, interval=MANY_INTERVAL), MANY, proxied=True) as (
        pair,
        proxy,
    ):
        assert proxy is not None
        idle, opening = peak_mib(proxy), cpu_seconds(proxy)
        pair.mark("go")
        until_loaded(pair, lambda now: now.server.requests == MANY, "all open")
        opening = cpu_seconds(proxy) - opening
        time.sleep(SETTLE_SECONDS)  # As above.
        seen = watch(pair, proxy)
        if pair.mark().server.answers:
            row.broken.append("some streams had ended before all were watched")
        until_loaded(pair, lambda now: now.client.tokens >= expected, f"{expected} tokens there")
        end = pair.mark()
        peak = peak_mib(proxy)
    if (end.server.answers, end.client.tokens, end.server.accepted) != (MANY, expected, MANY):
        row.broken.append(
            f"of {MANY} streams the server has ended {end.server.answers} on "
            f"{end.server.accepted} connections, and {end.client.tokens} of {expected} tokens came"
        )
    beside = Beside()
    beside.see(
        CPU_of_the_proxy_until_all_were_open_ms_a_stream=opening / MANY * 1e3,
        tokens_a_second=seen.tokens / seen.seconds,
        CPU_of_the_proxy_us_a_token=seen.cpu / seen.tokens * 1e6,
        proxy_busy=seen.cpu / seen.seconds,
        through_the_proxy_p50_ms=seen.way.p50 / 1e3,
        through_the_proxy_p99_ms=seen.way.p99 / 1e3,
        most_memory_of_the_proxy_MiB=peak,
        of_it_before_the_first_stream_MiB=idle,
        KiB_a_stream=(peak - idle) / MANY * 1024,
        server_busy=seen.server,
        others_on_the_proxys_core=seen.others,
    )
    row.beside = beside.medians()
    return row


SCENARIOS: tuple[Callable[[int], Row], ...] = (added_delay, many_streams)
