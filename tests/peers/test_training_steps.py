"""Twenty steps of training beside the official training step: equal draws give equal weights."""

import math
import random
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from guided_diffusion.script_util import (
    classifier_and_diffusion_defaults,
    create_classifier_and_diffusion,
    create_model_and_diffusion,
    model_and_diffusion_defaults,
    sr_create_model_and_diffusion,
    sr_model_and_diffusion_defaults,
)
from torch import Tensor, nn

from diffusion.resample import timesteps_at
from tests.peers.conftest import SEED
from training.config import read_config
from training.distributed import Group
from training.images import ImagesInMemory
from training.loop import Run
from training.samples import Batch, Samples

STEPS, BATCH, SIZE, RATE = 20, 2, 64, 1e-4
NETWORK = {"image_size": SIZE, "model_channels": 32, "channel_mult": [1, 2, 3, 4], "attention_sizes": [8]}
SHARED: dict[str, Any] = {"num_res_blocks": 1, "attention_resolutions": "8", "num_head_channels": 32}
UNET = SHARED | {"num_channels": 32, "resblock_updown": True, "learn_sigma": True, "noise_schedule": "cosine"}
# Relative to the weights' movement. Rounding is a larger share of a step of AdamW than of a gradient: first steps have
# one size for every gradient, also for pure rounding errors, such as a bias's before a norm of one channel a group.
NEAR = 3e-3
CLASSES = tuple(map(str, range(1000)))  # the official classifier has as many logits


def official(kind: str) -> tuple[nn.Module, Any]:
    """The official network and diffusion of the same flags as `fields`."""
    if kind == "classifier":
        given = {"image_size": SIZE, "classifier_width": 32, "classifier_depth": 1, "noise_schedule": "cosine"}
        given["classifier_attention_resolutions"] = "8"
        network, diffusion = create_classifier_and_diffusion(**classifier_and_diffusion_defaults() | given)
        return network, diffusion
    if kind == "upsampler":
        sizes = {"large_size": SIZE, "small_size": SIZE // 4}
        network, diffusion = sr_create_model_and_diffusion(**sr_model_and_diffusion_defaults() | UNET | sizes)
        return network, diffusion
    network, diffusion = create_model_and_diffusion(**model_and_diffusion_defaults() | UNET | {"image_size": SIZE})
    return network, diffusion


def fields(kind: str) -> dict[str, Any]:
    heads = 64 if kind == "classifier" else 32  # the official classifier has no flag for it
    own = {"small_size": SIZE // 4} if kind == "upsampler" else {}
    return {
        "kind": kind,
        "seed": SEED % 2**31,
        "data": {"path": "drawn", "labelled": kind == "classifier", "flip": False},
        "network": NETWORK | own | {"num_head_channels": heads},
        "optimiser": {"steps": STEPS, "batch_size": BATCH, "learning_rate": RATE, "weight_decay": 0.05},
        "compute": {"device": "cpu", "precision": "fp32"},
    }


def official_loss(kind: str, network: nn.Module, diffusion: Any, batch: Batch, t: Tensor) -> Tensor:
    if kind == "classifier":
        x_t = diffusion.q_sample(batch.x0, t, noise=batch.noise)
        return F.cross_entropy(network(x_t, timesteps=t), batch.class_labels, reduction="none").mean()
    conditions = {}
    if kind == "upsampler":
        conditions["low_res"] = F.interpolate(batch.x0, SIZE // 4, mode="area")
    losses: dict[str, Tensor] = diffusion.training_losses(network, batch.x0, t, conditions, noise=batch.noise)
    return losses["loss"].mean()


@pytest.mark.parametrize("kind", ["diffusion", "upsampler", "classifier"])
def test_twenty_steps_give_the_official_weights(kind: str, draw: random.Random) -> None:
    generator = torch.Generator().manual_seed(draw.randrange(2**32))
    pixels = torch.randint(0, 256, (8, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    data = ImagesInMemory(pixels, torch.arange(8), CLASSES if kind == "classifier" else ())
    config = read_config(fields(kind))
    run = Run(config, data, device=torch.device("cpu"), precision="fp32", group=Group())
    network, diffusion = official(kind)
    own = {key: each.detach().clone() for key, each in run.parameters.items()}
    network.load_state_dict(own)
    network.train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.05)
    samples, losses = Samples(data, config.data, config.seed), []
    for step in range(STEPS):
        batch = samples.batch(range(step * BATCH, (step + 1) * BATCH))
        t = timesteps_at(torch.ones(1000, dtype=torch.float64), batch.position)
        loss = official_loss(kind, network, diffusion, batch, t)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    ticks = list(run.train(None, lambda: False))
    assert [tick.loss for tick in ticks] == pytest.approx(losses, rel=1e-4)
    theirs = {name: each.detach() for name, each in network.named_parameters()}
    moved = distance(theirs, own)
    assert moved > 0.1 * RATE * STEPS * sum(each.numel() for each in own.values()) ** 0.5
    assert distance(run.parameters, theirs) < NEAR * moved


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The distance of all weights together."""
    squares = [float((value.detach() - other[name]).double().square().sum()) for name, value in one.items()]
    return math.sqrt(sum(squares))
