"""Steps that are launched before the previous one is retired, as on an asynchronous device.

On a CPU a step is computed when its launch returns. The order of reports is the same as on a GPU.
"""

import dataclasses

import pytest
import torch

from engine.engine import Engine
from engine.errors import DuplicateImageError, NotFiniteError
from engine.step_times import HostTimer
from engine.trajectory import ImageRequest, StagePlan
from tests.engine.bench import MAX_ROWS, Bench, finish, limit_rows, reports

BASE = "tiny/base"


@pytest.fixture
def engine(bench: Bench) -> Engine:
    return bench.engine(depth=2)


def moved(engine: Engine) -> list[str]:
    """The jobs of the images that the next step moves."""
    report = engine.step()
    assert report is not None
    return [each.request.job_id for each in report.moved]


def test_next_step_is_launched_before_the_previous_one_is_retired(bench: Bench, engine: Engine) -> None:
    engine.add(bench.image("early", steps=4))
    assert moved(engine) == ["early"]
    engine.add(bench.image("late", steps=4))
    assert [sorted(moved(engine)) for _ in range(2)] == [["early"], ["early", "late"]]


def test_idle_device_is_given_one_step_and_then_the_next(bench: Bench, engine: Engine) -> None:
    """Newcomers can join before each launch."""
    engine.add(bench.image("early", steps=2))
    assert engine.iterate() is None
    engine.add(bench.image("late", steps=1))
    reports = [engine.iterate() for _ in range(3)]
    reported = [sorted(each.request.job_id for each in report.moved) for report in reports if report is not None]
    assert reported == [["early"], ["early", "late"]]
    assert reports[-1] is None
    assert not engine.busy


def test_each_move_is_reported_once_each_step_and_then_there_is_nothing(bench: Bench, engine: Engine) -> None:
    request = bench.image(steps=3, upsample=2)
    engine.add(request)
    seen = reports(engine)
    assert [(each.stage_index, each.row) for report in seen for each in report.moved] == [
        (0, 1),
        (0, 2),
        (0, 3),
        (1, 1),
        (1, 2),
    ]
    assert [len(report.finished) for report in seen] == [0, 0, 0, 0, 1]
    assert torch.equal(seen[-1].finished[0].pixels, bench.alone(request))
    assert not engine.busy
    assert engine.step() is None


@pytest.mark.parametrize("sampler", ["ddpm", "heun"])
def test_states_are_those_of_retired_steps(bench: Bench, engine: Engine, sampler: str) -> None:
    """A later state would put a checkpoint's image one step ahead of the job's progress."""
    request = bench.image(steps=3, upsample=2, sampler=sampler)
    other = bench.engine(depth=1)
    for each in (engine, other):
        each.add(request)
    while (report := engine.step()) is not None:
        other.step()
        assert len(report.moved) == 1
        ours, theirs = engine.states("job"), other.states("job")
        assert ours.keys() == theirs.keys()
        for index, state in ours.items():
            assert (state.stage_index, state.row) == (theirs[index].stage_index, theirs[index].row)
            assert torch.equal(state.x, theirs[index].x)
            assert torch.equal(state.memory, theirs[index].memory)


def test_image_is_in_the_engine_until_its_last_step_is_retired(bench: Bench, engine: Engine) -> None:
    request = bench.image(steps=2)
    engine.add(request)
    assert moved(engine) == ["job"]
    assert engine.busy
    assert engine.rows_in_flight == 0, "there is room for another"
    assert engine.states("job").keys() == {0}
    with pytest.raises(DuplicateImageError):
        engine.add(request)


def test_aborted_job_is_not_reported_any_more(bench: Bench, engine: Engine) -> None:
    for job_id in ("gone", "stays"):
        engine.add(bench.image(job_id, steps=2))
    assert sorted(moved(engine)) == ["gone", "stays"]
    assert engine.abort("gone"), "its last step is launched and not retired"
    assert not engine.abort("gone")
    report = engine.step()
    assert report is not None
    assert [each.request.job_id for each in report.moved] == ["stays"]
    assert [each.request.job_id for each in report.finished] == ["stays"]
    assert report.num_rows == 2
    assert engine.step() is None


def test_aborted_job_may_come_back_at_once(bench: Bench, engine: Engine) -> None:
    request = dataclasses.replace(bench.image(steps=2), wants_previews=True)
    engine.add(request)
    engine.step()
    engine.abort("job")
    engine.add(request)
    seen = reports(engine)
    assert [each.row for report in seen for each in report.moved] == [1, 2]
    assert [len(report.previews) for report in seen] == [0, 1, 1]
    (finished,) = (each for report in seen for each in report.finished)
    assert torch.equal(finished.pixels, bench.alone(request))


def test_job_that_fails_in_the_step_launched_behind_has_nothing_finished_in_the_one_before(bench: Bench) -> None:
    engine = bench.engine(max_rows=1, depth=2)
    engine.add(bench.image("job", 0, steps=1))
    engine.add(ImageRequest("job", 1, 1, (StagePlan(BASE, "ddim", 2),), network_label=99))
    first, second = reports(engine)
    assert (first.moved, first.finished, first.failed) == ([], [], {})
    assert (second.moved, set(second.failed)) == ([], {"job"})


def test_failure_of_an_aborted_job_is_not_reported_and_its_time_measures_nothing(bench: Bench) -> None:
    engine = bench.engine(max_rows=1, depth=2)
    engine.add(bench.image("good", steps=1))
    engine.add(ImageRequest("broken", 0, 1, (StagePlan(BASE, "ddim", 2),), network_label=99))
    assert moved(engine) == ["good"]
    engine.abort("broken")
    (report,) = reports(engine)
    assert (report.failed, report.num_rows, report.is_whole) == ({}, 0, False)


def test_time_of_a_batch_is_a_measure_where_it_was_computed_at_once(own_bench: Bench) -> None:
    engine = own_bench.engine(depth=2)
    for index in range(MAX_ROWS):
        engine.add(own_bench.image(str(index), steps=2))
    assert [report.is_whole for report in reports(engine)] == [True, True]
    limit_rows(own_bench.conditional.stack.base.network, lambda: 2)
    for index in range(MAX_ROWS):
        engine.add(own_bench.image(str(index), steps=1))
    assert [report.is_whole for report in reports(engine)] == [False]


def test_image_that_overflows_fails_when_it_is_known_and_its_neighbours_do_not(own_bench: Bench) -> None:
    good = own_bench.image("good", steps=2, label=0)
    expected = own_bench.alone(good)
    own_bench.conditional.stack.base.network.label_emb.weight[2] = torch.nan
    engine = own_bench.engine(depth=2)
    engine.add(own_bench.image("bad", label=2, steps=1, upsample=3))
    engine.add(good)
    seen = reports(engine)
    assert seen[0].failed.keys() == {"bad"}
    assert isinstance(seen[0].failed["bad"], NotFiniteError)
    reported = [each.request.job_id for report in seen[1:] for each in report.moved]
    assert reported == ["good"], "launched steps of the other job are not reported"
    (finished,) = (each for report in seen for each in report.finished)
    assert torch.equal(finished.pixels, expected)


def test_only_steps_that_the_device_has_not_finished_are_ahead(
    bench: Bench, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.costs.note(BASE, MAX_ROWS, 0.25)
    for index in range(MAX_ROWS):
        engine.add(bench.image(str(index), steps=3))
    assert engine.seconds_ahead == 0
    engine.step()
    assert engine.seconds_ahead == 0, "this device has done it"
    monkeypatch.setattr(HostTimer, "is_done", False)  # as a device that runs asynchronously, which a CPU does not
    assert engine.seconds_ahead == 0.25
    finish(engine)
    assert engine.seconds_ahead == 0
