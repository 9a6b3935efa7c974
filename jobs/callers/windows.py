"""What callers have used up in the last minute, counted in Redis by the library `limits`."""

import math
from typing import NamedTuple

from limits import RateLimitItemPerMinute
from limits.storage import RedisStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from redis.client import Redis

from jobs.callers.quotas import WINDOW_SECONDS

PREFIX = "adm:quota"  # of the library's keys, which expire within two minutes


class Left(NamedTuple):
    """What is left of a quota, and in how many seconds an amount will be; None: never."""

    amount: int
    seconds: float | None


class Window:
    """A quota by the minute; amounts are whole numbers."""

    def __init__(self, redis: Redis, name: str, quota: int) -> None:
        self._item = RateLimitItemPerMinute(quota, 1, name)
        self._storage = RedisStorage("redis://", connection_pool=redis.connection_pool, key_prefix=PREFIX)
        self._limiter = SlidingWindowCounterRateLimiter(self._storage)

    def take(self, caller_id: str, amount: int) -> bool:
        """Charge a caller; False, and nothing is charged, where that is above its quota."""
        return self._limiter.hit(self._item, caller_id, cost=amount)

    def left(self, caller_id: str, amount: int) -> Left:
        """What a caller has left, and when an amount will be.

        The library counts in windows that follow each other; the one before counts by the part of it that lies within
        the last minute, so it fades.
        """
        quota = self._item.amount
        found = self._storage.get_sliding_window(self._item.key_for(caller_id), WINDOW_SECONDS)
        before, before_left, current, current_left = found
        present = max(0, math.floor(quota - current - before * before_left / WINDOW_SECONDS))
        if amount > quota:
            return Left(present, None)
        room = quota - current - amount
        if room >= 0:
            return Left(present, max(0.0, before_left - room * WINDOW_SECONDS / before) if before else 0.0)
        to_the_end = max(0.0, current_left - WINDOW_SECONDS)
        return Left(present, to_the_end + WINDOW_SECONDS * (1 - (quota - amount) / current))
