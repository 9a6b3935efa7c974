"""The span of a request: its route, method and status, and nothing that its caller wrote."""

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, StatusCode, use_span

from tracing.propagation import continuing, remote_context
from tracing.recording import Tracing

SERVER_ERROR = 500


class RequestSpans:
    """Begins a span for each request that is worth one, in the trace that the caller's `traceparent` names."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    @contextmanager
    def span(self, method: str, traceparent: str) -> Iterator[Span]:
        """A request's span; where none are recorded, a job that it queues still continues the caller's trace."""
        if self._tracing.is_on:
            context = remote_context(traceparent)
            span = self._tracing.tracer.start_span(method, context=context, kind=SpanKind.SERVER)
            # no exception is recorded: its text may be what a caller wrote
            with use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
                yield span
        elif traceparent:
            with continuing(traceparent):
                yield INVALID_SPAN
        else:
            yield INVALID_SPAN


def describe(span: Span, method: str, route: str, status: int) -> None:
    """Say how a request was answered, by the names of OpenTelemetry's conventions for HTTP."""
    if not span.is_recording():
        return
    span.update_name(f"{method} {route}")
    span.set_attributes({"http.request.method": method, "http.route": route, "http.response.status_code": status})
    if status >= SERVER_ERROR:
        span.set_status(StatusCode.ERROR)
