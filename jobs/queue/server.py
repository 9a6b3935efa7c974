"""How our programs connect to Redis, which servers will do, and how much memory one has left."""

import time
from dataclasses import dataclass
from typing import Any

from redis.backoff import NoBackoff
from redis.client import Redis
from redis.retry import Retry

from jobs.contract.errors import ErrorKind, RefusedError, SettingsError

NEEDED = 7  # scripts that say what they are ("#!lua"), PEXPIRETIME; every Valkey calls itself at least that
SOCKET_SECONDS = 5.0  # no command of ours takes this long; a server that hangs is as good as one that is down
RETRY_SECONDS = 60.0  # until room may have come back, or the server been mended, where nothing says when
LOOKED_SECONDS = 1.0  # for which the last look at a server serves


def connect_redis(address: str) -> Redis:
    """A client that repeats no command: a submission whose answer was lost would be queued twice."""
    return Redis.from_url(
        address,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=SOCKET_SECONDS,
        socket_connect_timeout=SOCKET_SECONDS,
        health_check_interval=0,
    )


@dataclass(frozen=True)
class Server:
    """What a Redis server says of itself (INFO)."""

    version: str
    mode: str  # standalone, sentinel or cluster
    eviction: str  # its maxmemory-policy
    used_bytes: int
    max_bytes: int  # 0: no limit of its own

    @property
    def fault(self) -> str | None:
        """Why the server must not be used, in one line; None if it may."""
        if int(self.version.partition(".")[0]) < NEEDED:
            return f"ADM_REDIS_URL: the server is Redis {self.version}; Redis {NEEDED} or newer, or Valkey, is needed"
        if self.mode == "cluster":
            return "ADM_REDIS_URL: the server is part of a Redis Cluster; one server, or Sentinel's master, is needed"
        if self.eviction != "noeviction":
            return (
                f"ADM_REDIS_URL: the server evicts keys, and so accepted jobs, when its memory is full; its "
                f"maxmemory-policy is {self.eviction} and must be noeviction"
            )
        return None


def server_of(info: dict[str, Any]) -> Server:
    """The server of INFO's answer."""
    return Server(
        version=info["redis_version"],
        mode=info.get("redis_mode", "standalone"),
        eviction=info.get("maxmemory_policy", "noeviction"),  # hosted servers may hide it
        used_bytes=info.get("used_memory", 0),
        max_bytes=info.get("maxmemory", 0),
    )


def check_server(redis: Redis) -> None:
    """Raises: SettingsError for a server that will not do; RedisError where it does not answer."""
    if fault := look(redis).fault:
        raise SettingsError(fault)


def look(redis: Redis) -> Server:
    """Raises: RedisError."""
    return server_of(redis.info())


class ServerReader:
    """Looks at a server at most once a second: every submission asks."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._server: Server | None = None
        self._look_at = float("-inf")

    def usable(self) -> Server:
        """Raises: RefusedError for a server that must not be used; RedisError."""
        server = self._read()
        if server.fault is not None:
            raise RefusedError(ErrorKind.UNAVAILABLE, server.fault, retry_after_seconds=RETRY_SECONDS)
        return server

    def _read(self) -> Server:
        if self._server is None or time.monotonic() >= self._look_at:
            self._server, self._look_at = look(self._redis), time.monotonic() + LOOKED_SECONDS
        return self._server
