"""A process of its own that runs one peer, told what to do by lines on its standard input.

It prints `{}` when all is imported. `go` begins; each word is answered with a mark, a line of JSON;
the end of the input ends the process, whatever it is doing. A thread obeys, which waits in a read
and costs the client nothing: no peer's loop has to be asked.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import resource
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable
from typing import cast

import msgspec
import trio
import uvloop

from .peers import PEERS, Load
from .tally import Tally


def _obey(tally: Tally, go: threading.Event) -> None:
    for line in sys.stdin:
        print(msgspec.json.encode(tally.mark()).decode(), flush=True)
        match line.strip():
            case "mark":
                pass
            case "go":
                go.set()
            case "grant":
                tally.granted.set()
            case _:
                os._exit(2)
    os._exit(0)


def main() -> None:
    """Do what the first argument says."""
    load = msgspec.json.decode(sys.argv[1], type=Load)
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    peer = PEERS[load.peer]
    module = importlib.import_module(f"benchmarks.peers.{peer.module}")
    task = cast("Callable[[Load, Tally], Awaitable[None]]", getattr(module, load.task))
    tally = Tally()
    go = threading.Event()
    threading.Thread(target=_obey, args=(tally, go), daemon=True).start()

    async def run() -> None:
        try:
            await task(load, tally)
        except Exception:  # Whatever it is, the harness is told, and calls the round failed.
            tally.errors.append(traceback.format_exc(limit=-4))

    print("{}", flush=True)
    go.wait()
    if peer.loop == "trio":
        trio.run(run)
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run())
    threading.Event().wait()  # For the end of the input; what was counted is still asked for.


if __name__ == "__main__":
    main()
