"""Answers to monitoring: readiness, health and metrics. Concurrent probes share one check.

So a probe waits for two checks at most, even if many probes arrive while Redis hangs, and it never waits behind other
calls.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel
from redis import Redis
from redis.exceptions import RedisError

from jobs.queue.job_queue import JobQueue
from jobs.redis.server import look
from service import metrics
from service.batches import Batches
from service.process_metrics import ProcessMetrics


class PipelineHealth(BaseModel):
    id: str
    workers: list[str]
    queued: int


class Health(BaseModel):
    """`degraded`: a pipeline has no worker, so its jobs wait."""

    status: Literal["ok", "degraded"]
    redis: Literal["ok"] = "ok"
    pipelines: list[PipelineHealth]
    default_model: str
    workers: int


class Probes:
    """The checks, each in a thread of its own. For one event loop."""

    def __init__(self, redis: Redis, queue: JobQueue, processes: ProcessMetrics, default_model: str) -> None:
        self._redis, self._queue, self._processes, self._default_model = redis, queue, processes, default_model
        self._lacks = Batches[bool, str | None](self._read_lacks)
        self._health = Batches[None, Health](lambda asked: [self._read_health()] * len(asked))
        self._text = Batches[None, bytes](lambda asked: [self._read_metrics()] * len(asked))

    async def what_is_lacking(self, workers: bool) -> str | None:
        """The reason why the service is not ready; None if it is. `workers`: require a worker for the default pipeline.

        Raises: RedisError, whose handler answers 503.
        """
        return await self._lacks.ask(workers)

    async def health(self) -> Health:
        """Pipelines and workers. Raises: RedisError."""
        return await self._health.ask(None)

    async def metrics_text(self) -> bytes:
        """All metrics for Prometheus; without Redis, only those of this process."""
        return await self._text.ask(None)

    def _read_lacks(self, asked: Sequence[bool]) -> list[str | None]:
        found = {workers: self._read_lack(workers) for workers in set(asked)}
        return [found[workers] for workers in asked]

    def _read_lack(self, workers: bool) -> str | None:
        if (fault := look(self._redis).fault) is not None:
            return fault
        if not self._queue.fleet.read(fresh=True).workers_of(self._default_model) and workers:
            return f"no worker serves the pipeline {self._default_model!r}"
        return None

    def _read_health(self) -> Health:
        fleet = self._queue.fleet.read(fresh=True)
        names = sorted({*fleet.pipelines, self._default_model})
        backlogs = self._queue.backlogs(names)
        pipelines = [
            PipelineHealth(
                id=name,
                workers=[each.name for each in fleet.workers_of(name)],
                queued=sum(backlogs.of(name).lengths.values()),
            )
            for name in names
        ]
        return Health(
            status="ok" if all(each.workers for each in pipelines) else "degraded",
            pipelines=pipelines,
            default_model=self._default_model,
            workers=len(fleet.workers),
        )

    def _read_metrics(self) -> bytes:
        try:
            return metrics.text(self._processes.texts(), self._queue)
        except RedisError:
            return metrics.own_text(*self._processes.own_text())  # these metrics matter most during an outage
