"""The key of one reply or call, over all its attempts, and what their failures lead to.

Where the table's decisions (`_protocol.recovery`) meet the authenticator and the clock.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import trio

from .._auth.authenticator import Authenticator
from .._protocol.errors import AuthenticationError, GatewayError, RefreshError
from .._protocol.events import Paused, RateLimited
from .._protocol.keys import Key
from .._protocol.recovery import Recovery
from .._protocol.refresh import AuthStatus
from .._protocol.retry import Raise, Refresh, Wait
from .._protocol.settings import RetryPolicy

AUTHENTICATION_FAILED = "Authentication failed after refresh attempt. Please log in again."


class Recovering:
    """Gives each attempt its key; after a failed one waits, refreshes, or raises.

    Args:
        authenticator: What holds the key.
        origin: Where the key is sent to.
        model: The model that is asked, or `None`.
        policy: How often to try again.
        announce: Called before each wait.
        parting: The block is being left, and the authenticator's may have been: a key that is in
            use serves without asking it.
    """

    __slots__ = (
        "_announce", "_authenticator", "_key", "_model", "_origin", "_parting", "_policy",
        "_recovery", "_rejection",
    )  # fmt: skip

    def __init__(
        self,
        authenticator: Authenticator,
        *,
        origin: str,
        model: str | None,
        policy: RetryPolicy,
        announce: Callable[[Paused | RateLimited], None],
        parting: bool = False,
    ) -> None:
        self._authenticator = authenticator
        self._origin = origin
        self._model = model
        self._announce = announce
        self._parting = parting
        self._policy = policy
        self._recovery: Recovery | None = None  # Made when there is something to count.
        self._key: Key | None = None
        self._rejection: GatewayError | None = None

    @property
    def key(self) -> Key | None:
        """The key of the last attempt, if there was one."""
        return self._key

    def part(self) -> None:
        """The reply's block has been left: nothing is announced any more; see `Taking.part`."""
        self._announce = to_nobody

    async def next_key(self) -> Key:
        """The key of the next attempt: a new one, if the last one was rejected.

        A checkpoint, where it has to be waited for.

        Raises:
            AuthenticationError: There is no key to go on with, or it is another account's.
        """
        rejection, self._rejection = self._rejection, None
        try:
            key = await self._get_key(rejection)
            if self._key is not None and key.epoch != self._key.epoch:
                raise AuthenticationError("another account has signed in: ask again under it")
        except AuthenticationError as error:
            if rejection is None:
                raise
            # What the gateway said of the key is what its caller needs to look it up there.
            error.status = error.status or rejection.status
            error.code = error.code or rejection.code
            error.type = error.type or rejection.type
            error.request_id = error.request_id or rejection.request_id
            error.body = error.body or rejection.body
            if error.__cause__ is None:
                raise error from rejection
            raise
        self._key = key
        return key

    async def _get_key(self, rejection: GatewayError | None) -> Key:
        try:
            if rejection is None:
                key = self._authenticator.key_at_hand
                if key is not None:
                    # A turn of the event loop less; the sending, which follows, is one.
                    await trio.lowlevel.checkpoint_if_cancelled()
                    return key
                state = self._authenticator.state
                if state.status is AuthStatus.AUTHENTICATING or state.key is None:
                    self._announce(Paused("refresh"))
                elif self._parting and state.status is AuthStatus.AUTHENTICATED:
                    await trio.lowlevel.checkpoint()
                    return state.key
                return await self._authenticator.key()
            return await self._authenticator.refresh(
                self._key, origin=self._origin, model=self._model
            )
        except RefreshError as error:
            raise error.another(AUTHENTICATION_FAILED) from error

    def accepted(self) -> None:
        """The gateway answered the attempt with something that is no error."""
        if self._recovery is not None:
            self._recovery.accepted()
        if self._key is not None:
            self._authenticator.accepted(self._key, origin=self._origin, model=self._model)

    def progressed(self) -> None:
        """New text came: whatever keeps failing, it is not the same thing."""
        if self._recovery is not None:
            self._recovery.progressed()

    def restarted(self) -> None:
        """The reader drops what it has."""
        self._recovery = self._recovery or Recovery(self._policy)
        self._recovery.restarted()

    def decide(
        self, failure: GatewayError, *, in_frame: bool = False, mid_stream: bool = False
    ) -> Refresh | Wait:
        """What is to be done after an attempt failed; `carry_out` does it.

        Args:
            failure: What ended the attempt.
            in_frame: Whether a frame inside a stream said it, rather than a status.
            mid_stream: Whether the attempt had begun to answer.

        Raises:
            GatewayError: `failure`, where there is to be no further attempt.
        """
        self._recovery = self._recovery or Recovery(self._policy)
        step = self._recovery.after(
            failure,
            generation=0 if self._key is None else self._key.generation,
            in_frame=in_frame,
            mid_stream=mid_stream,
            jitter=random.random(),
        )
        if isinstance(step, Raise):
            raise failure
        if isinstance(step, Refresh):
            self._rejection = failure
        return step

    async def carry_out(self, step: Refresh | Wait) -> None:  # noqa: ASYNC910 - where it waits
        """Wait; a refresh is left to `next_key`.

        A checkpoint where it waits; what follows, `next_key`, is one always.
        """
        match step:
            case Refresh():
                self._announce(Paused("refresh"))
            case Wait(seconds, rate_limited):
                self._announce(RateLimited(seconds) if rate_limited else Paused("reconnect"))
                await trio.sleep(seconds)

    async def after(self, failure: GatewayError) -> None:  # noqa: ASYNC910 - where it waits
        """`decide` and `carry_out` at once."""
        await self.carry_out(self.decide(failure))


def to_nobody(_event: Paused | RateLimited) -> None:
    """An `announce` for those who have nobody to tell."""
