"""Checks whether this container's worker serves, for the probes of Kubernetes and Docker: python -m worker.probe.

A worker has no HTTP server. It serves as long as it renews its announcement in Redis.
"""

import re
import socket
import sys
from typing import cast

from redis import Redis
from redis.exceptions import RedisError

from jobs.contract.errors import SettingsError
from jobs.redis import keys
from jobs.redis.server import connect_redis
from jobs.settings import Settings


def serving(redis: Redis, settings: Settings) -> list[str]:
    """Names of this container's workers that have renewed their announcement within their lease."""
    if settings.worker_name is not None:
        ours = re.compile(re.escape(settings.worker_name))
    else:  # named after the host and a device, which only the worker knows (`Settings.name_of_worker`)
        ours = re.compile(re.escape(re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname())) + r"-(cpu|cuda-\d+)")
    announced = [name.decode(errors="replace") for name in cast(set[bytes], redis.smembers(keys.WORKERS))]
    return [name for name in announced if ours.fullmatch(name) and redis.exists(keys.worker(name))]


def main() -> None:
    """Exit with status 0 if the worker serves, otherwise with one line that gives the reason."""
    try:
        settings = Settings.load()
        with connect_redis(settings.redis_address) as redis:
            found = serving(redis, settings)
    except SettingsError as error:
        sys.exit(f"probe: {error}")
    except RedisError as error:
        sys.exit(f"probe: Redis cannot be reached: {error}")
    if not found:
        sys.exit(
            "probe: the worker has not announced itself; it is loading, or has lost Redis for longer than its lease"
        )


if __name__ == "__main__":
    main()
