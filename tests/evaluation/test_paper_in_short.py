"""The paper's sampling rows with few images: 20 a point, sampled from the shipped weights, show the findings of
docs/paper.md. Images of two points are of the same classes and noise, so that differences are paired; each assertion is
of an interval of 95 % that leaves zero out."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bench.paper.core import DEMO, Cell, Lab
from bench.paper.neighbours import nearest
from bench.paper.stages import enlarged
from bench.reconstruction import SEED
from datasets.shapes import render_set
from engine.engine import Engine
from engine.inversion import Inverter
from engine.pipeline import Pipeline, build_stages
from evaluation.intervals import mean_interval
from evaluation.judging import sharpness
from evaluation.sampling import turns
from models.stack import load_stack
from training.data import TRAINING_SEED

pytestmark = pytest.mark.slow

IMAGES, REFERENCES, TRAINING = 20, 300, 300
PLAIN = Cell(steps=10)
UNCONDITIONAL = replace(PLAIN, pipeline="demo-uncond")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab("fp32", IMAGES, IMAGES, REFERENCES, tmp_path_factory.mktemp("paper"), rows=4)


def distances(lab: Lab, cell: Cell) -> Tensor:
    """The distance of each image of a cell to the nearest render, in the judge's features: low for good images."""
    return nearest(lab.features(lab.pixels(cell)).pooled, lab.reference.pooled)


def probabilities(lab: Lab, cell: Cell) -> Tensor:
    """The judge's probability of the class asked for, of each image of a cell."""
    labels = torch.tensor(turns(IMAGES, 10))
    found = lab.features(lab.pixels(cell)).probabilities
    assert found is not None
    return found.gather(1, labels[:, None])[:, 0]


def is_above(one: Tensor, other: Tensor) -> bool:
    """Return whether paired values are larger than the others by more than chance."""
    return mean_interval(one - other)[0] > 0


def test_4_guidance_brings_images_nearer_to_renders_until_it_breaks_them(lab: Lab) -> None:
    none, best, largest = (distances(lab, replace(UNCONDITIONAL, scale=scale)) for scale in (0.0, 10.0, 40.0))
    assert is_above(none, best)
    assert is_above(largest, best)


def test_5_scale_1_does_not_reach_the_class_and_10_does(lab: Lab) -> None:
    none, one, ten = (probabilities(lab, replace(UNCONDITIONAL, scale=scale)) for scale in (0.0, 1.0, 10.0))
    assert is_above(one, none)
    assert is_above(ten, one)
    assert mean_interval(one)[1] < mean_interval(ten)[0]


def test_7_five_evaluations_are_too_few_for_heun(lab: Lab) -> None:
    few = Cell(sampler="heun", steps=3)
    assert few.plan.num_evaluations == 5
    assert is_above(distances(lab, few), distances(lab, PLAIN))


def test_8_beta_as_the_variance_is_worse_than_the_learned_one_in_few_steps(lab: Lab) -> None:
    learned, beta = (distances(lab, Cell(sampler="ddpm", steps=10, variance=each)) for each in ("learned", "large"))
    assert is_above(beta, learned)


def test_9_upsampling_adds_details_that_enlarging_does_not(lab: Lab) -> None:
    upsampled, large = lab.pixels(replace(PLAIN, upsample=True)), enlarged(lab.pixels(PLAIN))
    gained = torch.tensor(
        [sharpness(one[None]) - sharpness(other[None]) for one, other in zip(upsampled, large, strict=True)]
    )
    assert mean_interval(gained)[0] > 0


def test_10_a_temperature_above_1_is_worse(lab: Lab) -> None:
    assert is_above(distances(lab, replace(PLAIN, eps_scale=0.97)), distances(lab, PLAIN))


def test_11_samples_are_no_copies_of_training_images(lab: Lab) -> None:
    size = lab.judge.image_size
    known = render_set(TRAINING, TRAINING_SEED, size)[0].flatten(1).float() / 255
    samples, held_out = (
        nearest(pixels.flatten(1).float() / 255, known)
        for pixels in (lab.pixels(PLAIN), render_set(IMAGES, SEED, size)[0])
    )
    assert float(samples.min()) > 0.5 * float(held_out.min())


def test_12_more_steps_reconstruct_an_image_better() -> None:
    stack = load_stack(DEMO)
    engine, pipeline = Engine(build_stages([stack], 1), 1), Pipeline(stack.pipelines["demo"], stack)
    pixels, _ = render_set(1, SEED, stack.base.network.config.image_size)
    errors = []
    for steps in (5, 10, 25):
        inverter = Inverter(engine, pipeline, steps, 0)
        back = inverter.decode(inverter.encode(pixels), 0.0)
        errors.append(float((back.float() - pixels.float()).abs().mean()))
    assert errors == sorted(errors, reverse=True)


def test_14_a_fifth_of_the_evaluations_costs_quality(lab: Lab) -> None:
    assert is_above(distances(lab, replace(PLAIN, steps=2)), distances(lab, PLAIN))
