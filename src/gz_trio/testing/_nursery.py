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
            except trio.Cancelled:
                raise
            except BaseException as exc:
                # It must not pass through the nursery, which would rebuild a group of the block's.
                from_block = exc
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        failures = list(_leaves(group))
        if not failures and from_block is None:
            raise  # nothing but Cancelled
    # Outside the handler: the exception must not get the group as its context.
    for failure in failures:
        if from_block is None or not isinstance(failure, Exception):  # KeyboardInterrupt
            raise failure
        from_block.add_note(f"The fake gateway failed too: {failure!r}")
    if from_block is not None:
        raise from_block


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    """What the tasks of a nursery raised, the groups of their own nurseries opened."""
    for exc in group.exceptions:
        if isinstance(exc, BaseExceptionGroup):
            yield from _leaves(exc)  # pyright: ignore[reportUnknownArgumentType]
        elif not isinstance(exc, trio.Cancelled):
            yield exc
