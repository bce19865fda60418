"""What OpenTelemetry is told of one reply whose key has expired: run it, it needs no gateway."""

import trio
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

import gz_trio
from gz_trio.testing import FakeGateway


def one_line(span: ReadableSpan) -> str:
    attributes = span.attributes or {}
    names = ("http.response.status_code", "error.type", "gz_trio.outcome")
    return " ".join([span.name, *(str(attributes[name]) for name in names if name in attributes)])


async def main() -> None:
    fake = FakeGateway(key="gw_new")
    async with (
        fake.http_client() as client,
        gz_trio.open_session(
            fake.base_url,
            model="fake-model",
            key="gw_expired",
            refresh=fake.refresh,
            http_client=client,
        ) as session,
    ):
        with trace.get_tracer("traced").start_as_current_span("my own span"):
            await session.ask("Tell me a story.")


if __name__ == "__main__":
    provider = TracerProvider()
    exporter = ConsoleSpanExporter(formatter=lambda span: one_line(span) + "\n")
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    trio.run(main)
