"""The error tree: what can go wrong with a reply, in the words of the OpenAI SDK where it has one.

A message is written here, for a person; it quotes nothing that a server sent, because servers
echo keys. What the server sent is in the attribute `body`.

The classes come first, then how a response (`error_from_response`) or a frame of a stream
(`error_from_frame`) becomes one of them. Neither function raises, whatever a server sends.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import ClassVar, Literal

from . import lenient_json


@dataclass(frozen=True, slots=True)
class RetryHints:
    """What the server said about trying again; read by `_protocol.retry` alone.

    Args:
        retry_after: Seconds to wait, from `retry-after-ms`, `Retry-After` or a limit's reset.
        should_retry: The header `x-should-retry`.
        limit: `"upstream"` where the model's provider is busy (`X-RateLimit-Scope`), `"burst"`
            where the message names a burst or concurrency limit, else `"user"`.
    """

    retry_after: float | None = None
    should_retry: bool | None = None
    limit: Literal["user", "upstream", "burst"] = "user"


NO_HINTS = RetryHints()


class GatewayError(Exception):
    """Everything that this library raises on behalf of a gateway, a network or a key.

    Args:
        message: Safe to show to a user.
        status: The HTTP status, or the one that an error frame named.
        code: The error's code, as the server sent it.
        type: The error's type, as the server sent it.
        request_id: The server's `x-request-id`.
        retryable: Whether the same request may succeed later; the class has a default.
        body: What the server sent, as it came. May hold secrets: do not log it.
        hints: What the server said about trying again.

    Attributes:
        partial: The text that the reply had delivered before it failed.

    >>> try:
    ...     raise RateLimitError("too many requests", status=429)
    ... except GatewayError as error:
    ...     print(error, error.status, error.retryable)
    too many requests 429 True
    """

    _retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        type: str | None = None,
        request_id: str | None = None,
        retryable: bool | None = None,
        body: bytes | None = None,
        hints: RetryHints = NO_HINTS,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.type = type
        self.request_id = request_id
        self.retryable = self._retryable if retryable is None else retryable
        self.body = body
        self.hints = hints
        self.partial = ""

    def another(self, message: str | None = None) -> GatewayError:
        """The same error as an exception of its own, for the next of many who get it.

        One exception object raised in many tasks would collect all their tracebacks.
        """
        copy = type(self)(str(self) if message is None else message)
        own = {name: value for name, value in vars(self).items() if name != "__notes__"}
        vars(copy).update(own)
        copy.__cause__ = self.__cause__
        return copy


class AuthenticationError(GatewayError):
    """The key was rejected (401), or there is none."""


class PermissionDeniedError(GatewayError):
    """The key is valid but lacks the right (403); a refresh cannot help."""


class NotFoundError(GatewayError):
    """No such model or route (404)."""


class PaymentRequiredError(GatewayError):
    """No credits, or the quota is used up (402, `insufficient_quota`)."""


class RateLimitError(GatewayError):
    """Too many requests (429)."""

    _retryable = True


class BadRequestError(GatewayError):
    """The gateway does not accept the request (400, 413, 422 and other 4xx)."""


class InternalServerError(GatewayError):
    """The gateway, or the model's provider behind it, failed (5xx)."""

    _retryable = True


class APIConnectionError(GatewayError):
    """The connection could not be made, or broke."""

    _retryable = True


class EmptyResponseError(GatewayError):
    """The reply was complete, but held no text, no reasoning and no tool call."""

    _retryable = True


class ProtocolError(GatewayError):
    """The server's bytes are not what the protocol allows."""


class StreamInterrupted(GatewayError):
    """The reply broke and could not be taken up again; `partial` is the exact text so far."""


class StreamTimeout(GatewayError):
    """The server was silent for too long; the message says which timeout passed.

    Retryable where the wait for a token was too long; not where the whole reply took too long. A
    connection that was not made in time is an `APIConnectionError`: nothing was sent.

    Args:
        message: As for `GatewayError`.
        which: The field of `Timeouts`, or `None` where it is not known.
        retryable: As for `GatewayError`.

    >>> StreamTimeout("no next token came within 120 s", which="between_tokens").which
    'between_tokens'
    """

    _retryable = True

    def __init__(
        self,
        message: str,
        *,
        which: Literal["first_token", "between_tokens", "total"] | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message, retryable=retryable)
        self.which = which


class RefreshError(AuthenticationError):
    """No new key could be had."""


class RefreshTimeout(RefreshError):
    """No new key came within the time that a refresh may take (30 seconds)."""


class KeyStoreError(GatewayError):
    """The key store could not be read or written; what it holds was left as it is."""


# Statuses after which the same request may succeed (408 and 409: the server gave up on it; 520 to
# 524: Cloudflare could not reach the gateway; 529: overloaded).
RETRYABLE_STATUSES = frozenset({408, 409, 429, 500, 502, 503, 504, *range(520, 525), 529})

# Error types and codes that gateways send, in lower case, and what they mean. Looked up by code
# first, then by type.
_PAYMENT = (
    "insufficient_quota budget_exceeded plan_limit_exceeded plan_limit_reached "
    "daily_quota_exceeded monthly_quota_exceeded insufficient_credits credit_below_minimum "
    "insufficient_balance insufficient_funds payment_required payment_method_required "
    "payment_failed invoice_overdue billing_error billing_hard_limit_reached billing_not_active"
)
_AUTHENTICATION = (
    "auth_error authentication_error invalid_api_key expired_key token_not_found_in_db "
    "unauthorized guest_not_configured api_key_expired api_key_revoked api_key_missing "
    "api_key_malformed authentication_required"
)
_PERMISSION = "permission_error permission_denied permission_denied_error access_denied forbidden"
_NOT_FOUND = "not_found_error not_found notfounderror model_not_found"
_RATE_LIMIT = (
    "rate_limit_error rate_limit_exceeded rate_limited too_many_requests token_rate_limit "
    "concurrent_request_limit hourly_quota_exceeded provider_rate_limited"
)
_BAD_REQUEST = (
    "invalid_request_error badrequesterror validation_error request_too_large "
    "context_length_exceeded content_policy_violation"
)
_SERVER = (
    "provider_error capacity_error overloaded_error timeout_error stream_error stream_timeout "
    "empty_stream_error server_error internal_error internal_server_error internalservererror "
    "api_error service_unavailable provider_timeout provider_unavailable"
)
_CLASSES: dict[str, type[GatewayError]] = {
    word: error_class
    for error_class, words in (
        (PaymentRequiredError, _PAYMENT),
        (AuthenticationError, _AUTHENTICATION),
        (PermissionDeniedError, _PERMISSION),
        (NotFoundError, _NOT_FOUND),
        (RateLimitError, _RATE_LIMIT),
        (BadRequestError, _BAD_REQUEST),
        (InternalServerError, _SERVER),
    )
    for word in words.split()
}

# Gatewayz's history routes wrap the gateway's own 401 into a 500.
_WRAPPED_401 = re.compile(
    r"\b401: .*(api key|authori[sz]|authenticat|token|sign in)", re.IGNORECASE
)
_BURST = re.compile(r"burst|concurren", re.IGNORECASE)
_WORD = re.compile(r"[\w.-]{1,64}", re.ASCII)


def error_from_response(
    status: int, headers: Mapping[str, str], body: bytes, *, now: float
) -> GatewayError:
    """The error that an HTTP response means.

    Args:
        status: Its status; a redirect is an error too, a request with a key follows none.
        headers: Its headers, names in lower case.
        body: Its body, as far as it came; JSON, HTML or nothing.
        now: The time in seconds of Unix time, for headers that name one.

    >>> error_from_response(503, {"retry-after": "2"}, b"<html>", now=0).hints.retry_after
    2.0
    """
    sent = _Sent.of_body(body)
    hints = _hints(sent, headers, now)
    named: int | None = status
    if status >= 300:
        error_class = _class_of_response(status, sent)
    elif sent.says_error:  # OpenRouter: 200, and the body is an error.
        error_class, named = _class_of_frame(sent), sent.status
    else:
        error_class = ProtocolError
    if error_class is RateLimitError and hints.retry_after is None:
        hints = RetryHints(_reset(headers, now), hints.should_retry, hints.limit)
    request_id = headers.get("x-request-id") or headers.get("request-id")
    return _error(sent, error_class, named, body, hints, request_id=request_id)


def error_from_frame(frame: dict[str, object], *, body: bytes) -> GatewayError:
    """The error that a frame of a stream means; a stream's frames come after a 200.

    Args:
        frame: The frame: what `error` holds, and what lies beside it.
        body: The frame's bytes, as they came.

    >>> error_from_frame({"error": {"type": "rate_limit_error", "status": 429}}, body=b"")
    RateLimitError('The gateway has had too many requests (429): send fewer, or wait.')
    """
    sent = _Sent(frame)
    return _error(sent, _class_of_frame(sent), sent.status, body, _hints(sent, {}, 0.0))


class _Sent:
    """What a server said about an error, found in any of the shapes that servers use."""

    def __init__(self, frame: dict[str, object], text: str = "") -> None:
        layers = list(_layers(frame))
        self.says_error = bool(frame.get("error")) or frame.get("type") == "error"
        self.code = _first(layers, "code")
        self.type = _first(layers, "type")
        self.request_id = _first(layers, "request_id")
        # Only matched against patterns, never shown.
        self.wording = " ".join([text, *_wording(layers)])
        if self.code is None:
            # `{"error": "invalid_grant"}`
            words = (layer.get("error") for layer in layers)
            self.code = next((w for w in words if isinstance(w, str) and _WORD.fullmatch(w)), None)
        self.status = next(
            filter(None, map(_status, (*_values(layers, "status"), self.code))), None
        )
        contexts = [*layers, *filter(None, map(lenient_json.as_object, _values(layers, "context")))]
        waits = (_number(value) for value in _values(contexts, "retry_after"))
        self.retry_after = next((wait for wait in waits if wait is not None), None)

    @classmethod
    def of_body(cls, body: bytes) -> _Sent:
        try:
            value = lenient_json.decode(body)
        except ValueError:
            return cls({}, body[:4096].decode("utf-8", "replace"))
        if isinstance(value, str):
            return cls({"error": value})
        # Some send an array with the object in it.
        frame = lenient_json.as_object(value) or next(iter(lenient_json.objects(value)), None)
        return cls(frame or {})

    def words(self) -> Iterator[str]:
        for word in (self.code, self.type):
            if word is not None:
                yield word.lower()


def _layers(frame: dict[str, object]) -> Iterator[dict[str, object]]:
    """The objects in which an error's fields may lie, the innermost first."""
    for key in ("error", "detail"):
        outer = lenient_json.as_object(frame.get(key))
        if outer is not None:
            for inner_key in ("error", "detail"):
                inner = lenient_json.as_object(outer.get(inner_key))
                if inner is not None:
                    yield inner
            yield outer
    yield frame


def _values(layers: list[dict[str, object]], key: str) -> Iterator[object]:
    return (layer[key] for layer in layers if layer.get(key) is not None)


def _first(layers: list[dict[str, object]], key: str) -> str | None:
    """The first text under `key`; a number (OpenRouter's codes) as text."""
    for value in _values(layers, key):
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        # `"type": "error"` only says that this is an error.
        if isinstance(value, str) and value and value != "error":
            return value
    return None


def _wording(layers: list[dict[str, object]]) -> Iterator[str]:
    for layer in layers:
        for key in ("message", "detail", "error", "reason", "type", "code"):
            value = layer.get(key)
            for text in (value, *(item.get("msg") for item in lenient_json.objects(value))):
                if isinstance(text, str):
                    yield text


def _status(value: object) -> int | None:
    if isinstance(value, str) and len(value) == 3 and value.isascii() and value.isdigit():
        value = int(value)
    return value if isinstance(value, int) and 400 <= value < 600 else None


def _class_of_status(status: int) -> type[GatewayError]:
    if status >= 500:
        return InternalServerError
    return {
        401: AuthenticationError,
        402: PaymentRequiredError,
        403: PermissionDeniedError,
        404: NotFoundError,
        429: RateLimitError,
    }.get(status, BadRequestError)


def _class_of_response(status: int, sent: _Sent) -> type[GatewayError]:
    """A response goes by its status, except where the body knows better."""
    named = {_CLASSES[word] for word in sent.words() if word in _CLASSES}
    if PaymentRequiredError in named and status in (400, 403, 429):
        return PaymentRequiredError
    if status in (400, 500) and AuthenticationError in named:
        return AuthenticationError
    if status == 500 and _WRAPPED_401.search(sent.wording):
        return AuthenticationError
    return _class_of_status(status)


def _class_of_frame(sent: _Sent) -> type[GatewayError]:
    """A frame goes by its words; by its status where they say nothing, or only "it failed"."""
    named = next((_CLASSES[word] for word in sent.words() if word in _CLASSES), None)
    if named is AuthenticationError and sent.status == 403:
        return PermissionDeniedError  # A valid key, whatever the words: never refreshed.
    if named is None or named in (InternalServerError, BadRequestError):
        # `provider_error` with 401 is about the gateway's own key with the model's provider.
        if sent.status is not None and not (named is InternalServerError and sent.status == 401):
            return _class_of_status(sent.status)
        return named or InternalServerError
    return named


def _error(
    sent: _Sent,
    error_class: type[GatewayError],
    status: int | None,
    body: bytes,
    hints: RetryHints,
    *,
    request_id: str | None = None,
) -> GatewayError:
    retryable: bool | None = None  # The default of the class.
    if error_class not in (AuthenticationError, PaymentRequiredError):
        if hints.should_retry is not None:
            retryable = hints.should_retry
        elif status is not None:
            retryable = status in RETRYABLE_STATUSES
    return error_class(
        _message(error_class, status, sent, hints),
        status=status,
        code=sent.code,
        type=sent.type,
        request_id=request_id or sent.request_id,
        retryable=retryable,
        body=body,
        hints=hints,
    )


def _message(
    error_class: type[GatewayError], status: int | None, sent: _Sent, hints: RetryHints
) -> str:
    """What happened, and what to do. Nothing of what the server sent but numbers."""
    number = "" if status is None else f" ({status})"
    if error_class is AuthenticationError:
        if "guest_not_configured" in sent.words():
            return f"The gateway takes no guests{number}: sign in first, or give an API key."
        return f"The gateway rejected the API key{number}: sign in again, or give a valid key."
    if error_class is PaymentRequiredError:
        return (
            f"The credits or the plan's quota are used up{number}: add credits, or raise the "
            "limit, where the key was issued."
        )
    if error_class is PermissionDeniedError:
        return (
            f"The API key has no right to this{number}: check its subscription, its models, and "
            "the addresses and domains that it is bound to."
        )
    if error_class is NotFoundError:
        return f"The gateway has no such model or route{number}: check the model and the base URL."
    if error_class is RateLimitError:
        who = "The model's provider" if hints.limit == "upstream" else "The gateway"
        what = "requests at the same time" if hints.limit == "burst" else "requests"
        wait = "wait"
        if hints.retry_after is not None:
            wait += f" {math.ceil(hints.retry_after)} s"
        return f"{who} has had too many {what}{number}: send fewer, or {wait}."
    if error_class is ProtocolError:
        return (
            f"The gateway's answer{number} is no reply of a model: is the base URL that of an "
            "OpenAI-compatible API?"
        )
    if error_class is BadRequestError:
        if status is not None and status < 400:
            return (
                f"The gateway answered with a redirect{number}, which is not followed with a "
                "key: give the address that it leads to as the base URL."
            )
        if status == 413 or "request_too_large" in sent.words():
            return f"The request is too large for the gateway{number}: shorten the conversation."
        if "context_length_exceeded" in sent.words():
            return f"The conversation is too long for the model{number}: shorten it."
        if status in (408, 409):
            return f"The gateway gave up on the request{number}: try again."
        return (
            f"The gateway does not accept the request{number}: check the model and the "
            "parameters; the error's `body` is what the gateway said."
        )
    return (
        f"The gateway, or the model's provider behind it, failed{number}: try again later; the "
        "error's `body` is what the gateway said."
    )


def _hints(sent: _Sent, headers: Mapping[str, str], now: float) -> RetryHints:
    retry_after = _number(headers.get("retry-after-ms"))
    if retry_after is not None:
        retry_after /= 1000
    else:
        retry_after = _seconds(headers.get("retry-after"), now)
    if retry_after is None:
        retry_after = sent.retry_after
    limit: Literal["user", "upstream", "burst"] = "user"
    if headers.get("x-ratelimit-scope", "").strip().lower() == "upstream":
        limit = "upstream"
    elif _BURST.search(sent.wording):
        limit = "burst"
    should_retry = headers.get("x-should-retry", "").strip().lower()
    return RetryHints(retry_after, {"true": True, "false": False}.get(should_retry), limit)


def _reset(headers: Mapping[str, str], now: float) -> float | None:
    """When the limit that is used up is reset, in seconds from now.

    A limit of which something remains is not the one: its reset is when it is whole again.
    """
    waits = [
        wait
        for name, value in headers.items()
        if "ratelimit" in name
        and "reset" in name
        and not _number(headers.get(name.replace("reset", "remaining")))
        and (wait := _seconds(value, now)) is not None
    ]
    return max(waits, default=None)


_NUMBER = re.compile(r"\d{1,20}(\.\d{0,20})?", re.ASCII)
_DURATION = re.compile(r"(?:\d{1,20}(?:\.\d{0,20})?(?:ms|us|µs|ns|d|h|m|s))+", re.ASCII)
_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


def _number(value: object) -> float | None:
    """A number that is neither negative nor boundless, from a header or from JSON."""
    if isinstance(value, str):
        return float(value) if _NUMBER.fullmatch(value := value.strip()) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e20:
        return None
    return float(value)


def _seconds(value: str | None, now: float) -> float | None:
    """Seconds from `now`, of all the ways in which servers write them; `None` if it is none.

    A number is a Unix time in milliseconds above 1e12, in seconds above 1e9, else seconds; a
    duration is Go's (`6m0s`); a date is HTTP's (RFC 9110 section 5.6.7) or RFC 3339's.
    """
    if value is None:
        return None
    value = value.strip()
    number = _number(value)
    if number is not None:
        if number > 1e9:
            return max(0.0, (number / 1000 if number > 1e12 else number) - now)
        return number
    if _DURATION.fullmatch(value):
        parts = re.findall(r"([\d.]+)([a-zµ]+)", value)
        return math.fsum(float(amount) * _UNITS[unit] for amount, unit in parts)
    for parse in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            date = parse(value)
            if date.tzinfo is None:
                date = date.replace(tzinfo=UTC)
            return max(0.0, date.timestamp() - now)
        except (ValueError, TypeError, OverflowError, IndexError):
            continue
    return None
