"""Folders and buckets of real S3-compatible servers, and what a bucket's faults cost: never more than a call's time."""

import re
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from redis import Redis

from jobs.contract.caller import ANONYMOUS
from jobs.contract.errors import UnavailableError
from jobs.settings import Settings
from jobs.storage.files import FileStore
from jobs.storage.images import ImageStore
from jobs.storage.store import ObjectStore
from jobs.storage.store import bucket as make_bucket
from tests.chaos.proxy import StoreFault, StoreProxy
from tests.jobs.samples import png, upload
from tests.seaweed_server import SeaweedServer
from tests.store_server import BUCKET, variables

pytestmark = pytest.mark.slow

TIMEOUT_SECONDS = 2.0
MARGIN_SECONDS = 20.0  # for a busy machine; without limits of ours a call would take three minutes

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


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedServer]:
    server = SeaweedServer(tmp_path_factory.mktemp("seaweed"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(params=["folder", "moto", "seaweedfs"])
def address(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty place of a store of each kind."""
    if request.param == "folder":
        return str(tmp_path / "neighbours" / "store")
    if request.param == "moto":
        return str(request.getfixturevalue("bucket"))
    for name, value in variables(request.getfixturevalue("seaweed").port).items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid4().hex}"


def test_every_store_keeps_the_same_contract(address: str) -> None:
    """put, get, has, delete, list and now; what is missing; bytes of every size and value."""
    store = ObjectStore(address, MARGIN_SECONDS)
    assert list(store.list("jobs")) == []
    began = store.now()
    contents = {"jobs/a/b/0.png": bytes(300_000), "jobs/a/c/1.png": b"one", "jobs/ab/0.png": b"", "files/x/y.png": b"x"}
    contents["jobs/large/d/0.png"] = bytes(range(256)) * 40_000
    for key, data in contents.items():
        store.put(key, data)
    assert {key: store.get(key) for key in contents} == contents
    assert all(store.has(key) for key in contents)
    store.put("jobs/a/c/1.png", b"two")
    assert store.get("jobs/a/c/1.png") == b"two"
    assert {each.key for each in store.list("jobs")} == {each for each in contents if each.startswith("jobs/")}
    assert {each.key for each in store.list("jobs/a")} == {"jobs/a/b/0.png", "jobs/a/c/1.png"}, "not jobs/ab"
    assert [each.key for each in store.list("jobs/a/c")] == ["jobs/a/c/1.png"]
    second = timedelta(seconds=1)  # to which some stores round
    assert all(began - second <= each.last_modified <= store.now() + second for each in store.list("jobs"))
    store.delete(["jobs/a/c/1.png", "jobs/a/c/1.png", "jobs/a/none.png"])
    assert not store.has("jobs/a/c/1.png")
    assert not store.has("jobs/a")
    for missing in ("jobs/a/c/1.png", "jobs/none/b/0.png", "jobs/a"):
        with pytest.raises(FileNotFoundError):
            store.get(missing)
    assert {each.key for each in store.list("")} == contents.keys() - {"jobs/a/c/1.png"}


def test_listing_of_more_objects_than_a_page_of_the_server_is_whole(address: str) -> None:
    store = ObjectStore(address, 20 * MARGIN_SECONDS)
    keys = {f"jobs/a/b/{index}.png" for index in range(1_005)}
    for key in keys:
        store.put(key, b"-")
    assert {each.key for each in store.list("jobs")} == keys


@pytest.mark.parametrize("way", ["jobs/../../{}/x", "../{}/x", "jobs/../../../x", "..", "jobs/..", "jobs//x", "a\0b"])
def test_key_with_a_way_out_of_the_store_names_nothing(address: str, way: str) -> None:
    """The key is refused before a disk or a server could resolve it, so files beside a store stay."""
    beside = address.rpartition("/")[0]
    neighbour = ObjectStore(f"{beside}/neighbour-{uuid4().hex}", MARGIN_SECONDS)
    neighbour.put("x", b"secret")
    store, key = ObjectStore(address, MARGIN_SECONDS), way.format("neighbour")
    with pytest.raises(FileNotFoundError):
        store.get(key)
    with pytest.raises(UnavailableError, match="cannot store the key"):
        store.put(key, b"new")
    store.put("jobs/other", b"kept")
    store.delete([key, "jobs/other"])
    assert not store.has(key)
    assert not store.has("jobs/other"), "what stands behind such a key is removed all the same"
    assert list(store.list(key)) == []
    assert neighbour.get("x") == b"secret"
    assert list(store.list("")) == []


@pytest.mark.parametrize("way", ["/x", "{}/x", "%2e%2e/x", "jobs/%2e%2e/%2e%2e/x", "jobs/..%2f..%2fx"])
def test_key_that_only_looks_like_a_way_out_names_an_object_of_the_store(address: str, way: str) -> None:
    beside = address.rpartition("/")[0]
    neighbour, store = ObjectStore(beside, MARGIN_SECONDS), ObjectStore(address, MARGIN_SECONDS)
    neighbour.put("x", b"secret")
    key = way.format(beside.removeprefix("s3:/"))
    with pytest.raises(FileNotFoundError):
        store.get(key)
    store.put(key, b"new")
    assert store.get(key) == b"new"
    assert neighbour.get("x") == b"secret"
    store.delete([key])
    assert not store.has(key)
    assert neighbour.get("x") == b"secret"


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
def test_missing_bucket_is_an_unavailable_store(bucket: str, call: str) -> None:
    with pytest.raises(UnavailableError):
        CALLS[call](ObjectStore("s3://nowhere/at-all", TIMEOUT_SECONDS))


def test_images_and_checkpoints_of_a_job_are_in_a_bucket_until_it_is_deleted(bucket: str) -> None:
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


def test_uploads_are_in_a_bucket_and_an_unavailable_one_costs_no_record(
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
    assert list(files._objects.list("files")) == []  # its own client, which waits as long as the test lets it
