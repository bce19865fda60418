r"""JSON as servers really send it: strict JSON first, fast; then what some engines make of it.

Real replies hold broken UTF-8 (a token may end inside a character), half of a surrogate pair
escaped as `\ud83d`, control characters that are not escaped, `NaN`.
"""

from __future__ import annotations

import json
from typing import cast

import msgspec

# What msgspec raises for bytes that it does not take: malformed, of another shape than asked for,
# no UTF-8, nested too deep.
MSGSPEC_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def decode(data: bytes) -> object:
    r"""The value of `data`. What is no UTF-8 becomes U+FFFD, as in an event stream (WHATWG).

    A half of a surrogate pair stays what it is: the other half may come in the next event.

    Raises:
        ValueError: `data` is no JSON even so.

    >>> decode(b'{"content": "caf\xc3"}')
    {'content': 'caf\ufffd'}
    """
    try:
        return msgspec.json.decode(data)
    except MSGSPEC_ERRORS:
        pass
    try:
        return json.loads(data.decode("utf-8-sig", "replace"), strict=False)
    except (ValueError, RecursionError):
        raise ValueError("this is not JSON") from None


def objects(value: object) -> list[dict[str, object]]:
    """The JSON objects in the JSON array `value`; none where it is no array."""
    if not isinstance(value, list):
        return []
    return [
        cast("dict[str, object]", item)
        for item in cast("list[object]", value)
        if isinstance(item, dict)
    ]


def as_object(value: object) -> dict[str, object] | None:
    """`value` if it is a JSON object."""
    return cast("dict[str, object]", value) if isinstance(value, dict) else None
