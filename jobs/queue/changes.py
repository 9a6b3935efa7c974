"""Requested changes of workers' pipelines in Redis: the service writes them, and workers report their progress."""

from collections.abc import Collection, Iterable
from typing import cast
from uuid import uuid4

from pydantic import ValidationError
from redis.client import Pipeline as RedisPipeline
from redis.client import Redis

from jobs.contract.changes import AskedChange, ChangeRequest, ChangeStatus, PipelineChange, WorkerChange
from jobs.redis import keys
from jobs.redis.replies import answers

KEPT_SECONDS = 24 * 3600  # lifetime of a change, from its last report
ASKED = "asked"  # field of the request; a worker's part is in the field WORKER + its name
WORKER = "worker:"


class Changes:
    """The changes of one Redis; all calls block."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def ask(self, asked: ChangeRequest, workers: Iterable[str], now: float) -> PipelineChange:
        """Request a change from workers."""
        change = AskedChange(id=uuid4().hex, created_at=now, action=asked.action, model=asked.model)
        parts = tuple(WorkerChange(worker=each) for each in workers)
        with self._redis.pipeline() as pipe:
            pipe.hset(keys.change(change.id), ASKED, change.model_dump_json())
            for part in parts:
                self._note(pipe, change.id, part)
                pipe.rpush(keys.worker_changes(part.worker), change.id)
                pipe.expire(keys.worker_changes(part.worker), KEPT_SECONDS)
            pipe.execute()
        return PipelineChange(**dict(change), workers=parts)

    def read(self, change_id: str, live: Collection[str]) -> PipelineChange | None:
        """A change with its progress, None for an unknown one; live: names of the live workers."""
        with self._redis.pipeline() as pipe:
            pipe.hgetall(keys.change(change_id))
            fields: dict[bytes, bytes] = answers(pipe)[0] or {}
        parts_json = [text for name, text in sorted(fields.items()) if name.startswith(WORKER.encode())]
        try:
            asked = AskedChange.model_validate_json(fields[ASKED.encode()])
            parts = tuple(_or_lost(WorkerChange.model_validate_json(text), live) for text in parts_json)
        except (KeyError, ValidationError):
            return None
        is_final = all(each.status.is_final for each in parts)
        return PipelineChange(**dict(asked), workers=parts, is_final=is_final)

    def waiting(self, worker: str) -> list[PipelineChange]:
        """The changes that a worker has not answered, the oldest first."""
        names = cast(list[bytes], self._redis.lrange(keys.worker_changes(worker), 0, -1))
        found = [self.read(each.decode(errors="replace"), {worker}) for each in names]
        return [each for each in found if each is not None]

    def report(self, change_id: str, part: WorkerChange) -> None:
        """Write the progress of one worker."""
        with self._redis.pipeline() as pipe:
            self._note(pipe, change_id, part)
            if part.status.is_final:
                pipe.lrem(keys.worker_changes(part.worker), 0, change_id)
            pipe.execute()

    def _note(self, pipe: RedisPipeline, change_id: str, part: WorkerChange) -> None:
        pipe.hset(keys.change(change_id), f"{WORKER}{part.worker}", part.model_dump_json())
        pipe.expire(keys.change(change_id), KEPT_SECONDS)


def _or_lost(part: WorkerChange, live: Collection[str]) -> WorkerChange:
    if part.status.is_final or part.worker in live:
        return part
    return WorkerChange(worker=part.worker, status=ChangeStatus.LOST, detail="the worker ended before the change")
