"""The order of steps: short jobs do not wait behind long ones, none starves, and batches are as full as pays."""

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.costs import StepCosts
from engine.scheduler import EXTRA_TIME_SHARE, RESERVE_BATCHES, SLACK_FACTORS, Scheduler
from vocabulary.priorities import Priority

SHAPES = (1, 2, 4, 8, 16, 32)
FLAT = {shape: 1.0 + 0.01 * shape for shape in SHAPES}  # as on a GPU: one row costs nearly what 32 do
LINEAR = {shape: 0.1 + shape for shape in SHAPES}  # as on a CPU
BETWEEN = {shape: 3.0 + shape for shape in SHAPES}  # as on a CPU, where small batches are dear
BASE, UPSAMPLE = "base", "upsample"


def costs_of(by_stage: Mapping[str, Mapping[int, float]]) -> StepCosts:
    costs = StepCosts(dict.fromkeys(by_stage, SHAPES))
    for stage, seconds in by_stage.items():
        for shape, each in seconds.items():
            costs.note(stage, shape, each)
    return costs


def scheduler(*, base: Mapping[int, float] = FLAT, upsample: Mapping[int, float] = FLAT) -> Scheduler[tuple[str, int]]:
    return Scheduler(costs_of({BASE: base, UPSAMPLE: upsample}), SHAPES[-1])


def enter(
    line: Scheduler[tuple[str, int]],
    job_id: str,
    images: int = 1,
    base: int = 25,
    upsample: int = 0,
    priority: Priority = "normal",
) -> None:
    work = [(stage, steps) for stage, steps in ((BASE, base), (UPSAMPLE, upsample)) if steps]
    for index in range(images):
        line.enter((job_id, index), job_id, priority, work)


def step(line: Scheduler[tuple[str, int]]) -> tuple[str, list[str]] | None:
    """Take one step: its stage, and the jobs of the rows that moved."""
    choice = line.choose()
    if choice is None:
        return None
    line.moved(choice.keys)
    return choice.stage, [job_id for job_id, _ in choice.keys]


def clock_at_end_of(line: Scheduler[tuple[str, int]], job_id: str, steps: int) -> float:
    """Take steps until one image has had all of its own; return the time."""
    taken = 0
    while taken < steps:
        answer = step(line)
        assert answer is not None
        taken += answer[1].count(job_id)
    return line.clock


def test_nothing_to_do_without_images() -> None:
    assert scheduler().choose() is None


@pytest.mark.parametrize("seconds", [FLAT, LINEAR, BETWEEN], ids=["flat", "linear", "between"])
@pytest.mark.parametrize("others", [1, 8, 32, 64])
def test_short_job_beside_long_ones_ends_within_twice_its_solo_time(seconds: Mapping[int, float], others: int) -> None:
    alone = scheduler(base=seconds)
    enter(alone, "short", base=10)
    solo = clock_at_end_of(alone, "short", 10)
    line = scheduler(base=seconds)
    enter(line, "long", images=others, base=250)
    for _ in range(7):
        step(line)
    arrived = line.clock
    enter(line, "short", base=10)
    assert clock_at_end_of(line, "short", 10) - arrived <= 2 * solo


@pytest.mark.parametrize("seconds", [FLAT, LINEAR, BETWEEN], ids=["flat", "linear", "between"])
def test_however_many_short_jobs_come_what_they_cost_the_others_is_bounded(seconds: Mapping[int, float]) -> None:
    line = scheduler(base=seconds)
    enter(line, "long", images=64, base=10_000)
    began, used = line.clock, 0.0
    for count in range(300):
        enter(line, f"short-{count}", base=10)
        for _ in range(5):
            answer = step(line)
            assert answer is not None
            used += len(answer[1]) * line.costs.row_seconds(BASE)
        assert used / (line.clock - began) > 1 / (1 + 2 * EXTRA_TIME_SHARE) - RESERVE_BATCHES * seconds[32] / (
            line.clock - began
        )


@pytest.mark.parametrize("seconds", [FLAT, LINEAR], ids=["flat", "linear"])
def test_newcomer_takes_part_in_the_next_step_however_long_it_is(seconds: Mapping[int, float]) -> None:
    line = scheduler(base=seconds)
    enter(line, "here", images=64, base=10)
    step(line)
    enter(line, "new", base=250)
    answer = step(line)
    assert answer is not None
    assert "new" in answer[1]


def test_full_batches_where_they_cost_least_a_row() -> None:
    line = scheduler(base=FLAT)
    enter(line, "many", images=64)
    answer = step(line)
    assert answer is not None
    assert len(answer[1]) == 32


def test_no_padding_where_a_smaller_shape_does_as_much_a_second() -> None:
    line = scheduler(base=LINEAR)
    enter(line, "many", images=17)
    answer = step(line)
    assert answer is not None
    assert len(answer[1]) == 16


def test_images_for_the_upsampler_gather_while_the_base_has_full_batches() -> None:
    line = scheduler(base=FLAT, upsample={shape: 10 * each for shape, each in FLAT.items()})
    enter(line, "base", images=32, base=50, upsample=5)
    for job in range(4):
        enter(line, f"ready-{job}", base=0, upsample=5)
    step(line)
    rows = 0
    while rows == 0:
        answer = step(line)
        assert answer is not None
        rows = len(answer[1]) if answer[0] == UPSAMPLE else 0
    assert rows >= 4


def test_low_priority_moves_in_rows_that_nobody_else_wants() -> None:
    line = scheduler(base=FLAT)
    enter(line, "wanted", images=20, base=25)
    enter(line, "bulk", images=40, base=25, priority="low")
    step(line)  # each job begins
    for _ in range(5):
        answer = step(line)
        assert answer is not None
        assert (answer[1].count("wanted"), answer[1].count("bulk")) == (20, 12)


def test_high_priority_goes_before_normal_and_normal_before_low() -> None:
    line = scheduler(base=LINEAR)
    ends: list[str] = []
    for priority in ("low", "normal", "high"):
        enter(line, priority, base=25, priority=priority)
    left = dict.fromkeys(("low", "normal", "high"), 25)
    while len(ends) < 3:
        answer = step(line)
        assert answer is not None
        for job_id in answer[1]:
            left[job_id] -= 1
            ends += [job_id] if left[job_id] == 0 else []
    assert ends == ["high", "normal", "low"]


def test_job_that_left_takes_its_work_with_it() -> None:
    line = scheduler()
    enter(line, "gone", images=2)
    enter(line, "stays")
    step(line)
    line.leave(("gone", 0))
    line.leave(("gone", 1))
    assert step(line) == (BASE, ["stays"])
    enter(line, "gone")
    answer = step(line)
    assert answer is not None
    assert set(answer[1]) == {"stays", "gone"}


def test_only_a_job_that_would_share_the_next_steps_would_run() -> None:
    line = scheduler(base=FLAT)
    enter(line, "long", images=64, base=250)
    step(line)
    assert line.slack([(BASE, 10)], "normal") < line.slack_of_newcomers()
    assert line.slack([(BASE, 100 * 250)], "normal") > line.slack_of_newcomers()
    assert line.slack([(BASE, 100 * 250)], "high") < line.slack_of_newcomers()


jobs = st.lists(
    st.tuples(
        st.integers(0, 60),  # the step before which it comes
        st.integers(1, 6),
        st.integers(0, 12),
        st.integers(0, 5),
        st.sampled_from(list(SLACK_FACTORS)),
    ).filter(lambda job: job[2] + job[3] > 0),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60)
@given(jobs=jobs, seconds=st.sampled_from([FLAT, LINEAR]))
def test_nobody_is_passed_over_for_longer_than_patience_allows(
    jobs: Sequence[tuple[int, int, int, int, Priority]], seconds: Mapping[int, float]
) -> None:
    line = Scheduler[tuple[str, int]](costs_of({BASE: seconds, UPSAMPLE: seconds}), 4)
    dearest = seconds[4]
    live: dict[tuple[str, int], tuple[int, float]] = {}  # steps left, and when it came or moved last
    images = sum(job[1] for job in jobs)
    longest = {
        str(i): SLACK_FACTORS[job[4]] * job[1] * (job[2] + job[3]) * line.costs.row_seconds(BASE)
        for i, job in enumerate(jobs)
    }
    for tick in range(10_000):
        for i, (arrives, n, base, upsample, priority) in enumerate(jobs):
            if arrives == tick:
                enter(line, str(i), n, base, upsample, priority)
                live |= {(str(i), index): (base + upsample, line.clock) for index in range(n)}
        choice = line.choose()
        if choice is None:
            if tick > 60:
                break
            continue
        assert choice.stage in (BASE, UPSAMPLE)
        assert len(choice.keys) <= choice.row_shape <= 4
        line.moved(choice.keys)
        for key in choice.keys:
            left, since = live.pop(key)
            # all that may be overdue before it moves once each, and then it does
            assert line.clock - since <= longest[key[0]] + (images + 1) * dearest
            if left > 1:
                live[key] = left - 1, line.clock
            else:
                line.leave(key)
    assert not live
