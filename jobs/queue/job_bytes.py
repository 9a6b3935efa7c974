"""Estimates the memory that one caller's jobs use in Redis.

Redis does not say whose memory it is, and a job's memory changes with its images and events. So nothing is counted
along with each change: a random sample of a caller's jobs is measured when its share of the memory is in question.
"""

import time
from typing import cast

from redis.client import Redis

from jobs.queue import keys, rq_registries
from jobs.queue.corrupt import answers, matched

SAMPLED_JOBS = 50  # its error is a tenth of the mean if the deviation of the jobs' sizes is 70 % of the mean
ALL_FIELDS = 0  # MEMORY USAGE's number of nested values, whose mean size it takes for that of all
USED_SECONDS = 1.0  # how long an estimate is used, as `jobs.queue.server` does with INFO


class JobBytes:
    """Estimates by caller; only one thread at a time may call it."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._found: dict[str, tuple[int, float]] = {}  # bytes, and the time when they were estimated, by caller

    def of(self, caller: str) -> int:
        """The estimated bytes of a caller's jobs and their events."""
        now = time.monotonic()
        if caller not in self._found or now >= self._found[caller][1] + USED_SECONDS:
            self._found = {each: found for each, found in self._found.items() if now < found[1] + USED_SECONDS}
            self._found[caller] = self._estimate(caller), now
        return self._found[caller][0]

    def _estimate(self, caller: str) -> int:
        index = keys.index(None, caller)
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.zcard(index)
            pipe.zrandmember(index, SAMPLED_JOBS)
            num_jobs, members = answers(pipe)
        found = [match[2] for each in members or () if (match := matched(keys.INDEX_MEMBER, each))]
        if not found:
            return 0
        with self._redis.pipeline(transaction=False) as pipe:
            for each in found:
                pipe.memory_usage(rq_registries.job_key(each), samples=ALL_FIELDS)
                pipe.memory_usage(keys.events(each), samples=ALL_FIELDS)
            sizes = cast(list[int | None], answers(pipe))
        return cast(int, num_jobs) * sum(each or 0 for each in sizes) // len(found)
