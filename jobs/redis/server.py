"""Connects to Redis, and checks a server's version, mode, eviction policy and memory."""

import time
from dataclasses import dataclass
from typing import Any

from redis.backoff import NoBackoff
from redis.client import Redis
from redis.retry import Retry

from jobs.contract.errors import ErrorKind, RefusedError, SettingsError

NEEDED = 7  # for "#!lua" scripts and PEXPIRETIME; every Valkey reports this version or a newer one
SOCKET_SECONDS = 5.0  # no command of ours takes this long, so a server that hangs counts as unavailable
RETRY_SECONDS = 60.0  # seconds in `Retry-After` if Redis is full or misconfigured and the time of recovery is unknown
INFO_CACHE_SECONDS = 1.0  # how long the last answer of INFO is used


def connect_redis(address: str) -> Redis:
    """A client that repeats no command, because a submission whose answer was lost would be queued twice."""
    return Redis.from_url(
        address,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=SOCKET_SECONDS,
        socket_connect_timeout=SOCKET_SECONDS,
        health_check_interval=0,
    )


@dataclass(frozen=True)
class Server:
    """The properties of a Redis server (INFO)."""

    version: str
    mode: str  # standalone, sentinel or cluster
    eviction: str  # its maxmemory-policy
    used_bytes: int
    max_bytes: int  # 0: no limit of its own

    @property
    def fault(self) -> str | None:
        """The reason why the server must not be used, in one line; None if it may be used."""
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
    """Parse INFO's answer."""
    return Server(
        version=info["redis_version"],
        mode=info.get("redis_mode", "standalone"),
        eviction=info.get("maxmemory_policy", "noeviction"),  # hosted servers may hide it
        used_bytes=info.get("used_memory", 0),
        max_bytes=info.get("maxmemory", 0),
    )


def check_server(redis: Redis) -> None:
    """Check a server. Raises: SettingsError if it must not be used; RedisError if it does not answer."""
    if fault := look(redis).fault:
        raise SettingsError(fault)


def look(redis: Redis) -> Server:
    """Read INFO. Raises: RedisError."""
    return server_of(redis.info())


class ServerReader:
    """Caches INFO for INFO_CACHE_SECONDS, because every submission needs it."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._server: Server | None = None
        self._look_at = float("-inf")

    def usable(self) -> Server:
        """The server. Raises: RefusedError if it must not be used; RedisError if it does not answer."""
        server = self._read()
        if server.fault is not None:
            raise RefusedError(ErrorKind.UNAVAILABLE, server.fault, retry_after_seconds=RETRY_SECONDS)
        return server

    def _read(self) -> Server:
        if self._server is None or time.monotonic() >= self._look_at:
            self._server, self._look_at = look(self._redis), time.monotonic() + INFO_CACHE_SECONDS
        return self._server
