"""The streams that a fake gateway is serving."""

from __future__ import annotations

from collections import defaultdict

from ._call import Call
from ._faults import EarlyDone, EmptyStream, ErrorFrame, Fault
from ._formats import Format
from ._keys import Account
from ._run import Place, Run
from ._server import HangUp, Interruptible


class Streams:
    """Serves streamed answers, and ends those whose key dies."""

    def __init__(self) -> None:
        self._running: defaultdict[Account | None, set[Interruptible]] = defaultdict(set)

    def __len__(self) -> int:
        """How many streams are being served."""
        return sum(map(len, self._running.values()))

    def end(self, account: Account) -> None:
        """End the streams that run under a key of this account."""
        for running in self._running[account]:
            running.end()

    async def serve(self, call: Call, run: Run, place: Place) -> None:
        """Stream an answer from this place on.

        Raises:
            HangUp: The connection is to be left in the middle of it.
        """
        exchange, seen = call.exchange, call.seen
        seen.status = 200
        exchange.put_head(
            200,
            [
                ("content-type", "text/event-stream; charset=utf-8"),
                ("cache-control", "no-cache"),
                ("transfer-encoding", "chunked"),
                ("x-request-id", call.request_id),
            ],
        )
        running = exchange.running = Interruptible()
        others = self._running[call.account]
        others.add(running)
        ended = False
        try:
            with running.scope:
                ended = await _send_steps(call, running, run, place)
            if not ended:
                await _end_dead(call, run.format)
        finally:
            others.discard(running)


async def _send_steps(call: Call, running: Interruptible, run: Run, place: Place) -> bool:
    """Send the answer; `False` if the key died before its end."""
    exchange, seen = call.exchange, call.seen
    for step in range(place.step, len(run.tokens) + 1):
        at_end = step == len(run.tokens)
        is_made = step < run.made or step == place.step
        if call.gateway.token_interval and not at_end and not is_made:
            await exchange.wait(call.gateway.token_interval)
        if run.stopped and step >= run.made:
            await _end(call)
            return True
        if running.ended:
            return False
        if (fault := await call.strike(step, run)) is not None:
            await _end_early(call, run.format, fault)
            return True
        if running.ended:
            return False
        if not at_end and step >= run.made:
            seen.tokens += 1
        events = run.events(step)
        exchange.put_body(b"".join(events[place.skip :] if step == place.step else events))
        if not at_end:
            await exchange.flush()
    await _end(call)
    seen.complete = True
    return True


async def _end_early(call: Call, maker: Format, fault: Fault) -> None:
    exchange = call.exchange
    if isinstance(fault, ErrorFrame):
        exchange.put_body(maker.error(fault))
        call.gateway.auth_errors += fault.type == "auth_error"
    if isinstance(fault, EarlyDone) and fault.finish_reason is not None:
        exchange.put_body(maker.finish(fault.finish_reason))
    if isinstance(fault, EmptyStream) or (isinstance(fault, ErrorFrame | EarlyDone) and fault.done):
        exchange.put_body(maker.goodbye)
    await _end(call)


async def _end_dead(call: Call, maker: Format) -> None:
    """End a stream whose key died."""
    rejection = call.gateway.websocket_rejection
    if call.seen.method == "WEBSOCKET" and rejection is not None:
        raise HangUp(close=rejection)
    if call.gateway.on_rotation == "cut":
        raise HangUp(reset=False)
    # What a Drip had begun is sent whole: the frame of the error begins a line of its own.
    call.exchange.drip = None
    call.exchange.put_body(maker.error(ErrorFrame("auth_error")) + maker.goodbye)
    call.gateway.auth_errors += 1
    await _end(call)


async def _end(call: Call) -> None:
    call.exchange.running = None  # too late for the key to die
    call.exchange.put_end()
    await call.exchange.flush()
