"""Records spans and sends them to a collector if the standard OTEL_ variables are set; otherwise spans cost nothing.

The SDK is an extra (`pip install adm-serve[otel]`) and is imported only if spans are recorded.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from threading import Thread
from typing import TYPE_CHECKING

from opentelemetry.trace import NoOpTracer, Tracer

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL = "http/protobuf"
SDK = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
FLUSH_SECONDS = 2.0  # limit for sending the last spans when the program ends; spans not sent by then are lost


class TracingError(Exception):
    """Spans are configured but cannot be sent."""


@dataclass(frozen=True)
class Tracing:
    """The tracers of one program."""

    is_on: bool
    tracer: Tracer  # samples by OTEL_TRACES_SAMPLER
    unsampled: Tracer  # records every span; for spans that are made only if a sampled trace links to them
    close: Callable[[], None]  # sends the recorded spans, within FLUSH_SECONDS


OFF = Tracing(False, NoOpTracer(), NoOpTracer(), lambda: None)


def is_asked_for(environment: Mapping[str, str]) -> bool:
    """Return whether the environment names a collector, and does not turn the SDK or its exporter off."""
    return (
        any(environment.get(each) for each in ENDPOINTS)
        and environment.get("OTEL_SDK_DISABLED", "").lower() != "true"
        and environment.get("OTEL_TRACES_EXPORTER", "otlp") in ("otlp", "")
    )


def check(environment: Mapping[str, str] = os.environ) -> None:
    """Check the configuration. Raises: TracingError if spans are configured but cannot be sent."""
    if not is_asked_for(environment):
        return
    endpoint = next(each for each in ENDPOINTS if environment.get(each))
    if not all(map(is_installed, SDK)):
        raise TracingError(f"{endpoint}: sending spans needs the extra otel: pip install 'adm-serve[otel]'")
    for variable in PROTOCOLS:
        if (protocol := environment.get(variable) or PROTOCOL) != PROTOCOL:
            raise TracingError(f"{variable}: {protocol} is not supported; use {PROTOCOL}, which most collectors take")


def is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False


def start(program: str, **attributes: str) -> Tracing:
    """Record the spans of a program if the environment names a collector. Raises: TracingError."""
    check()
    if not is_asked_for(os.environ):
        return OFF
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # on a thread of its own, from a bounded queue, so that a slow or unavailable collector only loses spans
    return record(program, BatchSpanProcessor(OTLPSpanExporter()), **attributes)


def record(program: str, processor: "SpanProcessor", **attributes: str) -> Tracing:
    """Record spans and pass them to a processor."""
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON

    ours = Resource({"service.name": f"adm-{program}", **attributes})
    given = OTELResourceDetector().detect()  # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES
    resource = Resource.create(dict(ours.merge(given).attributes))
    sampling = TracerProvider(resource=resource, shutdown_on_exit=False)
    unsampled = TracerProvider(resource=resource, sampler=ALWAYS_ON, shutdown_on_exit=False)
    for provider in (sampling, unsampled):
        provider.add_span_processor(processor)

    def close() -> None:
        flushing = Thread(target=processor.shutdown, daemon=True)
        flushing.start()
        flushing.join(FLUSH_SECONDS)

    return Tracing(True, sampling.get_tracer("adm"), unsampled.get_tracer("adm"), close)
