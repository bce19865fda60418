"""No key, refresh token or `Authorization` value in anything that is logged, raised or shown."""

from __future__ import annotations

import gc
import logging
import traceback
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest
import trio
import trio.testing

import gz_trio
from gz_trio import (
    AuthenticationError,
    Gateway,
    GatewayError,
    Key,
    KeyStore,
    MemoryKeyStore,
    Record,
    Reply,
    RetryPolicy,
    Session,
    Timeouts,
    open_authenticator,
    open_gateway,
)
from gz_trio.testing import (
    Close,
    Cut,
    Dialect,
    ErrorFrame,
    FakeGateway,
    Fault,
    Insert,
    Stall,
    Status,
)
from tests.secrets_guard import SECRET_MARK, secret

pytest_plugins = ["pytester"]

OLD, NEW, TOKEN = secret("old"), secret("new"), secret("refresh_token")


OTHERS = ("httpcore.http11", "trio-websocket")


class Shown:
    """All that a user might see: the log at its most talkative, errors, and what objects show."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def add(self, *things: object) -> None:
        for thing in things:
            self.texts += [repr(thing), str(thing), f"{thing}"]
            if isinstance(thing, BaseException):
                self.texts += traceback.format_exception(thing)

    @property
    def leaks(self) -> list[str]:
        return [text for text in self.texts if SECRET_MARK in text]


class Handler(logging.Handler):
    def __init__(self, shown: Shown) -> None:
        super().__init__()
        self.shown = shown

    def emit(self, record: logging.LogRecord) -> None:
        self.shown.texts.append(self.format(record))


def is_ours(record: logging.LogRecord) -> bool:
    """Not what a server sent as its head: httpcore logs that at DEBUG, as it came.

    It logs h11's complaint about a head, too; and trio-websocket why a server closed a connection.
    What we send neither ever logs.
    """
    theirs = ("receive_response_head", "RemoteProtocolError", "websocket closed")
    return not any(words in record.msg for words in theirs)


@contextmanager
def everything_logged() -> Generator[Shown]:
    shown = Shown()
    root, handler = logging.getLogger(), Handler(shown)
    others = [logging.getLogger(name) for name in OTHERS]
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    for other in others:
        other.addFilter(is_ours)
    try:
        yield shown
    finally:
        for other in others:
            other.removeFilter(is_ours)
        root.removeHandler(handler)
        root.setLevel(level)


async def refused(rejected: Key | None) -> Key:
    raise AuthenticationError("no", status=401)


async def refreshed(rejected: Key | None) -> Key:
    return Key(NEW, refresh_token=TOKEN)


async def buggy(rejected: Key | None) -> Key:
    raise ValueError


async def unusable(rejected: Key | None) -> str:
    return f"{NEW}\n"


async def endless(rejected: Key | None) -> Key:
    await trio.sleep_forever()
    raise AssertionError


Refresh = Callable[[Key | None], Awaitable[Key | str]]
ECHO = f"Incorrect API key provided: {OLD} (Authorization: Bearer {OLD})"
ECHOED = {"x-echo": f"Bearer {OLD}", "x-request-id": "req_1"}

ECHOES: list[tuple[int, Dialect]] = [
    (400, "openai"),
    (401, "litellm"),
    (401, "detail"),
    (403, "message"),
    (404, "vllm"),
    (429, "gatewayz"),
    (500, "html"),
    (502, "anthropic"),
]

SCENARIOS: dict[str, tuple[str, Refresh | None, list[tuple[Fault, int | None]]]] = {
    "success": (OLD, None, []),
    "a refresh": (NEW, refreshed, []),
    "a plain key is rejected": (NEW, None, []),
    "a refused refresh": (NEW, refused, []),
    "a refresh with a bug": (NEW, buggy, []),
    "a refresh without a usable key": (NEW, unusable, []),
    "a refresh that times out": (NEW, endless, []),
    "a new key that is rejected too": (secret("other"), refreshed, []),
    "a timeout": (OLD, None, [(Stall(), 3)]),
    "a cut": (OLD, None, [(Cut(), 3)]),
    **{
        f"a {status} that echoes the key as {dialect}": (
            OLD,
            refused,
            [(Status(status, ECHO, dialect=dialect, headers=ECHOED), None)],
        )
        for status, dialect in ECHOES
    },
    "a code and type that echo the key": (
        OLD,
        None,
        [(Status(400, code=OLD, type=OLD, dialect="openai"), None)],
    ),
    "an error frame that echoes the key": (OLD, None, [(ErrorFrame("stream_error", ECHO), 3)]),
    "an auth error that echoes the key": (OLD, refused, [(ErrorFrame("auth_error", ECHO), 3)]),
    "an event that is no JSON": (OLD, None, [(Insert(f"data: {OLD}\n\n".encode()), 3)]),
    "HTML that echoes the key": (OLD, None, [(Status(200, body=f"<html>{OLD}"), None)]),
    "JSON that echoes the key": (OLD, None, [(Status(200, body={"key": OLD}), None)]),
    "a redirect with the key": (
        OLD,
        None,
        [(Status(307, headers={"location": f"http://elsewhere.test/?key={OLD}"}), None)],
    ),
}


async def play(
    gateway: Gateway, session: Session, shown: Shown
) -> tuple[Reply | None, GatewayError | None]:
    reply, failure = None, None
    try:
        async with session.stream("Hello") as reply:
            async for event in reply.events():
                shown.add(event)
    except GatewayError as error:
        failure = error
        shown.add(error, error.another())
    shown.add(reply, reply and reply.attempts, reply and reply.timing, reply and reply.events())
    shown.add(gateway, session, gateway.authenticator, gateway.authenticator.state)
    return reply, failure


Place = Literal["/v1/responses (websocket)", "/v1/responses (handshake)"]
WEBSOCKET: Place = "/v1/responses (websocket)"
HANDSHAKE: Place = "/v1/responses (handshake)"
OVER_WEBSOCKET: dict[str, tuple[str, Refresh | None, list[tuple[Fault, Place, int | None]]]] = {
    "success": (OLD, None, []),
    "a refresh": (NEW, refreshed, []),
    "a refused refresh": (NEW, refused, []),
    "a handshake that echoes the key": (
        OLD,
        None,
        [(Status(403, ECHO, dialect="openai", headers=ECHOED), HANDSHAKE, None)],
    ),
    "an error event that echoes the key": (
        OLD,
        None,
        [(ErrorFrame("stream_error", ECHO), WEBSOCKET, 3)],
    ),
    "an error instead of a turn that echoes the key": (
        OLD,
        None,
        [(Status(400, ECHO, code=OLD), WEBSOCKET, None)],
    ),
    "a close that echoes the key": (OLD, refused, [(Close(4401, OLD), WEBSOCKET, 3)]),
    "a policy that echoes the key": (OLD, None, [(Close(1008, f"auth {OLD}"), WEBSOCKET, 3)]),
    "an event that is no JSON": (
        OLD,
        None,
        [(Insert(f"data: {OLD}\n\n".encode()), WEBSOCKET, 3)],
    ),
    "a cut": (OLD, None, [(Cut(), WEBSOCKET, 3)]),
}


@pytest.mark.parametrize(
    ("valid", "refresh", "faults"), OVER_WEBSOCKET.values(), ids=OVER_WEBSOCKET.keys()
)
def test_nothing_shows_a_secret_over_websocket(
    valid: str,
    refresh: Refresh | None,
    faults: list[tuple[Fault, Place, int | None]],
    transport: str,
) -> None:
    if transport == "httpx":
        pytest.skip("WebSocket is spoken over connections of our own")
    fake = FakeGateway(key=valid)
    for fault, path, token in faults:
        fake.fault(fault, token=token, times=None, path=path)

    async def main(shown: Shown) -> None:
        async with (
            fake.http_client() as client,
            open_authenticator(MemoryKeyStore(Key(OLD)), refresh) as authenticator,
            open_gateway(
                fake.base_url,
                authenticator,
                http_client=client,
                retry=RetryPolicy(max_retries=1),
            ) as gateway,
            gateway.open_session("fake-model", api="responses", transport="websocket") as session,
        ):
            await play(gateway, session, shown)
        shown.add(fake)

    with everything_logged() as shown:
        trio.run(main, shown, clock=trio.testing.MockClock(autojump_threshold=0))
        gc.collect()
    assert shown.leaks == []


@pytest.mark.parametrize(("valid", "refresh", "faults"), SCENARIOS.values(), ids=SCENARIOS.keys())
def test_nothing_shows_a_secret(
    valid: str, refresh: Refresh | None, faults: list[tuple[Fault, int | None]]
) -> None:
    fake = FakeGateway(key=valid)
    for fault, token in faults:
        fake.fault(fault, token=token, times=None)
    store = MemoryKeyStore(Key(OLD, refresh_token=TOKEN))

    async def main(shown: Shown) -> None:
        async with (
            fake.http_client() as client,
            open_authenticator(store, refresh) as authenticator,
            open_gateway(
                fake.base_url,
                authenticator,
                http_client=client,
                retry=RetryPolicy(max_retries=1),
            ) as gateway,
            gateway.open_session("fake-model") as session,
        ):
            await play(gateway, session, shown)
            shown.add(await store.load(), (await store.load()).key, store)
        shown.add(fake)

    with everything_logged() as shown:
        trio.run(main, shown, clock=trio.testing.MockClock(autojump_threshold=0))
        gc.collect()
    assert any("a reply begins" in text for text in shown.texts), "the log was not caught"
    assert shown.leaks == []


@pytest.mark.parametrize(
    "answer",
    [
        f"HTTP/1.1 401 {OLD}\r\n{OLD}\r\n\r\n",
        f"NONSENSE {OLD}\r\n\r\n",
        f"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{OLD}\r\n",
        f"HTTP/1.1 200 OK\r\ncontent-length: {OLD}\r\n\r\n",
    ],
)
async def test_a_damaged_response_that_echoes_the_key_shows_nothing(answer: str) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(answer.encode())

    with everything_logged() as shown:
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, serve, listeners)
            port = listeners[0].socket.getsockname()[1]
            async with (
                open_gateway(
                    f"http://127.0.0.1:{port}/v1", OLD, retry=RetryPolicy(max_retries=0)
                ) as gateway,
                gateway.open_session("fake-model") as session,
            ):
                _, failure = await play(gateway, session, shown)
            nursery.cancel_scope.cancel()
    assert failure is not None
    assert shown.leaks == []


async def test_a_refused_connection_shows_nothing() -> None:
    with everything_logged() as shown:
        async with (
            open_gateway(
                "http://127.0.0.1:1/v1",
                OLD,
                retry=RetryPolicy(max_retries=0),
                timeouts=Timeouts(connect=5),
            ) as gateway,
            gateway.open_session("fake-model") as session,
        ):
            _, failure = await play(gateway, session, shown)
    assert failure is not None
    assert shown.leaks == []


@pytest.mark.parametrize("bad", [f" {OLD}", f"{OLD}\n", f"{OLD}\r\nX: y", f"Bearer {OLD}"])
async def test_a_bad_key_is_not_quoted(bad: str) -> None:
    for make in (Key, MemoryKeyStore):
        with pytest.raises(ValueError, match="the API key") as caught:
            make(bad)
        shown = Shown()
        shown.add(caught.value)
        assert SECRET_MARK not in str(caught.value)
        assert not [text for text in shown.texts if SECRET_MARK in text]


def test_what_holds_a_key_does_not_show_it() -> None:
    key = Key(OLD, refresh_token=TOKEN, expires_at=1.0)
    store: KeyStore = MemoryKeyStore(key)
    shown = Shown()
    shown.add(key, Record(key=key), store, [key], {"key": key}, (key,))
    shown.add(gz_trio.AuthState(gz_trio.AuthStatus.AUTHENTICATED, key), GatewayError("x", body=b""))
    assert shown.leaks == []


def test_the_guard_sees_a_secret_that_a_test_prints_logs_or_raises(
    pytester: pytest.Pytester,
) -> None:
    pytester.makeini(f"[pytest]\npythonpath = {Path(__file__).parent.parent}")
    pytester.makeconftest('pytest_plugins = ["tests.secrets_guard"]')
    pytester.makepyfile(
        """
        import logging
        import pytest
        from gz_trio import GatewayError
        from tests.secrets_guard import secret

        def test_prints():
            print(secret("a"))

        def test_logs():
            logging.getLogger("x").warning(secret("a"))

        def test_raises():
            raise ValueError(secret("a"))

        def test_catches_an_error_that_quotes_a_key():
            with pytest.raises(GatewayError):
                raise GatewayError("the key gw_test_1 is bad")

        def test_is_quiet():
            assert secret("a")

        def test_fails_without_showing_it():
            raise ValueError("no")
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(failed=5, passed=1)
    lines = [line for line in result.outlines if "a key" in line and "py::" in line]
    assert len(lines) >= 3
    assert SECRET_MARK not in "".join(result.outlines)
