"""The objects that routes use; made once, by the application's lifespan."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, cast

from fastapi import Depends, Request
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff

from jobs.callers.keyring import NEEDED
from jobs.contract.job import Job
from jobs.queue.cleaner import Cleaner
from jobs.queue.drafting import Submission, Submitted
from jobs.queue.events import Event, StreamPosition, read_events
from jobs.queue.job_queue import Asked, JobQueue
from jobs.queue.retirement import Retirement
from jobs.redis.record import Record
from jobs.redis.server import SOCKET_SECONDS, connect_redis
from jobs.settings import Settings
from jobs.storage.images import ImageStore
from service.authentication import KeyringReader
from service.batches import Batches
from service.fair_threads import FairThreads
from service.fair_turns import FairTurns
from service.hub import Hub
from service.metrics import Metrics
from service.probes import Probes
from service.process_metrics import ProcessMetrics
from service.process_slot import Slot
from service.upkeep import Upkeep
from service.webhooks import WebhookSender

THREADS = 4  # more would compete for the GIL: calls of the queue are short and mostly Python, and 16 were slower
LONG_CALL_THREADS = 2  # so that one reads from Redis while the other parses
MOST_CALLS = 1024  # calls that may wait; refusing earlier costs more, because clients repeat at once
MOST_SHEETS = 2  # so that one reads its PNGs while the other is drawn
MOST_CONVERSIONS = 64  # waiting ones, each with its PNG in memory; a page shows 40 at once


@dataclass(frozen=True)
class Service:
    settings: Settings
    redis: Redis
    async_redis: AsyncRedis
    keyring: KeyringReader
    queue: JobQueue
    upkeep: Upkeep
    webhooks: WebhookSender
    hub: Hub
    metrics: Metrics
    process_metrics: ProcessMetrics
    decoding: FairTurns  # turns for the processes that decode uploads
    sheets: FairTurns  # turns for the sheets of grids, each with the PNGs of all its cells in memory
    calls: FairThreads  # calls of the queue
    long_calls: FairThreads  # calls of the queue that read or write many jobs, so that they delay no short ones
    store_calls: FairThreads
    conversions: FairThreads  # of images to other forms, one at a time, because decoding here is not thread-safe
    submissions: Batches[Submission, Submitted]
    lookups: Batches[Asked, Job]
    records: Batches[Asked, Record | None]
    events: Batches[StreamPosition, list[Event]]
    probes: Probes


def connect(settings: Settings, metrics: Metrics, slot: Slot) -> Service:
    """Make the objects that routes use; no connection is opened yet, so that the service can start without Redis."""
    redis = connect_redis(settings.redis_address)
    async_redis = AsyncRedis.from_url(
        settings.redis_address,
        retry=AsyncRetry(NoBackoff(), 0),
        socket_timeout=SOCKET_SECONDS,
        socket_connect_timeout=SOCKET_SECONDS,
    )
    images = ImageStore(settings.store_address, settings.store_timeout_seconds, metrics.store.note)
    queue = JobQueue(redis, settings, images)
    cleaner = Cleaner(redis, queue.ledger, images, queue.files, settings.lease_seconds)
    retirement = Retirement(redis, queue.ledger, queue.fleet, settings.pipeline_retention_seconds)
    process_metrics = ProcessMetrics(redis, metrics, slot)
    return Service(
        settings=settings,
        redis=redis,
        async_redis=async_redis,
        keyring=KeyringReader(async_redis, settings.data / NEEDED),
        queue=queue,
        upkeep=Upkeep(cleaner, retirement, settings.sweep_seconds),
        webhooks=WebhookSender(queue.webhooks, queue, settings, metrics),
        hub=Hub(async_redis),
        metrics=metrics,
        process_metrics=process_metrics,
        decoding=FairTurns(settings.decode_processes),
        sheets=FairTurns(MOST_SHEETS),
        calls=FairThreads(THREADS, "too many calls wait for the queue", MOST_CALLS),
        long_calls=FairThreads(LONG_CALL_THREADS, "too many calls about many jobs wait for the queue", MOST_CALLS),
        store_calls=FairThreads(settings.store_threads, "the image store is slow and too many calls wait for it"),
        conversions=FairThreads(1, "too many images are being reduced or converted", MOST_CONVERSIONS),
        submissions=Batches(queue.submitter.submit_all, lambda each: each.caller.id),
        lookups=Batches(queue.get_all, lambda each: each.caller.id),
        records=Batches(queue.records, lambda each: each.caller.id),
        events=Batches(partial(read_events, redis), lambda each: each.caller),
        probes=Probes(redis, queue, process_metrics, settings.default_model),
    )


def service_of(request: Request) -> Service:
    """The service of a request, for routes that are called often: a dependency costs them a tenth of their time."""
    return cast(Service, request.app.state.service)


async def get_service(request: Request) -> Service:  # async: FastAPI sends a plain dependency through the thread pool
    return service_of(request)


ServiceDep = Annotated[Service, Depends(get_service)]
