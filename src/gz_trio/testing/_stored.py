"""The responses that the fake gateway's Responses API keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ._faults import Status
from ._formats import objects
from ._responses import ResponsesFormat
from ._run import Place, Run

_MOST_KEPT = 10_000


@dataclass(slots=True)
class StoredResponse:
    """One response.

    Args:
        format: Its format.
        run: The model's.
        body: The request's, with all that was said before in its `input`.
    """

    format: ResponsesFormat
    run: Run
    body: Mapping[str, object]

    @property
    def background(self) -> bool:
        """Whether it runs on when nobody listens."""
        return self.body.get("background") is True

    def place_after(self, number: str | None) -> Place | None:
        """Where the stream goes on after the event of this number, or begins.

        `None` if that cannot be.
        """
        if not self.background or self.body.get("stream") is not True:
            return None
        if number is None:
            return Place()
        mark = f'"sequence_number":{number},'.encode()
        for step, events in enumerate(self.run.kept_steps):
            for position, event in enumerate(events, 1):
                if mark in event:
                    at_end = position == len(events)
                    return Place(step + 1) if at_end else Place(step, position)
        return None

    def cancel(self) -> None:
        """End it where it is, if it runs."""
        if self.format.status == "in_progress":
            self.format.status = "cancelled"
            self.run.stopped = True

    def items(self) -> list[object]:
        """All that was said, its own output too."""
        return [*_items(self.body), *self.format.output]


@dataclass(slots=True)
class StoredResponses:
    """The last of them, by id.

    Args:
        shared: Those that are known too; a WebSocket keeps those of its own turns beside them.
    """

    shared: StoredResponses | None = None
    _responses: dict[str, StoredResponse] = field(default_factory=dict[str, StoredResponse])

    def get(self, response_id: str) -> StoredResponse | None:
        """The one of this id."""
        own = self._responses.get(response_id)
        return self.shared.get(response_id) if own is None and self.shared is not None else own

    def keep(self, response: StoredResponse) -> None:
        """Keep one, unless its request forbids it."""
        if self.shared is not None:
            self.shared.keep(response)
        elif response.body.get("store") is False:
            return
        if len(self._responses) >= _MOST_KEPT:
            del self._responses[next(iter(self._responses))]
        self._responses[response.format.id] = response

    def forget(self, response_id: str | None = None) -> None:
        """Keep this one no longer, or none of them."""
        if response_id is None:
            self._responses.clear()
        else:
            self._responses.pop(response_id, None)

    def refusal(self, body: Mapping[str, object]) -> Status | None:
        """What is answered to a request that goes on from one that is not there."""
        previous = body.get("previous_response_id")
        if previous is None or self.get(str(previous)) is not None:
            return None
        reason = f"Previous response with id '{previous}' not found."
        code = "previous_response_not_found"
        return Status(400, reason, "openai", type="invalid_request_error", code=code)

    def whole(self, body: Mapping[str, object]) -> dict[str, object]:
        """A request's body with all that was said before in its `input`."""
        previous = self.get(str(body.get("previous_response_id")))
        if previous is None:
            return dict(body)
        return {**body, "input": [*previous.items(), *_items(body)]}


def _items(body: Mapping[str, object]) -> list[object]:
    sent = body.get("input")
    if isinstance(sent, str):
        return [{"role": "user", "content": sent}]
    return [*objects(sent)]
