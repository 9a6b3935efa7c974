"""Deliveries of webhooks: queued in Redis by the transaction that ends a job, sent by one service, kept if they fail.

A delivery is a hash, and a member of one of two sorted sets: pending deliveries and dead letters. A sender first delays
the delivery by a lease, so that another sender takes over if this one dies.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

from redis.client import Pipeline as RedisPipeline
from redis.client import Redis

from jobs.redis import keys
from jobs.redis.clock import RedisClock

RETRY_SECONDS = (5, 60, 300, 1800, 7200, 18000, 36000, 36000)  # after each failed attempt; 28 hours in all
LEASE_SECONDS = 60  # of one attempt; longer than an attempt may take
KEPT_SECONDS = 30 * 86400  # of a dead letter
MOST_DEAD = 10_000  # dead letters that are kept; the oldest are removed
MAX_ERROR = 200

LOOKED_AT = 1000  # limit on due deliveries that a claim reads; `choose` selects from them

# Sets new times for deliveries that are still due, and returns them, so that only one service sends a delivery.
MOVE_SCRIPT = """
local moved = {}
for at = 2, #ARGV, 2 do
    local due_at = redis.call('ZSCORE', KEYS[1], ARGV[at])
    if due_at and tonumber(due_at) <= tonumber(ARGV[1]) then
        redis.call('ZADD', KEYS[1], ARGV[at + 1], ARGV[at])
        moved[#moved + 1] = ARGV[at]
    end
end
return moved
"""


@dataclass(frozen=True)
class Delivery:
    """One event for one receiver."""

    id: str  # the same at every attempt, so that a receiver can recognise a repetition
    job_id: str
    status: str  # final status of the job
    url: str
    created_at: float  # Unix seconds
    attempts: int = 0
    error: str = ""  # of the last attempt
    caller: str = ""  # caller of the job

    @property
    def type(self) -> str:
        """The event's name."""
        return f"job.{self.status}"


class Choice(NamedTuple):
    """A selection of due deliveries: those to send, and the seconds for which others are delayed."""

    sent: Sequence[Delivery]
    later: Mapping[str, float]


def all_of(due: Sequence[Delivery]) -> Choice:
    return Choice(due, {})


def enqueue(pipe: RedisPipeline, member: str, job_id: str, status: str, url: str, now: float, caller: str = "") -> None:
    """Queue a delivery, in the transaction of the change itself; `member`: the job's index member."""
    id = f"msg_{member}"
    fields = {"job_id": job_id, "status": status, "url": url, "created_at": repr(now), "attempts": "0", "error": ""}
    fields["caller"] = caller
    pipe.hset(keys.webhook(id), mapping=fields)  # type: ignore[arg-type] # redis-py's mapping is invariant
    pipe.expire(keys.webhook(id), KEPT_SECONDS)
    pipe.zadd(keys.WEBHOOKS, {id: now})
    if caller:
        pipe.zadd(keys.webhooks_of(caller), {id: now})
        pipe.zremrangebyscore(keys.webhooks_of(caller), "-inf", now - KEPT_SECONDS)  # their hashes have expired
        pipe.expire(keys.webhooks_of(caller), KEPT_SECONDS)


class Webhooks:
    """The deliveries of one Redis; all calls block."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._move = redis.register_script(MOVE_SCRIPT)
        self.now = RedisClock(redis).now

    def claim(self, choose: Callable[[Sequence[Delivery]], Choice] = all_of) -> list[Delivery]:
        """Claim the due deliveries that `choose` selects, for LEASE_SECONDS."""
        now = self.now()
        ids = cast(list[bytes], self._redis.zrangebyscore(keys.WEBHOOKS, "-inf", now, 0, LOOKED_AT))
        if not ids:
            return []  # called often: a read is cheaper than a script, and works on a full server too
        due = list(self._read([each.decode(errors="replace") for each in ids]))
        known = {each.id.encode() for each in due}
        if gone := [each for each in ids if each not in known]:
            self._redis.zrem(keys.WEBHOOKS, *gone)
        sent, later = choose(due)
        times = {each.id: now + LEASE_SECONDS for each in sent} | {id: now + wait for id, wait in later.items()}
        moved = cast(
            list[bytes], self._move([keys.WEBHOOKS], [now, *(part for pair in times.items() for part in pair)])
        )
        return [each for each in sent if each.id.encode() in moved]

    def delivered(self, delivery: Delivery) -> None:
        with self._redis.pipeline() as pipe:
            pipe.zrem(keys.WEBHOOKS, delivery.id)
            pipe.zrem(keys.webhooks_of(delivery.caller), delivery.id)
            pipe.delete(keys.webhook(delivery.id))
            pipe.execute()

    def failed(self, delivery: Delivery, error: str, *, for_good: bool = False, after_seconds: float = 0) -> bool:
        """Note a failed attempt; return True if another one follows, in `after_seconds` or later."""
        attempts = delivery.attempts + 1
        again = not for_good and attempts <= len(RETRY_SECONDS)
        with self._redis.pipeline() as pipe:
            pipe.hset(keys.webhook(delivery.id), mapping={"attempts": attempts, "error": error[:MAX_ERROR]})
            if again:
                due_at = self.now() + max(RETRY_SECONDS[attempts - 1], after_seconds)
                pipe.zadd(keys.WEBHOOKS, {delivery.id: due_at})
            else:
                pipe.zrem(keys.WEBHOOKS, delivery.id)
                pipe.zrem(keys.webhooks_of(delivery.caller), delivery.id)
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
        """The numbers of pending and of dead deliveries."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.zcard(keys.WEBHOOKS)
            pipe.zcard(keys.DEAD_WEBHOOKS)
            pending, dead = pipe.execute()
        return pending, dead

    def revive(self, ids: Sequence[str]) -> list[str]:
        """Make dead letters pending again, with no attempts counted; return those that existed."""
        revived = []
        for each in ids:
            if self._redis.zrem(keys.DEAD_WEBHOOKS, each) and self._redis.exists(keys.webhook(each)):
                caller = cast(bytes | None, self._redis.hget(keys.webhook(each), "caller"))
                with self._redis.pipeline() as pipe:
                    pipe.hset(keys.webhook(each), "attempts", "0")
                    pipe.zadd(keys.WEBHOOKS, {each: self.now()})
                    if caller:
                        pipe.zadd(keys.webhooks_of(caller.decode(errors="replace")), {each: self.now()})
                    pipe.execute()
                revived.append(each)
        return revived

    def recount(self) -> None:
        """Remove deliveries that are no longer pending from the callers' sets.

        During an upgrade, services of an earlier version end deliveries without removing them from these sets.
        """
        for key in self._redis.scan_iter(keys.webhooks_of("*")):
            with self._redis.pipeline() as pipe:
                pipe.zinterstore(key, {key: 1, keys.WEBHOOKS: 0})
                pipe.expire(key, KEPT_SECONDS)
                pipe.execute()

    def _listed(self, key: str) -> list[Delivery]:
        ids = cast(list[bytes], self._redis.zrange(key, 0, -1))
        return list(self._read([each.decode(errors="replace") for each in ids]))

    def _read(self, ids: Sequence[str]) -> Iterator[Delivery]:
        """Read deliveries; one that has expired or cannot be read is skipped."""
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
                    caller=texts.get("caller", ""),  # "" if an older service wrote it
                )
            except (KeyError, ValueError):
                continue
