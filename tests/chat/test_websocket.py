"""Sessions over the Responses API's WebSocket mode: keys that die, breaks, chains, bad servers."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Literal, cast

import msgspec
import pytest
import trio
import trio.testing
import trustme
import wsproto
from trio.testing import MockClock
from wsproto import events as ws

from gz_trio import (
    APIConnectionError,
    BadRequestError,
    Delta,
    GatewayError,
    NotFoundError,
    Paused,
    PermissionDeniedError,
    ProtocolError,
    RateLimited,
    Reply,
    ReplyEvent,
    ResumePolicy,
    RetryPolicy,
    Session,
    StreamTimeout,
    Timeouts,
    open_gateway,
)
from gz_trio.testing import Close, Comment, Cut, ErrorFrame, FakeGateway, Reset, Stall, Status
from tests.chat.test_apis import EVERYTHING, everything
from tests.chats import open_over
from tests.ways import channels_of

TOKENS = 12
TURNS: Literal["/v1/responses (websocket)"] = "/v1/responses (websocket)"
HANDSHAKE: Literal["/v1/responses (handshake)"] = "/v1/responses (handshake)"
MODULE = "gz_trio._transport.websocket_wire"

AS_MANY_AS_IT_TAKES = RetryPolicy(max_retries=100)


@pytest.fixture(autouse=True)
def own_transport(transport: str) -> None:
    if transport == "httpx":
        pytest.skip("WebSocket is spoken over connections of our own")


@asynccontextmanager
async def open_session(
    fake: FakeGateway,
    *,
    extra_body: Mapping[str, object] | None = None,
    retry: RetryPolicy | None = AS_MANY_AS_IT_TAKES,
    timeouts: Timeouts | None = None,
    resume: ResumePolicy | None = None,
) -> AsyncGenerator[Session]:
    async with (
        open_over(fake, retry=retry, timeouts=timeouts, resume=resume) as gateway,
        gateway.open_session(
            "fake-model", api="responses", transport="websocket", extra_body=extra_body
        ) as session,
    ):
        yield session


async def say(session: Session, question: str) -> Reply:
    """A turn, to its end."""
    async with session.stream(question) as reply:
        async for _ in reply:
            pass
    return reply


async def say_whole(fake: FakeGateway, session: Session, question: str) -> Reply:
    """A turn whose text is the one that the gateway meant to say."""
    conversation = [*session.messages, {"role": "user", "content": question}]
    reply = await say(session, question)
    assert reply.text == fake.intended({"input": conversation})
    return reply


def paths(fake: FakeGateway) -> list[str]:
    return [request.path.partition("(")[2].rstrip(")") for request in fake.requests]


def turns(fake: FakeGateway) -> list[Mapping[str, object]]:
    return [request.body or {} for request in fake.requests if request.path == TURNS]


async def after(seconds: float, action: Callable[[], object]) -> None:
    await trio.sleep(seconds)
    action()


# Turns


async def test_a_turn_is_the_same_deltas_as_over_http() -> None:
    fake = FakeGateway(answer=everything)
    got: list[list[ReplyEvent]] = []
    async with open_over(fake) as gateway:
        for transport in ("http", "websocket"):
            async with (
                gateway.open_session("fake-model", api="responses", transport=transport) as session,
                session.stream("Hi") as reply,
            ):
                got.append([event async for event in reply.events()])
                assert reply.finish_reason == "tool_calls"
                assert reply.usage is not None
                assert reply.usage.completion_tokens == len(EVERYTHING)
    http, websocket = got
    assert channels_of(websocket) == channels_of(http)
    assert len(websocket) == len(http)


async def test_a_session_keeps_one_connection_and_sends_only_what_is_new() -> None:
    fake = FakeGateway(tokens=TOKENS)
    async with open_session(fake) as session:
        for question in ("One?", "Two?", "Three?"):
            await say_whole(fake, session, question)
    assert paths(fake) == ["handshake", "websocket", "websocket", "websocket"]
    first, second, third = turns(fake)
    assert first["input"] == [{"role": "user", "content": "One?"}]
    assert "previous_response_id" not in first
    for turn, question in ((second, "Two?"), (third, "Three?")):
        assert turn["input"] == [{"role": "user", "content": question}]
        assert turn["previous_response_id"]
    for turn in (first, second, third):
        assert not turn.keys() & {"stream", "background", "stream_options"}
        assert turn["type"] == "response.create"


async def test_a_conversation_that_was_changed_is_sent_whole() -> None:
    fake = FakeGateway(tokens=TOKENS)
    async with open_session(fake) as session:
        await say_whole(fake, session, "One?")
        session.messages[0] = {"role": "user", "content": "Won?"}
        await say_whole(fake, session, "Two?")
    assert "previous_response_id" not in turns(fake)[1]
    assert turns(fake)[1]["input"] == session.messages[:3]


async def test_what_the_server_does_not_know_any_more_is_sent_whole() -> None:
    fake = FakeGateway(tokens=TOKENS)
    async with open_session(fake, extra_body={"store": False}) as session:
        await say_whole(fake, session, "One?")
        fake.fault(Cut(), token=0, path=TURNS)
        reply = await say_whole(fake, session, "Two?")
    assert len(reply.attempts) == 1
    assert paths(fake) == ["handshake", "websocket", "websocket", "handshake"] + ["websocket"] * 2
    assert [request.status for request in fake.requests][-2:] == [400, 200]
    assert turns(fake)[-1]["input"] == session.messages[:-1]


async def test_turns_at_the_same_time_are_told_apart() -> None:
    fake = FakeGateway(tokens=TOKENS, token_interval=0.01)
    async with open_session(fake) as session, trio.open_nursery() as nursery:
        texts: dict[str, str] = {}

        async def turn(question: str) -> None:
            async with session.stream(question) as reply:
                async for _ in reply:
                    pass
            texts[question] = reply.text

        for number in range(5):
            nursery.start_soon(turn, f"Question {number}")
    assert paths(fake).count("handshake") == 1
    assert len({turn.get("stream_id") for turn in turns(fake)}) == 5
    for question, text in texts.items():
        assert text == fake.intended({"input": [{"role": "user", "content": question}]})


async def test_where_they_cannot_be_told_apart_they_come_one_after_another() -> None:
    fake = FakeGateway(tokens=TOKENS, token_interval=0.01, lanes=False)
    async with open_session(fake) as session, trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(say, session, f"Question {number}")
    assert paths(fake).count("handshake") == 1
    assert sum(request.status == 200 for request in fake.requests) == 3
    assert len(session.messages) == 6


async def test_a_turn_that_is_left_early_is_over_for_the_server_too(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(tokens=TOKENS, token_interval=10)
    async with open_session(fake) as session:
        async with session.stream("One?") as reply:
            while not reply.text:
                await anext(reply)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not fake.open_streams
        await say_whole(fake, session, "Two?")
    assert paths(fake) == ["handshake", "websocket"] * 2


async def test_a_turn_that_is_left_early_does_not_disturb_another() -> None:
    fake = FakeGateway(tokens=TOKENS, token_interval=0.02)
    async with open_session(fake) as session:
        async with session.stream("One?") as one:
            await anext(one)
            async with session.stream("Two?") as two:
                await anext(two)
            async for _ in one:
                pass
        assert one.text == fake.intended({"input": session.messages[:1]})
    assert paths(fake).count("handshake") == 1


async def test_leaving_the_session_says_goodbye() -> None:
    fake = FakeGateway(tokens=TOKENS)
    async with open_session(fake) as session:
        await say(session, "One?")
    assert fake.requests[0].complete


@pytest.mark.parametrize("api", ["chat", "messages"])
async def test_the_other_apis_have_no_websocket_mode(
    api: Literal["chat", "messages"],
) -> None:
    async with open_over(FakeGateway()) as gateway:
        with pytest.raises(ValueError, match='api="responses"'):
            gateway.open_session("fake-model", api=api, transport="websocket")
        with pytest.raises(ValueError, match="'http' or 'websocket'"):
            gateway.open_session("fake-model", transport="smoke")  # type: ignore[arg-type]  # on purpose


# Keys that die

rejections = pytest.mark.parametrize(
    "rejection",
    [None, Close(4001), Close(4401), Close(3000), Close(1008, "authentication token expired")],
    ids=str,
)


@rejections
async def test_a_key_that_dies_after_any_token_is_one_refresh_and_nothing_lost_or_doubled(
    autojump_clock: MockClock, rejection: Close | None
) -> None:
    for token in range(TOKENS + 1):
        fake = FakeGateway(tokens=TOKENS, websocket_rejection=rejection)
        fake.fault(Stall(2.0), token=token, path=TURNS)
        async with open_session(fake) as session, trio.open_nursery() as nursery:
            nursery.start_soon(after, 1.0, fake.rotate)
            await say_whole(fake, session, "One?")
            await say_whole(fake, session, "Two?")
        assert fake.refreshes == 1
        assert paths(fake).count("handshake") == 2


@rejections
async def test_a_key_that_dies_between_turns_is_one_refresh(rejection: Close | None) -> None:
    fake = FakeGateway(tokens=TOKENS, websocket_rejection=rejection)
    async with open_session(fake) as session:
        await say_whole(fake, session, "One?")
        fake.rotate()
        await say_whole(fake, session, "Two?")
    assert fake.refreshes == 1


async def test_a_key_that_is_dead_on_arrival_is_rejected_in_the_handshake() -> None:
    fake = FakeGateway(tokens=TOKENS)
    async with (
        open_over(fake, key="sk-old") as gateway,
        gateway.open_session("fake-model", api="responses", transport="websocket") as session,
        session.stream("One?") as reply,
    ):
        events = [event async for event in reply.events()]
    assert reply.text == fake.intended({"input": "One?"})
    assert [request.status for request in fake.requests] == [401, 101, 200]
    assert Paused("refresh") in events
    assert fake.refreshes == 1


async def test_a_new_key_is_used_from_the_next_turn_on() -> None:
    """Nobody has rejected the old one: but it is not to be used any longer."""
    fake = FakeGateway(tokens=TOKENS, on_rotation="ignore")
    async with open_session(fake) as session:
        await say_whole(fake, session, "One?")
        await session.authenticator.sign_in(fake.rotate(), same_account=True)
        await say_whole(fake, session, "Two?")
    assert [request.generation for request in fake.requests] == [1, 1, 2, 2]
    assert fake.rejected == 0


@pytest.mark.parametrize(
    ("close", "error"),
    [
        (Close(3003), PermissionDeniedError),
        (Close(4403), PermissionDeniedError),
        (Close(1009), BadRequestError),
        (Close(1008, "policy"), ProtocolError),
    ],
)
async def test_a_close_that_is_a_refusal_is_told_and_not_repeated(
    close: Close, error: type[GatewayError]
) -> None:
    fake = FakeGateway(tokens=TOKENS)
    fake.fault(close, token=4, path=TURNS)
    async with open_session(fake) as session:
        with pytest.raises(error) as caught:
            await say(session, "One?")
        assert caught.value.partial
        assert fake.refreshes == 0
        assert len(turns(fake)) == 1
        await say_whole(fake, session, "Two?")


# Breaks


@pytest.mark.parametrize(
    "how", [Cut(), Reset(), Close(1001), Close(1005), Close(1011), Close(1012)]
)
async def test_broken_before_any_token_nothing_is_lost_and_nothing_doubled(
    autojump_clock: MockClock, how: Cut | Reset | Close
) -> None:
    for token in range(TOKENS + 1):
        fake = FakeGateway(tokens=TOKENS)
        fake.fault(how, token=token, path=TURNS)
        async with open_session(fake) as session:
            await say_whole(fake, session, "One?")
            await say_whole(fake, session, "Two?")


@pytest.mark.parametrize("step", [37, pytest.param(1, marks=pytest.mark.slow)])
async def test_cut_after_any_byte_nothing_is_lost_and_nothing_doubled(
    autojump_clock: MockClock, step: int
) -> None:
    fake = FakeGateway(answer=everything)
    async with open_session(fake) as session, session.stream("Hi") as reply:
        whole = channels_of([event async for event in reply.events()])
    async with open_over(fake, retry=AS_MANY_AS_IT_TAKES) as gateway:
        for cut in range(0, 6000, step):
            fake.fault(Cut(cut), token=0, path=TURNS)
            async with (
                gateway.open_session(
                    "fake-model", api="responses", transport="websocket"
                ) as session,
                session.stream("Hi") as reply,
            ):
                events = [event async for event in reply.events()]
            assert channels_of(events) == whole, cut
            assert reply.complete


async def test_an_error_in_mid_turn_goes_through_the_table(autojump_clock: MockClock) -> None:
    fake = FakeGateway(tokens=TOKENS)
    fake.fault(ErrorFrame("capacity_error"), token=5, path=TURNS)
    fake.fault(Status(429, headers={"retry-after": "7"}), request=2, path=TURNS)
    async with open_session(fake) as session, session.stream("One?") as reply:
        events = [event async for event in reply.events()]
    assert reply.text == fake.intended({"input": "One?"})
    assert [type(event) for event in events if not isinstance(event, Delta)][:2] == [
        Paused,
        RateLimited,
    ]
    assert paths(fake).count("handshake") == 1, "the connection is as good as before"


async def test_a_handshake_that_is_refused_is_told_as_that() -> None:
    fake = FakeGateway()
    fake.fault(Status(404), times=None, path=HANDSHAKE)
    async with open_session(fake) as session:
        with pytest.raises(NotFoundError):
            await say(session, "One?")


async def test_a_handshake_that_fails_in_passing_is_repeated(autojump_clock: MockClock) -> None:
    fake = FakeGateway(tokens=TOKENS)
    fake.fault(Status(503), path=HANDSHAKE)
    fake.fault(Cut(), path=HANDSHAKE)
    async with open_session(fake) as session:
        await say_whole(fake, session, "One?")
    assert paths(fake) == ["handshake"] * 3 + ["websocket"]


async def test_a_connection_is_replaced_before_the_server_closes_it(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(tokens=TOKENS)
    async with open_session(fake) as session:
        await say_whole(fake, session, "One?")
        await trio.sleep(54 * 60)
        await say_whole(fake, session, "Two?")
        await trio.sleep(2 * 60)
        await say_whole(fake, session, "Three?")
    assert [request.status for request in fake.requests] == [101, 200, 200, 101, 200]
    assert turns(fake)[2]["previous_response_id"]


async def test_a_connection_that_is_too_old_for_the_server_is_replaced(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(tokens=TOKENS, websocket_lifetime=10)
    async with open_session(fake) as session:
        await say_whole(fake, session, "One?")
        await trio.sleep(11)
        reply = await say_whole(fake, session, "Two?")
    assert [request.status for request in fake.requests] == [101, 200, 400, 101, 200]
    assert len(reply.attempts) == 1


async def test_a_connection_that_was_closed_meanwhile_is_replaced(
    autojump_clock: MockClock,
) -> None:
    fake = FakeGateway(tokens=TOKENS)
    fake.fault(Close(1001), token=TOKENS, path=TURNS)
    async with open_session(fake) as session:
        await say_whole(fake, session, "One?")
        await trio.sleep(1)
        await say_whole(fake, session, "Two?")


# Silence


async def test_a_turn_that_is_silent_is_sent_again(autojump_clock: MockClock) -> None:
    fake = FakeGateway(tokens=TOKENS)
    fake.fault(Stall(), token=5, path=TURNS)
    async with open_session(fake, timeouts=Timeouts(between_tokens=10)) as session:
        reply = await say_whole(fake, session, "One?")
    assert isinstance(reply.attempts[0].cause, StreamTimeout)


async def test_a_ping_is_a_sign_of_life(autojump_clock: MockClock) -> None:
    fake = FakeGateway(tokens=TOKENS)
    for _ in range(3):
        fake.fault(Stall(8.0), token=5, path=TURNS)
        fake.fault(Comment(), token=5, path=TURNS)
    async with open_session(fake, timeouts=Timeouts(between_tokens=10)) as session:
        reply = await say_whole(fake, session, "One?")
    assert len(reply.attempts) == 1


async def test_who_does_not_answer_a_ping_is_gone(autojump_clock: MockClock) -> None:
    """As a machine is that was switched off: TCP says nothing."""
    async with served(BadServer(say_nothing)) as session:
        with pytest.raises(APIConnectionError, match="ping"):
            await say(session, "One?")


# Readers that pause


async def test_a_reader_that_pauses_holds_the_server_back(transport: str) -> None:
    if transport == "streams":
        pytest.skip("a stream in memory takes whatever comes")
    token = "x" * 4096
    fake = FakeGateway(answer=lambda _body, _attempt: [token] * 2000)
    async with open_session(fake) as session, session.stream("One?") as reply:
        await anext(reply)
        await trio.testing.wait_all_tasks_blocked(0.2)
        assert fake.requests[-1].tokens < 1500
        async for _ in reply:
            pass
    assert reply.text == token * 2000


# Bad servers


class BadServer:
    """A server that does something wrong in the first turn, and all right in the next."""

    def __init__(self, wrong: Callable[[trio.abc.Stream], Awaitable[None]]) -> None:
        self._wrong = wrong
        self.connections = 0

    async def __call__(self, stream: trio.abc.Stream) -> None:
        self.connections += 1
        wire = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
        async with stream:
            while data := bytes(await stream.receive_some(65536)):
                wire.receive_data(data)
                for event in wire.events():
                    if isinstance(event, ws.Request):
                        await stream.send_all(wire.send(ws.AcceptConnection()))
                    elif isinstance(event, ws.TextMessage) and self.connections == 1:
                        await self._wrong(stream)
                        return
                    elif isinstance(event, ws.TextMessage):
                        for frame in ANSWER:
                            message = msgspec.json.encode(frame).decode()
                            await stream.send_all(wire.send(ws.TextMessage(message)))
                    elif isinstance(event, ws.CloseConnection):
                        await stream.send_all(wire.send(event.response()))


async def say_nothing(_stream: trio.abc.Stream) -> None:
    await trio.sleep_forever()


ANSWER: Sequence[dict[str, object]] = [
    {"type": "response.created", "response": {"id": "resp_1"}},
    {"type": "response.output_text.delta", "output_index": 0, "delta": "All right"},
    {"type": "response.completed", "response": {"id": "resp_1", "output": []}},
]


@asynccontextmanager
async def served(
    serve: Callable[[trio.abc.Stream], Awaitable[None]], retry: RetryPolicy | None = None
) -> AsyncGenerator[Session]:
    """A session with a server of the test's own."""

    class Fake(FakeGateway):
        async def serve_stream(self, stream: trio.abc.Stream) -> None:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await serve(stream)

    async with open_session(Fake(), retry=retry or RetryPolicy(max_retries=0)) as session:
        yield session


def frame(opcode: int, payload: bytes, *, fin: bool = True, rsv: int = 0) -> bytes:
    """A frame as a server sends it (RFC 6455 section 5.2)."""
    head = bytes([(0x80 if fin else 0) | rsv | opcode])
    if len(payload) < 126:
        return head + bytes([len(payload)]) + payload
    if len(payload) < 2**16:
        return head + bytes([126]) + len(payload).to_bytes(2, "big") + payload
    return head + bytes([127]) + len(payload).to_bytes(8, "big") + payload


TEXT, CONTINUATION, BINARY = 1, 0, 2


async def send_too_much(stream: trio.abc.Stream) -> None:
    await stream.send_all(frame(TEXT, b"x" * (3 * 2**20)))


async def send_invalid_text(stream: trio.abc.Stream) -> None:
    await stream.send_all(frame(TEXT, b'{"type":"response.\xff"}'))


async def send_fragments_without_end(stream: trio.abc.Stream) -> None:
    await stream.send_all(frame(TEXT, b"", fin=False))
    while True:
        await stream.send_all(frame(CONTINUATION, b"", fin=False) * 1000)


async def send_what_was_not_agreed(stream: trio.abc.Stream) -> None:
    await stream.send_all(frame(TEXT, b"compressed", rsv=0x40))


async def send_a_masked_frame(stream: trio.abc.Stream) -> None:
    await stream.send_all(b"\x81\x85\x00\x00\x00\x00hello")


async def send_no_frame(stream: trio.abc.Stream) -> None:
    await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")


async def send_no_json(stream: trio.abc.Stream) -> None:
    await stream.send_all(frame(TEXT, b"<html>"))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (send_too_much, "a message of more than"),
        (send_invalid_text, "text that is no UTF-8"),
        (send_fragments_without_end, "a message in fragments without end"),
        (send_what_was_not_agreed, "what WebSocket does not allow"),
        (send_a_masked_frame, "what WebSocket does not allow"),
        (send_no_frame, "what WebSocket does not allow"),
        (send_no_json, "no reply of a model"),
    ],
)
async def test_what_a_server_may_not_send_is_an_error_and_the_next_turn_works(
    wrong: Callable[[trio.abc.Stream], Awaitable[None]],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(f"{MODULE}.MAX_MESSAGE_BYTES", 2**20)
    server = BadServer(wrong)
    async with served(server) as session:
        with pytest.raises(ProtocolError, match=says) as caught:
            await say(session, "One?")
        assert not caught.value.retryable
        reply = await say(session, "Two?")
    assert reply.text == "All right"
    assert server.connections == 2


async def close_without_a_code(stream: trio.abc.Stream) -> None:
    await stream.send_all(frame(8, b""))
    await stream.receive_some(1024)


async def close_with_half_a_code(stream: trio.abc.Stream) -> None:
    await stream.send_all(frame(8, b"\x03"))
    await stream.receive_some(1024)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [(close_without_a_code, APIConnectionError), (close_with_half_a_code, ProtocolError)],
)
async def test_a_close_that_says_nothing_is_an_error_and_the_next_turn_works(
    wrong: Callable[[trio.abc.Stream], Awaitable[None]], error: type[GatewayError]
) -> None:
    async with served(BadServer(wrong)) as session:
        with pytest.raises(error):
            await say(session, "One?")
        assert (await say(session, "Two?")).text == "All right"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"",
    ],
)
async def test_what_does_not_speak_websocket_is_an_error_at_once(answer: bytes) -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        async with stream:
            await stream.receive_some(65536)
            await stream.send_all(answer)

    async with served(serve) as session:
        with pytest.raises((ProtocolError, APIConnectionError)):
            await say(session, "One?")


async def test_a_handshake_that_is_not_answered_times_out(autojump_clock: MockClock) -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        async with stream:
            await trio.sleep_forever()

    async with served(serve) as session:
        with pytest.raises(APIConnectionError, match="within 10 s"):
            await say(session, "One?")


async def test_json_with_newlines_is_one_event() -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        for event in ANSWER:
            pretty = msgspec.json.format(msgspec.json.encode(event), indent=2)
            await stream.send_all(frame(BINARY, pretty))
        await stream.receive_some(1024)

    async with served(BadServer(serve)) as session:
        assert (await say(session, "One?")).text == "All right"


# Over TLS


async def test_over_tls_certificate_and_name_are_verified() -> None:
    authority, other = trustme.CA(), trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    with authority.issue_cert("localhost").private_key_and_cert_chain_pem.tempfile() as pem:
        context.load_cert_chain(pem)
    fake = FakeGateway(tokens=TOKENS)
    listeners = await trio.open_ssl_over_tcp_listeners(0, context, host="localhost")
    listener = cast("trio.SocketListener", listeners[0].transport_listener)
    port = listener.socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(trio.serve_listeners, fake.serve_stream, listeners))
        for known, host, fails in (
            (authority, "localhost", False),
            (other, "localhost", True),
            (authority, "127.0.0.1", True),
        ):
            trusted = ssl.create_default_context(cadata=known.cert_pem.bytes().decode())
            async with (
                open_gateway(
                    f"https://{host}:{port}/v1",
                    fake.key,
                    ssl_context=trusted,
                    retry=RetryPolicy(max_retries=0),
                ) as gateway,
                gateway.open_session(
                    "fake-model", api="responses", transport="websocket"
                ) as session,
            ):
                if fails:
                    with pytest.raises(APIConnectionError, match="certificate"):
                        await say(session, "One?")
                else:
                    await say_whole(fake, session, "One?")
        nursery.cancel_scope.cancel()
