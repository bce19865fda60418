"""A complete reply leaves nothing for the garbage collector, whose pauses make others late."""

import gc
from collections import Counter
from collections.abc import Awaitable, Callable, Generator

import pytest

from gz_trio import Gateway, open_gateway
from gz_trio.testing import FakeGateway

OURS = ("gz_trio._chat", "gz_trio._protocol", "gz_trio._transport", "gz_trio._auth")


@pytest.fixture
def garbage() -> Generator[Counter[str]]:
    """After the test: the kinds of our objects that only the collector could find."""
    found: Counter[str] = Counter()
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield found
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def collect(found: Counter[str]) -> Counter[str]:
    gc.collect()
    kinds = Counter(f"{type(each).__module__}.{type(each).__name__}" for each in gc.garbage)
    found.update({kind: count for kind, count in kinds.items() if kind.startswith(OURS)})
    return found


async def drained(gateway: Gateway) -> None:
    async with gateway.stream({"model": "fake-model", "messages": []}) as reply:
        await reply.drain(lambda _delta, _arrived: None)


async def iterated(gateway: Gateway) -> None:
    async with gateway.stream({"model": "fake-model", "messages": []}) as reply:
        async for _ in reply:
            pass


@pytest.mark.parametrize("read", [drained, iterated])
async def test_a_reply_that_was_read_to_its_end_leaves_no_cycles(
    read: Callable[[Gateway], Awaitable[None]], garbage: Counter[str]
) -> None:
    fake = FakeGateway()
    async with fake.listen() as base_url, open_gateway(base_url, fake.key) as gateway:
        await read(gateway)  # What is made once is no garbage yet.
        gc.collect()
        gc.garbage.clear()
        for _ in range(5):
            await read(gateway)
        assert collect(garbage) == {}
