"""The fake gateway's accounts: each has a key of its own, which lives and dies alone."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import pytest
import trio

import gz_trio
from gz_trio.testing import FakeGateway, Stall, Status
from tests.testing.fake_gateway_wire import Wire, chat, in_memory

ALICE, BOB = "token-of-alice", "token-of-bob"


async def signed_in(wire: Wire, token: object) -> object:
    return (await wire.ask({"token": token}, path="/auth")).json["api_key"]


async def test_signing_in_with_an_account_s_token_gives_its_key_any_other_the_default_one_s() -> (
    None
):
    gateway = FakeGateway()
    alice, bob = gateway.add_account(ALICE), gateway.add_account(BOB)
    async with in_memory(gateway) as wire:
        keys = [await signed_in(wire, token) for token in (ALICE, BOB, "other", None, 7, [ALICE])]
    assert keys == [alice, bob, *["gw_test_1"] * 4]
    assert len({alice, bob, gateway.key}) == 3
    assert gateway.refreshes == 6


async def test_the_keys_of_all_accounts_are_valid_at_once() -> None:
    gateway = FakeGateway()
    keys = [gateway.key, gateway.add_account(ALICE), gateway.add_account(BOB)]
    async with in_memory(gateway) as wire:
        statuses = [(await wire.ask(chat(), key)).status for key in keys]
    assert statuses == [200, 200, 200]


@pytest.mark.parametrize("kill", [FakeGateway.rotate, FakeGateway.expire])
@pytest.mark.parametrize("account", [None, ALICE, BOB])
async def test_a_key_dies_for_its_own_account_alone(
    kill: Callable[..., object], account: str | None
) -> None:
    gateway = FakeGateway()
    keys = {None: gateway.key, ALICE: gateway.add_account(ALICE), BOB: gateway.add_account(BOB)}
    kill(gateway, account=account)
    async with in_memory(gateway) as wire:
        statuses = {owner: (await wire.ask(chat(), key)).status for owner, key in keys.items()}
        assert statuses == {owner: 401 if owner == account else 200 for owner in keys}
        new = await signed_in(wire, account)
        assert new not in keys.values()
        assert (await wire.ask(chat(), str(new))).status == 200


@pytest.mark.parametrize("kill", [FakeGateway.rotate, FakeGateway.expire])
@pytest.mark.parametrize("on_rotation", ["frame", "cut", "ignore"])
async def test_streams_of_the_account_whose_key_dies_end_and_all_others_go_on(
    kill: Callable[..., object],
    on_rotation: Literal["frame", "cut", "ignore"],
    autojump_clock: trio.testing.MockClock,
) -> None:
    gateway = FakeGateway(tokens=3, token_interval=60, on_rotation=on_rotation)
    keys = [gateway.key, gateway.add_account(ALICE), gateway.add_account(BOB)]
    async with in_memory(gateway) as default, in_memory(gateway) as a, in_memory(gateway) as b:
        for wire, key in zip((default, a, b), keys, strict=True):
            await wire.send(chat(), key)
        await trio.sleep(90)
        assert gateway.open_streams == 3
        kill(gateway, account=ALICE)
        texts = [(await wire.answer()).text() for wire in (default, a, b)]
    intended = gateway.intended(chat())
    assert texts[0] == texts[2] == intended
    assert (texts[1] == intended) is (on_rotation == "ignore")
    assert gateway.open_streams == 0


async def test_so_do_turns_on_a_websocket() -> None:
    gateway = FakeGateway()
    gateway.fault(Stall(), token=1, times=None, path="/v1/responses (websocket)")
    open_session = partial(
        gz_trio.open_session, model="fake-model", api="responses", transport="websocket"
    )
    async with (
        gateway.listen() as base_url,
        open_session(base_url, key=gateway.add_account(ALICE)) as alice,
        open_session(base_url, key=gateway.add_account(BOB)) as bob,
        alice.stream("Hello") as to_alice,
        bob.stream("Hello") as to_bob,
    ):
        await anext(to_alice)
        await anext(to_bob)
        gateway.rotate(account=ALICE)
        with pytest.raises(gz_trio.AuthenticationError):
            async for _ in to_alice:
                pass
        assert gateway.open_streams == 1


async def test_generations_are_counted_within_the_account() -> None:
    gateway = FakeGateway()
    gateway.add_account(ALICE)
    gateway.fault(Status(503), generation=3)
    keys = [gateway.rotate(account=ALICE), gateway.rotate(account=ALICE), gateway.rotate()]
    async with in_memory(gateway) as wire:
        statuses = [(await wire.ask(chat(), key)).status for key in keys]
    assert statuses == [401, 503, 200]
    assert [seen.generation for seen in gateway.requests] == [2, 3, 2]
    assert gateway.generation == 2


def test_made_up_keys_are_new_over_all_accounts() -> None:
    gateway = FakeGateway("gw_test_account2_1")
    keys = [gateway.key, gateway.add_account(ALICE)]
    keys += [gateway.rotate(account=account) for account in (None, ALICE, None, ALICE)]
    assert len(set(keys)) == len(keys)


async def test_a_key_that_one_account_had_cannot_become_another_one_s() -> None:
    gateway = FakeGateway()
    alice = gateway.add_account(ALICE)
    with pytest.raises(ValueError, match="was valid before"):
        gateway.rotate(alice)
    async with in_memory(gateway) as wire:
        assert (await wire.ask(chat(), alice)).status == 200


@pytest.mark.parametrize("token", ["", " ", ALICE])
def test_an_account_needs_a_token_of_its_own(token: str) -> None:
    gateway = FakeGateway()
    gateway.add_account(ALICE)
    with pytest.raises(ValueError, match="token") as refused:
        gateway.add_account(token)
    assert ALICE not in str(refused.value)


@pytest.mark.parametrize("kill", [FakeGateway.rotate, FakeGateway.expire])
def test_an_account_that_nobody_made_has_no_key_to_die(kill: Callable[..., object]) -> None:
    gateway = FakeGateway()
    with pytest.raises(ValueError, match="there is no account") as refused:
        kill(gateway, account=BOB)
    assert BOB not in str(refused.value)
