"""Augmentations for the judge: what a person would still call the same shape."""

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_SHIFT_PX = 3
MAX_NOISE = 0.25  # standard deviation, of the range [-1, 1]


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shift, mirror, mix colours, blur and add noise, each image by its own draw: [N, 3, H, W] in [-1, 1] always."""
    n = len(x)
    x = _shift(x, generator)
    mirrored = torch.rand(n, generator=generator) < 0.5
    x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
    mixing = torch.eye(3) + 0.25 * torch.randn(n, 3, 3, generator=generator)
    x = torch.einsum("nij,njhw->nihw", mixing, x) + 0.2 * torch.randn(n, 3, 1, 1, generator=generator)
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    share = torch.rand(n, 1, 1, 1, generator=generator)
    x = torch.lerp(x, blurred, share * (torch.rand(n, 1, 1, 1, generator=generator) < 0.5))
    strength = MAX_NOISE * torch.rand(n, 1, 1, 1, generator=generator) ** 2
    return (x + strength * torch.randn(x.shape, generator=generator)).clamp(-1, 1)


def _shift(x: Tensor, generator: torch.Generator) -> Tensor:
    padded = F.pad(x, (MAX_SHIFT_PX,) * 4, mode="replicate")
    offsets = torch.randint(0, 2 * MAX_SHIFT_PX + 1, (len(x), 2), generator=generator).tolist()
    height, width = x.shape[2:]
    return torch.stack(
        [image[:, dy : dy + height, dx : dx + width] for image, (dy, dx) in zip(padded, offsets, strict=True)]
    )
