"""Removes from Redis the pipelines that had no worker for a long time, and the names of dead workers."""

from collections.abc import Iterable
from typing import cast

from redis.client import Pipeline as RedisPipeline
from redis.client import Redis
from redis.exceptions import WatchError

from jobs.queue import rq_registries
from jobs.queue.ledger import Ledger
from jobs.redis import keys, rq_keys
from jobs.views.fleet import FleetReader
from vocabulary.priorities import PRIORITIES


class Retirement:
    """Removes retired pipelines and dead workers. Calls may be repeated, and may run in many processes at once."""

    def __init__(self, redis: Redis, ledger: Ledger, fleet: FleetReader, after_seconds: float) -> None:
        self._redis, self._ledger, self._fleet, self._after_seconds = redis, ledger, fleet, after_seconds

    def retire_pipelines(self) -> list[str]:
        """Note which pipelines have no live worker; remove those that were noted long ago, and return their names.

        Their queued jobs stay, and expire or wait for a worker that announces the pipeline again.
        """
        now = self._ledger.now()
        served = {name.encode() for worker in self._fleet.read(fresh=True).workers for name in worker.pipelines}
        known = cast(list[bytes], self._redis.hkeys(keys.PIPELINES))
        with self._redis.pipeline() as pipe:
            if served:
                pipe.zrem(keys.UNHELD, *served)
            if unheld := {name: now for name in known if name not in served}:
                pipe.zadd(keys.UNHELD, unheld, nx=True)
            pipe.execute()
        return self._remove(now - self._after_seconds)

    def _remove(self, noted_before: float) -> list[str]:
        retired: list[str] = []

        def remove(pipe: RedisPipeline) -> None:
            due = cast(list[bytes], pipe.zrangebyscore(keys.UNHELD, "-inf", noted_before))
            retired[:] = [each.decode(errors="replace") for each in due]
            pipe.multi()
            if due:
                pipe.hdel(keys.PIPELINES, *due)
                pipe.hdel(keys.STEP_COSTS, *due)
                pipe.hdel(keys.SWEEPS, *due)
                pipe.zrem(keys.UNHELD, *due)
                pipe.sadd(keys.RETIRED, *due)
                pipe.delete(*map(keys.estimate_ratios, retired), *map(rq_keys.workers_key, queues(due)))

        # an announcement also removes the note, so one that arrives meanwhile makes this transaction run again
        self._redis.transaction(remove, keys.UNHELD)
        return retired

    def forget_dead_workers(self) -> int:
        """Remove the names of workers whose record has expired from our set and RQ's; return the number in our set."""
        names = sorted(cast(set[bytes], self._redis.smembers(keys.WORKERS)))
        records = [keys.worker(each.decode(errors="replace")) for each in names]
        dead: list[bytes] = []
        if names:
            with self._redis.pipeline() as pipe:
                pipe.watch(*records)  # type: ignore[no-untyped-call] # redis-py leaves it untyped
                present = cast(list[bytes | None], pipe.mget(records))
                dead = [name for name, record in zip(names, present, strict=True) if record is None]
                pipe.multi()
                if dead:
                    pipe.srem(keys.WORKERS, *dead)
                try:
                    pipe.execute()
                except WatchError:
                    dead = []  # a worker announced itself meanwhile, perhaps one of these; the next call checks again
        rq_registries.forget_dead_workers(self._redis, queues(cast(list[bytes], self._redis.hkeys(keys.PIPELINES))))
        return len(dead)


def queues(pipelines: Iterable[bytes]) -> list[str]:
    """Names of all queues of pipelines."""
    return [keys.queue(each.decode(errors="replace"), priority) for each in pipelines for priority in PRIORITIES]
