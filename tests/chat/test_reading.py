"""Reading a reply: one reader, cancellable anywhere, behind a bounded buffer."""

# pyright: reportPrivateUsage=false
from __future__ import annotations

import gc
from collections import Counter

import pytest
import trio
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

from gz_trio import APIConnectionError, Delta, GatewayError, Reply, RetryPolicy, open_gateway
from gz_trio._chat.buffer import BUFFER_BYTES, CHECKPOINT_EVERY, EventBuffer
from gz_trio.testing import FakeGateway, Stall, Status
from tests.chats import BODY, Ticks, open_over

LONG = [f"{number:<1000}" for number in range(2000)]


async def read_text(reply: Reply) -> str:
    return "".join([delta.text async for delta in reply])


async def test_cancelling_a_read_loses_nothing_and_keeps_the_connection(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(tokens=50, token_interval=1.0)
    text = ""
    async with open_over(fake) as gateway, gateway.stream(BODY) as reply:
        for _ in range(1000):
            with trio.move_on_after(0.3):
                try:
                    text += (await anext(reply)).text
                except StopAsyncIteration:
                    break
    assert text == reply.text == fake.intended(BODY)
    assert len(fake.requests) == 1
    assert fake.requests[0].complete


async def test_a_read_that_is_cancelled_with_deltas_in_the_buffer_takes_none(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(tokens=3)
    async with open_over(fake) as gateway, gateway.stream(BODY) as reply:
        await wait_all_tasks_blocked()
        for _ in range(3 * CHECKPOINT_EVERY):
            with trio.CancelScope() as scope:
                scope.cancel()
                await anext(reply)
            assert scope.cancelled_caught
        assert await read_text(reply) == fake.intended(BODY)


async def test_what_is_on_its_way_to_a_reader_that_is_cancelled_then_reaches_it() -> None:
    buffer = EventBuffer()
    read: list[object] = []

    async def reader() -> None:
        with scope:
            read.append(await buffer.get())

    one, two, three = (Delta(text=text, raw=b"12345") for text in ("one", "two", "three"))
    for put in (lambda: buffer.put(one, 1, 5), lambda: buffer.put_texts((one, two, three), 1)):
        scope = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader)
            await wait_all_tasks_blocked()
            put()
            scope.cancel()
    assert read == [one, one]
    assert buffer.buffered_bytes == 10
    assert [await buffer.get(), await buffer.get()] == [two, three]
    assert buffer.empty
    assert buffer.buffered_bytes == 0


async def test_a_cancelled_event_read_loses_no_event(autojump_clock: MockClock) -> None:
    fake = FakeGateway(tokens=3, token_interval=1.0)
    fake.fault(Status(503))
    async with open_over(fake) as gateway, gateway.stream(BODY) as reply:
        events = reply.events()
        kinds: list[str] = []
        while kinds[-1:] != ["Finished"]:
            with trio.move_on_after(0.1):
                kinds.append(type(await anext(events)).__name__)
    assert [kind for kind in kinds if kind != "Delta"] == ["Paused", "Resumed", "Finished"]
    assert reply.text == fake.intended(BODY)


async def test_leaving_the_block_closes_the_connection(autojump_clock: MockClock) -> None:
    fake = FakeGateway(tokens=1000, token_interval=1.0)
    async with open_over(fake) as gateway:
        async with gateway.stream(BODY) as reply:
            await anext(reply)
            assert fake.open_streams == 1
        await wait_all_tasks_blocked()
        assert fake.open_streams == 0
        assert fake.requests[0].tokens < 5


@pytest.mark.parametrize("stalls", [None, 0, 3])
async def test_leaving_the_block_takes_no_time_whatever_the_server_does(
    autojump_clock: MockClock, stalls: int | None
) -> None:
    fake = FakeGateway()
    fake.fault(Stall(), token=stalls)
    async with open_over(fake) as gateway:
        async with gateway.stream(BODY):
            await trio.sleep(1)
        assert trio.current_time() == 1


async def test_a_connection_whose_reply_was_whole_is_used_again(
    autojump_clock: MockClock,
) -> None:
    connections = 0
    fake = FakeGateway()
    serve = fake.serve_stream

    async def counted(stream: trio.abc.Stream) -> None:
        nonlocal connections
        connections += 1
        await serve(stream)

    fake.serve_stream = counted  # type: ignore[method-assign]
    async with open_over(fake) as gateway:
        for _ in range(3):
            async with gateway.stream(BODY) as reply:
                assert await read_text(reply) == fake.intended(BODY)
    assert connections == 1


async def test_a_second_reader_gets_busy_resource_error(autojump_clock: MockClock) -> None:
    fake = FakeGateway(token_interval=1.0)
    async with open_over(fake) as gateway, gateway.stream(BODY) as reply:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_text, reply)
            await trio.sleep(2.5)
            for read in (reply, reply.events()):
                with pytest.raises(trio.BusyResourceError, match="another task is reading"):
                    await anext(read)
        # The first reader was not disturbed.
        assert reply.text == fake.intended(BODY)


async def test_a_reader_that_waits_when_the_block_is_left_gets_closed_resource_error(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(token_interval=100.0)
    async with open_over(fake) as gateway, trio.open_nursery() as nursery:

        async def read(reply: Reply) -> None:
            with pytest.raises(trio.ClosedResourceError):
                await read_text(reply)
            with pytest.raises(trio.ClosedResourceError):  # and again
                await anext(reply)

        async with gateway.stream(BODY) as reply:
            nursery.start_soon(read, reply)
            await trio.sleep(1)


async def test_reading_after_the_end_ends_again(autojump_clock: MockClock) -> None:
    fake = FakeGateway()
    async with open_over(fake) as gateway:
        async with gateway.stream(BODY) as reply:
            await read_text(reply)
            for _ in range(3):
                with pytest.raises(StopAsyncIteration):
                    await anext(reply)
        with pytest.raises(StopAsyncIteration):  # outside the block, too
            await anext(reply.events())
    assert reply.complete


async def test_reading_after_an_error_raises_it_again_as_an_exception_of_its_own(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway()
    fake.fault(Status(400))
    errors: list[GatewayError] = []
    async with open_over(fake) as gateway, gateway.stream(BODY) as reply:
        for _ in range(3):
            with pytest.raises(GatewayError) as caught:
                await anext(reply)
            errors.append(caught.value)
    assert len({id(error) for error in errors}) == 3
    assert len({(type(error), str(error), error.status) for error in errors}) == 1


async def test_what_came_before_an_error_is_read_first(autojump_clock: MockClock) -> None:
    fake = FakeGateway()
    fake.fault(Stall(), token=5, times=None)
    async with open_over(fake, retry=RetryPolicy(max_retries=0)) as gateway:
        async with gateway.stream(BODY) as reply:
            await trio.sleep(1000)  # it has failed long ago
            with pytest.raises(GatewayError) as caught:
                await read_text(reply)
        assert caught.value.partial == reply.text
        assert fake.intended(BODY).startswith(reply.text)
        assert reply.text


async def test_a_slow_reader_stops_the_server_and_gets_everything(
    autojump_clock: MockClock,
) -> None:
    """Over TCP the kernel holds some; in memory nothing does, so the buffer is looked at."""
    fake = FakeGateway(answer=lambda _, __: LONG)
    async with open_over(fake) as gateway, gateway.stream(BODY) as reply:
        await wait_all_tasks_blocked()
        # One read from the connection may overshoot, by 64 KiB at most.
        assert BUFFER_BYTES <= reply._buffer.buffered_bytes <= BUFFER_BYTES + 65_536
        assert await read_text(reply) == "".join(LONG)
        assert reply._buffer.buffered_bytes == 0


async def test_over_tcp_a_slow_reader_stops_the_server() -> None:
    fake = FakeGateway(answer=lambda _, __: [f"{number:<100000}" for number in range(200)])
    async with (
        fake.listen() as base_url,
        open_gateway(base_url, fake.key) as gateway,
        gateway.stream(BODY) as reply,
    ):
        await anext(reply)
        await wait_all_tasks_blocked(0.05)  # the server too, in its send
        assert fake.requests[0].tokens < 150
        async for _ in reply:
            pass
    assert len(reply.text) == 200 * 100_000


async def test_every_read_is_a_checkpoint(autojump_clock: MockClock) -> None:
    fake = FakeGateway(tokens=2, token_interval=1.0)
    async with open_over(fake) as gateway, gateway.stream(BODY) as reply:
        with assert_checkpoints():  # it waits
            await anext(reply)
        await read_text(reply)
        with assert_checkpoints(), pytest.raises(StopAsyncIteration):
            await anext(reply)
    fake.fault(Status(400))
    async with open_over(fake) as gateway, gateway.stream(BODY) as reply:
        for _ in range(2):
            with assert_checkpoints(), pytest.raises(GatewayError):
                await anext(reply)


async def test_with_deltas_in_the_buffer_others_run_at_least_every_64_deltas(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(answer=lambda _, __: [f"{number} " for number in range(1000)])
    ticks = Ticks()
    in_tick: Counter[int] = Counter()
    async with open_over(fake) as gateway, gateway.stream(BODY) as reply:
        await wait_all_tasks_blocked()  # all of it is in the buffer
        trio.lowlevel.add_instrument(ticks)
        async for _ in reply:
            in_tick[ticks.now] += 1
        trio.lowlevel.remove_instrument(ticks)
    assert max(in_tick.values()) == CHECKPOINT_EVERY == 64  # and not at every delta, either


async def test_the_iterator_and_the_events_read_one_stream(autojump_clock: MockClock) -> None:
    fake = FakeGateway(tokens=4)
    async with open_over(fake) as gateway, gateway.stream(BODY) as reply:
        text = (await anext(reply)).text
        async for event in reply.events():
            if isinstance(event, Delta):
                text += event.text
    assert text == reply.text == fake.intended(BODY)


async def test_reply_text_is_what_was_read_and_not_what_was_received(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(tokens=4)
    async with open_over(fake) as gateway, gateway.stream(BODY) as reply:
        await wait_all_tasks_blocked()
        text = ""
        assert reply.text == text
        async for delta in reply:
            text += delta.text
            assert reply.text == text


async def test_an_iteration_that_is_abandoned_leaves_nothing_for_the_garbage_collector(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(token_interval=1.0)
    async with open_over(fake) as gateway:
        async with gateway.stream(BODY) as reply:
            async for _ in reply:
                break
            events = reply.events()
            await anext(events)
            del events
        del reply
        gc.collect()  # an async generator that is collected here is an error, by filterwarnings
        await wait_all_tasks_blocked()
    assert fake.open_streams == 0


async def test_what_a_reply_shows_of_itself(autojump_clock: MockClock) -> None:
    fake = FakeGateway(tokens=3)
    async with open_over(fake) as gateway, gateway.stream(BODY) as reply:
        assert repr(reply) == "<Reply model='fake-model' streaming, 0 characters>"
        text = await read_text(reply)
    assert repr(reply) == f"<Reply model='fake-model' ended, {len(text)} characters>"


async def test_after_a_crash_the_reader_gets_a_connection_error_and_the_block_the_reason(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway()
    fake.fault(Status(429, headers={"retry-after": "Fri, 31 Dec 2100 23:59:59 GMT"}))

    def broken_clock() -> float:
        raise ZeroDivisionError("the clock has a bug")

    async with (
        fake.http_client() as client,
        open_gateway(fake.base_url, fake.key, http_client=client, now=broken_clock) as gateway,
    ):
        with pytest.raises(APIConnectionError, match="a background task failed") as caught:
            async with gateway.stream(BODY) as reply:
                await read_text(reply)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
