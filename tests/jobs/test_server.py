import socket
from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import TimeoutError as RedisTimeoutError

from jobs.contract.errors import SettingsError
from jobs.redis import server
from jobs.redis.server import check_server, server_of

INFO = {"redis_version": "8.0.0", "redis_mode": "standalone", "maxmemory_policy": "noeviction", "used_memory": 1}


@pytest.mark.parametrize("version", ["2.8.24", "6.2.14"])
def test_old_redis_is_refused_in_one_line_that_says_what_is_needed(version: str) -> None:
    message = f"ADM_REDIS_URL: the server is Redis {version}; Redis 7 or newer, or Valkey, is needed"
    assert server_of(INFO | {"redis_version": version}).fault == message


@pytest.mark.parametrize(
    "info",
    [
        {},
        {"redis_version": "7.0.0"},
        {"redis_version": "255.255.255"},
        {"redis_mode": "sentinel"},
        {"maxmemory": 1 << 30},
    ],
)
def test_server_that_keeps_what_it_is_given_will_do(info: dict[str, Any]) -> None:
    assert server_of(INFO | info).fault is None


def test_cluster_is_refused() -> None:
    assert "Redis Cluster" in str(server_of(INFO | {"redis_mode": "cluster"}).fault)


def test_server_of_the_tests_will_do(redis: Redis) -> None:
    check_server(redis)


@pytest.fixture
def evicting(redis: Redis) -> Iterator[str]:
    policy = "volatile-lru"
    redis.config_set("maxmemory-policy", policy)
    yield policy
    redis.config_set("maxmemory-policy", "noeviction")


def test_server_that_evicts_keys_is_refused(redis: Redis, evicting: str) -> None:
    with pytest.raises(SettingsError, match=rf"^ADM_REDIS_URL: .*{evicting} and must be noeviction$"):
        check_server(redis)


def test_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SOCKET_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = server.connect_redis(f"redis://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(RedisTimeoutError):
            client.ping()
        client.close()
