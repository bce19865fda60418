"""The line from a client to the engine: nginx, which checks the key, and a tap behind it."""

from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

import gz_trio
from tests.interop.conftest import FIRST_KEY, running, until
from tests.interop.servers import Engine, Front
from tests.interop.tap import Tap

NEXT_KEY = "sk-interop-2"


@dataclass
class Line:
    engine: Engine
    tap: Tap
    front: Front

    async def rotate(self, begun: Callable[[str], object], questions: Iterable[str]) -> None:
        """Once all answers have `begun`, break them, and let only `NEXT_KEY` ask for them again.

        The engine is slow until then, so that no answer is over by that time.
        """
        with self.engine.slowed(working=0.01):
            await until(lambda: all(map(begun, questions)))
            self.front.accept_only(NEXT_KEY)
            await trio.to_thread.run_sync(self.front.reload)
            self.tap.cut()


@asynccontextmanager
async def laid(engine: Engine, folder: Path) -> AsyncGenerator[Line]:
    """A line that holds as long as the block runs."""
    tap = Tap(engine.port)
    async with tap.listening() as port:
        with running(Front(folder, port, FIRST_KEY)) as front:
            yield Line(engine, tap, front)


@asynccontextmanager
async def open_gateway(
    line: Line, resume: gz_trio.ResumePolicy | None = None
) -> AsyncGenerator[gz_trio.Gateway]:
    """The gateway as the library sees it; the key has to be refreshed once."""
    rejected: list[str] = []

    async def refresh(key: gz_trio.Key | None) -> str:
        rejected.append(key.value if key else "")
        return NEXT_KEY

    store = gz_trio.MemoryKeyStore(FIRST_KEY)
    async with (
        gz_trio.open_authenticator(store, refresh) as authenticator,
        gz_trio.open_gateway(line.front.base_url, authenticator, resume=resume) as gateway,
    ):
        yield gateway
    assert rejected == [FIRST_KEY]
