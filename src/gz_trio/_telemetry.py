"""OpenTelemetry where its API is installed, and log records with the same names everywhere.

The only module that imports `opentelemetry`. Without it, every call here returns at once; with it
and no SDK, the API's own no-ops do. The names are those of the generative-AI conventions as they
were last published (`SCHEMA_URL`); what they have no name for begins with `gz_trio.`.
"""

# pyright: reportPossiblyUnboundVariable=false
# What is imported below is used where `api` is not None, and nowhere else.

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version

from ._protocol.errors import GatewayError

try:
    from opentelemetry import metrics, propagate, trace
    from opentelemetry.context import Context
except ImportError:
    _installed = False
else:
    _installed = True

SCHEMA_URL = "https://opentelemetry.io/schemas/1.41.0"

Attributes = Mapping[str, str | bool | int | float | Sequence[str]]

# Else Python itself would print warnings of a program that has configured no logging.
logging.getLogger("gz_trio").addHandler(logging.NullHandler())


@dataclass(frozen=True, slots=True)
class Histogram:
    """A metric that is recorded here, with the bounds of its buckets."""

    name: str
    unit: str
    description: str
    bounds: Sequence[float]


# The bounds that the conventions advise.
_SECONDS = tuple(0.01 * 2**power for power in range(14))
_TOKENS = tuple(4**power for power in range(14))

OPERATION_DURATION = Histogram(
    "gen_ai.client.operation.duration", "s", "GenAI operation duration.", _SECONDS
)
TIME_TO_FIRST_CHUNK = Histogram(
    "gen_ai.client.operation.time_to_first_chunk",
    "s",
    "Time from the start of the reply to its first text, reasoning or tool call.",
    _SECONDS,
)
TOKEN_USAGE = Histogram(
    "gen_ai.client.token.usage", "{token}", "Number of input and output tokens used.", _TOKENS
)
PAUSE_DURATION = Histogram(
    "gz_trio.pause.duration",
    "s",
    "Time from what paused a reply until new text came, or the reply ended.",
    _SECONDS,
)
REFRESH_DURATION = Histogram(
    "gz_trio.refresh.duration", "s", "Time from the need of a new key until it was there.", _SECONDS
)
HISTOGRAMS = (
    OPERATION_DURATION,
    TIME_TO_FIRST_CHUNK,
    TOKEN_USAGE,
    PAUSE_DURATION,
    REFRESH_DURATION,
)


class Api:
    """A tracer and the instruments; those of the program's own providers unless some are given."""

    def __init__(
        self,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
    ) -> None:
        release = version("gz-trio")
        self.tracer = trace.get_tracer("gz_trio", release, tracer_provider, SCHEMA_URL)
        meter = metrics.get_meter("gz_trio", release, meter_provider, SCHEMA_URL)
        self.instruments = {
            histogram.name: meter.create_histogram(
                histogram.name,
                unit=histogram.unit,
                description=histogram.description,
                explicit_bucket_boundaries_advisory=histogram.bounds,
            )
            for histogram in HISTOGRAMS
        }


def _connect() -> Api | None:
    if not _installed:
        return None
    try:
        return Api()
    except TypeError:  # An API before 1.30, which something else has brought: it takes no bounds.
        return None


api = _connect()


class Span:
    """A span, or nothing where nobody listens: one is `NO_SPAN`. Made by `start_span`.

    Never current by itself: `current` makes it so, for a block of one task.
    """

    __slots__ = ("_span",)

    def __init__(self, span: trace.Span | None) -> None:
        self._span = span

    def set(self, attributes: Attributes) -> None:
        """Add attributes."""
        if self._span is not None:
            self._span.set_attributes(attributes)

    def event(self, name: str, attributes: Attributes) -> None:
        """Something happened now."""
        if self._span is not None:
            self._span.add_event(name, attributes)

    def current(self) -> AbstractContextManager[object]:
        """A block in which other spans are part of this one. In one task, without a `yield`."""
        if self._span is None:
            return nullcontext()
        return trace.use_span(self._span, record_exception=False, set_status_on_exception=False)

    def headers(self) -> dict[str, str]:
        """What a request carries so that the server's spans become part of this one.

        In the format that the program has configured (`OTEL_PROPAGATORS`). No baggage: that is
        the program's own, and the gateway is somebody else's.
        """
        carrier: dict[str, str] = {}
        if self._span is not None:
            propagate.inject(carrier, trace.set_span_in_context(self._span, Context()))
        return carrier

    def end(self, error: BaseException | None = None) -> None:
        """The end; to be called once."""
        if self._span is None:
            return
        if error is not None:
            self._span.set_attribute("error.type", error_type(error))
            self._span.set_status(trace.StatusCode.ERROR, safe_message(error))
        self._span.end()


NO_SPAN = Span(None)
"""One for all where nobody listens: OpenTelemetry is not installed, or not set up."""


def start_span(name: str, attributes: Attributes, *, client: bool = False) -> Span:
    """A span that is part of the current one.

    Args:
        name: The span's.
        attributes: What is known at its start.
        client: It is about a call to a server.
    """
    if api is None:
        return NO_SPAN
    kind = trace.SpanKind.CLIENT if client else trace.SpanKind.INTERNAL
    span = api.tracer.start_span(name, kind=kind, attributes=attributes)
    # One that is not recorded may still carry what a caller's tracing began.
    told = span.is_recording() or span.get_span_context().is_valid
    return Span(span) if told else NO_SPAN


def record(histogram: Histogram, value: float, attributes: Attributes) -> None:
    """Record one measurement."""
    if api is not None:
        api.instruments[histogram.name].record(value, attributes)


def log(
    logger: logging.Logger,
    level: int,
    event: str,
    attributes: Attributes,
    message: str,
    *values: object,
) -> None:
    """A log record whose extra fields are the attributes, and `gz_trio.event`."""
    logger.log(level, message, *values, extra={"gz_trio.event": event, **attributes})


def error_type(error: BaseException) -> str:
    """The value of `error.type`: the name of the class, of which there are few."""
    return type(error).__name__


def safe_message(error: BaseException) -> str | None:
    """The message of an error of ours; whatever else was raised may hold a secret."""
    return str(error) if isinstance(error, GatewayError) else None
