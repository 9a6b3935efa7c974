"""The engine over a tiny real network: who moves when, what leaves with whom, and that neighbours change nothing."""

import dataclasses
from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffusion.pixels import from_uint8, to_uint8
from engine.errors import DuplicateImageError, NotFiniteError, UnknownOfferError
from engine.steps import StepReport
from engine.trajectory import ImageRequest, StagePlan, Trajectory
from tests.engine.bench import MAX_ROWS, Bench, finish, reports
from vocabulary.sampling import SAMPLERS, THRESHOLDINGS, TIME_GRIDS

PROPERTY = settings(
    max_examples=8,
    suppress_health_check=[HealthCheck.too_slow],
)
BASE, UPSAMPLE = "tiny/base", "tiny/upsample"


def moved(report: StepReport | None) -> list[str]:
    """The jobs whose images a step moved, in order."""
    assert report is not None
    return [each.request.job_id for each in report.moved]


def test_engine_without_images_has_nothing_to_do(bench: Bench) -> None:
    engine = bench.engine()
    assert engine.step() is None
    assert not engine.busy


@pytest.mark.slow
@PROPERTY
@given(
    plan=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4), st.integers(0, 2)), min_size=1, max_size=6),
    max_rows=st.integers(1, MAX_ROWS),
    depth=st.integers(1, 3),
)
def test_each_image_runs_exactly_its_own_steps(
    bench: Bench, plan: list[tuple[int, int, int]], max_rows: int, depth: int
) -> None:
    engine, ran, finished = bench.engine(max_rows, depth), Counter[tuple[str, str]](), Counter[str]()
    tick = 0
    while engine.busy or tick <= 4:
        for i, (arrives_at, steps, upsample) in enumerate(plan):
            if arrives_at == tick:
                engine.add(bench.image(str(i), steps=steps, upsample=upsample))
        tick += 1
        if (report := engine.step()) is not None:
            assert len(report.moved) <= min(max_rows, report.row_shape)
            ran.update((each.request.job_id, report.stage) for each in report.moved)
            finished.update(each.request.job_id for each in report.finished)
    assert ran == {
        (str(i), stage): steps
        for i, (_, base, upsample) in enumerate(plan)
        for stage, steps in ((BASE, base), (UPSAMPLE, upsample))
        if steps
    }
    assert finished == {str(i): 1 for i in range(len(plan))}


mixed_images = st.lists(
    st.fixed_dictionaries(
        {
            "steps": st.integers(1, 4),
            "upsample": st.integers(0, 2),
            "sampler": st.sampled_from(SAMPLERS),
            "time_grid": st.sampled_from(TIME_GRIDS),
            "thresholding": st.sampled_from(THRESHOLDINGS),
            "label": st.sampled_from([None, 0, 1, 2]),
            "scale": st.sampled_from([0.0, 1.0, 20.0]),
            "interval": st.sampled_from([(0, 1000), (200, 700)]),
            "seed": st.integers(0, 2**63 - 1),
        }
    ),
    min_size=2,
    max_size=6,
)


@pytest.mark.slow
@PROPERTY
@given(mixed=mixed_images)
def test_pixels_do_not_depend_on_the_neighbours(bench: Bench, mixed: list[dict[str, object]]) -> None:
    requests = [bench.image(str(i), **arguments) for i, arguments in enumerate(mixed)]  # type: ignore[arg-type] # theirs
    engine = bench.engine()
    for request in requests:
        engine.add(request)
    finished = {each.request: each.pixels for each in finish(engine)}
    assert set(finished) == set(requests)
    for request, pixels in finished.items():
        assert torch.equal(pixels, bench.alone(request))


def test_newcomer_joins_the_next_step(bench: Bench) -> None:
    engine = bench.engine()
    engine.add(bench.image("early", steps=3))
    engine.step()
    engine.add(bench.image("late", steps=3))
    assert sorted(moved(engine.step())) == ["early", "late"]


def test_job_with_least_left_goes_first_in_all_its_stages(bench: Bench) -> None:
    engine = bench.engine(max_rows=1)
    engine.add(bench.image("slow", steps=6, upsample=2))
    engine.add(bench.image("quick", steps=1, upsample=1))
    finished = [each.request.job_id for each in finish(engine)]
    assert finished == ["quick", "slow"]


def test_image_that_is_in_already_is_refused(bench: Bench) -> None:
    engine = bench.engine()
    engine.add(bench.image("job", 0))
    engine.add(bench.image("job", 1))
    with pytest.raises(DuplicateImageError, match="image 1 of job job"):
        engine.add(bench.image("job", 1))
    assert engine.rows_in_flight == 2


def test_aborted_job_leaves_with_all_its_images_before_the_next_step(bench: Bench) -> None:
    engine = bench.engine()
    for job_id, index in (("gone", 0), ("stays", 0), ("gone", 1)):
        engine.add(bench.image(job_id, index))
    engine.step()
    assert engine.abort("gone")
    assert moved(engine.step()) == ["stays"]
    assert not engine.abort("gone")


def test_aborted_job_may_come_back_from_its_start(bench: Bench) -> None:
    request = bench.image("job", steps=3)
    engine = bench.engine()
    engine.add(request)
    engine.step()
    engine.abort("job")
    engine.add(request)
    (finished,) = finish(engine)
    assert torch.equal(finished.pixels, bench.alone(request))


@pytest.mark.parametrize("steps", [0, 1001])
@pytest.mark.parametrize("stage", ["steps", "upsample"])
def test_plan_that_no_stage_can_run_is_refused_at_the_door(bench: Bench, stage: str, steps: int) -> None:
    engine = bench.engine()
    plans = {"steps": 2, "upsample": 2} | {stage: steps}
    base, upsample = (StagePlan(key, "ddim", plans[name]) for key, name in ((BASE, "steps"), (UPSAMPLE, "upsample")))
    with pytest.raises(UnknownOfferError, match=f"^{steps} steps of 1000"):
        engine.add(ImageRequest("job", 0, 0, (base, upsample), network_label=0))
    assert not engine.busy


@pytest.mark.parametrize("place", range(MAX_ROWS))
@pytest.mark.parametrize("label", [{"network_label": 99}, {"guidance_target": ((99, 1.0),)}], ids=str)
def test_row_that_breaks_fails_its_job_alone(bench: Bench, place: int, label: dict[str, object]) -> None:
    """A label beyond the embedding, or beyond the classifier's logits, raises inside the network."""
    plan = (StagePlan(BASE, "ddpm", 2),)
    request = ImageRequest("broken", 0, 1, plan, network_label=0, guidance_scale=2.0)
    broken = dataclasses.replace(request, **label)  # type: ignore[arg-type]  # each value has its field's type
    good = [bench.image(str(i), sampler="ddpm", scale=3.0, label=i, seed=i) for i in range(MAX_ROWS - 1)]
    engine = bench.engine()
    for request in [*good[:place], broken, *good[place:]]:
        engine.add(request)
    first, *rest = reports(engine)
    assert set(first.failed) == {"broken"}
    assert isinstance(first.failed["broken"], IndexError | RuntimeError)
    assert sorted(moved(first)) == [request.job_id for request in good]
    assert not any(report.failed for report in rest)
    finished = {each.request: each.pixels for each in rest[-1].finished}
    assert set(finished) == set(good)
    for request, pixels in finished.items():
        assert torch.equal(pixels, bench.alone(request))


def test_job_with_a_broken_image_leaves_with_its_good_ones(bench: Bench) -> None:
    engine = bench.engine()
    good, bad = bench.image("job", 0), ImageRequest("job", 1, 1, (StagePlan(BASE, "ddim", 2),), network_label=99)
    engine.add(good)
    engine.add(bad)
    report = engine.step()
    assert report is not None
    assert set(report.failed) == {"job"}
    assert not engine.busy


def test_image_that_overflows_fails_and_its_neighbours_do_not(own_bench: Bench) -> None:
    good = own_bench.image("good", label=0)
    expected = own_bench.alone(good)
    own_bench.conditional.stack.base.network.label_emb.weight[2] = torch.nan
    engine = own_bench.engine()
    engine.add(own_bench.image("bad", label=2, upsample=2))
    engine.add(good)
    seen = reports(engine)
    assert [set(report.failed) for report in seen] == [set(), {"bad"}]
    assert isinstance(seen[-1].failed["bad"], NotFiniteError)
    (finished,) = seen[-1].finished
    assert torch.equal(finished.pixels, expected)


def test_next_stage_gets_the_truncated_8_bit_image(bench: Bench) -> None:
    engine = bench.engine()
    engine.add(bench.image(steps=2, upsample=1))
    _, first, second = reports(engine)
    (base,), (upsampled,) = first.moved, second.moved
    assert upsampled.low_res is not None
    assert torch.equal(upsampled.low_res, from_uint8(to_uint8(base.x)))
    assert not torch.equal(upsampled.low_res, base.x)
    (finished,) = second.finished
    assert torch.equal(finished.pixels, to_uint8(upsampled.x))
    assert (first.finished, finished.pixels.shape) == ([], (3, 16, 16))


def test_stages_of_an_image_start_from_different_noise(bench: Bench) -> None:
    base, upsample = (bench.stages[key].starting_noise(7, 0) for key in (BASE, UPSAMPLE))
    assert not torch.equal(base, upsample[:, :8, :8])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_guidance_outside_its_interval_is_none(bench: Bench, sampler: str) -> None:
    def pixels(scale: float, interval: tuple[int, int]) -> torch.Tensor:
        return bench.alone(bench.image(steps=4, sampler=sampler, scale=scale, interval=interval))

    plain, everywhere = pixels(0.0, (0, 1000)), pixels(20.0, (0, 1000))
    assert not torch.equal(plain, everywhere)
    assert torch.equal(pixels(20.0, (997, 998)), plain)
    assert torch.equal(pixels(20.0, (0, 999)), everywhere)
    partly = pixels(20.0, (0, 500))
    assert not torch.equal(partly, plain)
    assert not torch.equal(partly, everywhere)


@pytest.mark.parametrize(
    ("interval", "guided"), [((0, 1000), 4), ((250, 500), 2), ((251, 499), 0), ((750, 750), 1), ((800, 1000), 0)]
)
def test_interval_includes_both_its_ends(bench: Bench, interval: tuple[int, int], guided: int) -> None:
    request = bench.image(steps=4, scale=1.0, interval=interval)  # DDIM: timesteps 750, 500, 250 and 0
    trajectory = Trajectory(request, bench.stages[BASE].table(StagePlan(BASE, "ddim", 4)), torch.zeros(3, 8, 8))
    count = 0
    for row in range(4):
        trajectory.row = row
        count += trajectory.guided
    assert count == guided


def test_upsampler_is_never_guided(bench: Bench) -> None:
    request = bench.image(steps=1, upsample=2, scale=5.0)
    table = bench.stages[UPSAMPLE].table(StagePlan(BASE, "ddim", 2))
    assert not Trajectory(request, table, torch.zeros(3, 16, 16), stage_index=1).guided


def test_no_class_is_the_last_row_and_steers_nothing(bench: Bench) -> None:
    request = bench.image(label=None, scale=0.0)
    assert (request.network_label, request.guidance_target) == (3, ())


def test_unconditional_pipeline_steers_by_the_classifier_alone(bench: Bench) -> None:
    requests = [bench.image(label=label, scale=20.0, pipeline=bench.unconditional) for label in (0, 1)]
    assert [request.network_label for request in requests] == [3, 3]
    assert [request.guidance_target for request in requests] == [((0, 1.0),), ((1, 1.0),)]
    assert not torch.equal(bench.alone(requests[0]), bench.alone(requests[1]))


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 8},
        {"index": 1},
        {"label": 1},
        {"scale": 20.0},
        {"steps": 3},
        {"sampler": "ddpm"},
        {"sampler": "dpmpp_2m"},
        {"sampler": "heun"},
        {"eta": 1.0},
        {"time_grid": "uniform"},
        {"thresholding": "dynamic"},
    ],
)
def test_everything_that_determines_an_image_changes_it(bench: Bench, changes: dict[str, object]) -> None:
    plain, changed = bench.image(steps=4), bench.image(**{"steps": 4} | changes)  # type: ignore[arg-type]  # each value has its argument's type
    assert not torch.equal(bench.alone(plain), bench.alone(changed))


def test_steps_are_counted_over_all_stages(bench: Bench) -> None:
    engine, request = bench.engine(), bench.image(steps=2, upsample=3)
    engine.add(request)
    assert sum(len(report.moved) for report in reports(engine)) == request.num_evaluations == 5


def test_step_of_heun_is_two_steps_of_the_engine_but_for_the_last(bench: Bench) -> None:
    engine, request = bench.engine(), bench.image(steps=3, upsample=1, sampler="heun")
    engine.add(request)
    assert [report.stage for report in reports(engine)] == [BASE] * 5 + [UPSAMPLE]
    assert request.num_evaluations == 6


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun"])
def test_image_that_comes_back_remembers_nothing(bench: Bench, sampler: str) -> None:
    request = bench.image("job", steps=4, sampler=sampler, scale=5.0)
    engine = bench.engine()
    for steps in (1, 2, 3):
        engine.add(request)
        for _ in range(steps):
            engine.step()
        engine.abort("job")
    engine.add(request)
    (finished,) = finish(engine)
    assert torch.equal(finished.pixels, bench.alone(request))


def test_report_has_the_shape_a_batch_was_padded_to(bench: Bench) -> None:
    engine = bench.engine()
    for index in range(3):
        engine.add(bench.image("job", index, steps=1))
    report = engine.step()
    assert report is not None
    assert report.row_shape == min(shape for shape in bench.stages[BASE].row_shapes["network"] if shape >= 3)
