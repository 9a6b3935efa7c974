import asyncio

import pytest
from redis import Redis

from jobs.files import FileStore
from jobs.images import ImageStore
from jobs.ledger import Ledger
from jobs.settings import Settings
from jobs.sweep import Sweeper
from service.upkeep import keep_up


def test_upkeep_goes_on_after_a_failure_that_nobody_foresaw(
    redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = ImageStore(settings.store_address)
    sweeper = Sweeper(redis, Ledger(redis, 60), images, FileStore(redis, settings, images.objects), lease_seconds=30)
    calls: list[str] = []

    def expire_jobs() -> int:
        calls.append("tick")
        if len(calls) == 1:
            raise ValueError("unforeseen")
        return 0

    monkeypatch.setattr(sweeper, "expire_jobs", expire_jobs)

    async def scenario() -> None:
        keeping = asyncio.create_task(keep_up(sweeper, 0.01))
        while len(calls) < 3 and not keeping.done():
            await asyncio.sleep(0.01)
        assert not keeping.done()
        keeping.cancel()

    asyncio.run(scenario())
