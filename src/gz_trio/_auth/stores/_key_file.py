"""The key file's content, as bytes in and bytes out: JSON for several profiles, or one bare key.

What is written::

    {"format": 1, "profiles": {"default": {"version": 3, "epoch": 1, "refused": false,
     "key": {"value": "...", "expires_at": null, "refresh_token": null, "generation": 3}}}}
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec

from ..._protocol import lenient_json
from ..._protocol.errors import KeyStoreError
from ..._protocol.keys import Key, Record

FORMAT = 1
LIMIT = 1 << 20
"""Bytes; a larger file was given by mistake."""

_Count = Annotated[int, msgspec.Meta(ge=0)]


class _Key(msgspec.Struct, frozen=True, kw_only=True):
    value: str
    expires_at: float | None = None
    refresh_token: str | None = None
    generation: _Count


class _Profile(msgspec.Struct, frozen=True, kw_only=True):
    version: _Count
    epoch: _Count
    refused: bool = False
    key: _Key | None


class _Head(msgspec.Struct, frozen=True):
    format: int


class _File(msgspec.Struct, frozen=True):
    format: int
    profiles: dict[str, msgspec.Raw]


@dataclass(frozen=True, slots=True)
class Content:
    """What the file says of one profile, and what is around it; two are equal by the former.

    Args:
        record: The profile's record; `Record()` where the file or the profile is missing.
        bare: The file is one line, a key.
        profiles: All profiles, as they came: the others are written back so.
        open_to_others: Other users can read or write the file.
    """

    record: Record = field(default_factory=Record)
    bare: bool = False
    profiles: dict[str, msgspec.Raw] = field(default_factory=dict[str, msgspec.Raw], compare=False)
    open_to_others: bool = field(default=False, compare=False)


def parse(path: Path, profile: str, data: bytes, *, open_to_others: bool = False) -> Content:
    """What `data`, the content of the file at `path`, says of `profile`.

    Raises:
        KeyStoreError: It makes no sense. Without a cause: a decoder's error holds the content.

    >>> parse(Path("key"), "default", b"sk-1").record
    Record(version=1, epoch=1, key=<Key generation=1 epoch=1>, refused=False)
    """
    text = None
    if len(data) <= LIMIT:
        with suppress(UnicodeDecodeError):
            text = data.decode("utf-8-sig").strip()
    if text == "":
        raise KeyStoreError(
            f"the key file {path} is empty: put a key into it, or remove it and sign in"
        )
    if text is None or not text.startswith("{"):
        key = None
        # A quoted key, a list: no key begins so, some JSON does.
        if text is not None and text[0] not in "\"'[":
            with suppress(ValueError):
                key = Key(text, generation=1, epoch=1)
        if key is None:
            raise KeyStoreError(
                f"the key file {path} holds neither a key on one line nor what gz-trio writes: "
                "put the key alone into it, or give another file"
            )
        return Content(Record(1, 1, key), bare=True, open_to_others=open_to_others)
    profiles: dict[str, msgspec.Raw] = {}
    record: Record | None = None
    newer = False
    with suppress(*lenient_json.MSGSPEC_ERRORS, ValueError):
        newer = msgspec.json.decode(text, type=_Head).format > FORMAT
        if not newer:
            profiles = _profiles(text)
            record = _record(profiles[profile]) if profile in profiles else Record()
    if newer:
        raise KeyStoreError(
            f"the key file {path} was written by a newer gz-trio: upgrade, or give another file"
        )
    if record is None:
        raise KeyStoreError(
            f"the key file {path} is damaged or half-written: put a good copy in its place, or "
            "move it away and sign in again"
        )
    return Content(record, profiles=profiles, open_to_others=open_to_others)


def serialize(content: Content, profile: str, record: Record) -> bytes:
    """The file that says what `content` said, but `record` of `profile`."""
    key = record.key
    stored = _Profile(
        version=record.version,
        epoch=record.epoch,
        refused=record.refused,
        key=None
        if key is None
        else _Key(
            value=key.value,
            expires_at=key.expires_at,
            refresh_token=key.refresh_token,
            generation=key.generation,
        ),
    )
    profiles = content.profiles | {profile: msgspec.Raw(msgspec.json.encode(stored))}
    return msgspec.json.format(msgspec.json.encode(_File(FORMAT, profiles))) + b"\n"


def _profiles(text: str) -> dict[str, msgspec.Raw]:
    file = msgspec.json.decode(text, type=_File)
    if file.format != FORMAT:
        raise ValueError("no such format")
    return file.profiles


def _record(raw: msgspec.Raw) -> Record:
    stored = msgspec.json.decode(raw, type=_Profile)
    if stored.key is None:
        return Record(stored.version, stored.epoch, None, stored.refused)
    if stored.key.generation > stored.version:
        raise ValueError("a generation that was never written")
    key = Key(
        stored.key.value,
        stored.key.expires_at,
        stored.key.refresh_token,
        stored.key.generation,
        stored.epoch,
    )
    return Record(stored.version, stored.epoch, key, stored.refused)
