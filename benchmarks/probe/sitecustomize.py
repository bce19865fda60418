"""Python imports this at its start, where this folder is on its path: it watches a simulator.

In the process of a shard each request is noted when it is over: how late it was sent, and of each
token how long it took from the server's write to the transport's stamp. At the end all of it goes
into a file, `samples-` and the process's number in the folder that `GZ_BENCH_SAMPLES` names, as
64-bit numbers, three for each token: when its request was intended, from the start of the load; the
sum of those two; and how long after it was sent the server had read the request. All are
nanoseconds.
"""

from __future__ import annotations

import atexit
import os
import sys
from array import array
from pathlib import Path

FOLDER = os.environ.get("GZ_BENCH_SAMPLES")


def _watch(folder: str) -> None:
    # Here, because every process of the run imports this file, and few of them need these.
    from gz_trio import Delta  # noqa: PLC0415 - see above
    from gz_trio.simulate._request import Running  # noqa: PLC0415 - likewise

    take, record = Running.take, Running.record
    delays: dict[Running, array[int]] = {}
    samples = array("q")

    def watched_take(self: Running, delta: Delta, arrived_ns: int) -> None:
        take(self, delta, arrived_ns)
        if delta.text:
            due, _, written = delta.text.partition(" ")
            kept = delays.get(self)
            if kept is None:  # The first token is due when the request has been read.
                kept = delays[self] = array("q", (int(due),))
            kept.append(arrived_ns - int(written))

    def watched_record(self: Running, *arguments: object, **named: object) -> object:
        intended, sent, began = named["intended"], named["sent"], named["began"]
        assert isinstance(intended, int)
        assert isinstance(sent, int)
        assert isinstance(began, int)
        read, *noted = delays.pop(self, None) or (sent,)
        for delay in noted:
            samples.extend((intended - began, sent - intended + delay, read - sent))
        return record(self, *arguments, **named)  # type: ignore[arg-type]  # passed on as it came

    # In place of hooks, which the product would carry for nobody else.
    Running.take = watched_take  # type: ignore[method-assign]  # see above
    Running.record = watched_record  # type: ignore[assignment, method-assign]  # likewise

    def write() -> None:
        Path(folder, f"samples-{os.getpid()}").write_bytes(samples.tobytes())

    atexit.register(write)


if FOLDER is not None and "gz_trio.simulate._worker" in sys.orig_argv:
    _watch(FOLDER)
