"""The fake gateway's chat completions: what the model says, and how a request gets it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import trio

from .._protocol.events import Delta
from ._call import Call
from ._chunks import Completion, Shape, default_answer, marked, split, text_of
from ._continuing import partial_answer, refusal
from ._faults import Status
from ._run import KeptRuns, Place, Run, canonical
from ._streams import Streams

if TYPE_CHECKING:
    from ._gateway import FakeGateway

Answer: TypeAlias = Callable[[Mapping[str, object], int], Sequence[str | Delta]]
"""Gives the tokens of an answer, from the request's body and the attempt (1, 2, ...) at it."""

_INVALID = Status(
    422,
    body={
        "detail": [{"type": "missing", "loc": ["body", "messages"], "msg": "Field required"}],
    },
)


class Completions:
    """Answers `POST /v1/chat/completions`.

    Args:
        gateway: Whose settings hold.
        answer: What the model says; by default what follows from the messages.
        shape: Whose shape the chunks have.

    Attributes:
        streams: Those that are being served.
        kept: Those that can be taken up.
    """

    def __init__(self, gateway: FakeGateway, answer: Answer | None, shape: Shape) -> None:
        self.streams = Streams()
        self.kept = KeptRuns()
        self._gateway = gateway
        self._answer = answer
        self._shape: Shape = shape
        self._attempts: Counter[bytes] = Counter()

    def intended(self, body: Mapping[str, object]) -> str:
        """What `FakeGateway.intended` gives."""
        partial = partial_answer(body, self._gateway.continues)
        before = "" if partial is None else partial.text
        return before + text_of(self._tokens(body, 1)[0])

    async def respond(self, call: Call) -> None:
        """Answer a request whose key is valid.

        Raises:
            HangUp: The connection is to be left in the middle of the answer.
            Exception: What the callable `answer` raised.
        """
        gateway, body = self._gateway, call.seen.body
        if body is None or not isinstance(body.get("messages"), list):
            await call.send_status(_INVALID)
        elif gateway.models is not None and body.get("model") not in gateway.models:
            reason = "The model does not exist: GET /models lists those that do"
            await call.send_status(Status(404, reason))
        elif (refused := refusal(body, gateway.continues)) is not None:
            await call.send_status(refused)
        elif body.get("stream") is not True:
            await self._send_whole(call, body)
        else:
            await self._stream(call, body)

    async def _stream(self, call: Call, body: Mapping[str, object]) -> None:
        event_ids = self._gateway.event_ids
        last_event_id = call.seen.headers.get("last-event-id")
        if last_event_id and event_ids is True:
            if (found := self.kept.find(body, last_event_id)) is not None:
                call.seen.resumed_after = last_event_id
                await self.streams.serve(call, *found)
                return
            if self._gateway.on_lost_stream == "404":
                await call.send_status(Status(404, "The stream of this event is not kept"))
                return
        echo, tokens, endings = self._next_answer(body)
        completion = Completion(call.serial, body, self._shape)
        if event_ids is True:
            name = str(call.serial)
            run = Run(completion, tokens, endings, echo=echo, ids=f"{name}-", kept=True)
            self.kept.keep(name, body, run)
        else:
            run = Run(completion, tokens, endings, echo=echo, ids="" if event_ids else None)
        await self.streams.serve(call, run, Place())

    async def _send_whole(self, call: Call, body: Mapping[str, object]) -> None:
        seen = call.seen
        echo, tokens, endings = self._next_answer(body)
        completion = Completion(call.serial, body, self._shape)
        other = call.plan.due_text(seen.path, call.number, seen.generation)
        if other is not None:
            seen.faults.append(other)
        await trio.sleep(self._gateway.token_interval * max(len(tokens) - 1, 0))
        deltas = [marked(delta, other.mark if other else "") for delta in tokens]
        completion.completion_tokens = seen.tokens = len(tokens)
        await call.send(200, "application/json", completion.whole(echo + deltas + endings))
        seen.complete = True

    def _next_answer(
        self, body: Mapping[str, object]
    ) -> tuple[list[Delta], list[Delta], list[Delta]]:
        """What comes before the model's tokens, these, and what comes after them."""
        attempt = 1
        if self._answer is not None:
            key = canonical(body)
            self._attempts[key] += 1
            attempt = self._attempts[key]
        tokens, endings = self._tokens(body, attempt)
        partial = partial_answer(body, self._gateway.continues) if self._gateway.echo else None
        return [] if partial is None else partial.echo(tokens, endings), tokens, endings

    def _tokens(self, body: Mapping[str, object], attempt: int) -> tuple[list[Delta], list[Delta]]:
        partial = partial_answer(body, self._gateway.continues)
        if partial is None:
            return split(self._said(body, attempt), body)
        other = default_answer(body, self._gateway.tokens)
        return split(partial.rest(self._said(partial.body, 1), other), body)

    def _said(self, body: Mapping[str, object], attempt: int) -> Sequence[str | Delta]:
        if self._answer is None:
            return default_answer(body, self._gateway.tokens)
        return self._answer(body, attempt)
