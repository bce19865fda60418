"""The block in which a reply streams: it opens on entry, and on leaving nothing of it is left."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import TracebackType

import trio

from .receiving import Receiver
from .reply import Reply


class ReplyBlock(ABC):
    """What `Gateway.stream` and `Session.stream` give, for `async with`; gives a `Reply`.

    A class rather than a generator, because there are as many as there are streams.
    """

    __slots__ = ("_receiver", "_reply")

    def __init__(self) -> None:
        self._reply: Reply | None = None

    @abstractmethod
    def _make(self) -> tuple[Receiver, Reply]:
        """The reply, and what receives it."""

    @abstractmethod
    def _completed(self, reply: Reply) -> None:
        """The block is left without an exception, and the reply is complete."""

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> Reply:
        """Begin. Not a checkpoint: it is reading that waits."""
        if self._reply is not None:
            raise RuntimeError("a reply streams once: call stream() again for another")
        self._receiver, self._reply = self._make()
        self._receiver.start()
        return self._reply

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(  # noqa: ASYNC910 - where there is something to wait for
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """End whatever is under way."""
        try:
            if error is None and self._reply is not None and self._reply.complete:
                self._completed(self._reply)
        finally:
            await self._receiver.aclose()
        crash = self._receiver.crash
        if crash is None:
            return
        if error is None:
            raise crash
        if error.__cause__ is not crash.__cause__:  # He may not have read it.
            error.add_note(f"also, in the background of the reply: {crash.__cause__!r}")


class BodyReply(ReplyBlock):
    """A reply to a request whose body the caller has given.

    Args:
        receive: Makes the reply, and what receives it.
    """

    __slots__ = ("_receive",)

    def __init__(self, receive: Callable[[], tuple[Receiver, Reply]]) -> None:
        super().__init__()
        self._receive = receive

    @property
    def renamed(self) -> Mapping[str, str]:
        """By the ids that the reply's `raw` events tell, those that the server knows instead."""
        return self._receiver.renamed

    def _make(self) -> tuple[Receiver, Reply]:
        return self._receive()

    def _completed(self, reply: Reply) -> None:
        """There is no session to add it to."""
