"""A workload as options: one for each of its settings, none of them with a default of its own."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ..simulate import Workload

IN_ONE_WORD = ("model", "stages", "rotations", "slo")
"""Lists that may be given as one option too, with commas; a fault may have commas in it."""


class Given:
    """What the command line says of a workload."""

    def given(self) -> dict[str, object]:
        """The settings that it names, as `Workload.of` takes them."""
        settings: dict[str, typing.Any] = {
            field.name: value
            for field in dataclasses.fields(typing.cast("typing.Any", self))
            if (value := getattr(self, field.name)) is not None
        }
        for name in settings.keys() & IN_ONE_WORD:
            settings[name] = [one for words in settings[name] for one in words.split(",")]
        return settings


def _fields() -> list[tuple[str, typing.Any, typing.Any]]:
    """An option for each setting: of the same type and with the same words."""
    kinds = typing.get_type_hints(Workload)
    words = _words()
    return [
        (
            field.name,
            Annotated[
                _option(kinds[field.name]) | None, Parameter(help=words[field.name], negative="")
            ],
            dataclasses.field(default=None),
        )
        for field in dataclasses.fields(Workload)
    ]


def _option(kind: object) -> typing.Any:
    """Several values are an option that is given several times; a number may have a unit."""
    if typing.get_origin(kind) is tuple:
        return list[str]
    if typing.get_origin(kind) in (typing.Union, types.UnionType) and str in typing.get_args(kind):
        return str
    return kind


def _words() -> dict[str, str]:
    """What the workload's docstring says of each setting, with lists as options have them."""
    lines = inspect.cleandoc(Workload.__doc__ or "").partition("Args:\n")[2]
    found = re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", lines, re.MULTILINE)
    return {name: _of_an_option(re.sub(r"\s+", " ", words)) for name, words in found}


def _of_an_option(words: str) -> str:
    """`("30s:20", "0s:50")` is `30s:20,0s:50`."""
    return re.sub(r'\(("[^)]*")\)', lambda found: re.sub('[" ]', "", found[1]), words)


if TYPE_CHECKING:
    WorkloadOptions = Given
else:
    WorkloadOptions = Parameter(name="*")(
        dataclasses.make_dataclass(
            "WorkloadOptions",
            _fields(),
            bases=(Given,),
            namespace={"__module__": __name__},  # Or cyclopts takes it for a type of Python's own.
            frozen=True,
            kw_only=True,
        )
    )

NO_OPTIONS = WorkloadOptions()
