"""A job-at-a-time RQ worker with the same models, for comparison with a plain queue."""

import time
from collections.abc import Sequence
from pathlib import Path

from redis import Redis
from rq import Queue, SimpleWorker

from engine.engine import Engine, run_to_end
from engine.pipeline import Pipeline
from jobs.contract.request import ResolvedRequest
from jobs.storage.images import ImageStore
from worker.job_plans import plan_job
from worker.png import encode

QUEUE = "bench:one-at-a-time"


class Holder:
    """The objects that stay in memory between jobs."""

    engine: Engine
    pipelines: dict[str, Pipeline]
    store: ImageStore


def run_job(job_id: str, request: str) -> int:
    """Make and store the images of one job, with no other job in the batch."""
    plan = plan_job(job_id, ResolvedRequest.model_validate_json(request), Holder.pipelines, {})
    finished = run_to_end(Holder.engine, plan.images)
    for each in finished:
        Holder.store.put(job_id, "bench", each.request.index, encode(each.pixels))
    return len(finished)


def seconds_one_at_a_time(
    redis: Redis, engine: Engine, pipelines: dict[str, Pipeline], folder: Path, requests: Sequence[ResolvedRequest]
) -> float:
    """Seconds from the first job's queueing to the last one's end."""
    Holder.engine, Holder.pipelines, Holder.store = engine, pipelines, ImageStore(str(folder))
    queue = Queue(QUEUE, connection=redis)
    started = time.perf_counter()
    for index, request in enumerate(requests):
        queue.enqueue(run_job, f"job-{index}", request.model_dump_json())
    SimpleWorker([queue], connection=redis).work(burst=True, logging_level="WARNING")
    return time.perf_counter() - started
