"""Cases of schedules, respacing and what the official flags select."""

from typing import Any

import torch
from torch import Tensor

from diffusion.flags import select_types
from diffusion.losses import LossType
from diffusion.process import MeanType, VarianceType
from diffusion.schedule import Schedule, space_timesteps
from tests.golden_runner.case import Case, CaseError


def schedule(case: Case) -> dict[str, Tensor]:
    if "cases" in case.body:
        return _listed(case)
    base = Schedule.named(case.config.need("schedule_name"), case.config.need("num_diffusion_timesteps"))
    sections: dict[str, Any] | None = case.config.take("sections")
    if sections is None:
        return _select(case, arrays(base), "")
    got: dict[str, Tensor] = {}
    for key, section in sections.items():
        kept = space_timesteps(base.num_timesteps, section)
        respaced = base.respaced(kept)
        named = arrays(respaced) | {"use_timesteps": torch.tensor(kept), "timestep_map": respaced.timestep_map}
        got |= _select(case, named, f"{key}/")
    return got


def arrays(schedule: Schedule) -> dict[str, Tensor]:
    """Our arrays under the official names."""
    alpha_bar = schedule.alpha_bar
    return {
        "betas": schedule.betas,
        "alphas_cumprod": alpha_bar,
        "alphas_cumprod_prev": schedule.alpha_bar_prev,
        "alphas_cumprod_next": schedule.alpha_bar_next,
        "sqrt_alphas_cumprod": alpha_bar.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - alpha_bar).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - alpha_bar).log(),
        "sqrt_recip_alphas_cumprod": schedule.x0_from_x,
        "sqrt_recipm1_alphas_cumprod": schedule.sigma,
        "posterior_variance": schedule.posterior_variance,
        "posterior_log_variance_clipped": schedule.posterior_log_variance,
        "posterior_mean_coef1": schedule.posterior_mean_x0,
        "posterior_mean_coef2": schedule.posterior_mean_x,
    }


def _select(case: Case, named: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    # A case lists some of the arrays; an expected name that is none of ours stays unanswered, and so fails.
    return {prefix + name: value for name, value in named.items() if prefix + name in case.expected}


def _listed(case: Case) -> dict[str, Tensor]:
    for number, entry in enumerate(case.body.take("cases")):
        known = "section_counts" in entry or "kwargs" in entry
        problem = (_edge(entry) if "section_counts" in entry else _flags(entry)) if known else "unknown kind of entry"
        if problem:
            raise CaseError(f"entry {number}: {problem}")
    return {}


def _edge(entry: dict[str, Any]) -> str | None:
    if unknown := set(entry) - {"num_timesteps", "section_counts", "result", "raises", "diffusion", "why"}:
        return f"unknown field {sorted(unknown)}"
    try:
        got = space_timesteps(entry["num_timesteps"], entry["section_counts"])
    except ValueError:
        return None if entry.get("raises") == "ValueError" else "raised ValueError"
    if got != entry.get("result"):
        return f"got {got}"
    # "raises IndexError" is the official code's inability to build one step; ours can, and the API offers it.
    buildable = entry["diffusion"] in ("ok", "raises IndexError")
    try:
        Schedule.named("cosine", entry["num_timesteps"]).respaced(got)
    except ValueError:
        return "no process can be built" if buildable else None
    return None if buildable else "an empty process was built"


def _flags(entry: dict[str, Any]) -> str | None:
    flags: dict[str, Any] = dict(entry["kwargs"])
    base = Schedule.named(flags.pop("noise_schedule", "linear"), flags.pop("steps", 1000))
    respacing = flags.pop("timestep_respacing", "")
    process_schedule = base.respaced(space_timesteps(base.num_timesteps, respacing)) if respacing else base
    rescale = flags.pop("rescale_timesteps", False)
    mean_type, variance_type, loss_type = select_types(**flags)
    head, tail = entry["timestep_map_head"], entry["timestep_map_tail"]
    timestep_map = process_schedule.timestep_map.tolist()
    got = {
        "num_timesteps": process_schedule.num_timesteps,
        "original_num_steps": base.num_timesteps,
        "model_mean_type": MeanType(mean_type).name,
        "model_var_type": VarianceType(variance_type).name,
        "loss_type": LossType(loss_type).name,
        "rescale_timesteps": rescale,
        "timestep_map_head": timestep_map[: len(head)],
        "timestep_map_tail": timestep_map[-len(tail) :],
    }
    want = {key: value for key, value in entry.items() if key != "kwargs"}
    return None if got == want else f"got {got}, expected {want}"
