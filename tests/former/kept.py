"""The data of a former version in Redis and in the store (`tests.former.record`), restored for a test."""

import json
import shutil
import time
from base64 import b64decode
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from redis import Redis
from redis.client import Pipeline as RedisPipeline

from jobs.redis import keys

FOLDER = Path(__file__).parent
VERSIONS = ("before-webhooks", "before-revisions")  # the oldest first
SECONDS_TO_LIVE = 3600.0


@dataclass(frozen=True)
class Kept:
    """The jobs of a former version: their ids by what they are."""

    version: str
    completed: str
    handed_back: str
    waiting: str

    @property
    def request_schema(self) -> Any:
        return json.loads((FOLDER / self.version / "request-schema.json").read_text())

    @property
    def checkpoint(self) -> bytes:
        (path,) = (FOLDER / self.version / "store").rglob("*.safetensors")
        return path.read_bytes()


def lay_down(version: str, redis: Redis, store: Path) -> Kept:
    """Write all that a former version left, as if it had been left just now: nothing has expired since."""
    recorded = json.loads((FOLDER / version / "redis.json").read_text())
    shutil.copytree(FOLDER / version / "store", store)
    ends_at = time.time() + SECONDS_TO_LIVE
    with redis.pipeline() as pipe:
        for key, value in recorded["keys"].items():
            write(pipe, b64decode(key), *next(iter(value.items())))
        for job_id in recorded["jobs"].values():
            pipe.hset(f"rq:job:{job_id}", "adm_expires_at", str(ends_at))
        pipe.execute()
    for index in (keys.EXPIRING, keys.ENDED):
        members = cast(list[bytes], redis.zrange(index, 0, -1))
        redis.zadd(index, dict.fromkeys(members, ends_at))
    return Kept(version, **recorded["jobs"])


def write(pipe: RedisPipeline, key: bytes, kind: str, value: Any) -> None:
    match kind:
        case "string":
            pipe.set(key, b64decode(value))
        case "hash":
            pipe.hset(key, mapping=decoded(value))  # type: ignore[arg-type] # redis-py's types know no bytes as names
        case "list":
            pipe.rpush(key, *map(b64decode, value))
        case "set":
            pipe.sadd(key, *map(b64decode, value))
        case "zset":
            pipe.zadd(key, {b64decode(member): score for member, score in value.items()})
        case "stream":
            for entry, fields in value:
                pipe.xadd(key, decoded(fields), id=entry)  # type: ignore[arg-type] # as above


def decoded(fields: dict[str, str]) -> dict[bytes, bytes]:
    return {b64decode(name): b64decode(value) for name, value in fields.items()}
