import asyncio

import pytest
from redis import Redis

from jobs.queue.cleaner import Cleaner
from jobs.queue.ledger import Ledger
from jobs.queue.retirement import Retirement
from jobs.settings import Settings
from jobs.storage.files import FileStore
from jobs.storage.images import ImageStore
from jobs.views.fleet import FleetReader
from service.upkeep import Upkeep


def test_upkeep_continues_after_a_failure_that_nobody_foresaw(
    redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = ImageStore(settings.store_address)
    ledger = Ledger(redis, 60)
    cleaner = Cleaner(redis, ledger, images, FileStore(redis, settings, images.objects), lease_seconds=30)
    retirement = Retirement(redis, ledger, FleetReader(redis, 0), after_seconds=60)
    calls: list[str] = []

    def expire_jobs() -> int:
        calls.append("tick")
        if len(calls) == 1:
            raise ValueError("unforeseen")
        return 0

    monkeypatch.setattr(cleaner, "expire_jobs", expire_jobs)  # an error that nobody foresees: no real one is known

    async def scenario() -> None:
        keeping = asyncio.create_task(Upkeep(cleaner, retirement, 0.01).run())
        while len(calls) < 3 and not keeping.done():
            await asyncio.sleep(0.01)
        assert not keeping.done()
        keeping.cancel()

    asyncio.run(scenario())
