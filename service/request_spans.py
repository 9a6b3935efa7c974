"""The spans of requests: route, method and status, without any text from the caller."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, StatusCode, use_span

from tracing.propagation import continuing, remote_context
from tracing.recording import Tracing

SERVER_ERROR = 500
NOT_RECORDED = nullcontext(INVALID_SPAN)  # one for all requests, so that open streams hold no generator each


class RequestSpans:
    """Begins a span for each traced request, in the trace of the caller's `traceparent`."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    def span(self, method: str, traceparent: str) -> AbstractContextManager[Span]:
        """A request's span. If spans are not recorded, its jobs still continue the caller's trace."""
        if self._tracing.is_on:
            context = remote_context(traceparent)
            span = self._tracing.tracer.start_span(method, context=context, kind=SpanKind.SERVER)
            # exceptions are not recorded, because their text may come from a caller
            return use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False)
        return continued(traceparent) if traceparent else NOT_RECORDED


@contextmanager
def continued(traceparent: str) -> Iterator[Span]:
    """Continue the caller's trace without a span of this service."""
    with continuing(traceparent):
        yield INVALID_SPAN


def describe(span: Span, method: str, route: str, status: int) -> None:
    """Set the attributes of an answered request, named by OpenTelemetry's conventions for HTTP."""
    if not span.is_recording():
        return
    span.update_name(f"{method} {route}")
    span.set_attributes({"http.request.method": method, "http.route": route, "http.response.status_code": status})
    if status >= SERVER_ERROR:
        span.set_status(StatusCode.ERROR)
