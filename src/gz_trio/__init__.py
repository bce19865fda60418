"""A Trio client for language-model gateways whose replies survive a key that dies in mid-reply."""

from ._auth.authenticator import Authenticator, open_authenticator
from ._auth.command_refresh import CommandRefresh
from ._auth.httpx_auth import GatewayAuth
from ._auth.refreshers import GatewayRefresh, OAuthRefresh
from ._auth.stores import (
    FileKeyStore,
    KeyringKeyStore,
    KeyStore,
    MemoryKeyStore,
    RedisKeyStore,
)
from ._chat.attempts import Attempt, Timing
from ._chat.gateway import Gateway, open_gateway, open_session
from ._chat.history import History
from ._chat.reply import Reply
from ._chat.session import Session
from ._protocol.errors import (
    APIConnectionError,
    AuthenticationError,
    BadRequestError,
    EmptyResponseError,
    GatewayError,
    InternalServerError,
    KeyStoreError,
    NotFoundError,
    PaymentRequiredError,
    PermissionDeniedError,
    ProtocolError,
    RateLimitError,
    RefreshError,
    RefreshTimeout,
    StreamInterrupted,
    StreamTimeout,
)
from ._protocol.events import (
    Delta,
    Finished,
    Paused,
    RateLimited,
    RawEvent,
    ReplyEvent,
    Restarted,
    Resumed,
    ToolCallDelta,
    Usage,
)
from ._protocol.history import (
    HistoryFeedback,
    HistoryMessage,
    HistorySession,
    HistoryStats,
    SaveError,
)
from ._protocol.keys import Key, Record
from ._protocol.refresh import AuthState, AuthStatus
from ._protocol.settings import ResumePolicy, RetryPolicy, Timeouts
from ._transport.httpx_transport import httpx_transport

__all__ = [
    "APIConnectionError",
    "Attempt",
    "AuthState",
    "AuthStatus",
    "AuthenticationError",
    "Authenticator",
    "BadRequestError",
    "CommandRefresh",
    "Delta",
    "EmptyResponseError",
    "FileKeyStore",
    "Finished",
    "Gateway",
    "GatewayAuth",
    "GatewayError",
    "GatewayRefresh",
    "History",
    "HistoryFeedback",
    "HistoryMessage",
    "HistorySession",
    "HistoryStats",
    "InternalServerError",
    "Key",
    "KeyStore",
    "KeyStoreError",
    "KeyringKeyStore",
    "MemoryKeyStore",
    "NotFoundError",
    "OAuthRefresh",
    "Paused",
    "PaymentRequiredError",
    "PermissionDeniedError",
    "ProtocolError",
    "RateLimitError",
    "RateLimited",
    "RawEvent",
    "Record",
    "RedisKeyStore",
    "RefreshError",
    "RefreshTimeout",
    "Reply",
    "ReplyEvent",
    "Restarted",
    "ResumePolicy",
    "Resumed",
    "RetryPolicy",
    "SaveError",
    "Session",
    "StreamInterrupted",
    "StreamTimeout",
    "Timeouts",
    "Timing",
    "ToolCallDelta",
    "Usage",
    "httpx_transport",
    "open_authenticator",
    "open_gateway",
    "open_session",
]
