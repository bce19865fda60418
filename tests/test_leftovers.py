"""Nothing is left behind after a session, however it ends: no task, socket, file or generator."""

from __future__ import annotations

import gc
import os
import signal
import sys
import warnings
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gz_trio import (
    AuthenticationError,
    FileKeyStore,
    GatewayError,
    Key,
    RetryPolicy,
    Session,
    open_session,
)
from gz_trio.testing import Cut, FakeGateway, Fault, Reset, Stall, Status

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="descriptors are read from /proc")


def descriptors() -> dict[str, str]:
    """The open descriptors of this process, and what they lead to."""
    found: dict[str, str] = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # that of the listing itself
            continue
    return found


@contextmanager
def nothing_left_behind() -> Generator[None]:
    """Compares descriptors, and makes whatever the garbage collector has to close an error."""
    gc.collect()
    before = descriptors()
    unraisable: list[object] = []
    hook, sys.unraisablehook = sys.unraisablehook, unraisable.append
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
            gc.collect()
    finally:
        sys.unraisablehook = hook
    assert unraisable == []
    assert descriptors() == before


async def read_all(session: Session) -> None:
    await session.ask("Tell me a story.")


async def fail(session: Session) -> None:
    async with session.stream("Tell me a story.") as reply:
        await anext(reply)
        raise ZeroDivisionError


async def break_off(session: Session) -> None:
    async with session.stream("Tell me a story.") as reply:
        async for _ in reply:
            break
        events = reply.events()
        await anext(events)


async def leave_at_once(session: Session) -> None:
    async with session.stream("Tell me a story."):
        pass


async def cancel(session: Session) -> None:
    with trio.move_on_after(0.05):
        async with session.stream("Tell me a story.") as reply:
            async for _ in reply:
                pass


async def interrupt(session: Session) -> None:
    async with session.stream("Tell me a story.") as reply:
        async for _ in reply:
            signal.raise_signal(signal.SIGINT)


async def many(session: Session) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(read_all if number % 2 else break_off, session)


async def never_read(session: Session) -> None:
    async with session.stream("Tell me a story."):
        await wait_all_tasks_blocked(0.01)


async def refused(_: Key | None) -> str:
    raise AuthenticationError("no")


async def endless(_: Key | None) -> str:
    await trio.sleep_forever()
    raise AssertionError


EndsHow = Callable[[Session], Awaitable[None]]
Refresh = Callable[[Key | None], Awaitable[str]]
CUT_TWICE: list[tuple[Fault, int | None]] = [(Cut(), 4), (Reset(), 6)]

ENDINGS: dict[
    str,
    tuple[EndsHow, type[BaseException] | None, list[tuple[Fault, int | None]], Refresh | None],
] = {
    "normally": (read_all, None, [], None),
    "after a refresh": (read_all, None, [(Status(401), None)], None),
    "after a broken connection": (read_all, None, [(Reset(), 4)], None),
    "by the user's error": (fail, ZeroDivisionError, [], None),
    "by an error status": (read_all, GatewayError, [(Status(400), None)], None),
    "by a refused refresh": (read_all, AuthenticationError, [(Status(401), None)], refused),
    "in the middle of a refresh": (cancel, None, [(Status(401), None)], endless),
    "in the middle of a wait": (cancel, None, [(Status(503), None)], None),
    "by an iteration that is abandoned": (break_off, None, [], None),
    "before anything was read": (leave_at_once, None, [], None),
    "with everything unread": (never_read, None, [], None),
    "by a cancellation while it connects": (cancel, None, [(Stall(), None)], None),
    "by a cancellation while it streams": (cancel, None, [(Stall(), 4)], None),
    "by Ctrl-C": (interrupt, KeyboardInterrupt, [], None),
    "with many replies at once": (many, None, CUT_TWICE, None),
    "with a bad compression": (
        read_all,
        GatewayError,
        [(Status(200, headers={"content-encoding": "gzip"}, body=b"no gzip"), None)],
        None,
    ),
}


@pytest.mark.parametrize(
    ("use", "expected", "faults", "refresh"), ENDINGS.values(), ids=ENDINGS.keys()
)
def test_nothing_is_left_behind_after_a_session_that_ends(
    use: EndsHow,
    expected: type[BaseException] | None,
    faults: list[tuple[Fault, int | None]],
    refresh: Refresh | None,
    tmp_path: Path,
) -> None:
    fake = FakeGateway(tokens=8)

    async def refreshed(_: Key | None) -> str:
        return fake.rotate()

    async def in_a_session(base_url: str) -> None:
        before = trio.lowlevel.current_statistics().tasks_living
        store = FileKeyStore(tmp_path / "keys.json")
        record = await store.load()
        await store.replace(record.version, type(record)(epoch=1, key=Key(fake.key)))
        try:
            async with open_session(
                base_url,
                model="fake-model",
                store=store,
                refresh=refresh or refreshed,
                retry=RetryPolicy(max_retries=2),
            ) as session:
                await use(session)
        finally:
            with trio.CancelScope(shield=True):
                await wait_all_tasks_blocked(0.01)  # the fake gateway takes notice
            assert fake.open_streams == 0
            # One connection of the fake's may be open only while the client's end is.
            assert trio.lowlevel.current_statistics().tasks_living == before

    async def main() -> None:
        async with fake.listen() as base_url:
            await in_a_session(base_url)

    for fault, token in faults:
        fake.fault(fault, token=token)

    def run() -> None:  # a function, so that it takes the exception and its frames with it
        with pytest.raises(expected) if expected is not None else nullcontext():
            trio.run(main)

    with nothing_left_behind():
        run()


def test_the_check_finds_a_generator_and_a_descriptor_that_are_left_behind(
    tmp_path: Path,
) -> None:
    async def generate() -> AsyncGenerator[int]:
        yield 1

    async def leave_a_generator() -> None:
        await anext(generate())

    with pytest.raises(AssertionError, match="Async generator"), nothing_left_behind():
        trio.run(leave_a_generator)
    files = ExitStack()
    with files, pytest.raises(AssertionError, match="left_open"), nothing_left_behind():
        files.enter_context((tmp_path / "left_open").open("w"))
