"""The official guided-diffusion code on the demo's weights, for comparison, if it is in bench/official/.

    git clone https://github.com/openai/guided-diffusion bench/official
    git -C bench/official checkout 22e0df8183507e13a7813f8d38d51b072ca1e67c

It is not a part of this project.
"""

import dataclasses
import importlib
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.networks.config import EncoderConfig, UNetConfig
from models.stack import load_stack
from training.samples import Batch

FOLDER = Path(__file__).parent / "official"
OURS = ("rescale_residual", "super_res")  # arguments that official constructors lack


def is_here() -> bool:
    """Return whether the official code is in bench/official/."""
    return (FOLDER / "guided_diffusion").is_dir()


def _module(name: str) -> Any:
    if str(FOLDER) not in sys.path:
        sys.path.insert(0, str(FOLDER))
    return importlib.import_module(f"guided_diffusion.{name}")


def _build(kind: str, ours: nn.Module, config: EncoderConfig) -> nn.Module:
    arguments = {name: value for name, value in dataclasses.asdict(config).items() if name not in OURS}
    network: nn.Module = getattr(_module("unet"), kind)(**arguments)
    network.load_state_dict(ours.state_dict())
    return network.eval()


@cache
def _networks(weights: Path) -> tuple[nn.Module, nn.Module]:
    stack = load_stack(weights)
    assert stack.classifier is not None
    base, classifier = stack.base.network, stack.classifier.network
    return _build("UNetModel", base, base.config), _build("EncoderUNetModel", classifier, classifier.config)


def guided_ddim(weights: Path, labels: Tensor, guidance_scale: float, steps: int, seed: int) -> Tensor:
    """Images [N, 3, H, W] of classes [N], made like in scripts/classifier_sample.py, in float32."""
    network, classifier = _networks(weights)
    process, respace = _module("gaussian_diffusion"), _module("respace")
    diffusion = respace.SpacedDiffusion(
        use_timesteps=respace.space_timesteps(1000, f"ddim{steps}"),
        betas=process.get_named_beta_schedule("cosine", 1000),
        model_mean_type=process.ModelMeanType.EPSILON,
        model_var_type=process.ModelVarType.LEARNED_RANGE,
        loss_type=process.LossType.MSE,
    )

    def cond_fn(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            noisy = x.detach().requires_grad_(True)
            log_probabilities = F.log_softmax(classifier(noisy, t), dim=-1)
            selected = log_probabilities[range(len(y)), y]
            return torch.autograd.grad(selected.sum(), noisy)[0] * guidance_scale

    torch.manual_seed(seed)
    size: Any = network.image_size
    images: Tensor = diffusion.ddim_sample_loop(
        network,
        (len(labels), 3, size, size),
        clip_denoised=True,
        model_kwargs={"y": labels},
        cond_fn=cond_fn,
        device=torch.device("cpu"),
    )
    return images


def training_steps(ours: nn.Module, batches: Iterator[Batch], learning_rate: float, ema_rate: float) -> Iterator[float]:
    """The official training step on a diffusion network's weights, batch by batch: TrainLoop without MPI.

    Source: train_util.py, forward_backward, optimize and _update_ema.
    """
    config = ours.config
    assert isinstance(config, UNetConfig)
    network = _build("UNetModel", ours, config).train()
    diffusion = _training_diffusion()
    parameters = list(network.parameters())
    averages = [each.detach().clone() for each in parameters]
    optimiser = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    update_ema = _module("nn").update_ema
    for batch in batches:
        for parameter in parameters:
            parameter.grad = None
        t = (batch.position * 1000).long()
        losses = diffusion.training_losses(network, batch.x0, t, {"y": batch.class_labels}, noise=batch.noise)
        losses["loss"].mean().backward()
        optimiser.step()
        update_ema(averages, parameters, rate=ema_rate)
        yield losses["loss"].mean().item()


def _training_diffusion() -> Any:
    return _module("script_util").create_gaussian_diffusion(steps=1000, learn_sigma=True, noise_schedule="cosine")
