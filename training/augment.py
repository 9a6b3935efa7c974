"""Augmentations: of a judge's images, which keep the class recognisable to a person, and of colours."""

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_SHIFT_PX = 3
MAX_NOISE = 0.25  # largest standard deviation, for values in [-1, 1]
TINY = 1e-12  # keeps the normal quantile of a uniform number finite


def augment(x: Tensor, uniforms: Tensor, noise: Tensor, *, mirrors: bool) -> Tensor:
    """Shift, optionally mirror, mix colours, blur and add noise, each image by its own draws.

    Shapes: x and result [N, 3, H, W] in [-1, 1]; uniforms [N, 20] in [0, 1); noise like x, standard normal.
    """
    n = len(x)
    x = _shift(x, uniforms[:, :2])
    if mirrors:
        x = torch.where(uniforms[:, 2, None, None, None] < 0.5, x.flip(-1), x)
    normals = torch.special.ndtri(uniforms[:, 3:15].clamp(TINY, 1 - TINY)).to(x.dtype)
    mixing = torch.eye(3, device=x.device) + 0.25 * normals[:, :9].reshape(n, 3, 3)
    x = torch.einsum("nij,njhw->nihw", mixing, x) + 0.2 * normals[:, 9:, None, None]
    share, chosen, strength = uniforms[:, 15:18].to(x.dtype)[..., None, None, None].unbind(1)
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    x = torch.lerp(x, blurred, share * (chosen < 0.5))
    return (x + MAX_NOISE * strength**2 * noise).clamp(-1, 1)


def recolour(pixels: Tensor, *, saturation: float, brightness: float, tint: Tensor) -> Tensor:
    """Multiply the distance of an image's colours from grey by saturation, its values by brightness, and add a tint.

    Shapes: pixels and result [3, H, W], uint8; tint [3], in units of a uint8.
    """
    x = pixels.float()
    x = brightness * torch.lerp(x.mean(dim=0, keepdim=True), x, saturation) + tint[:, None, None]
    return x.round().clamp(0, 255).to(torch.uint8)


def _shift(x: Tensor, uniforms: Tensor) -> Tensor:
    padded = F.pad(x, (MAX_SHIFT_PX,) * 4, mode="replicate")
    offsets = (uniforms * (2 * MAX_SHIFT_PX + 1)).long()  # [N, 2], down and right
    n, channels, height, width = x.shape
    images, bands = torch.arange(n, device=x.device), torch.arange(channels, device=x.device)
    rows = offsets[:, 0, None] + torch.arange(height, device=x.device)
    columns = offsets[:, 1, None] + torch.arange(width, device=x.device)
    return padded[images[:, None, None, None], bands[:, None, None], rows[:, None, :, None], columns[:, None, None, :]]
