"""Calls of the queue that routes make for a caller, and whose threads and turns they use."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from functools import partial
from threading import Event

import pytest
from anyio import to_thread
from redis import Redis

from jobs.contract.caller import ANONYMOUS
from jobs.contract.job import JobStatus
from jobs.contract.request import JobRequest
from jobs.queue.announcements import announce_pipelines
from jobs.queue.events import START, StreamPosition
from jobs.queue.job_queue import Asked
from jobs.settings import Settings
from service.batches import MOST
from service.fair_threads import FairThreads
from service.metrics import Metrics
from service.process_slot import ALONE
from service.routes_openai import give_up
from service.state import Service, connect
from tests.jobs.samples import DEMO

pytestmark = pytest.mark.redis


@asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[Service]:
    service = connect(settings, Metrics(), ALONE)
    yield service
    await service.async_redis.aclose()
    service.redis.close()


def test_job_whose_client_has_gone_is_cancelled_while_the_threads_of_other_work_are_busy(
    redis: Redis, service_settings: Settings
) -> None:
    with redis.pipeline() as pipe:
        announce_pipelines(pipe, [DEMO])
        pipe.execute()

    async def main() -> JobStatus:
        async with connected(service_settings) as service:
            job = service.queue.submitter.submit(JobRequest(class_label=1)).job
            free = Event()
            to_thread.current_default_thread_limiter().total_tokens = 1
            other_work = asyncio.create_task(to_thread.run_sync(free.wait))
            try:
                async with asyncio.timeout(60):
                    await give_up(service, Asked(job.id, ANONYMOUS))
            finally:
                free.set()
                await other_work
            return service.queue.get(job.id).status

    assert asyncio.run(main()) is JobStatus.CANCELLED


def test_call_without_limit_is_made_however_many_wait() -> None:
    made = list[int]()

    async def main() -> None:
        threads = FairThreads(1, "busy", max_waiting=2, patience_seconds=0.01)
        free = Event()
        calls: list[Awaitable[object]] = [threads.run_without_limit(free.wait, ANONYMOUS)]
        calls += [threads.run_without_limit(partial(made.append, number), ANONYMOUS) for number in range(100)]
        running = asyncio.gather(*calls)
        await asyncio.sleep(0.05)  # longer than a call with a limit would wait
        free.set()
        await running

    asyncio.run(main())
    assert made == list(range(100))


def test_events_of_one_callers_job_are_read_before_all_of_anothers_many(
    redis: Redis, service_settings: Settings
) -> None:
    read = list[str]()

    async def main() -> None:
        async with connected(service_settings) as service:

            async def ask(caller: str) -> None:
                await service.events.ask(StreamPosition("a", START, caller))
                read.append(caller)

            await asyncio.gather(*(ask("ann") for _ in range(2 * MOST)), ask("bob"))

    asyncio.run(main())
    assert read.index("bob") < MOST
