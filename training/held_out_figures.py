"""Figures on the held-out images with an average's weights, by quartile of the timestep."""

import torch
from torch import nn

from training.figures_window import Window, means
from training.images import Images
from training.loop import Run
from training.samples import Samples

HELD_OUT_SEED = 2**31  # not a seed of runs; the draws for held-out images are the same at every step
MOST_IMAGES = 2_000  # most held-out images, so that a measurement takes less time than a hundred steps
BATCH = 50


@torch.no_grad()
def held_out_figures(run: Run, network: nn.Module, held_out: Images) -> dict[str, float]:
    """Means by name, such as "held_out_loss"; empty if no image is held out."""
    if len(held_out) == 0:
        return {}
    config = run.config
    samples = Samples(held_out, config.data.as_stored, HELD_OUT_SEED, more_noise=config.objective.low_res_noise > 0)
    window = Window(config)
    count = min(len(held_out), MOST_IMAGES)
    for start in range(0, count, BATCH):
        batch = samples.batch(range(start, min(start + BATCH, count))).to(run.device)
        t = (batch.position * config.process.num_timesteps).long()
        window.begin_step()
        window.add(run.objective(network, batch, t), t)
        window.end_step(window.table())
    return {f"held_out_{name}": value for name, value in means(window.sums, window.counts).items()}
