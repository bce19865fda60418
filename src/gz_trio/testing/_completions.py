"""The fake gateway's answers over all three APIs: what the model says, how a request gets it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import parse_qs

import msgspec
import trio

from .._protocol.apis import ApiName
from .._protocol.events import Delta
from ._call import Call
from ._chunks import (
    ChatFormat,
    Shape,
    count_words,
    default_answer,
    one_after_another,
    split,
    text_of,
)
from ._continuing import partial_answer, refusal
from ._faults import Status
from ._formats import Format, conversation, thoughts_were_changed
from ._messages import MessagesFormat
from ._responses import ResponsesFormat
from ._run import KeptRuns, Place, Run, canonical
from ._stored import StoredResponse, StoredResponses
from ._streams import Streams

if TYPE_CHECKING:
    from ._gateway import FakeGateway

Answer: TypeAlias = Callable[[Mapping[str, object], int], Sequence[str | Delta]]
"""Gives the tokens of an answer, from the request's body and the attempt (1, 2, ...) at it."""

API_PATHS: Mapping[str, ApiName] = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "responses",
    "/v1/messages": "messages",
}

_INVALID = Status(
    422,
    body={
        "detail": [{"type": "missing", "loc": ["body", "messages"], "msg": "Field required"}],
    },
)


class Completions:
    """Answers requests to a model.

    Args:
        gateway: Whose settings hold.
        answer: What the model says; by default what follows from the messages.
        shape: Whose shape the chunks of chat completions have.

    Attributes:
        streams: Those that are being served.
        kept: Those that can be taken up by `Last-Event-ID`.
        stored: The responses that the Responses API keeps.
    """

    def __init__(self, gateway: FakeGateway, answer: Answer | None, shape: Shape) -> None:
        self.streams = Streams()
        self.kept = KeptRuns()
        self.stored = StoredResponses()
        self._gateway = gateway
        self._answer = answer
        self._shape: Shape = shape
        self._attempts: Counter[bytes] = Counter()

    def intended(self, body: Mapping[str, object]) -> str:
        """What `FakeGateway.intended` gives."""
        body = self.stored.whole(body)
        partial = partial_answer(body, self._gateway.continues)
        before = "" if partial is None else partial.text
        return before + text_of(self._tokens(body, 1)[0])

    async def respond(self, call: Call) -> None:
        """Answer a request whose key is valid.

        Raises:
            HangUp: The connection is to be left in the middle of the answer.
            Exception: What the callable `answer` raised.
        """
        api, body = API_PATHS[call.seen.path], call.seen.body
        refused = self.refusal(api, call.seen.headers, body, self.stored)
        if body is None or refused is not None:
            await call.send_status(refused or _INVALID)
            return
        body = self.stored.whole(body)
        if body.get("stream") is not True:
            await self._send_whole(call, api, body)
        else:
            await self._stream(call, api, body)

    def refusal(
        self,
        api: ApiName,
        headers: Mapping[str, str],
        body: Mapping[str, object] | None,
        stored: StoredResponses,
    ) -> Status | None:
        """What is answered to a request that cannot be served."""
        models = self._gateway.models
        refused: Status | None = None
        match api:
            case "chat" if body is None or not isinstance(body.get("messages"), list):
                return _INVALID
            case "responses" if body is None or not isinstance(body.get("input"), str | list):
                return Status(400, "Missing required parameter: 'input'.", "openai")
            case "messages" if "anthropic-version" not in headers:
                return Status(400, "anthropic-version: header is required", "anthropic")
            case "messages" if (
                body is None
                or not isinstance(body.get("messages"), list)
                or not isinstance(body.get("max_tokens"), int)
            ):
                return Status(400, "messages, max_tokens: Field required", "anthropic")
            case _ if body is None:
                return _INVALID
            case "responses":
                refused = stored.refusal(body)
            case _:
                refused = refusal(body, self._gateway.continues)
        if models is not None and body.get("model") not in models:
            return Status(404, "The model does not exist: GET /models lists those that do")
        if thoughts_were_changed(body):
            reason = "A thought was changed: its signature does not fit"
            return Status(400, reason, "anthropic" if api == "messages" else "openai")
        return refused

    async def respond_stored(self, call: Call, query: str) -> None:
        """Answer a request for a response that is kept, or for its end.

        Raises:
            HangUp: The connection is to be left in the middle of the answer.
        """
        seen = call.seen
        response_id = seen.path.removeprefix("/v1/responses/").partition("/")[0]
        stored = self.stored.get(response_id)
        options = parse_qs(query)
        if stored is None:
            reason = f"Response with id '{response_id}' not found."
            await call.send_status(Status(404, reason, "openai", type="invalid_request_error"))
        elif seen.path.endswith("/cancel"):
            if not stored.background:
                reason = "Only responses with background=true can be cancelled."
                await call.send_status(Status(400, reason, "openai"))
                return
            stored.cancel()
            await self._send_object(call, stored.format.response())
        elif seen.method == "DELETE":
            self.stored.forget(response_id)
            deleted = {"id": response_id, "object": "response", "deleted": True}
            await self._send_object(call, deleted)
        elif options.get("stream") != ["true"]:
            await self._send_object(call, stored.format.response())
        else:
            after = options.get("starting_after", [None])[0]
            place = stored.place_after(after)
            if place is None:
                reason = "This response is not streamed in the background, or has no such event."
                await call.send_status(Status(400, reason, "openai"))
                return
            seen.resumed_after = after
            await self.streams.serve(call, stored.run, place)

    async def _send_object(self, call: Call, content: object) -> None:
        await call.send(200, "application/json", msgspec.json.encode(content))
        call.seen.complete = True

    async def _stream(self, call: Call, api: ApiName, body: Mapping[str, object]) -> None:
        event_ids = self._gateway.event_ids if api == "chat" else False
        last_event_id = call.seen.headers.get("last-event-id")
        if last_event_id and event_ids is True:
            if (found := self.kept.find(body, last_event_id)) is not None:
                call.seen.resumed_after = last_event_id
                await self.streams.serve(call, *found)
                return
            if self._gateway.on_lost_stream == "404":
                await call.send_status(Status(404, "The stream of this event is not kept"))
                return
        if event_ids is True:
            name = str(call.serial)
            run = self.run(call.serial, api, body, ids=f"{name}-", kept=True)
            self.kept.keep(name, body, run)
        else:
            run = self.run(call.serial, api, body, ids="" if event_ids else None)
        await self.streams.serve(call, run, Place())

    def run(
        self,
        number: int,
        api: ApiName,
        body: Mapping[str, object],
        *,
        ids: str | None = None,
        kept: bool = False,
    ) -> Run:
        """The model begins to answer a request that can be served."""
        echo, tokens, endings = self._next_answer(body)
        maker = self._format(number, api, body)
        tokens = tokens if api == "chat" else one_after_another(tokens)
        kept = kept or isinstance(maker, ResponsesFormat)
        run = Run(maker, tokens, endings, echo=echo, ids=ids, kept=kept)
        if isinstance(maker, ResponsesFormat):
            self.stored.keep(StoredResponse(maker, run, body))
        return run

    def turn(
        self,
        number: int,
        body: Mapping[str, object],
        stored: StoredResponses,
        stream_id: str | None,
    ) -> Run:
        """The model begins to answer a turn on a WebSocket that can be served."""
        body = stored.whole(body)
        _, tokens, endings = self._next_answer(body)
        prompt_tokens = count_words(self._said(body))
        maker = ResponsesFormat(number, body, prompt_tokens, websocket=True, stream_id=stream_id)
        run = Run(maker, one_after_another(tokens), endings)
        stored.keep(StoredResponse(maker, run, body))
        return run

    def _format(self, number: int, api: ApiName, body: Mapping[str, object]) -> Format:
        prompt_tokens = count_words(self._said(body))
        match api:
            case "chat":
                return ChatFormat(number, body, prompt_tokens, self._shape)
            case "responses":
                return ResponsesFormat(number, body, prompt_tokens)
            case "messages":
                return MessagesFormat(number, body, prompt_tokens)

    async def _send_whole(self, call: Call, api: ApiName, body: Mapping[str, object]) -> None:
        seen = call.seen
        run = self.run(call.serial, api, body)
        other = call.plan.due_text(seen.path, call.number, seen.generation)
        if other is not None:
            seen.faults.append(other)
        await trio.sleep(self._gateway.token_interval * max(len(run.tokens) - 1, 0))
        run.mark = other.mark if other else ""
        seen.tokens = len(run.tokens)
        await call.send(200, "application/json", run.whole())
        seen.complete = True

    def _next_answer(
        self, body: Mapping[str, object]
    ) -> tuple[list[Delta], list[Delta], list[Delta]]:
        """What comes before the model's tokens, these, and what comes after them."""
        attempt = 1
        if self._answer is not None:
            # Not the body itself: there may be very many, and long ones.
            key = hashlib.sha256(canonical(body)).digest()
            self._attempts[key] += 1
            attempt = self._attempts[key]
        tokens, endings = self._tokens(body, attempt)
        partial = partial_answer(body, self._gateway.continues) if self._gateway.echo else None
        return [] if partial is None else partial.echo(tokens, endings), tokens, endings

    def _tokens(self, body: Mapping[str, object], attempt: int) -> tuple[list[Delta], list[Delta]]:
        partial = partial_answer(body, self._gateway.continues)
        if partial is None:
            return split(self._answer_to(body, attempt), body)
        other = default_answer(body, self._said(body), self._gateway.tokens)
        return split(partial.rest(self._answer_to(partial.body, 1), other), body)

    def _answer_to(self, body: Mapping[str, object], attempt: int) -> Sequence[str | Delta]:
        if self._answer is None:
            return default_answer(body, self._said(body), self._gateway.tokens)
        return self._answer(body, attempt)

    def _said(self, body: Mapping[str, object]) -> object:
        """What the answer follows from."""
        if "input" in body:
            return conversation(body)
        messages = body.get("messages")
        return [body["system"], messages] if "system" in body else messages
