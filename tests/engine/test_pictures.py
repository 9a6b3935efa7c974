"""Jobs from a picture or a latent: encodings and back, variations, enlargements, the classifier's answer."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from datasets.shapes import render_set
from diffusion.pixels import from_uint8
from engine.engine import Engine
from engine.errors import UnknownOfferError
from engine.pipeline import Pipeline, build_stages
from engine.steps import Finished
from engine.trajectory import FromLatent, FromPicture, Guidance, ImageRequest, StagePlan, StagePlans
from models.stack import load_stack
from tests.engine.bench import Bench, finish
from vocabulary.sampling import Direction

BASE, UPSAMPLE = "base", "upsample"


def picture(seed: int, size: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, size, size), generator=generator).to(torch.uint8)


def run(bench: Bench, *requests: ImageRequest) -> list[Finished]:
    engine = bench.engine()
    for request in requests:
        engine.add(request)
    return sorted(finish(engine), key=lambda each: each.request.index)


def inversion(bench: Bench, steps: int, *, scale: float = 0.0, decode: bool = True, index: int = 0) -> ImageRequest:
    encode = StagePlan(BASE, "ddim", steps, direction=Direction.ENCODE)
    base = StagePlan(BASE, "ddim", steps, thresholding="none") if decode else None
    start = FromPicture(picture(1))
    return bench.conditional.image("job", index, 5, Guidance(0, scale), StagePlans(base, encode=encode), start=start)


@pytest.mark.slow
def test_demo_network_reconstructs_a_render_the_better_the_more_steps() -> None:
    """Unguided, on the demo, because a random network would show nothing: 10 steps reach within 16 of 255."""
    stack = load_stack(Path("weights/demo"))
    pipeline, stages = Pipeline(stack.pipelines["demo"], stack), build_stages([stack], 2)
    pixels, labels = render_set(2, 1001, 32)
    errors = []
    for steps in (10, 30):
        engine = Engine(stages, 2)
        encode, base = (
            StagePlan(BASE, "ddim", steps, direction=Direction.ENCODE),
            StagePlan(BASE, "ddim", steps, thresholding="none"),
        )
        for i in range(2):
            start = FromPicture(pixels[i])
            label = int(labels[i])
            engine.add(pipeline.image("job", i, 0, Guidance(label, 0.0), StagePlans(base, encode=encode), start=start))
        done = sorted(finish(engine), key=lambda each: each.request.index)
        errors.append(float((torch.stack([each.pixels for each in done]).float() - pixels.float()).abs().mean()))
    assert errors[1] < 0.6 * errors[0] < 0.6 * 16


def test_latent_of_an_encoding_is_decoded_as_if_it_had_never_left(bench: Bench) -> None:
    whole, encoded = run(bench, inversion(bench, 6), inversion(bench, 6, decode=False, index=1))
    base = StagePlan(BASE, "ddim", 6, thresholding="none")
    start = FromLatent(encoded.x)
    (decoded,) = run(bench, bench.conditional.image("job", 0, 5, Guidance(0, 0.0), StagePlans(base), start=start))
    assert torch.equal(decoded.x, whole.x)


def test_encoding_is_never_guided_and_the_way_back_is(bench: Bench) -> None:
    guided = inversion(bench, 4, scale=20.0)
    plain = dataclasses.replace(inversion(bench, 4, index=1), start=guided.start)
    encodings = [dataclasses.replace(each, plans=each.plans[:1]) for each in (guided, plain)]
    first, second = run(bench, *encodings)
    assert torch.equal(first.x, second.x)
    there, back = run(bench, guided, plain)
    assert not torch.equal(there.x, back.x)


def test_starting_noise_as_a_latent_makes_the_ordinary_image(bench: Bench) -> None:
    request = bench.image(steps=3, scale=2.0)
    noise = bench.stages[request.plans[0].stage].starting_noise(request.seed, request.index)
    (again,) = run(bench, dataclasses.replace(request, start=FromLatent(noise)))
    assert torch.equal(again.pixels, bench.alone(request))


def variation(bench: Bench, strength: float, sampler: str = "ddim", index: int = 0) -> ImageRequest:
    base = StagePlan(BASE, sampler, 20, strength=strength)
    return bench.conditional.image("job", index, 5, Guidance(0, 0.0), StagePlans(base), start=FromPicture(picture(1)))


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m", "heun"])
def test_variation_takes_its_share_of_the_steps_and_leaves_the_picture_with_its_strength(
    bench: Bench, sampler: str
) -> None:
    whole = variation(bench, 1.0, sampler).num_evaluations
    strengths = (0.05, 0.5, 1.0)
    requests = [variation(bench, strength, sampler, i) for i, strength in enumerate(strengths)]
    assert [each.num_evaluations for each in requests] == [1, whole // 2, whole]
    x0 = from_uint8(picture(1))
    distances = [float((done.x - x0).abs().mean()) for done in run(bench, *requests)]
    assert distances == sorted(distances)
    assert distances[0] < 0.1


def test_images_of_a_variation_differ(bench: Bench) -> None:
    first, second = run(bench, variation(bench, 0.5), variation(bench, 0.5, index=1))
    assert not torch.equal(first.pixels, second.pixels)


def test_picture_is_enlarged_as_a_base_image_of_the_same_pixels_is(bench: Bench) -> None:
    plan = StagePlan(UPSAMPLE, "ddpm", 3)
    start = FromPicture(picture(2))
    (enlarged,) = run(bench, bench.conditional.image("job", 0, 5, Guidance(), StagePlans(upsample=plan), start=start))
    assert enlarged.pixels.shape == (3, 16, 16)
    (other,) = run(
        bench,
        bench.conditional.image("job", 0, 5, Guidance(), StagePlans(upsample=plan), start=FromPicture(picture(3))),
    )
    assert not torch.equal(enlarged.pixels, other.pixels)


def test_neighbours_change_nothing_for_what_starts_from_a_picture(bench: Bench) -> None:
    mixed = [inversion(bench, 5), variation(bench, 0.4, index=1), variation(bench, 0.9, "dpmpp_2m", index=2)]
    together = run(bench, *mixed)
    for request, done in zip(mixed, together, strict=True):
        (alone,) = run(bench, request)
        assert torch.equal(alone.x, done.x)


def test_classifier_answers_for_each_picture_whatever_stands_beside_it(bench: Bench) -> None:
    stage = bench.stages["tiny/base"]
    pictures = torch.stack([picture(seed) for seed in range(7)])
    answers = stage.classify(pictures)
    assert answers.shape == (7, 3)
    torch.testing.assert_close(answers.sum(dim=1), torch.ones(7))
    for i in range(7):
        assert torch.equal(stage.classify(pictures[i : i + 1])[0], answers[i])


def test_stage_without_a_classifier_cannot_answer(bench: Bench) -> None:
    with pytest.raises(UnknownOfferError, match="no classifier"):
        bench.stages["tiny/upsample"].classify(picture(1)[None])


def test_encoding_of_one_step_is_refused(bench: Bench) -> None:
    with pytest.raises(UnknownOfferError, match="from 2 to"):
        bench.engine().add(inversion(bench, 1))


def test_upsampler_of_little_strength_starts_from_the_enlarged_image(bench: Bench) -> None:
    """At strength 1 it starts from noise alone, as published; a lower strength stays nearer to the image."""
    small = picture(2)
    enlarged = torch.nn.functional.interpolate(from_uint8(small)[None], (16, 16), mode="bilinear")[0]
    distances = []
    for strength in (0.05, 0.5, 1.0):
        plan = StagePlan(UPSAMPLE, "ddpm", 20, strength=strength)
        (done,) = run(
            bench,
            bench.conditional.image("job", 0, 5, Guidance(), StagePlans(upsample=plan), start=FromPicture(small)),
        )
        distances.append(float((done.x - enlarged).abs().mean()))
    assert distances == sorted(distances)
    assert distances[0] < 0.2


def test_strength_holds_for_an_image_that_comes_from_the_base_too(bench: Bench) -> None:
    base, plan = StagePlan(BASE, "ddim", 3), StagePlan(UPSAMPLE, "ddpm", 10, strength=0.3)
    through = bench.conditional.image("job", 0, 5, Guidance(0, 0.0), StagePlans(base, plan))
    assert through.num_evaluations == 6
    (small,) = run(bench, bench.conditional.image("job", 0, 5, Guidance(0, 0.0), StagePlans(base)))
    (large,) = run(bench, through)
    start = FromPicture(small.pixels)
    (again,) = run(bench, bench.conditional.image("job", 0, 5, Guidance(), StagePlans(upsample=plan), start=start))
    assert torch.equal(large.pixels, again.pixels)
