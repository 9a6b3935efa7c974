"""The engine when the device's memory does not suffice for a batch, which is no job's fault."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import engine.engine as engine_module
import engine.stage as stage_module
from diffusion.tables import take_step
from engine.engine import Engine
from engine.lanes import Lanes, Rows, compute_rows
from engine.pipeline import build_stages
from engine.row_shapes import agreeing_shapes
from engine.steps import Finished, StepReport
from engine.trajectory import ImageRequest
from models.stack import load_stack
from tests.engine.bench import MAX_ROWS, Bench, finish, limit_rows, reports

BASE, UPSAMPLE = "tiny/base", "tiny/upsample"


def images(bench: Bench) -> list[ImageRequest]:
    return [
        bench.image(f"{i}", i, sampler="ddpm", steps=3, upsample=1, scale=2.0 * (i % 3), label=i % 3) for i in range(6)
    ]


def enter(bench: Bench) -> Engine:
    engine = bench.engine()
    for each in images(bench):
        engine.add(each)
    return engine


def by_key(finished: Iterable[Finished]) -> dict[tuple[str, int], Tensor]:
    return {(each.request.job_id, each.request.index): each.pixels for each in finished}


def undisturbed(seen: list[StepReport], expected: dict[tuple[str, int], Tensor]) -> list[StepReport]:
    """Check that all images came out with the expected bytes; returns the steps of the base."""
    assert not any(report.failed for report in seen)
    finished = by_key(each for report in seen for each in report.finished)
    assert finished.keys() == expected.keys()
    assert all(torch.equal(finished[key], pixels) for key, pixels in expected.items())
    return [report for report in seen if report.stage == BASE]


@pytest.fixture
def expected(bench: Bench) -> dict[tuple[str, int], Tensor]:
    return by_key(finish(enter(bench)))


@pytest.mark.slow
def test_batch_too_large_for_the_memory_is_split_and_later_ones_are_smaller(
    own_bench: Bench, expected: dict[tuple[str, int], Tensor]
) -> None:
    most = 2
    computed = limit_rows(own_bench.conditional.stack.base.network, lambda: most)
    seen = reports(enter(own_bench))
    base = undisturbed(seen, expected)
    assert len(base[0].moved) == MAX_ROWS
    assert max(base[0].lowered["network"]) == most
    assert not any(report.lowered for report in seen[1:])
    assert max(len(report.moved) for report in base[1:]) == max(report.row_shape for report in base[1:]) == most
    assert max(computed) == most
    assert own_bench.stages[BASE].row_shapes["network"][-1] == most
    assert own_bench.stages[UPSAMPLE].row_shapes["network"][-1] == MAX_ROWS
    assert max(len(report.moved) for report in seen if report.stage == UPSAMPLE) == MAX_ROWS


def test_guide_that_runs_out_is_asked_in_parts_and_the_network_is_not(
    own_bench: Bench, expected: dict[tuple[str, int], Tensor]
) -> None:
    stage, classifier = own_bench.stages[BASE], own_bench.conditional.stack.classifier
    assert classifier is not None
    most = stage.row_shapes["guide"][-2]
    limit_rows(classifier.network, lambda: most)
    seen = reports(enter(own_bench))
    assert [report.lowered for report in seen if report.lowered] == [{"guide": stage.row_shapes["guide"]}]
    finished = by_key(each for report in seen for each in report.finished)
    assert all(torch.equal(finished[key], pixels) for key, pixels in expected.items())
    assert (stage.row_shapes["guide"][-1], stage.row_shapes["network"][-1]) == (most, MAX_ROWS)
    pictures = torch.randint(256, (MAX_ROWS, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(stage.classify(pictures)[-1], stage.classify(pictures[-1:])[0])


def test_jobs_that_not_even_one_row_fits_for_leave_unblamed_and_may_come_back(
    own_bench: Bench, expected: dict[tuple[str, int], Tensor]
) -> None:
    free = [0]
    computed = limit_rows(own_bench.conditional.stack.base.network, lambda: free[0])
    engine = enter(own_bench)
    report = engine.step()
    assert report is not None
    assert len(report.failed) == MAX_ROWS
    assert all(isinstance(error, torch.OutOfMemoryError) for error in report.failed.values())
    assert (report.moved, report.lowered, computed, engine.rows_in_flight) == ([], {}, [], 2)
    free[0] = MAX_ROWS
    for each in images(own_bench):
        if each.job_id in report.failed:
            engine.add(each)
    finished = by_key(finish(engine))
    assert all(torch.equal(finished[key], pixels) for key, pixels in expected.items())


def test_batch_that_there_is_no_memory_for_beside_the_networks_is_split_and_later_ones_are_smaller(
    own_bench: Bench, expected: dict[tuple[str, int], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def step_of_few(rows: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        if len(rows) > 2:
            raise torch.OutOfMemoryError
        return take_step(rows, *others)

    monkeypatch.setattr(stage_module, "take_step", step_of_few)  # a GPU of little memory; a CPU raises no such error
    seen = reports(enter(own_bench))
    base = undisturbed(seen, expected)
    assert [len(report.moved) for report in base[:2]] == [MAX_ROWS, 2]
    assert [report.lowered for report in base if report.lowered] == [
        {"network": own_bench.stages[BASE].row_shapes["network"]}
    ]
    assert own_bench.stages[BASE].row_shapes["network"][-1] == 2


def test_guide_that_never_fits_fails_the_guided_alone_and_costs_the_network_no_shape(own_bench: Bench) -> None:
    stage, classifier = own_bench.stages[BASE], own_bench.conditional.stack.classifier
    assert classifier is not None
    limit_rows(classifier.network, lambda: 0)
    report = enter(own_bench).step()
    assert report is not None
    guided = {each.job_id for each in images(own_bench) if each.guidance_scale}
    assert report.failed.keys() == {"0", "1", "2", "3"} & guided
    assert len(report.moved) + len(report.failed) == MAX_ROWS
    assert (report.lowered, stage.row_shapes["network"][-1]) == ({}, MAX_ROWS)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
@pytest.mark.parametrize("place", ["enlarge", "to_uint8"])
def test_image_that_breaks_between_two_stages_fails_its_own_job_alone(
    own_bench: Bench, expected: dict[tuple[str, int], Tensor], monkeypatch: pytest.MonkeyPatch, place: str, error: type
) -> None:
    asked = []

    def break_first(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
        asked.append(inputs)
        if len(asked) == 1:
            raise error
        return function(*inputs)

    owner = own_bench.stages[UPSAMPLE] if place == "enlarge" else engine_module
    # no CPU raises these errors
    monkeypatch.setattr(owner, place, partial(break_first, getattr(owner, place)))
    seen = reports(enter(own_bench))
    ((job_id, why),) = (each for report in seen for each in report.failed.items())
    assert isinstance(why, error)
    finished = by_key(each for report in seen for each in report.finished)
    assert finished.keys() == expected.keys() - {(job_id, int(job_id))}
    assert all(torch.equal(pixels, expected[key]) for key, pixels in finished.items())


def test_image_that_there_is_no_room_for_is_not_entered(own_bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(*_: object) -> Tensor:  # a CPU raises no such error for tensors of this size
        raise torch.OutOfMemoryError

    engine = own_bench.engine()
    with monkeypatch.context() as patched:
        patched.setattr(own_bench.stages[BASE], "starting_noise", run_out)
        with pytest.raises(torch.OutOfMemoryError):
            engine.add(own_bench.image())
    assert not engine.busy
    engine.add(own_bench.image())
    assert len(finish(engine)) == 1


def test_shapes_that_the_memory_does_not_suffice_for_at_start_are_left_out(stack_folder: Path) -> None:
    stack = load_stack(stack_folder)
    limit_rows(stack.base.network, lambda: 2)
    stages = build_stages([stack], MAX_ROWS, threads=1)
    assert stages[BASE].row_shapes["network"][-1] == 2
    assert stages[BASE].row_shapes["guide"][-1] == stages[UPSAMPLE].row_shapes["network"][-1] == MAX_ROWS


def test_no_shape_is_left_where_nothing_fits() -> None:
    def run_out(*_: object) -> Tensor:
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        agreeing_shapes(run_out, (2, 4, 8), windows=1)
    with pytest.raises(torch.OutOfMemoryError):
        compute_rows(Lanes(2), [Rows(run_out, (2, 4), (torch.zeros(3, 1),))])


def test_parts_are_padded_to_the_shapes_there_are() -> None:
    asked = []

    def double(x: Tensor) -> Tensor:
        asked.append(len(x))
        if len(x) > 4:
            raise torch.OutOfMemoryError
        return 2 * x

    x = torch.arange(7.0)[:, None]
    ((answer, left),) = compute_rows(Lanes(), [Rows(double, (1, 2, 4, 8), (x,))])
    assert torch.equal(answer, 2 * x)
    assert (left, asked) == ((1, 2, 4), [8, 4, 4])
