"""The task that receives a reply: attempt after attempt, through refreshes and reconnects."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import trio

from .._auth.authenticator import Authenticator
from .._protocol.errors import (
    APIConnectionError,
    BadRequestError,
    GatewayError,
    NotFoundError,
    ProtocolError,
    StreamInterrupted,
    error_from_response,
)
from .._protocol.events import Paused, RateLimited
from .._protocol.keys import Key
from .._protocol.resume import Diverged
from .._protocol.resumption import CannotResume, NextRequest, Resumption, StartedOver
from .._protocol.settings import ResumePolicy, RetryPolicy, Timeouts
from .._transport.interface import Request, Response, Transport
from .attempts import Attempt
from .bodies import read_body, read_error_body
from .buffer import EventBuffer, SinkRaised
from .recovering import Recovering
from .taking import ErrorFrame, Taking
from .telemetry import ReplyTelemetry

GOODBYE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class ReplySettings:
    """What a reply may do on its own: how to retry, to resume, and how long to wait."""

    retry: RetryPolicy
    resume: ResumePolicy
    timeouts: Timeouts


class _AskDifferently(Exception):
    """The server does not take the request as it is, but may take another one."""

    def __init__(self, error: GatewayError) -> None:
        self.error = error


class Receiver:
    """Has the answers to a reply's attempts taken, until one is complete or there are no more.

    Args:
        transport: What sends the requests.
        authenticator: What holds the key.
        origin: Of the gateway.
        model: The model that is asked, or `None`.
        make_request: Gives the request for a key, a `content` and further `headers`.
        resumption: The reply's requests.
        settings: How often to retry, and how long to wait.
        now: Unix time in seconds.
        buffer: What is filled.
        telemetry: What is told of it.

    Attributes:
        taking: What takes the answers.
        attempts: The requests so far.
    """

    __slots__ = (
        "_buffer", "_make_request", "_model", "_now", "_origin", "_recovering", "_resumption",
        "_telemetry", "_transport", "attempts", "taking",
    )  # fmt: skip

    def __init__(
        self,
        transport: Transport,
        authenticator: Authenticator,
        *,
        origin: str,
        model: str | None,
        make_request: Callable[..., Request],
        resumption: Resumption,
        settings: ReplySettings,
        now: Callable[[], float],
        buffer: EventBuffer,
        telemetry: ReplyTelemetry,
    ) -> None:
        self._transport = transport
        self._origin = origin
        self._model = model
        self._make_request = make_request
        self._resumption = resumption
        self._now = now
        self._buffer = buffer
        self._telemetry = telemetry
        self._recovering = Recovering(
            authenticator, origin=origin, model=model, policy=settings.retry, announce=self._pause
        )
        self.taking = Taking(resumption, self._recovering, settings.timeouts, buffer, telemetry)
        self.attempts: list[Attempt] = []

    def _pause(self, event: Paused | RateLimited) -> None:
        self.taking.pause(event)

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:  # noqa: ASYNC910 - one, unless the first one's failure ends it
        """Receive to the end of the reply, whichever it is."""
        # What a reader gets who waits while this task crashes.
        end: BaseException | None = APIConnectionError("the reply's background task has failed")
        with self._telemetry.receiving():
            try:
                await self._receive_all()
                end = None
            except SinkRaised as raised:
                end = raised.error
            except GatewayError as error:
                end = error
            except trio.Cancelled:
                end = trio.ClosedResourceError("the reply's block has been left")
                raise
            finally:
                self.taking.end(end)

    async def _receive_all(self) -> None:
        request = self._resumption.next_request()
        while True:
            key = await self._recovering.next_key()
            attempt = Attempt(trio.current_time(), key.generation, request.way, epoch=key.epoch)
            self.attempts.append(attempt)
            self.taking.begin(attempt)
            try:
                await self._try_once(key, request, attempt)
                return
            except _AskDifferently as refusal:
                request = self._next_request(refusal.error)
            except ErrorFrame as frame:
                self._resumption.ended_early(frame.error)
                request = await self._recover(attempt, frame.error, in_frame=True)
            except GatewayError as error:
                request = await self._recover(attempt, error, in_frame=False)

    async def _try_once(  # noqa: ASYNC910 - one, unless `_ask` fails before its own
        self, key: Key, request: NextRequest, attempt: Attempt
    ) -> None:
        """One request, to the end of its answer; raises what ended it early."""
        repeated_before = self._resumption.repeated
        with self._telemetry.attempt(attempt):
            try:
                await self._ask(key, request)
            except (ErrorFrame, _AskDifferently) as failure:
                attempt.cause = failure.error
                raise
            except GatewayError as error:
                attempt.cause = error
                raise
            finally:
                attempt.ended = trio.current_time()
                attempt.repeated = self._resumption.repeated - repeated_before
                if self.taking.total_left is not None:
                    self.taking.total_left -= attempt.ended - attempt.started

    def _next_request(self, failure: GatewayError) -> NextRequest:
        try:
            return self._resumption.next_request()
        except CannotResume as reason:
            raise StreamInterrupted(str(reason)) from failure

    async def _recover(  # noqa: ASYNC910 - one, where it waits
        self, attempt: Attempt, failure: GatewayError, *, in_frame: bool
    ) -> NextRequest:
        """Wait as long as `failure` asks for; what is to be sent then.

        A checkpoint where it waits; what follows, the next key, is one always.
        """
        try:
            step = self._recovering.decide(failure, in_frame=in_frame, mid_stream=attempt.accepted)
        except APIConnectionError:
            if not self._resumption.content:
                raise
            raise StreamInterrupted("the reply broke and could not be taken up again") from failure
        request = self._next_request(failure)
        await self._recovering.carry_out(step)
        return request

    async def _ask(self, key: Key, request: NextRequest) -> None:
        headers = {**self._telemetry.headers(), **request.headers}
        response: Response | None = None
        try:
            with self._time_limit():
                response = await self._transport.send(
                    self._make_request(key, content=request.content, headers=headers)
                )
            self._telemetry.responded(response.status)
            if not 200 <= response.status < 300:
                raise self._response_error(response, await read_error_body(response))
            content_type = response.headers.get("content-type", "text/event-stream")
            kind = content_type.partition(";")[0].strip().lower()
            if kind == "application/json":
                with self._time_limit():
                    body = await read_body(response)
                self.taking.take_completion(body)
                self.taking.finish()
                return
            if kind != "text/event-stream":
                raise ProtocolError(
                    "the gateway answered with something other than an event stream: is "
                    f"{self._origin} the base URL of an OpenAI-compatible API?",
                    status=response.status,
                )
            await self._receive(response)
        except StartedOver:
            raise _AskDifferently(
                StreamInterrupted("the server did not go on where the reply broke")
            ) from None
        except CannotResume as reason:
            raise StreamInterrupted(str(reason)) from None
        except Diverged:
            raise StreamInterrupted(
                "the reply broke, and when it was asked for again the answer was a different one"
            ) from None
        finally:
            if response is not None:
                await response.aclose()

    async def _receive(self, response: Response) -> None:
        """The event stream of one response. A checkpoint, or else it raises."""
        taking = self.taking
        try:
            while not await response.feed(taking) and not taking.done:
                full_since = trio.current_time()
                await self._buffer.wait_for_room()
                taking.was_left(trio.current_time() - full_since)
        except trio.TooSlowError:
            if not self._resumption.decoder.complete:
                raise taking.too_late() from None
        except APIConnectionError:
            if not self._resumption.decoder.complete:  # else all is there but the goodbye
                raise
        taking.finish()
        if taking.done:
            # The reader has its end. What remains is the end of the body, which comes with the
            # last event or not at all, and lets the connection be used again.
            with suppress(GatewayError), trio.move_on_after(GOODBYE_SECONDS):
                while await response.receive():
                    pass

    @contextmanager
    def _time_limit(self) -> Generator[None]:
        """Until the answer begins."""
        with trio.move_on_at(self.taking.deadline()) as scope:
            yield
        if scope.cancelled_caught:
            raise self.taking.too_late()

    def _response_error(self, response: Response, body: bytes) -> Exception:
        error = error_from_response(response.status, response.headers, body, now=self._now())
        if self._resumption.refused(error):
            return _AskDifferently(error)
        if (
            isinstance(error, BadRequestError)
            and b"stream_options" in body
            # An addition of ours to what the caller asks for.
            and self._resumption.leave_out("stream_options")
        ):
            return _AskDifferently(error)
        if isinstance(error, NotFoundError):
            return error.another(
                f"the gateway at {self._origin} has no model {self._model!r}, or the base URL "
                "is not that of an OpenAI-compatible API"
            )
        return error
