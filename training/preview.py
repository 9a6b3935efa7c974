"""Previews of a run, from fixed noise, so that those of one run can be compared."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from diffusion.noise import Draw, normals
from diffusion.pixels import from_uint8, to_uint8
from diffusion.process import DiffusionProcess
from diffusion.schedule import sampling_timesteps
from diffusion.tables import ddim_table, take_step
from training.config import RunConfig
from training.images import Images
from training.objectives import build_process

PREVIEW_STEPS = 25
COLUMNS, ROWS = 10, 2  # of a grid; an upsampler's shows bicubic enlargements, its images and the originals


def write_preview(config: RunConfig, network: nn.Module, data: Images, path: Path) -> None:
    """Write a grid of images of a diffusion network or an upsampler; other kinds have no preview."""
    process, size = build_process(config), config.network.image_size
    device = next(network.parameters()).device
    if config.kind == "diffusion":
        count = COLUMNS * ROWS
        labels = torch.arange(count, device=device) % len(data.class_names) if data.class_names else None
        images = preview_images(process, lambda x, t: network(x, t, labels), count, (3, size, size), device)
        write_grid(images, path, COLUMNS)
    elif config.kind == "upsampler":
        shown = data.select(torch.arange(min(COLUMNS, len(data))))
        pixels = torch.stack([shown.pixels(index, None) for index in range(len(shown))])
        x0 = from_uint8(pixels.to(device))
        small = config.network.small_size
        assert small is not None
        low_res = F.interpolate(x0, (small, small), mode="area")
        labels = shown.class_labels.to(device) if data.class_names else None
        images = preview_images(
            process, lambda x, t: network(x, t, labels, low_res=low_res), len(x0), (3, size, size), device
        )
        bicubic = F.interpolate(low_res, (size, size), mode="bicubic").clamp(-1, 1)
        write_grid(torch.cat([bicubic, images, x0]), path, len(x0))


@torch.no_grad()
def preview_images(
    process: DiffusionProcess,
    network: Callable[[Tensor, Tensor], Tensor],
    count: int,
    shape: Sequence[int],
    device: torch.device | str = "cpu",
) -> Tensor:
    """Images that DDIM samples from fixed noise: [count, *shape]."""
    timesteps = sampling_timesteps(process.schedule.num_timesteps, "ddim", PREVIEW_STEPS)
    table = ddim_table(process.respaced(timesteps), 0.0)
    x = normals([Draw(0, i, 0, 0) for i in range(count)], shape, device)
    for row in range(len(table)):
        t = table.timesteps[row].expand(count).to(device)
        rows = table.rows[row].expand(count, -1)
        x = take_step(rows, x, network(x, t).float(), None, torch.zeros_like(x)).x_prev
    return x


def write_grid(images: Tensor, path: Path, columns: int) -> None:
    """Write images [N, 3, H, W] in [-1, 1] as one PNG, row by row."""
    _, channels, height, width = images.shape
    rows = -(-len(images) // columns)
    sheet = torch.zeros(channels, rows * height, columns * width, dtype=torch.uint8)
    for i, image in enumerate(to_uint8(images).cpu()):
        top, left = i // columns * height, i % columns * width
        sheet[:, top : top + height, left : left + width] = image
    Image.fromarray(sheet.permute(1, 2, 0).numpy()).save(path)
