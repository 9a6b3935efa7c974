"""Cases of whole runs, through the same tables and the same step as the engine's."""

import torch
from torch import Tensor

from diffusion.pixels import to_uint8
from diffusion.tables import SamplerTable, ddim_table, ddpm_table, reverse_ddim_table, take_step
from tests.golden_runner.analytic import Network, read_gradient, read_network, read_process, read_thresholding
from tests.golden_runner.case import Case, CaseError


def trajectory(case: Case) -> dict[str, Tensor]:
    if case.config.take("kind") == "uint8":
        return {"uint8": to_uint8(case.inputs["x_0"]).permute(0, 2, 3, 1)}
    if "reverse_state_indices" in case.config:
        return _there_and_back(case)
    config = case.config
    process = read_process(config)
    thresholding, sampler = read_thresholding(config), config.need("sampler")
    eta = config.take("eta", 0.0)
    if sampler == "ddim":
        table = ddim_table(process, eta, thresholding=thresholding)
    elif sampler == "ddpm":
        table = ddpm_table(process, thresholding=thresholding)
    else:
        raise CaseError(f"unknown sampler {sampler!r}")
    _check_times(case, table)
    network, gradient = read_network(config, process), read_gradient(config)
    states, pred_x0s = run(table, network, gradient, case.inputs["x_T"], case.inputs.get("y"), case.inputs.get("noise"))
    rows = [len(table) - 1 - index for index in config.need("state_indices")]
    return {
        "x_0": states[-1],
        "states": torch.stack([states[row] for row in rows]),
        "pred_xstarts": torch.stack([pred_x0s[row] for row in rows]),
        "uint8": to_uint8(states[-1]).permute(0, 2, 3, 1),
    }


def run(
    table: SamplerTable, network: Network, gradient: Network | None, x: Tensor, y: Tensor | None, noise: Tensor | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Every state and every pred_x0 of a run, in order of execution."""
    states, pred_x0s = [], []
    for row in range(len(table)):
        timesteps = table.timesteps[row].expand(len(x))
        guidance = None if gradient is None else gradient(x, timesteps, y)
        drawn = torch.zeros_like(x) if noise is None else noise[row]
        rows = table.rows[row].expand(len(x), -1)
        x, pred_x0, _ = take_step(rows, x, network(x, timesteps, y), guidance, drawn)
        states.append(x)
        pred_x0s.append(pred_x0)
    return states, pred_x0s


def _check_times(case: Case, table: SamplerTable) -> None:
    ends = case.config.take("model_time_first_and_last")
    dtype = case.config.take("model_time_dtype")
    if ends is not None and [table.timesteps[0].item(), table.timesteps[-1].item()] != ends:
        raise CaseError(f"the network's first and last time are not {ends}")
    if dtype is not None and str(table.timesteps.dtype) != f"torch.{dtype}":
        raise CaseError(f"the network's time is {table.timesteps.dtype}, expected {dtype}")


def _there_and_back(case: Case) -> dict[str, Tensor]:
    config = case.config
    process = read_process(config)
    thresholding = read_thresholding(config)
    assert config.take("eta", 0.0) == 0.0
    network, y = read_network(config, process), case.inputs.get("y")
    there = reverse_ddim_table(process, thresholding=thresholding)
    states, _ = run(there, network, None, case.inputs["x_0"], y, None)
    back = ddim_table(process, 0.0, thresholding=thresholding)
    x_T = states[len(there) - 2]  # the noise level of the last index, where the way back starts
    return {
        "reverse_states": torch.stack([states[index] for index in config.need("reverse_state_indices")]),
        "x_T": x_T,
        "reconstruction": run(back, network, None, x_T, y, None)[0][-1],
    }
