"""The fake gateway's keys: which are accepted, how they die, and what is counted."""

from typing import Literal, cast

import pytest
import trio
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from gz_trio._protocol.errors import (
    APIConnectionError,
    AuthenticationError,
    GatewayError,
    InternalServerError,
    PermissionDeniedError,
    RateLimitError,
)
from gz_trio._protocol.keys import Key
from gz_trio.testing import Cut, Drip, FakeGateway, Fault, Reset, Stall, Status
from tests.testing.fake_gateway_wire import JSON, Connect, Wire, chat, in_memory

SIGN_IN: JSON = {"user": {"id": "u1"}, "token": "identity-token", "email": "a@example.com"}


@pytest.mark.parametrize(
    ("headers", "detail"),
    [
        ({}, "Authorization header is required"),
        ({"authorization": "Bearer"}, "API key is required"),
        ({"authorization": "Basic gw_test_1"}, "API key is required"),
        ({"x-api-key": ""}, "API key is required"),
        ({"authorization": "Bearer gw_wrong"}, "Invalid API key"),
        ({"api-key": "gw_wrong"}, "Invalid API key"),
    ],
)
async def test_a_request_without_a_valid_key_is_rejected(
    headers: dict[str, str], detail: str
) -> None:
    gateway = FakeGateway()
    async with in_memory(gateway) as wire:
        answer = await wire.ask(chat(), headers=headers)
    assert (answer.status, answer.json) == (401, {"detail": detail})
    assert answer.headers["www-authenticate"] == "Bearer"
    assert gateway.rejected == 1
    assert gateway.requests[0].generation is None


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer gw_test_1"},
        {"Authorization": "bearer gw_test_1"},
        {"x-api-key": "gw_test_1"},
        {"api-key": "gw_test_1"},
    ],
)
async def test_the_key_is_taken_from_any_of_three_headers(headers: dict[str, str]) -> None:
    gateway = FakeGateway()
    async with in_memory(gateway) as wire:
        assert (await wire.ask(chat(), headers=headers)).status == 200


async def test_a_rotation_makes_the_next_key_the_only_one() -> None:
    gateway = FakeGateway(key="gw_live_1")
    async with in_memory(gateway) as wire:
        assert (gateway.rotate(), gateway.key, gateway.generation) == ("gw_live_2", "gw_live_2", 2)
        old = await wire.ask(chat(), "gw_live_1")
        new = await wire.ask(chat(), "gw_live_2")
    assert (old.status, old.json) == (401, {"detail": "API key is inactive or expired"})
    assert new.status == 200
    assert [request.generation for request in gateway.requests] == [1, 2]


def test_made_up_keys_are_always_new() -> None:
    gateway = FakeGateway(key="sk-abc")
    keys = [gateway.key, gateway.rotate(), gateway.rotate("sk-abc_4"), gateway.rotate()]
    assert len(set(keys)) == 4


@pytest.mark.parametrize("key", ["", " ", "a b", "a\n", "gw_test_1"])
def test_a_key_that_cannot_be_new_or_sent_is_refused(key: str) -> None:
    gateway = FakeGateway(key="gw_test_1")
    with pytest.raises(ValueError, match="key"):
        gateway.rotate(key)
    assert (gateway.key, gateway.generation) == ("gw_test_1", 1)


def test_the_first_key_must_be_one_that_can_be_sent() -> None:
    with pytest.raises(ValueError, match="newline"):
        FakeGateway(key="gw_1\n")


@pytest.mark.parametrize("kill", [FakeGateway.rotate, FakeGateway.expire])
@pytest.mark.parametrize("on_rotation", ["frame", "cut", "ignore"])
async def test_a_stream_whose_key_dies_ends_as_on_rotation_says_without_waiting_for_its_token(
    kill: object,
    on_rotation: Literal["frame", "cut", "ignore"],
    autojump_clock: trio.testing.MockClock,
) -> None:
    gateway = FakeGateway(tokens=3, token_interval=60, on_rotation=on_rotation)
    async with in_memory(gateway) as wire:
        await wire.send(chat(), gateway.key)
        await trio.sleep(61)
        assert gateway.open_streams == 1
        (gateway.rotate if kill is FakeGateway.rotate else gateway.expire)()
        answer = await wire.answer()
        seconds = trio.current_time()
        assert gateway.open_streams == 0
    whole = gateway.intended(chat())
    assert gateway.requests[0].complete == (on_rotation == "ignore")
    match on_rotation:
        case "frame":
            assert seconds == 61
            assert answer.error["type"] == "auth_error"
            assert answer.error["status"] == 401
            assert answer.data[-1] == "[DONE]"
            assert whole.startswith(answer.text())
            assert (gateway.requests[0].tokens, gateway.auth_errors, gateway.rejected) == (2, 1, 0)
        case "cut":
            assert seconds == 61
            assert answer.end == "cut"
            assert whole.startswith(answer.text())
            assert gateway.auth_errors == 0
        case "ignore":
            assert seconds == 120
            assert answer.text() == whole


@pytest.mark.parametrize("token_interval", [0, 1])
async def test_a_rotation_hits_streams_over_tcp(token_interval: float) -> None:
    # So many tokens that they are under way still, waiting for time or for the network.
    gateway = FakeGateway(tokens=100_000, token_interval=token_interval)
    async with gateway.http_client() as client:
        headers = {"authorization": f"Bearer {gateway.key}"}
        async with client.stream(
            "POST", "/chat/completions", json=chat(), headers=headers
        ) as response:
            body = ""
            async for text in response.aiter_text():
                if not body:
                    gateway.rotate()
                body += text
    assert '"type":"auth_error"' in body
    assert body.endswith("data: [DONE]\n\n")
    assert gateway.requests[0].tokens < 100_000


async def test_a_stream_that_stalls_for_ever_still_ends_with_its_key(
    autojump_clock: trio.testing.MockClock,
) -> None:
    gateway = FakeGateway()
    gateway.fault(Stall(), token=2)
    async with in_memory(gateway) as wire:
        await wire.send(chat(), gateway.key)
        await wait_all_tasks_blocked()
        gateway.rotate()
        answer = await wire.answer()
    assert answer.error["type"] == "auth_error"
    assert gateway.requests[0].tokens == 2


async def test_a_frame_that_drips_is_sent_whole_before_the_frame_of_the_dead_key(
    autojump_clock: trio.testing.MockClock,
) -> None:
    for seconds in range(1, 40):
        gateway = FakeGateway()
        gateway.fault(Drip(1.0), token=1)
        async with in_memory(gateway) as wire:
            await wire.send(chat(), gateway.key)
            await trio.sleep(seconds + 0.5)
            gateway.rotate()
            answer = await wire.answer()
        assert answer.error["type"] == "auth_error"
        assert gateway.intended(chat()).startswith(answer.text())


@pytest.mark.parametrize("fault", [Stall(), Drip(1e6), None])
async def test_a_key_that_dies_while_the_stream_sends_ends_it_before_its_next_wait(
    fault: Fault | None, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    gateway = FakeGateway(token_interval=1e6)
    if fault is not None:
        gateway.fault(fault, token=0)
    ours, theirs = memory_stream_pair()
    pump = ours.send_stream.send_all_hook

    async def rotate_and_pump() -> None:
        gateway.rotate()
        ours.send_stream.send_all_hook = pump
        assert pump is not None
        await pump()

    ours.send_stream.send_all_hook = rotate_and_pump
    nursery.start_soon(gateway.serve_stream, ours)
    async with theirs:
        with trio.fail_after(1e5):
            answer = await Wire(theirs).ask(chat(), "gw_test_1")
    assert answer.error["type"] == "auth_error"
    assert trio.current_time() == 0


async def test_a_stream_that_is_over_is_not_hit_by_a_rotation() -> None:
    gateway = FakeGateway()
    async with in_memory(gateway) as wire:
        answer = await wire.ask(chat(), gateway.key)
        gateway.rotate()
    assert "error" not in answer.chunks[-1]
    assert (gateway.auth_errors, gateway.open_streams) == (0, 0)


async def test_a_key_that_dies_before_the_request_was_looked_at_is_rejected(
    autojump_clock: trio.testing.MockClock,
) -> None:
    gateway = FakeGateway()
    gateway.fault(Stall(10))
    async with in_memory(gateway) as wire:
        await wire.send(chat(), gateway.key)
        await trio.sleep(5)
        gateway.rotate()
        assert (await wire.answer()).status == 401


class TestSigningIn:
    """`POST /auth`, and `refresh`, which is the same in the process."""

    async def test_post_auth_answers_the_valid_key(self, connect: Connect) -> None:
        gateway = FakeGateway()
        async with connect(gateway) as wire:
            answer = await wire.ask(SIGN_IN, path="/auth")
        assert answer.status == 200
        assert answer.json["api_key"] == gateway.key == "gw_test_1"
        assert (answer.json["success"], answer.json["email"]) == (True, "a@example.com")
        assert (gateway.refreshes, gateway.rejected) == (1, 0)

    async def test_post_auth_issues_a_new_key_for_one_that_expired(self) -> None:
        gateway = FakeGateway()
        gateway.expire()
        async with in_memory(gateway) as wire:
            assert (await wire.ask(chat(), "gw_test_1")).status == 401
            issued = (await wire.ask(SIGN_IN, path="/auth")).json["api_key"]
            again = (await wire.ask(SIGN_IN, path="/auth")).json["api_key"]
            assert issued == again == gateway.key == "gw_test_2"
            assert (await wire.ask(chat(), gateway.key)).status == 200
        assert gateway.generation == 2

    async def test_refresh_does_the_same(self) -> None:
        gateway = FakeGateway()
        assert await gateway.refresh() == "gw_test_1"
        gateway.expire()
        assert await gateway.refresh(Key("gw_test_1")) == "gw_test_2" == gateway.key
        assert gateway.refreshes == 2
        assert gateway.requests == []

    async def test_both_take_auth_latency(self, autojump_clock: trio.testing.MockClock) -> None:
        gateway = FakeGateway(auth_latency=7)
        async with in_memory(gateway) as wire:
            await wire.ask(SIGN_IN, path="/auth")
        assert trio.current_time() == 7
        await gateway.refresh()
        assert trio.current_time() == 14

    async def test_both_can_be_refused(self) -> None:
        gateway = FakeGateway()
        gateway.refuse_refresh = True
        gateway.expire()
        async with in_memory(gateway) as wire:
            answer = await wire.ask(SIGN_IN, path="/auth")
        assert answer.status == 401
        assert set(answer.json) == {"detail"}
        with pytest.raises(AuthenticationError) as caught:
            await gateway.refresh()
        assert caught.value.status == 401
        assert (gateway.refreshes, gateway.rejected, gateway.generation) == (2, 0, 1)

    @pytest.mark.parametrize(
        ("fault", "error"),
        [
            (Status(401), AuthenticationError),
            (Status(403), PermissionDeniedError),
            (Status(429), RateLimitError),
            (Status(503), InternalServerError),
            (Cut(), APIConnectionError),
            (Reset(), APIConnectionError),
        ],
    )
    async def test_faults_of_auth_strike_refresh_as_exceptions(
        self, fault: Fault, error: type[GatewayError]
    ) -> None:
        gateway = FakeGateway()
        gateway.fault(fault, path="/auth")
        with pytest.raises(error) as caught:
            await gateway.refresh()
        assert type(caught.value) is error
        assert await gateway.refresh() == gateway.key

    async def test_a_stall_of_auth_strikes_refresh_too(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        gateway = FakeGateway()
        gateway.fault(Stall(5), path="/auth", request=2)
        await gateway.refresh()
        await gateway.refresh()
        assert trio.current_time() == 5


class TestTheLedger:
    """What the gateway tells about what it saw."""

    async def test_one_entry_for_each_request_says_what_came_of_it(self) -> None:
        gateway = FakeGateway(tokens=4)
        fault = Status(503)
        gateway.fault(fault, request=2)
        async with in_memory(gateway) as wire:
            await wire.ask(chat("one"), gateway.key, headers={"x-title": "test"})
            await wire.ask(chat("two"), gateway.key)
            await wire.ask(None, gateway.key, method="GET", path="/v1/models")
        one, two, models = gateway.requests
        assert (one.method, one.path, one.body) == ("POST", "/v1/chat/completions", chat("one"))
        assert one.headers["x-title"] == "test"
        assert (one.status, one.tokens, one.complete, one.faults) == (200, 4, True, [])
        assert (two.status, two.tokens, two.complete, two.faults) == (503, 0, False, [fault])
        assert (models.method, models.body, models.status) == ("GET", None, 200)

    async def test_it_holds_no_secret_and_the_repr_none_of_the_body(self) -> None:
        gateway = FakeGateway(key="gw_secret_1")
        gateway.fault(Status(200, body={"api_key": "gw_secret_2"}), path="/auth")
        secret = {"x-api-key": "gw_secret_x", "api-key": "gw_secret_a", "cookie": "gw_secret_c"}
        async with in_memory(gateway) as wire:
            await wire.ask(chat(), gateway.key, headers=secret)
            await wire.ask({"token": "gw_secret_t"}, path="/auth")
        assert "gw_secret" not in repr(gateway) + repr(gateway.requests)
        headers = gateway.requests[0].headers
        assert "gw_secret" not in repr(headers)
        assert headers["authorization"] == headers["x-api-key"] == "[secret]"

    async def test_it_can_be_left_out(self) -> None:
        gateway = FakeGateway(ledger=False)
        async with in_memory(gateway) as wire:
            await wire.ask(chat(), "wrong")
        assert (gateway.requests, gateway.rejected) == ([], 1)

    async def test_a_callable_is_told_of_each_request_when_it_is_over(self) -> None:
        over: list[tuple[int | None, int, bool]] = []
        gateway = FakeGateway(
            tokens=3,
            on_request=lambda seen: over.append((seen.status, seen.tokens, seen.complete)),
        )
        gateway.fault(Cut(), request=2, token=1)
        for key in (gateway.key, gateway.key, "wrong"):
            async with in_memory(gateway) as wire:
                await wire.ask(chat(), key)
        assert over == [(200, 3, True), (200, 1, False), (401, 0, False)]

    async def test_answers_carry_an_id_that_their_error_names(self) -> None:
        gateway = FakeGateway()
        gateway.fault(Status(500))
        async with in_memory(gateway) as wire:
            answer = await wire.ask(chat(), gateway.key)
        assert answer.headers["x-request-id"] == "req_1"
        assert cast("JSON", answer.json["error"])["request_id"] == "req_1"
