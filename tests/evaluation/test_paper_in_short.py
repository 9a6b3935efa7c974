"""The paper's sampling rows with few images: 20 a point, or 10 of clothes, sampled from the shipped weights, show the
findings of docs/paper.md. Images of two points are of the same classes and noise, so that differences are paired; each
assertion is of an interval of 95 % that leaves zero out."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench.paper.core import Cell, Lab
from bench.paper.neighbours import nearest
from bench.paper.stages import enlarged
from bench.paper.subject import CLOTHES, DEMO, FASHION, SIZE, RealImages, Subject, pixels_of
from datasets.shapes import render_set
from engine.engine import Engine
from engine.inversion import Inverter
from engine.pipeline import Pipeline, build_stages
from evaluation.intervals import mean_interval
from evaluation.judging import sharpness
from evaluation.sampling import turns
from models.stack import load_stack
from training.data import TRAINING_SEED, open_data

pytestmark = pytest.mark.slow

IMAGES, REFERENCES, TRAINING = 20, 300, 300
PLAIN = Cell(steps=10)
UNCONDITIONAL = replace(PLAIN, conditional=False)
FEWER_IMAGES = 10  # of clothes, of which 10 show what is asserted
HELD_OUT_CLOTHES = Path(__file__).parent / "fashion-mnist"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab("fp32", IMAGES, IMAGES, REFERENCES, tmp_path_factory.mktemp("paper"), rows=4)


@pytest.fixture(scope="module")
def clothes(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """The fashion stack, with shipped images as the reference."""
    shipped = replace(FASHION, held_out=held_out_clothes)
    kept = tmp_path_factory.mktemp("clothes")
    return Lab("fp32", FEWER_IMAGES, FEWER_IMAGES, REFERENCES, kept, rows=4, subject=shipped)


def held_out_clothes(count: int) -> RealImages:
    data = CLOTHES.model_copy(update={"path": str(HELD_OUT_CLOTHES), "held_out_below": 0})
    images = open_data(data, SIZE, Path()).training
    return pixels_of(images)[:count], images.class_labels[:count]


def distances(lab: Lab, cell: Cell) -> Tensor:
    """The distance of each image of a cell to the nearest real one, in the judge's features: low for good images.

    As a logarithm, so that one odd image does not outweigh all others.
    """
    return nearest(lab.features(lab.pixels(cell)).pooled, lab.reference.pooled).log()


def probabilities(lab: Lab, cell: Cell) -> Tensor:
    """The judge's probability of the class asked for, of each image of a cell."""
    labels = torch.tensor(turns(lab.images, 10))
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
    learned, beta = (distances(lab, Cell(sampler="ddpm", steps=10, variance=each)) for each in (None, "large"))
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
    known = render_set(TRAINING, TRAINING_SEED, SIZE)[0].flatten(1).float() / 255
    samples, held_out = (
        nearest(pixels.flatten(1).float() / 255, known) for pixels in (lab.pixels(PLAIN), DEMO.held_out(IMAGES)[0])
    )
    assert float(samples.min()) > 0.5 * float(held_out.min())


@pytest.mark.parametrize("subject", [DEMO, replace(FASHION, held_out=held_out_clothes)], ids=lambda each: each.name)
def test_12_more_steps_reconstruct_an_image_better(subject: Subject) -> None:
    stack = load_stack(subject.folder)
    engine, pipeline = Engine(build_stages([stack], 1), 1), Pipeline(subject.pipeline(conditional=True), stack)
    pixels, labels = subject.held_out(1)
    errors = []
    for steps in (5, 10, 25):
        inverter = Inverter(engine, pipeline, steps, int(labels[0]))
        back = inverter.decode(inverter.encode(pixels), 0.0)
        errors.append(float((back.float() - pixels.float()).abs().mean()))
    assert errors == sorted(errors, reverse=True)


def test_14_a_fifth_of_the_evaluations_costs_quality(lab: Lab) -> None:
    assert is_above(distances(lab, replace(PLAIN, steps=2)), distances(lab, PLAIN))


def test_5_guidance_brings_clothes_to_their_class(clothes: Lab) -> None:
    none, guided = (probabilities(clothes, Cell(scale, conditional=False)) for scale in (0.0, 10.0))
    assert is_above(guided, none)


def test_7_and_14_five_steps_bring_clothes_less_to_their_class_than_ten(clothes: Lab) -> None:
    five, ten = (probabilities(clothes, Cell(2.0, steps=steps)) for steps in (5, 10))
    assert is_above(ten, five)
