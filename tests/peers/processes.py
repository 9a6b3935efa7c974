"""Random processes, ours and the official one of the same flags, and a network that both run."""

import math
import random
from typing import Any

import torch
from guided_diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.script_util import create_gaussian_diffusion
from torch import Tensor

from diffusion.flags import select_types
from diffusion.losses import LossType
from diffusion.process import DiffusionProcess
from diffusion.schedule import Schedule, space_timesteps

SHAPE = (2, 3, 4, 4)


def draw_flags(draw: random.Random) -> dict[str, Any]:
    """Official diffusion flags that contradict none of each other."""
    steps = draw.choice([40, 100, 250, 1000, 4000])
    learn_sigma = draw.random() < 0.6
    return {
        "steps": steps,
        "noise_schedule": draw.choice(["linear", "cosine"]),
        "learn_sigma": learn_sigma,
        "sigma_small": not learn_sigma and draw.random() < 0.5,
        "predict_xstart": draw.random() < 0.3,
        "rescale_timesteps": draw.random() < 0.5,
        "use_kl": learn_sigma and draw.random() < 0.3,
        "rescale_learned_sigmas": draw.random() < 0.5,
    }


def draw_respacing(draw: random.Random, steps: int) -> str:
    """ddimN of a stride, one section, or several: 60 steps at most, over which rounding stays small."""
    kind = draw.choice(["ddim", "one", "many"])
    if kind == "ddim":
        return f"ddim{math.ceil(steps / draw.randint(max(2, math.ceil(steps / 60)), steps // 4))}"
    counts = [draw.randint(2, min(12, steps // 5)) for _ in range(1 if kind == "one" else draw.randint(2, 4))]
    return ",".join(map(str, counts))


def both(flags: dict[str, Any], respacing: str = "") -> tuple[DiffusionProcess, LossType, GaussianDiffusion]:
    """Ours, its loss, and the official process of the same flags."""
    names = ("learn_sigma", "sigma_small", "use_kl", "predict_xstart", "rescale_learned_sigmas")
    mean_type, variance_type, loss_type = select_types(**{name: flags[name] for name in names})
    schedule = Schedule.named(flags["noise_schedule"], flags["steps"])
    process = DiffusionProcess(schedule, mean_type, variance_type, flags["rescale_timesteps"])
    if respacing:
        process = process.respaced(space_timesteps(flags["steps"], respacing))
    return process, loss_type, create_gaussian_diffusion(**flags, timestep_respacing=respacing)


class Network:
    """A smooth function of x and the timestep, with as many channels as the process reads."""

    def __init__(self, draw: random.Random, learned: bool) -> None:
        self.a, self.b, self.c, self.d = (draw.uniform(-1, 1) for _ in range(4))
        self.learned = learned

    def __call__(self, x: Tensor, timesteps: Tensor) -> Tensor:
        tau = (timesteps.float() / 1000)[:, None, None, None]
        first = 0.8 * x + self.a * torch.sin(x) + self.b * tau
        return torch.cat([first, torch.tanh(self.c * x + self.d * tau)], dim=1) if self.learned else first

    def gradient(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """Stands in for a classifier's gradient."""
        return self.c * torch.cos(x + self.d * (timesteps.float() / 1000)[:, None, None, None])
