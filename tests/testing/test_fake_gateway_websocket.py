"""The fake gateway's WebSocket mode, with the OpenAI SDK as its client, which is asyncio's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, TypeVar, cast

import openai
import pytest
import trio
from openai.lib.responses_websocket import (
    AsyncResponsesWebSocketSession,
    ResponsesWebSocketError,
    ResponsesWebSocketLimits,
)
from openai.types.responses import Response, ResponsesServerEvent
from openai.types.responses.responses_client_event_param import ResponseCreate
from openai.types.responses.responses_server_event import ResponseWsError
from pydantic import TypeAdapter
from websockets.exceptions import ConnectionClosed, InvalidStatus

from gz_trio.testing import Close, Cut, ErrorFrame, FakeGateway, Status
from tests.chat.test_apis import everything

TURNS: Literal["/v1/responses (websocket)"] = "/v1/responses (websocket)"
LIMITS = ResponsesWebSocketLimits(
    max_lanes=8,
    max_events_per_lane=512,
    max_events=4096,
    max_bytes_per_lane=2**24,
    max_bytes=2**25,
    max_response_bytes=None,
)

T = TypeVar("T")
Talk = Callable[[AsyncResponsesWebSocketSession], Awaitable[T]]


async def by_the_sdk(fake: FakeGateway, talk: Talk[T], key: str | None = None) -> T:
    """What `talk` returns, which has a connection of the SDK's."""

    async def main() -> T:
        client = openai.AsyncOpenAI(
            api_key=fake.key if key is None else key,
            base_url=base_url,
            websocket_base_url=base_url.replace("http", "ws"),
            max_retries=0,
        )
        async with (
            client,
            client.responses.connect() as connection,
            AsyncResponsesWebSocketSession(connection, limits=LIMITS) as session,
        ):
            return await talk(session)

    async with fake.listen() as base_url:
        return await trio.to_thread.run_sync(lambda: asyncio.run(main()))


async def ask(
    session: AsyncResponsesWebSocketSession, question: str, *, lane: str = "", **fields: object
) -> Response:
    target = session.lane(lane) if lane else session.default
    turn = {"type": "response.create", "model": "fake-model", "input": question, **fields}
    await target.send(cast("ResponseCreate", turn))
    return await target.get_final_response()


async def test_a_turn_is_what_the_sdk_takes_it_for() -> None:
    fake = FakeGateway(answer=everything)
    response = await by_the_sdk(fake, lambda session: ask(session, "Hi"))
    assert [item.type for item in response.output] == [
        "reasoning", "message", "function_call", "function_call",
    ]  # fmt: skip
    assert response.output_text == fake.intended({"input": "Hi"})


async def test_every_frame_is_one_of_the_sdks_types() -> None:
    fake = FakeGateway(answer=everything)
    fake.fault(ErrorFrame("rate_limit_error"), request=2, token=3, path=TURNS)
    adapter: TypeAdapter[ResponsesServerEvent] = TypeAdapter(ResponsesServerEvent)

    async def talk(session: AsyncResponsesWebSocketSession) -> list[str]:
        kinds: list[str] = []
        for lane in (session.default, session.lane("other")):
            await lane.send({"type": "response.create", "model": "fake-model", "input": "Hi"})
            while not kinds or kinds[-1] not in ("response.completed", "error"):
                event = await lane.recv()
                adapter.validate_python(event.to_dict(), strict=True)
                kinds.append(event.type)
            kinds.append("")
        return kinds

    kinds = await by_the_sdk(fake, talk)
    assert kinds[-2:] == ["error", ""]
    assert "response.function_call_arguments.delta" in kinds


async def test_a_chain_is_a_conversation() -> None:
    fake = FakeGateway()

    async def talk(session: AsyncResponsesWebSocketSession) -> Sequence[str]:
        one = await ask(session, "One?", store=False)
        two = await ask(session, "Two?", previous_response_id=one.id, store=False)
        return one.output_text, two.output_text

    one, two = await by_the_sdk(fake, talk)
    conversation = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": one},
        {"role": "user", "content": "Two?"},
    ]
    assert two == fake.intended({"input": conversation})


async def test_lanes_run_at_the_same_time() -> None:
    fake = FakeGateway(token_interval=0.01)

    async def talk(session: AsyncResponsesWebSocketSession) -> Sequence[Response]:
        return await asyncio.gather(*(ask(session, f"{n}?", lane=f"lane-{n}") for n in range(4)))

    responses = await by_the_sdk(fake, talk)
    for number, response in enumerate(responses):
        assert response.output_text == fake.intended({"input": f"{number}?"})


@pytest.mark.parametrize(
    ("status", "code"), [(400, "previous_response_not_found"), (429, "rate_limit_exceeded")]
)
async def test_an_error_is_one_to_the_sdk(status: int, code: str) -> None:
    fake = FakeGateway()
    fake.fault(Status(status, code=code), path=TURNS)

    async def talk(session: AsyncResponsesWebSocketSession) -> tuple[object, object, str]:
        with pytest.raises(ResponsesWebSocketError) as caught:
            await ask(session, "One?")
        event = caught.value.event
        assert isinstance(event, ResponseWsError)
        return event.status, event.error.code, (await ask(session, "Two?")).output_text

    expected = (status, code, fake.intended({"input": "Two?"}))
    assert await by_the_sdk(fake, talk) == expected


async def test_a_key_that_is_not_valid_is_rejected_in_the_handshake() -> None:
    fake = FakeGateway()
    with pytest.raises(InvalidStatus) as caught:
        await by_the_sdk(fake, lambda session: ask(session, "Hi"), key="sk-wrong")
    assert caught.value.response.status_code == 401


@pytest.mark.parametrize("fault", [Cut(), Close(4401, "the key has expired")])
async def test_the_end_of_a_connection_is_one_to_the_sdk(fault: Cut | Close) -> None:
    fake = FakeGateway()
    fake.fault(fault, token=2, path=TURNS)
    with pytest.raises(ConnectionClosed) as caught:
        await by_the_sdk(fake, lambda session: ask(session, "Hi"))
    received = caught.value.rcvd
    if isinstance(fault, Close):
        assert received is not None
        assert (received.code, received.reason) == (4401, "the key has expired")
    else:
        assert received is None
