"""A shield that ends: what was begun may finish after a cancellation, for a bounded time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar, TypeVarTuple

import outcome
import trio
from trio.lowlevel import Abort, RaiseCancelT, current_task, reschedule, wait_task_rescheduled

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


async def shielded_after_cancel(
    seconds: float, async_fn: Callable[[*Ts], Awaitable[T]], *args: *Ts
) -> T:
    """Call `async_fn`, and where it is cancelled meanwhile, let it go on for `seconds` more.

    Its result is returned even then; the cancellation comes at the caller's next checkpoint. A
    caller that is cancelled already never begins. A checkpoint.

    Raises:
        trio.Cancelled: `async_fn` had not finished `seconds` after the cancellation.

    >>> async def exchange() -> str:
    ...     await trio.sleep(0)
    ...     return "a token that was paid for"
    >>> async def main() -> None:
    ...     with trio.CancelScope() as scope:
    ...         scope.cancel()
    ...         await shielded_after_cancel(10, exchange)
    ...     print(scope.cancelled_caught)
    >>> trio.run(main)
    True
    """
    shield = trio.CancelScope(shield=True)
    watcher_ended = trio.Event()

    async def watch_for_cancel(*, task_status: trio.TaskStatus[trio.lowlevel.Task]) -> None:
        def cancelled(_raise_cancel: RaiseCancelT) -> Abort:
            shield.deadline = trio.current_time() + seconds
            # Noticed, not delivered: the scope stays cancelled, so nothing is swallowed.
            return Abort.FAILED

        task_status.started(current_task())
        await wait_task_rescheduled(cancelled)
        watcher_ended.set()

    async def call() -> T:
        with shield:
            return await async_fn(*args)
        await trio.sleep_forever()  # the shield has ended, so the scope around it is cancelled

    async with trio.open_nursery() as nursery:
        watcher: trio.lowlevel.Task = await nursery.start(watch_for_cancel)
        result = await outcome.acapture(call)
        reschedule(watcher)
        with trio.CancelScope(shield=True):  # bounded: the watcher is about to run
            await watcher_ended.wait()
    return result.unwrap()
