"""The proxy's accidents strike the commands that the programs really send."""

from collections.abc import Callable

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.client import Pipeline as RedisPipeline
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from jobs.queue.ledger import Ledger
from jobs.redis.record import Record
from jobs.redis.rq_keys import job_key
from tests.chaos.proxy import Accident, Proxy

pytestmark = pytest.mark.redis

KEY = job_key("j")


def by_ledger(redis: Redis) -> None:
    def decide(pipe: RedisPipeline, record: Record | None) -> None:
        pipe.hset(KEY, "a", "1")

    Ledger(redis, 60).change("j", decide)


def by_transaction(redis: Redis) -> None:
    with redis.pipeline() as pipe:
        pipe.hset(KEY, "a", "1")
        pipe.execute()


@pytest.mark.parametrize("change", [by_ledger, by_transaction])
@pytest.mark.parametrize(("accident", "written"), [("lose reply", {b"a": b"1"}), ("tear command", {})])
def test_accident_meets_each_kind_of_transaction(
    redis: Redis, proxy: Proxy, accident: Accident, written: dict[bytes, bytes], change: Callable[[Redis], None]
) -> None:
    with Redis.from_url(proxy.address, retry=Retry(NoBackoff(), 0)) as client:
        client.hgetall(KEY)
        proxy.plan(accident, 1)
        client.hgetall(KEY)  # a read is left alone
        with pytest.raises(RedisConnectionError):
            change(client)
        assert redis.hgetall(KEY) == written
        redis.delete(KEY)
        change(client)  # it happened once
    assert redis.hgetall(KEY) == {b"a": b"1"}
