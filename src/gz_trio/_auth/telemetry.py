"""What is told of a refresh: one span, one measurement, and log records (`gz_trio.auth`)."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager

import outcome
import trio

from .. import _telemetry as telemetry
from .._protocol.keys import Key
from .._protocol.refresh import Flight
from .._telemetry import Attributes

_log = logging.getLogger("gz_trio.auth")


class RefreshTelemetry:
    """Tells of one flight. Made where the flight is asked for: its span is part of what asks.

    Args:
        flight: The flight, which has just been decided on.
    """

    def __init__(self, flight: Flight) -> None:
        self._flight = flight
        self._told = False
        self._early = flight.early
        self._attributes: dict[str, bool | int] = {"gz_trio.refresh.early": flight.early}
        if flight.rejected is not None:
            self._attributes["gz_trio.key.generation"] = flight.rejected.generation
        self._span = telemetry.start_span("gz_trio.refresh", self._attributes)
        self._log(logging.INFO, "gz_trio.refresh.started", {}, "a new key is needed")

    def current(self) -> AbstractContextManager[object]:
        """The block that calls the refresh callable: its spans are part of the refresh."""
        return self._span.current()

    def settled(self, *, closed: bool) -> None:
        """Look whether the flight has its result; the first one is told.

        Args:
            closed: The authenticator has ended, and the flight with it.
        """
        result = self._flight.result
        if result is None or self._told:
            return
        self._told = True
        seconds = trio.current_time() - self._flight.started
        event = "gz_trio.refresh.ended"
        error: BaseException | None = None
        end: dict[str, str | int]
        match result:
            case outcome.Value(value=Key() as key):
                end = {"gz_trio.outcome": "complete", "gz_trio.key.new_generation": key.generation}
                self._log(logging.INFO, event, end, "a new key is there after %.3f s", seconds)
            case outcome.Error(error=error) if not closed:
                end = {"gz_trio.outcome": "failed"}
                why = telemetry.safe_message(error) or telemetry.error_type(error)
                told = {**end, "error.type": telemetry.error_type(error)}
                self._log(logging.WARNING, event, told, "no new key could be had: %s", why)
            case _:
                error, end = None, {"gz_trio.outcome": "left"}
                self._log(logging.DEBUG, event, end, "the authenticator has ended")
        self._span.set(end)
        self._span.end(error)
        labels = {"gz_trio.outcome": end["gz_trio.outcome"], "gz_trio.refresh.early": self._early}
        if error is not None:
            labels["error.type"] = telemetry.error_type(error)
        telemetry.record(telemetry.REFRESH_DURATION, seconds, labels)

    def _log(
        self, level: int, event: str, attributes: Attributes, message: str, *values: object
    ) -> None:
        attributes = {**self._attributes, **attributes}
        telemetry.log(_log, level, event, attributes, message, *values)
