"""The engine's thread waits for the device alone: not for the store, not for pictures, not for Redis."""

import io
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import obstore
import pytest
from PIL import Image
from redis import Redis
from structlog.testing import capture_logs

from jobs.settings import Settings
from jobs.storage.files import FileStore
from tests.chaos.proxy import StoreProxy
from tests.conftest import RedisServer
from tests.jobs.samples import upload as keep
from tests.refusals import REFUSALS, Refusal
from tests.waiting import eventually
from tests.worker.conftest import Bench, OpenInbox
from tests.worker.programs import Shift
from tests.worker.test_image_writer import completed, ended_once, submit
from worker.loaded_pipelines import LoadedPipelines
from worker.loop import Worker

pytestmark = pytest.mark.slow

MANY = 20  # steps: more than could be on their way when something begins to block


@pytest.fixture
def settings(settings: Settings, bucket: str) -> Settings:
    """Workers wait for a silent store for as long as any test takes."""
    return settings.model_copy(update={"store": bucket, "store_timeout_seconds": 600.0, "heartbeat_seconds": 0.1})


@pytest.fixture
def steps(loaded: LoadedPipelines) -> Iterator[list[int]]:
    """The rows of each step of the base stage."""
    taken: list[int] = []
    network = loaded.engine.stages["demo/base"].networks.network
    hook = network.register_forward_pre_hook(lambda module, inputs: taken.append(len(inputs[0])))
    yield taken
    hook.remove()


Serve = Callable[..., Shift]


@pytest.fixture
def serve(
    loaded: LoadedPipelines,
    open_inbox: OpenInbox,
    bench: Bench,
    redis: Redis,
    settings: Settings,
    store_proxy: StoreProxy,
) -> Iterator[Serve]:
    shifts: list[Shift] = []

    def serve_(**changes: object) -> Shift:
        files = FileStore(redis, settings, bench.images.objects)
        changed = settings.model_copy(update=changes)
        shifts.append(Shift(Worker(loaded, open_inbox(), bench.images, files, changed)))
        return shifts[-1]

    yield serve_
    mend(store_proxy)
    for each in shifts:
        each.end()


def mend(store_proxy: StoreProxy) -> None:
    """End the store's fault, and cut the calls that wait for an answer that will never come."""
    store_proxy.fault = "none"
    store_proxy.cut()


def upload(bench: Bench) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(buffer, "PNG")
    return keep(bench.queue.files, buffer.getvalue()).id


def from_picture(bench: Bench, store_proxy: StoreProxy) -> str:
    """A job whose picture the store never sends."""
    file_id = upload(bench)
    store_proxy.fault = "silent"
    return bench.submit(kind="reconstruct", class_label=None, guidance_scale=None, seed=None, images=[file_id], steps=2)


def test_steps_continue_while_a_picture_is_fetched(
    bench: Bench, serve: Serve, steps: list[int], store_proxy: StoreProxy
) -> None:
    waits = from_picture(bench, store_proxy)
    serve()
    assert store_proxy.struck.wait(60)
    other = submit(bench, steps=MANY)
    eventually(lambda: len(steps) >= MANY, "another job takes all its steps")
    assert bench.status(waits) == "in_progress", "it is claimed"
    mend(store_proxy)
    eventually(lambda: completed(bench, waits, other), "both end")
    assert ended_once(bench, waits)


def test_job_whose_picture_is_fetched_is_cancelled_at_once(bench: Bench, serve: Serve, store_proxy: StoreProxy) -> None:
    job_id = from_picture(bench, store_proxy)
    serve()
    assert store_proxy.struck.wait(60)
    bench.queue.cancel(job_id)
    eventually(lambda: bench.status(job_id) == "cancelled", "it is cancelled, though the store says nothing")
    mend(store_proxy)
    next_one = submit(bench)
    eventually(lambda: completed(bench, next_one), "the next one ends")
    assert ended_once(bench, job_id)


def test_job_whose_picture_is_fetched_is_requeued_by_the_drain_and_keeps_its_lease_until_then(
    bench: Bench, serve: Serve, store_proxy: StoreProxy, redis: Redis
) -> None:
    job_id = from_picture(bench, store_proxy)
    shift = serve(drain_seconds=0)
    assert store_proxy.struck.wait(60)
    record = bench.queue.ledger.read(job_id)
    assert record is not None
    member = f"{job_id}:{record.token}"
    first = redis.zscore("adm:leases", member)
    eventually(lambda: (redis.zscore("adm:leases", member) or 0) > (first or 0), "its lease is extended")
    shift.stopping.set()
    eventually(lambda: bench.status(job_id) == "queued", "it goes back")
    mend(store_proxy)
    shift.end()
    assert bench.status(job_id) == "queued"


def test_steps_continue_while_a_checkpoint_is_written_and_it_is_named_only_when_it_is_stored(
    bench: Bench, serve: Serve, steps: list[int], store_proxy: StoreProxy
) -> None:
    store_proxy.fault = "silent"
    job_id = submit(bench, steps=MANY, n=2)
    with capture_logs() as logs:
        serve(checkpoint_seconds=1e-6)
        assert store_proxy.struck.wait(60)
        eventually(lambda: len(steps) >= MANY, "all steps are taken")
        record = bench.queue.ledger.read(job_id)
        assert record is not None
        assert record.checkpoint is None
        mend(store_proxy)
        eventually(lambda: completed(bench, job_id), "it ends")
    assert [each["event"] for each in logs if each["event"] == "step_failed"] == []
    assert ended_once(bench, job_id)
    eventually(lambda: len(list(bench.images.images(job_id))) == 2, "the images are left, and no checkpoint")


def hang(redis: Redis, folder: Path) -> Callable[[], None]:
    """Let Redis take connections and answer nothing; returns what ends that."""
    pid = int(redis.info("server")["process_id"])
    os.kill(pid, signal.SIGSTOP)
    return lambda: os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("refuse", [hang, *REFUSALS])
def test_steps_continue_while_a_result_waits_for_redis_and_it_is_written_once(
    bench: Bench,
    serve: Serve,
    steps: list[int],
    redis: Redis,
    redis_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
    refuse: Refusal,
) -> None:
    put, at_the_store, open_, stored = obstore.put, Event(), Event(), Event()

    def put_when_open(*args: Any, **options: Any) -> Any:
        at_the_store.set()
        assert open_.wait(120)
        outcome = put(*args, **options)
        stored.set()
        return outcome

    monkeypatch.setattr(obstore, "put", put_when_open)
    short = submit(bench)
    long = submit(bench, steps=1000, n=2)
    serve()
    assert at_the_store.wait(60)
    eventually(lambda: bench.status(long) == "in_progress", "the other job is claimed")
    end = refuse(redis, redis_server.folder)
    try:
        open_.set()
        assert stored.wait(60)
        before = len(steps)
        eventually(lambda: len(steps) >= before + MANY, "steps go on")
    finally:
        end()
    eventually(lambda: completed(bench, short), "its result is written when Redis is back")
    assert ended_once(bench, short)
    assert bench.queue.get(short).attempt == 1
    bench.queue.cancel(long)
    eventually(lambda: bench.status(long) == "cancelled", "the worker hears of it")
    assert ended_once(bench, long)
