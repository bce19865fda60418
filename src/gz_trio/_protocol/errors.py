"""The error tree: what can go wrong with a reply, in the words of the OpenAI SDK where it has one.

A message is written here, for a person; it quotes nothing that a server sent, because servers
echo keys. What the server sent is in the attribute `body`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal


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
        copy = type(self)(
            str(self) if message is None else message,
            status=self.status,
            code=self.code,
            type=self.type,
            request_id=self.request_id,
            retryable=self.retryable,
            body=self.body,
            hints=self.hints,
        )
        copy.partial = self.partial
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
    """The server was silent for too long; the message says which timeout passed."""


class RefreshError(AuthenticationError):
    """No new key could be had."""


class RefreshTimeout(RefreshError):
    """No new key came within the time that a refresh may take (30 seconds)."""
