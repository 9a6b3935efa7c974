"""What the routes work with; made once, by the application's lifespan."""

from dataclasses import dataclass
from typing import Annotated, cast

from anyio import CapacityLimiter
from fastapi import Depends, Request
from redis import Redis
from redis.asyncio import BlockingConnectionPool
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from jobs.images import ImageStore
from jobs.queue import JobQueue
from jobs.retirement import Retirement
from jobs.settings import Settings
from jobs.sweep import Sweeper
from service.hub import Hub
from service.metrics import Metrics
from service.store_calls import StoreCalls
from service.upkeep import Upkeep

SOCKET_SECONDS = 5.0  # no command of ours takes this long; a server that hangs is as good as one that is down

ASYNC_CONNECTIONS = 16  # an event may wake a thousand streams at once; they take turns


@dataclass(frozen=True)
class Service:
    settings: Settings
    redis: Redis
    async_redis: AsyncRedis
    queue: JobQueue
    upkeep: Upkeep
    hub: Hub
    metrics: Metrics
    decoding: CapacityLimiter  # processes that decode uploads
    store_calls: StoreCalls


def connect_redis(settings: Settings) -> Redis:
    """A client that repeats no command: a submission whose answer was lost would be queued twice."""
    return Redis.from_url(
        settings.redis_address,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=SOCKET_SECONDS,
        socket_connect_timeout=SOCKET_SECONDS,
    )


def connect(settings: Settings, metrics: Metrics) -> Service:
    """Everything the routes need; no connection is opened yet, so that the service starts without Redis too."""
    redis = connect_redis(settings)
    pool = BlockingConnectionPool.from_url(
        settings.redis_address,
        max_connections=ASYNC_CONNECTIONS,
        timeout=SOCKET_SECONDS,
        retry=AsyncRetry(NoBackoff(), 0),
        socket_connect_timeout=SOCKET_SECONDS,
    )
    async_redis = AsyncRedis.from_pool(pool)
    images = ImageStore(settings.store_address, settings.store_timeout_seconds)
    queue = JobQueue(redis, settings, images)
    sweeper = Sweeper(redis, queue.ledger, images, queue.files, settings.lease_seconds)
    retirement = Retirement(redis, queue.ledger, queue.fleet, settings.pipeline_retention_seconds)
    return Service(
        settings=settings,
        redis=redis,
        async_redis=async_redis,
        queue=queue,
        upkeep=Upkeep(sweeper, retirement, settings.sweep_seconds),
        hub=Hub(async_redis),
        metrics=metrics,
        decoding=CapacityLimiter(settings.decode_processes),
        store_calls=StoreCalls(settings.store_threads),
    )


async def get_service(request: Request) -> Service:  # async: FastAPI sends a plain dependency through the thread pool
    return cast(Service, request.app.state.service)


ServiceDep = Annotated[Service, Depends(get_service)]
