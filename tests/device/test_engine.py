"""The shipped demo stack in an engine on the device: the properties of pixels on which a worker relies."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffusion.noise import Draw, normals
from engine.engine import Engine, run_to_end
from engine.pipeline import BASE, UPSAMPLE, Pipeline, build_stages
from engine.stage import Stage
from engine.trajectory import Guidance, ImageRequest, StagePlan, StagePlans
from models.networks.precision import best_precision
from models.stack import load_stack
from vocabulary.precisions import Precision

DEMO = Path(__file__).parents[2] / "weights" / "demo"
MAX_ROWS = 8
STEPS = 5
NEAR = 1.0  # largest mean difference, of 255; the device sums float32 in another order
Loaded = tuple[Pipeline, dict[str, Stage]]


def loaded_on(device: torch.device, precision: Precision) -> Loaded:
    stack = load_stack(DEMO, device)
    return Pipeline(stack.pipelines["demo"], stack), build_stages([stack], MAX_ROWS, precision=precision)


@pytest.fixture(scope="module")
def loaded(device: torch.device) -> Loaded:
    return loaded_on(device, best_precision(device))


@pytest.fixture(scope="module")
def exact(device: torch.device) -> Loaded:
    return loaded_on(device, "fp32")


def requests(loaded: Loaded, *job_ids: str) -> list[ImageRequest]:
    """An image for each job, of all samplers, guided and not, every other one enlarged."""
    found = []
    for index, job_id in enumerate(job_ids):
        base = StagePlan(BASE, ("ddim", "ddpm", "dpmpp_2m", "heun")[index % 4], STEPS)
        enlarged = StagePlan(UPSAMPLE, "ddim", 2) if index % 2 else None
        found.append(
            loaded[0].image(job_id, index, 5, Guidance(index % 10, float(index % 3)), StagePlans(base, enlarged))
        )
    return found


def pixels(loaded: Loaded, images: list[ImageRequest]) -> list[Tensor]:
    return [each.pixels.cpu() for each in run_to_end(Engine(loaded[1], MAX_ROWS), images)]


@pytest.mark.slow
def test_an_image_has_the_same_bytes_alone_and_among_others(loaded: Loaded) -> None:
    images = requests(loaded, *"abcdefgh")
    among = pixels(loaded, images)
    for image, each in zip(images, among, strict=True):
        (alone,) = pixels(loaded, [image])
        assert torch.equal(alone, each), image.plans


@pytest.mark.slow
def test_images_repeat(loaded: Loaded) -> None:
    images = requests(loaded, *"abcd")
    for one, other in zip(pixels(loaded, images), pixels(loaded, images), strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
def test_images_are_those_of_a_cpu_in_float32(device: torch.device, exact: Loaded) -> None:
    here, there = exact, loaded_on(torch.device("cpu"), "fp32")
    ours, theirs = pixels(here, requests(here, *"abcd")), pixels(there, requests(there, *"abcd"))
    for one, other in zip(ours, theirs, strict=True):
        assert float((one.float() - other.float()).abs().mean()) < NEAR


def test_noise_is_that_of_a_cpu(device: torch.device) -> None:
    draws = [Draw(seed, index, 0, 3) for seed in (0, 2**62) for index in range(3)]
    ours, theirs = normals(draws, (3, 33, 31), device).cpu(), normals(draws, (3, 33, 31))
    assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-6)  # logarithm and cosine may round differently
