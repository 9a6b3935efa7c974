"""One subscription for everybody who waits: a thousand streams need no thousand connections to Redis."""

import asyncio
import contextlib
from collections import defaultdict, deque
from collections.abc import AsyncIterator

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from jobs import keys

log = structlog.get_logger("service.hub")

KEEP_OPEN_CHANNEL = "adm:hub"  # nobody publishes there; a subscription to nothing would be an error
RECHECK_SECONDS = 5.0  # a message may be lost while Redis restarts, so who waits looks again this often
MAX_PREVIEWS = 128  # kept for a listener who reads slowly, then the oldest goes: two steps of a job of 64 images


class Listener:
    """One waiter's view of a job's channel."""

    def __init__(self) -> None:
        self._woken = asyncio.Event()
        self._previews: deque[str] = deque(maxlen=MAX_PREVIEWS)

    def notify(self, data: bytes) -> None:
        if data:
            self._previews.append(data.decode())
        self._woken.set()

    def previews(self) -> list[str]:
        """What came since the last call."""
        taken = list(self._previews)
        self._previews.clear()
        return taken

    async def wait(self, seconds: float) -> None:
        """Return when something happened, or after so long."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._woken.wait(), max(0.0, min(seconds, RECHECK_SECONDS)))
        self._woken.clear()


class Hub:
    """Passes on what is published about jobs; only for one event loop."""

    def __init__(self, redis: Redis) -> None:
        self._pubsub = redis.pubsub()
        self._listeners: defaultdict[str, set[Listener]] = defaultdict(set)
        self._subscribed: dict[str, asyncio.Event] = {}
        self._lock = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def listen(self, job_id: str) -> AsyncIterator[Listener]:
        """Hear of a job's events from here on: what is read of it inside is not older than the subscription."""
        channel, listener = keys.channel(job_id), Listener()
        async with self._lock:
            self._listeners[channel].add(listener)
            if channel not in self._subscribed:
                self._subscribed[channel] = asyncio.Event()
                await self._pubsub.subscribe(channel)
        confirmed = self._subscribed[channel]
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(confirmed.wait(), 1.0)
            yield listener
        finally:
            async with self._lock:
                self._listeners[channel].discard(listener)
                if not self._listeners[channel]:
                    del self._listeners[channel]
                    self._subscribed.pop(channel, None)
                    with contextlib.suppress(RedisError, OSError):
                        await self._pubsub.unsubscribe(channel)

    async def run(self) -> None:
        """Pass messages on until cancelled; a Redis that went away is found again."""
        while True:
            try:
                await self._pubsub.subscribe(KEEP_OPEN_CHANNEL)
                while True:
                    message = await self._pubsub.get_message(timeout=RECHECK_SECONDS)
                    if message is not None:
                        self._pass_on(message["type"], message["channel"].decode(), message["data"])
            except (RedisError, OSError) as error:
                log.warning("redis_away", error=type(error).__name__)
                await asyncio.sleep(0.5)

    async def close(self) -> None:
        with contextlib.suppress(RedisError, OSError):
            await self._pubsub.aclose()  # type: ignore[no-untyped-call] # redis-py leaves it untyped

    def _pass_on(self, kind: str, channel: str, data: bytes) -> None:
        if kind == "subscribe" and channel in self._subscribed:
            self._subscribed[channel].set()
        if kind == "message":
            for listener in self._listeners.get(channel, ()):
                listener.notify(data)
