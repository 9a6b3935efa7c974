"""The shipped demo stack in an engine on the device: the properties of pixels on which a worker relies."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffusion.guidance import row_sums
from diffusion.noise import Draw, normals
from engine.engine import Engine, run_to_end
from engine.inversion import between
from engine.pipeline import BASE, UPSAMPLE, Pipeline, build_stages
from engine.stage import Stage
from engine.trajectory import FromLatent, Guidance, ImageRequest, StagePlan, StagePlans
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
    """An image for each job, of all samplers, guided in each way and not, every other one enlarged."""
    found = []
    for index, job_id in enumerate(job_ids):
        base = StagePlan(BASE, ("ddim", "ddpm", "dpmpp_2m", "heun")[index % 4], STEPS)
        enlarged = StagePlan(UPSAMPLE, "ddim", 2) if index % 2 else None
        guidance = Guidance(index % 10, float(index % 3), entropy_scaled=index >= 4)
        found.append(loaded[0].image(job_id, index, 5, guidance, StagePlans(base, enlarged)))
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


def test_sums_of_many_classes_do_not_depend_on_the_number_of_rows(device: torch.device) -> None:
    """The published classifiers have 1,000; by the entropy of their answers the gradient is scaled."""
    values = torch.rand(32, 1000, generator=torch.Generator().manual_seed(0)).to(device)
    assert torch.equal(row_sums(values), torch.cat([row_sums(row[None]) for row in values]))


def test_frames_are_the_same_if_a_latent_is_from_a_checkpoint(device: torch.device, loaded: Loaded) -> None:
    frames = requests(loaded, *"abc")
    first, last = normals([Draw(1, index, 0, 0) for index in range(2)], (3, 32, 32), device)
    for one, other in zip(between(frames, first, last), between(frames, first.cpu(), last), strict=True):
        assert isinstance(one.start, FromLatent)
        assert isinstance(other.start, FromLatent)
        assert torch.equal(one.start.x, other.start.x)


def test_noise_is_that_of_a_cpu(device: torch.device) -> None:
    draws = [Draw(seed, index, 0, 3) for seed in (0, 2**62) for index in range(3)]
    ours, theirs = normals(draws, (3, 33, 31), device).cpu(), normals(draws, (3, 33, 31))
    assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-6)  # logarithm and cosine may round differently
