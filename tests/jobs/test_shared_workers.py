"""Pipelines that share workers: a job waits for the work of all pipelines, as far as its own workers do it."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.contract.pipelines import PipelineInfo
from jobs.contract.request import JobRequest, ResolvedRequest
from jobs.contract.resolution import resolve
from jobs.contract.work import rank_of
from jobs.views.estimate import Backlog, Estimator
from jobs.views.fleet import Fleet
from tests.jobs.samples import BASE, DEMO, DEMO_UNCOND, UPSAMPLER, worker_info
from vocabulary.priorities import PRIORITIES

OTHER = DEMO.model_copy(
    update={
        "id": "other",
        "stages": tuple(each.model_copy(update={"model_hash": "o" * 16}) for each in DEMO.stages),
    }
)
STEP_MS = {"base": {4: 40.0, 16: 80.0}, "upsample": {4: 80.0, 16: 160.0}}  # at best 5 and 10 ms a row
BASE_RANK = rank_of("normal", {"base": 25})

Work = dict[str, int]
PLACES = (*PRIORITIES, "running")
WORKS = st.dictionaries(
    st.builds("{}:{}:{}".format, st.sampled_from(PLACES), st.integers(1, 24), st.sampled_from(("base", "upsample"))),
    st.integers(0, 20_000),
    max_size=8,
)
LENGTHS = st.fixed_dictionaries({priority: st.integers(0, 9) for priority in PRIORITIES})


def fleet(*holding: tuple[str, ...], pipelines: tuple[PipelineInfo, ...] = (DEMO, DEMO_UNCOND, OTHER)) -> Fleet:
    """One worker for each tuple of pipelines."""
    workers = [worker_info(f"cpu-{index}", pipelines=names) for index, names in enumerate(holding)]
    return Fleet({each.id: each for each in pipelines}, tuple(workers), {each.id: STEP_MS for each in pipelines})


def backlog(pipeline: str, work: Work, *beside: Backlog, **lengths: int) -> Backlog:
    return Backlog(pipeline, dict.fromkeys(PRIORITIES, 0) | lengths, work, beside=beside)


def request(**fields: object) -> ResolvedRequest:
    return resolve(JobRequest.model_validate({"class_label": 1, "upsample": False} | fields), DEMO, lambda: 0)


REQUESTS = st.sampled_from(
    [
        request(steps=steps, n=n, upsample=upsample, priority=priority)
        for steps in (1, 25, 250)
        for n in (1, 3, 16, 64)
        for upsample in (False, True)
        for priority in PRIORITIES
    ]
)


def waits(fleet: Fleet, backlog: Backlog, request: ResolvedRequest) -> tuple[float, float]:
    """The ETA, and what the cap counts."""
    eta, queued = Estimator(fleet).eta_seconds(backlog, request), Estimator(fleet).queued_seconds(backlog)
    assert eta is not None
    assert queued is not None
    return eta, queued


@given(ours=WORKS, theirs=WORKS, request=REQUESTS, workers=st.integers(1, 3))
def test_one_queue_under_two_names_is_waited_for_as_long(
    ours: Work, theirs: Work, request: ResolvedRequest, workers: int
) -> None:
    both = fleet(*[("demo", "demo-uncond")] * workers)
    together = {name: ours.get(name, 0) + theirs.get(name, 0) for name in {*ours, *theirs}}
    split = backlog("demo", ours, backlog("demo-uncond", theirs))
    assert waits(both, split, request) == pytest.approx(waits(both, backlog("demo", together), request))


@given(ours=WORKS, theirs=WORKS, lengths=LENGTHS, request=REQUESTS, place=st.integers(0, 9))
def test_pipelines_of_other_workers_change_nothing(
    ours: Work, theirs: Work, lengths: dict[str, int], request: ResolvedRequest, place: int
) -> None:
    apart = fleet(("demo",), ("demo-uncond", "other"))
    alone = backlog("demo", ours)
    beside = backlog("demo", ours, backlog("demo-uncond", theirs, **lengths), backlog("other", theirs, **lengths))
    assert waits(apart, beside, request) == waits(apart, alone, request)
    ahead = Estimator(apart).jobs_ahead
    assert ahead(beside, request.priority, place) == ahead(alone, request.priority, place)


@given(ours=WORKS, theirs=WORKS, request=REQUESTS, other=st.sampled_from(("demo-uncond", "other")), data=st.data())
def test_one_more_worker_makes_no_wait_longer(
    ours: Work, theirs: Work, request: ResolvedRequest, other: str, data: st.DataObject
) -> None:
    """This holds if each pipeline had a worker before, and the workers of one pipeline are among the other's."""
    kinds = st.sampled_from([("demo", other), data.draw(st.sampled_from([("demo",), (other,)]))])
    holding = [("demo", other), *data.draw(st.lists(kinds, max_size=4))]
    there = backlog("demo", ours, backlog(other, theirs))
    eta, queued = waits(fleet(*holding), there, request)
    eta_then, queued_then = waits(fleet(*holding, data.draw(kinds)), there, request)
    assert eta_then <= eta * (1 + 1e-9)
    assert queued_then <= queued * (1 + 1e-9)


@given(ours=WORKS, theirs=WORKS)
def test_what_pipelines_of_the_same_workers_have_queued_adds_up_to_what_the_cap_counts(
    ours: Work, theirs: Work
) -> None:
    estimator = Estimator(fleet(("demo", "other"), ("demo", "other")))
    own, others = backlog("demo", ours), backlog("other", theirs)
    total = sum(estimator.own_seconds(each, priority) or 0 for each in (own, others) for priority in PRIORITIES)
    for first, second in ((own, others), (others, own)):
        seen = dataclasses.replace(first, beside=(second,))
        assert estimator.queued_seconds(seen) == pytest.approx(total)


def test_work_is_spread_evenly_over_all_workers_that_serve_its_pipeline() -> None:
    """One of the two workers of "other" also serves "demo": it takes half of its 8 s, and two workers share that."""
    three = fleet(("demo", "other"), ("demo",), ("other",))
    assert three.shares("demo") == {"demo": 1, "other": 0.5}
    queued = backlog("demo", {}, backlog("other", {"low:15:base": 1600}))
    assert Estimator(three).queued_seconds(queued) == pytest.approx(2)


def test_images_in_the_same_network_take_room_in_the_batch_and_no_more_time() -> None:
    beside = backlog("demo", {}, backlog("demo-uncond", {f"running:{BASE_RANK}:base": 100}))
    assert waits(fleet(("demo", "demo-uncond")), beside, request())[0] == pytest.approx(25 * 0.04)
    beside = backlog("demo", {}, backlog("demo-uncond", {f"running:{BASE_RANK - 1}:base": 2000}))
    assert waits(fleet(("demo", "demo-uncond")), beside, request())[0] == pytest.approx(2000 / 2 * 0.005 + 25 * 0.08)


def test_images_in_another_network_take_time_and_no_room() -> None:
    theirs = {f"running:{BASE_RANK - 1}:base": 2000, f"high:{BASE_RANK - 4}:base": 400, f"low:{BASE_RANK + 4}:base": 9}
    beside = backlog("demo", {}, backlog("other", theirs))
    expected = 2000 / 2 * 0.005 + 400 * 0.005 + 25 * 0.04
    assert waits(fleet(("demo", "other")), beside, request())[0] == pytest.approx(expected)


def test_a_stage_is_shared_where_weights_and_guide_are_the_same() -> None:
    unguided = BASE.model_copy(update={"classifier_hash": None})
    mixed = DEMO.model_copy(update={"id": "mixed", "stages": (unguided, UPSAMPLER)})
    known = fleet(pipelines=(DEMO, mixed))
    assert [known.shares_network(stage, "demo", "mixed") for stage in ("base", "upsample")] == [False, True]
    assert not known.shares_network("base", "demo", "never-seen")
    assert known.shares_network("base", "never-seen", "never-seen")


def test_pipeline_without_a_worker_waits_for_its_own_work_alone() -> None:
    nobody = fleet(("other",))
    assert nobody.shares("demo") == {"demo": 1}
    queued = backlog("demo", {"normal:12:base": 400}, backlog("other", {"normal:12:base": 9000}))
    assert Estimator(nobody).queued_seconds(queued) == pytest.approx(2)


@pytest.mark.parametrize(
    ("priority", "place", "ahead"),
    [
        ("normal", 0, 3 + 1 + 1),  # both high queues, and one turn of the other's
        ("normal", 2, 3 + 1 + 2 + 3),
        ("normal", 9, 3 + 1 + 9 + 5),  # it has no more than five
        ("normal", None, 3 + 1),  # it is being claimed
        ("high", 0, 1),
        ("low", 0, 3 + 1 + 7 + 5),
    ],
)
def test_higher_priorities_of_all_go_first_and_equal_ones_take_turns(
    priority: str, place: int | None, ahead: int
) -> None:
    other = backlog("other", {}, high=1, normal=5)
    own = backlog("demo", {}, other, high=3, normal=7, low=2)
    job = request(priority=priority)
    assert Estimator(fleet(("demo", "other"))).jobs_ahead(own, job.priority, place) == ahead
