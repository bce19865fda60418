"""When the faults of a fake gateway strike."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from ._faults import IN_STREAM, Close, EmptyStream, Fault, OtherText, Status

HistoryPath: TypeAlias = Literal[
    "/v1/chat/sessions",
    "/v1/chat/sessions/{id}",
    "/v1/chat/sessions/{id}/messages",
    "/v1/chat/sessions/{id}/messages/batch",
    "/v1/chat/search",
    "/v1/chat/stats",
    "/v1/chat/feedback",
]
StreamPath: TypeAlias = Literal[
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/responses/{id}",
    "/v1/responses (websocket)",
    "/v1/messages",
]
OtherPath: TypeAlias = Literal[
    "/v1/responses/{id}/cancel", "/v1/responses (handshake)", "/v1/models", "/auth"
]
Path: TypeAlias = StreamPath | OtherPath | HistoryPath

HISTORY_PATHS: tuple[HistoryPath, ...] = get_args(HistoryPath)
STREAM_PATHS: tuple[StreamPath, ...] = get_args(StreamPath)
PATHS: tuple[Path, ...] = (*STREAM_PATHS, *get_args(OtherPath), *HISTORY_PATHS)


def pattern_of(path: str) -> str:
    """The path as `fault()` names it: `{id}` for what the id of a session or response would be."""
    return re.sub(r"^/v1/(chat/sessions|responses)/[^/]+", r"/v1/\1/{id}", path)


@dataclass(slots=True, eq=False)
class _Armed:
    fault: Fault
    path: str
    request: int | None
    generation: int | None
    token: int | None
    left: int | None


class FaultPlan:
    """Faults that wait for their moment."""

    def __init__(self) -> None:
        self._armed: list[_Armed] = []

    def add(
        self,
        fault: Fault,
        *,
        path: Path,
        request: int | None,
        generation: int | None,
        token: int | None,
        times: int | None,
    ) -> None:
        """Add a fault; `FakeGateway.fault` says what the arguments mean."""
        if token is None and isinstance(fault, IN_STREAM):
            token = 0
        if path in HISTORY_PATHS and not isinstance(fault, IN_STREAM):
            if token:
                raise ValueError("what the history answers comes in one piece: token is 0 or None")
        elif token is not None and path not in STREAM_PATHS:
            raise ValueError(
                f"an answer of {path} is no stream of tokens: {fault} cannot be in it, and "
                "other faults there strike in place of the head, with token=None"
            )
        elif isinstance(fault, Close) and path != "/v1/responses (websocket)":
            raise ValueError('a Close is for path="/v1/responses (websocket)"')
        elif token is not None and isinstance(fault, Status):
            raise ValueError("a Status comes in place of the head: leave out the token")
        if token and isinstance(fault, EmptyStream):
            raise ValueError("an EmptyStream ends before the first token: use EarlyDone")
        for name, value, least in (
            ("request", request, 1),
            ("generation", generation, 1),
            ("token", token, 0),
            ("times", times, 1),
        ):
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}, but must be {least} or more, or None")
        self._armed.append(_Armed(fault, path, request, generation, token, times))

    def due(
        self, path: str, request: int, generation: int | None, token: int | None
    ) -> Iterator[Fault]:
        """The faults of this moment, each used up as it is taken from the iterator.

        The path is as `pattern_of` gives it.
        """
        # Asked before every token of every stream.
        here = [armed for armed in self._armed if armed.token == token and armed.path == path]
        for armed in here:
            if (
                armed.request in (None, request)
                and armed.generation in (None, generation)
                and armed.left != 0  # another request may have used it up during a stall
            ):
                self._use_up(armed)
                yield armed.fault

    def due_text(self, path: str, request: int, generation: int | None) -> OtherText | None:
        """The one fault of a stream that can be in an answer which is none."""
        for armed in self._armed:
            if (
                isinstance(armed.fault, OtherText)
                and armed.path == path
                and armed.request in (None, request)
                and armed.generation in (None, generation)
            ):
                self._use_up(armed)
                return armed.fault
        return None

    def _use_up(self, armed: _Armed) -> None:
        if armed.left is not None:
            armed.left -= 1
            if armed.left == 0:
                self._armed.remove(armed)
