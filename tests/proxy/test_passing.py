"""What goes through the proxy as it is, and what does not."""

import msgspec
import openai.types.responses
import pytest

from gz_trio.proxy._failure import ApiName, Failure
from gz_trio.proxy._passing import path_at_gateway, to_caller, to_gateway

INERT = [
    (b"content-security-policy", b"sandbox; default-src 'none'"),
    (b"x-content-type-options", b"nosniff"),
]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"/v1/chat/completions", "/chat/completions"),
        (b"/v1", ""),
        (b"/v1/", "/"),
        (b"/v1//evil.example/x", "//evil.example/x"),
        (b"/v1/models/a%2Fb", "/models/a%2Fb"),
        (b"/v1/files/...", "/files/..."),
        (b"/v1/../auth", None),
        (b"/v1/models/..", None),
        (b"/v1/./models", None),
        (b"/v1/%2e%2E/auth", None),
        (b"/v1/%2e./auth", None),
        (b"/v1/..%2fauth", None),
        (b"/v1/..%5Cauth", None),
        (b"/v1/..\\auth", None),
    ],
)
def test_a_path_stays_under_the_gateway_s_base_url(path: bytes, expected: str | None) -> None:
    assert path_at_gateway(path) == expected


def test_the_gateway_gets_the_caller_s_headers_but_those_of_the_connection_and_of_the_browser() -> (
    None
):
    kept = [
        (b"content-type", b"application/json"),
        (b"anthropic-version", b"2023-06-01"),
        (b"accept", b"text/event-stream"),
        (b"openai-organization", b"org"),
        (b"user-agent", b"curl"),
    ]
    left_out = [
        (b"Host", b"127.0.0.1:8399"),
        (b"Connection", b"keep-alive, X-Mine"),
        (b"X-Mine", b"1"),
        (b"Keep-Alive", b"5"),
        (b"TE", b"trailers"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Upgrade", b"h2c"),
        (b"Proxy-Authorization", b"Basic x"),
        (b"Authorization", b"Bearer local"),
        (b"X-API-Key", b"local"),
        (b"API-Key", b"local"),
        (b"Cookie", b"gz_trio_8399=x"),
        (b"Origin", b"http://127.0.0.1:8399"),
        (b"Referer", b"http://127.0.0.1:8399/"),
        (b"Content-Length", b"12"),
        (b"Accept-Encoding", b"br"),
        (b"Expect", b"100-continue"),
    ]
    assert to_gateway([*left_out, *kept]) == kept


def test_the_caller_gets_the_gateway_s_headers_but_what_would_speak_for_the_proxy() -> None:
    kept = [
        (b"content-type", b"application/json"),
        (b"x-request-id", b"req-1"),
        (b"retry-after", b"2"),
        (b"x-should-retry", b"false"),
    ]
    left_out = [
        (b"Set-Cookie", b"a=b"),
        (b"set-cookie", b"c=d"),
        (b"Access-Control-Allow-Origin", b"*"),
        (b"Access-Control-Allow-Credentials", b"true"),
        (b"Connection", b"close"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Alt-Svc", b'h3=":443"'),
        (b"Strict-Transport-Security", b"max-age=1"),
        (b"Clear-Site-Data", b'"*"'),
        (b"Content-Security-Policy", b"default-src *"),
    ]
    assert to_caller([*left_out, *kept]) == kept + INERT


FAILURE = Failure('It "broke".', "overloaded_error", "overloaded")


OPENAI_S = (
    b'{"error":{"message":"It \\"broke\\".","type":"overloaded_error","param":null,'
    b'"code":"overloaded"}}'
)
ANTHROPIC_S = b'{"type":"error","error":{"type":"overloaded_error","message":"It \\"broke\\"."}}'
FLAT = b'{"type":"error","code":"overloaded","message":"It \\"broke\\".","param":null}'


@pytest.mark.parametrize(
    ("api", "expected"),
    [
        ("chat", b"data: %b\n\n" % OPENAI_S),
        ("messages", b"event: error\ndata: %b\n\n" % ANTHROPIC_S),
        ("responses", b"event: error\ndata: %b\n\n" % FLAT),
    ],
)
def test_a_failure_in_a_stream_is_a_frame_of_the_api(api: ApiName, expected: bytes) -> None:
    assert FAILURE.frame(api) == expected


def test_a_frame_of_the_responses_api_is_what_the_openai_sdk_knows() -> None:
    event = openai.types.responses.ResponseErrorEvent.model_construct(**msgspec.json.decode(FLAT))
    assert (event.type, event.code, event.message) == ("error", "overloaded", 'It "broke".')


@pytest.mark.parametrize(
    ("api", "expected"),
    [("chat", OPENAI_S), ("responses", OPENAI_S), (None, OPENAI_S), ("messages", ANTHROPIC_S)],
)
def test_a_failure_before_the_stream_is_the_body_of_an_answer(
    api: ApiName | None, expected: bytes
) -> None:
    assert FAILURE.body(api) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"error":{"message":"m","type":"t","code":"c","param":null}}', Failure("m", "t", "c")),
        (b'{"type":"error","error":{"type":"t","message":"m"}}', Failure("m", "t", "429")),
        (b'{"error":{"code":502,"message":"m"}}', Failure("m", "api_error", "502")),
        (b'{"error":"Unauthorized"}', Failure("the gateway answered 429", "api_error", "429")),
        (b'{"detail":"x"}', Failure("the gateway answered 429", "api_error", "429")),
        (b"<html>", Failure("the gateway answered 429", "api_error", "429")),
        (b"\xff", Failure("the gateway answered 429", "api_error", "429")),
        (b"", Failure("the gateway answered 429", "api_error", "429")),
    ],
)
def test_what_a_gateway_says_is_told_where_it_can_be_read(body: bytes, expected: Failure) -> None:
    assert Failure.of_answer(429, body) == expected
