"""One request to the fake gateway: what the ledger keeps of it, and how it is answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ._faults import (
    Close,
    Comment,
    Cut,
    Drip,
    Fault,
    Insert,
    OtherText,
    Reset,
    Stall,
    Status,
    Warning_,
    error_body,
)
from ._keys import Account
from ._plan import FaultPlan
from ._run import Run
from ._server import Exchange, HangUp

if TYPE_CHECKING:
    from ._gateway import FakeGateway


@dataclass(slots=True)
class SeenRequest:
    """What a `FakeGateway` saw of one request, and what it did with it.

    Attributes:
        method: `"POST"` or another.
        path: As `fault()` names it, but with ids.
        headers: By lower-case name; the value of one that carries a secret is `"[secret]"`.
        body: The JSON object that came; `None` if there was none.
        generation: Of the key that it came with, within its account; `None` for a key that never
            was valid.
        status: The status that was answered; `None` until then, or if there was no answer.
        tokens: How many tokens the model made for it: all that were sent, and one that was cut
            off halfway; of a kept stream that was taken up, only those that were not there yet.
        resumed_after: The id of the event after which a kept stream was taken up, the request's
            `Last-Event-ID`; `None` for an answer from its start.
        complete: Whether the answer was sent to its proper end.
        faults: What went wrong on purpose, in the order in which it struck.
    """

    method: str
    path: str
    headers: dict[str, str] = field(repr=False)
    body: dict[str, object] | None = field(repr=False)
    generation: int | None
    status: int | None = None
    tokens: int = 0
    resumed_after: str | None = None
    complete: bool = False
    faults: list[Fault] = field(default_factory=list[Fault])


@dataclass(slots=True)
class Call:
    """A request while it is being answered.

    Args:
        gateway: Whose counters it moves.
        plan: What may go wrong with it.
        exchange: The writer of the answer.
        seen: What the ledger keeps.
        path: Its path as `FakeGateway.fault` names it.
        number: 1 for the first request to this path.
        serial: 1 for the first request of all.

    Attributes:
        account: Whose valid key it came with; `None` until the key is looked at.
    """

    gateway: FakeGateway
    plan: FaultPlan
    exchange: Exchange
    seen: SeenRequest
    path: str
    number: int
    serial: int
    account: Account | None = None

    @property
    def request_id(self) -> str:
        """The answer's `x-request-id`."""
        return f"req_{self.serial}"

    async def strike(self, token: int | None, run: Run | None = None) -> Fault | None:
        """Let the faults of this moment strike; gives the one that ends the answer, if any.

        A checkpoint only if one of them takes time.
        """
        exchange, seen = self.exchange, self.seen
        for fault in self.plan.due(self.path, self.number, seen.generation, token):
            seen.faults.append(fault)
            match fault:
                case Stall(seconds):
                    await exchange.flush()
                    await exchange.wait(seconds)
                case Drip(interval):
                    exchange.drip = interval
                case Close():
                    await exchange.flush()
                    raise HangUp(close=fault)
                case Cut(after_bytes) | Reset(after_bytes):
                    reset = isinstance(fault, Reset)
                    if after_bytes is None:
                        await exchange.flush()
                        raise HangUp(reset=reset)
                    exchange.hang_up_after(after_bytes, reset=reset)
                case OtherText(mark) if run is not None:
                    run.mark = mark
                case Insert(data):
                    exchange.put_body(data)
                case Comment(text):
                    exchange.put_body(f": {text}\n\n".encode())
                case Warning_(message) if run is not None:
                    exchange.put_body(run.format.warning(message))
                case _:
                    return fault
        return None

    async def send_status(self, fault: Status) -> None:
        """Answer with this status."""
        content_type, body = error_body(fault, request_id=self.request_id)
        if fault.status == 401 and self.seen.path != "/auth":
            self.gateway.rejected += 1
        await self.send(fault.status, content_type, body, fault.headers)

    async def send(
        self,
        status: int,
        content_type: str,
        body: bytes,
        more: Mapping[str, str] | None = None,
    ) -> None:
        """Send an answer in one piece.

        Args:
            status: The HTTP status.
            content_type: The media type; `""` for none.
            body: The content.
            more: More header fields.
        """
        self.seen.status = status
        headers = {"content-type": content_type} if content_type else {}
        if status == 401:
            headers["www-authenticate"] = "Bearer"  # RFC 9110 section 11.6.1 asks for it
        headers["x-request-id"] = self.request_id
        headers |= {name.lower(): value for name, value in (more or {}).items()}
        headers["content-length"] = str(len(body))
        self.exchange.put_head(status, list(headers.items()))
        self.exchange.put_body(body)
        self.exchange.put_end()
        await self.exchange.flush()
