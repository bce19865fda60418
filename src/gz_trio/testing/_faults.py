"""What a `FakeGateway` can do wrong, as values; each says what happens, `fault()` says when."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

import msgspec

Dialect: TypeAlias = Literal[
    "gatewayz",
    "detail",
    "detail_object",
    "openai",
    "litellm",
    "openrouter",
    "anthropic",
    "vllm",
    "vllm_object",
    "message",
    "html",
    "empty",
]
"""Whose shape the body of an error has. `"detail"` is FastAPI's `{"detail": message}`."""

DIALECTS: tuple[Dialect, ...] = get_args(Dialect)


@dataclass(frozen=True, slots=True)
class Status:
    """The answer is this HTTP status, whatever the request and its key.

    Args:
        status: The HTTP status.
        message: What the body says; by default what a gateway says with that status.
        dialect: Whose shape the body has; by default Gatewayz's own, which is `{"detail": ...}`
            for 401 to 404 and `{"error": {...}}` for the rest.
        type: The error's type, in the dialects that have one.
        code: The error's code, in the dialects that have one.
        headers: More header fields, `retry-after` for example. The Gatewayz dialect repeats a
            numeric `retry-after` in `error.context`.
        body: The whole body, in place of one made from the above. A mapping is sent as JSON.

    >>> Status(429, headers={"retry-after": "2"})
    Status(status=429, message=None, dialect=None, type=None, code=None)
    >>> error_body(Status(401, "Unauthorized", dialect="vllm"))[1]
    b'{"error":"Unauthorized"}'
    """

    status: int
    message: str | None = None
    dialect: Dialect | None = None
    type: str | None = None
    code: str | int | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    body: bytes | str | Mapping[str, object] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not 200 <= self.status <= 599:
            raise ValueError(f"status is {self.status}, but must be from 200 to 599")


@dataclass(frozen=True, slots=True)
class ErrorFrame:
    """An error inside a stream that began with 200, then the end of the stream.

    Args:
        type: One of Gatewayz's types: `"rate_limit_error"`, `"capacity_error"`,
            `"provider_error"`, `"timeout_error"`, `"not_found_error"`, `"auth_error"`,
            `"stream_error"`, `"stream_timeout"`, `"empty_stream_error"`,
            `"plan_limit_exceeded"`; or any other.
        message: What it says; by default what the type means.
        status: The status that the frame names; by default the one that goes with the type.
        code: The frame's code; by default the status as a string.
        dialect: `"gatewayz"`: `{"error": {...}}`. `"openrouter"`: a chunk whose `error` stands
            beside `choices` with the finish reason `"error"`.
        done: Whether `data: [DONE]` follows, as it does from most gateways.
        data: The frame's whole data, in place of one made from the above.
    """

    type: str = "provider_error"
    message: str | None = None
    status: int | None = None
    code: str | int | None = None
    dialect: Literal["gatewayz", "openrouter"] = "gatewayz"
    done: bool = True
    data: bytes | Mapping[str, object] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Cut:
    """The connection is closed (FIN), without the end that chunked coding or the length asks for.

    A body that is ended by the end of the connection alone (`framing="plain"`) then looks whole
    to HTTP; only `data: [DONE]` is missing.

    Args:
        after_bytes: How many more bytes of the body are sent first; `None` sends none, and where
            the fault strikes in place of the head, not even the head. They are counted as they
            travel: compressed, and without what chunked coding puts around them.
    """

    after_bytes: int | None = None

    def __post_init__(self) -> None:
        _check_not_negative("after_bytes", self.after_bytes)


@dataclass(frozen=True, slots=True)
class Reset:
    """The connection breaks: RST on TCP, `trio.BrokenResourceError` on an in-memory stream.

    Args:
        after_bytes: As for `Cut`.
    """

    after_bytes: int | None = None

    def __post_init__(self) -> None:
        _check_not_negative("after_bytes", self.after_bytes)


@dataclass(frozen=True, slots=True)
class Close:
    """A WebSocket is closed, by a close frame (RFC 6455 section 5.5.1).

    Args:
        code: The frame's code; 1005 sends a close frame without one.
        reason: What it says beside it.
    """

    code: int = 1011
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Stall:
    """Silence, after which the answer goes on as if nothing had been.

    Args:
        seconds: How long; by default for ever.
    """

    seconds: float = math.inf

    def __post_init__(self) -> None:
        _check_not_negative("seconds", self.seconds)


@dataclass(frozen=True, slots=True)
class Drip:
    """From here on, every byte on the wire is sent alone.

    Args:
        interval: Seconds between two bytes.
    """

    interval: float = 0.0

    def __post_init__(self) -> None:
        _check_not_negative("interval", self.interval)


@dataclass(frozen=True, slots=True)
class EarlyDone:
    """A lie: the stream ends here in good order, though the text is not over.

    Args:
        finish_reason: A finish reason to send before the end; `None` sends none.
        done: Whether `data: [DONE]` is sent. Without it the body just ends, cleanly, as some
            proxies end it when the server behind them breaks.
    """

    finish_reason: str | None = None
    done: bool = True


@dataclass(frozen=True, slots=True)
class EmptyStream:
    """200, and nothing in the stream but `data: [DONE]`."""


@dataclass(frozen=True, slots=True)
class OtherText:
    """A lie: from here on, the text is not `FakeGateway.intended()`.

    Every token from there begins with `mark`.
    """

    mark: str = "≠"


@dataclass(frozen=True, slots=True)
class Insert:
    """These bytes come in between, and the stream goes on.

    Args:
        data: Sent as they are, in the body of the event stream: a frame begins with `data:`
            and ends with a blank line.
    """

    data: bytes


@dataclass(frozen=True, slots=True)
class Comment:
    """A comment line of the event stream, which only keeps the connection alive.

    Args:
        text: What follows `": "`.
    """

    text: str = "OPENROUTER PROCESSING"


@dataclass(frozen=True, slots=True)
class Warning_:  # noqa: N801  the name `Warning` is Python's own
    """A frame of the type `stream_normalization_warning`; the stream goes on."""

    message: str = "A chunk of the provider could not be normalized and was skipped"


Fault: TypeAlias = (
    Status
    | ErrorFrame
    | Cut
    | Reset
    | Close
    | Stall
    | Drip
    | EarlyDone
    | EmptyStream
    | OtherText
    | Insert
    | Comment
    | Warning_
)
"""Anything that `FakeGateway.fault` takes."""

IN_STREAM = (ErrorFrame, EarlyDone, EmptyStream, OtherText, Insert, Comment, Warning_)
"""Faults that need a body to be in: without a token, they strike before the first one."""


def _check_not_negative(name: str, value: float | None) -> None:
    if value is not None and not value >= 0:
        raise ValueError(f"{name} is {value}, but must be 0 or more")


# Status: what a gateway says with it, its type (Anthropic's and Gatewayz's), OpenAI's code.
_STATUSES: dict[int, tuple[str, str, str | None]] = {
    400: ("The request is not valid", "invalid_request_error", None),
    401: ("Invalid API key", "authentication_error", "invalid_api_key"),
    402: ("Insufficient credits", "billing_error", "insufficient_quota"),
    403: ("The key has no right to do this", "permission_error", None),
    404: ("Model not found", "not_found_error", "model_not_found"),
    408: ("The request took too long to arrive", "timeout_error", None),
    409: ("The request conflicts with another one", "conflict_error", None),
    413: ("The request is too large", "request_too_large", None),
    422: ("The request is not valid", "invalid_request_error", None),
    429: ("Rate limit exceeded", "rate_limit_error", "rate_limit_exceeded"),
    500: ("Internal server error", "api_error", None),
    502: ("The provider failed", "provider_error", None),
    503: ("The service is not available", "capacity_error", None),
    504: ("The provider took too long", "timeout_error", None),
    529: ("Overloaded", "overloaded_error", None),
}

# Type of an error frame: its status, and what it means.
FRAME_TYPES: dict[str, tuple[int, str]] = {
    "rate_limit_error": (429, "Rate limit exceeded"),
    "capacity_error": (503, "The model is at capacity"),
    "provider_error": (502, "The provider failed"),
    "timeout_error": (504, "The provider took too long"),
    "not_found_error": (404, "Model not found"),
    "auth_error": (401, "Invalid API key"),
    "stream_error": (500, "The stream failed"),
    "stream_timeout": (504, "The stream took too long"),
    "empty_stream_error": (502, "The provider sent an empty stream"),
    "plan_limit_exceeded": (429, "The plan's limit is exceeded"),
}


def error_body(fault: Status, *, request_id: str = "req_0") -> tuple[str, bytes]:
    """The media type and the body of an error answer; the type is `""` where there is no body."""
    status, body = fault.status, fault.body
    if isinstance(body, bytes):
        return "application/octet-stream", body
    if isinstance(body, str):
        return "text/plain; charset=utf-8", body.encode()
    if body is not None:
        return "application/json", msgspec.json.encode(body)

    unknown = ("The request failed", "api_error" if status >= 500 else "invalid_request_error")
    message, type_, code = _STATUSES.get(status, (*unknown, None))
    message = message if fault.message is None else fault.message
    type_ = type_ if fault.type is None else fault.type
    dialect = fault.dialect or ("detail" if 401 <= status <= 404 else "gatewayz")
    content: object
    match dialect:
        case "empty":
            return "", b""
        case "html":
            page = (
                f"<html>\r\n<head><title>{status} {message}</title></head>\r\n<body>\r\n"
                f"<center><h1>{status} {message}</h1></center>\r\n<hr><center>nginx</center>\r\n"
                "</body>\r\n</html>\r\n"
            )
            return "text/html", page.encode()
        case "vllm":
            content = {"error": message}
        case "vllm_object":
            content = {
                "object": "error",
                "message": message,
                "type": type_,
                "param": None,
                "code": status if fault.code is None else fault.code,
            }
        case "message":
            content = {"message": message}
        case "detail":
            content = {"detail": message}
            if fault.code is not None:
                content = {"detail": message, "code": fault.code}
        case "detail_object":
            content = {"detail": {"message": message, "type": type_, "code": fault.code}}
        case "openai":
            content = {
                "error": {
                    "message": message,
                    "type": type_,
                    "param": None,
                    "code": code if fault.code is None else fault.code,
                }
            }
        case "litellm":
            if status == 401 and fault.type is None:
                type_, message = "auth_error", f"Authentication Error, {message}"
            content = {
                "error": {
                    "message": message,
                    "type": type_,
                    "param": "api_key" if status == 401 else None,
                    "code": str(status) if fault.code is None else fault.code,
                }
            }
        case "openrouter":
            content = {
                "error": {
                    "code": status if fault.code is None else fault.code,
                    "message": message,
                    "metadata": {"provider_name": "Fake"},
                }
            }
        case "anthropic":
            content = {
                "type": "error",
                "error": {"type": type_, "message": message},
                "request_id": request_id,
            }
        case "gatewayz":
            fields = {name.lower(): value for name, value in fault.headers.items()}
            retry_after = fields.get("retry-after", "")
            context = {"retry_after": int(retry_after)} if retry_after.isdecimal() else {}
            content = {
                "error": {
                    "type": type_,
                    "message": message,
                    "detail": message,
                    "code": type_.upper() if fault.code is None else fault.code,
                    "status": status,
                    "request_id": request_id,
                    "timestamp": "2026-11-01T00:00:00Z",
                    "suggestions": [],
                    "context": context,
                    "docs_url": "https://docs.gatewayz.ai/errors",
                }
            }
    return "application/json", msgspec.json.encode(content)
