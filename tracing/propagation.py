"""A trace on its way from an HTTP request, through a job in Redis, to the worker: W3C's `traceparent`."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import context
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
PROPAGATOR = TraceContextTextMapPropagator()


def remote_context(traceparent: str) -> Context:
    """The context that continues a trace; an empty one for what is no traceparent."""
    return PROPAGATOR.extract({"traceparent": traceparent}, context=Context())


def current_traceparent() -> str:
    """The traceparent of what is done now; "" where there is no trace."""
    carrier: dict[str, str] = {}
    PROPAGATOR.inject(carrier)
    return carrier.get("traceparent", "")


def trace_id_of(traceparent: str) -> str:
    """The trace's id, for log lines; "" for what is no traceparent."""
    found = TRACEPARENT.fullmatch(traceparent)
    return found[1] if found else ""


@contextmanager
def continuing(traceparent: str) -> Iterator[None]:
    """Do what is in the block in a trace that others began, without a span of its own."""
    token = context.attach(remote_context(traceparent))
    try:
        yield
    finally:
        context.detach(token)
