"""The two servers as child processes on loopback ports: the inference engine, nginx before it."""

import grp
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

MODEL = "tiny-llama"
START_SECONDS = 60.0  # torch alone takes five on a good day
STOP_SECONDS = 10.0


def free_port() -> int:
    """A loopback port that nobody listens on.

    Below the ports from which a system draws those of outgoing connections (from 32768 on Linux):
    while a server with such a port is down, a client that keeps trying may be given that very port
    and be connected to itself.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


@contextmanager
def child(
    command: list[str | Path], log: Path, *, cwd: Path, env: dict[str, str] | None = None
) -> Generator[subprocess.Popen[bytes]]:
    """A process that is gone when the block ends, however it ends; its output goes to `log`."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=cwd, env=env
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(
    condition: Callable[[], bool], what: str, process: subprocess.Popen[bytes], log: Path
) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        if process.poll() is not None:
            raise RuntimeError(f"{what}: exit code {process.returncode}\n{log.read_text()}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what}: not after {START_SECONDS:.0f} s\n{log.read_text()}")
        time.sleep(0.02)


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True


def make_models(folder: Path) -> None:
    """Make the folders `greedy` and `sampling`, for an `Engine` each."""
    subprocess.run(
        [sys.executable, Path(__file__).with_name("tiny_llama.py"), MODEL], check=True, cwd=folder
    )


class Engine:
    """`transformers serve` with the model in a folder, on the CPU, many answers at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = free_port()
        self.log = folder / "engine.log"
        self.base_url = f"http://127.0.0.1:{self.port}/v1"

    @contextmanager
    def running(self) -> Generator[None]:
        # Offline, the model's name is a folder in the working directory or nothing.
        env = os.environ | {
            "HF_HOME": str(self._folder / "cache"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        command: list[str | Path] = [
            Path(sysconfig.get_path("scripts"), "transformers"), "serve", MODEL,
            "--device", "cpu", "--host", "127.0.0.1", "--port", str(self.port),
            # Interleaves the answers, where otherwise one waits for the other. The cache of
            # attention is as large as 50 chats need: by default it takes gigabytes.
            "--continuous-batching", "--cb-block-size", "16", "--cb-num-blocks", "2048",
            "--cb-max-batch-tokens", "512",
        ]  # fmt: skip
        with child(command, self.log, cwd=self._folder, env=env) as process:
            wait_for(lambda: listens(self.port), "the engine starts", process, self.log)
            self._process = process
            yield

    @contextmanager
    def slowed(self, working: float = 0.002) -> Generator[None]:
        """Works for `working` seconds, then not for 0.05: else an answer is over in no time."""
        ended = threading.Event()

        def slow_down() -> None:
            while not ended.is_set():
                self._process.send_signal(signal.SIGSTOP)
                time.sleep(0.05)
                self._process.send_signal(signal.SIGCONT)
                time.sleep(working)

        thread = threading.Thread(target=slow_down)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


CONFIGURATION = """\
{user}
daemon off;
worker_processes 1;
pid nginx.pid;
error_log nginx.log notice;
events {{ worker_connections 1024; }}
http {{
    log_format request '$status $connection_requests $sent_http_content_encoding';
    access_log access.log request;
    client_body_temp_path client_body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;

    map_hash_bucket_size 128;
    map $http_authorization $known {{
        default 0;
        include keys.map;
    }}
    # For the habits that want them.
    limit_req_zone $server_port zone=all:64k rate=10r/s;
    map $status $retry_after {{
        default "";
        429 2;
    }}
    # With HTTP/1.0, the default, a server may end an answer by closing: nginx could not
    # tell a broken answer from a whole one.
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_buffering off;
    server {{
        listen 127.0.0.1:{port};
        if ($known = 0) {{ return 401; }}
        location / {{
            proxy_pass http://127.0.0.1:{upstream};
            {habits}
        }}
    }}
}}
"""


@dataclass(frozen=True)
class Served:
    """A request that has ended, as nginx logs it; `nth` is its number on its connection."""

    status: int
    nth: int
    coding: str


class Front:
    """nginx as a gateway that checks the key itself: its `map` knows one, the rest gets its 401.

    Without a key it lets all through, for a server behind it that checks keys. `habits` are
    directives for its one location.
    """

    def __init__(
        self, folder: Path, upstream: int, key: str | None = None, *, habits: str = ""
    ) -> None:
        self._folder = folder
        self.port = free_port()
        self.log = folder / "nginx.log"
        self.base_url = f"http://127.0.0.1:{self.port}/v1"
        self._access = folder / "access.log"
        self._running = ExitStack()
        # Started by root, nginx gives its workers to a user who cannot enter the tests' folder.
        user = f"user {pwd.getpwuid(os.geteuid()).pw_name} {grp.getgrgid(os.getegid()).gr_name};"
        (folder / "nginx.conf").write_text(
            CONFIGURATION.format(
                user=user if os.geteuid() == 0 else "",
                port=self.port,
                upstream=upstream,
                habits=habits,
            )
        )
        self._accept("~." if key is None else f"Bearer {key}")

    @staticmethod
    def installed() -> bool:
        return Front._program() is not None

    @staticmethod
    def _program() -> str | None:
        # Debian's is in a folder that only root has on its path.
        return shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")

    def _command(self, *arguments: str) -> list[str | Path]:
        return [
            self._program() or "nginx",
            "-p", self._folder, "-c", "nginx.conf", "-e", "nginx.log", *arguments,
        ]  # fmt: skip

    def accept_only(self, key: str) -> None:
        """Rewrite the map; it counts from the next start or reload on."""
        self._accept(f"Bearer {key}")

    def _accept(self, pattern: str) -> None:
        (self._folder / "keys.map").write_text(f'"{pattern}" 1;\n')

    def start(self) -> None:
        self._process = self._running.enter_context(
            child(self._command(), self.log, cwd=self._folder)
        )
        wait_for(lambda: listens(self.port), "nginx starts", self._process, self.log)

    def stop(self) -> None:
        """Stop at once, in the middle of whatever it serves."""
        self._running.close()

    def reload(self) -> None:
        """Put the map in force: on return the old worker serves what it has, but accepts nothing.

        Before that moment either worker may get a new connection, so that a new key could meet the
        old map.
        """
        leaving = self._count("gracefully shutting down")
        subprocess.run(self._command("-s", "reload"), check=True, cwd=self._folder)
        wait_for(
            lambda: self._count("gracefully shutting down") > leaving,
            "nginx reloads", self._process, self.log,
        )  # fmt: skip

    def _count(self, words: str) -> int:
        return self.log.read_text().count(words)

    def served(self) -> list[Served]:
        lines = map(str.split, self._access.read_text().splitlines())
        return [Served(int(status), int(nth), coding) for status, nth, coding in lines]

    def statuses(self) -> Counter[int]:
        """How many requests ended with each status."""
        return Counter(request.status for request in self.served())
