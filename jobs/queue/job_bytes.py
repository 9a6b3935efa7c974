"""Estimates the memory that one caller's jobs and webhooks use in Redis.

Redis does not report memory by caller, and a job's memory changes with its images and events. So no change updates a
count: random samples of a caller's jobs and webhooks are measured when its share of the memory is in question.
"""

import math
import time
from collections.abc import Callable, Sequence
from statistics import fmean, pstdev
from typing import cast

from redis.client import Redis

from jobs.redis import keys, rq_keys
from jobs.redis.replies import answers, matched

SAMPLED = 400  # of the jobs, and of the webhooks
ERRORS = 2.0  # standard errors that are added to the mean, so that repeated calls find no low estimate by chance
ALL_FIELDS = 0  # value of MEMORY USAGE's option SAMPLES with which it measures every nested value
ELSEWHERE_BYTES = 1000  # of a job in indexes, registries and RQ's results, or of a webhook in two sorted sets
USED_SECONDS = 1.0  # how long an estimate is used, as `jobs.redis.server` does with INFO


class JobBytes:
    """Estimates by caller; only one thread at a time may call it."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._found: dict[str, tuple[int, float]] = {}  # bytes, and the time when they were estimated, by caller

    def of(self, caller: str) -> int:
        """The estimated bytes of a caller's jobs, their events and their pending webhooks."""
        now = time.monotonic()
        if caller not in self._found or now >= self._found[caller][1] + USED_SECONDS:
            self._found = {each: found for each, found in self._found.items() if now < found[1] + USED_SECONDS}
            webhooks = self._estimate(keys.webhooks_of(caller), lambda member: [keys.webhook(member.decode())])
            self._found[caller] = self._estimate(keys.index(None, caller), keys_of_job) + webhooks, now
        return self._found[caller][0]

    def _estimate(self, members: str, keys_of: Callable[[bytes], Sequence[str]]) -> int:
        """The bytes of all members of a sorted set, whose data have these keys."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.zcard(members)
            pipe.zrandmember(members, SAMPLED)
            count, sampled = answers(pipe)
        own = [found for member in sampled or () if (found := keys_of(member))]
        if not own:
            return 0
        with self._redis.pipeline(transaction=False) as pipe:
            for each in (key for found in own for key in found):
                pipe.memory_usage(each, samples=ALL_FIELDS)
            measured = iter(cast(list[int | None], answers(pipe)))
        sizes = [sum(next(measured) or 0 for _ in found) for found in own]
        error = pstdev(sizes) / math.sqrt(len(sizes))
        return int(cast(int, count) * (fmean(sizes) + ERRORS * error + ELSEWHERE_BYTES))


def keys_of_job(member: bytes) -> list[str]:
    """The keys of the job with this member in an index; none if the member is corrupt."""
    found = matched(keys.INDEX_MEMBER, member)
    return [] if found is None else [rq_keys.job_key(found[2]), keys.events(found[2])]
