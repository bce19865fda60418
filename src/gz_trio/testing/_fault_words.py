"""Faults of the fake gateway in words, as options and files have them."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal, get_args, get_type_hints

import msgspec

from ._faults import (
    Comment,
    Cut,
    Drip,
    EarlyDone,
    EmptyStream,
    ErrorFrame,
    Fault,
    Insert,
    OtherText,
    Reset,
    Stall,
    Status,
    Warning_,
)
from ._gateway import FakeGateway

KINDS: dict[str, type[Fault]] = {
    "status": Status,
    "error-frame": ErrorFrame,
    "cut": Cut,
    "reset": Reset,
    "stall": Stall,
    "drip": Drip,
    "early-done": EarlyDone,
    "empty-stream": EmptyStream,
    "other-text": OtherText,
    "insert": Insert,
    "comment": Comment,
    "warning": Warning_,
}

_PLACES: dict[str, object] = {
    "request": int,
    "generation": int,
    "token": int,
    "times": int | Literal["forever"],
    "path": Literal["/v1/chat/completions", "/v1/models", "/auth"],
}
_HEADER = "header."
_REQUIRED = {"status": "status=429", "insert": r"insert='data: {}\n\n'"}
_WORDS: dict[object, str] = {int: "a whole number", float: "a number", bool: "true or false"}


def add_fault(gateway: FakeGateway, words: str) -> None:
    r"""Let something go wrong, said in words: what, what it is like, and when it strikes.

    So `gz-trio gateway --fault` takes it, whose help lists all names. The fault is named as its
    class here is, with hyphens (`error-frame`), and the value after its name is that of its first
    parameter. Its other parameters follow, and those of `FakeGateway.fault`, in any
    order, separated by blanks; quotes are those of a POSIX shell. `header.NAME=VALUE` gives a
    status a header; in `data`, `\n` and the like are what they are in Python.

    Args:
        gateway: Where it goes wrong.
        words: Like `"status=429 header.retry-after=2 request=1"`.

    Raises:
        ValueError: This is no fault; the message says what is wrong, and what could stand there.

    >>> from gz_trio.testing import add_fault
    >>> gateway = FakeGateway()
    >>> add_fault(gateway, "status=429 header.retry-after=2 request=1")
    >>> add_fault(gateway, "cut token=3 times=forever")
    >>> add_fault(gateway, r"insert='data: {}\n\n' token=1")
    >>> add_fault(gateway, "stall=soon")
    Traceback (most recent call last):
    ValueError: fault 'stall=soon': seconds must be a number
    """
    try:
        _add(gateway, words)
    except (ValueError, TypeError) as error:
        raise ValueError(f"fault {words!r}: {error}") from None


def _add(gateway: FakeGateway, words: str) -> None:
    first, *rest = shlex.split(words) or [""]
    name, has_value, value = first.partition("=")
    if name not in KINDS:
        raise ValueError(f"there is no {name!r}; there are {', '.join(KINDS)}")
    kind = KINDS[name]
    hints: dict[str, object] = get_type_hints(kind)
    if has_value:
        rest.insert(0, f"{next(iter(hints), '')}={value}")
    parameters: dict[str, Any] = {}
    places: dict[str, Any] = {}
    headers: dict[str, str] = {}
    for word in rest:
        label, _, value = word.partition("=")
        key = label.replace("-", "_")
        if label.startswith(_HEADER) and "headers" in hints:
            headers[label.removeprefix(_HEADER)] = value
        elif key in _PLACES:
            places[key] = _converted(label, value, _PLACES[key])
        elif key in hints and key != "headers":
            parameters[key] = _converted(label, value, hints[key])
        else:
            raise ValueError(f"{name} has no {label!r}; it has {_choices(hints)}")
    if headers:
        parameters["headers"] = headers
    if places.get("times") == "forever":
        places["times"] = None
    for field in dataclasses.fields(kind):
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and field.name not in parameters:
            raise ValueError(f"{name} needs a {field.name}, as in {_REQUIRED[name]}")
    gateway.fault(kind(**parameters), **places)


def _choices(hints: Mapping[str, object]) -> str:
    names = [f"{_HEADER}NAME" if name == "headers" else name for name in hints]
    return ", ".join([*names, *_PLACES]).replace("_", "-")


def _converted(label: str, value: str, hint: object) -> object:
    if label == "body":
        with suppress(msgspec.DecodeError):
            return msgspec.json.decode(value, type=dict[str, object])
        return value
    if label == "data":
        # Escapes as in a bytes literal; all that is not ASCII stays what it is in UTF-8.
        try:
            return value.encode().decode("unicode_escape").encode("latin-1")
        except UnicodeError:
            raise ValueError("data has an escape that is none in a bytes literal") from None
    try:
        return msgspec.convert(value, hint, strict=False)
    except msgspec.ValidationError:
        wanted = [_WORDS.get(option, option) for option in _options(hint)]
        words = " or ".join(word for word in wanted if isinstance(word, str))
        raise ValueError(f"{label} must be {words}") from None


def _options(hint: object) -> list[object]:
    """The types of a union and the values of a literal, in one list."""
    arguments = get_args(hint)
    return [hint] if not arguments else [leaf for part in arguments for leaf in _options(part)]
