"""An image that goes on from a state of it, in another engine, ends with the bytes it would have had undisturbed."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.engine import Engine
from engine.errors import UnfitStateError
from engine.pipeline import BASE
from engine.trajectory import FromLatent, FromPicture, Guidance, ImageRequest, ImageState, StagePlan, StagePlans
from tests.engine.bench import Bench, finish
from vocabulary.sampling import SAMPLERS, Direction

PROPERTY = settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow])


def copied(state: ImageState) -> ImageState:
    low_res = None if state.low_res is None else state.low_res.clone()
    return replace(state, x=state.x.clone(), memory=state.memory.clone(), low_res=low_res)


def stepped(engine: Engine, steps: int) -> Engine:
    for _ in range(steps):
        engine.step()
    return engine


def picture(seed: int = 0) -> torch.Tensor:
    return torch.randint(256, (3, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def reconstruction(bench: Bench) -> ImageRequest:
    there, back = (
        StagePlan(BASE, "ddim", 3, direction=Direction.ENCODE),
        StagePlan(BASE, "ddim", 3, thresholding="none"),
    )
    return bench.conditional.image(
        "job", 0, 7, Guidance(0, 0.0), StagePlans(back, encode=there), start=FromPicture(picture())
    )


def upsampled(bench: Bench) -> ImageRequest:
    small = FromPicture(picture())
    plan = StagePlan("upsample", "ddpm", 6, strength=0.7)
    return bench.conditional.image("job", 0, 7, Guidance(0, 0.0), StagePlans(upsample=plan), start=small)


def variation(bench: Bench) -> ImageRequest:
    base = StagePlan(BASE, "dpmpp_2m", 7, strength=0.6)
    return bench.conditional.image("job", 0, 7, Guidance(0, 3.0), StagePlans(base), start=FromPicture(picture()))


def decoding(bench: Bench) -> ImageRequest:
    latent = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(3))
    return replace(bench.image(steps=5, upsample=2, sampler="heun"), start=FromLatent(latent))


@pytest.mark.parametrize("kind", [reconstruction, upsampled, variation, decoding])
def test_image_of_any_kind_continues_from_every_step_bit_for_bit(
    bench: Bench, kind: Callable[[Bench], ImageRequest]
) -> None:
    request = kind(bench)
    engine = bench.engine()
    engine.add(request)
    states = [copied(engine.states("job")[0])]
    done = []
    while (report := engine.step()) is not None:
        states += [copied(each) for each in engine.states("job").values()]
        done += report.finished
    assert len(states) == request.num_evaluations
    for state in states:
        other = bench.engine()
        other.add(request, state)
        (finished,) = finish(other)
        assert torch.equal(finished.x, done[0].x)


@pytest.mark.slow
@PROPERTY
@given(
    image=st.fixed_dictionaries(
        {
            "steps": st.integers(1, 4),
            "upsample": st.integers(0, 2),
            "sampler": st.sampled_from(SAMPLERS),
            "scale": st.sampled_from([0.0, 5.0]),
            "thresholding": st.sampled_from(["clip", "dynamic", "none"]),
            "eta": st.sampled_from([0.0, 0.5]),
        }
    ),
    share=st.floats(0, 0.99),
    neighbours=st.integers(0, 3),
)
def test_image_continues_with_other_neighbours_bit_for_bit(
    bench: Bench, image: dict[str, Any], share: float, neighbours: int
) -> None:
    image |= {"eta": image["eta"] if image["sampler"] == "ddim" else 0.0}
    request = bench.image(**image)
    first, second = bench.engine(), bench.engine()
    first.add(request)
    state = copied(stepped(first, int(share * request.num_evaluations)).states("job")[0])
    for index in range(neighbours):
        second.add(bench.image("other", index, steps=3, scale=2.0, seed=index))
    second.add(request, state)
    (pixels,) = (each.pixels for each in finish(second) if each.request == request)
    assert torch.equal(pixels, bench.alone(request))


def test_only_what_is_left_is_run_and_scheduled(bench: Bench) -> None:
    request, engine, other = bench.image(steps=5, upsample=2), bench.engine(), bench.engine(max_rows=1)
    engine.add(request)
    other.add(request, stepped(engine, 4).states("job")[0])
    other.add(bench.image("longer", steps=4))
    assert [each.request.job_id for each in finish(other)] == ["job", "longer"], "three steps are less than four"
    other.add(request, stepped(engine, 2).states("job")[0])
    assert len([*iter(other.step, None)]) == 1


def test_states_are_those_of_the_job_and_of_images_that_are_here(bench: Bench) -> None:
    engine = bench.engine()
    for job_id, index, steps in (("job", 0, 1), ("job", 1, 3), ("other", 2, 3)):
        engine.add(bench.image(job_id, index, steps=steps))
    stepped(engine, 1)
    assert {index: state.row for index, state in engine.states("job").items()} == {1: 1}
    assert engine.states("unknown") == {}


@pytest.mark.parametrize(
    "change",
    [
        {"stage_index": 1},
        {"stage_index": -1},
        {"row": 3},
        {"row": -1},
        {"x": torch.zeros(3, 16, 16)},
        {"memory": torch.zeros(3, 4, 4)},
    ],
)
def test_state_that_does_not_fit_is_refused_and_leaves_nothing(bench: Bench, change: dict[str, Any]) -> None:
    engine = bench.engine()
    engine.add(bench.image(steps=3))
    state = engine.states("job")[0]
    engine.abort("job")
    with pytest.raises(UnfitStateError):
        engine.add(bench.image(steps=3), replace(state, **change))
    assert not engine.busy
