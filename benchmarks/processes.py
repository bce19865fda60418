"""Starts the server and the client of one measurement, each on a core of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from .load_server import Counts, Plan
from .peers import Load
from .tally import Mark

CLIENT_CORE, SERVER_CORE = 0, 1
PATIENCE_SECONDS = 60
ROOT = Path(__file__).parent.parent

T = TypeVar("T")


class Process:
    """A process that answers each line with a line."""

    def __init__(self, module: str, argument: object, core: int, files: dict[str, str]) -> None:
        self._command = f"{module} {msgspec.json.encode(argument).decode()}"
        self._process = subprocess.Popen(
            [sys.executable, "-m", *self._command.split(" ", 1)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, **files},
        )
        self.pid = self._process.pid
        pin(self.pid, core)

    def read(self) -> str:
        """The next line that it prints."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a process of the benchmark has died: {self._command}")
        return line.decode()

    def ask(self, command: str, answer: type[T]) -> T:
        """Send one command; what it answers."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n".encode())
        self._process.stdin.flush()
        return msgspec.json.decode(self.read(), type=answer)

    def end(self) -> None:
        """End it, and wait for that."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@dataclass(frozen=True)
class Moment:
    """What both processes did until an instant, and the client's core for anybody, in seconds."""

    client: Mark
    server: Counts
    core: float


class Pair:
    """The two processes of one measurement."""

    def __init__(self, client: Process, server: Process) -> None:
        self._client = client
        self._server = server

    def mark(self, word: str = "mark") -> Moment:
        """What both did so far; `word` is told to the client."""
        counts = self._server.ask("mark", Counts)
        return Moment(self._client.ask(word, Mark), counts, busy_seconds(CLIENT_CORE))

    @property
    def server(self) -> Process:
        """To ask it for more."""
        return self._server

    @property
    def client_pid(self) -> int:
        """For a profiler."""
        return self._client.pid

    def rotate(self, key: str) -> None:
        """Have the server's streams end, and no key accepted but this one."""
        self._server.ask(f"rotate {key}", Counts)


@contextmanager
def start(plan: Plan, load: Load, authority: str | None = None) -> Generator[Pair]:
    """Both processes, until the end of the block; the client has not begun.

    Args:
        plan: What the server does.
        load: What the client does; its `base_url` is filled in.
        authority: A file with the certificate that the client trusts, where `plan` has one.
    """
    files = {} if authority is None else {"SSL_CERT_FILE": authority}
    with serving(plan) as server:
        scheme = "http" if plan.certificate is None else "https"
        base_url = f"{scheme}://127.0.0.1:{int(server.read())}/v1"
        with asking(msgspec.structs.replace(load, base_url=base_url), CLIENT_CORE, files) as client:
            yield Pair(client, server)


@contextmanager
def serving(plan: Plan) -> Generator[Process]:
    """The load server, on its core, until the end of the block; its port is its first line."""
    server = Process("benchmarks.load_server", plan, SERVER_CORE, {})
    try:
        yield server
    finally:
        server.end()


@contextmanager
def asking(load: Load, core: int, files: dict[str, str]) -> Generator[Process]:
    """A client, until the end of the block; it has not begun.

    Args:
        load: What it does.
        core: Where it runs.
        files: Environment variables of its own.
    """
    client = Process("benchmarks.client", load, core, files)
    try:
        client.read()
        yield client
    finally:
        client.end()


def busy_seconds(core: int) -> float:
    """What a core has done since the machine started, whoever it was for."""
    with open("/proc/stat", encoding="ascii") as stat:
        for line in stat:
            name, *ticks = line.split()
            if name == f"cpu{core}":
                user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = map(int, ticks)
                return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    raise RuntimeError(f"there is no core {core}")


def pin(pid: int, core: int) -> None:
    """Keep a process to one core, where there are several and the system can."""
    if hasattr(os, "sched_setaffinity") and core < (os.cpu_count() or 1):
        os.sched_setaffinity(pid, {core})
