"""What the tests of the fake gateway by the SDKs' own types have in common."""

from __future__ import annotations

from typing import cast

from pydantic import BaseModel

from gz_trio._protocol.events import Delta
from gz_trio.testing import Answer as Model
from tests.testing.fake_gateway_wire import Answer


def says(*answer: str | Delta) -> Model:
    return lambda body, attempt: answer


def frames(*answers: Answer) -> list[bytes]:
    """The frames that came whole, each with the blank line at its end."""
    return [
        frame + b"\n\n"
        for answer in answers
        for frame in answer.body.rpartition(b"\n\n")[0].split(b"\n\n")
        if frame
    ]


def unknown_fields(model: BaseModel) -> set[str]:
    """The fields, here and within, that the SDK has no name for."""
    unknown = {f"{type(model).__name__}.{name}" for name in model.model_extra or {}}
    values: list[object] = [getattr(model, name) for name in type(model).model_fields]
    while values:
        value = values.pop()
        if isinstance(value, list):
            values += cast("list[object]", value)
        elif isinstance(value, BaseModel):
            unknown |= unknown_fields(value)
    return unknown
