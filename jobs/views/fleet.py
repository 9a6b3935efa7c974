"""Reads the announcements of workers for the service."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar, cast

import structlog
from pydantic import PositiveInt, TypeAdapter, ValidationError

from jobs.contract.pipelines import PipelineInfo
from jobs.contract.sweeps import Sweep
from jobs.contract.workers import WorkerInfo
from jobs.redis import keys
from jobs.redis.reading import RedisReader
from jobs.redis.replies import answers

log = structlog.get_logger("jobs.views.fleet")

LEAST_SHORT_SIDE_PX = 512  # size of the largest published model, for pipelines that no worker has announced yet

T = TypeVar("T")
StepMs = dict[str, dict[PositiveInt, float]]  # stage -> row shape -> milliseconds a step
STEP_MS = TypeAdapter(StepMs)
PIPELINE, WORKER, SWEEP = TypeAdapter(PipelineInfo), TypeAdapter(WorkerInfo), TypeAdapter(Sweep)


@dataclass(frozen=True)
class Fleet:
    """A snapshot of known pipelines and live workers."""

    pipelines: dict[str, PipelineInfo] = field(default_factory=dict)
    workers: tuple[WorkerInfo, ...] = ()
    step_ms: dict[str, StepMs] = field(default_factory=dict)  # by pipeline

    @cached_property
    def row_ms(self) -> Mapping[str, Mapping[str, float]]:
        """Milliseconds per row step at the best shape, by pipeline and stage; unmeasured stages are absent."""
        return {
            pipeline: {
                stage: min(ms / rows for rows, ms in shapes.items()) for stage, shapes in stages.items() if shapes
            }
            for pipeline, stages in self.step_ms.items()
        }

    @property
    def short_side_px(self) -> int:
        """The short side of an uploaded picture that the largest pipeline needs: the size of its first stage."""
        sizes = [each.stages[0].image_size for each in self.pipelines.values() if each.stages]
        return max([LEAST_SHORT_SIDE_PX, *sizes])

    @cached_property
    def _workers_by_pipeline(self) -> dict[str, dict[str, WorkerInfo]]:
        """Live workers by name, by the pipeline that they serve."""
        found: dict[str, dict[str, WorkerInfo]] = {}
        for worker in self.workers:
            for pipeline in worker.pipelines:
                found.setdefault(pipeline, {})[worker.name] = worker
        return found

    def workers_of(self, pipeline: str) -> list[WorkerInfo]:
        """Live workers that serve a pipeline."""
        return list(self._workers_by_pipeline.get(pipeline, {}).values())

    def shares(self, pipeline: str) -> Mapping[str, float]:
        """The share of each pipeline's work that falls on the workers of this one; its own comes first, with 1.

        Pipelines with no common worker are omitted. Work is assumed to fall evenly on all workers of its pipeline.
        """
        return self._shares.get(pipeline, {pipeline: 1.0})

    @cached_property
    def _shares(self) -> dict[str, dict[str, float]]:
        found = {name: frozenset(workers) for name, workers in self._workers_by_pipeline.items()}
        return {
            name: {name: 1.0}
            | {other: len(own & theirs) / len(theirs) for other, theirs in found.items() if not own.isdisjoint(theirs)}
            for name, own in found.items()
        }

    def shares_network(self, stage: str, pipeline: str, other: str) -> bool:
        """Return whether two pipelines have the same network in a stage, so that their images share batches.

        Compares the weights. Two stacks of the same files count as one, although a worker batches them separately.
        """
        network = self._network(pipeline, stage)
        return pipeline == other or (network is not None and network == self._network(other, stage))

    def _network(self, pipeline: str, stage: str) -> tuple[str, str | None] | None:
        """The identity of a stage's network: the hashes of its weights and its classifier's."""
        info = self.pipelines.get(pipeline)
        stages = () if info is None else info.stages
        return next(((each.model_hash, each.classifier_hash) for each in stages if each.name == stage), None)


class FleetReader:
    """Reads the fleet and caches it, because it changes only with heartbeats and every request needs it."""

    def __init__(self, redis: RedisReader, max_age_seconds: float) -> None:
        self._redis, self._max_age_seconds = redis, max_age_seconds
        self._fleet, self._read_at = Fleet(), float("-inf")
        self._not_understood: set[str] = set()  # keys whose unreadable entries have been logged

    def read(self, *, fresh: bool = False) -> Fleet:
        """Return the fleet. fresh: read it again, because the cached one lacks something."""
        if fresh or time.monotonic() - self._read_at > self._max_age_seconds:
            self._fleet, self._read_at = self._load(), time.monotonic()
        return self._fleet

    def _load(self) -> Fleet:
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.hgetall(keys.PIPELINES)
            pipe.smembers(keys.WORKERS)
            pipe.hgetall(keys.STEP_COSTS)
            pipelines, names, costs = (answer or {} for answer in answers(pipe))
        infos = self._understood(keys.PIPELINES, pipelines, PIPELINE).values()
        return Fleet(
            pipelines={each.id: each for each in sorted(infos, key=lambda info: info.id)},
            workers=self._workers(sorted(name.decode(errors="replace") for name in names)),
            step_ms=self._understood(keys.STEP_COSTS, costs, STEP_MS),
        )

    def _workers(self, names: list[str]) -> tuple[WorkerInfo, ...]:
        texts = cast(list[bytes | None], self._redis.mget([keys.worker(name) for name in names])) if names else []
        announced = {name.encode(): text for name, text in zip(names, texts, strict=True) if text is not None}
        return tuple(self._understood(keys.WORKERS, announced, WORKER).values())

    def _understood(self, where: str, announced: Mapping[bytes, bytes], kind: TypeAdapter[T]) -> dict[str, T]:
        """Parse announcements, by name. One that is corrupt or of another version is skipped, and logged once."""
        understood = {}
        for each, text in announced.items():
            name = each.decode(errors="replace")
            try:
                understood[name] = kind.validate_json(text)
            except ValidationError as error:
                if f"{where} {name}" not in self._not_understood:
                    self._not_understood.add(f"{where} {name}")
                    log.warning("not_understood", key=where, name=name, wrong_fields=error.error_count())
        return understood

    def sweep(self, pipeline: str) -> Sweep | None:
        """The sweep of a pipeline; None if its workers have announced none."""
        text = cast(bytes | None, self._redis.hget(keys.SWEEPS, pipeline))
        texts = {} if text is None else {pipeline.encode(): text}
        return self._understood(keys.SWEEPS, texts, SWEEP).get(pipeline)

    def metrics(self) -> dict[str, str]:
        """The latest metrics of each live worker, by its name."""
        names = [each.name for each in self.read(fresh=True).workers]
        texts = (
            cast(list[bytes | None], self._redis.mget([keys.worker_metrics(name) for name in names])) if names else []
        )
        return {
            name: text.decode(errors="replace") for name, text in zip(names, texts, strict=True) if text is not None
        }
