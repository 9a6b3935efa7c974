"""Corrupt data in Redis, as another program, another version or a broken disk may leave them."""

from redis import Redis

from jobs.contract.job import JobStatus
from jobs.redis import keys, rq_keys
from jobs.redis.record import NAMES

UNCHECKED = ("adm_checkpoint", "adm_checkpoint_reached", "adm_reached")  # a job can do without them
FIELDS = [each for each in NAMES if each not in UNCHECKED]
NOT_UTF8 = b"\xff\xfe"
PLAIN = ("adm_class_name", "adm_numerics", "adm_body", "adm_request_id", "adm_traceparent", "worker_name")  # any text
DAMAGE = {name: NOT_UTF8 if name in PLAIN else b"garbage" for name in FIELDS}


def spoil(redis: Redis, job_id: str, name: str, value: bytes) -> None:
    redis.hset(rq_keys.job_key(job_id), name, value)


def replace(redis: Redis, key: str) -> None:
    redis.delete(key)
    redis.rpush(key, "no hash")


def in_queue(redis: Redis) -> None:
    for entry in (NOT_UTF8, b"", b"a b:c", b"\x00" * 200, b"*", b"nobody", b"../x"):
        redis.lpush(rq_keys.queue_key("adm:demo:normal"), entry)


def in_leases(redis: Redis) -> None:
    redis.zadd(keys.LEASES, dict.fromkeys([NOT_UTF8, b"", b"odd", b"a:b:c", b"nobody:" + b"0" * 32], 1.0))


def in_delayed(redis: Redis) -> None:
    redis.zadd(rq_keys.delayed_key("adm:demo:normal"), dict.fromkeys([NOT_UTF8, b"", b"odd", b"a b:c", b"nobody"], 1.0))


def in_executions(redis: Redis) -> None:
    redis.sadd(rq_keys.executions_key("cpu-0"), NOT_UTF8, b"", b"odd", b"a:b:c")


def in_announcements(redis: Redis) -> None:
    redis.sadd(keys.WORKERS, NOT_UTF8, b"", b"odd", b"listed")
    redis.set(keys.worker("odd"), NOT_UTF8)
    redis.rpush(keys.worker("listed"), "no text")
    redis.hset(keys.PIPELINES, "odd", "{}")
    redis.hset(keys.STEP_COSTS, "odd", "[]")
    redis.set(keys.worker_metrics("cpu-0"), b"a b c d\xff")


def in_name(redis: Redis) -> None:
    redis.set(keys.worker_process("cpu-0"), "garbage")


def in_name_of_wrong_type(redis: Redis) -> None:
    replace(redis, keys.worker_process("cpu-0"))


def in_messages(redis: Redis) -> None:
    for message in (NOT_UTF8, b"", b"[]", b'"x"', b'{"command": "stop-job", "job_id": []}'):
        redis.publish("rq:pubsub:cpu-0", message)
        redis.publish(keys.WAKE_CHANNEL, message)


def in_counters(redis: Redis) -> None:
    for name in ("normal", "normal:x:base", ":::", "normal:1:base"):
        redis.hset(keys.queued_work("demo"), name, "garbage")
    redis.rpush(keys.estimate_ratios("demo"), "nan", "garbage")


def in_indexes(redis: Redis) -> None:
    for key in (keys.index(), keys.index(JobStatus.QUEUED)):
        redis.zadd(key, dict.fromkeys([NOT_UTF8, b"", b"odd", b"-"], 0.0))


def in_expiries(redis: Redis) -> None:
    for key in (keys.EXPIRING, keys.ENDED):
        redis.zadd(key, dict.fromkeys([NOT_UTF8, b"", b"odd", b"-"], 1.0))


FOREIGN = [
    in_queue,
    in_leases,
    in_delayed,
    in_executions,
    in_announcements,
    in_name,
    in_name_of_wrong_type,
    in_messages,
    in_counters,
    in_indexes,
    in_expiries,
]
