"""WebSocket mode, sans I/O: frames, the chain of turns, and what the end of a connection means."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gz_trio._protocol.errors import (
    APIConnectionError,
    AuthenticationError,
    BadRequestError,
    GatewayError,
    PermissionDeniedError,
    ProtocolError,
)
from gz_trio._protocol.sse import EventStreamDecoder
from gz_trio._protocol.websocket import (
    Chain,
    Frame,
    as_event,
    create_frame,
    error_from_close,
    turn_of,
)

ORIGIN = "https://gateway.test"
SECRET = "sk-Secret"

USER: dict[str, object] = {"role": "user", "content": "Hi"}
SAID: dict[str, object] = {"type": "message", "role": "assistant", "content": []}


def completed(*output: object, response_id: str = "resp_1") -> bytes:
    response = {"id": response_id, "output": [*output]}
    return msgspec.json.encode({"type": "response.completed", "response": response})


# The end of a connection


@pytest.mark.parametrize(
    ("code", "reason", "error", "retryable"),
    [
        (3000, "", AuthenticationError, False),
        (4001, "", AuthenticationError, False),
        (4401, "", AuthenticationError, False),
        (1008, "authentication failed", AuthenticationError, False),
        (1008, "API key expired", AuthenticationError, False),
        (1008, "Unauthorized", AuthenticationError, False),
        (1008, "invalid token", AuthenticationError, False),
        (1008, "", ProtocolError, False),
        (1008, "content policy", ProtocolError, False),
        (3003, "", PermissionDeniedError, False),
        (4403, "", PermissionDeniedError, False),
        (1009, "", BadRequestError, False),
        (1002, "", ProtocolError, False),
        (1003, "", ProtocolError, False),
        (1007, "", ProtocolError, False),
        *((code, "", APIConnectionError, True) for code in (1000, 1001, 1005, 1006, 1011)),
        *((code, "", APIConnectionError, True) for code in (1012, 1013, 1015, 4000, 4999)),
        (None, "", APIConnectionError, True),
    ],
)
def test_a_close_means(
    code: int | None, reason: str, error: type[GatewayError], retryable: bool
) -> None:
    got = error_from_close(code, reason, ORIGIN)
    assert type(got) is error
    assert got.retryable is retryable
    assert ORIGIN in str(got)


@given(st.none() | st.integers(1000, 4999), st.text().map(lambda text: f"{text}{SECRET}{text}"))
def test_what_a_close_says_is_never_shown(code: int | None, reason: str) -> None:
    assert SECRET not in str(error_from_close(code, reason, ORIGIN))


# Frames


@pytest.mark.parametrize(
    "kind", ["completed", "incomplete", "failed", "cancelled", "created", "output_text.delta"]
)
def test_a_turn_ends_with_a_terminal_event(kind: str) -> None:
    frame = Frame.of(b'{"type":"response.%s","stream_id":"turn-1"}' % kind.encode())
    ends = kind in ("completed", "incomplete", "failed", "cancelled")
    assert (frame.terminal, frame.stream_id) == (ends, "turn-1")


@pytest.mark.parametrize(
    "event",
    [
        {"type": "error", "status": 429, "error": {"code": "c", "headers": {"Retry-After": "2"}}},
        {"type": "error", "status": 429, "code": "c", "error": {"headers": {"retry-after": 2}}},
    ],
)
def test_an_error_says_what_http_would_have(event: object) -> None:
    frame = Frame.of(msgspec.json.encode(event))
    assert (frame.code, frame.status, frame.headers) == ("c", 429, {"retry-after": "2"})
    assert frame.terminal


@pytest.mark.parametrize(
    ("event", "about"),
    [
        ({"type": "error", "error": {"param": "stream_id"}}, True),
        ({"type": "error", "param": "stream_id"}, True),
        ({"type": "error", "error": {"code": "invalid_stream_id"}}, True),
        ({"type": "error", "error": {"code": "websocket_stream_limit_reached"}}, True),
        ({"type": "error", "error": {"param": "input"}}, False),
        ({"type": "response.created", "param": "stream_id"}, False),
    ],
)
def test_an_error_may_be_about_the_stream_id(event: object, about: bool) -> None:
    assert Frame.of(msgspec.json.encode(event)).about_stream_id is about


@given(
    st.binary()
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["type", "status", "code", "error", "stream_id", "param", "headers"]
                ),
                inner | st.just("error"),
                max_size=5,
            )
        ),
        max_leaves=12,
    ).map(msgspec.json.encode)
)
def test_whatever_comes_is_a_frame(data: bytes) -> None:
    assert Frame.of(data).data == data


@given(st.recursive(st.text() | st.integers(), st.lists, max_leaves=8), st.integers(0, 4))
def test_a_frame_is_one_event_of_a_stream(value: object, indent: int) -> None:
    data = msgspec.json.format(msgspec.json.encode(value), indent=indent)
    (event,) = EventStreamDecoder().feed(as_event(data))
    assert msgspec.json.decode(event.data) == value


def test_a_turn_is_the_request_without_what_is_of_http_alone() -> None:
    body: dict[str, object] = {
        "model": "m",
        "input": "Hi",
        "stream": True,
        "background": False,
        "stream_options": {},
        "store": False,
    }
    turn = turn_of(msgspec.json.encode(body))
    assert turn == {"model": "m", "input": "Hi", "store": False}
    assert msgspec.json.decode(create_frame(turn, None)) == {"type": "response.create", **turn}
    with_lane = msgspec.json.decode(create_frame(turn, "turn-1"))
    assert with_lane == {"type": "response.create", "stream_id": "turn-1", **turn}


# The chain


def test_a_turn_that_goes_on_names_the_one_before() -> None:
    chain = Chain()
    chain.completed({"input": [USER]}, completed(SAID))
    assert chain.shortened({"input": [USER, SAID, USER], "store": False}) == {
        "input": [USER],
        "store": False,
        "previous_response_id": "resp_1",
    }


def test_a_chain_goes_on_from_the_whole_conversation() -> None:
    chain = Chain()
    chain.completed({"input": [USER]}, completed(SAID))
    chain.completed({"input": [USER, SAID, USER]}, completed(SAID, response_id="resp_2"))
    shortened = chain.shortened({"input": [USER, SAID, USER, SAID, USER]})
    assert shortened == {"input": [USER], "previous_response_id": "resp_2"}


@pytest.mark.parametrize(
    "turn",
    [
        {"input": [USER]},
        {"input": [USER, SAID]},
        {"input": [{**USER, "content": "Ho"}, SAID, USER]},
        {"input": [USER, {**SAID, "id": "another"}, USER]},
        {"input": "Hi"},
        {"input": [USER, SAID, USER], "previous_response_id": "of the caller's own"},
        {},
    ],
)
def test_any_other_turn_is_sent_as_it_is(turn: dict[str, object]) -> None:
    chain = Chain()
    chain.completed({"input": [USER]}, completed(SAID))
    assert chain.shortened(turn) == turn


def test_a_text_is_what_the_user_said() -> None:
    chain = Chain()
    chain.completed({"input": "Hi"}, completed(SAID))
    shortened = chain.shortened({"input": [USER, SAID, USER]})
    assert shortened["previous_response_id"] == "resp_1"


@pytest.mark.parametrize(
    "terminal",
    [b"no JSON", b"{}", completed(), b'{"response":{"output":[{}]}}', b'{"response":[]}'],
)
def test_a_turn_of_which_nothing_can_be_named_leaves_the_chain_as_it_is(terminal: bytes) -> None:
    chain = Chain()
    chain.completed({"input": [USER]}, completed(SAID))
    chain.completed({"input": [USER, SAID, USER]}, terminal)
    assert "previous_response_id" in chain.shortened({"input": [USER, SAID, USER]})


def test_what_the_server_has_forgotten_is_sent_again() -> None:
    chain = Chain()
    chain.completed({"input": [USER]}, completed(SAID))
    chain.forget()
    turn: dict[str, object] = {"input": [USER, SAID, USER]}
    assert chain.shortened(turn) == turn
