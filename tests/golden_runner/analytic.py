"""The analytic network and classifier gradient that stand in for networks in the sampling cases (their README)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffusion.process import DiffusionProcess, MeanType, VarianceType
from diffusion.schedule import Schedule, space_timesteps
from tests.golden_runner.case import CaseError, Fields
from vocabulary.sampling import Thresholding

Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def read_process(config: Fields) -> DiffusionProcess:
    """The process of a case: its schedule, respaced where it says so, and its mean and variance types."""
    schedule = Schedule.named(config.need("schedule"), config.need("steps"))
    if respacing := config.take("timestep_respacing"):
        schedule = schedule.respaced(space_timesteps(schedule.num_timesteps, respacing))
    for name in ("num_timesteps", "num_steps"):
        if (stated := config.take(name)) is not None and stated != schedule.num_timesteps:
            raise CaseError(f"{name} is {stated}, but the process has {schedule.num_timesteps}")
    mean_type = MeanType[config.take("model_mean_type", "EPSILON")]
    variance_type = VarianceType[config.take("model_var_type", "LEARNED_RANGE")]
    return DiffusionProcess(schedule, mean_type, variance_type, config.take("rescale_timesteps", False))


def read_thresholding(config: Fields) -> Thresholding:
    return "clip" if config.take("clip_denoised", True) else "none"


def read_network(config: Fields, process: DiffusionProcess) -> Network:
    """The analytic model: README of single_step."""
    k: dict[str, float] = config.need("model")
    class_cond = config.take("class_cond", True)
    learned = process.variance_type.learned

    def network(x: Tensor, timesteps: Tensor, y: Tensor | None) -> Tensor:
        tau = (timesteps.to(x.dtype) / 1000).reshape(-1, 1, 1, 1)
        first = (k["a"] + k["a1"] * tau) * x + k["b"] * torch.sin(k["c"] * x) + k["d"] * tau
        first = first + k["h"] * x.roll(1, -1)
        if class_cond:
            assert y is not None
            first = first + k["e"] * (y.to(x.dtype).reshape(-1, 1, 1, 1) - k["y0"])
        if not learned:
            return first
        channels = torch.arange(x.shape[1], dtype=x.dtype).reshape(1, -1, 1, 1)
        second = k["vs"] * torch.tanh(k["p"] * x + k["q"] * tau + k["r"] * channels) + k["vo"]
        return torch.cat([first, second], dim=1)

    return network


def read_gradient(config: Fields) -> Network | None:
    """The analytic classifier gradient, scale included; None where the case is not guided."""
    k: dict[str, Any] | None = config.take("grad")
    if k is None:
        return None

    def gradient(x: Tensor, timesteps: Tensor, y: Tensor | None) -> Tensor:
        assert y is not None
        tau = (timesteps.to(x.dtype) / 1000).reshape(-1, 1, 1, 1)
        channels = torch.arange(x.shape[1], dtype=x.dtype).reshape(1, -1, 1, 1)
        pull = k["m0"] + k["m1"] * y.to(x.dtype).reshape(-1, 1, 1, 1) + k["m2"] * channels - x
        result: Tensor = k["scale"] * (k["k"] * pull * (1 + k["u"] * tau))
        return result

    return gradient


def check_seen(config: Fields, who: str, timesteps: Tensor) -> None:
    """Compare the timesteps that the network got with those of the official process, dtype included."""
    if (seen := config.take(f"timesteps_seen_by_{who}")) is None:
        return
    dtype = str(timesteps.dtype).removeprefix("torch.")
    if dtype != seen["dtype"] or timesteps.tolist() != seen["values"]:
        raise CaseError(f"the {who} sees {dtype} {timesteps.tolist()}, expected {seen['dtype']} {seen['values']}")
