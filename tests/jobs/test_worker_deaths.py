"""The evidence that a job is the cause of its workers' deaths."""

import random

import pytest

from jobs.contract.job import Progress
from jobs.contract.worker_deaths import DEATHS_ALONE, DEATHS_TOGETHER, LONGEST_DELAY_SECONDS, Deaths

STEPS = 25
MOST_KILLS = 2000  # of one innocent job, after which it may end


def at(step: int) -> Progress | None:
    return Progress(stage="base", step=step, steps=STEPS, fraction=step / STEPS) if step else None


def died(*steps: int, record: Deaths | None = None, checkpoint: str = "") -> Deaths:
    """The record after deaths at some steps, of a job that ran alone from the first of them on."""
    record = suspect() if record is None else record
    for step in steps:
        record = record.with_another(at(step), checkpoint, now=1000.0)
    return record


def suspect() -> Deaths:
    record = Deaths()
    for _ in range(DEATHS_TOGETHER):
        record = record.with_another(at(3), "", now=1000.0)
    return record


def test_job_runs_alone_after_two_deaths_beside_others() -> None:
    assert not Deaths().runs_alone
    assert not Deaths().with_another(None, "", 1000.0).runs_alone
    assert suspect().runs_alone


@pytest.mark.parametrize("step", [0, 1, 12, 24])
def test_deaths_at_one_step_count_from_the_first_alone(step: int) -> None:
    assert [died(*[step] * times).at_furthest for times in range(1, 6)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("further", [13, 14, 24])
def test_job_that_got_further_starts_a_new_count(further: int) -> None:
    assert died(12, 12, 12, 12, further).at_furthest == 1


@pytest.mark.parametrize("earlier", [0, 5, 11])
def test_earlier_death_says_nothing_about_the_furthest_step_and_keeps_the_count(earlier: int) -> None:
    record = died(12, 12, 12, 12, earlier)
    assert (record.at_furthest, record.furthest) == (4, at(12))
    assert died(12, record=record).at_furthest == DEATHS_ALONE
    assert died(13, record=record).at_furthest == 1


@pytest.mark.parametrize("outside", [0.1, 0.3, 0.5])
def test_job_that_kills_at_one_step_is_failed_soon_however_many_of_its_tries_end_from_outside(outside: float) -> None:
    rng, all_tries = random.Random(7), []
    for _ in range(200):
        record, tries = suspect(), 0
        while record.at_furthest < DEATHS_ALONE:
            record = died(rng.randrange(12) if rng.random() < outside else 12, record=record)
            tries += 1
        all_tries.append(tries)
    assert sum(all_tries) / len(all_tries) < 1.2 * DEATHS_ALONE / (1 - outside)


def test_long_job_that_leaves_checkpoints_stays_beside_others_however_many_workers_die() -> None:
    record = Deaths()
    for step in range(1, STEPS):
        record = record.with_another(at(step), f"checkpoint {step}", 1000.0)
        assert not record.runs_alone
    assert (record.workers, record.alone) == (STEPS - 1, 0)


def test_new_checkpoint_further_on_lets_the_job_run_beside_others_again() -> None:
    record = died(12, 12, 12, 12)
    again = died(20, record=record, checkpoint="one")
    assert (again.runs_alone, again.at_furthest, again.delay_seconds) == (False, 0, 0)


def test_time_without_progress_runs_from_the_first_death_and_again_from_a_later_checkpoint() -> None:
    record = Deaths()
    for now in (1000.0, 2000.0, 3000.0):
        record = record.with_another(at(12), "", now)
    record = record.with_another(at(12), "of another numerics", 4000.0)
    assert (record.since, record.no_progress_since) == (1000, 1000)
    record = record.with_another(at(20), "one", 5000.0)
    assert (record.since, record.no_progress_since) == (1000, 5000)


def test_new_checkpoint_no_further_on_is_no_progress() -> None:
    record = died(12, 12, 12, 12)
    assert died(12, record=record, checkpoint="of another numerics").at_furthest == DEATHS_ALONE


def test_tries_alone_are_spaced_ever_further_apart_up_to_a_limit() -> None:
    assert [died(*[12] * times).delay_seconds for times in range(5)] == [0, 1, 2, 4, 8]
    assert died(*[12] * 100).delay_seconds == LONGEST_DELAY_SECONDS


def test_record_says_all_that_was_seen() -> None:
    assert str(died(9, 12, 12, 12, 12, 12)) == (
        "8 workers died with this job in flight since 1970-01-01 00:16:40 UTC, 6 of them while it ran alone, 5 of "
        "these at step 12 of 25 of stage base, and it never got further"
    )
    assert "5 of these before its first step" in str(died(*[0] * 5))


def test_hardly_any_innocent_job_is_failed_however_often_kills_come() -> None:
    """Kills at random, one in 20 steps on average: a job of 60 steps meets some 20 of them before it can end."""
    rng, kills = random.Random(12), 0
    for steps in (rng.randint(1, 60) for _ in range(2000)):
        record = suspect()
        for _ in range(MOST_KILLS):
            reached = int(rng.expovariate(1 / 20))
            if reached >= steps:
                break
            progress = Progress(stage="base", step=reached, steps=steps, fraction=reached / steps)
            record = record.with_another(progress, "", 1000.0)
            kills += 1
            assert record.at_furthest < DEATHS_ALONE
    assert kills > 10_000
