"""An interactive chat: reads lines, streams the answers, and says in words why one waits."""

from __future__ import annotations

import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from typing import Literal

import trio

from .. import (
    AuthenticationError,
    CommandRefresh,
    Delta,
    GatewayError,
    Paused,
    RateLimited,
    Restarted,
    Resumed,
    ResumePolicy,
    RetryPolicy,
    Session,
    open_session,
)
from .answer import Answer
from .auth import Place, name_of
from .keys import key_at_hand
from .lines import PipedLines, TypedLines
from .run import INTERRUPTED, UsageError, complain

ApiName = Literal["chat", "responses", "messages"]
TransportName = Literal["http", "websocket"]


class Chat:
    """One conversation on this process's standard input and output.

    Args:
        base_url: Of the gateway.
        model: The model's name, as the gateway knows it.
        place: Where the key is; see `key_at_hand`.
        refresh_command: A program that prints a key.
        system: The system message.
        max_retries: As for `gz_trio.RetryPolicy`.
        api: Which API is asked.
        transport: What it is asked over.
        environment: Where the key is looked for.

    Raises:
        UsageError: There is no key, and no command to get one.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        place: Place,
        refresh_command: str | None,
        system: str | None,
        max_retries: int,
        api: ApiName,
        transport: TransportName,
        environment: Mapping[str, str],
    ) -> None:
        self._base_url = base_url
        self._model = model
        self._place = place
        self._refresh_command = refresh_command
        try:
            self._at_hand = key_at_hand(place, environment, refreshed=refresh_command is not None)
        except ValueError as error:
            raise UsageError(str(error)) from None
        self._messages: list[dict[str, object]] = (
            [] if system is None else [{"role": "system", "content": system}]
        )
        self._max_retries = max_retries
        self._api: ApiName = api
        self._transport: TransportName = transport
        if not sys.stdin:
            raise UsageError("standard input is closed: there is nothing to read questions from")
        self._typed = sys.stdin.isatty() and sys.stdout.isatty()
        self._lines = TypedLines("> ") if self._typed else PipedLines(0)
        self._current = trio.CancelScope()

    async def run(self) -> int:
        """Chat until the input ends; gives the exit code."""
        async with AsyncExitStack() as stack:
            try:
                session = await self._open(stack)
            except ValueError as error:
                raise UsageError(str(error)) from None
            if self._typed:
                sys.stdout.write(
                    f"{self._model} at {self._base_url}\n"
                    "Ctrl-C stops an answer, Ctrl-D ends the chat.\n"
                )
            # A receiver, not KeyboardInterrupt, which may come between any two steps of ours.
            signals = stack.enter_context(trio.open_signal_receiver(signal.SIGINT))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._stop_on, signals)
                code = await self._converse(session)
                nursery.cancel_scope.cancel()
        return code

    async def _open(self, stack: AsyncExitStack) -> Session:
        store = self._at_hand.store
        if self._refresh_command is None and (await store.load()).key is None:
            raise UsageError(
                "no key: sign in by `gz-trio auth login`, set GZ_API_KEY or OPENAI_API_KEY, "
                "or give --key-file or --refresh-command"
                if self._at_hand.shared is None or self._place == Place()
                else f"{name_of(self._at_hand.shared)} holds no key: `gz-trio auth login` stores "
                "one; or give --refresh-command"
            )
        return await stack.enter_async_context(
            open_session(
                self._base_url,
                model=self._model,
                store=store,
                refresh=(
                    None if self._refresh_command is None else CommandRefresh(self._refresh_command)
                ),
                messages=self._messages,
                api=self._api,
                transport=self._transport,
                retry=RetryPolicy(max_retries=self._max_retries),
                resume=ResumePolicy(on_divergence="restart"),
            )
        )

    async def _stop_on(self, signals: AsyncIterator[int]) -> None:
        async for _ in signals:
            self._current.cancel()

    async def _converse(self, session: Session) -> int:
        code = 0
        while True:
            line: str | None = ""
            with trio.CancelScope() as self._current:
                line = await self._lines.next()
            if self._current.cancelled_caught:
                return INTERRUPTED
            if line is None:
                return code
            if not line.strip():
                continue
            with trio.CancelScope() as self._current:
                if not await self._turn(session, line) and not self._typed:
                    code = 1
            if self._current.cancelled_caught and not self._typed:
                return INTERRUPTED

    async def _turn(self, session: Session, line: str) -> bool:
        """Ask, and show the answer; whether it came to its end."""
        answer = Answer(sys.stdout, sys.stderr)
        had_key = session.authenticator.state.key is not None
        try:
            async with session.stream(line) as reply:
                async for event in reply.events():
                    match event:
                        case Delta():
                            answer.add(event.text, reasoning=event.reasoning)
                        case Paused(reason="refresh") if not had_key:
                            answer.wait("signing in ...")
                            had_key = True
                        case Paused(reason="refresh"):
                            answer.wait(f"session expired, signing in again ...{self._help}")
                        case Paused():
                            answer.wait("connection lost, connecting again ...")
                        case RateLimited(wait=seconds):
                            answer.wait(f"rate limit, going on in {seconds:.0f} s ...")
                        case Resumed():
                            answer.go_on()
                        case Restarted():
                            answer.start_over()
                        case _:
                            pass
        except GatewayError as error:
            answer.end()
            complain(self._describe(error))
            return False
        finally:
            answer.end()
        if reply.finish_reason not in ("stop", None):
            answer.remark(f"(the answer ended early: {reply.finish_reason})")
        return True

    def _describe(self, error: GatewayError) -> str:
        words = str(error)
        cause = error.__cause__
        while isinstance(cause, GatewayError):
            if str(cause) not in words:
                words += f" ({cause})"
            cause = cause.__cause__
        if isinstance(error, AuthenticationError) and self._refresh_command is None:
            words += (
                f" - set {self._at_hand.variable} to a valid key and start again"
                if self._at_hand.shared is None
                else f" - {self._remedy}, and ask again"
            )
        return words

    @property
    def _help(self) -> str:
        alone = self._refresh_command is None
        return f" {self._remedy}" if self._at_hand.shared is not None and alone else ""

    @property
    def _remedy(self) -> str:
        if self._place.key_file is not None:
            return f"write a new key into {self._place.key_file}"
        return "gz-trio auth login --same-account"
