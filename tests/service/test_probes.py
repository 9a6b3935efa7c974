"""Probes of monitoring: many at the same time cost as much as one."""

import asyncio
from typing import cast

from redis import Redis

from jobs.queue.job_queue import JobQueue
from jobs.settings import Settings
from jobs.storage.images import ImageStore
from service.metrics import Metrics
from service.probes import Probes
from service.process_metrics import ProcessMetrics
from service.process_slot import ALONE


def num_looks(redis: Redis) -> int:
    """The number of INFO commands that the server got, without those of this function."""
    stats = cast(dict[str, dict[str, int]], redis.info("commandstats"))
    return stats.get("cmdstat_info", {}).get("calls", 0)


def test_callers_who_ask_at_once_share_one_look(redis: Redis, settings: Settings) -> None:
    """Otherwise callers would wait, one after the other, for a Redis that hangs."""
    queue = JobQueue(redis, settings, ImageStore(settings.store_address))

    async def ask(times: int) -> list[str | None]:
        probes = Probes(redis, queue, ProcessMetrics(redis, Metrics(), ALONE), settings.default_model)
        return await asyncio.gather(*(probes.what_is_lacking(index % 2 == 0) for index in range(times)))

    before = num_looks(redis)
    lacks = asyncio.run(ask(24))
    assert num_looks(redis) - before - 1 <= 4, "at most two batches, each of the two questions"
    assert len(lacks) == 24
    assert {each is None for each in lacks[1::2]} == {True}
