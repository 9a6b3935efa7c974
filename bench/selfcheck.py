"""Measures how often the self-check finds wrong flags on the demo weights: python -m bench.selfcheck [FOLDER].

Writes bench/results/selfcheck.json; docs/self-check.md explains it.
"""

import copy
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from diffusion.process import DiffusionProcess, MeanType
from diffusion.schedule import Schedule
from engine.diffusion_process import process_of
from engine.selfcheck import check_classifier, check_network
from models.networks.attention import AttentionBlock
from models.networks.blocks import ResBlock
from models.networks.classifier import NoisyClassifier
from models.networks.unet import UNet
from models.stack import DiffusionNetwork, load_stack

SEEDS = range(5)
RESULT = Path("bench/results/selfcheck.json")
NetworkT = TypeVar("NetworkT", bound=UNet | NoisyClassifier)


def changed(network: NetworkT, change: Callable[[nn.Module], None]) -> NetworkT:
    """A copy of a network with a change of each module."""
    copied = copy.deepcopy(network)
    for module in copied.modules():
        change(module)
    return copied


def other_order(module: nn.Module) -> None:
    if isinstance(module, AttentionBlock):
        module.new_order = not module.new_order


def heads_of(channels: int) -> Callable[[nn.Module], None]:
    def change(module: nn.Module) -> None:
        if isinstance(module, AttentionBlock):
            module.num_heads = max(1, module.norm.num_channels // channels)

    return change


def swapped_halves(module: nn.Module) -> None:
    """Swap scale and shift, as a wrong conversion may do; no flag does this."""
    if isinstance(module, ResBlock):
        for parameter in module.emb_layers[1].parameters():
            parameter.data = parameter.data.roll(len(parameter) // 2, 0)


def resized(network: NetworkT, factor: float) -> NetworkT:
    copied = copy.deepcopy(network)
    copied.config = dataclasses.replace(network.config, image_size=int(network.config.image_size * factor))
    return copied


def predicting_x0(network: UNet, process: DiffusionProcess) -> UNet:
    """A network whose outputs are those of a network trained with predict_xstart."""
    schedule = process.schedule

    def to_x0(module: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor:
        x, t = given[0][:, :3], given[1].long().clamp(max=schedule.num_timesteps - 1)
        weight = schedule.alpha_bar[t].float()[:, None, None, None]
        x0 = (x - (1 - weight).sqrt() * output[:, :3]) / weight.sqrt()
        return torch.cat([x0, output[:, 3:]], dim=1)

    copied = copy.deepcopy(network)
    copied.register_forward_hook(to_x0)
    return copied


def scaled(process: DiffusionProcess, factor: float) -> DiffusionProcess:
    """A process whose networks get other timesteps."""
    schedule = process.schedule
    return dataclasses.replace(
        process, schedule=dataclasses.replace(schedule, timestep_map=schedule.timestep_map * factor)
    )


def rate(check: Callable[[int], object]) -> float:
    return sum(bool(check(seed)) for seed in SEEDS) / len(SEEDS)


def diffusion_rates(loaded: DiffusionNetwork) -> dict[str, float]:
    network, process, given = loaded.network, process_of(loaded), loaded.process
    other = Schedule.named("cosine" if given.schedule == "linear" else "linear", given.num_timesteps)
    x0 = dataclasses.replace(process, mean_type=MeanType.START_X)

    def found(network: UNet, process: DiffusionProcess = process) -> float:
        return rate(lambda seed: check_network(network, process, seed))

    return {
        "nothing wrong": found(network),
        "nothing wrong with one that predicts x0": found(predicting_x0(network, process), x0),
        "attention order": found(changed(network, other_order)),
        "one head at every width": found(changed(network, heads_of(10**6))),
        "half the channels a head": found(changed(network, heads_of(network.config.num_head_channels // 2))),
        "noise schedule": found(network, dataclasses.replace(process, schedule=other)),
        "timesteps times 4": found(network, scaled(process, 4)),
        "timesteps times 0.25": found(network, scaled(process, 0.25)),
        "mean type (x0 for eps)": found(predicting_x0(network, process)),
        "mean type (eps for x0)": found(network, x0),
        "image size doubled": found(resized(network, 2)),
        "image size halved": found(resized(network, 0.5)),
        "scale and shift swapped": found(changed(network, swapped_halves)),
    }


def classifier_rates(classifier: NoisyClassifier, process: DiffusionProcess) -> dict[str, float]:
    def found(network: NoisyClassifier, process: DiffusionProcess = process) -> float:
        return rate(lambda seed: check_classifier(network, process, seed))

    return {
        "nothing wrong": found(classifier),
        "attention order": found(changed(classifier, other_order)),
        "one head at every width": found(changed(classifier, heads_of(10**6))),
        "timesteps times 0.25": found(classifier, scaled(process, 0.25)),
        "timestep 0 at all times": found(classifier, scaled(process, 0)),
        "scale and shift swapped": found(changed(classifier, swapped_halves)),
    }


def main() -> None:
    stack = load_stack(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("weights/demo"))
    assert stack.upsampler is not None
    assert stack.classifier is not None
    process = process_of(stack.base)
    started = time.perf_counter()
    check_network(stack.base.network, process)
    result = {
        "seeds": len(SEEDS),
        "threads": torch.get_num_threads(),
        "seconds_of_one_check_of_the_base": round(time.perf_counter() - started, 3),
        "base": {"file": stack.base.model_hash, "found": diffusion_rates(stack.base)},
        "upsampler": {"file": stack.upsampler.model_hash, "found": diffusion_rates(stack.upsampler)},
        "classifier": {
            "file": stack.classifier.model_hash,
            "found": classifier_rates(stack.classifier.network, process),
        },
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(RESULT.read_text())


if __name__ == "__main__":
    main()
