"""What tests of telemetry share: OpenTelemetry's own SDK, which collects in memory."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, Metric
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gz_trio import _telemetry


class Collected:
    """The spans and measurements of one test; nothing goes to the process's own providers."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = provider.get_tracer("test")
        meters = MeterProvider([self._reader], shutdown_on_exit=False)
        self.api = _telemetry.Api(provider, meters)

    @property
    def spans(self) -> list[ReadableSpan]:
        """Those that have ended, in the order of their ends."""
        return list(self._exporter.get_finished_spans())

    def span(self, name: str) -> ReadableSpan:
        (span,) = (span for span in self.spans if span.name == name)
        return span

    @property
    def metrics(self) -> dict[str, Metric]:
        data = self._reader.get_metrics_data()
        return {
            metric.name: metric
            for resource in (data.resource_metrics if data is not None else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def points(self, name: str) -> list[HistogramDataPoint]:
        if name not in self.metrics:
            return []
        points = self.metrics[name].data.data_points
        return [point for point in points if isinstance(point, HistogramDataPoint)]

    def sums(self, name: str, label: str) -> dict[object, float]:
        """What a histogram holds, added up for each value of one attribute."""
        return {dict(point.attributes or {}).get(label): point.sum for point in self.points(name)}


def collect(monkeypatch: pytest.MonkeyPatch) -> Collected:
    """What the rest of the test tells is collected."""
    collected = Collected()
    monkeypatch.setattr(_telemetry, "api", collected.api)
    return collected


def attributes_of(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


def events_of(span: ReadableSpan) -> list[tuple[str, dict[str, object]]]:
    return [(event.name, dict(event.attributes or {})) for event in span.events]


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.span_id)


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """The fields of a log record that are not of every log record."""
    return {
        name: value
        for name, value in vars(record).items()
        if name.startswith(("gz_trio.", "gen_ai.", "server.", "error.", "http."))
    }


def told(
    records: Iterable[logging.LogRecord], logger: str
) -> list[tuple[str, str, dict[str, object]]]:
    """Level, event and fields of a logger's records."""
    found: list[tuple[str, str, dict[str, object]]] = []
    for record in records:
        if record.name == logger:
            fields = fields_of(record)
            found.append((record.levelname, str(fields.pop("gz_trio.event")), fields))
    return found
