"""No number of kills of workers from outside fails a job or changes its images; a job that kills its workers is failed.

The same plan runs again with CHAOS_SEED, which is printed; CHAOS_KILLS makes it longer, as `make chaos` does.
"""

import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
from redis import Redis

from jobs.queue.ledger import Ledger
from tests.chaos import audit
from tests.chaos.audit import Seen
from tests.chaos.conftest import StartDeployment
from tests.chaos.deployment import Deployment, Program
from tests.chaos.faulty_worker import KILLS, KILLS_AT
from tests.chaos.load import Body, draw_templates, upload
from tests.chaos.undisturbed import run_undisturbed, unfinished
from tests.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.redis, pytest.mark.timeout(3600)]

KILLS_OF_THE_SHORT_FORM = 12
JOBS_PER_KILL, JOBS_PER_TEMPLATE = 10 / 3, 4
MOST_SECONDS_TO_A_KILL = 2.0  # after a worker has taken jobs: longer than most jobs take
POISON = {"class_label": KILLS, "steps": 40, "guidance_scale": 1, "seed": 1, "priority": "high"}  # while kills go on
SECONDS_TO_END = 600.0  # after the last kill; the poison kills a worker seven times, which takes seconds to start again
# A worker that a busy machine stalls must not count as dead, because a death would count against its jobs.
LEASE = {"ADM_LEASE_SECONDS": "60"}


@dataclass(frozen=True)
class Posted:
    """An innocent job, and what an undisturbed run of its request gave."""

    id: str
    reference: Seen


def test_no_innocent_job_is_failed_however_often_workers_are_killed_and_a_job_that_kills_them_is(
    start_deployment: StartDeployment,
) -> None:
    seed = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(1_000_000))
    num_kills = int(os.environ.get("CHAOS_KILLS") or KILLS_OF_THE_SHORT_FORM)
    num_jobs = round(num_kills * JOBS_PER_KILL)
    deployment = start_deployment(**LEASE, ADM_CHECKPOINT_SECONDS="60")  # as users have it: none of these jobs gets one
    print(f"CHAOS_SEED={seed} CHAOS_KILLS={num_kills}, {num_jobs} jobs; logs in {deployment.folder}", flush=True)
    rng = random.Random(f"kills {seed}")
    with deployment.redis() as redis, deployment.client() as client:
        files = [upload(client, colour) for colour in ("red", "green", "blue")]
        templates = draw_templates(rng, num_jobs // JOBS_PER_TEMPLATE, files)
        reference = run_undisturbed(client, redis, templates)
        innocent, poison = kill_workers(deployment, client, redis, rng, num_kills, num_jobs, templates, reference)
        wait_for_the_end(deployment, redis)
        seen = {each.id: audit.look_at(client, redis, each.id) for each in innocent}
        complaints = judge_innocent(innocent, seen) + judge_poison(audit.look_at(client, redis, poison))
        complaints += audit.queue_is_empty(redis) + audit.no_server_errors(deployment.service.log_path.read_text())
        print(figures(redis, innocent, poison), flush=True)
    deployment.sound = not complaints
    assert deployment.sound, "\n".join([*complaints, f"CHAOS_SEED={seed}", str(deployment.folder)])


def kill_workers(
    deployment: Deployment,
    client: httpx2.Client,
    redis: Redis,
    rng: random.Random,
    num_kills: int,
    num_jobs: int,
    templates: Sequence[Body],
    reference: Sequence[Seen],
) -> tuple[list[Posted], str]:
    """Kill a worker at a random instant of its work, again and again, while jobs arrive."""
    innocent: list[Posted] = []
    poison = ""
    for kill in range(num_kills):
        for _ in range(round(num_jobs * (kill + 1) / num_kills) - len(innocent)):
            template = rng.randrange(len(templates))
            private = {"priority": rng.choice(["low", "normal", "high"])}
            innocent.append(Posted(post(client, templates[template] | private), reference[template]))
        if kill == num_kills // 3:
            poison = post(client, POISON)
        victim = working(deployment, redis, rng)
        time.sleep(rng.uniform(0, MOST_SECONDS_TO_A_KILL))
        if victim.running:
            victim.kill()
        deployment.start_dead_workers()
    return innocent, poison


def post(client: httpx2.Client, body: Body) -> str:
    return str(client.post("/v1/jobs", json=body).raise_for_status().json()["id"])


def working(deployment: Deployment, redis: Redis, rng: random.Random) -> Program:
    """Wait until a worker is ready and jobs are in progress or have all ended; returns one that is ready."""
    ready: list[Program] = []

    def is_time() -> bool:
        deployment.start_dead_workers()
        ready[:] = [each for each in deployment.workers if each.has_logged('"ready"')]
        return bool(ready) and bool(redis.zcard("adm:jobs:in_progress") or not unfinished(redis))

    eventually(is_time, "a worker is at work")
    return rng.choice(ready)


def wait_for_the_end(deployment: Deployment, redis: Redis) -> None:
    def ended() -> bool:
        deployment.start_dead_workers()
        return not unfinished(redis)

    eventually(ended, "every job ends", SECONDS_TO_END)


def judge_innocent(innocent: Sequence[Posted], seen: dict[str, Seen | None]) -> list[str]:
    """All innocent jobs are completed once, with the bytes of the undisturbed run."""
    complaints = []
    for each in innocent:
        found = seen[each.id]
        if found is None or found.status != "completed":
            complaints.append(f"{each.id}: is {found and (found.status, found.job['error'])}, not completed")
        else:
            complaints += audit.ended_once(found) + audit.images_are_right(found, each.reference)
    return complaints


def judge_poison(found: Seen | None) -> list[str]:
    """The poison is failed because it killed its workers, and its error names the step at which it does."""
    if found is None or found.status != "failed":
        return [f"the poison is {found and found.status}, not failed"]
    complaints = audit.failed_for("worker-lost", found) + audit.ended_once(found)
    detail = found.job["error"]["detail"]
    if f"at step {KILLS_AT - 1} of {POISON['steps']} of stage base" not in detail:
        complaints.append(f"the poison's failure names another step: {detail}")
    return complaints


def figures(redis: Redis, innocent: Sequence[Posted], poison: str) -> str:
    """The number of deaths of workers with jobs, and the most deaths of an innocent job."""
    ledger = Ledger(redis, 60)
    deaths = [record.deaths for each in innocent if (record := ledger.read(each.id)) is not None]
    blamed: Any = ledger.read(poison)
    return (
        f"{sum(each.workers > 0 for each in deaths)} of {len(innocent)} innocent jobs were in flight at a death, "
        f"{sum(each.alone > 0 for each in deaths)} alone; most of one job: {max(each.workers for each in deaths)}, "
        f"alone {max(each.alone for each in deaths)}, at its furthest step {max(each.at_furthest for each in deaths)}; "
        f"poison: {blamed and (blamed.status, blamed.error)}"
    )
