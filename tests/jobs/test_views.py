"""Views only read: they work as a user of Redis who may not write."""

from collections.abc import Iterator
from uuid import uuid4

import pytest
from redis import Redis
from redis.client import Pipeline as RedisPipeline
from redis.exceptions import NoPermissionError

from jobs.callers.keyring import KeyStore
from jobs.contract.caller import Role
from jobs.contract.job import JobStatus
from jobs.redis.record import Record
from jobs.settings import Settings
from jobs.views.fleet import FleetReader
from jobs.views.job_views import Views
from jobs.views.load import LoadReader
from tests.conftest import RedisServer
from tests.jobs.desk import ANN, BOB, Desk

pytestmark = pytest.mark.redis

PASSWORD = "shown-only"


@pytest.fixture
def reader(redis: Redis, redis_server: RedisServer) -> Iterator[Redis]:
    """A client of a user whose only commands are those that Redis counts as reading."""
    rights = ["~*", "-@all", "+@read", "+@connection"]
    redis.execute_command("ACL", "SETUSER", "reader", "reset", "on", f">{PASSWORD}", *rights)  # type: ignore[no-untyped-call] # redis-py leaves it untyped
    with Redis.from_url(f"unix://reader:{PASSWORD}@{redis_server.socket}") as own:
        yield own
    redis.acl_deluser("reader")


def test_views_show_jobs_fleet_and_load_by_reading_alone(redis: Redis, reader: Redis, settings: Settings) -> None:
    desk = Desk(redis, settings)
    ledger = desk.queue.ledger
    running, queued = desk.post(ANN)[0], desk.post(BOB)[0]

    def claim(pipe: RedisPipeline, record: Record | None) -> None:
        assert record is not None
        ledger.transitions.claim(pipe, record, "cpu-0", uuid4().hex, ledger.now() + 100)

    ledger.change(running, claim)
    KeyStore(redis).create("ann", Role.USER)
    records = [record for each in (running, queued) if (record := ledger.read(each)) is not None]

    fleet = FleetReader(reader, max_age_seconds=0)
    views = Views(reader, fleet, root_path="")
    assert [each.status for each in views.of(records)] == [JobStatus.IN_PROGRESS, JobStatus.QUEUED]
    assert views.backlogs(["demo"]).of("demo").lengths["normal"] == 1
    assert fleet.sweep("demo") is None
    assert list(fleet.metrics()) == ["cpu-0"]
    load = LoadReader(reader, fleet, settings.retention_seconds).read(KeyStore(redis).records(), ledger.now())
    assert (load.in_progress, load.pipelines[0].queued) == (1, 1)
    with pytest.raises(NoPermissionError):
        reader.set("adm:anything", "")
