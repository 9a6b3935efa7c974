import asyncio
import json

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import ConnectionError as RedisConnectionError

from jobs.queue.events import Preview, publish_preview
from service.hub import KEEP_OPEN_CHANNEL, Hub, closing_is_no_connection
from tests.conftest import RedisServer


def test_listener_that_could_not_subscribe_leaves_nothing() -> None:
    async def scenario() -> None:
        hub = Hub(AsyncRedis.from_url("unix:///nonexistent/redis.sock"))
        for _ in range(2):
            with pytest.raises(RedisConnectionError):
                async with hub.listen("job"):
                    raise AssertionError("there is nothing to listen to")
        await hub.close()
        # private members, because a leak would fill them and nothing else shows it
        assert (hub._listeners, hub._subscribed, hub._leaving) == ({}, {}, set())

    asyncio.run(scenario())


def test_listener_cancelled_while_others_subscribe_leaves_nothing(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        redis = AsyncRedis.from_url(redis_server.address)
        hub = Hub(redis)
        running = asyncio.create_task(hub.run())

        async def listen() -> None:
            async with hub.listen("job") as listener:
                await listener.wait(60)

        inside = asyncio.create_task(listen())
        # private members, because nothing else shows when a listener waits for a subscription
        while not hub._subscribed:
            await asyncio.sleep(0)
        await hub._lock.acquire()  # a slow subscription of another listener
        outside = asyncio.create_task(listen())
        await asyncio.sleep(0)
        for each in (inside, outside):
            each.cancel()
        await asyncio.gather(inside, outside, return_exceptions=True)
        assert hub._listeners == {}  # what a leak would fill, as above
        hub._lock.release()
        running.cancel()
        await hub.close()
        assert (hub._subscribed, hub._leaving) == ({}, set())
        await redis.aclose()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "error",
    [
        AttributeError("'NoneType' object has no attribute 'writelines'"),
        RuntimeError("unable to perform operation on <UnixTransport closed=True>; the handler is closed"),
    ],
)
def test_connection_that_is_being_closed_counts_as_one_that_is_gone(error: Exception) -> None:
    with pytest.raises(RedisConnectionError), closing_is_no_connection():
        raise error


def test_listeners_share_previews_and_slow_ones_are_left_the_latest_of_each_image(
    redis_server: RedisServer, redis: Redis
) -> None:
    async def steps_held(picture: bytes) -> list[tuple[int, int]]:
        client = AsyncRedis.from_url(redis_server.address)
        hub = Hub(client)
        running = asyncio.create_task(hub.run())
        while not redis.pubsub_channels(KEEP_OPEN_CHANNEL):
            await asyncio.sleep(0.01)
        async with hub.listen("job") as slow, hub.listen("job") as other:
            for index, step in ((0, 1), (1, 1), (0, 2), (0, 3)):
                publish_preview(redis, "job", Preview(index, "base", step, 3, picture))
            received: list[str] = []
            while not received or json.loads(received[-1])["step"] != 3:
                await slow.wait(60)
                received += slow.previews()
            unread = other.previews()
        assert unread[-1] is received[-1]
        running.cancel()
        await hub.close()
        await client.aclose()
        return [(each["index"], each["step"]) for each in map(json.loads, unread)]

    assert asyncio.run(steps_held(b"small")) == [(0, 1), (1, 1), (0, 2), (0, 3)]
    assert asyncio.run(steps_held(bytes(150_000))) == [(1, 1), (0, 3)]
