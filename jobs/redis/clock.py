"""Redis' time. Everything in Redis expires by it, because the clocks of two machines may be hours apart."""

import time

from redis.client import Redis
from redis.exceptions import RedisError

# Seconds for which the last answer is used; few, because the monotonic clock stops while the machine is suspended.
ASKED_SECONDS = 10.0

NEVER = float("-inf")


class RedisClock:
    """The time of a Redis server, which is read every ASKED_SECONDS."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._ahead_seconds = 0.0  # how far Redis' time is ahead of the monotonic clock
        self._ask_at = NEVER  # time of the next read, on the monotonic clock

    def now(self) -> float:
        """Unix seconds. Raises: redis.RedisError as long as Redis has never answered."""
        if time.monotonic() >= self._ask_at:
            try:
                self._ask()
            except RedisError:
                if self._ask_at == NEVER:
                    raise  # otherwise the last answer is used
        return time.monotonic() + self._ahead_seconds

    def _ask(self) -> None:
        seconds, microseconds = self._redis.time()
        here = time.monotonic()
        self._ahead_seconds, self._ask_at = seconds + microseconds / 1_000_000 - here, here + ASKED_SECONDS
