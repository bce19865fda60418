"""Errors: whatever a server sends becomes one of our classes, with a message of our own."""

from __future__ import annotations

import json
import time
from email.utils import formatdate

import pytest

from gz_trio._protocol import errors
from gz_trio._protocol.errors import (
    RETRYABLE_STATUSES,
    APIConnectionError,
    AuthenticationError,
    BadRequestError,
    EmptyResponseError,
    GatewayError,
    InternalServerError,
    NotFoundError,
    PaymentRequiredError,
    PermissionDeniedError,
    ProtocolError,
    RateLimitError,
    RefreshError,
    RefreshTimeout,
    RetryHints,
    StreamInterrupted,
    StreamTimeout,
    error_from_frame,
    error_from_response,
)

NOW = 1_800_000_000.0
EVERY_CLASS = [
    GatewayError,
    AuthenticationError,
    PermissionDeniedError,
    NotFoundError,
    PaymentRequiredError,
    RateLimitError,
    BadRequestError,
    InternalServerError,
    APIConnectionError,
    EmptyResponseError,
    ProtocolError,
    StreamInterrupted,
    StreamTimeout,
    RefreshError,
    RefreshTimeout,
]


def response(
    status: int, body: object = b"", headers: dict[str, str] | None = None
) -> GatewayError:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return error_from_response(status, headers or {}, data, now=NOW)


def frame(body: dict[str, object]) -> GatewayError:
    return error_from_frame(body, body=json.dumps(body).encode())


# The classes.


@pytest.mark.parametrize("error_class", EVERY_CLASS)
def test_every_class_can_be_made_from_a_message_alone(error_class: type[GatewayError]) -> None:
    error = error_class("it broke")
    assert str(error) == "it broke"
    assert (error.status, error.code, error.type, error.request_id) == (None, None, None, None)
    assert (error.body, error.partial, error.hints) == (None, "", RetryHints())


def test_another_is_the_same_error_but_another_object() -> None:
    error = response(429, {"error": {"code": "c", "type": "t"}}, {"retry-after": "3"})
    error.partial = "Hel"
    copy = error.another()
    assert copy is not error
    assert type(copy) is RateLimitError
    assert vars(copy) == vars(error)
    assert str(copy) == str(error)
    assert str(error.another("in other words")) == "in other words"


def test_another_is_chained_to_the_same_cause_but_has_notes_of_its_own() -> None:
    error = StreamTimeout("silence", which="total", retryable=False)
    error.__cause__ = cause = ValueError("why")
    error.add_note("for the first only")
    copy = error.another()
    assert isinstance(copy, StreamTimeout)
    assert (copy.which, copy.retryable, copy.__cause__) == ("total", False, cause)
    assert not hasattr(copy, "__notes__")


def test_a_stream_timeout_can_be_made_from_a_message_alone_too() -> None:
    error = StreamTimeout("silence")
    assert (error.which, error.retryable) == (None, True)


# By status.

HTML = b"<html><head><title>401 Authorization Required</title></head></html>"


@pytest.mark.parametrize("body", [b"", HTML, b"{", b'{"error":"x"}', b"[]", b"7", b'"x"', b"null"])
@pytest.mark.parametrize(
    ("status", "error_class"),
    [
        (400, BadRequestError),
        (401, AuthenticationError),
        (402, PaymentRequiredError),
        (403, PermissionDeniedError),
        (404, NotFoundError),
        (405, BadRequestError),
        (408, BadRequestError),
        (409, BadRequestError),
        (413, BadRequestError),
        (422, BadRequestError),
        (429, RateLimitError),
        (500, InternalServerError),
        (501, InternalServerError),
        (502, InternalServerError),
        (503, InternalServerError),
        (504, InternalServerError),
        (520, InternalServerError),
        (524, InternalServerError),
        (529, InternalServerError),
    ],
)
def test_a_response_goes_by_its_status(
    status: int, error_class: type[GatewayError], body: bytes
) -> None:
    error = response(status, body)
    assert type(error) is error_class
    assert (error.status, error.body) == (status, body)
    assert f"({status})" in str(error)
    assert error.retryable is (status in RETRYABLE_STATUSES)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_an_error_that_says_that_none_is_followed_with_a_key(status: int) -> None:
    error = response(status, headers={"location": "https://elsewhere.example/"})
    assert "redirect" in str(error)
    assert "not followed with a key" in str(error)
    assert "elsewhere" not in str(error)
    assert not error.retryable


@pytest.mark.parametrize("body", [HTML, b"", b'{"models":[]}'])
def test_a_200_that_is_no_reply_is_a_protocol_error(body: bytes) -> None:
    error = response(200, body)
    assert type(error) is ProtocolError
    assert not error.retryable


def test_a_200_whose_body_is_an_error_is_that_error() -> None:
    error = response(200, {"error": {"code": 429, "message": "m"}}, {"retry-after": "3"})
    assert type(error) is RateLimitError
    assert (error.status, error.retryable, error.hints.retry_after) == (429, True, 3.0)
    assert response(200, {"error": {"type": "provider_error"}}).retryable
    assert type(response(200, {"type": "error", "message": "m"})) is InternalServerError


# By what the body says.


@pytest.mark.parametrize(
    ("status", "body", "error_class"),
    [
        pytest.param(
            429,
            {"error": {"message": "m", "type": "insufficient_quota", "code": "insufficient_quota"}},
            PaymentRequiredError,
            id="OpenAI: the quota is used up",
        ),
        pytest.param(
            400,
            {"error": {"message": "m", "type": "budget_exceeded", "code": "400"}},
            PaymentRequiredError,
            id="LiteLLM: the budget is used up",
        ),
        pytest.param(
            429,
            {"error": {"type": "daily_quota_exceeded", "code": "DAILY_QUOTA_EXCEEDED"}},
            PaymentRequiredError,
            id="Gatewayz: the day's quota is used up",
        ),
        pytest.param(
            500,
            {"detail": "Failed to get chat stats: 401: Invalid API key"},
            AuthenticationError,
            id="Gatewayz: a 401 wrapped into a 500",
        ),
        *(
            pytest.param(
                500,
                {"error": {"message": f"Failed to get sessions: 401: {said}", "type": "api_error"}},
                AuthenticationError,
                id=f"wrapped: {said}",
            )
            for said in (
                "Authorization header is required",
                "API key is required",
                "API key is inactive",
                "API key has expired",
                "Not authenticated",
                "Unauthorized",
            )
        ),
        pytest.param(
            403,
            {"error": {"code": "insufficient_quota"}},
            PaymentRequiredError,
            id="a 403 for money",
        ),
        pytest.param(
            502, {"detail": "401: Invalid API key"}, InternalServerError, id="a 401 behind a 502"
        ),
        pytest.param(
            500,
            {"detail": "Failed to get chat stats: 403: the API key has no right"},
            InternalServerError,
            id="a wrapped 403 is no rejected key",
        ),
        pytest.param(
            500, {"detail": "Took 401: too long"}, InternalServerError, id="another 401 in a text"
        ),
        pytest.param(
            500,
            {"error": {"message": "m", "type": "auth_error", "code": "401"}},
            AuthenticationError,
            id="LiteLLM: an authentication error as a 500",
        ),
        pytest.param(
            400, {"error": {"code": "invalid_api_key"}}, AuthenticationError, id="a 400 for a key"
        ),
        pytest.param(
            403, {"error": {"type": "authentication_error"}}, PermissionDeniedError, id="403 is 403"
        ),
        pytest.param(
            404,
            {"error": {"type": "auth_error"}},
            NotFoundError,
            id="other statuses are themselves",
        ),
    ],
)
def test_a_body_that_knows_better_than_the_status(
    status: int, body: object, error_class: type[GatewayError]
) -> None:
    error = response(status, body)
    assert type(error) is error_class
    assert error.status == status
    assert error.retryable is (error_class is InternalServerError)


@pytest.mark.parametrize(
    ("body", "code", "type_"),
    [
        pytest.param({"error": "Unauthorized"}, "Unauthorized", None, id="vLLM: a string"),
        pytest.param(
            {"object": "error", "message": "m", "type": "BadRequestError", "code": 400},
            "400",
            "BadRequestError",
            id="vLLM: flat",
        ),
        pytest.param({"message": "m"}, None, None, id="a message alone"),
        pytest.param(
            {"error": {"message": "m", "type": "t", "param": None, "code": None}},
            None,
            "t",
            id="OpenAI",
        ),
        pytest.param(
            {"error": {"message": "m", "type": "auth_error", "param": "api_key", "code": "401"}},
            "401",
            "auth_error",
            id="LiteLLM: a code that is a string",
        ),
        pytest.param({"detail": "Invalid API key"}, None, None, id="FastAPI: a text"),
        pytest.param({"detail": {"message": "m", "code": "c"}}, "c", None, id="FastAPI: an object"),
        pytest.param(
            {"detail": {"error": {"message": "m", "type": "t", "code": "c"}}},
            "c",
            "t",
            id="FastAPI: nested",
        ),
        pytest.param(
            {"detail": [{"loc": ["body"], "msg": "m", "type": "missing"}]},
            None,
            None,
            id="FastAPI: validation",
        ),
        pytest.param(
            {"error": {"type": "t", "code": "C", "status": 401, "detail": "d", "context": {}}},
            "C",
            "t",
            id="Gatewayz",
        ),
        pytest.param(
            {"error": {"code": 502, "message": "m", "metadata": {}}}, "502", None, id="OpenRouter"
        ),
        pytest.param(
            {"type": "error", "error": {"type": "t", "message": "m"}}, None, "t", id="Anthropic"
        ),
        pytest.param(
            {"type": "error", "error": {"type": "error", "code": "error", "message": "m"}},
            None,
            None,
            id="the word error is no type",
        ),
        pytest.param({"error": "m m", "code": "C"}, "C", None, id="a code beside a text"),
        pytest.param({"error": "invalid_grant"}, "invalid_grant", None, id="OAuth"),
        pytest.param([{"error": {"code": 400}}], "400", None, id="in an array"),
        pytest.param("invalid_grant", "invalid_grant", None, id="a bare string"),
        pytest.param({"error": {"code": True, "type": 7}}, None, "7", id="of odd types"),
        pytest.param({"error": {"code": [], "type": {}}}, None, None, id="of wrong types"),
    ],
)
def test_code_and_type_are_found_in_every_shape(
    body: object, code: str | None, type_: str | None
) -> None:
    error = response(401, body)
    assert (error.code, error.type) == (code, type_)


@pytest.mark.parametrize(
    ("headers", "body", "request_id"),
    [
        ({"x-request-id": "a"}, {"error": {"request_id": "b"}}, "a"),
        ({"request-id": "a"}, {}, "a"),
        ({}, {"error": {"request_id": "b"}, "request_id": "c"}, "b"),
        ({}, {"type": "error", "error": {"type": "t"}, "request_id": "c"}, "c"),
        ({}, {}, None),
    ],
)
def test_the_request_id_comes_from_a_header_or_the_body(
    headers: dict[str, str], body: object, request_id: str | None
) -> None:
    assert response(500, body, headers).request_id == request_id


# Frames of a stream.


@pytest.mark.parametrize(
    ("error", "error_class", "retryable"),
    [
        ({"type": "rate_limit_error"}, RateLimitError, True),
        ({"type": "capacity_error"}, InternalServerError, True),
        ({"type": "provider_error"}, InternalServerError, True),
        ({"type": "provider_error", "status": 502}, InternalServerError, True),
        ({"type": "timeout_error"}, InternalServerError, True),
        ({"type": "not_found_error"}, NotFoundError, False),
        ({"type": "auth_error"}, AuthenticationError, False),
        ({"type": "auth_error", "status": 500}, AuthenticationError, False),
        ({"type": "authentication_error"}, AuthenticationError, False),
        # 403 is a valid key without the right, whatever word is beside it.
        ({"type": "auth_error", "status": 403}, PermissionDeniedError, False),
        ({"type": "authentication_error", "code": "403"}, PermissionDeniedError, False),
        ({"type": "overloaded_error"}, InternalServerError, True),
        ({"type": "stream_error"}, InternalServerError, True),
        ({"type": "stream_timeout"}, InternalServerError, True),
        ({"type": "empty_stream_error", "status": 502}, InternalServerError, True),
        ({"type": "plan_limit_exceeded", "status": 429}, PaymentRequiredError, False),
        ({"type": "insufficient_quota", "status": 429}, PaymentRequiredError, False),
        ({"type": "invalid_request_error", "code": "invalid_api_key"}, AuthenticationError, False),
        ({"type": "invalid_request_error"}, BadRequestError, False),
        ({"type": "permission_error"}, PermissionDeniedError, False),
        ({"type": "api_error"}, InternalServerError, True),
        ({"type": "something_new"}, InternalServerError, True),
        ({}, InternalServerError, True),
        # A number says more than "it failed".
        ({"type": "stream_error", "status": 429}, RateLimitError, True),
        ({"type": "provider_error", "code": 400}, BadRequestError, False),
        ({"type": "provider_error", "code": 403}, PermissionDeniedError, False),
        ({"type": "something_new", "status": "503"}, InternalServerError, True),
        ({"code": 401}, AuthenticationError, False),
        ({"code": "402"}, PaymentRequiredError, False),
        ({"code": 404}, NotFoundError, False),
        ({"code": 501}, InternalServerError, False),
        # That is the gateway's own key with the model's provider: ours is not in question.
        ({"type": "provider_error", "status": 401}, InternalServerError, False),
        # These numbers are no statuses.
        ({"code": 1301}, InternalServerError, True),
        ({"code": 200}, InternalServerError, True),
    ],
)
def test_a_frame_goes_by_its_words_then_by_its_status(
    error: dict[str, object], error_class: type[GatewayError], retryable: bool
) -> None:
    got = frame({"error": error})
    assert type(got) is error_class
    assert got.retryable is retryable
    assert got.type == error.get("type")


def test_a_frame_names_its_status() -> None:
    assert frame({"error": {"type": "x", "status": 502}}).status == 502
    assert frame({"error": {"code": "429"}}).status == 429
    assert frame({"type": "error", "status": 401, "error": {"code": "x"}}).status == 401
    assert frame({"error": {"type": "rate_limit_error"}}).status is None


# The message.


@pytest.mark.parametrize("status", [*range(200, 600)])
def test_a_message_quotes_nothing_that_the_server_sent(status: int) -> None:
    secret = "sk-secret"
    said = {key: f"{secret} {key}" for key in ("message", "code", "type", "param", "request_id")}
    for body in (
        {"error": said},
        {"detail": secret},
        {"error": secret},
        {"type": "error", "error": said, **said},
        secret,
    ):
        error = response(status, body, {"x-request-id": secret, "location": secret})
        assert secret not in str(error)
        assert secret not in repr(error)
        assert secret not in "".join(map(str, error.args))


def test_a_guest_is_told_to_sign_in() -> None:
    error = response(401, {"error": {"code": "GUEST_NOT_CONFIGURED", "message": "m"}})
    assert type(error) is AuthenticationError
    assert error.code == "GUEST_NOT_CONFIGURED"
    assert str(error) == "The gateway takes no guests (401): sign in first, or give an API key."


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            response(429, b"", {"retry-after": "11.2"}),
            "The gateway has had too many requests (429): send fewer, or wait 12 s.",
        ),
        (
            response(429, b"", {"x-ratelimit-scope": "upstream"}),
            "The model's provider has had too many requests (429): send fewer, or wait.",
        ),
        (
            response(429, {"error": {"message": "Concurrency limit reached"}}),
            "The gateway has had too many requests at the same time (429): send fewer, or wait.",
        ),
        (
            response(413),
            "The request is too large for the gateway (413): shorten the conversation.",
        ),
        (
            response(400, {"error": {"code": "context_length_exceeded"}}),
            "The conversation is too long for the model (400): shorten it.",
        ),
        (
            frame({"error": {"type": "auth_error"}}),
            "The gateway rejected the API key: sign in again, or give a valid key.",
        ),
    ],
)
def test_a_message_says_what_happened_and_what_to_do(error: GatewayError, message: str) -> None:
    assert str(error) == message


# When to try again.


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": " 0.5 "}, 0.5),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": formatdate(NOW + 30, usegmt=True)}, 30.0),
        ({"retry-after": formatdate(NOW - 30, usegmt=True)}, 0.0),
        ({"retry-after": "Fri, 15 Jan 2027 08:00:30 -0000"}, 30.0),
        ({"retry-after": str(NOW + 9)}, 9.0),
        ({"retry-after-ms": "1500", "retry-after": "7"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "7"}, 7.0),
        ({"ratelimit-reset": "50"}, 50.0),
        ({"retry-after": "7", "ratelimit-reset": "50"}, 7.0),
        ({"x-ratelimit-reset": "12ms"}, 0.012),
        ({"x-ratelimit-reset-requests": "6m0s"}, 360.0),
        ({"x-ratelimit-reset-requests": "1h2m3.5s"}, 3723.5),
        ({"x-ratelimit-reset-requests": "1d"}, 86400.0),
        ({"x-ratelimit-reset-tokens": "500us"}, 0.0005),
        ({"x-ratelimit-reset-requests": f"{NOW + 12:.0f}"}, 12.0),
        ({"x-ratelimit-reset": f"{(NOW + 12) * 1000:.0f}"}, 12.0),
        ({"x-ratelimit-reset": f"{NOW - 12:.0f}"}, 0.0),
        ({"anthropic-ratelimit-requests-reset": "2027-01-15T08:00:30Z"}, 30.0),
        ({"anthropic-ratelimit-tokens-reset": "2027-01-15T09:00:30+01:00"}, 30.0),
        ({"x-ratelimit-reset-requests": "2s", "x-ratelimit-reset-tokens": "5s"}, 5.0),
        (
            {
                "x-ratelimit-reset-requests": "2s",
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-tokens": "6m0s",
                "x-ratelimit-remaining-tokens": "149984",
            },
            2.0,
        ),
        ({"x-ratelimit-reset-tokens": "6m0s", "x-ratelimit-remaining-tokens": "10"}, None),
        ({"x-ratelimit-limit": "100", "ratelimit-remaining": "0"}, None),
    ],
)
def test_when_to_try_again_is_read_from_headers(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert response(429, b"", headers).hints.retry_after == pytest.approx(seconds)  # pyright: ignore[reportUnknownMemberType]


def test_a_date_without_a_zone_is_of_utc_and_not_of_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """RFC 9110 section 5.6.7: an HTTP date is in UTC."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        error = response(503, b"", {"retry-after": "Fri, 15 Jan 2027 08:00:30 -0000"})
        assert error.hints.retry_after == 30.0
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    "value",
    [
        "",
        "soon",
        "-1",
        "nan",
        "inf",
        "1e400",
        "9" * 400,
        "6m0",
        "ms",
        "1_000",
        "٣",
        "0x10",
        "Fri, 99 Foo 2027 08:00:30 GMT",
        "2027-13-01",
        "Mon, 01 Jan 99999 00:00:00 GMT",
        "\ud800",
    ],
)
@pytest.mark.parametrize("name", ["retry-after", "retry-after-ms", "ratelimit-reset"])
def test_what_is_no_time_is_ignored(name: str, value: str) -> None:
    assert response(429, b"", {name: value}).hints.retry_after is None


def test_a_limits_reset_is_no_reason_to_wait_where_the_limit_is_not_the_trouble() -> None:
    assert response(503, b"", {"x-ratelimit-reset-requests": "6m0s"}).hints.retry_after is None
    assert response(503, b"", {"retry-after": "2"}).hints.retry_after == 2.0


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        ({"error": {"type": "t", "context": {"retry_after": 8}}}, 8.0),
        ({"error": {"type": "t", "context": {"retry_after": "8.5"}}}, 8.5),
        ({"error": {"retry_after": 8}}, 8.0),
        ({"detail": {"message": "m", "retry_after": 8}}, 8.0),
        ({"retry_after": 8}, 8.0),
        ({"retry_after": True}, None),
        ({"retry_after": -1}, None),
        ({"retry_after": None}, None),
        ({"error": {"context": 8}}, None),
    ],
)
def test_when_to_try_again_is_read_from_the_body(
    body: dict[str, object], seconds: float | None
) -> None:
    assert response(429, body).hints.retry_after == seconds
    assert response(429, body, {"retry-after": "3"}).hints.retry_after == 3.0
    assert frame(body).hints.retry_after == seconds


@pytest.mark.parametrize(
    ("value", "told"), [("true", True), ("False", False), ("maybe", None), ("", None)]
)
@pytest.mark.parametrize("status", [400, 503])
def test_x_should_retry_overrides(value: str, told: bool | None, status: int) -> None:
    error = response(status, b"", {"x-should-retry": value})
    assert error.hints.should_retry is told
    assert error.retryable is ((status == 503) if told is None else told)


@pytest.mark.parametrize(
    ("headers", "body", "limit"),
    [
        ({}, {"error": {"message": "Rate limit exceeded"}}, "user"),
        ({"x-ratelimit-scope": "user"}, {}, "user"),
        ({"x-ratelimit-scope": "Upstream"}, {"error": {"message": "burst"}}, "upstream"),
        ({}, {"detail": "Burst limit exceeded"}, "burst"),
        ({}, {"error": {"message": "m", "reason": "Too many concurrent requests"}}, "burst"),
        ({}, {"error": {"code": "CONCURRENT_REQUEST_LIMIT"}}, "burst"),
        ({}, {"detail": [{"msg": "concurrency limit"}]}, "burst"),
    ],
)
def test_which_limit_it_was(headers: dict[str, str], body: object, limit: str) -> None:
    assert response(429, body, headers).hints.limit == limit


def test_a_plain_text_may_name_the_limit_too() -> None:
    assert response(429, b"Too many concurrent requests").hints.limit == "burst"


def test_every_word_that_we_know_means_a_class() -> None:
    words = errors._CLASSES  # pyright: ignore[reportPrivateUsage]
    for word, error_class in words.items():
        assert word == word.lower()
        assert type(frame({"error": {"type": word.upper()}})) is error_class
