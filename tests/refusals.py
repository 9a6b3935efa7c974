"""Ways to make a real Redis refuse all writes, while it answers everything else."""

import time
from collections.abc import Callable
from pathlib import Path

from redis import Redis

Refusal = Callable[[Redis, Path], Callable[[], object]]
"""Makes a server refuse writes; returns a function that makes it accept them again."""


def out_of_memory(redis: Redis, folder: Path) -> Callable[[], object]:
    redis.config_set("maxmemory", 1)
    return lambda: redis.config_set("maxmemory", 0)


def read_only(redis: Redis, folder: Path) -> Callable[[], object]:
    redis.replicaof("no-such-host.invalid", 1)
    return lambda: redis.replicaof("NO", "ONE")


def too_few_replicas(redis: Redis, folder: Path) -> Callable[[], object]:
    redis.config_set("min-replicas-to-write", 1)
    return lambda: redis.config_set("min-replicas-to-write", 0)


def snapshot_failed(redis: Redis, folder: Path) -> Callable[[], object]:
    (folder / "dump.rdb").mkdir()
    redis.config_set("save", "3600 1000000")
    redis.bgsave()
    # wait for the save's end too: the failed status may be an earlier save's, and this one could still succeed
    while (persistence := redis.info("persistence"))["rdb_bgsave_in_progress"] or persistence[
        "rdb_last_bgsave_status"
    ] != "err":
        time.sleep(0.02)

    def end() -> None:
        (folder / "dump.rdb").rmdir()
        redis.config_set("save", "")

    return end


REFUSALS = [out_of_memory, read_only, too_few_replicas, snapshot_failed]
