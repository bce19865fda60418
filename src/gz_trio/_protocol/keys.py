"""A key, and the record that a key store holds: the values that every rule of refresh is about."""

from __future__ import annotations

import math
import re
from base64 import urlsafe_b64decode
from contextlib import suppress
from dataclasses import dataclass

from . import lenient_json

# RFC 9110 section 5.5: a field value is visible ASCII. A space would end the credential in
# `Authorization: Bearer`, a newline would start a header of its own.
_SENDABLE = re.compile(r"[\x21-\x7e]+")

KEY_HEADERS = frozenset({"authorization", "x-api-key", "api-key"})
"""The names of the headers that may carry a key, in lower case: OpenAI's, Anthropic's, Azure's."""


@dataclass(frozen=True, slots=True, repr=False)
class Key:
    """One API key, as a key store holds it. Neither `repr` nor `str` shows a secret.

    Args:
        value: What is sent to the gateway; one or more visible ASCII characters (RFC 9110
            section 5.5), no spaces, no newline.
        expires_at: When the key ends, in seconds of Unix time, or `None` where that is unknown.
        refresh_token: The OAuth refresh token (RFC 6749 section 1.5) that was issued with it.
        generation: The key store's version that holds the key; 0 where no store has it yet.
        epoch: The store's epoch that holds the key; sign-in and sign-out raise it.

    Raises:
        ValueError: `value` is empty, blank, or holds a character that cannot be sent in a header.
            The message does not quote it.

    >>> Key("sk-secret", expires_at=1_800_000_000.0)
    <Key generation=0 epoch=0 expires_at=1800000000.0>
    """

    value: str
    expires_at: float | None = None
    refresh_token: str | None = None
    generation: int = 0
    epoch: int = 0

    def __post_init__(self) -> None:
        if not self.value or self.value.isspace():
            raise ValueError("the API key is empty: give the key that the gateway issued")
        if not _SENDABLE.fullmatch(self.value):
            raise ValueError(
                "the API key holds a space, a newline or another character that cannot be sent "
                "in a header: was it copied with something around it?"
            )

    def __repr__(self) -> str:
        expiry = "" if self.expires_at is None else f" expires_at={self.expires_at}"
        return f"<Key generation={self.generation} epoch={self.epoch}{expiry}>"


@dataclass(frozen=True, slots=True)
class Record:
    """What a key store holds: the key and the versions that guard it.

    Args:
        version: Raised by every write; a write names the version that it replaces.
        epoch: Raised by sign-in and sign-out, not by a refresh: keys of two epochs may belong
            to two accounts.
        key: The key, or `None` before the first sign-in (version 0) and after a sign-out.
        refused: The server has refused to refresh this key; only a sign-in helps.
    """

    version: int = 0
    epoch: int = 0
    key: Key | None = None
    refused: bool = False


def bare_key(value: str) -> Key:
    """The key of which `value` is all that is known: when it ends is what it says itself.

    Raises:
        ValueError: As for `Key`.
    """
    return Key(value, expires_at=jwt_expiry(value))


def jwt_expiry(value: str) -> float | None:
    """When a key that is a JSON Web Token ends: its `exp`, in seconds of Unix time.

    Read, not verified: that is for the gateway (RFC 7519 section 4.1.4). `None` where the key is
    no such token, or does not say.

    >>> jwt_expiry("eyJhbGciOiJub25lIn0.eyJleHAiOjE4MDAwMDAwMDB9.")
    1800000000.0
    """
    parts = value.split(".")
    if len(parts) != 3:
        return None
    with suppress(ValueError, OverflowError):  # neither Base64, nor JSON, nor a time
        payload = urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        claims = lenient_json.as_object(lenient_json.decode(payload)) or {}
        match claims.get("exp"):
            case bool():
                pass
            case int() | float() as end if math.isfinite(end):
                return float(end)
            case _:
                pass
    return None
