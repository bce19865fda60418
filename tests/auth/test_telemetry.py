"""What is told of a refresh: one span, one measurement and log records, however many wait."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
import trio
from opentelemetry.trace import SpanKind, StatusCode

from gz_trio import (
    AuthenticationError,
    GatewayError,
    Key,
    MemoryKeyStore,
    PermissionDeniedError,
    RefreshTimeout,
    open_authenticator,
)
from tests.secrets_guard import secret
from tests.telemetry import Collected, attributes_of, collect, id_of, parent_of, told

REFRESH = "gz_trio.refresh"
DURATION = "gz_trio.refresh.duration"


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> Collected:
    return collect(monkeypatch)


async def next_key(rejected: Key | None) -> str:
    await trio.sleep(2)
    return secret("new")


def failing(error: Exception) -> Callable[[Key | None], Awaitable[str]]:
    async def refresh(rejected: Key | None) -> str:
        await trio.sleep(2)
        raise error

    return refresh


async def test_a_refresh_is_one_span_within_that_of_the_first_who_asked(
    collected: Collected, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_authenticator(MemoryKeyStore(secret("old")), next_key) as authenticator:

        async def ask(name: str) -> None:
            with collected.tracer.start_as_current_span(name):
                await authenticator.refresh()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "first")
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(10):
                nursery.start_soon(ask, "later")
    span = collected.span(REFRESH)
    assert parent_of(span) == id_of(collected.span("first"))
    assert span.kind is SpanKind.INTERNAL
    assert span.status.status_code is StatusCode.UNSET
    assert attributes_of(span) == {
        "gz_trio.key.generation": 1,
        "gz_trio.key.new_generation": 2,
        "gz_trio.outcome": "complete",
        "gz_trio.refresh.early": False,
    }
    (duration,) = collected.points(DURATION)
    assert (duration.count, duration.sum) == (1, 2.0)
    assert dict(duration.attributes or {}) == {
        "gz_trio.outcome": "complete",
        "gz_trio.refresh.early": False,
    }


async def test_what_the_refresh_callable_traces_is_part_of_the_refresh(
    collected: Collected,
) -> None:
    async def refresh(rejected: Key | None) -> str:
        with collected.tracer.start_as_current_span("POST"):
            await trio.lowlevel.checkpoint()
        return secret("new")

    async with open_authenticator(MemoryKeyStore(secret("old")), refresh) as authenticator:
        await authenticator.refresh()
    assert parent_of(collected.span("POST")) == id_of(collected.span(REFRESH))


async def test_a_failed_refresh_says_how_and_never_what_a_callable_raised(
    collected: Collected, autojump_clock: trio.testing.MockClock
) -> None:
    refresh = failing(ValueError(secret("value")))
    async with open_authenticator(MemoryKeyStore(secret("old")), refresh) as authenticator:
        with pytest.raises(AuthenticationError):
            await authenticator.refresh()
    span = collected.span(REFRESH)
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "the key could not be refreshed: ValueError"
    assert attributes_of(span)["error.type"] == "RefreshError"
    assert attributes_of(span)["gz_trio.outcome"] == "failed"
    assert collected.sums(DURATION, "error.type") == {"RefreshError": 2.0}
    assert "s3cr3t" not in span.to_json()


async def test_a_refresh_that_takes_too_long_ends_when_its_waiters_are_told(
    collected: Collected, autojump_clock: trio.testing.MockClock
) -> None:
    async def stuck(rejected: Key | None) -> str:
        with trio.CancelScope(shield=True):
            await trio.sleep(100)
        return secret("new")

    async with open_authenticator(MemoryKeyStore(secret("old")), stuck) as authenticator:
        with pytest.raises(RefreshTimeout):
            await authenticator.refresh()
        assert collected.sums(DURATION, "error.type") == {"RefreshTimeout": 30.0}
        assert attributes_of(collected.span(REFRESH))["error.type"] == "RefreshTimeout"


async def test_the_end_of_the_authenticator_is_no_failure_of_its_refresh(
    collected: Collected, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "gz_trio")
    async with open_authenticator(MemoryKeyStore(secret("old")), next_key) as authenticator:
        authenticator.request_refresh()
        await trio.testing.wait_all_tasks_blocked()
    span = collected.span(REFRESH)
    assert span.status.status_code is StatusCode.UNSET
    assert attributes_of(span)["gz_trio.outcome"] == "left"
    assert collected.sums(DURATION, "gz_trio.outcome") == {"left": 0.0}
    assert [record.levelname for record in caplog.records] == ["INFO", "DEBUG"]


async def test_a_refresh_ahead_of_the_key_s_end_says_so(
    collected: Collected, autojump_clock: trio.testing.MockClock
) -> None:
    store = MemoryKeyStore(Key(secret("old"), expires_at=100.0))
    clock = trio.current_time()

    async with open_authenticator(
        store, next_key, now=lambda: trio.current_time() - clock
    ) as authenticator:
        await trio.sleep(90)
        assert (await authenticator.key()).generation == 2
    assert attributes_of(collected.span(REFRESH))["gz_trio.refresh.early"] is True


async def test_a_key_that_is_there_already_needs_no_refresh(collected: Collected) -> None:
    async with open_authenticator(MemoryKeyStore(secret("old")), next_key) as authenticator:
        await authenticator.key()
    assert collected.spans == []


@pytest.mark.parametrize(
    ("refresh", "records", "message"),
    [
        (
            next_key,
            [
                (
                    "INFO",
                    "gz_trio.refresh.ended",
                    {"gz_trio.outcome": "complete", "gz_trio.key.new_generation": 2},
                )
            ],
            "a new key is there after 2.000 s",
        ),
        (
            failing(PermissionDeniedError("the account is closed")),
            [
                (
                    "WARNING",
                    "gz_trio.refresh.ended",
                    {"gz_trio.outcome": "failed", "error.type": "RefreshError"},
                )
            ],
            "no new key could be had: the refresh was refused: sign in again",
        ),
    ],
    ids=["complete", "failed"],
)
async def test_the_log_tells_the_same(
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
    refresh: Callable[[Key | None], Awaitable[str]],
    records: list[tuple[str, str, dict[str, object]]],
    message: str,
) -> None:
    caplog.set_level(logging.DEBUG, "gz_trio")
    async with open_authenticator(MemoryKeyStore(secret("old")), refresh) as authenticator:
        with suppress(GatewayError):
            await authenticator.refresh()
    common = {"gz_trio.key.generation": 1, "gz_trio.refresh.early": False}
    assert told(caplog.records, "gz_trio.auth") == [
        ("INFO", "gz_trio.refresh.started", common),
        *((level, event, common | fields) for level, event, fields in records),
    ]
    assert caplog.messages == ["a new key is needed", message]
