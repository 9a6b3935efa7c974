"""A bucket of a real S3-compatible server, and what its faults cost: never more than the time of a call."""

import re
import time
from collections.abc import Callable

import pytest
from redis import Redis

from jobs.callers.caller import ANONYMOUS
from jobs.contract.errors import UnavailableError
from jobs.settings import Settings
from jobs.storage.files import FileStore
from jobs.storage.images import ImageStore
from jobs.storage.store import ObjectStore
from jobs.storage.store import bucket as make_bucket
from tests.chaos.proxy import StoreFault, StoreProxy
from tests.jobs.samples import png, upload

pytestmark = pytest.mark.slow

TIMEOUT_SECONDS = 2.0
MARGIN_SECONDS = 3.0  # for a busy machine

Call = Callable[[ObjectStore], object]
CALLS: dict[str, Call] = {
    "put": lambda store: store.put("jobs/a/b/new.png", bytes(100_000)),
    "get": lambda store: store.get("jobs/a/b/0.png"),
    "has": lambda store: store.has("jobs/a/b/0.png"),
    "delete": lambda store: store.delete(["jobs/a/b/0.png"]),
    "list": lambda store: list(store.list("jobs")),
    "now": lambda store: store.now(),
}


@pytest.fixture
def store(bucket: str) -> ObjectStore:
    store = ObjectStore(bucket, TIMEOUT_SECONDS)
    store.put("jobs/a/b/0.png", bytes(300_000))
    return store


def test_objects_of_a_bucket_come_and_go(store: ObjectStore) -> None:
    store.put("jobs/a/c/1.png", b"one")
    store.put("jobs/a/c/1.png", b"two")
    assert store.get("jobs/a/c/1.png") == b"two"
    assert sorted(each.key for each in store.list("jobs")) == ["jobs/a/b/0.png", "jobs/a/c/1.png"]
    assert [each.key for each in store.list("jobs/a/c")] == ["jobs/a/c/1.png"]
    store.delete(["jobs/a/c/1.png", "jobs/a/c/1.png"])
    assert not store.has("jobs/a/c/1.png")
    with pytest.raises(FileNotFoundError):
        store.get("jobs/a/c/1.png")


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("fault", ["silent", "503", "reset", "stalls"])
def test_call_ends_in_time_whatever_the_store_does_and_succeeds_when_it_is_back(
    store: ObjectStore, store_proxy: StoreProxy, fault: StoreFault, call: Call
) -> None:
    store_proxy.fault = fault
    started = time.monotonic()
    with pytest.raises(UnavailableError):
        call(store)
    assert time.monotonic() - started < TIMEOUT_SECONDS + MARGIN_SECONDS
    store_proxy.fault = "none"
    call(store)


@pytest.mark.parametrize("seconds", [0.5, 2.0, 10.0, 60.0])
def test_last_retry_its_pause_and_its_try_end_within_the_time_of_a_call(bucket: str, seconds: float) -> None:
    """The HTTP client adds them up: what it decides at the last instant takes the longest pause and a whole try."""
    store = make_bucket(bucket, seconds)
    retries, client = store.retry_config, store.client_options
    assert retries is not None
    assert client is not None
    number, unit = re.fullmatch(r"(\d+)(ms|s)", str(client["timeout"])).groups()  # type: ignore[union-attr] # it matches
    try_seconds = int(number) * {"ms": 0.001, "s": 1.0}[unit]
    pause = retries["backoff"]["max_backoff"]
    assert retries["backoff"]["init_backoff"] <= pause
    assert (retries["retry_timeout"] + pause).total_seconds() + try_seconds <= seconds
    assert retries["retry_timeout"].total_seconds() >= 0.3 * seconds, "there is time for retries"


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_slow_store_is_waited_for(store: ObjectStore, store_proxy: StoreProxy, call: Call) -> None:
    store_proxy.fault = "slow"
    call(store)
    assert store_proxy.struck.is_set()


@pytest.mark.parametrize("fault", ["503", "reset"])
def test_fault_of_a_moment_is_not_noticed(store: ObjectStore, store_proxy: StoreProxy, fault: StoreFault) -> None:
    store_proxy.fault, store_proxy.once = fault, True
    assert len(store.get("jobs/a/b/0.png")) == 300_000
    assert store_proxy.struck.is_set()


@pytest.mark.parametrize("call", ["put", "list"])
def test_bucket_that_is_not_there_is_a_store_that_is_away(bucket: str, call: str) -> None:
    with pytest.raises(UnavailableError):
        CALLS[call](ObjectStore("s3://nowhere/at-all", TIMEOUT_SECONDS))


def test_images_and_checkpoints_of_a_job_lie_in_a_bucket_until_it_is_deleted(bucket: str) -> None:
    images = ImageStore(bucket, TIMEOUT_SECONDS)
    image = images.put("job", "execution", 0, png(3))
    checkpoint = images.put_checkpoint("job", "execution", "numerics", b"state")
    other = images.put("other", "execution", 0, png(4))
    assert (images.get("job", image), images.get_checkpoint("job", checkpoint)) == (png(3), b"state")
    images.delete_job("job")
    assert [each.job_id for each in images.images()] == ["other"]
    assert images.get("other", other) == png(4)
    assert images.takes(png())
    assert len(list(images.images())) == 1, "trying left nothing"


def test_uploads_lie_in_a_bucket_and_one_that_is_away_costs_no_record(
    bucket: str, store_proxy: StoreProxy, redis: Redis, settings: Settings
) -> None:
    files = FileStore(redis, settings, ObjectStore(bucket, TIMEOUT_SECONDS))
    store_proxy.fault = "silent"
    with pytest.raises(UnavailableError):
        upload(files, png(5))
    assert redis.dbsize() == 0
    store_proxy.fault = "none"
    info = upload(files, png(5))
    assert files.png(info.id, ANONYMOUS)
    files.delete(info.id, ANONYMOUS)
    assert list(files._objects.list("files")) == []
