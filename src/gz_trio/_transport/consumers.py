"""The last call of a response's consumer, whose bugs are no business of the connections."""

from __future__ import annotations

import logging
from traceback import format_tb

from .interface import BodyConsumer

_log = logging.getLogger("gz_trio.transport")


def stop(consumer: BodyConsumer, error: BaseException | None) -> None:
    """Call `stopped`. What it raises in spite of its promise nobody waits for: it is logged.

    Raises:
        BaseException: What is no `Exception`, and meant for the whole program: Ctrl-C, say.
    """
    try:
        consumer.stopped(error)
    except Exception as bug:
        # Where, and not what it says: that may hold a secret.
        kind, where = type(bug).__name__, "".join(format_tb(bug.__traceback__))
        _log.error("the consumer of a response failed when told of its end: %s\n%s", kind, where)
