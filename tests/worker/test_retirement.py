"""Pipelines without a worker, and names of workers that were killed."""

import time

import httpx2
import pytest
from redis import Redis

from jobs.contract.errors import ErrorKind, FieldError, InvalidRequestError, RefusedError
from jobs.queue.cleaner import Cleaner
from jobs.queue.retirement import Retirement
from jobs.redis import keys
from jobs.settings import Settings
from tests.jobs.samples import worker_info
from tests.service.conftest import running_service
from tests.waiting import eventually
from tests.worker.conftest import Bench, OpenInbox
from worker.inbox import Inbox

HOUR = 3600.0


def retirement(bench: Bench, after_seconds: float = 0) -> Retirement:
    return Retirement(bench.redis, bench.queue.ledger, bench.queue.fleet, after_seconds)


def known(bench: Bench) -> list[str]:
    return list(bench.queue.fleet.read(fresh=True).pipelines)


def kill(redis: Redis, name: str) -> None:
    """The traces of a killed worker after the end of its lease."""
    redis.delete(keys.worker(name), keys.worker_metrics(name), keys.worker_process(name), f"rq:worker:{name}")


def test_pipeline_that_no_worker_serves_is_known_for_its_time_and_then_retired(bench: Bench) -> None:
    assert retirement(bench, HOUR).retire_pipelines() == []
    assert known(bench) == ["demo", "demo-uncond"]
    assert retirement(bench).retire_pipelines() == ["demo", "demo-uncond"]
    assert known(bench) == []


def test_pipeline_that_a_worker_serves_is_never_retired(bench: Bench, inbox: Inbox) -> None:
    inbox.heartbeat(worker_info(pipelines=("demo",)), "")
    assert retirement(bench).retire_pipelines() == ["demo-uncond"]
    assert retirement(bench).retire_pipelines() == []
    assert known(bench) == ["demo"]


def test_time_without_a_worker_starts_again_when_one_comes_back(
    bench: Bench, inbox: Inbox, open_inbox: OpenInbox
) -> None:
    retirement(bench, HOUR).retire_pipelines()
    inbox.heartbeat(worker_info(), "")
    retirement(bench, HOUR).retire_pipelines()
    assert bench.redis.zcard(keys.UNHELD) == 0
    inbox.close()
    retirement(bench, HOUR).retire_pipelines()
    assert bench.redis.zcard(keys.UNHELD) == 2
    open_inbox("cpu-1")
    assert bench.redis.zcard(keys.UNHELD) == 0


def test_worker_that_comes_back_makes_its_retired_pipelines_known_again(bench: Bench, inbox: Inbox) -> None:
    retirement(bench).retire_pipelines()
    inbox.heartbeat(worker_info(), "")
    assert known(bench) == ["demo", "demo-uncond"]


def test_job_for_a_retired_pipeline_is_refused_with_those_there_are(bench: Bench, inbox: Inbox) -> None:
    inbox.heartbeat(worker_info(pipelines=("demo",)), "")
    retirement(bench).retire_pipelines()
    with pytest.raises(InvalidRequestError) as caught:
        bench.submit(model="demo-uncond")
    assert caught.value.errors == (FieldError("/model", "unknown pipeline 'demo-uncond'; there are: demo"),)


def test_while_no_pipeline_is_known_a_job_is_refused_for_now(bench: Bench) -> None:
    retirement(bench).retire_pipelines()
    with pytest.raises(RefusedError) as caught:
        bench.submit()
    assert (caught.value.kind, str(caught.value)) == (
        ErrorKind.UNAVAILABLE,
        "no worker has loaded the pipeline 'demo' yet",
    )
    assert caught.value.retry_after_seconds


def test_job_that_was_queued_for_a_retired_pipeline_is_found_until_it_expires(bench: Bench, redis: Redis) -> None:
    job_id = bench.submit(expires_in=1)
    retirement(bench).retire_pipelines()
    job = bench.queue.get(job_id)
    assert job.queue is not None
    assert (job.status, job.queue.position, job.queue.workers) == ("queued", 0, 0)
    assert [each.id for each in bench.queue.page().data] == [job_id]
    while bench.queue.ledger.now() < job.expires_at:  # Redis' time, and older than it by a round trip
        time.sleep(0.01)
    Cleaner(redis, bench.queue.ledger, bench.images, bench.queue.files, lease_seconds=30).expire_jobs()
    assert bench.status(job_id) == "expired"


def test_names_of_killed_workers_are_forgotten_and_those_of_living_ones_are_not(
    bench: Bench, inbox: Inbox, open_inbox: OpenInbox, redis: Redis
) -> None:
    for number in range(3):
        killed = open_inbox(f"host-{number}")
        killed.heartbeat(worker_info(f"host-{number}"), "")
        kill(redis, f"host-{number}")
    inbox.heartbeat(worker_info(), "")
    assert redis.scard(keys.WORKERS) == redis.scard("rq:workers") == 4
    assert retirement(bench).forget_dead_workers() == 3
    assert redis.smembers(keys.WORKERS) == {b"cpu-0"}
    for key in ("rq:workers", "rq:workers:adm:demo:normal", "rq:workers:adm:demo-uncond:low"):
        assert redis.smembers(key) == {b"rq:worker:cpu-0"}
    assert retirement(bench).forget_dead_workers() == 0


@pytest.mark.process
@pytest.mark.slow
def test_service_is_not_degraded_for_ever_by_a_pipeline_that_is_gone(
    bench: Bench, inbox: Inbox, settings: Settings, redis: Redis
) -> None:
    inbox.heartbeat(worker_info(pipelines=("demo",)), "")
    with (
        running_service(settings, ADM_SWEEP_SECONDS="0.1") as (address, _, lines),
        httpx2.Client(base_url=address, timeout=60) as client,
    ):
        assert client.get("/healthz").json()["status"] == "degraded"
        eventually(lambda: redis.zadd(keys.UNHELD, {"demo-uncond": 1}, xx=True, ch=True) == 1, "it is noted, long ago")
        while not any('"event": "retired"' in line for line in lines):
            time.sleep(0.05)
        health = client.get("/healthz").json()
        assert (health["status"], [each["id"] for each in health["pipelines"]]) == ("ok", ["demo"])
        assert [each["id"] for each in client.get("/v1/models").json()["data"]] == ["demo"]
