"""All kinds of faults overlap, and afterwards nothing is lost, doubled, wrong or left behind.

The same plan runs again with CHAOS_SEED, which a failure names; CHAOS_JOBS and CHAOS_SECONDS make it longer, as
`make chaos` does. The plan does not determine threads and clocks, so a repeated run is similar, not identical.
"""

import contextlib
import os
import random
import signal
import time
from functools import partial

import httpx2
import pytest
from redis import Redis

from jobs.callers.keyring import KeyStore
from jobs.contract.caller import Role
from jobs.queue.cleaner import Cleaner
from jobs.queue.ledger import Ledger
from jobs.storage.files import FileStore
from jobs.storage.images import ROOT, ImageStore
from tests.chaos import audit
from tests.chaos.audit import Seen
from tests.chaos.conftest import StartDeployment
from tests.chaos.deployment import LEASE_SECONDS, Deployment
from tests.chaos.faults import ORPHANED_PIPELINE, Faults, announce_orphaned_pipeline
from tests.chaos.load import Ask, Clients, cursed_ids, draw_asks, draw_templates, upload
from tests.chaos.undisturbed import run_undisturbed, unfinished
from tests.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.redis, pytest.mark.timeout(3600)]

JOBS_OF_THE_SHORT_FORM, SECONDS_OF_THE_SHORT_FORM = 60, 30.0
OBEYED = (-signal.SIGTERM,)  # uvicorn ends all in order, and then dies of the signal itself
SECONDS_BETWEEN_FAULTS = 1.2
SECONDS_PER_FAULT = 2.0  # roughly, including the pause before the next


@pytest.fixture
def deployment(start_deployment: StartDeployment) -> Deployment:
    return start_deployment()


def test_every_job_ends_once_with_its_images_whatever_happens(deployment: Deployment) -> None:
    seed = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(1_000_000))
    num_jobs = int(os.environ.get("CHAOS_JOBS") or JOBS_OF_THE_SHORT_FORM)
    seconds = float(os.environ.get("CHAOS_SECONDS") or SECONDS_OF_THE_SHORT_FORM)
    print(f"CHAOS_SEED={seed} CHAOS_JOBS={num_jobs} CHAOS_SECONDS={seconds:g}; logs in {deployment.folder}", flush=True)
    rng = random.Random(f"load {seed}")
    with deployment.redis() as redis:
        auditor, *callers = (KeyStore(redis).create(f"caller {each}", Role.OPERATOR) for each in range(3))
    with deployment.redis() as redis, deployment.client(auditor.key) as client:
        announce_orphaned_pipeline(redis, deployment)
        files = [upload(client, colour) for colour in ("red", "green", "blue")]
        templates = draw_templates(rng, num_jobs // 2, files)
        asks = draw_asks(rng, num_jobs, templates, ORPHANED_PIPELINE)
        reference = run_undisturbed(client, redis, templates)
        faults = Faults(deployment, random.Random(f"faults {seed}"))
        clients = Clients([partial(deployment.client, each.key) for each in callers], asks, seconds, seed)
        cause_faults(deployment, clients, faults, cursed_ids(asks, [each.record.id for each in callers]), seconds)
        complaints = (
            clients.errors
            + deployment.crashes
            + check_all(deployment, client, redis, asks, clients, faults.poisoned, reference)
        )
        complaints += check_removal(deployment, client, redis, files)
    deployment.sound = not complaints
    assert deployment.sound, "\n".join([*complaints, "", *faults.journal, f"CHAOS_SEED={seed}", str(deployment.folder)])


def cause_faults(deployment: Deployment, clients: Clients, faults: Faults, cursed: list[str], seconds: float) -> None:
    """Cause faults while the clients post; then heal the deployment, and wait until every job has ended."""
    for job_id in cursed:  # a file in place of its folder: no image of this job can ever be stored
        (deployment.store / ROOT / job_id).write_text("in the way")
    planned = iter(faults.plan(max(len(faults.kinds), int(seconds / SECONDS_PER_FAULT))))
    clients.start()
    try:
        for fault in planned:
            faults.run(fault)
            time.sleep(faults.pause(SECONDS_BETWEEN_FAULTS))
        deployment.heal()
        eventually(lambda: not clients.busy, "every client has its answers")
        with contextlib.suppress(AssertionError), deployment.redis() as redis:  # the audit says what has not ended
            eventually(lambda: not unfinished(redis), "every job ends")
            eventually(lambda: not clients.following, "every follower has seen the end")
    finally:
        clients.stopping.set()
        clients.join()


def check_all(
    deployment: Deployment,
    client: httpx2.Client,
    redis: Redis,
    asks: list[Ask],
    clients: Clients,
    poisoned: dict[str, str],
    reference: list[Seen],
) -> list[str]:
    """Check every job and all of Redis after the last job has ended."""
    listed = audit.list_all(client)
    seen = {job_id: audit.look_at(client, redis, job_id) for job_id in {*listed, *poisoned}}
    there = {job_id: each for job_id, each in seen.items() if each is not None}
    complaints = audit.nobody_else(asks, clients.unsure, [*poisoned, *(each.id for each in reference)], listed)
    for each in there.values():
        complaints += audit.ended_once(each)
    for ask in asks:
        found = there.get(ask.id or "")
        complaints += audit.fate_is_right(ask, found)
        if found is not None:
            complaints += audit.images_are_right(found, None if ask.template is None else reference[ask.template])
    for follower in clients.followers:
        complaints += audit.stream_was_whole(follower.followed, there.get(follower.followed.job_id))
    for job_id, failure in poisoned.items():
        complaints += audit.failed_for(failure, there[job_id]) if job_id in there else [f"{job_id}: poisoned, and lost"]
    complaints += audit.queue_is_empty(redis)
    complaints += audit.indexes_agree(redis, {job_id: each.status for job_id, each in there.items()})
    complaints += audit.lists_of_callers_agree(redis, {job_id: each.status for job_id, each in there.items()})
    return complaints + audit.no_server_errors(deployment.service.log_path.read_text())


def check_removal(deployment: Deployment, client: httpx2.Client, redis: Redis, files: list[str]) -> list[str]:
    """Delete everything, sweep, stop: nothing may be left in Redis, in the store, or among the processes."""
    for job_id in [*audit.list_all(client), *bare_jobs(redis)]:
        client.delete(f"/v1/jobs/{job_id}")
    for file_id in files:
        client.delete(f"/v1/files/{file_id}").raise_for_status()
    for path in deployment.store.glob(f"{ROOT}/*"):
        if path.is_file():
            path.unlink()  # the file in place of a folder
    time.sleep(LEASE_SECONDS + 1)  # younger images may belong to a worker that is about to publish them
    images = ImageStore(deployment.settings.store_address)
    uploads = FileStore(redis, deployment.settings, images.objects)
    ledger = Ledger(redis, deployment.settings.retention_seconds)
    cleaner = Cleaner(redis, ledger, images, uploads, LEASE_SECONDS)
    cleaner.remove_unpublished_images()
    cleaner.remove_stray_files()
    complaints = audit.nothing_left(redis, deployment.store)
    statuses = deployment.stop()
    complaints += [
        f"{name} left with status {status}" for name, status in statuses.items() if status not in (0, *OBEYED)
    ]
    return complaints + [f"{each.name} still runs" for each in deployment.programs if each.running]


def bare_jobs(redis: Redis) -> list[str]:
    """Ids of jobs that are in no list, because no post made them."""
    return [name.decode().removeprefix("rq:job:") for name in redis.scan_iter("rq:job:bare-*")]
