"""One request of the simulator while it runs, and the record that is left of it."""

from __future__ import annotations

from array import array
from itertools import pairwise
from time import perf_counter_ns

from .. import (
    AuthenticationError,
    Delta,
    GatewayError,
    Paused,
    RateLimited,
    Reply,
    ReplyEvent,
    Restarted,
    Resumed,
    StreamTimeout,
)
from ._records import Outcome, RequestRecord


class Left(Exception):
    """The user leaves in the middle of the reply, as the workload wants."""


class Running:
    """A request under way: when its chunks came, and what happened between them.

    Args:
        leave_after: The user leaves at this chunk; 0: never.
        keep_unsaid: Whether reasoning and tool calls are kept, whose tokens are to be counted.
    """

    __slots__ = (
        "_after_pause", "_leave_after", "_pause_began", "arrivals", "first_output", "other",
        "paused", "pauses", "restarts", "unsaid",
    )  # fmt: skip

    def __init__(self, leave_after: int = 0, *, keep_unsaid: bool = False) -> None:
        self.arrivals = array("q")
        self.first_output = 0
        self.other = 0
        """When the last event without text came, such as the one that tells the usage."""
        self.pauses = 0
        self.paused = 0
        self.restarts = 0
        self.unsaid: list[str] | None = [] if keep_unsaid else None
        self._pause_began = 0
        self._after_pause: list[int] = []
        self._leave_after = leave_after

    def take(self, delta: Delta, arrived_ns: int) -> None:
        """The sink of `Reply.drain`."""
        if delta.text:
            if not self.first_output:
                self.first_output = arrived_ns
        elif delta.tool_calls:
            self.first_output = self.first_output or arrived_ns
        elif not delta.reasoning:
            self.other = arrived_ns
            return
        if self.unsaid is not None and not delta.text:
            self.unsaid.append(delta.reasoning)
            self.unsaid += [f"{call.name or ''}{call.arguments}" for call in delta.tool_calls]
        self.arrivals.append(arrived_ns)
        if len(self.arrivals) == self._leave_after:
            raise Left

    def note(self, event: ReplyEvent) -> None:
        """What else happens: see `Reply.drain`."""
        match event:
            case Paused() | RateLimited():
                if not self._pause_began:
                    self._pause_began = perf_counter_ns()
                    self.pauses += 1
                    if len(self.arrivals) not in self._after_pause[-1:]:
                        self._after_pause.append(len(self.arrivals))
            case Resumed():
                self.end_pause()
            case Restarted():
                self.restarts += 1
                if self.unsaid is not None:
                    self.unsaid.clear()
            case _:
                pass

    @property
    def waits(self) -> bool:
        """Whether it is paused."""
        return self._pause_began > 0

    def end_pause(self) -> None:
        """It goes on, or is over."""
        if self._pause_began:
            self.paused += perf_counter_ns() - self._pause_began
            self._pause_began = 0

    @property
    def arrival(self) -> int:
        """When the last of it came; 0: nothing did."""
        return max(self.arrivals[-1], self.other) if self.arrivals else self.other

    def paused_gaps(self) -> list[int]:
        """The gaps between chunks that a pause was in, in nanoseconds."""
        times = self.arrivals
        return [times[n] - times[n - 1] for n in self._after_pause if 0 < n < len(times)]

    def record(
        self,
        reply: Reply | None,
        error: BaseException | None,
        *,
        began: int,
        session: int,
        turn: int,
        group: int,
        model: str,
        intended: int,
        sent: int,
        asked_tokens: int | None,
    ) -> RequestRecord:
        """What is kept of it; instants in it count from `began`.

        Args:
            reply: As far as it came.
            error: What it ended with.
            began: When the load began.
            session: See `RequestRecord`; so the rest.
            turn: ...
            group: ...
            model: ...
            intended: ...
            sent: ...
            asked_tokens: ...
        """
        self.end_pause()
        times = self.arrivals
        usage = None if reply is None else reply.usage
        attempts = [] if reply is None else reply.attempts
        return RequestRecord(
            session=session,
            turn=turn,
            group=group,
            model=model,
            intended=intended - began,
            sent=sent - began,
            first=times[0] - began if times else None,
            first_output=self.first_output - began if self.first_output else None,
            last=times[-1] - began if times else None,
            ended=(perf_counter_ns() if error is not None else self.arrival) - began,
            outcome=_outcome(error),
            error=_kind(error),
            chunks=len(times),
            output_tokens=None if usage is None else usage.completion_tokens,
            tokens_by="chunks" if usage is None else "usage",
            input_tokens=None if usage is None else usage.prompt_tokens,
            asked_tokens=asked_tokens,
            rejected=sum(isinstance(a.cause, AuthenticationError) for a in attempts),
            pauses=self.pauses,
            paused=self.paused,
            taken_up="+".join(a.resumed_by for a in attempts if a.resumed_by is not None),
            restarts=self.restarts,
            longest_gap=max((b - a for a, b in pairwise(times)), default=0),
        )


def _outcome(error: BaseException | None) -> Outcome:
    if error is None:
        return "ok"
    if isinstance(error, Left):
        return "cancelled"
    if isinstance(error, StreamTimeout):
        return "timeout"
    return "error" if isinstance(error, GatewayError) else "unfinished"


def _kind(error: BaseException | None) -> str:
    if not isinstance(error, GatewayError):
        return ""
    name = type(error).__name__
    return name if error.status is None else f"{name} {error.status}"
