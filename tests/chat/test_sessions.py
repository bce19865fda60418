"""Sessions: what they send, and what they remember."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import trio

from gz_trio import (
    AuthStatus,
    GatewayError,
    Key,
    MemoryKeyStore,
    RetryPolicy,
    open_authenticator,
    open_session,
)
from gz_trio.testing import Cut, FakeGateway
from tests.chats import open_over

SYSTEM = {"role": "system", "content": "Be brief."}


def question(text: str) -> dict[str, object]:
    return {"role": "user", "content": text}


async def test_each_turn_sends_the_conversation_so_far() -> None:
    fake = FakeGateway()
    async with (
        open_over(fake) as gateway,
        gateway.open_session(
            "fake-model", messages=[SYSTEM], extra_body={"temperature": 0}
        ) as session,
    ):
        first = await session.ask("One?")
        await session.ask(question("Two?"))
    one, two = (request.body for request in fake.requests)
    assert isinstance(one, Mapping)
    assert isinstance(two, Mapping)
    assert one == {
        "model": "fake-model",
        "messages": [SYSTEM, question("One?")],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
    }
    answer = {"role": "assistant", "content": first}
    assert two["messages"] == [SYSTEM, question("One?"), answer, question("Two?")]


@pytest.mark.parametrize("end", ["left early", "failed", "cancelled", "left by an exception"])
async def test_a_turn_that_was_not_read_to_its_end_is_not_remembered(end: str) -> None:
    fake = FakeGateway(token_interval=0.001)
    fake.fault(Cut(), token=6, times=None)
    async with (
        fake.http_client() as client,
        open_session(
            fake.base_url,
            model="fake-model",
            key=fake.key,
            http_client=client,
            retry=RetryPolicy(max_retries=0),
        ) as session,
    ):
        with trio.CancelScope() as scope:
            try:
                async with session.stream("One?") as reply:
                    async for delta in reply:
                        if delta.text and end == "left early":
                            break
                        if delta.text and end == "left by an exception":
                            raise KeyError(end)
                        if delta.text and end == "cancelled":
                            scope.cancel()
            except (GatewayError, KeyError):
                pass
        assert session.messages == []


async def test_the_messages_are_the_callers_to_change() -> None:
    fake = FakeGateway()
    given = [SYSTEM]
    async with (
        open_over(fake) as gateway,
        gateway.open_session("fake-model", messages=given) as session,
    ):
        await session.ask("One?")
        session.messages.clear()
        await session.ask("Two?")
        assert len(session.messages) == 2
    assert given == [SYSTEM], "a copy is kept"


@pytest.mark.parametrize("model", ["", "  "])
async def test_a_model_without_a_name_is_refused(model: str) -> None:
    async with open_over(FakeGateway()) as gateway:
        with pytest.raises(ValueError, match="model's name is empty"):
            async with gateway.open_session(model):
                pass


async def test_a_session_of_its_own_refreshes_by_its_own_task() -> None:
    fake = FakeGateway()
    async with (
        fake.http_client() as client,
        open_session(
            fake.base_url,
            model="fake-model",
            store=MemoryKeyStore("sk-dead"),
            refresh=fake.refresh,
            http_client=client,
        ) as session,
    ):
        await session.ask("One?")
        assert session.authenticator.state.status is AuthStatus.AUTHENTICATED
    assert (fake.refreshes, fake.rejected) == (1, 1)


async def test_without_a_key_the_refresh_gets_the_first_one() -> None:
    fake = FakeGateway()
    async with (
        fake.http_client() as client,
        open_session(
            fake.base_url, model="fake-model", refresh=fake.refresh, http_client=client
        ) as session,
    ):
        await session.ask("One?")
    assert (fake.refreshes, fake.rejected) == (1, 0)


@pytest.mark.parametrize(
    ("key", "with_store", "with_authenticator", "with_refresh", "message"),
    [
        (None, False, False, False, "no key"),
        ("sk-1", True, False, False, "give one of key and store"),
        ("sk-1", False, True, False, "give one of key and authenticator"),
        (None, False, True, True, "this authenticator has its own"),
        ("", False, False, False, "API key is empty"),
        ("sk-1\nsk-2", False, False, False, "a newline"),
    ],
)
async def test_there_is_one_way_to_a_key(
    key: str | None,
    with_store: bool,
    with_authenticator: bool,
    with_refresh: bool,
    message: str,
) -> None:
    async def refresh(rejected: Key | None) -> str:
        raise AssertionError("not called")

    async with open_authenticator(MemoryKeyStore("sk-1")) as authenticator:
        with pytest.raises(ValueError, match=message):
            async with open_session(
                "http://gateway.test/v1",
                model="fake-model",
                key=key,
                store=MemoryKeyStore() if with_store else None,
                authenticator=authenticator if with_authenticator else None,
                refresh=refresh if with_refresh else None,
            ):
                pass


@pytest.mark.parametrize(
    "url", ["api.gatewayz.ai/v1", "", "ftp://host/v1", "https://", "https://u:p@host/v1"]
)
async def test_a_base_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="base URL"):
        async with open_session(url, model="fake-model", key="sk-1"):
            pass
