"""Writes the announcements of workers to Redis; `jobs.views.fleet` reads them."""

import json
from collections.abc import Sequence

from redis.client import Pipeline as RedisPipeline

from jobs.contract.pipelines import PipelineInfo
from jobs.contract.sweeps import Sweep
from jobs.contract.workers import WorkerInfo
from jobs.redis import keys


def announce_pipelines(pipe: RedisPipeline, pipelines: Sequence[PipelineInfo], sweeps: Sequence[Sweep] = ()) -> None:
    """Announce pipelines. They remain listed for a time after their last worker ended, so that jobs can wait for
    the next one.
    """
    kept = {each.pipeline: each.model_dump_json() for each in sweeps}
    for each in pipelines:
        if each.id in kept:
            pipe.hset(keys.SWEEPS, each.id, kept[each.id])
        else:
            pipe.hdel(keys.SWEEPS, each.id)
        pipe.hset(keys.PIPELINES, each.id, each.model_dump_json())
        pipe.zrem(keys.UNHELD, each.id)
        pipe.srem(keys.RETIRED, each.id)


def announce_worker(pipe: RedisPipeline, info: WorkerInfo, metrics_text: str, lease_seconds: int) -> None:
    """Announce that a worker is alive, and the costs of its steps."""
    pipe.sadd(keys.WORKERS, info.name)
    pipe.set(keys.worker(info.name), info.model_dump_json(), ex=lease_seconds)
    pipe.set(keys.worker_metrics(info.name), metrics_text, ex=lease_seconds)
    for pipeline, step_ms in info.step_ms.items():
        pipe.hset(keys.STEP_COSTS, pipeline, json.dumps(step_ms))


def withdraw_worker(pipe: RedisPipeline, name: str) -> None:
    """Remove the announcement of a worker that stops."""
    pipe.srem(keys.WORKERS, name)
    pipe.delete(keys.worker(name), keys.worker_metrics(name))
