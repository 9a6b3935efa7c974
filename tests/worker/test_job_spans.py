"""A worker's spans of its jobs, recorded in memory; the worker, its engine and its inbox are real."""

import io
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from PIL import Image
from redis import Redis

from jobs.contract.caller import ANONYMOUS
from jobs.contract.job import Job
from jobs.contract.request import JobRequest
from jobs.queue.drafting import Submission, Submitted
from jobs.settings import Settings
from jobs.storage.files import FileStore
from tests.conftest import RedisServer
from tests.jobs.samples import DEMO, DEMO_UNCOND, upload
from tests.waiting import eventually
from tests.worker.conftest import Bench
from tests.worker.names import owned
from tests.worker.programs import Shift
from tracing.recording import record
from worker.inbox import Inbox
from worker.job_spans import JobSpans
from worker.loaded_pipelines import LoadedPipelines
from worker.loop import Worker

pytestmark = pytest.mark.slow

TRACE, PARENT = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331
SAMPLED, UNSAMPLED = (f"00-{TRACE:032x}-{PARENT:016x}-{flags}" for flags in ("01", "00"))


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


Post = Callable[..., str]


@pytest.fixture
def post(bench: Bench) -> Post:
    def post_(traceparent: str = "", **fields: object) -> str:
        request = JobRequest.model_validate({"class_label": "torus", "steps": 4, "seed": 5} | fields)
        (queued,) = bench.queue.submitter.submit_all([Submission(request, ANONYMOUS, traceparent=traceparent)])
        assert isinstance(queued, Submitted)
        return queued.job.id

    return post_


@pytest.fixture
def serve(
    loaded: LoadedPipelines,
    bench: Bench,
    redis: Redis,
    redis_server: RedisServer,
    settings: Settings,
    exporter: InMemorySpanExporter,
) -> Iterator[Callable[[], None]]:
    """Serves what is queued until all of it has ended, and then ends the worker."""
    clients: list[Redis] = []

    def serve_() -> None:
        clients.append(redis_server.client())
        spans = JobSpans(record("worker", SimpleSpanProcessor(exporter)))
        changed = settings.model_copy(update={"heartbeat_seconds": 0.1})
        inbox = Inbox(clients[-1], changed, owned("spans-0"), [DEMO, DEMO_UNCOND], spans=spans)
        inbox.open()
        shift = Shift(Worker(loaded, inbox, bench.images, FileStore(redis, settings, bench.images.objects), changed))
        eventually(lambda: all(each.status.is_final for each in bench.queue.page(limit=100).data), "all jobs end")
        shift.end()

    yield serve_
    for each in clients:
        each.close()


def picture(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(buffer, "PNG")
    return buffer.getvalue()


def named(exporter: InMemorySpanExporter, name: str, job_id: str = "") -> list[ReadableSpan]:
    return [
        each
        for each in exporter.get_finished_spans()
        if each.name == name and (not job_id or (each.attributes or {})["adm.job.id"] == job_id)
    ]


def value(span: ReadableSpan, name: str) -> float:
    found = (span.attributes or {})[name]
    assert isinstance(found, int | float)
    return found


def usage_of_steps(exporter: InMemorySpanExporter, job_id: str) -> tuple[float, float]:
    """Row steps and device seconds of a job, read from the links of the step spans."""
    rows = seconds = 0.0
    for step in named(exporter, "step"):
        for link in step.links:
            assert link.attributes is not None
            if link.attributes["adm.job.id"] == job_id:
                share = link.attributes["adm.rows"]
                assert isinstance(share, int)
                rows += share
                seconds += value(step, "adm.device_seconds") * share / value(step, "adm.rows")
    return rows, seconds


def agrees(exporter: InMemorySpanExporter, job: Job) -> None:
    rows, seconds = usage_of_steps(exporter, job.id)
    assert rows == job.usage.steps
    assert seconds == pytest.approx(job.usage.device_seconds, abs=6e-5)  # it is rounded to 4 digits
    (attempt,) = named(exporter, "attempt", job.id)
    assert value(attempt, "adm.usage.steps") == job.usage.steps
    assert value(attempt, "adm.usage.device_seconds") == job.usage.device_seconds


def test_usage_of_jobs_that_share_steps_agrees_with_the_spans_of_the_steps(
    bench: Bench, post: Post, serve: Callable[[], None], exporter: InMemorySpanExporter
) -> None:
    jobs = [post(n=2, upsample={"steps": 2}), post(steps=6, upsample=False), post(sampler="heun", upsample=False)]
    serve()
    for each in jobs:
        agrees(exporter, bench.queue.get(each))
    assert any(len({link.context.span_id for link in step.links}) > 1 for step in named(exporter, "step"))
    assert {(each.attributes or {})["adm.stage"] for each in named(exporter, "step")} == {"base", "upsample"}


def test_usage_of_a_job_that_asks_the_classifier_alone_agrees_too(
    bench: Bench, redis: Redis, settings: Settings, serve: Callable[[], None], exporter: InMemorySpanExporter
) -> None:
    files = FileStore(redis, settings, bench.images.objects)
    request = JobRequest.model_validate({"kind": "score", "images": [upload(files, picture("red")).id]})
    (queued,) = bench.queue.submitter.submit_all([Submission(request, ANONYMOUS)])
    assert isinstance(queued, Submitted), queued
    serve()
    agrees(exporter, bench.queue.get(queued.job.id))


def test_spans_of_a_job_continue_the_trace_of_the_request_that_queued_it(
    post: Post, serve: Callable[[], None], exporter: InMemorySpanExporter
) -> None:
    job_id = post(SAMPLED, n=2)
    serve()
    (queued,), (attempt,) = named(exporter, "queued", job_id), named(exporter, "attempt", job_id)
    assert [each.parent and each.parent.span_id for each in (queued, attempt)] == [PARENT, PARENT]
    for name in ("encode", "store"):
        parts = named(exporter, name)
        assert {each.parent and each.parent.span_id for each in parts} == {attempt.context.span_id}
        assert sorted(value(each, "adm.image.index") for each in parts) == [0, 1]
    in_trace = {each.name for each in exporter.get_finished_spans() if each.context.trace_id == TRACE}
    assert in_trace == {"queued", "attempt", "encode", "store"}
    assert (attempt.attributes or {})["adm.outcome"] == "completed"


def test_spans_of_a_job_are_in_the_order_of_its_life(
    bench: Bench, post: Post, serve: Callable[[], None], exporter: InMemorySpanExporter
) -> None:
    post(SAMPLED)
    serve()
    (queued,), (attempt,) = named(exporter, "queued"), named(exporter, "attempt")
    (encode,), (store,) = named(exporter, "encode"), named(exporter, "store")
    times = [queued.start_time, queued.end_time, attempt.start_time, encode.start_time, encode.end_time]
    times += [store.start_time, store.end_time, attempt.end_time]
    assert all(a is not None and b is not None and a <= b for a, b in pairwise(times)), times
    assert encode.start_time is not None
    steps = named(exporter, "step")
    assert all(step.end_time is not None and step.end_time <= encode.start_time for step in steps)


def test_job_without_a_trace_begins_one_with_the_time_it_was_queued(
    post: Post, serve: Callable[[], None], exporter: InMemorySpanExporter
) -> None:
    job_id = post()
    serve()
    (queued,), (attempt,) = named(exporter, "queued", job_id), named(exporter, "attempt", job_id)
    assert queued.parent is None
    assert attempt.parent is not None
    assert attempt.parent.span_id == queued.context.span_id


def test_unsampled_trace_records_no_span_and_does_not_affect_a_sampled_job_in_the_same_batch(
    bench: Bench, post: Post, serve: Callable[[], None], exporter: InMemorySpanExporter
) -> None:
    unsampled, sampled = post(UNSAMPLED), post(SAMPLED)
    serve()
    assert usage_of_steps(exporter, unsampled) == (0, 0)
    assert {each.context.trace_id for each in named(exporter, "attempt")} == {TRACE}
    assert len(named(exporter, "attempt")) == 1
    agrees(exporter, bench.queue.get(sampled))


def test_attempt_that_fails_says_so_without_the_reason(
    bench: Bench, post: Post, serve: Callable[[], None], exporter: InMemorySpanExporter
) -> None:
    job_id = post(model="demo-uncond", class_label=None, guidance_scale=0)  # announced, and not in the engine
    serve()
    assert bench.status(job_id) == "failed"
    (attempt,) = named(exporter, "attempt", job_id)
    assert attempt.status.status_code is StatusCode.ERROR
    assert attempt.status.description is None
    assert not attempt.events


def test_spans_contain_nothing_that_a_caller_wrote(
    post: Post, serve: Callable[[], None], exporter: InMemorySpanExporter
) -> None:
    post(SAMPLED, user="secret-user", metadata={"secret-key": "secret-value"})
    serve()
    spans = exporter.get_finished_spans()
    assert len(spans) > 5
    assert "secret" not in "".join(each.to_json() for each in spans)


def test_each_attempt_of_a_requeued_job_is_a_span_of_the_same_trace(
    bench: Bench,
    post: Post,
    serve: Callable[[], None],
    exporter: InMemorySpanExporter,
    redis: Redis,
    settings: Settings,
) -> None:
    spans = JobSpans(record("worker", SimpleSpanProcessor(exporter)))
    inbox = Inbox(redis, settings, owned("spans-1"), [DEMO, DEMO_UNCOND], spans=spans)
    inbox.open()
    job_id = post(SAMPLED)
    (claim,) = bench.claim(inbox)
    inbox.results.requeue(claim)
    inbox.close()
    serve()
    outcomes: defaultdict[int, list[object]] = defaultdict(list)
    for each in named(exporter, "attempt", job_id):
        attributes = each.attributes or {}
        outcomes[each.context.trace_id].append((attributes["adm.attempt"], attributes["adm.outcome"]))
    assert outcomes == {TRACE: [(1, "released"), (2, "completed")]}
    assert len(named(exporter, "queued", job_id)) == 1
