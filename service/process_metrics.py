"""Metrics of all processes of a service: each writes its own to Redis, and the scraped process shows all of them.

A counter must never decrease, whichever process answers. So a process writes its metrics to Redis before it shows them,
and the others never show less.
"""

import asyncio
from typing import cast

import structlog
from anyio import CapacityLimiter, to_thread
from prometheus_client import generate_latest
from redis import Redis
from redis.exceptions import RedisError

from jobs.redis import keys
from service.metrics import Metrics
from service.process_slot import Slot

log = structlog.get_logger("service.process_metrics")

LEAVE_SECONDS = 5.0  # between two snapshots, so the greatest age of other processes' metrics
KEPT_SECONDS = 60  # lifetime of a dead process' snapshot


class ProcessMetrics:
    """Reads and writes the metrics of one process of a service."""

    def __init__(self, redis: Redis, metrics: Metrics, slot: Slot) -> None:
        self._redis, self._metrics, self._slot = redis, metrics, slot
        self._keys = {index: keys.service_metrics(slot.service, index) for index in range(slot.count)}
        self._thread = CapacityLimiter(1)

    def own(self) -> str:
        """This process' metrics in Prometheus' text form."""
        return generate_latest(self._metrics.registry).decode()

    def texts(self) -> list[tuple[dict[str, str], str]]:
        """The labels and metrics of each process. Raises: redis.RedisError."""
        if self._slot.count == 1:
            return [(self._slot.labels, self.own())]
        self.leave()
        left = cast(list[bytes | None], self._redis.mget(self._keys.values()))
        return [
            (Slot(self._slot.service, index, self._slot.count).labels, text.decode(errors="replace"))
            for index, text in zip(self._keys, left, strict=True)
            if text is not None
        ]

    def own_text(self) -> tuple[dict[str, str], str]:
        """Only this process' labels and metrics, for use while Redis is unavailable."""
        return self._slot.labels, self.own()

    def leave(self) -> None:
        """Write this process' metrics to Redis for the others. Raises: redis.RedisError."""
        self._redis.set(self._keys[self._slot.index], self.own(), ex=KEPT_SECONDS)

    async def run(self) -> None:
        """Write the metrics every LEAVE_SECONDS until cancelled."""
        while True:
            try:
                await to_thread.run_sync(self.leave, limiter=self._thread)
            except RedisError as error:
                log.warning("not_left", error=type(error).__name__)
            await asyncio.sleep(LEAVE_SECONDS)
