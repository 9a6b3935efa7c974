"""Small networks for the paper's ablations (Tables 1 to 3), and their runs, which have equal budgets of FLOPs."""

from dataclasses import asdict, dataclass, replace
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.paper.core import KEPT, SMALL_SIZE
from datasets.sdf import SHAPES
from models.checkpoints.network_file import blank_network
from models.networks.config import UNetConfig
from training.config import NetworkConfig, RunConfig

RUNS = KEPT / "trainings"
BATCH, RENDERS = 16, 10_000
BUDGET = 4.8e12  # FLOPs of a run, forward and backward
PARTS = 4  # of a run, with a snapshot at the end of each
SEEDS = (0, 1)  # of training


@dataclass(frozen=True)
class Variant:
    """A network by the paper's switches. The defaults are the first row of its Table 1; all but one have AdaGN."""

    num_res_blocks: int = 1
    num_heads: int = 1
    attention_sizes: tuple[int, ...] = (8,)
    resblock_updown: bool = False
    use_scale_shift_norm: bool = True
    rescale_residual: bool = False


BASELINE = Variant()
TOGETHER = Variant(num_heads=4, attention_sizes=(16, 8, 4), resblock_updown=True)  # the last row of Table 1
VARIANTS = {
    "baseline": BASELINE,
    "together": TOGETHER,
    "addition": replace(TOGETHER, use_scale_shift_norm=False),
    "1 head": replace(TOGETHER, num_heads=1),
    "BigGAN up and down": replace(BASELINE, resblock_updown=True),
    "two blocks a level": replace(BASELINE, num_res_blocks=2),
    "attention at 16, 8, 4": replace(BASELINE, attention_sizes=TOGETHER.attention_sizes),
    "4 heads": replace(BASELINE, num_heads=4),
    "rescaled residuals": replace(BASELINE, rescale_residual=True),
}


class RescaledRun(RunConfig):
    """A run of a network with rescaled residuals, a switch that only this comparison trains."""

    def network_config(self, num_classes: int) -> NetworkConfig:
        config = super().network_config(num_classes)
        assert isinstance(config, UNetConfig)
        return replace(config, rescale_residual=True)


def run_config(variant: Variant, seed: int) -> RunConfig:
    """The run of a variant, with as many steps as the budget allows."""
    return _run(variant, seed, num_steps(variant))


def num_steps(variant: Variant) -> int:
    """Steps of a run within the budget, a multiple of its parts."""
    return PARTS * round(BUDGET / step_flops(variant) / PARTS)


@cache
def step_flops(variant: Variant) -> int:
    """FLOPs of a training step: of the products in the forward and the backward pass."""
    network = blank_network(_run(variant, 0, PARTS).network_config(len(SHAPES)))
    with torch.device("meta"):
        x, labels = torch.empty(BATCH, 3, SMALL_SIZE, SMALL_SIZE), torch.zeros(BATCH, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        network(x, labels.float(), labels).sum().backward()
    return int(counter.get_total_flops())


def _run(variant: Variant, seed: int, steps: int) -> RunConfig:
    """The fashion stack's recipe, which learns in few steps, with a constant rate: each snapshot ends a shorter run."""
    switches = asdict(variant)
    kind = RescaledRun if switches.pop("rescale_residual") else RunConfig
    given = {
        "kind": "diffusion",
        "seed": seed,
        "data": {"source": "shapes", "count": RENDERS, "flip": False},
        "network": {"image_size": SMALL_SIZE, "channel_mult": (1, 1, 1), "num_head_channels": -1, **switches},
        "process": {"predict_xstart": True, "learn_sigma": False, "grey": True},
        "objective": {"loss": "mse"},
        "optimiser": {"batch_size": BATCH, "steps": steps, "learning_rate": 2e-3, "warmup_steps": 20, "clip": 1.0},
        "averages": {"rates": (0.999,)},
        "compute": {"device": "cpu"},
        "saving": {"snapshot_steps": steps // PARTS, "keep_snapshots": PARTS},
    }
    return kind.model_validate(given)
