"""Redis' time, by which everything in Redis expires: the clocks of two machines may be hours apart."""

import time

from redis.client import Redis
from redis.exceptions import RedisError

ASKED_SECONDS = (
    10.0  # for which the last answer serves; the monotonic clock it is carried on with stops in a suspension
)


NEVER = float("-inf")


class RedisClock:
    """Tells the time of a Redis server; asks it now and then."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._ahead_seconds, self._ask_at = 0.0, NEVER  # of the monotonic clock, and on it

    def now(self) -> float:
        """Unix seconds. Raises: redis.RedisError as long as Redis has never answered."""
        if time.monotonic() >= self._ask_at:
            try:
                self._ask()
            except RedisError:
                if self._ask_at == NEVER:
                    raise  # else the last answer serves on
        return time.monotonic() + self._ahead_seconds

    def _ask(self) -> None:
        seconds, microseconds = self._redis.time()
        here = time.monotonic()
        self._ahead_seconds, self._ask_at = seconds + microseconds / 1_000_000 - here, here + ASKED_SECONDS
