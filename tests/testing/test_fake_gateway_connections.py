"""The fake gateway's connections: how they are served, and that nothing of them stays behind."""

import json
import os
import socket
import struct
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import httpx
import httpx2
import pytest
import trio
import trio.lowlevel
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from gz_trio import GatewayError
from gz_trio.testing import Cut, FakeGateway, Reset, Stall, Status
from tests.testing.fake_gateway_wire import CHAT, Connect, Wire, chat, in_memory, over_tcp

Open = Callable[[FakeGateway], AbstractAsyncContextManager[object]]

OPEN: list[Open] = [FakeGateway.listen, FakeGateway.connect, FakeGateway.http_client]


async def test_a_connection_serves_one_request_after_another(connect: Connect) -> None:
    gateway = FakeGateway()
    async with connect(gateway) as wire:
        assert (await wire.ask(chat(), gateway.key)).text() == gateway.intended(chat())
        assert (await wire.ask(chat(), "wrong")).status == 401
        assert (await wire.ask(chat(stream=False), gateway.key)).status == 200
        assert (await wire.ask({}, path="/auth")).status == 200


async def test_requests_may_be_sent_ahead(connect: Connect) -> None:
    gateway = FakeGateway()
    content = json.dumps(chat()).encode()
    request = (
        f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {gateway.key}\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    ).encode() + content
    last = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    async with connect(gateway) as wire:
        await wire.stream.send_all(request + request[:50])
        await trio.lowlevel.checkpoint()
        await wire.stream.send_all(request[50:] + last)
        received = b"".join([bytes(data) async for data in wire.stream])
    assert received.count(b"HTTP/1.1 200") == received.count(b"data: [DONE]") == 2
    assert received.count(b"HTTP/1.1 404") == 1
    assert [request.complete for request in gateway.requests] == [True, True, False]


async def test_what_is_not_http_gets_400_and_the_connection_is_closed(connect: Connect) -> None:
    async with connect(FakeGateway()) as wire:
        await wire.stream.send_all(b"\x16\x03\x01 hello\r\n\r\n")
        received = b"".join([bytes(data) async for data in wire.stream])
    assert received.startswith(b"HTTP/1.1 400 ")


async def test_a_client_of_http_1_0_reads_until_the_end_of_the_connection() -> None:
    gateway = FakeGateway()
    content = json.dumps(chat()).encode()
    async with gateway.connect() as stream:
        await stream.send_all(
            f"POST {CHAT} HTTP/1.0\r\nX-Api-Key: {gateway.key}\r\n"
            f"Content-Length: {len(content)}\r\n\r\n".encode()
            + content
        )
        head, _, body = b"".join([bytes(data) async for data in stream]).partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert body.endswith(b"data: [DONE]\n\n")


async def test_a_client_that_waits_for_100_continue_gets_it() -> None:
    gateway = FakeGateway()
    async with gateway.connect() as stream:
        await stream.send_all(
            b"POST /auth HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
        )
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 100 ")
        await stream.send_all(b"{}")
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 200 ")


async def test_head_is_answered_without_a_body() -> None:
    gateway = FakeGateway()
    async with in_memory(gateway) as wire:
        answer = await wire.ask(None, gateway.key, method="HEAD", path="/v1/models")
        assert (answer.status, answer.body) == (405, b"")
        assert (await wire.ask(chat(), gateway.key)).status == 200


async def test_any_trio_stream_can_be_served(nursery: trio.Nursery) -> None:
    gateway = FakeGateway()
    ours, theirs = memory_stream_pair()
    nursery.start_soon(gateway.serve_stream, ours)
    async with theirs:
        answer = await Wire(theirs).ask(chat(), gateway.key)
    assert answer.text() == gateway.intended(chat())


@pytest.mark.parametrize("stall", [False, True])
async def test_a_client_that_hangs_up_is_noticed_at_once(connect: Connect, stall: bool) -> None:
    gateway = FakeGateway(tokens=100_000, token_interval=0.0 if not stall else 1e6)
    gateway.fault(Stall(), token=1 if stall else 100_001)
    async with connect(gateway) as wire:
        await wire.send(chat(), gateway.key)
        await wire.event()
        assert gateway.open_streams == 1
        await wire.stream.aclose()
        with trio.fail_after(10):
            while gateway.open_streams:
                await wait_all_tasks_blocked(0.001)
    assert not gateway.requests[0].complete


async def test_a_client_that_resets_its_connection_is_noticed_too() -> None:
    gateway = FakeGateway(token_interval=1e6)
    async with listening_streams(gateway, 2) as (wire, other):
        assert isinstance(wire.stream, trio.SocketStream)
        wire.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await wire.stream.aclose()
        with trio.fail_after(10):
            while gateway.open_streams == 2:
                await wait_all_tasks_blocked(0.001)
        gateway.rotate()
        assert (await other.answer()).error["type"] == "auth_error"


async def test_a_client_that_leaves_in_the_middle_of_its_request_is_let_go(
    connect: Connect,
) -> None:
    gateway = FakeGateway()
    async with connect(gateway) as wire:
        await wire.stream.send_all(b"POST /auth HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{")
        await wire.stream.aclose()
        await wait_all_tasks_blocked(0.01)
    assert gateway.requests == []


async def test_a_client_that_hangs_up_during_a_sign_in_does_not_get_the_key(
    autojump_clock: trio.testing.MockClock,
) -> None:
    gateway = FakeGateway(auth_latency=10)
    gateway.expire()
    async with in_memory(gateway) as wire:
        await wire.send({}, path="/auth")
        await trio.sleep(5)
        await wire.stream.aclose()
        await trio.sleep(10)
    assert (gateway.refreshes, gateway.generation) == (1, 1)


@pytest.mark.parametrize("module", [httpx, httpx2])
async def test_http_client_makes_clients_of_both_modules(module: object) -> None:
    gateway = FakeGateway()
    assert module in (httpx, httpx2)
    headers = {"authorization": f"Bearer {gateway.key}"}
    if module is httpx:
        async with gateway.http_client() as client:
            answer = await client.post("/chat/completions", json=chat(), headers=headers)
            text = answer.text
    else:
        async with gateway.http_client(httpx2) as client2:
            url = f"{gateway.base_url}/chat/completions"
            text = (await client2.post(url, json=chat(), headers=headers)).text
    assert text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Cut(), httpx.RemoteProtocolError),
        (Cut(5), httpx.RemoteProtocolError),
        (Reset(), httpx.ReadError),
        (Reset(5), httpx.ReadError),
    ],
)
async def test_faults_of_the_connection_come_out_of_httpx_as_they_do_over_tcp(
    fault: Cut | Reset, error: type[Exception]
) -> None:
    gateway = FakeGateway()
    gateway.fault(fault, times=2)
    headers = {"authorization": f"Bearer {gateway.key}"}
    async with gateway.http_client() as client:
        with pytest.raises(error):
            await client.post("/chat/completions", json=chat(), headers=headers)
    async with gateway.listen() as base_url, httpx.AsyncClient() as client:
        with pytest.raises(error):
            await client.post(f"{base_url}/chat/completions", json=chat(), headers=headers)


async def test_timeouts_of_the_client_are_kept_in_memory_too(
    autojump_clock: trio.testing.MockClock,
) -> None:
    gateway = FakeGateway()
    gateway.fault(Stall(), path="/v1/models")
    async with gateway.http_client() as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.get("/models", timeout=30)
    assert trio.current_time() == 30


async def test_the_network_in_memory_has_one_host() -> None:
    async with FakeGateway().http_client() as client:
        with pytest.raises(httpx.ConnectError, match=r"elsewhere\.test.*gateway\.test"):
            await client.get("http://elsewhere.test/v1/models")


async def test_connections_can_be_refused() -> None:
    gateway = FakeGateway()
    gateway.refuse_connections = True
    async with gateway.http_client() as client:
        with pytest.raises(httpx.ConnectError, match="refuses"):
            await client.get("/models")
        gateway.refuse_connections = False
        assert (await client.get("/models")).status_code == 401
    gateway.refuse_connections = True
    async with over_tcp(gateway) as wire:
        with pytest.raises(trio.BrokenResourceError):
            await wire.stream.receive_some()


class TestWhatComesOut:
    """Out of the blocks comes what went wrong in them, as itself."""

    @pytest.mark.parametrize("open_", OPEN)
    @pytest.mark.parametrize(
        "exception",
        [ValueError("mine"), ExceptionGroup("mine", [ValueError()]), KeyboardInterrupt()],
    )
    async def test_the_exception_of_the_block(self, open_: Open, exception: BaseException) -> None:
        with pytest.raises(BaseException) as caught:  # noqa: PT011  compared below
            async with open_(FakeGateway()):
                raise exception
        assert caught.value is exception
        assert caught.value.__context__ is None
        assert not hasattr(caught.value, "__notes__")

    @pytest.mark.parametrize("open_", OPEN)
    async def test_the_exception_of_the_block_during_a_cancellation(self, open_: Open) -> None:
        exception = ValueError("mine")

        async def block() -> None:
            with trio.CancelScope() as scope:
                async with open_(FakeGateway()):
                    scope.cancel()
                    raise exception

        with pytest.raises(ValueError, match="mine") as caught:
            await block()
        assert caught.value is exception

    @pytest.mark.parametrize("open_", OPEN)
    async def test_a_cancellation(self, open_: Open) -> None:
        with trio.move_on_after(0) as scope:
            async with open_(FakeGateway()):
                await trio.sleep_forever()
        assert scope.cancelled_caught

    @pytest.mark.parametrize("connect", [in_memory, over_tcp])
    async def test_the_exception_of_a_block_with_streams_under_way(self, connect: Connect) -> None:
        gateway = FakeGateway(tokens=100, token_interval=1000)
        exception = ValueError("mine")

        async def block() -> None:
            async with connect(gateway) as wire:
                await wire.send(chat(), gateway.key)
                await wire.event()
                raise exception

        with pytest.raises(ValueError, match="mine") as caught:
            await block()
        assert caught.value is exception
        assert gateway.open_streams == 0

    @pytest.mark.parametrize("bug", [ZeroDivisionError("bug"), KeyboardInterrupt("bug")])
    async def test_what_answer_raised(self, connect: Connect, bug: BaseException) -> None:
        """Ctrl-C as itself, a bug as the cause of an error that says whose it was."""

        def answer(body: Mapping[str, object], attempt: int) -> list[str]:
            raise bug

        gateway = FakeGateway(answer=answer)

        async def block() -> None:
            async with connect(gateway) as wire:
                await wire.send(chat(), gateway.key)
                await trio.sleep_forever()

        with pytest.raises((GatewayError, KeyboardInterrupt)) as caught:
            await block()
        assert bug is (caught.value.__cause__ or caught.value)

    async def test_what_answer_raised_as_a_note_on_what_the_block_made_of_it(self) -> None:
        def answer(body: Mapping[str, object], attempt: int) -> list[str]:
            raise ZeroDivisionError("bug")

        gateway = FakeGateway(answer=answer)

        async def block() -> None:
            async with gateway.http_client() as client:
                headers = {"authorization": f"Bearer {gateway.key}"}
                await client.post("/chat/completions", json=chat(), headers=headers)

        with pytest.raises(httpx.RemoteProtocolError) as caught:
            await block()
        (note,) = caught.value.__notes__
        assert note == "also, in the background of the fake gateway: ZeroDivisionError('bug')"

    async def test_a_port_that_is_taken(self) -> None:
        gateway = FakeGateway()
        async with gateway.listen() as base_url:
            port = int(base_url.removesuffix("/v1").rpartition(":")[2])
            with pytest.raises(OSError, match="Address already in use"):
                async with gateway.listen(port=port):
                    pass


@asynccontextmanager
async def listening_streams(gateway: FakeGateway, count: int) -> AsyncGenerator[list[Wire]]:
    """So many streams over TCP, each with its first token read."""
    async with gateway.listen() as base_url:
        port = int(base_url.removesuffix("/v1").rpartition(":")[2])
        wires = [Wire(await trio.open_tcp_stream("127.0.0.1", port)) for _ in range(count)]
        try:
            for number, wire in enumerate(wires):
                await wire.send(chat(f"Hello {number}"), gateway.key)
            for wire in wires:
                await wire.event()
            yield wires
        finally:
            for wire in wires:
                await trio.aclose_forcefully(wire.stream)


async def test_a_thousand_streams_over_tcp_meet_a_rotation() -> None:
    gateway = FakeGateway(token_interval=1e6)
    ends: list[tuple[object, object, bool]] = []

    async def read(wire: Wire, number: int) -> None:
        answer = await wire.answer()
        whole = gateway.intended(chat(f"Hello {number}"))
        ends.append((answer.end, answer.error["type"], whole.startswith(answer.text())))

    async with listening_streams(gateway, 1_000) as wires:
        assert gateway.open_streams == 1_000
        gateway.rotate()
        async with trio.open_nursery() as nursery:
            for number, wire in enumerate(wires):
                nursery.start_soon(read, wire, number)
        assert gateway.open_streams == 0
    assert ends == [("complete", "auth_error", True)] * 1_000
    assert gateway.auth_errors == 1_000


async def test_nothing_stays_behind() -> None:
    gateway = FakeGateway(token_interval=1e6)
    descriptors = len(os.listdir("/dev/fd"))
    tasks = trio.lowlevel.current_statistics().tasks_living
    async with listening_streams(gateway, 20) as wires:
        address = wires[0].stream
        assert isinstance(address, trio.SocketStream)
        host, port = address.socket.getpeername()
    await wait_all_tasks_blocked()
    assert gateway.open_streams == 0
    assert trio.lowlevel.current_statistics().tasks_living == tasks
    assert len(os.listdir("/dev/fd")) == descriptors
    with pytest.raises(OSError, match="all attempts to connect"):
        await trio.open_tcp_stream(host, port)


@pytest.mark.parametrize("leave", [FakeGateway.rotate, FakeGateway.expire])
async def test_a_faulty_status_does_not_break_the_connection(
    connect: Connect, leave: Callable[[FakeGateway], object]
) -> None:
    gateway = FakeGateway()
    gateway.fault(Status(503))
    async with connect(gateway) as wire:
        assert (await wire.ask(chat(), gateway.key)).status == 503
        leave(gateway)
        assert (await wire.ask(chat(), "gw_test_1")).status == 401
