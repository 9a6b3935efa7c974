"""Makes the views of jobs for clients from records."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from jobs.callers.turns import Place
from jobs.contract.job import ImageView, Job, JobProgress, JobStatus, QueueInfo
from jobs.contract.request import ResolvedRequest
from jobs.contract.work import evaluations_of
from jobs.redis import keys, rq_keys
from jobs.redis.payload import BadPayloadError
from jobs.redis.reading import ReadPipeline, RedisReader
from jobs.redis.record import Record
from jobs.redis.replies import answers
from jobs.views.estimate import Backlog, Backlogs, Estimator
from jobs.views.fleet import Fleet, FleetReader
from vocabulary.priorities import PRIORITIES

COUNTER = re.compile(r"[a-z]+:\d{1,4}:[a-z]+")
COUNT = re.compile(rb"-?\d{1,18}")
RATIO = re.compile(rb"\d{1,18}\.\d{4}")  # as `jobs.queue.transitions` writes them


class Views:
    """Makes views from records, with progress, place in the queue and estimates."""

    def __init__(self, redis: RedisReader, fleet: FleetReader, root_path: str) -> None:
        self._redis, self._fleet, self._root_path = redis, fleet, root_path

    def of(self, records: Sequence[Record]) -> list[Job]:
        """Views of jobs, with one round trip for all of them."""
        queued = [each for each in records if each.status is JobStatus.QUEUED]
        running = [each for each in records if each.status in (JobStatus.IN_PROGRESS, JobStatus.CANCELLING)]
        pipelines = sorted({each.pipeline for each in queued + running})
        fleet = self._fleet.read()
        places: dict[str, Place | None] = {}
        progress: dict[str, bytes | None] = {}
        backlogs = Backlogs(fleet, {})
        if queued or running:
            with self._redis.pipeline(transaction=False) as pipe:
                ask_backlogs(pipe, fleet, pipelines)
                for each in queued:
                    pipe.lpos(rq_keys.queue_key(each.queue), each.id)
                    pipe.zrank(keys.own_line(each.queue, each.caller), each.id)
                for each in running:
                    pipe.get(keys.progress(each.id))
                replies = iter(answers(pipe))
            backlogs = take_backlogs(replies, fleet, pipelines)
            places = {each.id: place_of(each, next(replies), next(replies)) for each in queued}
            progress = {each.id: next(replies) for each in running}
        views = []
        for each in records:
            request = readable_request(each)
            queue, how_far = None, progress_of(each, request, progress.get(each.id))
            if request is not None and each.status is JobStatus.IN_PROGRESS:
                how_far = self._with_eta(how_far, backlogs.of(each.pipeline), request)
            if each.id in places and request is not None:
                backlog = backlogs.of(each.pipeline)
                place = places[each.id]
                estimated = self.estimated_seconds(backlog, request, 0 if place is None else place.all)
                queue = self.queue_info(backlog, request, place, estimated)
            views.append(self.view(each, request, queue, how_far))
        return views

    def backlogs(self, pipelines: Sequence[str]) -> Backlogs:
        """The queued and running work of pipelines."""
        fleet = self._fleet.read()
        with self._redis.pipeline(transaction=False) as pipe:
            ask_backlogs(pipe, fleet, pipelines)
            return take_backlogs(iter(answers(pipe)), fleet, pipelines)

    def estimated_seconds(self, backlog: Backlog, request: ResolvedRequest, place: int) -> float | None:
        """The estimate for a job at a place in its queue, not corrected by the bias."""
        length = backlog.lengths[request.priority]
        ahead = min(1.0, place / length) if length else 1.0
        return Estimator(self._fleet.read()).eta_seconds(backlog, request, ahead=ahead)

    def queue_info(
        self, backlog: Backlog, request: ResolvedRequest, place: Place | None, estimated: float | None
    ) -> QueueInfo:
        """The queue fields of a job at a place in its queue; place None: it is being claimed."""
        fleet = self._fleet.read()
        workers = len(fleet.workers_of(request.model))
        return QueueInfo(
            position=Estimator(fleet).jobs_ahead(backlog, request.priority, None if place is None else place.all),
            yours=0 if place is None else place.own,
            # without a worker there is no estimate
            **unbiased(backlog, estimated if workers else None),
            workers=workers,
        )

    def _with_eta(self, progress: JobProgress, backlog: Backlog, request: ResolvedRequest) -> JobProgress:
        seconds = Estimator(self._fleet.read()).eta_seconds(backlog, request, done=progress.fraction)
        return progress.model_copy(update=unbiased(backlog, seconds))

    def view(
        self, record: Record, request: ResolvedRequest | None, queue: QueueInfo | None, progress: JobProgress
    ) -> Job:
        """Make the view of one job."""
        return Job(
            id=record.id,
            status=record.status,
            created_at=record.created_at,
            started_at=record.started_at,
            ended_at=record.ended_at,
            expires_at=record.expires_at,
            request=request,
            progress=progress,
            queue=queue,
            images=[] if request is None else self._images(record, request),
            error=record.error,
            usage=record.usage,
            results=record.results,
            attempt=record.attempt,
            numerics=record.numerics,
        )

    def _images(self, record: Record, request: ResolvedRequest) -> list[ImageView]:
        """The published images of a job, without those whose index the job cannot have."""
        shown = (each for each in record.images if each.index in request.indices)
        return [
            ImageView(url=image_url(self._root_path, record.id, each.index), **record.image_facts(each, request))
            for each in shown
        ]


def image_url(root_path: str, job_id: str, index: int) -> str:
    """The address of an image; root_path: the path under which a proxy publishes the service."""
    return f"{root_path}/v1/jobs/{job_id}/images/{index}"


def unbiased(backlog: Backlog, seconds: float | None) -> dict[str, float | None]:
    """The fields of an estimate, corrected by the bias of recent ones, with their mean error."""
    if seconds is None:
        return {"eta_seconds": None, "eta_error_seconds": None}
    eta_seconds = seconds * backlog.bias
    return {"eta_seconds": round(eta_seconds, 3), "eta_error_seconds": round(eta_seconds * backlog.error, 3)}


def place_of(record: Record, place: int | None, own: int | None) -> Place | None:
    """A queued job's place; None if it is being claimed. For a job without a caller, all count as its own."""
    if place is None:
        return None
    return Place(place, (own or 0) if record.caller else place)


def progress_of(record: Record, request: ResolvedRequest | None, text: bytes | None) -> JobProgress:
    """The last progress that a job's worker reported; full if the job is completed; zero if there is no report."""
    if text is not None:
        with contextlib.suppress(ValidationError):  # an invalid report counts as none
            return JobProgress.model_validate_json(text)
    if request is None:
        return JobProgress(stage="base", step=0, steps=0, fraction=0)
    stages = list(evaluations_of(request).items())
    if record.status is JobStatus.COMPLETED:
        stage, steps = stages[-1]
        return JobProgress(stage=stage, step=steps, steps=steps, fraction=1)
    stage, steps = stages[0]
    return JobProgress(stage=stage, step=0, steps=steps, fraction=0)


def readable_request(record: Record) -> ResolvedRequest | None:
    """The request of a job; None if this version cannot read it, so that workers fail the job or leave it."""
    try:
        return record.request()
    except BadPayloadError:
        return None


def ask_backlogs(pipe: ReadPipeline, fleet: Fleet, pipelines: Sequence[str]) -> None:
    """Queue the commands whose answers `take_backlogs` parses."""
    for pipeline in with_those_beside(fleet, pipelines):
        for priority in PRIORITIES:
            pipe.llen(rq_keys.queue_key(keys.queue(pipeline, priority)))
            pipe.zcard(rq_keys.delayed_key(keys.queue(pipeline, priority)))
        pipe.hgetall(keys.queued_work(pipeline))
    for pipeline in pipelines:
        pipe.lrange(keys.estimate_ratios(pipeline), 0, -1)


def take_backlogs(replies: Iterator[Any], fleet: Fleet, pipelines: Sequence[str]) -> Backlogs:
    """Parse backlogs from the answers; invalid counters and ratios are skipped."""
    counted = {}
    for name in with_those_beside(fleet, pipelines):
        lengths: dict[str, int] = {priority: (next(replies) or 0) + (next(replies) or 0) for priority in PRIORITIES}
        counters = {field.decode(errors="replace"): number for field, number in (next(replies) or {}).items()}
        work = {field: int(n) for field, n in counters.items() if COUNTER.fullmatch(field) and COUNT.fullmatch(n)}
        counted[name] = Backlog(name, lengths, work)
    for name in pipelines:
        ratios = tuple(float(each) for each in next(replies) or () if RATIO.fullmatch(each))
        counted[name] = replace(counted[name], ratios=ratios)
    return Backlogs(fleet, counted)


def with_those_beside(fleet: Fleet, pipelines: Sequence[str]) -> list[str]:
    """The pipelines, and all other pipelines of their workers."""
    return list(dict.fromkeys([*pipelines, *(other for name in pipelines for other in fleet.shares(name))]))
