"""Figures of images beside the judge's answers."""

import torch

from evaluation.judging import add_noise, sharpness


def test_noise_of_no_strength_changes_nothing_and_more_noise_changes_more() -> None:
    pixels = torch.full((4, 3, 8, 8), 100, dtype=torch.uint8)
    assert torch.equal(add_noise(pixels, 0, seed=0), pixels)
    mild, strong = (add_noise(pixels, strength, seed=0).float().std() for strength in (2, 32))
    assert mild < strong


def test_blur_is_less_sharp() -> None:
    pixels = torch.randint(0, 256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    blurred = torch.nn.functional.avg_pool2d(pixels.float(), 3, stride=1, padding=1).to(torch.uint8)
    assert sharpness(blurred) < sharpness(pixels)
