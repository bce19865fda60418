"""`gz-trio simulate`: runs workloads, shows how they go, and writes what came out."""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import trio
from rich.console import Console
from rich.live import Live
from rich.table import Table

from .._background import Background
from ..simulate import Merge, Result, TargetError, Workload
from ..simulate import _compare as comparing
from ..simulate._capacity import CapacitySearch, StepResult
from ..simulate._files import RunFolder
from ..simulate._run import run_in_processes
from ..simulate._target import Target
from .auth import IDENTITY_TOKEN
from .run import INTERRUPTED, UsageError
from .simulate_screen import Screen, line_of, summary

LINE_SECONDS = 5.0
PIPE_COLUMNS = 200
LOOPBACK = re.compile(r"^(\w+://)?(127\.|localhost\b|\[::1\])")

STORM: Mapping[str, object] = {
    "users": 50,
    "turns": 3,
    "think_time": "exponential(1s)",
    "duration": "1m",
    "warm_up": "5s",
    "rotations": ["35s"],
    "key_group": 10,
    "slo": ["ttft=500ms", "itl=100ms"],
}
"""What is run where nothing is said."""

SEARCH_WARM_UP = 5.0
FIRST_RATE = 1.0


class Simulation:
    """Runs of the command line.

    Args:
        target: Which gateway; `None`: a fake one.
        processes: How many processes share a workload.
        scheduler: See `run_in_processes`.
        parquet: Whether the requests are written as Parquet too.
        as_json: Print nothing but the result.
    """

    def __init__(
        self,
        target: Target | None,
        *,
        processes: int,
        scheduler: str | None,
        parquet: bool,
        as_json: bool,
    ) -> None:
        self._target = target
        self._processes = processes
        self._scheduler = scheduler
        self._parquet = parquet
        self._as_json = as_json
        self._console = _console()
        self._stop = trio.Event()
        self._begun = False

    async def run_all(self, workloads: Mapping[str, Workload], folder: Path, repeat: int) -> int:
        """Run each workload so many times, in turns; gives the exit code."""
        code = 0
        async with self._stopped_by_signals():
            for number in range(1, repeat + 1):
                for name, workload in workloads.items():
                    where = folder / name / str(number) if repeat > 1 else folder / name
                    title = name or "simulation"
                    title = f"{title}, {number} of {repeat}" if repeat > 1 else title
                    result = await self._run(workload, where, title)
                    if self._as_json:
                        sys.stdout.buffer.write(result.json() + b"\n")
                        sys.stdout.flush()
                    else:
                        self._console.print(summary(result, str(where)), highlight=False)
                    if result.interrupted:
                        return INTERRUPTED
                    code = code or exit_code(result)
        return code

    async def find_capacity(self, workload: Workload, folder: Path, search: CapacitySearch) -> int:
        """Find the highest rate that the gateway holds; gives the exit code."""
        async with self._stopped_by_signals():
            while (step := search.next_step()) is not None:
                tried = replace(
                    workload,
                    rate=step.rate,
                    # Arrivals are random: so that hardly ever there are too few.
                    duration=1.1 * search.step_seconds(step.rate),
                    warm_up=workload.warm_up_seconds or SEARCH_WARM_UP,
                )
                number = len(search.steps) + 1
                title = f"step {number}: {step.rate:g} sessions a second ({step.purpose})"
                result = await self._run(tried, folder / str(number), title)
                if result.interrupted:
                    break
                search.took(
                    step,
                    StepResult(
                        good=round(result.good_fraction * result.intended),
                        intended=result.intended,
                        client_bound=bool(result.client_bound),
                    ),
                )
                taken = search.steps[-1]
                if not self._as_json:
                    self._console.print(
                        f"{title}: {taken.good} good of {taken.intended}, lower limit "
                        f"{taken.lower_limit:.4f}: {'met' if taken.met else 'not met'}",
                        highlight=False,
                        markup=False,
                    )
        capacity = search.capacity()
        as_json = msgspec.json.format(msgspec.json.encode(capacity), indent=1)
        (folder / "capacity.json").write_bytes(as_json)
        if self._as_json:
            sys.stdout.buffer.write(as_json + b"\n")
        else:
            self._console.print(str(capacity), highlight=False, markup=False)
        return INTERRUPTED if self._stop.is_set() else 0 if capacity.why == "found" else 1

    async def _run(self, workload: Workload, folder: Path, title: str) -> Result:
        """Run it once, with what is to be seen of it, and write what came out.

        Raises:
            UsageError: The target cannot be used, nor the prompts, or the folder.
        """
        try:
            return await self._run_in(workload, folder, title)
        except (TargetError, ValueError) as error:
            raise UsageError(str(error)) from None

    async def _run_in(self, workload: Workload, folder: Path, title: str) -> Result:
        with RunFolder(folder, workload, parquet=self._parquet) as files:
            with ExitStack() as stack:
                watch: Callable[[Merge], None]
                if self._as_json:
                    watch = _nothing
                elif self._console.is_terminal:
                    watch = stack.enter_context(self._screen(Screen(workload, title)))
                else:
                    watch = self._lines()

                def on_second(merge: Merge) -> None:
                    self._begun = True
                    watch(merge)

                result = await run_in_processes(
                    workload,
                    self._target,
                    processes=self._processes,
                    scheduler=self._scheduler,
                    stop=self._stop,
                    on_second=on_second,
                    on_records=files.add,
                )
            files.finish(result)
        return result

    @contextmanager
    def _screen(self, screen: Screen) -> Generator[Callable[[Merge], None]]:
        """Draws the run anew for each second of it: more often there is nothing new."""
        with Live(screen, console=self._console, auto_refresh=False, transient=True) as live:

            def draw(merge: Merge) -> None:
                if screen.take(merge):
                    live.refresh()

            live.refresh()
            yield draw

    def _lines(self) -> Callable[[Merge], None]:
        """Prints a line every few seconds."""
        next_line = time.monotonic() + LINE_SECONDS

        def print_line(merge: Merge) -> None:
            nonlocal next_line
            if time.monotonic() >= next_line:
                next_line += LINE_SECONDS
                self._console.print(line_of(merge), highlight=False, markup=False)

        return print_line

    @asynccontextmanager
    async def _stopped_by_signals(self) -> AsyncGenerator[None]:
        """The first Ctrl-C ends the run with what there is; the second one, or no run, ends all."""
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with Background("command") as nursery:

                async def obey() -> None:
                    await anext(signals)
                    if self._begun:
                        self._stop.set()
                        await anext(signals)
                    raise KeyboardInterrupt

                nursery.start_soon(obey)
                yield


def workloads_of(
    files: Sequence[Path], options: Mapping[str, object], *, find_capacity: bool
) -> dict[str, Workload]:
    """What is to be run, by name.

    Args:
        files: TOML files; of several the names tell their results apart.
        options: Settings of the command line, which come before those of a file.
        find_capacity: Whether a search sets the rate.

    Raises:
        UsageError: One of them is no workload.
    """
    said = options.keys() & {"users", "rate", "stages", "prompts", "base_url"}
    if not (files or said or find_capacity):
        options = {**STORM, **options}
    if not files:
        return {"": _workload(None, options, find_capacity=find_capacity)}
    workloads = {file.stem: _workload(file, options, find_capacity=find_capacity) for file in files}
    if len(workloads) < len(files):
        raise UsageError("two of the files have the same name: their results would be one")
    return {"": next(iter(workloads.values()))} if len(files) == 1 else workloads


def _workload(file: Path | None, options: Mapping[str, object], *, find_capacity: bool) -> Workload:
    """A workload of a file, with options in place of what stands there."""

    def read(settings: Mapping[str, object]) -> Workload:
        return Workload.of(settings) if file is None else Workload.read(file, **settings)

    try:
        try:
            workload = read(options)
        except ValueError:
            if not find_capacity:
                raise
            workload = read({"rate": FIRST_RATE, **options})
    except ValueError as error:
        raise UsageError(str(error)) from None
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror or error}") from None
    if find_capacity and (
        workload.rate is None or workload.stages or workload.sessions or workload.requests
    ):
        raise UsageError(
            "--find-capacity sets the rate, and how long each step takes: leave out users, stages, "
            "sessions, requests and traces, and give --rate to begin with"
        )
    return workload


def target_of(
    workloads: Mapping[str, Workload],
    environment: Mapping[str, str],
    keys: Path | None,
    identity_tokens: Path | None,
) -> Target | None:
    """Which gateway they are for, and what it wants for a key; `None`: the fake one.

    Raises:
        UsageError: They are for different ones, or there is no key.
    """
    urls = {workload.base_url for workload in workloads.values()}
    if len(urls) > 1:
        raise UsageError("the workloads are for different gateways: run one after another")
    (base_url,) = urls
    if base_url is None:
        if keys is not None or identity_tokens is not None:
            raise UsageError("the fake gateway needs no keys: give --base-url, or leave them out")
        return None
    if keys is not None and identity_tokens is not None:
        raise UsageError("give --keys or --identity-tokens, not both")
    if keys is not None:
        return Target(base_url=base_url, keys=_secrets(keys))
    if identity_tokens is not None:
        return Target(base_url=base_url, tokens=_secrets(identity_tokens))
    if environment.get(IDENTITY_TOKEN):
        return Target(base_url=base_url, tokens=(environment[IDENTITY_TOKEN],))
    for name in ("GZ_API_KEY", "OPENAI_API_KEY"):
        if environment.get(name):
            return Target(base_url=base_url, keys=(environment[name],))
    raise UsageError(
        f"no key for {base_url}: put one into GZ_API_KEY or OPENAI_API_KEY, or an identity token "
        f"for its /auth into {IDENTITY_TOKEN}, or give --keys or --identity-tokens"
    )


def check_reach(target: Target | None, scheduler: str | None) -> None:
    """See that the workers of a scheduler can reach what they are to try.

    Raises:
        UsageError: It is the fake gateway, on this machine, and they may be on others.
    """
    if target is None and scheduler is not None and not LOOPBACK.search(scheduler):
        raise UsageError(
            f"the workers of {scheduler} may be on other machines, and the fake gateway can be "
            "reached on this one alone: give --base-url"
        )


def _secrets(path: Path) -> tuple[str, ...]:
    try:
        lines = tuple(line for line in path.read_text(encoding="utf-8").split("\n") if line.strip())
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is no text: it should hold a line for each group") from None
    if not lines:
        raise UsageError(f"{path} is empty: it should hold a line for each group of sessions")
    return tuple(line.strip() for line in lines)


async def compare(a: Path, b: Path, *, as_json: bool) -> int:
    """Show how two runs differ; gives the exit code.

    Raises:
        UsageError: They cannot be compared.
    """
    await trio.lowlevel.checkpoint()
    try:
        comparison = comparing.compare(comparing.read_runs(a), comparing.read_runs(b))
    except ValueError as error:
        words = str(error)
        raise UsageError(words.replace("\n", " ") if words.count("\n") == 1 else words) from None
    except OSError as error:
        where = error.filename or a
        raise UsageError(f"{where} cannot be read: {error.strerror or error}") from None
    if as_json:
        sys.stdout.buffer.write(comparison.json() + b"\n")
        return 0
    head, *rows = comparing.table(comparison)
    table = Table(*head, box=None)
    for row in rows:
        table.add_row(*row)
    console = _console()
    console.print(comparison.label, highlight=False, markup=False)
    console.print(table)
    return 0


def exit_code(result: Result) -> int:
    """1 if the run did not measure what it was to measure."""
    return 1 if result.lost_shards or not result.ok else 0


def _console() -> Console:
    """Where there is no terminal, each line comes whole, however long it is."""
    return Console() if sys.stdout.isatty() else Console(width=PIPE_COLUMNS, soft_wrap=True)


def _nothing(_merge: Merge) -> None: ...
