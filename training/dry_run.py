"""Estimates the size, FLOPs, memory and time of a run before it starts."""

import itertools
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from models.checkpoints.network_file import blank_network
from models.networks.precision import best_precision
from training.config import RunConfig
from training.data import open_data
from training.distributed import Group, local_device
from training.loop import Run
from training.objectives import build_objective
from training.samples import UNIFORMS, Batch
from vocabulary.counts import counted

MEASURED_STEPS = 3  # after one warm-up step
ADAM_MOMENTS, GRADIENTS = 2, 1  # tensors of the weights' size


def describe(config: RunConfig, cache: Path) -> str:
    """Lines on a run: parameters, FLOPs per step, memory from shapes, measured images per second, and time."""
    split = open_data(config.data, config.network.image_size, cache)
    num_classes = max(len(split.training.class_names), 1)
    device = local_device(config.compute.device)
    precision = best_precision(device) if config.compute.precision == "auto" else config.compute.precision
    network = blank_network(config.network_config(num_classes))
    parameters = sum(each.numel() for each in network.parameters())
    microbatch = min(config.optimiser.microbatch or config.optimiser.batch_size, config.optimiser.batch_size)
    flops, activations = _costs(config, network, num_classes, microbatch)
    copies = 1 + GRADIENTS + ADAM_MOMENTS + len(config.averages.rates) + len(config.averages.power)
    memory = 4 * parameters * copies + activations
    run = Run(config, split.training, device=device, precision=precision, group=Group())
    rate = _images_per_second(run)
    seconds = config.optimiser.steps * config.optimiser.batch_size / rate
    classes = counted(len(split.training.class_names), "class")
    data = f"{counted(len(split.training), 'image')}, {len(split.held_out)} held out, {classes}"
    lines = {
        "network": f"{config.kind}, {parameters / 1e6:.2f}M parameters",
        "data": data,
        "device": f"{device}, {precision}",
        "FLOPs a step": f"{flops * config.optimiser.batch_size / microbatch:.3g}",
        "memory": f"{memory / 2**20:.0f} MiB, of which activations of {counted(microbatch, 'image')} in float32 "
        f"{activations / 2**20:.0f} MiB",
        "speed": f"{rate:.1f} images a second, measured over {MEASURED_STEPS} steps",
        "time": f"{seconds / 3600:.1f} hours for {counted(config.optimiser.steps, 'step')}",
    }
    return "\n".join(f"{name:14}{text}" for name, text in lines.items())


def _costs(config: RunConfig, network: nn.Module, num_classes: int, count: int) -> tuple[int, int]:
    """FLOPs of a microbatch's forward and backward pass, and bytes of the activations between them."""
    size = config.network.image_size
    with torch.device("meta"):
        image = torch.empty(count, 3, size, size)
        labels = torch.zeros(count, dtype=torch.int64)
        batch = Batch(image, labels, image, torch.empty(count, UNIFORMS), image)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[id(tensor.untyped_storage())] = tensor.untyped_storage().nbytes()
        return tensor

    objective = build_objective(config, num_classes)
    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda tensor: tensor):
        objective(network, batch, labels).total.sum().backward()
    weights = sum(each.untyped_storage().nbytes() for each in network.parameters())
    return counter.get_total_flops(), max(sum(kept.values()) - weights, 0)


def _images_per_second(run: Run) -> float:
    steps = itertools.islice(run.train(None, lambda: False), 1 + MEASURED_STEPS)
    marks = [time.monotonic() for _ in steps]
    steps_taken = len(marks) - 1
    return run.config.optimiser.batch_size * steps_taken / max(marks[-1] - marks[0], 1e-9)
