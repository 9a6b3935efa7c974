"""What the benchmark of a device holds its times against."""

import pytest

from bench.device import forward_flops, image_step_flops
from models.presets import PRESETS

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
