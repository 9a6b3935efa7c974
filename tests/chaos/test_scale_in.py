"""Workers come and go every few seconds, as an autoscaler or a spot market makes them: no job notices.

Most are stopped by SIGTERM and hand their rows back where they stand; a share is killed without notice. The same plan
runs again with CHAOS_SEED, which is printed; CHAOS_STOPS makes it longer, as `make chaos` does.
"""

import os
import random
import signal
import time
from collections.abc import Sequence

import httpx2
import pytest
from redis import Redis

from tests.chaos import audit
from tests.chaos.conftest import StartStack
from tests.chaos.load import HEALTHY, Body
from tests.chaos.stack import Stack
from tests.chaos.test_kills import Posted, judge_innocent, post, wait_for_the_end, working
from tests.chaos.undisturbed import run_undisturbed, unfinished

pytestmark = [pytest.mark.slow, pytest.mark.redis]

STOPS_OF_THE_SHORT_FORM = 6
KILLED_SHARE = 0.2
BACKLOG = 6  # jobs that have not ended, whenever a worker goes: those in flight among them
JOBS_PER_TEMPLATE = 4
MOST_SECONDS_TO_A_STOP = 2.0
MOST_REPEATED = 0.05  # of the steps that the jobs need


def test_workers_that_come_and_go_lose_double_and_change_nothing_and_repeat_few_steps(start_stack: StartStack) -> None:
    seed = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(1_000_000))
    num_stops = int(os.environ.get("CHAOS_STOPS") or STOPS_OF_THE_SHORT_FORM)
    stack = start_stack(ADM_DRAIN_SECONDS="0.5")  # less than most jobs take
    print(f"CHAOS_SEED={seed} CHAOS_STOPS={num_stops}; logs in {stack.folder}", flush=True)
    rng = random.Random(f"scale-in {seed}")
    with stack.redis() as redis, stack.client() as client:
        templates = [draw_template(rng, number) for number in range(max(4, num_stops // JOBS_PER_TEMPLATE))]
        reference = run_undisturbed(client, redis, templates)
        before = stack.row_steps()
        posted, complaints = come_and_go(stack, client, redis, rng, num_stops, templates)
        wait_for_the_end(stack, redis)
        jobs = [Posted(job_id, reference[template]) for job_id, template in posted]
        seen = {each.id: audit.look_at(client, redis, each.id) for each in jobs}
        complaints += judge_innocent(jobs, seen) + audit.books_are_closed(redis)
        complaints += audit.nobody_else([], 0, [*(each.id for each in reference), *seen], audit.list_all(client))
        complaints += audit.no_server_errors(stack.service.log_path.read_text())
        needed = sum(each.reference.job["usage"]["steps"] for each in jobs)
        repeated = (stack.row_steps() - before - needed) / needed
    log = "".join(each.log_path.read_text() for each in stack.workers)
    resumed, over = log.count('"resumed"'), log.count('"starts_over"')
    print(f"{len(jobs)} jobs, {needed} row steps, {repeated:.2%} repeated; {resumed} resumed, {over} started over")
    if not 0 <= repeated < MOST_REPEATED:
        complaints.append(f"{repeated:.2%} of the steps were taken again")
    if not resumed:
        complaints.append("no job went on from where a stopped worker left it")
    stack.sound = not complaints
    assert stack.sound, "\n".join([*complaints, f"CHAOS_SEED={seed}", str(stack.folder)])


def draw_template(rng: random.Random, number: int) -> Body:
    """A job that takes long enough to be met by a stop, with a seed of its own."""
    return {
        "class_label": rng.choice(HEALTHY),
        "guidance_scale": rng.choice([0, 1, 4]),
        "sampler": rng.choice(["ddim", "ddpm", "dpmpp_2m", "heun"]),
        "steps": rng.choice([40, 80, 150]),
        "n": rng.choice([1, 2, 4]),
        "seed": 1000 + number,
    }


def come_and_go(
    stack: Stack, client: httpx2.Client, redis: Redis, rng: random.Random, num_stops: int, templates: Sequence[Body]
) -> tuple[list[tuple[str, int]], list[str]]:
    """Stop or kill a worker at a random instant of its work, again and again, and start it again.

    Returns the jobs that were posted meanwhile, each with its template, and what was wrong with stops.
    """
    posted: list[tuple[str, int]] = []
    complaints: list[str] = []
    for _ in range(num_stops):
        for _ in range(BACKLOG - unfinished(redis)):
            template = rng.randrange(len(templates))
            private = {"priority": rng.choice(["low", "normal", "high"])}
            posted.append((post(client, templates[template] | private), template))
        victim = working(stack, redis, rng)
        time.sleep(rng.uniform(0, MOST_SECONDS_TO_A_STOP))
        if rng.random() < KILLED_SHARE:
            victim.kill()
        elif (status := victim.kill(signal.SIGTERM)) != 0:
            complaints.append(f"{victim.name} was stopped, and left with {status}: {victim.lines[-12:]}")
        stack.start_dead_workers()
    return posted, complaints
