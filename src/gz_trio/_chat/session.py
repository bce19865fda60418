"""A chat session: a conversation whose turns stream, one model, one key for all of them."""

# pyright: reportPrivateUsage=false
# A turn is part of its session.

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

from .._auth.authenticator import Authenticator
from .._protocol.apis import Api
from .._protocol.history import HistoryMessage
from .._protocol.settings import ResumePolicy
from .receiving import Receiver
from .remembering import Remembering
from .reply import Reply
from .streaming import ReplyBlock

if TYPE_CHECKING:
    from .gateway import Gateway


class Session:
    """A conversation. Made by `open_session` and `Gateway.open_session`.

    Attributes:
        messages: The conversation so far, as the next request sends it, in the form of the API.
            Yours to change between turns. A turn is added when its reply was complete: the user's
            message and the answer.
    """

    __slots__ = (
        "_api",
        "_extra_body",
        "_gateway",
        "_model",
        "_receive",
        "_remembering",
        "messages",
    )

    def __init__(
        self,
        gateway: Gateway,
        receive: Callable[..., tuple[Receiver, Reply]],
        model: str,
        messages: Sequence[Mapping[str, object]] | None,
        *,
        extra_body: Mapping[str, object] | None,
        api: Api,
        remembering: Remembering | None = None,
    ) -> None:
        if not model or model.isspace():
            raise ValueError("the model's name is empty: give the name that the gateway knows")
        self._gateway = gateway
        self._receive = receive
        self._remembering = remembering
        self._model = model
        self._api = api
        self._extra_body = dict(extra_body) if extra_body else None
        self.messages: list[dict[str, object]] = [dict(message) for message in messages or ()]

    def __repr__(self) -> str:
        return f"<Session model={self._model!r}, {len(self.messages)} messages>"

    @property
    def authenticator(self) -> Authenticator:
        """What holds the key of this session."""
        return self._gateway.authenticator

    @property
    def history_id(self) -> int | str | None:
        """The id of this session in the gateway's history, where it is remembered.

        `None` until its first turn has been saved there, soon after it was complete.
        """
        return None if self._remembering is None else self._remembering.session_id

    def stream(
        self,
        message: str | Mapping[str, object],
        *,
        resume: ResumePolicy | None = None,
    ) -> ReplyBlock:
        """Say something, and stream the answer.

        Args:
            message: The user's text, or a whole message with `role` and `content`.
            resume: In place of the gateway's.
        """
        turn: dict[str, object] = (
            {"role": "user", "content": message} if isinstance(message, str) else dict(message)
        )
        return _Turn(self, turn, resume)

    async def ask(self, message: str | Mapping[str, object]) -> str:
        """Say something, and wait for the whole answer. A checkpoint.

        Only the whole counts here, so where a broken reply comes again with other words, those
        are taken.

        Args:
            message: As in `stream`.

        Returns:
            The answer's text.

        Raises:
            GatewayError: As `Reply` does.
        """
        resume = replace(self._gateway.resume, on_divergence="restart")
        async with self.stream(message, resume=resume) as reply:
            async for _ in reply:
                pass
        return reply.text


class _Turn(ReplyBlock):
    """The block of one turn, which it adds to its session."""

    __slots__ = ("_message", "_question", "_resume", "_session")

    def __init__(
        self, session: Session, message: dict[str, object], resume: ResumePolicy | None
    ) -> None:
        super().__init__()
        self._session = session
        self._message = message
        self._resume = resume
        self._question: HistoryMessage | None = None

    def _make(self) -> tuple[Receiver, Reply]:
        session = self._session
        if session._remembering is not None:
            self._question = session._remembering.asked(self._message)
        body = {
            **session._api.turn_body(session._model, [*session.messages, self._message]),
            **(session._extra_body or {}),
        }
        return session._receive(body, resume=self._resume, api=session._api)

    def _completed(self, reply: Reply) -> None:
        session = self._session
        session.messages += [self._message, *reply.output]
        if session._remembering is not None and self._question is not None:
            session._remembering.answered(self._question, reply)


class SessionBlock:
    """The block of a session that nothing is to be opened for, nor closed."""

    __slots__ = ("_session",)

    def __init__(self, session: Session) -> None:
        self._session = session

    async def __aenter__(self) -> Session:
        """The session. Not a checkpoint."""
        return self._session  # noqa: ASYNC910 - there is nothing to wait for

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """Not a checkpoint."""
