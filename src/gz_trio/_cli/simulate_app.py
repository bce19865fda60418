"""The commands of `gz-trio simulate` and their options, as `--help` shows them."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from cyclopts.validators import Number

from ..simulate._capacity import CapacitySearch
from . import simulate as command
from .run import UsageError
from .run import run as run_command
from .simulate_options import NO_OPTIONS, WorkloadOptions

Flag = Parameter(negative="")

# The command line's own `help` for this command comes before a docstring, not before this.
ABOUT = """
Without anything it shows what it can do: fifty users chat for a minute with a fake gateway on
this machine, in ten groups that share a key, and in the middle all keys are replaced at once.

What to do is said by TOML files, by options, or by both: then the options come first. Their
names are the same. The figures are written into a folder, with the workload beside them, so
that the run can be repeated: `gz-trio simulate FOLDER/workload.toml`.

Keys are never part of a workload. For `--base-url` the key comes from the environment variable
`GZ_API_KEY` or `OPENAI_API_KEY`, or by the gateway's `/auth` for the identity token in
`GZ_IDENTITY_TOKEN`; or for each group of sessions from a file.

Ctrl-C ends a run, and writes what was measured until then. The exit code is 1 if no reply
ended well or a process was lost.
"""

simulate = App(name="simulate", help_format="markdown", help_epilogue=ABOUT)


@simulate.default
def run_simulation(
    *files: Path,
    options: WorkloadOptions = NO_OPTIONS,
    output: Path | None = None,
    processes: Annotated[int, Parameter(validator=Number(gte=1))] = 1,
    scheduler: str | None = None,
    repeat: Annotated[int, Parameter(validator=Number(gte=1))] = 1,
    find_capacity: Annotated[bool, Flag] = False,
    attainment: Annotated[float, Parameter(validator=Number(gt=0, lt=1))] = 0.99,
    keys: Path | None = None,
    identity_tokens: Path | None = None,
    parquet: Annotated[bool, Flag] = False,
    json: Annotated[bool, Flag] = False,
) -> int:
    """Run a load against a gateway, and tell how it stood it.

    Args:
        files: Workloads, as TOML. Several are run in turns.
        options: The workload.
        output: The folder for what comes out; by default a new one in `simulations`.
        processes: So many processes share the load, each on a core of its own.
        scheduler: A Dask scheduler, like `tcp://10.0.0.1:8786`, whose workers start the processes;
            by default they are on this machine.
        repeat: Run each workload so many times, in turns, for `compare`.
        find_capacity: Search for the most sessions a second that the gateway holds within `--slo`.
        attainment: Of `--find-capacity`: the share of requests that must be good.
        keys: A file with a key in each line; the groups of sessions take them in turn.
        identity_tokens: Likewise, with identity tokens for the gateway's `/auth`.
        parquet: Write the requests as Parquet too (needs the extra `parquet`).
        json: Print only the result, as one JSON object.
    """
    given = options.given()
    workloads = command.workloads_of(files, given, find_capacity=find_capacity)
    target = command.target_of(workloads, os.environ, keys, identity_tokens)
    command.check_reach(target, scheduler)
    simulation = command.Simulation(
        target,
        processes=processes,
        scheduler=scheduler,
        parquet=parquet,
        as_json=json,
    )
    folder = output or Path("simulations") / time.strftime("%Y-%m-%d-%H.%M.%S")
    if find_capacity:
        if len(workloads) > 1 or repeat > 1:
            raise UsageError("--find-capacity is for one workload, once")
        (workload,) = workloads.values()
        search = CapacitySearch(
            attainment=attainment, first_rate=workload.rate or command.FIRST_RATE
        )
        return run_command(partial(simulation.find_capacity, workload, folder, search))
    return run_command(partial(simulation.run_all, workloads, folder, repeat))


@simulate.command(name="compare", help_epilogue="")
def compare_runs(a: Path, b: Path, /, *, json: Annotated[bool, Flag] = False) -> int:
    """Compare two runs of one workload, or two series of runs made with `--repeat`.

    The unit is the run: with five or more on each side the intervals tell how runs differ. With
    fewer they tell only how one run varies within itself, and say so. Runs of different workloads
    are not compared, nor runs in which the simulator itself was the limit.

    Args:
        a: A folder of results, or one with folders `1`, `2`, ... of them.
        b: Another one.
        json: As one JSON object.
    """
    return run_command(partial(command.compare, a, b, as_json=json))
