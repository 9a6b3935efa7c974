"""The tensors that a step takes: a row for each image of a batch, made on the host and uploaded without waiting."""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion.noise import Draw, normals
from diffusion.tables import COLUMNS
from diffusion.transfer import upload
from engine.trajectory import Trajectory

NOISE_COLUMNS = [COLUMNS.index("noise"), COLUMNS.index("noise_std")]


def uploaded(values: Sequence[float], device: torch.device) -> Tensor:
    """Numbers as a tensor [N] on a device."""
    return upload(torch.tensor(values), device)


def network_inputs(batch: Sequence[Trajectory], device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The network's inputs: x_t [N, 3, H, W], timesteps [N], labels [N], low_res [N, 3, h, w]."""
    x = torch.stack([each.x for each in batch])
    timesteps = uploaded([each.timestep for each in batch], device)
    labels = uploaded([each.request.network_label or 0 for each in batch], device)
    low_res = [each.low_res for each in batch if each.low_res is not None]
    return x, timesteps, labels, torch.stack(low_res) if low_res else x


def guide_inputs(
    batch: Sequence[Trajectory], num_conditions: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """The guide's inputs: targets [N, K], scales [N], and whether entropy scales them [N]."""
    targets = torch.zeros(len(batch), num_conditions)
    for target, each in zip(targets, batch, strict=True):
        for condition, weight in each.request.guidance_target:
            target[condition] = weight
    scales = uploaded([each.request.guidance_scale for each in batch], device)
    return upload(targets, device), scales, uploaded([each.request.entropy_scaled for each in batch], device)


def drawn_noise(batch: Sequence[Trajectory], rows: Tensor, stage: int, like: Tensor) -> Tensor:
    """The noise of each image's step, zeros for one that draws none: [N, 3, H, W], on the device of `like`.

    rows: the images' rows of their tables, on the host; stage: the stage's number; like: x_t [N, 3, H, W].
    """
    noise = torch.zeros_like(like)
    drawn = [i for i, row in enumerate(rows[:, NOISE_COLUMNS].any(dim=1).tolist()) if row]
    if not drawn:
        return noise
    moved = [batch[i] for i in drawn]
    draws = [Draw(each.request.seed, each.request.drawn_index, stage, each.row + 1) for each in moved]
    return noise.index_copy_(0, uploaded(drawn, like.device), normals(draws, like.shape[1:], like.device))
