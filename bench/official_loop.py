"""Sampling in the style of the official scripts, for comparison: eager, one homogeneous batch, no queue, no engine."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.grids import grid_timesteps
from diffusion.pixels import to_uint8
from engine.stage import Stage
from models.networks.precision import DTYPES
from vocabulary.precisions import Precision


def convert_to_half(stage: Stage) -> None:
    """Convert the weights of convolutions to float16, as in the official code; linear layers and norms stay."""
    assert stage.networks.guide is not None
    assert stage.networks.guide.module is not None
    for network in (stage.networks.network, stage.networks.guide.module):
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Conv1d):
                module.half()


def guided_ddim(
    stage: Stage, labels: Tensor, guidance_scale: float, steps: int, seed: int, precision: Precision = "fp32"
) -> Tensor:
    """Images [N, 3, H, W] uint8 of classes [N], by DDIM with eta 0 and the paper's Algorithm 2, step by step.

    Every step runs the network and the classifier on the whole batch, and computes its coefficients again.
    """
    schedule = stage.process.schedule
    grid = sorted(grid_timesteps(schedule, "official", "ddim", steps))
    alpha_bars = schedule.alpha_bar[grid]
    assert stage.networks.guide is not None
    x = torch.randn(len(labels), *stage.shape, generator=torch.Generator().manual_seed(seed)).to(stage.device)
    labels = labels.to(stage.device)
    half = torch.autocast(stage.device.type, DTYPES[precision], enabled=precision != "fp32")
    for index in reversed(range(steps)):
        t = torch.full((len(labels),), float(grid[index]), device=stage.device)
        with torch.no_grad(), half:
            eps = stage.networks.network(x, t, labels)[:, :3].float()
        with torch.enable_grad(), half:
            noisy = x.detach().requires_grad_()
            log_probabilities = F.log_softmax(stage.networks.guide.log_probabilities(noisy, t), dim=-1)
            chosen = log_probabilities.gather(1, labels[:, None]).sum()
            gradient = torch.autograd.grad(chosen, noisy)[0] * guidance_scale
        alpha_bar = alpha_bars[index].float()  # scalars on the host
        before = (alpha_bars[index - 1] if index else torch.ones(())).float()
        x0 = ((x - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()).clamp(-1, 1)
        eps = (x - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt() - (1 - alpha_bar).sqrt() * gradient
        x0 = (x - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()
        x = before.sqrt() * x0 + (1 - before).sqrt() * eps
    return to_uint8(x)
