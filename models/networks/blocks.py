"""Residual blocks, resampling and the timestep embedding of the ADM networks (Dhariwal & Nichol 2021, section 3)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.networks.convolution import Conv2d
from models.networks.linear import Linear
from models.networks.norm import GroupNorm32, zero_parameters


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10_000) -> Tensor:
    """Sinusoids of the timestep: all cosines, then all sines, then one zero column if dim is odd.

    Shapes: timesteps [N], integer or fractional; result [N, dim], float32.
    Source: guided-diffusion (MIT); frequency i is max_period ** (-i / half), divided by half and not by half - 1.
    """
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps.float()[:, None] * torch.exp(-math.log(max_period) * exponents)
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, dim % 2))


class MeanPool(nn.AvgPool2d):
    """Means of 2x2. One image is computed in a batch of two: torch does not keep the layout of a single one, and would
    round differently."""

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 1 and x.is_cpu and not torch.compiler.is_compiling():
            return super().forward(torch.cat([x, x]))[:1]
        return super().forward(x)


class Downsample(nn.Module):
    """Halves a map: a strided 3x3 convolution with padding 1, or a 2x2 mean."""

    def __init__(self, channels: int, *, use_conv: bool, out_channels: int | None = None) -> None:
        super().__init__()
        self.op: nn.Module = (
            Conv2d(channels, out_channels or channels, 3, stride=2, padding=1) if use_conv else MeanPool()
        )

    def forward(self, x: Tensor) -> Tensor:
        halved: Tensor = self.op(x)
        return halved


class Upsample(nn.Module):
    """Doubles a map by nearest neighbour, then convolves it if use_conv is set."""

    def __init__(self, channels: int, *, use_conv: bool, out_channels: int | None = None) -> None:
        super().__init__()
        self.conv = Conv2d(channels, out_channels or channels, 3, padding=1) if use_conv else None

    def forward(self, x: Tensor) -> Tensor:
        doubled = F.interpolate(x, scale_factor=2, mode="nearest")
        return doubled if self.conv is None else self.conv(doubled)


class ResBlock(nn.Module):
    """norm-SiLU-conv, the embedding, norm-SiLU-dropout-conv, and a skip path; resamples inside if up or down is set.

    With scale-shift norm (AdaGN) the embedding modulates the second norm, else it is added before it. The SiLU modules
    only keep the places of official keys; the norms compute SiLU themselves.
    rescale divides the sum of both paths by sqrt(2), the paper's "rescaled residual connections" (section 3, Table 1).
    """

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        dropout: float,
        *,
        out_channels: int | None = None,
        use_conv: bool = False,
        use_scale_shift_norm: bool = False,
        up: bool = False,
        down: bool = False,
        rescale: bool = False,
    ) -> None:
        super().__init__()
        out_channels = out_channels or channels
        self.use_scale_shift_norm = use_scale_shift_norm
        self.gain = math.sqrt(0.5) if rescale else 1.0
        self.resample: nn.Module | None = None
        if up or down:
            self.resample = Upsample(channels, use_conv=False) if up else Downsample(channels, use_conv=False)
        self.in_layers = nn.Sequential(GroupNorm32(channels), nn.SiLU(), Conv2d(channels, out_channels, 3, padding=1))
        emb_width = 2 * out_channels if use_scale_shift_norm else out_channels
        self.emb_layers = nn.Sequential(nn.SiLU(), Linear(emb_channels, emb_width))
        self.out_layers = nn.Sequential(
            GroupNorm32(out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            zero_parameters(Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection: nn.Module = nn.Identity()
        if out_channels != channels:
            kernel = 3 if use_conv else 1
            self.skip_connection = Conv2d(channels, out_channels, kernel, padding=kernel // 2)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        norm, _, conv = self.in_layers
        h = norm(x, silu=True)
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = conv(h)
        modulation = self.emb_layers(emb).to(h.dtype)[:, :, None, None]
        norm, _, dropout, conv = self.out_layers
        if self.use_scale_shift_norm:
            scale, shift = modulation.chunk(2, dim=1)
            h = norm(h, scale, shift, silu=True)
        else:
            h = norm(h + modulation, silu=True)
        h = conv(dropout(h))
        total: Tensor = self.skip_connection(x) + h
        return total if self.gain == 1.0 else total * self.gain
