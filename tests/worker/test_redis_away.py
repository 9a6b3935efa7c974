"""A Redis that answers, but takes no writes for a while, costs no job and no worker."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Timer

import pytest
from redis import Redis

from jobs.job import JobStatus, Progress
from tests.conftest import RedisServer
from tests.jobs.samples import worker_info
from tests.refusals import REFUSALS, Refusal, out_of_memory
from tests.worker.conftest import Bench
from tests.worker.programs import Client, Start, eventually
from worker.inbox import Inbox


@contextmanager
def ended(end: Callable[[], object], after_seconds: float) -> Iterator[None]:
    timer = Timer(after_seconds, end)
    timer.start()
    try:
        yield
    finally:
        timer.join()


@pytest.mark.parametrize("refuse", REFUSALS)
def test_redis_that_takes_no_writes_is_waited_for(
    bench: Bench, inbox: Inbox, redis: Redis, redis_server: RedisServer, refuse: Refusal
) -> None:
    first, second = bench.submit(), bench.submit()
    (claim,) = bench.claim(inbox, room=1)
    with ended(refuse(redis, redis_server.folder), 0.5):
        assert inbox.poll(room=1, wait_seconds=0) == []
        assert inbox.heartbeat(worker_info(), "") == []
        inbox.progress(claim, Progress(stage="base", step=1, steps=25, fraction=0.1))
        assert bench.finish(inbox, claim)
    assert bench.events(first) == ["queued", "started", "image", "completed"]
    (claim,) = bench.claim(inbox)
    assert (claim.job_id, claim.attempt) == (second, 1)


@pytest.mark.slow
def test_worker_whose_redis_is_full_goes_on_and_writes_its_results_later(
    start: Start, client: Client, redis: Redis, redis_server: RedisServer
) -> None:
    worker = start(ADM_LEASE_SECONDS="60")
    worker.wait_ready()
    job_ids = [client.submit(steps=steps) for steps in (100, 150)]
    client.wait_started(job_ids[1])
    end = out_of_memory(redis, redis_server.folder)
    eventually(lambda: "used memory" in worker.output, "the worker is told")
    time.sleep(2)
    assert [client.job(each).status for each in job_ids] == [JobStatus.IN_PROGRESS] * 2
    end()
    for job in client.wait_all(job_ids):
        assert (job.status, job.attempt) == (JobStatus.COMPLETED, 1)
        assert client.events(job.id).count("completed") == 1
    assert worker.process.poll() is None
