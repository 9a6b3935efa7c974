"""The references to which the benchmark of a device compares its times."""

import pytest
import torch
from torch import Tensor, nn

from bench import device as bench
from bench.device import forward_flops, image_step_flops, random_network, stage_lines
from models.checkpoints.presets import PRESETS
from models.networks.config import ClassifierConfig, UNetConfig
from tests.worker.tiny_stack import BASE, CLASSIFIER

PEAK = 790e12  # FLOP a second, the product of bf16 matrices that the published bounds are stated for
BOUNDS = {  # milliseconds an image-step; two ways of counting what is not a product differ by a hundredth
    "64x64_diffusion": 0.380,
    "128x128_diffusion": 0.887,
    "256x256_diffusion": 3.21,
    "512x512_diffusion": 5.59,
    "64_256_upsampler": 1.60,
    "128_512_upsampler": 6.34,
}


@pytest.mark.slow
def test_arithmetic_of_the_published_networks_is_counted() -> None:
    assert round(forward_flops(PRESETS["256x256_diffusion"].config) / 1e9, 1) == pytest.approx(2239.7, rel=1e-3)
    assert round(forward_flops(PRESETS["256x256_classifier"].config) / 1e9, 1) == pytest.approx(146.7, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", BOUNDS)
def test_an_image_step_counts_its_guidance(name: str) -> None:
    assert 1000 * image_step_flops(name) / PEAK == pytest.approx(BOUNDS[name], rel=0.02)


@pytest.mark.slow
def test_what_memory_does_not_suffice_for_is_left_out_and_the_rest_is_measured(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if len(inputs[0]) > 1:
            raise torch.OutOfMemoryError

    def small(config: UNetConfig | ClassifierConfig, device: torch.device) -> nn.Module:
        network = random_network(BASE if isinstance(config, UNetConfig) else CLASSIFIER, device)
        network.register_forward_pre_hook(too_large)
        return network

    monkeypatch.setattr(bench, "random_network", small)  # the real network takes minutes, and gigabytes, on a CPU
    found = stage_lines("64x64_diffusion", [1, 2], device, "fp32", rate=1e12)
    assert found["2"] is None
    assert found["1"]["against the loop in fp32"] > 0
