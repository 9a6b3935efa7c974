"""Deliveries of webhooks: queued in Redis by the transaction that ends a job, sent by one service, kept if they fail.

A delivery is a hash. One of two sorted sets names it: those that are due some time, and the dead letters. A sender
first moves the delivery's time by a lease, so another takes over from one that dies.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from redis.client import Pipeline, Redis

from jobs.queue import keys
from jobs.queue.clock import RedisClock

RETRY_SECONDS = (5, 60, 300, 1800, 7200, 18000, 36000, 36000)  # after each failed attempt; 28 hours in all
LEASE_SECONDS = 60  # of one attempt; above the time that it may take
KEPT_SECONDS = 30 * 86400  # of a dead letter
MOST_DEAD = 10_000  # dead letters that are kept; the oldest go
MAX_ERROR = 200

# Takes what is due and moves its time by a lease, so that no other service sends it meanwhile.
CLAIM_SCRIPT = """
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[3])
for _, id in ipairs(due) do redis.call('ZADD', KEYS[1], ARGV[2], id) end
return due
"""


@dataclass(frozen=True)
class Delivery:
    """One event for one receiver."""

    id: str  # the same at every attempt, so that a receiver can tell a repeated one
    job_id: str
    status: str  # that the job ended with
    url: str
    created_at: float  # Unix seconds
    attempts: int = 0
    error: str = ""  # of the last attempt

    @property
    def type(self) -> str:
        """The event's name."""
        return f"job.{self.status}"


def enqueue(pipe: Pipeline, member: str, job_id: str, status: str, url: str, now: float) -> None:
    """Queue a delivery, as part of the transaction that makes it true; `member` is the job's place in the index."""
    id = f"msg_{member}"
    fields = {"job_id": job_id, "status": status, "url": url, "created_at": repr(now), "attempts": "0", "error": ""}
    pipe.hset(keys.webhook(id), mapping=fields)  # type: ignore[arg-type] # redis-py's mapping is invariant
    pipe.expire(keys.webhook(id), KEPT_SECONDS)
    pipe.zadd(keys.WEBHOOKS, {id: now})


class Webhooks:
    """The deliveries of one Redis; all calls block."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._claim = redis.register_script(CLAIM_SCRIPT)
        self.now = RedisClock(redis).now

    def claim(self, most: int) -> list[Delivery]:
        """Deliveries that are due, for this caller alone during LEASE_SECONDS."""
        now = self.now()
        if not self._redis.zcount(keys.WEBHOOKS, "-inf", now):
            return []  # asked often: a look is cheaper than a script, and a server that is full takes it too
        ids = cast(list[bytes], self._claim([keys.WEBHOOKS], [now, now + LEASE_SECONDS, most]))
        found = list(self._read([each.decode(errors="replace") for each in ids]))
        known = {each.id.encode() for each in found}
        if gone := [each for each in ids if each not in known]:
            self._redis.zrem(keys.WEBHOOKS, *gone)
        return found

    def delivered(self, delivery: Delivery) -> None:
        with self._redis.pipeline() as pipe:
            pipe.zrem(keys.WEBHOOKS, delivery.id)
            pipe.delete(keys.webhook(delivery.id))
            pipe.execute()

    def put_off(self, delivery: Delivery, seconds: float) -> None:
        """Let a delivery that was not tried be due again after so long."""
        self._redis.zadd(keys.WEBHOOKS, {delivery.id: self.now() + seconds}, xx=True)

    def failed(self, delivery: Delivery, error: str, *, for_good: bool = False, after_seconds: float = 0) -> bool:
        """Note a failed attempt; True if another follows, `after_seconds` from now at least."""
        attempts = delivery.attempts + 1
        again = not for_good and attempts <= len(RETRY_SECONDS)
        with self._redis.pipeline() as pipe:
            pipe.hset(keys.webhook(delivery.id), mapping={"attempts": attempts, "error": error[:MAX_ERROR]})
            if again:
                due_at = self.now() + max(RETRY_SECONDS[attempts - 1], after_seconds)
                pipe.zadd(keys.WEBHOOKS, {delivery.id: due_at})
            else:
                pipe.zrem(keys.WEBHOOKS, delivery.id)
                pipe.zadd(keys.DEAD_WEBHOOKS, {delivery.id: self.now()})
            pipe.expire(keys.webhook(delivery.id), KEPT_SECONDS)
            pipe.zremrangebyscore(keys.DEAD_WEBHOOKS, "-inf", self.now() - KEPT_SECONDS)
            pipe.zremrangebyrank(keys.DEAD_WEBHOOKS, 0, -MOST_DEAD - 1)
            pipe.execute()
        return again

    def pending(self) -> list[Delivery]:
        """Deliveries that will be tried, the next first."""
        return self._listed(keys.WEBHOOKS)

    def dead(self) -> list[Delivery]:
        """Deliveries that were given up, the oldest first."""
        return self._listed(keys.DEAD_WEBHOOKS)

    def counts(self) -> tuple[int, int]:
        """How many are pending, and how many dead."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.zcard(keys.WEBHOOKS)
            pipe.zcard(keys.DEAD_WEBHOOKS)
            pending, dead = pipe.execute()
        return pending, dead

    def revive(self, ids: Sequence[str]) -> list[str]:
        """Try dead letters again from now on, from their first attempt; returns those that were there."""
        revived = []
        for each in ids:
            if self._redis.zrem(keys.DEAD_WEBHOOKS, each) and self._redis.exists(keys.webhook(each)):
                with self._redis.pipeline() as pipe:
                    pipe.hset(keys.webhook(each), "attempts", "0")
                    pipe.zadd(keys.WEBHOOKS, {each: self.now()})
                    pipe.execute()
                revived.append(each)
        return revived

    def _listed(self, key: str) -> list[Delivery]:
        ids = cast(list[bytes], self._redis.zrange(key, 0, -1))
        return list(self._read([each.decode(errors="replace") for each in ids]))

    def _read(self, ids: Sequence[str]) -> Iterator[Delivery]:
        """What is known of deliveries; one that has expired or cannot be read is left out."""
        with self._redis.pipeline(transaction=False) as pipe:
            for each in ids:
                pipe.hgetall(keys.webhook(each))
            hashes = pipe.execute()
        for id, fields in zip(ids, hashes, strict=True):
            texts = {name.decode(): value.decode(errors="replace") for name, value in fields.items()}
            try:
                yield Delivery(
                    id=id,
                    job_id=texts["job_id"],
                    status=texts["status"],
                    url=texts["url"],
                    created_at=float(texts["created_at"]),
                    attempts=int(texts["attempts"]),
                    error=texts["error"],
                )
            except (KeyError, ValueError):
                continue
