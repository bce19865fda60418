"""A nursery for background tasks that never shows through: one error comes out, or none."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from types import TracebackType
from typing import cast

import trio

from ._protocol.errors import GatewayError


class Background:
    """A nursery whose tasks serve the `async with` block and end with it.

    What comes out, in this order: `KeyboardInterrupt` or `SystemExit` as itself; the block's own
    exception, the same object, a group of the block's own left whole, with a failure of a
    background task as a note; a background failure as one `GatewayError` raised from it;
    `Cancelled`. Never a group that this nursery made.

    Args:
        name: What the tasks serve, for messages: `"authenticator"`.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._manager = trio.open_nursery()

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> trio.Nursery:
        """Not a checkpoint: opening a nursery never waits."""
        self._nursery = await self._manager.__aenter__()
        return self._nursery

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> bool:
        """Cancels the tasks and waits for them. A checkpoint, unless there are none."""
        self._nursery.cancel_scope.cancel()
        leftover: BaseException | None = None
        try:
            # The block's exception is kept away from the nursery, which would wrap it.
            # Its tasks are cancelled, and bound their cleanup: so is this wait.
            await self._manager.__aexit__(None, None, None)  # noqa: ASYNC102
        except BaseException as raised:  # noqa: ASYNC103 - what is to come out is chosen below
            leftover = raised
        ends = list(leaves(leftover))
        failures = [leaf for leaf in ends if not isinstance(leaf, trio.Cancelled)]
        for fatal in (error, *failures):
            if isinstance(fatal, KeyboardInterrupt | SystemExit):
                return _raise(fatal, error)  # noqa: ASYNC910 - a nursery's end is one
        if error is not None and not _only_cancelled(error):
            for failure in failures:
                error.add_note(f"also, in the background of the {self._name}: {failure!r}")
            chosen = self._without_our_cancellation(error) if failures else error
            return _raise(chosen, error)  # noqa: ASYNC910
        if failures:
            cause = failures[0] if len(failures) == 1 else leftover
            raise GatewayError(
                f"the {self._name} stopped: a background task failed "
                f"({', '.join(type(failure).__name__ for failure in failures)})"
            ) from cause
        if error is None and ends:
            return _raise(ends[0], error)  # noqa: ASYNC910 - likewise
        return False  # noqa: ASYNC910 - likewise

    def _without_our_cancellation(self, error: BaseException) -> BaseException:
        """A group of the block's own, less the `Cancelled`s with which our failure reached it."""
        kept = error
        if isinstance(error, BaseExceptionGroup) and trio.current_effective_deadline() > -inf:
            group = cast("BaseExceptionGroup[BaseException]", error)
            cancelled, rest = group.split(trio.Cancelled)
            if cancelled is not None:  # `split` makes a new group even of one that has none
                kept = rest or kept
        return kept


def _raise(chosen: BaseException, current: BaseException | None) -> bool:
    """Let `chosen` come out, without a context of our making."""
    if chosen is current:
        return False
    context = chosen.__context__
    try:
        raise chosen
    finally:
        chosen.__context__ = context


def leaves(error: BaseException | None) -> Iterator[BaseException]:
    """The exceptions in a group, and in groups in it; an exception that is none, itself."""
    if isinstance(error, BaseExceptionGroup):
        for inner in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from leaves(inner)
    elif error is not None:
        yield error


def _only_cancelled(error: BaseException) -> bool:
    return all(isinstance(leaf, trio.Cancelled) for leaf in leaves(error))
