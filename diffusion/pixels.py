"""Conversion between the model's [-1, 1] and 8-bit pixels, as in the official scripts."""

import torch
from torch import Tensor


def to_uint8(x: Tensor) -> Tensor:
    """[-1, 1] to 0..255 by truncation, as the official sampling scripts do: [..., C, H, W] keeps its layout.

    The published results were computed with truncation, not rounding: k / 127.5 - 1 becomes k - 1 for small k.
    """
    return ((x + 1) * 127.5).clamp(0, 255).to(torch.uint8)


def from_uint8(pixels: Tensor) -> Tensor:
    """0..255 to [-1, 1], float32."""
    return pixels.float() / 127.5 - 1
