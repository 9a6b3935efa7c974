"""What workers announce in Redis; `jobs.views.fleet` reads it."""

import json
from collections.abc import Sequence

from redis.client import Pipeline

from jobs.contract.pipelines import PipelineInfo
from jobs.contract.workers import WorkerInfo
from jobs.queue import keys


def announce_pipelines(pipe: Pipeline, pipelines: Sequence[PipelineInfo]) -> None:
    """Make pipelines known; they stay so for a time without a worker, so that jobs may wait for the next one."""
    for each in pipelines:
        pipe.hset(keys.PIPELINES, each.id, each.model_dump_json())
        pipe.zrem(keys.UNHELD, each.id)
        pipe.srem(keys.RETIRED, each.id)


def announce_worker(pipe: Pipeline, info: WorkerInfo, metrics_text: str, lease_seconds: int) -> None:
    """Tell that a worker lives, and what its steps cost."""
    pipe.sadd(keys.WORKERS, info.name)
    pipe.set(keys.worker(info.name), info.model_dump_json(), ex=lease_seconds)
    pipe.set(keys.worker_metrics(info.name), metrics_text, ex=lease_seconds)
    for pipeline, step_ms in info.step_ms.items():
        pipe.hset(keys.STEP_COSTS, pipeline, json.dumps(step_ms))


def withdraw_worker(pipe: Pipeline, name: str) -> None:
    """Tell that a worker has stopped."""
    pipe.srem(keys.WORKERS, name)
    pipe.delete(keys.worker(name), keys.worker_metrics(name))
