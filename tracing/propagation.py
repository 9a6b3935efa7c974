"""Propagates a trace from an HTTP request, through a job in Redis, to the worker, by W3C's `traceparent`."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
PROPAGATOR = TraceContextTextMapPropagator()


def remote_context(traceparent: str) -> Context:
    """The context that continues a trace; an empty one for an invalid traceparent."""
    return PROPAGATOR.extract({"traceparent": traceparent}, context=Context())


def current_traceparent() -> str:
    """The traceparent of the current context; "" without a trace."""
    if not trace.get_current_span().get_span_context().is_valid:
        return ""
    carrier: dict[str, str] = {}
    PROPAGATOR.inject(carrier)
    return carrier.get("traceparent", "")


def trace_id_of(traceparent: str) -> str:
    """The trace's id, for log lines; "" for an invalid traceparent."""
    found = TRACEPARENT.fullmatch(traceparent)
    return found[1] if found else ""


@contextmanager
def continuing(traceparent: str) -> Iterator[None]:
    """Run the block in an existing trace, without a new span."""
    token = context.attach(remote_context(traceparent))
    try:
        yield
    finally:
        context.detach(token)
