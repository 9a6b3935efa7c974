"""Sample grids that show how far a training run is."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from diffusion.noise import Draw, normals
from diffusion.pixels import to_uint8
from diffusion.process import Process
from diffusion.schedule import sampling_timesteps
from diffusion.tables import ddim_table, take_step

PREVIEW_STEPS = 25


def preview_images(
    process: Process, network: Callable[[Tensor, Tensor], Tensor], count: int, shape: Sequence[int]
) -> Tensor:
    """Images of a DDIM run with fixed noise, so that previews of one run can be compared: [count, *shape]."""
    timesteps = sampling_timesteps(process.schedule.num_timesteps, "ddim", PREVIEW_STEPS)
    table = ddim_table(process.respaced(timesteps), 0.0)
    x = normals([Draw(0, i, 0, 0) for i in range(count)], shape)
    for row in range(len(table)):
        t = table.timesteps[row].expand(count)
        x = take_step(table.rows[row].expand(count, -1), x, network(x, t), None, torch.zeros_like(x)).x_prev
    return x


def write_grid(images: Tensor, path: Path, columns: int) -> None:
    """Write images [N, 3, H, W] in [-1, 1] as one PNG, row by row."""
    _, channels, height, width = images.shape
    rows = -(-len(images) // columns)
    sheet = torch.zeros(channels, rows * height, columns * width, dtype=torch.uint8)
    for i, image in enumerate(to_uint8(images)):
        top, left = i // columns * height, i % columns * width
        sheet[:, top : top + height, left : left + width] = image
    Image.fromarray(sheet.permute(1, 2, 0).numpy()).save(path)
