"""Workers come and go all the time, as an autoscaler or a spot market makes them: no job notices.

Most are stopped by SIGTERM, and requeue their jobs with checkpoints of the present states; some are killed without
warning. The same plan runs again with CHAOS_SEED, which is printed; CHAOS_STOPS makes it longer, as `make chaos` does.
"""

import os
import random
import signal
from collections.abc import Sequence

import httpx2
import pytest
from redis import Redis

from jobs.queue.ledger import Ledger
from tests.chaos import audit
from tests.chaos.conftest import StartDeployment
from tests.chaos.deployment import Deployment
from tests.chaos.load import HEALTHY, Body
from tests.chaos.test_kills import LEASE, Posted, judge_innocent, post, wait_for_the_end, working
from tests.chaos.undisturbed import run_undisturbed, unfinished
from tests.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.redis, pytest.mark.timeout(3600)]

STOPS_OF_THE_SHORT_FORM = 6
KILLED_SHARE = 0.2
BACKLOG = 6  # unfinished jobs, in flight or queued, at each moment when a worker is stopped
JOBS_PER_TEMPLATE = 4
# Most row steps of all images between one stop and the next; counted in steps, so that the plan is the same on any
# machine.
MOST_STEPS_TO_A_STOP = 900
MOST_REPEATED = 0.05  # of the steps that the jobs need
# Device time between two checkpoints. It is less than a step takes, so a job has a checkpoint after its first step, and
# the next one follows once the last one has been written to the job's record. A kill then repeats only the steps during
# the last write.
CHECKPOINT_SECONDS = "0.000001"


def test_workers_that_come_and_go_lose_double_and_change_nothing_and_repeat_few_steps(
    start_deployment: StartDeployment,
) -> None:
    seed = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(1_000_000))
    num_stops = int(os.environ.get("CHAOS_STOPS") or STOPS_OF_THE_SHORT_FORM)
    short_drain = {"ADM_DRAIN_SECONDS": "0.5", "ADM_CHECKPOINT_SECONDS": CHECKPOINT_SECONDS}
    deployment = start_deployment(**LEASE, **short_drain)
    print(f"CHAOS_SEED={seed} CHAOS_STOPS={num_stops}; logs in {deployment.folder}", flush=True)
    rng = random.Random(f"scale-in {seed}")
    with deployment.redis() as redis, deployment.client() as client:
        templates = [draw_template(rng, number) for number in range(max(4, num_stops // JOBS_PER_TEMPLATE))]
        reference = run_undisturbed(client, redis, templates)
        posted, complaints = come_and_go(deployment, client, redis, rng, num_stops, templates)
        wait_for_the_end(deployment, redis)
        jobs = [Posted(job_id, reference[template]) for job_id, template in posted]
        seen = {each.id: audit.look_at(client, redis, each.id) for each in jobs}
        complaints += judge_innocent(jobs, seen) + audit.queue_is_empty(redis)
        complaints += audit.nobody_else([], 0, [*(each.id for each in reference), *seen], audit.list_all(client))
        complaints += audit.no_server_errors(deployment.service.log_path.read_text())
        complaints += judge_steps(deployment, redis, jobs)
    if not any(each.log_path.read_text().count('"resumed"') for each in deployment.workers):
        complaints.append("no job went on from where a stopped worker left it")
    deployment.sound = not complaints
    assert deployment.sound, "\n".join([*complaints, f"CHAOS_SEED={seed}", str(deployment.folder)])


def judge_steps(deployment: Deployment, redis: Redis, jobs: Sequence[Posted]) -> list[str]:
    """An orderly stop repeats no step; a kill repeats only those after the last checkpoint."""
    needed = sum(each.reference.job["usage"]["steps"] for each in jobs)
    repeated = {each.id: deployment.row_steps(each.id) - each.reference.job["usage"]["steps"] for each in jobs}
    ledger = Ledger(redis, 60)
    killed = {each.id for each in jobs if (record := ledger.read(each.id)) is not None and record.deaths.workers}
    share = sum(repeated.values()) / needed
    print(f"{len(jobs)} jobs, {len(killed)} in flight at a kill; {needed} steps of images, {share:.2%} repeated")
    complaints = [
        f"{job_id}: {steps} of its steps were repeated, and only orderly stops met it"
        for job_id, steps in repeated.items()
        if steps != 0 and job_id not in killed
    ]
    if share > MOST_REPEATED:
        complaints.append(f"{share:.2%} of the steps were repeated")
    return complaints


def draw_template(rng: random.Random, number: int) -> Body:
    """A job that takes long enough to be met by a stop, with a seed of its own."""
    return {
        "class_label": rng.choice(HEALTHY),
        "guidance_scale": rng.choice([0, 1, 4]),
        "sampler": rng.choice(["ddim", "ddpm", "dpmpp_2m", "heun"]),
        "steps": rng.choice([60, 100, 150]),
        "n": rng.choice([1, 2, 4]),
        "seed": 1000 + number,
    }


def come_and_go(
    deployment: Deployment,
    client: httpx2.Client,
    redis: Redis,
    rng: random.Random,
    num_stops: int,
    templates: Sequence[Body],
) -> tuple[list[tuple[str, int]], list[str]]:
    """Stop or kill a worker at a random instant of its work, again and again, and start it again.

    Returns the jobs that were posted meanwhile, each with its template, and what was wrong with stops.
    """
    posted: list[tuple[str, int]] = []
    complaints: list[str] = []
    kills = rng.sample(range(num_stops), round(KILLED_SHARE * num_stops))
    for stop in range(num_stops):
        for _ in range(BACKLOG - unfinished(redis)):
            template = rng.randrange(len(templates))
            private = {"priority": rng.choice(["low", "normal", "high"])}
            posted.append((post(client, templates[template] | private), template))
        victim = working(deployment, redis, rng)
        wait_for_steps(deployment, redis, rng.randrange(MOST_STEPS_TO_A_STOP))
        if stop in kills:
            victim.kill()
        elif (status := victim.kill(signal.SIGTERM)) != 0:
            complaints.append(f"{victim.name} was stopped, and left with {status}: {victim.lines[-12:]}")
        deployment.start_dead_workers()
    return posted, complaints


def wait_for_steps(deployment: Deployment, redis: Redis, steps: int) -> None:
    """Wait until the workers have taken so many more steps of images, or every job has ended."""
    until = deployment.row_steps() + steps
    eventually(lambda: deployment.row_steps() >= until or not unfinished(redis), f"{steps} more steps")
