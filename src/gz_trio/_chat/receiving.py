"""The task that receives a reply: attempt after attempt, through refreshes and reconnects."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import TypeVar

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

CANCEL_SECONDS = 5.0
"""To tell the server that nobody wants the rest of an answer."""

_log = logging.getLogger("gz_trio.reply")


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


T = TypeVar("T")

_Failure = GatewayError | ErrorFrame | _AskDifferently
"""What an attempt ends by, and another one may follow."""


class Receiver:
    """Has the answers to a reply's attempts taken, until one is complete or there are no more.

    A task runs while there is something to wait for: a key, a connection, the head of an answer, a
    better moment. While an answer streams, whatever reads its connection has it taken, and there
    is no task.

    Args:
        nursery: Where the task runs.
        transport: What sends the requests.
        authenticator: What holds the key.
        origin: Of the gateway.
        model: The model that is asked, or `None`.
        make_request: Gives the request for a key and a `NextRequest`, with further `headers` and
            a `connect_timeout`.
        resumption: The reply's requests.
        settings: How often to retry, and how long to wait.
        now: Unix time in seconds.
        buffer: What is filled.
        telemetry: What is told of it.
        on_head: Told the status and the headers of each answer, names in lower case.

    Attributes:
        taking: What takes the answers.
        attempts: The requests so far.
    """

    __slots__ = (
        "_connect_timeout", "_crash", "_gone", "_make_request", "_model", "_now", "_nursery",
        "_on_head", "_origin", "_recovering", "_repeated_before", "_response", "_resumption",
        "_scope", "_telemetry", "_transport", "attempts", "taking",
    )  # fmt: skip

    def __init__(
        self,
        nursery: trio.Nursery,
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
        on_head: Callable[[int, Mapping[str, str]], None] | None,
    ) -> None:
        self._nursery = nursery
        self._transport = transport
        self._origin = origin
        self._model = model
        self._make_request = make_request
        self._connect_timeout = settings.timeouts.connect
        self._resumption = resumption
        self._now = now
        self._telemetry = telemetry
        self._on_head = on_head
        self._recovering = Recovering(
            authenticator, origin=origin, model=model, policy=settings.retry, announce=self._pause
        )
        self._scope: trio.CancelScope | None = None  # Of the task, while there is one.
        self._gone: trio.Event | None = None
        self._crash: GatewayError | None = None
        self._response: Response | None = None
        self._repeated_before = 0
        self.taking = Taking(
            resumption,
            self._recovering,
            timeouts=settings.timeouts,
            buffer=buffer,
            telemetry=telemetry,
            owner=self,
        )
        self.attempts: list[Attempt] = []

    def _pause(self, event: Paused | RateLimited) -> None:
        self.taking.pause(event)

    # The task

    def start(self, failure: _Failure | None = None) -> None:
        """Begin; or go on after an attempt has ended in `failure`."""
        scope = trio.CancelScope()
        self._nursery.start_soon(self._run, failure, scope)
        self._scope = scope

    @trio.lowlevel.enable_ki_protection
    async def _run(  # noqa: ASYNC910 - one, unless `failure` ends the reply
        self, failure: _Failure | None, scope: trio.CancelScope
    ) -> None:
        """Ask until an answer streams, or all is over."""
        end: BaseException | None = None
        try:
            with scope, self._telemetry.receiving():
                await self._ask_until_answered(failure)
        except (GatewayError, SinkRaised) as error:
            end = error
        except trio.Cancelled:
            end = trio.ClosedResourceError("the gateway was closed")
            raise
        except Exception as error:
            end = self._crashed(error)
        finally:
            if end is not None:
                self._end(end)
            if self._scope is scope:
                self._scope = None
                if self._gone is not None:
                    self._gone.set()

    def leave(self, error: BaseException) -> None:
        """Nobody wants the rest: the reply ends in `error`."""
        self._leave_attempt()
        self._end(error)
        if self._scope is not None:
            self._scope.cancel()

    async def aclose(self) -> None:  # noqa: ASYNC910 - one, if there is something to wait for
        """The reply's block is left: end all that is under way for it, on the server too."""
        cancel_path = self._resumption.cancel_path
        self.leave(trio.ClosedResourceError("the reply's block has been left"))
        if self._scope is not None:
            self._gone = trio.Event()
            # It is cancelled, and has nothing to clean up that takes long.
            with trio.CancelScope(shield=True):
                await self._gone.wait()
        self.taking.part()
        self._recovering.part()
        if cancel_path is not None and self._recovering.key is not None:
            await self._cancel_on_the_server(cancel_path, self._recovering.key)

    async def _cancel_on_the_server(  # noqa: ASYNC910 - one, if anything is sent
        self, path: str, key: Key
    ) -> None:
        """Whoever runs the answer on its own would go on, for money. In a bounded time."""
        request = self._make_request(
            key,
            NextRequest(None, "POST", path, b"", {}),
            headers={},
            connect_timeout=CANCEL_SECONDS,
        )
        try:
            with trio.move_on_after(CANCEL_SECONDS, shield=True):
                response = await self._transport.send(request)
                response.close()
        except (GatewayError, trio.ClosedResourceError) as error:
            _log.info("an answer that nobody wants could not be cancelled: %s", error)

    @property
    def crash(self) -> GatewayError | None:
        """What the reader gets, and its cause, where the background task has failed by a bug."""
        return self._crash

    @property
    def renamed(self) -> Mapping[str, str]:
        """See `Resumption`."""
        return self._resumption.renamed

    def _crashed(self, bug: Exception) -> GatewayError:
        self._crash = APIConnectionError(
            f"the reply stopped: a background task failed ({type(bug).__name__})", retryable=False
        )
        self._crash.__cause__ = bug
        return self._crash

    def _end(self, error: BaseException) -> None:
        self.taking.end(error.error if isinstance(error, SinkRaised) else error)

    # Attempts

    async def _ask_until_answered(self, failure: _Failure | None) -> None:
        while True:
            request = (
                self._resumption.next_request() if failure is None else await self._recover(failure)
            )
            key = await self._recovering.next_key()
            attempt = Attempt(trio.current_time(), key.generation, request.way, epoch=key.epoch)
            self.attempts.append(attempt)
            self.taking.begin(attempt)
            self._repeated_before = self._resumption.repeated
            try:
                with self._telemetry.begin_attempt(attempt):
                    await self._ask(key, request)
                return
            except trio.Cancelled:
                self._leave_attempt()
                raise
            except Exception as error:
                failure = self._failed(error)

    async def _ask(self, key: Key, request: NextRequest) -> None:
        """Send the request; its answer is taken when this returns, or is being taken."""
        response = await self._in_time(
            self._transport.send(
                self._make_request(
                    key,
                    request,
                    headers=self._telemetry.headers(),
                    connect_timeout=self._connect_timeout,
                )
            )
        )
        streams = False
        try:
            self._telemetry.responded(response.status)
            if self._on_head is not None:
                self._on_head(response.status, response.headers)
            if not 200 <= response.status < 300:
                raise self._response_error(response, await read_error_body(response))
            content_type = response.headers.get("content-type", "text/event-stream")
            kind = content_type.partition(";")[0].strip().lower()
            streams = kind == "text/event-stream"
            if kind == "application/json":
                body = await self._in_time(read_body(response))
                self.taking.take_completion(body)
                self.taking.finish()
                self._attempt_ended(None)
            elif not streams:
                raise ProtocolError(
                    "the gateway answered with something other than an event stream: is "
                    f"{self._origin} the base URL of an OpenAI-compatible API?",
                    status=response.status,
                )
        finally:
            if not streams:
                response.close()
        if streams:
            self._response = response
            response.start(self.taking)

    async def _in_time(self, step: Coroutine[object, object, T]) -> T:  # noqa: ASYNC910 - the step's
        """What `step` gives, if that is before the next bytes have to be here."""
        with trio.move_on_at(self.taking.deadline()):
            return await step
        raise self.taking.too_late()

    # While an answer streams: called by what reads the connection, and by the reader

    def reader_has_room(self) -> None:
        """See `taking.Owner`."""
        if self._response is not None and self.taking.has_room():
            self._response.start(self.taking)

    def answer_stopped(self, error: BaseException | None) -> None:
        """See `taking.Owner`."""
        self._response = None
        try:
            if not self.taking.done:
                self._check(error)
                self.taking.finish()
        except SinkRaised as raised:
            self._end(raised)
            self._leave_attempt()
        except trio.ClosedResourceError as closed:
            self._end(closed)
            self._leave_attempt()
        except Exception as failure:
            self._go_on_after(failure)
        else:
            self._attempt_ended(None)

    def _check(self, error: BaseException | None) -> None:
        """Raise `error`, unless all is there but the goodbye."""
        match error:
            case None:
                pass
            case trio.TooSlowError():
                if not self._resumption.decoder.complete:
                    raise self.taking.too_late()
            case APIConnectionError() if self._resumption.decoder.complete:
                pass
            case _:
                raise error

    def _go_on_after(self, failure: Exception) -> None:
        try:
            self.start(self._failed(failure))
        except Exception as error:
            self._end(self._crashed(error))

    def _failed(self, error: Exception) -> _Failure:
        """The attempt has ended in `error`; raises what is not the gateway's doing."""
        match error:
            case StartedOver():
                message = "the server did not go on where the reply broke"
                error = _AskDifferently(StreamInterrupted(message))
            case CannotResume():
                error = StreamInterrupted(str(error))
            case Diverged():
                error = StreamInterrupted(
                    "the reply broke, and when it was asked for again the answer was a different "
                    "one"
                )
            case _:
                pass
        match error:
            case ErrorFrame() | _AskDifferently():
                self._attempt_ended(error.error)
            case GatewayError():
                self._attempt_ended(error)
            case _:
                self._leave_attempt()
                raise error
        return error

    def _attempt_ended(self, cause: GatewayError | None, *, left: bool = False) -> None:
        attempt = self.attempts[-1]
        attempt.cause = cause
        attempt.ended = trio.current_time()
        attempt.repeated = self._resumption.repeated - self._repeated_before
        if self.taking.total_left is not None:
            self.taking.total_left -= attempt.ended - attempt.started
        self._telemetry.end_attempt(attempt, left=left)

    def _leave_attempt(self) -> None:
        if self._response is not None:
            response, self._response = self._response, None
            response.close()
        if self.attempts and self.attempts[-1].ended is None:
            self._attempt_ended(None, left=True)

    # Recovery

    async def _recover(self, failure: _Failure) -> NextRequest:  # noqa: ASYNC910 - where it waits
        """Wait as long as `failure` asks for; what is to be sent then.

        A checkpoint where it waits; what follows, the next key, is one always.
        """
        if isinstance(failure, _AskDifferently):
            return self._next_request(failure.error)  # noqa: ASYNC910 - nothing to wait for
        in_frame = isinstance(failure, ErrorFrame)
        error = failure.error if isinstance(failure, ErrorFrame) else failure
        if in_frame:
            self._resumption.ended_early(error)
        try:
            step = self._recovering.decide(
                error, in_frame=in_frame, mid_stream=self.attempts[-1].accepted
            )
        except APIConnectionError:
            if not self._resumption.content:
                raise
            raise StreamInterrupted("the reply broke and could not be taken up again") from error
        request = self._next_request(error)
        await self._recovering.carry_out(step)
        return request

    def _next_request(self, failure: GatewayError) -> NextRequest:
        try:
            return self._resumption.next_request()
        except CannotResume as reason:
            raise StreamInterrupted(str(reason)) from failure

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
