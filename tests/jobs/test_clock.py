import time

import pytest
from redis import Redis
from redis.exceptions import RedisError

from jobs.redis.clock import RedisClock
from jobs.redis.server import connect_redis


def test_clock_gives_redis_time_whatever_the_machines_clock_says(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    true = time.time()
    monkeypatch.setattr(time, "time", lambda: true + 7200)
    assert RedisClock(redis).now() == pytest.approx(true, abs=60)


def test_clock_asks_once_in_a_while_and_continues_without_redis(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = RedisClock(redis)
    first, calls = clock.now(), int(redis.info("commandstats")["cmdstat_time"]["calls"])
    assert clock.now() >= first
    assert int(redis.info("commandstats")["cmdstat_time"]["calls"]) == calls
    later = time.monotonic() + 3600
    monkeypatch.setattr(time, "monotonic", lambda: later)
    monkeypatch.setattr(redis, "connection_pool", connect_redis("unix:///nowhere").connection_pool)
    assert clock.now() == pytest.approx(first + 3600, abs=60)


def test_clock_that_never_reached_redis_says_so() -> None:
    with pytest.raises(RedisError):
        RedisClock(connect_redis("unix:///nowhere")).now()
