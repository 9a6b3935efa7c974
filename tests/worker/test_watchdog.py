"""A job keeps its worker through a step longer than a lease; a worker whose device hangs gives up its jobs."""

import signal
import time
from pathlib import Path
from threading import Event, Thread
from threading import enumerate as living_threads

import pytest
import torch
from redis import Redis
from torch import Tensor, nn

from jobs.contract.job import JobStatus, Progress
from jobs.redis import keys, rq_keys
from jobs.settings import Settings
from jobs.storage.files import FileStore
from tests.conftest import RedisServer
from tests.jobs.samples import worker_info
from tests.refusals import REFUSALS, Refusal
from tests.waiting import eventually
from tests.worker.conftest import Bench, OpenInbox
from tests.worker.programs import Client, Start
from worker.claim import Claim
from worker.inbox import Inbox
from worker.loading import load
from worker.loop import Worker
from worker.stopping import Stopping
from worker.watchdog import Watchdog

pytestmark = pytest.mark.redis


def lease_of(claim: Claim) -> str:
    return f"{claim.job_id}:{claim.token}"


def test_leases_and_signs_of_life_are_extended(bench: Bench, inbox: Inbox, redis: Redis) -> None:
    bench.submit()
    (claim,) = bench.claim(inbox)
    inbox.heartbeat(worker_info("cpu-0"), "")
    inbox.reports.progress((claim, Progress(stage="base", step=1, steps=25, fraction=0.1)))
    signs = [keys.worker("cpu-0"), keys.worker_metrics("cpu-0"), keys.worker_process("cpu-0"), "rq:worker:cpu-0"]
    signs += [keys.progress(claim.job_id), rq_keys.executions_key("cpu-0")]
    redis.zadd(keys.LEASES, {lease_of(claim): time.time() + 5})
    for each in signs:
        assert redis.expire(each, 5), each
    inbox.extend()
    for each in signs:
        assert redis.ttl(each) > 20, each
    assert (redis.zscore(keys.LEASES, lease_of(claim)) or 0) > time.time() + 20


def test_lease_that_was_taken_back_is_not_extended(
    bench: Bench, inbox: Inbox, open_inbox: OpenInbox, redis: Redis
) -> None:
    job_id = bench.submit()
    (lost,) = bench.claim(inbox)
    bench.queue.ledger.recover(job_id, lost.token)
    inbox.extend()
    assert redis.zrange(keys.LEASES, 0, -1) == []
    (claim,) = bench.claim(open_inbox("cpu-1"))
    redis.zadd(keys.LEASES, {lease_of(claim): 5})
    inbox.extend()
    assert redis.zscore(keys.LEASES, lease_of(claim)) == 5
    assert redis.zcard(keys.LEASES) == 1


@pytest.mark.parametrize("refuse", REFUSALS)
def test_redis_that_takes_no_writes_ends_no_extending(
    bench: Bench, inbox: Inbox, redis: Redis, redis_server: RedisServer, refuse: Refusal
) -> None:
    bench.submit()
    (claim,) = bench.claim(inbox)
    redis.zadd(keys.LEASES, {lease_of(claim): 5})
    tries = Event()

    def extend() -> None:
        inbox.extend()
        tries.set()

    end = refuse(redis, redis_server.folder)
    with Watchdog(extend, 0.03, 600, never):
        try:
            assert tries.wait(30)
        finally:
            end()
        eventually(lambda: (redis.zscore(keys.LEASES, lease_of(claim)) or 0) > 5, "the lease is extended")


def never(silent_seconds: float) -> None:
    raise AssertionError("the loop does not hang")


def test_loop_that_is_silent_for_longer_than_a_step_may_take_is_given_up_and_nothing_extended_after_that() -> None:
    given_up, extended_late = Event(), Event()

    def extend() -> None:
        if given_up.is_set():
            extended_late.set()

    def hangs(silent_seconds: float) -> None:
        assert silent_seconds > 0.2
        given_up.set()

    with Watchdog(extend, 0.03, 0.2, hangs):
        assert given_up.wait(30)
        assert not extended_late.wait(0.1)


def test_loop_that_goes_on_is_not_given_up() -> None:
    given_up, extended = Event(), Event()
    with Watchdog(extended.set, 3, 1, lambda silent_seconds: given_up.set()) as thread:
        while not extended.wait(0.05):
            thread.note_running()
    assert not given_up.is_set(), "though it ran for as long as a step may take"


@pytest.mark.slow
def test_job_whose_steps_take_longer_than_a_lease_completes_at_its_first_attempt(
    bench: Bench, open_inbox: OpenInbox, redis: Redis, settings: Settings, tmp_path: Path, weights: Path
) -> None:
    settings = settings.model_copy(
        update={"weights": weights, "max_rows": 2, "pipelines": ("demo",), "lease_seconds": 5, "heartbeat_seconds": 0.5}
    )
    loaded = load(settings, torch.device("cpu"), "cpu-0")

    def take_long(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        until = time.monotonic() + settings.lease_seconds + 1
        while time.monotonic() < until:
            bench.queue.ledger.recover_expired_leases()  # as the service's upkeep does
            time.sleep(0.1)

    loaded.engine.stages["demo/base"].networks.network.register_forward_pre_hook(take_long)
    inbox, stopping = open_inbox(lease_seconds=settings.lease_seconds), Stopping()
    worker = Worker(loaded, inbox, bench.images, FileStore(redis, settings, bench.images.objects), settings)
    thread = Thread(target=worker.run, args=[stopping])
    thread.start()
    try:
        job_id = bench.submit(steps=1, upsample=False, guidance_scale=0)
        eventually(lambda: bench.queue.get(job_id).status.is_final, "the job ends")
    finally:
        stopping.set()
        thread.join()
    job = bench.queue.get(job_id)
    assert (job.status, job.attempt, job.error) == (JobStatus.COMPLETED, 1, None)
    assert not [each for each in living_threads() if each.name == "renewing"], "it ends with its worker"


@pytest.mark.slow
def test_worker_that_is_stopped_as_a_whole_loses_its_job(start: Start, client: Client) -> None:
    worker = start(ADM_LEASE_SECONDS="2", ADM_HEARTBEAT_SECONDS="0.5")
    worker.wait_ready()
    job_id = client.submit(steps=1000)
    client.wait_started(job_id)
    worker.process.send_signal(signal.SIGSTOP)

    def is_taken_back() -> bool:
        client.queue.ledger.recover_expired_leases()  # as the service's upkeep does
        return client.job(job_id).status is JobStatus.QUEUED

    eventually(is_taken_back, "its lease ends")
    client.queue.cancel(job_id)
    worker.process.send_signal(signal.SIGCONT)
    eventually(lambda: "claim_lost" in worker.output, "it is logged")
    assert client.events(job_id)[-1] == "cancelled"
