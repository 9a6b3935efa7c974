"""The spans of jobs in a worker: time in the queue, attempt, steps, encoding and storing of images.

`queued` and `attempt` continue the trace of the request that queued the job; `encode` and `store` are below `attempt`.
A step serves many jobs, so `step` is a trace of its own that links to the attempts, each link with the job's rows.
The rows of all links to a job add up to its `usage.steps`. The device time of each step, divided among its rows, adds
up to its `usage.device_seconds`. This does not hold for a job that resumed from a checkpoint.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, StatusCode

from engine.steps import StepReport
from jobs.contract.job import JobStatus, Usage
from tracing.propagation import remote_context
from tracing.recording import OFF, Tracing
from worker.claim import Claim

RELEASED = "released"  # outcome of an attempt that did not end the job here


class JobSpans:
    """The spans of one worker's claims. A claim begins and ends on the inbox's thread; any thread may call `part`."""

    def __init__(self, tracing: Tracing = OFF) -> None:
        self._tracing = tracing
        self._attempts: dict[str, Span] = {}  # by token

    @property
    def are_on(self) -> bool:
        """Return whether anything is recorded."""
        return self._tracing.is_on

    def claimed(self, claim: Claim) -> None:
        """Begin the attempt of a claim; for a first attempt, also record how long the job was queued."""
        if not self.are_on:
            return
        now, parent = time.time_ns(), remote_context(claim.traceparent)
        about = {
            "adm.job.id": claim.job_id,
            "adm.pipeline": claim.request.model,
            "adm.priority": claim.request.priority,
        }
        if claim.attempt == 1:
            began = min(now, int(claim.created_at * 1e9))  # created_at is by Redis' clock
            queued = self._tracing.tracer.start_span("queued", context=parent, start_time=began, attributes=about)
            queued.end(now)
            if not claim.traceparent:  # the trace begins here
                parent = trace.set_span_in_context(queued, Context())
        about |= {"adm.kind": claim.request.kind}
        span = self._tracing.tracer.start_span("attempt", context=parent, start_time=now, attributes=about)
        span.set_attributes({"adm.attempt": claim.attempt, "adm.images": claim.request.num_images})
        self._attempts[claim.token] = span

    def used(self, claim: Claim, usage: Usage) -> None:
        """Record the usage of a claim's images."""
        if (span := self._attempts.get(claim.token)) is not None:
            span.set_attributes({"adm.usage.steps": usage.steps, "adm.usage.device_seconds": usage.device_seconds})

    def ended(self, claim: Claim, outcome: str) -> None:
        """End the attempt of a claim. outcome: the job's final status, or RELEASED."""
        if (span := self._attempts.pop(claim.token, None)) is not None:
            span.set_attribute("adm.outcome", outcome)
            if outcome == JobStatus.FAILED.value:
                span.set_status(StatusCode.ERROR)
            span.end()

    def stepped(self, stage: str, report: StepReport, claims: Mapping[str, Claim]) -> None:
        """Record a step; `claims`: the claims of the jobs whose images moved, by job id."""
        moved = Counter(each.request.job_id for each in report.moved)
        self._record_step(
            stage, report.num_rows, report.row_shape, report.seconds, [(claims[each], n) for each, n in moved.items()]
        )

    def classified(self, stage: str, claim: Claim, rows: int, seconds: float) -> None:
        """Record the call of the classifier that answers a job of kind score."""
        self._record_step(stage, rows, rows, seconds, [(claim, rows)])

    def _record_step(self, stage: str, rows: int, shape: int, seconds: float, served: list[tuple[Claim, int]]) -> None:
        links = [
            Link(span.get_span_context(), {"adm.job.id": claim.job_id, "adm.rows": num_rows})
            for claim, num_rows in served
            if (span := self._attempts.get(claim.token)) is not None and span.is_recording()
        ]
        if not links:
            return  # none of its jobs is sampled
        now = time.time_ns()
        span = self._tracing.unsampled.start_span(
            "step",
            context=Context(),
            links=links,
            start_time=now - int(seconds * 1e9),
            attributes={"adm.stage": stage, "adm.rows": rows, "adm.row_shape": shape, "adm.device_seconds": seconds},
        )
        span.end(now)

    @contextmanager
    def part(self, claim: Claim, name: str, index: int) -> Iterator[None]:
        """Record the block as a part of a claim's attempt, for one image."""
        attempt = self._attempts.get(claim.token)
        if attempt is None:
            yield
            return
        context = trace.set_span_in_context(attempt, Context())
        span = self._tracing.tracer.start_span(name, context=context, attributes={"adm.image.index": index})
        try:
            yield
        except Exception:
            span.set_status(StatusCode.ERROR)  # without the text, which may contain what a caller wrote
            raise
        finally:
            span.end()
