"""A stage uses the training process that the stack states."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench.selfcheck import predicting_x0
from diffusion.process import DiffusionProcess, MeanType, VarianceType
from engine.diffusion_process import process_of
from engine.pipeline import BASE, UPSAMPLE, Pipeline, build_stages
from engine.stage import Stage
from engine.trajectory import FromPicture, Guidance, StagePlan, StagePlans
from models.networks.config import DiffusionConfig
from models.networks.unet import UNet, build_unet
from models.stack import DiffusionNetwork, Stack, load_stack
from tests.engine.bench import Bench, finish
from tests.models.samples import BASE as BASE_CONFIG
from tests.models.samples import seeded

LONG = DiffusionConfig("linear", 4000, rescale_timesteps=True)


@pytest.fixture(scope="module")
def stack(stack_folder: Path) -> Stack:
    return load_stack(stack_folder)


def bench_of(stack: Stack, network: UNet, process: DiffusionConfig) -> Bench:
    base = DiffusionNetwork(network, process, "")
    changed = replace(stack, base=base, upsampler=None)
    pipelines = [Pipeline(spec, changed) for spec in changed.pipelines.values()]
    stages: dict[str, Stage] = build_stages([changed], 4)
    return Bench(pipelines[0], pipelines[1], stages)


def times_seen(module: nn.Module) -> list[float]:
    seen: list[float] = []

    def note(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen.append(float(given[1][0]))

    module.register_forward_pre_hook(note)
    return seen


@pytest.mark.parametrize(
    ("flags", "out_channels", "mean_type", "variance_type"),
    [
        ({}, 6, MeanType.EPSILON, VarianceType.LEARNED_RANGE),
        ({"predict_xstart": True}, 3, MeanType.START_X, VarianceType.FIXED_LARGE),
        ({"sigma_small": True}, 3, MeanType.EPSILON, VarianceType.FIXED_SMALL),
    ],
)
def test_flags_make_the_process_of_the_official_code(
    flags: dict[str, bool], out_channels: int, mean_type: MeanType, variance_type: VarianceType
) -> None:
    network = build_unet(replace(BASE_CONFIG, out_channels=out_channels))
    process = process_of(DiffusionNetwork(network, DiffusionConfig("cosine", 50, **flags), ""))
    assert (process.mean_type, process.variance_type, process.rescale_timesteps) == (mean_type, variance_type, False)


def test_networks_see_rescaled_timesteps_and_the_interval_is_of_original_ones(stack: Stack) -> None:
    assert stack.classifier is not None
    network = seeded(build_unet(BASE_CONFIG), 0)
    bench = bench_of(stack, network, LONG)
    seen, guided = times_seen(network), times_seen(stack.classifier.network)
    request = bench.image(steps=4, sampler="ddim", scale=1.0, interval=(1500, 2500))
    bench.alone(request)
    assert seen == [750.0, 500.0, 250.0, 0.0]  # of the originals 3000, 2000, 1000 and 0
    assert guided == [500.0]


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m", "heun"])
def test_network_that_predicts_x0_draws_the_images_of_its_twin_that_predicts_eps(stack: Stack, sampler: str) -> None:
    plain = DiffusionConfig("linear", 100)
    network = seeded(build_unet(BASE_CONFIG), 0)
    process = process_of(DiffusionNetwork(network, plain, ""))
    states = []
    for net, stated in ((network, plain), (predicting_x0(network, process), replace(plain, predict_xstart=True))):
        bench = bench_of(stack, net, stated)
        request = bench.image(steps=3, sampler=sampler, thresholding="none")
        engine = bench.engine()
        engine.add(request)
        states += [finished.x for finished in finish(engine)]
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m", "heun"])
def test_network_of_fixed_variance_runs_with_every_sampler(stack: Stack, sampler: str) -> None:
    network = seeded(build_unet(replace(BASE_CONFIG, out_channels=3)), 0)
    bench = bench_of(stack, network, DiffusionConfig("cosine", 50, sigma_small=True))
    pixels = bench.alone(bench.image(steps=3, sampler=sampler, scale=1.0))
    assert pixels.shape == (3, 8, 8)


def test_picture_is_noised_to_the_original_timestep_of_the_first_step_taken(stack: Stack) -> None:
    stage = bench_of(stack, seeded(build_unet(BASE_CONFIG), 0), LONG).stages[f"{stack.name}/{BASE}"]
    plan = StagePlan(BASE, "ddim", 4, strength=0.5)
    table = stage.table(plan)
    assert table.original.tolist() == [1000, 0]
    assert table.timesteps.tolist() == [250.0, 0.0]
    process: DiffusionProcess = stage.process
    noise = stage.starting_noise(0, 0)
    expected = (
        process.schedule.alpha_bar[1000].sqrt().float() * 0.5
        + (1 - process.schedule.alpha_bar[1000]).sqrt().float() * noise
    )
    # by itself, because `begin` draws its noise too
    torch.testing.assert_close(stage._noised(torch.full_like(noise, 0.5), table, noise), expected)


def test_image_through_the_upsampler_alone_is_not_guided(bench: Bench) -> None:
    picture = FromPicture(torch.zeros(3, 8, 8, dtype=torch.uint8))
    plan = StagePlan(UPSAMPLE, "ddim", 2)
    request = bench.conditional.image("job", 0, 7, Guidance(0, 2.0), StagePlans(upsample=plan), start=picture)
    engine = bench.engine()
    engine.add(request)
    (finished,) = finish(engine)
    assert finished.pixels.shape == (3, 16, 16)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m", "heun"])
def test_network_of_grey_images_generates_grey_ones_whatever_it_predicts(stack: Stack, sampler: str) -> None:
    network = seeded(build_unet(BASE_CONFIG), 0)
    bench = bench_of(stack, network, DiffusionConfig("cosine", 50, grey=True))
    red, green, blue = bench.alone(bench.image(steps=3, sampler=sampler, scale=5.0))
    assert torch.equal(red, green)
    assert torch.equal(red, blue)
