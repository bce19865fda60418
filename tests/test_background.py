"""What comes out of the `open_*` blocks, whatever happens in them or in the background."""

# ruff: noqa: PT017 - what comes out of a whole block is the subject
from __future__ import annotations

import signal
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import httpx
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from gz_trio import (
    GatewayError,
    Key,
    MemoryKeyStore,
    Record,
    open_authenticator,
    open_gateway,
    open_session,
)
from gz_trio._background import Background
from gz_trio.testing import FakeGateway
from tests.chats import BODY

Open = Callable[[], AbstractAsyncContextManager[object]]
BASE_URL = FakeGateway.base_url


@asynccontextmanager
async def background() -> AsyncGenerator[None]:
    async with Background("test") as nursery:
        nursery.start_soon(trio.sleep_forever)
        yield


class Silent(httpx.AsyncBaseTransport):
    """Never answers."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await trio.sleep_forever()
        raise AssertionError


@asynccontextmanager
async def reply() -> AsyncGenerator[None]:
    client = httpx.AsyncClient(transport=Silent())
    async with open_gateway(BASE_URL, "sk-1", http_client=client) as gateway, gateway.stream(BODY):
        yield


@asynccontextmanager
async def session_stream() -> AsyncGenerator[None]:
    client = httpx.AsyncClient(transport=Silent())
    async with (
        open_session(BASE_URL, model="fake-model", key="sk-1", http_client=client) as session,
        session.stream("Tell me a story."),
    ):
        yield


OPEN: dict[str, Open] = {
    "Background": background,
    "open_authenticator": lambda: open_authenticator(MemoryKeyStore("sk-1")),
    "open_gateway": lambda: open_gateway(BASE_URL, "sk-1"),
    "open_session": lambda: open_session(BASE_URL, model="m", key="sk-1"),
    "Gateway.stream": reply,
    "Session.stream": session_stream,
}


@pytest.fixture(params=list(OPEN.values()), ids=list(OPEN))
def opened(request: pytest.FixtureRequest) -> Open:
    opened: Open = request.param
    return opened


OWN = [
    ValueError("the user's"),
    KeyboardInterrupt(),
    SystemExit(3),
    StopIteration(),
    StopAsyncIteration(),
    RuntimeError("the user's"),
    GatewayError("the user's"),
    ExceptionGroup("the user's", [ValueError(), ExceptionGroup("inner", [KeyError()])]),
    BaseExceptionGroup("the user's", [KeyboardInterrupt(), ValueError()]),
]


def same(caught: pytest.ExceptionInfo[BaseException], error: BaseException) -> bool:
    return caught.value is error and caught.value.__context__ is None


@pytest.mark.parametrize("error", OWN, ids=repr)
async def test_the_blocks_exception_comes_out_as_the_same_object(
    opened: Open, error: BaseException
) -> None:
    with pytest.raises(type(error)) as caught:
        async with opened():
            await trio.lowlevel.checkpoint()
            raise error
    assert same(caught, error)
    assert not hasattr(error, "__notes__")


@pytest.mark.parametrize("error", OWN, ids=repr)
async def test_the_blocks_exception_comes_out_even_during_an_outer_cancellation(
    opened: Open, error: BaseException
) -> None:
    with trio.CancelScope() as scope, pytest.raises(type(error)) as caught:
        async with opened():
            scope.cancel()
            raise error
    assert same(caught, error)


async def test_an_outer_cancellation_comes_out_as_cancelled(opened: Open) -> None:
    with trio.CancelScope() as scope:
        try:
            async with opened():
                scope.cancel()
                await trio.sleep_forever()
        except BaseException as error:
            assert type(error) is trio.Cancelled
            raise
    assert scope.cancelled_caught


async def test_a_block_that_ends_in_a_cancelled_scope_lets_cancelled_out_bare(
    opened: Open,
) -> None:
    with trio.CancelScope() as scope:
        try:
            async with opened():
                scope.cancel()
        except BaseException as error:
            assert type(error) is trio.Cancelled
            raise
    assert scope.cancelled_caught  # delivered to the tasks' end, it is not swallowed


async def test_a_block_that_just_ends_takes_its_tasks_with_it(opened: Open) -> None:
    before = trio.lowlevel.current_statistics().tasks_living
    async with opened():
        pass
    assert trio.lowlevel.current_statistics().tasks_living == before


# Failures in the background


async def failing(error: BaseException) -> None:
    raise error


async def test_a_failure_in_the_background_comes_out_as_one_gateway_error_raised_from_it() -> None:
    bug = ZeroDivisionError("a bug")
    with pytest.raises(GatewayError, match="the test stopped: a background task failed") as caught:
        async with Background("test") as nursery:
            nursery.start_soon(failing, bug)
            await trio.sleep_forever()
    assert caught.value.__cause__ is bug


async def test_several_failures_come_out_as_one_gateway_error_that_names_them() -> None:
    async def fail_when_cancelled() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise KeyError

    with pytest.raises(GatewayError, match="ZeroDivisionError") as caught:
        async with Background("test") as nursery:
            nursery.start_soon(fail_when_cancelled)
            nursery.start_soon(failing, ZeroDivisionError())
            await trio.sleep_forever()
    assert "KeyError" in str(caught.value)
    assert isinstance(caught.value.__cause__, ExceptionGroup)


async def test_a_failure_in_the_background_is_a_note_on_the_blocks_own_exception() -> None:
    error = ValueError("the user's")
    with pytest.raises(ValueError, match="the user's") as caught:
        async with Background("test") as nursery:
            nursery.start_soon(failing, ZeroDivisionError("a bug"))
            try:
                await trio.sleep_forever()
            finally:
                raise error
    assert caught.value is error
    assert "ZeroDivisionError('a bug')" in error.__notes__[0]


async def test_a_group_of_the_blocks_own_is_left_whole_beside_a_background_failure() -> None:
    group = ExceptionGroup("the user's", [ValueError(), KeyError()])
    with pytest.raises(ExceptionGroup) as caught:
        async with Background("test") as nursery:
            nursery.start_soon(failing, ZeroDivisionError())
            try:
                await trio.sleep_forever()
            finally:
                raise group
    assert caught.value is group


async def test_our_own_cancellation_does_not_show_in_the_users_group() -> None:
    async def fail_once_cancelled() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("the user's")

    with pytest.raises(ExceptionGroup) as caught:
        async with Background("test") as nursery:
            nursery.start_soon(failing, ZeroDivisionError())
            async with trio.open_nursery() as users:
                users.start_soon(fail_once_cancelled)
                users.start_soon(trio.sleep_forever)
    assert caught.group_contains(ValueError)
    assert not caught.group_contains(trio.Cancelled)


@pytest.mark.parametrize("fatal", [KeyboardInterrupt(), SystemExit(3)], ids=repr)
@pytest.mark.parametrize("own", [None, ValueError()], ids=repr)
async def test_ctrl_c_in_the_background_comes_out_as_itself_before_all_else(
    fatal: BaseException, own: Exception | None
) -> None:
    with pytest.raises(type(fatal)) as caught:
        async with Background("test") as nursery:
            nursery.start_soon(failing, fatal)
            try:
                await trio.sleep_forever()
            finally:
                if own is not None:
                    raise own
    assert caught.value is fatal
    assert caught.value.__context__ is None


async def test_a_background_failure_comes_before_an_outer_cancellation() -> None:
    async def fail_when_cancelled() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ZeroDivisionError

    with trio.CancelScope() as scope, pytest.raises(GatewayError):
        async with Background("test") as nursery:
            nursery.start_soon(fail_when_cancelled)
            await trio.lowlevel.checkpoint()
            scope.cancel()
            await trio.sleep_forever()


# The same, through the public doors


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def leave() -> None:
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("action", "expected"), [(interrupt, KeyboardInterrupt), (leave, SystemExit)]
)
def test_ctrl_c_in_a_refresh_callable_comes_out_of_the_session_as_itself(
    action: Callable[[], None], expected: type[BaseException]
) -> None:
    fake = FakeGateway()

    async def refresh(_: Key | None) -> str:
        action()
        await trio.sleep_forever()
        return ""

    async def main() -> None:
        async with (
            fake.http_client() as client,
            open_session(
                BASE_URL, model="fake-model", key="sk-old", refresh=refresh, http_client=client
            ) as session,
        ):
            await session.ask("Tell me a story.")

    with pytest.raises(expected) as caught:
        trio.run(main, clock=MockClock(autojump_threshold=0))
    assert type(caught.value) is expected


def test_ctrl_c_while_a_reader_waits_comes_out_of_the_session_as_itself() -> None:
    fake = FakeGateway()
    fake.token_interval = 10.0

    async def main() -> None:
        async with (
            fake.http_client() as client,
            open_session(BASE_URL, model="fake-model", key=fake.key, http_client=client) as session,
            session.stream("Tell me a story.") as reply,
        ):
            async for _ in reply:
                interrupt()

    with pytest.raises(KeyboardInterrupt):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    assert fake.open_streams == 0


class Buggy(httpx.AsyncBaseTransport):
    """An httpx transport of the user's with a bug in it."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        raise ZeroDivisionError("a bug")


@pytest.mark.parametrize("reads", [True, False])
async def test_a_bug_beneath_a_reply_comes_out_as_one_gateway_error(reads: bool) -> None:
    async with (
        httpx.AsyncClient(transport=Buggy()) as client,
        open_gateway(BASE_URL, "sk-1", http_client=client) as gateway,
    ):
        with pytest.raises(GatewayError, match="the reply stopped") as caught:
            async with gateway.stream(BODY) as reply:
                if reads:
                    async for _ in reply:
                        pass
                else:
                    await wait_all_tasks_blocked()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert getattr(caught.value, "__notes__", []) == []


class BrokenStore(MemoryKeyStore):
    """A store whose changes cannot be watched."""

    def changes(self) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[None]]:
        @asynccontextmanager
        async def changes() -> AsyncGenerator[trio.abc.ReceiveChannel[None]]:
            send, receive = trio.open_memory_channel[None](1)
            async with receive, send:
                send.send_nowait(None)
                yield receive

        return changes()

    loads = 0

    async def load(self) -> Record:
        self.loads += 1
        if self.loads > 1:
            raise ZeroDivisionError("a bug in the store")
        return await super().load()


async def test_a_bug_in_a_store_comes_out_of_the_authenticator_as_one_gateway_error() -> None:
    with pytest.raises(GatewayError, match="the authenticator stopped") as caught:
        async with open_authenticator(BrokenStore("sk-1")):
            await trio.sleep_forever()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
