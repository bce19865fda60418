"""The nursery that a fake gateway's connections live in while a block runs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def flat_nursery() -> AsyncGenerator[trio.Nursery]:
    """A nursery that ends with its block, and out of which comes one exception, not a group.

    The block's own exception comes out as itself, with a note if a task failed too; else the
    first one that a task raised.
    """
    from_block: BaseException | None = None
    failures: list[BaseException] = []
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except BaseException as exc:
                from_block = exc
                raise
            finally:
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        failures = list(_failures(group, from_block))
        if from_block is None and not failures:
            raise
    # Outside the handler: the exception must not get the group as its context.
    if failures and (from_block is None or isinstance(from_block, trio.Cancelled)):
        raise failures[0]
    if from_block is not None:
        for failure in failures:
            if not isinstance(failure, Exception):  # KeyboardInterrupt
                raise failure
            from_block.add_note(f"The fake gateway failed too: {failure!r}")
        raise from_block


def _failures(
    group: BaseExceptionGroup[BaseException], from_block: BaseException | None
) -> Iterator[BaseException]:
    """What the tasks of a nursery raised, groups of theirs opened."""
    for exc in group.exceptions:
        if exc is from_block or isinstance(exc, trio.Cancelled):
            continue
        if isinstance(exc, BaseExceptionGroup):
            yield from _failures(exc, from_block)  # pyright: ignore[reportUnknownArgumentType]
        else:
            yield exc
