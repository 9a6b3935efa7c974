"""A worker whose images, uploads and checkpoints are in a bucket: the bucket's faults cost time, but no job."""

import hashlib
import signal
import time

import pytest

from jobs.contract.job import Job, JobStatus
from jobs.settings import Settings
from tests.chaos.proxy import StoreFault, StoreProxy
from tests.waiting import eventually
from tests.worker.programs import Client, Start, WorkerProcess
from tests.worker.test_checkpoints import LONG, OFTEN, hashes, logged, wait_checkpointed
from tests.worker.test_kinds_of_jobs import upload

pytestmark = pytest.mark.slow

FAULTS: list[StoreFault] = ["slow", "503", "reset", "silent", "stalls"]


@pytest.fixture
def worker_settings(worker_settings: Settings, bucket: str) -> Settings:
    return worker_settings.model_copy(update={"store": bucket})


@pytest.fixture
def worker(client: Client, start: Start, worker_settings: Settings) -> WorkerProcess:
    return start_on(start, worker_settings)


def start_on(start: Start, settings: Settings, **variables: str) -> WorkerProcess:
    worker = start(ADM_STORE=settings.store_address, ADM_STORE_TIMEOUT_SECONDS="2", **variables)
    worker.wait_ready()
    return worker


def check_completed_once(client: Client, job: Job) -> None:
    assert job.status is JobStatus.COMPLETED, job.error
    assert client.events(job.id).count("completed") == 1
    for image, png in zip(job.images, client.bytes_of(job), strict=True):
        assert hashlib.sha256(png).hexdigest() == image.sha256


def test_jobs_complete_once_whatever_the_store_does(
    worker: WorkerProcess, client: Client, store_proxy: StoreProxy
) -> None:
    file_id = upload(client, "red")
    bodies: list[dict[str, object]] = [
        {"class_label": "cube", "steps": 5, "n": 2, "seed": 1},
        {"kind": "reconstruct", "images": [file_id], "steps": 3},
    ]
    undisturbed = [hashes(job) for job in client.wait_all([client.post(body) for body in bodies])]
    for fault in FAULTS:
        store_proxy.struck.clear()
        store_proxy.fault = fault
        job_ids = [client.post(body) for body in bodies]
        assert store_proxy.struck.wait(60)
        if fault == "silent":
            eventually(lambda: "store_unavailable" in worker.output, "the jobs go back")
        store_proxy.fault = "none"
        jobs = client.wait_all(job_ids)
        for job in jobs:
            check_completed_once(client, job)
        assert [hashes(job) for job in jobs] == undisturbed
    assert worker.process.poll() is None


def test_next_worker_continues_from_a_checkpoint_in_the_bucket(
    start: Start, client: Client, worker_settings: Settings
) -> None:
    worker = start_on(start, worker_settings, **OFTEN)
    (undisturbed,) = client.wait_all([client.post(LONG)])
    job_id = client.post(LONG)
    wait_checkpointed(worker, client, job_id)
    worker.kill(signal.SIGKILL)
    second = start_on(start, worker_settings, **OFTEN)
    (job,) = client.wait_all([job_id])
    assert (job.attempt, hashes(job)) == (2, hashes(undisturbed))
    assert len(logged(second, "resumed", job_id)) == 1
    eventually(lambda: len(list(client.store.images(job_id))) == len(job.images), "no checkpoint is left")


def test_stopped_worker_waits_for_a_silent_store_no_longer_than_its_calls_may_take(
    start: Start, client: Client, worker_settings: Settings, store_proxy: StoreProxy
) -> None:
    worker = start_on(start, worker_settings, ADM_DRAIN_SECONDS="0", **OFTEN)
    job_id = client.post(LONG)
    wait_checkpointed(worker, client, job_id)
    store_proxy.fault = "silent"
    store_proxy.struck.clear()
    assert store_proxy.struck.wait(60)
    started = time.monotonic()
    assert worker.kill(signal.SIGTERM) == 0
    assert time.monotonic() - started < 150, "a drain without an end would be killed after twice that"
    assert client.job(job_id).status is JobStatus.QUEUED
