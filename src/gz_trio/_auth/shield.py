"""A shield that ends: what was begun may finish after a cancellation, for a bounded time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar, TypeVarTuple

import outcome
import trio
from trio.lowlevel import Abort, RaiseCancelT, enable_ki_protection, wait_task_rescheduled

FINISH_SECONDS = 10.0
"""How long an exchange that was sent may go on after a cancellation: a token may be good for one
exchange only, and what was paid for it is kept."""

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


async def shielded_after_cancel(
    seconds: float | Callable[[], float], async_fn: Callable[[*Ts], Awaitable[T]], *args: *Ts
) -> T:
    """Call `async_fn`, and where it is cancelled meanwhile, let it go on for `seconds` more.

    Its result is returned even then; the cancellation comes at the caller's next checkpoint. A
    caller that was cancelled before has the seconds too.

    Args:
        seconds: How long it may go on; or a function that is asked when the cancellation comes:
            0 where nothing was begun yet that would be worth it.
        async_fn: What to call, and
        args: its arguments.

    Raises:
        trio.Cancelled: `async_fn` had not finished `seconds` after the cancellation.

    >>> async def exchange() -> str:
    ...     await trio.sleep(0)
    ...     return "a token that was paid for"
    >>> async def main() -> None:
    ...     with trio.CancelScope() as scope:
    ...         scope.cancel()
    ...         print(await shielded_after_cancel(10, exchange))
    ...         await trio.sleep(0)
    ...     print(scope.cancelled_caught)
    >>> trio.run(main)
    a token that was paid for
    True
    """
    shield = trio.CancelScope(shield=True)

    @enable_ki_protection  # Ctrl-C is for the caller's code
    async def watch_for_cancel(*, task_status: trio.TaskStatus[None]) -> None:
        def cancelled(_: RaiseCancelT) -> Abort:
            # Asked at the cancellation itself: a tick later, something may have been begun.
            more = seconds if isinstance(seconds, int | float) else seconds()
            shield.deadline = trio.current_time() + more
            return Abort.SUCCEEDED

        task_status.started()
        await wait_task_rescheduled(cancelled)

    async def call() -> T:
        with shield:
            return await async_fn(*args)
        # Out of time, which it only is once the scope around the shield was cancelled.
        return await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        with trio.CancelScope(shield=True):  # bounded: it starts within a tick
            await nursery.start(watch_for_cancel)
        result = await outcome.acapture(call)
        # So the nursery absorbs the watcher's Cancelled, which would take the result's place; the
        # scope around it stays cancelled.
        nursery.cancel_scope.shield = True
        nursery.cancel_scope.cancel()
    return result.unwrap()
