"""Runs of `gz-trio simulate` at a terminal of their own, and what all of their processes take."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from gz_trio.simulate import Result

from .figures import ScenarioFailed
from .processes import CLIENT_CORE, ROOT, pin

KEY = "sk-1"
LINES, COLUMNS = 40, 120
KEPT_OF_SCREEN = 20_000
END_SECONDS = 180.0
LOOK_SECONDS = 0.25
PROBE = ROOT / "benchmarks" / "probe"
SHARD = "gz_trio.simulate._worker"
FAKE_GATEWAY = "gz_trio.simulate._fake_gateway"


class Simulation:
    """A run under way. Made by `simulate`.

    Attributes:
        pid: Of the command, which shows the screen and writes the files.
        peaks: The most memory that each of its processes had, in MiB, as far as it was looked at.
    """

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, screen: bytearray) -> None:
        self._process = process
        self._folder = folder
        self._screen = screen
        self.pid = process.pid
        self.peaks: dict[int, float] = {}

    def processes(self) -> dict[int, str]:
        """It, and all that it has started: their command lines, by number."""
        return tree(self.pid)

    def end(self) -> Result:
        """Wait for the end; what came out.

        Raises:
            ScenarioFailed: It has ended otherwise than well, or does not end.
        """
        deadline = time.monotonic() + END_SECONDS
        while self._process.poll() is None:
            if time.monotonic() > deadline:
                raise ScenarioFailed(f"no end after {END_SECONDS:g} s: {self._last_words()}")
            for pid in self.processes():
                with suppress(OSError, ValueError):
                    self.peaks[pid] = max(peak_mib(pid), self.peaks.get(pid, 0.0))
            time.sleep(LOOK_SECONDS)  # Looking costs CPU.
        if self._process.returncode:
            raise ScenarioFailed(f"exit code {self._process.returncode}: {self._last_words()}")
        return Result.read(self._folder)

    def _last_words(self) -> str:
        return bytes(self._screen[-2000:]).decode(errors="replace")


@contextmanager
def simulate(
    folder: Path, options: Sequence[str], *, samples: Path | None = None
) -> Generator[Simulation]:
    """Start it, on the client's core; what still runs at the end of the block is killed.

    Args:
        folder: For what comes out.
        options: Of the command line.
        samples: A folder for what `probe/sitecustomize.py` notes; by default it notes nothing.
    """
    environment: Mapping[str, str] = {**os.environ, "TERM": "xterm-256color", "GZ_API_KEY": KEY}
    if samples is not None:
        path = os.pathsep.join(filter(None, (str(PROBE), os.environ.get("PYTHONPATH"))))
        environment = {**environment, "PYTHONPATH": path, "GZ_BENCH_SAMPLES": str(samples)}
    ours, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "gz_trio.cli", "simulate", *options, "--output", str(folder)],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        cwd=ROOT,
        env=environment,
    )
    pin(process.pid, CLIENT_CORE)  # It imports for long before it starts another one.
    os.close(terminal)
    screen = bytearray()

    def look() -> None:
        with suppress(OSError):  # Linux's end of a terminal.
            while data := os.read(ours, 1 << 16):
                screen.extend(data)
                del screen[:-KEPT_OF_SCREEN]

    looker = threading.Thread(target=look)
    looker.start()
    try:
        yield Simulation(process, folder, screen)
    finally:
        for pid in reversed(tree(process.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, 9)
        process.wait()
        looker.join()
        os.close(ours)


def tree(pid: int) -> dict[int, str]:
    """A process and all below it: their command lines, by number."""
    found: dict[int, str] = {}
    left = [pid]
    while left:
        one = left.pop()
        with suppress(OSError):  # It has ended meanwhile.
            command = Path(f"/proc/{one}/cmdline").read_bytes()
            found[one] = command.replace(b"\0", b" ").decode(errors="replace").strip()
            for children in Path(f"/proc/{one}/task").glob("*/children"):
                left += map(int, children.read_text().split())
    return found


def cpu_seconds(pid: int) -> float:
    """What a process has taken so far, of any core, by itself and by the system for it."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mib(pid: int) -> float:
    """The most memory that a process has had at once.

    Raises:
        ValueError: It has ended.
    """
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"process {pid} has no memory")
