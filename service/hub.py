"""Shares one subscription between all waiting requests, so that streams need no connections to Redis of their own."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import structlog
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from jobs.queue.events import image_of_preview
from jobs.redis import keys

log = structlog.get_logger("service.hub")

KEEP_OPEN_CHANNEL = "adm:hub"  # an unused channel, because a subscription needs at least one
RECHECK_SECONDS = 5.0  # interval of rereading, because a message may be lost while Redis restarts
RETRY_SECONDS = 0.5
MAX_HELD = 1 << 18  # characters of unread previews of a listener: sixty of the demo, one of the largest model


class Listener:
    """One reader of a job's channel.

    Listeners share the texts of previews. A slow listener keeps only the latest preview of each image.
    """

    def __init__(self) -> None:
        self._is_woken = False
        self._waiter: asyncio.Future[None] | None = None  # not an Event, which would take a kilobyte per stream
        self._previews: list[tuple[int, str]] = []  # image index and text, in order of arrival
        self._held = 0  # characters of these previews

    def notify(self) -> None:
        self._is_woken = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def show(self, index: int, preview: str) -> None:
        """Note a preview of an image."""
        self._previews.append((index, preview))
        self._held += len(preview)
        if self._held > MAX_HELD:
            last = {each: position for position, (each, _) in enumerate(self._previews)}
            self._previews = [self._previews[position] for position in sorted(last.values())]
            self._held = sum(len(each) for _, each in self._previews)
        self.notify()

    def previews(self) -> list[str]:
        """The previews since the last call; for a slow listener, only the latest of each image."""
        taken = [preview for _, preview in self._previews]
        self._previews, self._held = [], 0
        return taken

    async def wait(self, seconds: float) -> None:
        """Return after the next message or after the given seconds."""
        if not self._is_woken:
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            # not wait_for, which may swallow a cancellation before Python 3.12; timeout takes half a kilobyte more
            timer = loop.call_later(max(0.0, min(seconds, RECHECK_SECONDS)), self.notify)
            try:
                await self._waiter
            finally:
                timer.cancel()
        self._is_woken, self._waiter = False, None


@contextlib.contextmanager
def closing_is_no_connection() -> Iterator[None]:
    """Raise RedisConnectionError for a connection that another task is closing: its writer is None or closed."""
    try:
        yield
    except (AttributeError, RuntimeError) as error:
        raise RedisConnectionError("the connection is being closed") from error


class Hub:
    """Passes messages about jobs to listeners. For one event loop."""

    def __init__(self, redis: Redis) -> None:
        self.stopping = False  # True: no request may begin to wait
        self._pubsub = redis.pubsub()
        self._listeners: dict[str, set[Listener]] = {}  # changed without an await: a cancellation leaves no entry
        self._subscribed: dict[str, asyncio.Event] = {}  # changed under the lock
        self._lock = asyncio.Lock()
        self._leaving: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def listen(self, job_id: str) -> AsyncIterator[Listener]:
        """Listen to a job's events within the block; state that is read inside is not older than the subscription."""
        channel, listener = keys.channel(job_id), Listener()
        self._listeners.setdefault(channel, set()).add(listener)
        try:
            confirmed = await self._subscribe(channel)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await confirmed.wait()
            yield listener
        finally:
            self._listeners[channel].discard(listener)
            if not self._listeners[channel]:
                del self._listeners[channel]
                self._leave(channel)

    async def _subscribe(self, channel: str) -> asyncio.Event:
        """Subscribe if there is no subscription; the event is set when Redis confirms it."""
        async with self._lock:
            if channel not in self._subscribed:
                self._subscribed[channel] = asyncio.Event()
                try:
                    with closing_is_no_connection():
                        await self._pubsub.subscribe(channel)
                except BaseException:
                    del self._subscribed[channel]
                    raise
            return self._subscribed[channel]

    def _leave(self, channel: str) -> None:
        """Unsubscribe in a task of its own, because the listening task may be cancelled during the wait."""
        task = asyncio.create_task(self._unsubscribe(channel))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _unsubscribe(self, channel: str) -> None:
        async with self._lock:
            if channel not in self._listeners:  # another listener may have come meanwhile
                self._subscribed.pop(channel, None)
                with contextlib.suppress(RedisError, OSError), closing_is_no_connection():
                    await self._pubsub.unsubscribe(channel)

    async def run(self) -> None:
        """Pass messages to listeners until cancelled; reconnect after an outage of Redis."""
        while True:
            try:
                async with self._lock:  # two first subscriptions would each open a connection, and one leak
                    await self._pubsub.subscribe(KEEP_OPEN_CHANNEL)
                while True:
                    message = await self._pubsub.get_message(timeout=RECHECK_SECONDS)
                    if message is not None:
                        self._pass_on(message["type"], message["channel"].decode(), message["data"])
            except (RedisError, OSError) as error:
                log.warning("redis_unavailable", error=type(error).__name__)
                await asyncio.sleep(RETRY_SECONDS)
            except Exception:
                log.exception("hub_failed")  # listeners still reread by themselves
                await asyncio.sleep(RETRY_SECONDS)

    def stop(self) -> None:
        """Wake all listeners, so that they answer before the service stops."""
        self.stopping = True
        for listeners in self._listeners.values():
            for each in listeners:
                each.notify()

    async def close(self) -> None:
        await asyncio.gather(*self._leaving, return_exceptions=True)
        with contextlib.suppress(RedisError, OSError):
            await self._pubsub.aclose()  # type: ignore[no-untyped-call] # redis-py leaves it untyped

    def _pass_on(self, kind: str, channel: str, data: bytes) -> None:
        if kind == "subscribe" and channel in self._subscribed:
            self._subscribed[channel].set()
        elif kind == "subscribe" and channel != KEEP_OPEN_CHANNEL:
            self._leave(channel)  # leaving it failed during the outage, and redis-py has subscribed to it again
        if kind != "message":
            return
        listeners = self._listeners.get(channel, ())
        if data:
            index, preview = image_of_preview(data), data.decode()
            for each in listeners:
                each.show(index, preview)
        else:
            for each in listeners:
                each.notify()
