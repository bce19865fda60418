# What the library uses of inotify_simple, which brings no types.
from collections.abc import Generator
from enum import IntFlag
from io import FileIO
from os import PathLike
from typing import NamedTuple

class Event(NamedTuple):
    wd: int
    mask: int
    cookie: int
    name: str

class flags(IntFlag):  # noqa: N801
    ATTRIB = 0x4
    CLOSE_WRITE = 0x8
    MOVED_TO = 0x80
    MOVED_FROM = 0x40
    CREATE = 0x100
    DELETE = 0x200
    DELETE_SELF = 0x400
    MOVE_SELF = 0x800
    UNMOUNT = 0x2000
    Q_OVERFLOW = 0x4000

class INotify(FileIO):
    def __init__(
        self, inheritable: bool = False, nonblocking: bool = False, closefd: bool = True
    ) -> None: ...
    def add_watch(self, path: str | PathLike[str], mask: int) -> int: ...
    def rm_watch(self, wd: int) -> None: ...
    def read(  # type: ignore[override]
        self, timeout: int | None = None, read_delay: int | None = None
    ) -> Generator[Event]: ...
