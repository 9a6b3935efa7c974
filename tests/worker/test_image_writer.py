"""Images are encoded and stored on other threads: the loop continues meanwhile, and each job ends once."""

import json
import time
from collections.abc import Callable, Iterator
from threading import Event
from typing import Any

import obstore
import pytest
from obstore.exceptions import GenericError
from redis import Redis
from structlog.testing import capture_logs

from jobs.contract.errors import FailureKind
from jobs.contract.job import JobStatus
from jobs.redis import keys
from jobs.settings import Settings
from jobs.storage.files import FileStore
from jobs.storage.images import PROBE
from tests.waiting import eventually
from tests.worker.conftest import Bench, OpenInbox
from tests.worker.programs import Shift
from worker import attempts, image_writer, store_retries
from worker.loaded_pipelines import LoadedPipelines
from worker.loop import Worker

pytestmark = pytest.mark.slow

put = obstore.put


class Door:
    """Stands before the store: while it is shut, each call that stores an image waits."""

    def __init__(self) -> None:
        self.open, self.reached = Event(), Event()
        self.refuses: Callable[[str], bool] = lambda key: False
        self.open.set()

    def put(self, store: Any, key: str, data: bytes, **options: Any) -> Any:
        if key.endswith(".png"):
            self.reached.set()
            assert self.open.wait(120)
        if self.refuses(key):
            raise GenericError("refused")
        return put(store, key, data, **options)


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> Door:
    door = Door()
    monkeypatch.setattr(obstore, "put", door.put)
    return door


@pytest.fixture
def serve(
    loaded: LoadedPipelines, open_inbox: OpenInbox, bench: Bench, redis: Redis, settings: Settings, door: Door
) -> Iterator[Callable[..., Shift]]:
    shifts: list[Shift] = []

    def serve_(**changes: object) -> Shift:
        files = FileStore(redis, settings, bench.images.objects)
        changed = settings.model_copy(update={"heartbeat_seconds": 0.1, **changes})
        shifts.append(Shift(Worker(loaded, open_inbox(), bench.images, files, changed)))
        return shifts[-1]

    yield serve_
    door.open.set()
    for each in shifts:
        each.end()


def submit(bench: Bench, **fields: object) -> str:
    return bench.submit(**{"steps": 1, "upsample": False} | fields)


def completed(bench: Bench, *job_ids: str) -> bool:
    return all(bench.status(each) == "completed" for each in job_ids)


def ended_once(bench: Bench, job_id: str) -> bool:
    ends = [each for each in bench.events(job_id) if JobStatus.__members__.get(each.upper(), JobStatus.QUEUED).is_final]
    return ends == [bench.status(job_id)] and bench.events(job_id)[-1] == ends[0]


def test_engine_steps_on_while_an_image_is_before_the_store(
    bench: Bench, loaded: LoadedPipelines, serve: Callable[..., Shift], door: Door
) -> None:
    door.open.clear()
    first = submit(bench)
    serve()
    assert door.reached.wait(60)
    steps: list[int] = []
    network = loaded.engine.stages["demo/base"].networks.network
    hook = network.register_forward_pre_hook(lambda module, inputs: steps.append(len(inputs[0])))
    second = submit(bench, steps=20)
    eventually(lambda: len(steps) >= 20, "another job takes all its steps")
    hook.remove()
    assert (bench.status(first), bench.status(second)) == ("in_progress", "in_progress")
    door.open.set()
    eventually(lambda: completed(bench, first, second), "both end")
    assert ended_once(bench, first)
    assert ended_once(bench, second)


def test_worker_with_too_many_unstored_images_takes_no_step_but_stays_alive(
    bench: Bench, serve: Callable[..., Shift], door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_writer, "MAX_PENDING", 1)
    door.open.clear()
    four = submit(bench, n=4)
    serve()
    assert door.reached.wait(60)
    another = submit(bench)

    def beats() -> float:
        workers = bench.queue.fleet.read(fresh=True).workers
        return workers[0].last_heartbeat if workers else 0.0

    for _ in range(2):
        last = beats()
        eventually(lambda last=last: beats() > last, "a heartbeat")  # type: ignore[misc] # bound now
    assert bench.status(another) == "queued"
    door.open.set()
    eventually(lambda: completed(bench, four, another), "both end")
    assert [each.index for each in bench.queue.get(four).images] == [0, 1, 2, 3]
    assert ended_once(bench, four)


def test_late_image_of_a_cancelled_job_is_forgotten(bench: Bench, serve: Callable[..., Shift], door: Door) -> None:
    door.open.clear()
    job_id = submit(bench, n=2)
    serve()
    assert door.reached.wait(60)
    bench.queue.cancel(job_id)
    eventually(lambda: bench.status(job_id) == "cancelled", "it is cancelled")
    door.open.set()
    next_one = submit(bench)
    eventually(lambda: completed(bench, next_one), "the next one ends")
    assert bench.queue.get(job_id).images == []
    assert ended_once(bench, job_id)
    bench.queue.delete(job_id)
    assert list(bench.images.images(job_id)) == []


def test_job_is_requeued_while_the_store_is_unavailable_and_completes_once(
    bench: Bench, serve: Callable[..., Shift], door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_retries, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(store_retries, "MOMENT_SECONDS", 0.1)
    monkeypatch.setattr(attempts, "PAUSE_SECONDS", 0.1)
    door.refuses = lambda key: True
    job_ids = [submit(bench, n=3), submit(bench)]
    serve()
    eventually(lambda: all(bench.events(each).count("queued") > 1 for each in job_ids), "they go back")
    door.refuses = lambda key: False
    eventually(lambda: completed(bench, *job_ids), "they end")
    for each in job_ids:
        assert ended_once(bench, each)
        assert bench.queue.ledger.read(each).retries_left == 3  # type: ignore[union-attr] # it exists


def test_images_that_wait_behind_a_silent_store_do_not_each_wait_for_calls_of_their_own(
    bench: Bench, serve: Callable[..., Shift], door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_retries, "PATIENCE_SECONDS", 0.5)
    calls: list[str] = []

    def answers_late(key: str) -> bool:
        calls.append(key)
        time.sleep(1)
        return True

    door.refuses = answers_late
    job_ids = [submit(bench) for _ in range(8)]
    serve()
    eventually(lambda: all(bench.events(each).count("queued") > 1 for each in job_ids), "all go back")
    assert len(calls) <= 4, "two for the first image, and perhaps for one that was computed later"
    door.refuses = lambda key: False
    eventually(lambda: completed(bench, *job_ids), "they end")


def test_job_whose_images_the_store_never_takes_fails_alone(
    bench: Bench, serve: Callable[..., Shift], door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_retries, "FIRST_PAUSE_SECONDS", 0.01)
    bad, good = submit(bench), submit(bench, n=2)
    door.refuses = lambda key: bad in key and PROBE not in key
    serve()
    eventually(lambda: bench.status(bad) == "failed" and completed(bench, good), "both end")
    error = bench.queue.get(bad).error
    assert error is not None
    assert error.kind is FailureKind.STORE_FAILED
    assert ended_once(bench, bad)


def test_draining_worker_waits_for_unstored_images(bench: Bench, serve: Callable[..., Shift], door: Door) -> None:
    door.open.clear()
    job_id = submit(bench, n=2)
    shift = serve(drain_seconds=60)
    assert door.reached.wait(60)
    shift.stopping.set()
    door.open.set()
    shift.end()
    assert completed(bench, job_id)
    assert ended_once(bench, job_id)


def test_job_with_unstored_images_is_requeued_when_the_drain_time_is_over_and_continues_from_its_checkpoint(
    bench: Bench, serve: Callable[..., Shift], door: Door
) -> None:
    often = {"checkpoint_seconds": 1e-6, "drain_seconds": 0}
    undisturbed = submit(bench, n=2, steps=5, sampler="ddpm")
    shift = serve(**often)
    eventually(lambda: completed(bench, undisturbed), "it ends")
    door.reached.clear()
    door.open.clear()
    job_id = submit(bench, n=2, steps=5, sampler="ddpm")
    assert door.reached.wait(60)
    shift.stopping.set()
    eventually(lambda: bench.status(job_id) == "queued", "it goes back")
    door.open.set()
    shift.end()
    assert bench.status(job_id) == "queued", "its late images are forgotten"
    with capture_logs() as logs:
        serve(**often)
        eventually(lambda: completed(bench, job_id), "it ends after all")
    assert [each["event"] for each in logs if each["event"] in ("resumed", "starts_over")] == ["resumed"]
    assert ended_once(bench, job_id)
    first, second = (bench.queue.get(each) for each in (undisturbed, job_id))
    assert [each.sha256 for each in first.images] == [each.sha256 for each in second.images]
    assert (first.usage.steps, second.usage.steps) == (10, 10)


def test_requeued_jobs_keep_the_order_they_came_in(bench: Bench, serve: Callable[..., Shift]) -> None:
    job_ids = [submit(bench, steps=1000) for _ in range(3)]
    shift = serve(drain_seconds=0)
    eventually(lambda: all(bench.status(each) == "in_progress" for each in job_ids), "all run")
    shift.end()
    queued = [bench.queue.get(each).queue for each in job_ids]
    assert [each.position for each in queued if each] == [0, 1, 2]


def test_preview_comes_before_its_image(bench: Bench, serve: Callable[..., Shift], redis: Redis) -> None:
    job_id = submit(bench, previews=True, steps=2)
    listener = redis.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call] # untyped there
    listener.subscribe(keys.channel(job_id))
    listener.get_message(timeout=1)  # the confirmation
    serve()
    eventually(lambda: completed(bench, job_id), "it ends")
    announced = [message["data"] for message in iter(lambda: listener.get_message(timeout=0.1), None) if message]
    listener.close()
    shown = json.loads(next(each for each in announced if each))
    assert (shown["index"], shown["step"], shown["steps"]) == (0, 1, 2)
