"""A Redis that is unreachable, or answers but refuses writes for a while, costs no job and no worker."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

import pytest
from redis import Redis

from jobs.contract.job import JobStatus, Progress
from jobs.settings import Settings
from tests.conftest import RedisServer
from tests.jobs.samples import DEMO, png, worker_info
from tests.refusals import REFUSALS, Refusal, out_of_memory
from tests.waiting import eventually
from tests.worker.conftest import Bench
from tests.worker.names import owned
from tests.worker.programs import Client, Start
from worker.claim import Cancel
from worker.inbox import Inbox
from worker.stopping import Stopping


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
        inbox.reports.progress((claim, Progress(stage="base", step=1, steps=25, fraction=0.1)))
        assert bench.finish(inbox, claim)
    assert bench.events(first) == ["queued", "started", "image", "completed"]
    (claim,) = bench.claim(inbox)
    assert (claim.job_id, claim.attempt) == (second, 1)


def test_redis_that_comes_back_empty_knows_the_worker_and_its_pipelines_again(
    bench: Bench, inbox: Inbox, redis: Redis
) -> None:
    bench.submit()
    (claim,) = bench.claim(inbox)
    redis.flushall()
    assert inbox.heartbeat(worker_info(), "") == [claim.job_id]
    fleet = bench.queue.fleet.read(fresh=True)
    assert ([*fleet.pipelines], [each.name for each in fleet.workers]) == (["demo", "demo-uncond"], ["cpu-0"])
    job_id = bench.submit()
    (claim,) = bench.claim(inbox)
    assert claim.job_id == job_id
    assert bench.finish(inbox, claim)


@pytest.mark.slow
def test_claim_is_given_up_when_its_image_could_not_be_reported_for_as_long_as_a_lease(
    bench: Bench, settings: Settings, redis: Redis, redis_server: RedisServer
) -> None:
    own = redis_server.client()
    inbox = Inbox(
        own, settings.model_copy(update={"lease_seconds": 1, "heartbeat_seconds": 0.25}), owned("cpu-9"), [DEMO]
    )
    inbox.open()
    job_id = bench.submit(n=2)
    (claim,) = bench.claim(inbox)
    image = bench.images.put(job_id, claim.token, 0, png(1))
    end = out_of_memory(redis, redis_server.folder)
    assert not inbox.results.image_ready(claim, image)
    end()
    inbox.heartbeat(worker_info("cpu-9"), "")
    (again,) = bench.claim(inbox)
    assert (again.job_id, again.attempt) == (job_id, 2)
    inbox.close()
    own.close()


@pytest.mark.slow
def test_worker_whose_redis_is_full_continues_and_writes_its_results_later(
    start: Start, client: Client, redis: Redis, redis_server: RedisServer
) -> None:
    worker = start()
    worker.wait_ready()
    job_ids = [client.submit(steps=steps) for steps in (100, 150)]
    client.wait_started(job_ids[1])
    end = out_of_memory(redis, redis_server.folder)
    eventually(lambda: "used memory" in worker.output, "the worker logs it")
    time.sleep(2)
    assert [client.job(each).status for each in job_ids] == [JobStatus.IN_PROGRESS] * 2
    end()
    for job in client.wait_all(job_ids):
        assert (job.status, job.attempt) == (JobStatus.COMPLETED, 1)
        assert client.events(job.id).count("completed") == 1
    assert worker.process.poll() is None


@pytest.mark.slow
def test_worker_rides_out_a_restart_of_redis(tmp_path: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="adm-", dir="/tmp"))
    server = RedisServer(folder)
    server.start()
    settings = Settings(data=tmp_path, redis_url=server.address)
    client, own = server.client(), server.client()
    inbox = Inbox(own, settings, owned("cpu-0"), [DEMO])
    inbox.open()
    bench = Bench(client, settings)
    first, second = bench.submit(), bench.submit()
    (claim, _) = bench.claim(inbox)
    server.stop()
    assert inbox.poll(room=1, wait_seconds=0) == []
    assert inbox.heartbeat(worker_info(), "") == []
    inbox.extend()
    inbox.reports.progress((claim, Progress(stage="base", step=1, steps=25, fraction=0.1)))
    starter = Timer(0.3, server.start)
    starter.start()
    assert bench.finish(inbox, claim)
    starter.join()
    assert bench.status(first) == "completed"
    assert inbox.heartbeat(worker_info(), "") == []
    assert inbox.poll(room=0, wait_seconds=0) == []  # finds that its subscription is gone
    assert inbox.poll(room=0, wait_seconds=0) == []  # subscribes again
    bench.queue.cancel(second)
    assert inbox.poll(room=0, wait_seconds=1) == [Cancel(second)]
    server.stop()
    inbox.close()  # without Redis is no failure: what was announced expires
    shutil.rmtree(folder)


@pytest.mark.slow
def test_redis_that_stays_unavailable_past_the_lease_fails_no_drain(tmp_path: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="adm-", dir="/tmp"))
    server = RedisServer(folder)
    server.start()
    client, own = server.client(), server.client()
    inbox = Inbox(own, Settings(data=tmp_path, redis_url=server.address, lease_seconds=2), owned("cpu-0"), [DEMO])
    inbox.open()
    bench = Bench(client, Settings(data=tmp_path, redis_url=server.address))
    for _ in range(8):
        bench.submit()
    claims = bench.claim(inbox)
    server.stop()
    assert [inbox.results.requeue(each) for each in claims] == [False] * 8
    shutil.rmtree(folder)


@pytest.mark.slow
def test_stopping_worker_waits_for_redis_no_longer_than_the_drain(tmp_path: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="adm-", dir="/tmp"))
    server = RedisServer(folder)
    server.start()
    settings = Settings(data=tmp_path, redis_url=server.address, lease_seconds=1000, drain_seconds=1)
    stopping = Stopping()
    inbox = Inbox(server.client(), settings, owned("cpu-0"), [DEMO], stopping=stopping)
    inbox.open()
    bench = Bench(server.client(), settings)
    bench.submit()
    (claim,) = bench.claim(inbox)
    server.stop()
    stop = Timer(0.3, stopping.set)
    stop.start()
    assert not inbox.results.requeue(claim)
    assert stopping.is_set()
    shutil.rmtree(folder)
