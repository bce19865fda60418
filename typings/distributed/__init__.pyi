# What the simulator uses of distributed, whose own types are partial.
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Self, TypeVar

_T = TypeVar("_T")

class LocalCluster:
    scheduler_address: str
    def __init__(
        self,
        *,
        n_workers: int,
        processes: bool,
        threads_per_worker: int,
        dashboard_address: str | None,
        asynchronous: bool = False,
    ) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

# Asynchronous ones alone.
class Client:
    def __init__(
        self, address: LocalCluster | str, *, asynchronous: bool, timeout: float
    ) -> None: ...
    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
    def nthreads(self) -> Awaitable[Mapping[str, int]]: ...
    # An actor passes for an object of its class, whose methods are all asynchronous.
    def submit(
        self,
        func: Callable[[], _T],
        *,
        actor: bool,
        workers: Sequence[str],
        allow_other_workers: bool,
        retries: int,
        pure: bool,
    ) -> Awaitable[_T]: ...
