"""One subscription for everybody who waits: a thousand streams need no thousand connections to Redis."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import structlog
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from jobs.queue import keys
from jobs.queue.events import image_of_preview

log = structlog.get_logger("service.hub")

KEEP_OPEN_CHANNEL = "adm:hub"  # nobody publishes there; a subscription to nothing would be an error
RECHECK_SECONDS = 5.0  # a message may be lost while Redis restarts, so who waits looks again this often
RETRY_SECONDS = 0.5
MAX_HELD = 1 << 18  # characters of previews that a reader may be behind: sixty of the demo, one of the largest model


class Listener:
    """One waiter's view of a job's channel.

    Previews are shared by all listeners. One that reads slowly is left the latest of each image.
    """

    def __init__(self) -> None:
        self._is_woken = False
        self._waiter: asyncio.Future[None] | None = None  # an Event would take a kilobyte of each stream
        self._previews: list[tuple[int, str]] = []  # by image, in the order of their coming
        self._held = 0  # characters of them

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
        """What came since the last call, of a slow reader's without what newer previews have replaced."""
        taken = [preview for _, preview in self._previews]
        self._previews, self._held = [], 0
        return taken

    async def wait(self, seconds: float) -> None:
        """Return when something happened, or after so long."""
        if not self._is_woken:
            self._waiter = asyncio.get_running_loop().create_future()
            with contextlib.suppress(TimeoutError):  # not wait_for: until Python 3.12 it may swallow a cancellation
                async with asyncio.timeout(max(0.0, min(seconds, RECHECK_SECONDS))):
                    await self._waiter
        self._is_woken, self._waiter = False, None


@contextlib.contextmanager
def closing_is_no_connection() -> Iterator[None]:
    """redis-py's connection has no writer while another task closes it, or uvloop has closed what that writes to."""
    try:
        yield
    except (AttributeError, RuntimeError) as error:
        raise RedisConnectionError("the connection is being closed") from error


class Hub:
    """Passes on what is published about jobs; only for one event loop."""

    def __init__(self, redis: Redis) -> None:
        self.stopping = False  # nobody should begin to wait
        self._pubsub = redis.pubsub()
        self._listeners: dict[str, set[Listener]] = {}  # changed without waiting, so that a cancellation leaves nothing
        self._subscribed: dict[str, asyncio.Event] = {}  # changed under the lock
        self._lock = asyncio.Lock()
        self._leaving: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def listen(self, job_id: str) -> AsyncIterator[Listener]:
        """Hear of a job's events from here on: what is read of it inside is not older than the subscription."""
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
        """Subscribe unless that was done; the event is set when Redis has confirmed it."""
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
        """Unsubscribe in a task of its own: who stopped listening may be cancelled while that waits."""
        task = asyncio.create_task(self._unsubscribe(channel))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _unsubscribe(self, channel: str) -> None:
        async with self._lock:
            if channel not in self._listeners:  # somebody may have come meanwhile
                self._subscribed.pop(channel, None)
                with contextlib.suppress(RedisError, OSError), closing_is_no_connection():
                    await self._pubsub.unsubscribe(channel)

    async def run(self) -> None:
        """Pass messages on until cancelled; a Redis that went away is found again."""
        while True:
            try:
                async with self._lock:  # two that subscribe first would each open a connection, and one be lost
                    await self._pubsub.subscribe(KEEP_OPEN_CHANNEL)
                while True:
                    message = await self._pubsub.get_message(timeout=RECHECK_SECONDS)
                    if message is not None:
                        self._pass_on(message["type"], message["channel"].decode(), message["data"])
            except (RedisError, OSError) as error:
                log.warning("redis_away", error=type(error).__name__)
                await asyncio.sleep(RETRY_SECONDS)
            except Exception:
                log.exception("hub_failed")  # whoever waits still looks again by itself
                await asyncio.sleep(RETRY_SECONDS)

    def stop(self) -> None:
        """Wake everybody, to answer what they can before the service goes."""
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
            self._leave(channel)  # could not be left while Redis was away, and the client subscribed to it again
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
