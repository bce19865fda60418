"""Many processes that share one key: one refresh for all of them, and every reply whole."""

from __future__ import annotations

import json
import os

import pytest
import trio

from gz_trio import Key, Record
from gz_trio.testing import FakeGateway
from tests.children import open_child, store_at

pytestmark = pytest.mark.skipif(os.name != "posix", reason="one process for each is slow elsewhere")

PROCESSES, SESSIONS = 16, 50

Told = list[tuple[dict[str, object], str, str]]


async def chat_in_processes(fake: FakeGateway, place: str) -> Told:
    """What all sessions of all processes tell; the key dies when each of them has some text."""
    told: Told = []
    begun = 0

    async def process(number: int) -> None:
        nonlocal begun
        async with open_child("tests.chat.child", base_url, place, number, SESSIONS) as child:
            assert await child.line() == "begun"
            begun += 1
            if begun == PROCESSES:
                fake.expire()
            told.extend(json.loads(await child.line()))

    await store_at(place).replace(0, Record(epoch=1, key=Key(fake.key)))
    async with fake.listen() as base_url, trio.open_nursery() as nursery:
        for number in range(PROCESSES):
            nursery.start_soon(process, number)
    return told


async def test_sixteen_processes_make_one_refresh_and_every_reply_is_whole(place: str) -> None:
    fake = FakeGateway(tokens=60, token_interval=0.2)
    told = await chat_in_processes(fake, place)
    assert len(told) == PROCESSES * SESSIONS
    for body, text, error in told:
        assert error == ""
        assert text == fake.intended(body)
    assert fake.refreshes == 1
    record = await store_at(place).load()
    assert record.key is not None
    assert (record.version, record.key.value) == (2, fake.key)


async def test_a_refusal_is_one_call_and_every_process_is_told(place: str) -> None:
    fake = FakeGateway(tokens=60, token_interval=0.2)
    fake.refuse_refresh = True
    told = await chat_in_processes(fake, place)
    assert len(told) == PROCESSES * SESSIONS
    assert {error for _, _, error in told} == {
        "RefreshError: Authentication failed after refresh attempt. Please log in again."
    }
    assert fake.refreshes == 1
    assert (await store_at(place).load()).refused
