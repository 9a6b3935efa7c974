"""The use of quotas in the last minute, counted in Redis by the library `limits`."""

import math
from typing import NamedTuple

from limits import RateLimitItemPerMinute
from limits.storage import RedisStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from redis.client import Redis

PREFIX = "adm:quota"  # of the library's keys, which expire within two minutes


class Left(NamedTuple):
    """The rest of a quota, and the seconds until an amount is available; None: never."""

    amount: int
    seconds: float | None


class Window:
    """A quota per minute; amounts are whole numbers."""

    def __init__(self, redis: Redis, name: str, quota: int) -> None:
        self._item = RateLimitItemPerMinute(quota, 1, name)
        self._seconds = self._item.get_expiry()
        self._storage = RedisStorage("redis://", connection_pool=redis.connection_pool, key_prefix=PREFIX)
        self._limiter = SlidingWindowCounterRateLimiter(self._storage)

    def take(self, caller_id: str, amount: int) -> bool:
        """Charge a caller; return False and charge nothing if that exceeds its quota."""
        return self._limiter.hit(self._item, caller_id, cost=amount)

    def left(self, caller_id: str, amount: int) -> Left:
        """The rest of a caller's quota, and the seconds until an amount is available.

        The library counts in consecutive fixed windows. The previous window's count is multiplied by the share of that
        window that lies within the last minute.
        """
        quota = self._item.amount
        found = self._storage.get_sliding_window(self._item.key_for(caller_id), self._seconds)
        before, before_left, current, current_left = found
        present = max(0, math.floor(quota - current - before * before_left / self._seconds))
        if amount > quota:
            return Left(present, None)
        room = quota - current - amount
        if room >= 0:
            return Left(present, max(0.0, before_left - room * self._seconds / before) if before else 0.0)
        to_the_end = max(0.0, current_left - self._seconds)
        return Left(present, to_the_end + self._seconds * (1 - (quota - amount) / current))
