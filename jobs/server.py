"""Which Redis servers will do."""

from typing import cast

from redis.client import Redis

from jobs.errors import SettingsError

NEEDED = 7  # scripts that say what they are ("#!lua"), PEXPIRETIME; every Valkey calls itself at least that


def check_server(redis: Redis) -> None:
    """Raises: SettingsError for a server that is too old; RedisError where it does not answer."""
    check_version(cast(dict[str, str], redis.info("server"))["redis_version"])


def check_version(version: str) -> None:
    """Raises: SettingsError."""
    if int(version.partition(".")[0]) < NEEDED:
        raise SettingsError(
            f"ADM_REDIS_URL: the server is Redis {version}; Redis {NEEDED} or newer, or Valkey, is needed"
        )
