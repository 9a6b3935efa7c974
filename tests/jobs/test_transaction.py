"""A change of a job takes place as a whole, or, when somebody else was faster, not at all."""

from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis
from redis.client import Pipeline as RedisPipeline
from redis.exceptions import RedisError, ResponseError

from jobs.queue.availability import is_unavailable
from jobs.queue.ledger import Ledger
from jobs.queue.rq_registries import encodable
from jobs.queue.transaction import commit
from jobs.redis.record import Record
from jobs.redis.rq_keys import job_key
from tests.conftest import RedisServer
from tests.refusals import REFUSALS, Refusal

pytestmark = pytest.mark.redis

KEY = "hash"
READ = {b"a": b"1", b"\xff b": b"\0\r\n"}
OTHERS: dict[str, Callable[[Any], object]] = {
    "changed": lambda redis: redis.hset(KEY, "a", 3),
    "added": lambda redis: redis.hset(KEY, "d", ""),
    "removed": lambda redis: redis.hdel(KEY, "a"),
    "gone": lambda redis: redis.delete(KEY),
    "no hash": lambda redis: redis.delete(KEY) and redis.rpush(KEY, "1"),
}


def write(redis: Redis) -> None:
    redis.hset(KEY, mapping={b"a": b"1", b"\xff b": b"\0\r\n"})


def gathered(redis: Redis) -> RedisPipeline:
    pipe = redis.pipeline()
    pipe.hset(KEY, mapping=encodable({"a": 2, "c": 0.5}))
    pipe.rpush("list", "x y")
    return pipe


def test_hash_that_is_as_it_was_read_is_written(redis: Redis) -> None:
    write(redis)
    assert commit(redis, KEY, READ, gathered(redis))
    assert redis.hgetall(KEY) == READ | {b"a": b"2", b"c": b"0.5"}
    assert redis.lrange("list", 0, -1) == [b"x y"]


def test_key_where_nothing_was_is_written(redis: Redis) -> None:
    assert commit(redis, KEY, {}, gathered(redis))
    assert redis.hgetall(KEY) == {b"a": b"2", b"c": b"0.5"}


@pytest.mark.parametrize("other", OTHERS)
def test_nothing_is_written_when_the_hash_is_another(redis: Redis, other: str) -> None:
    write(redis)
    OTHERS[other](redis)
    before = redis.dump(KEY)
    assert not commit(redis, KEY, READ, gathered(redis))
    assert redis.dump(KEY) == before
    assert not redis.exists("list")


@pytest.mark.parametrize("there", [None, "hash"])
def test_key_that_was_no_hash_is_not_written_if_it_now_is_one_or_is_gone(redis: Redis, there: str | None) -> None:
    if there is not None:
        write(redis)
    assert not commit(redis, KEY, None, gathered(redis))
    assert not redis.exists("list")


def test_key_that_still_is_no_hash_is_written(redis: Redis) -> None:
    redis.set(KEY, "no hash")
    pipe = redis.pipeline()
    pipe.delete(KEY)
    pipe.hset(KEY, "a", "1")
    assert commit(redis, KEY, None, pipe)
    assert redis.hgetall(KEY) == {b"a": b"1"}


def test_command_that_fails_stops_no_other_and_is_reported(redis: Redis) -> None:
    redis.set("list", "no list")
    pipe = redis.pipeline()
    pipe.rpush("list", "x")
    pipe.hset(KEY, "a", "1")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        commit(redis, KEY, {}, pipe)
    assert redis.hgetall(KEY) == {b"a": b"1"}


@pytest.mark.parametrize("refuse", REFUSALS)
def test_server_that_takes_no_writes_counts_as_unavailable_and_nothing_is_written(
    redis: Redis, redis_server: RedisServer, refuse: Refusal
) -> None:
    pipe = redis.pipeline()
    pipe.lrem("list", 0, "x")  # a command first that Redis accepts even when it is out of memory
    pipe.hset(KEY, "a", "1")
    redis.rpush("list", "x")
    end = refuse(redis, redis_server.folder)
    try:
        with pytest.raises(RedisError) as refused:
            commit(redis, KEY, {}, pipe)
        assert is_unavailable(refused.value)
        assert redis.lrange("list", 0, -1) == [b"x"]
    finally:
        end()
    assert commit(redis, KEY, {}, pipe)


def test_change_is_decided_again_when_another_was_faster(redis: Redis) -> None:
    seen = []

    def decide(pipe: RedisPipeline, record: Record | None) -> str:
        status = "" if record is None else record.class_name or ""
        seen.append(status)
        if len(seen) == 1:
            redis.hset(job_key("j"), mapping={"status": "queued", "origin": "adm:demo:normal", "adm_class_name": "b"})
        pipe.hset(job_key("j"), "adm_class_name", status + "c")
        return status

    assert Ledger(redis, 60).change("j", decide) == "b"
    assert seen == ["", "b"]
    assert redis.hget(job_key("j"), "adm_class_name") == b"bc"
