"""Second-order solvers of the probability-flow ODE, as coefficient tables.

Both solve the data-prediction form in half the log signal-to-noise ratio, lambda = log(sqrt(alpha_bar) /
sqrt(1 - alpha_bar)). The solution is exact except for the prediction, which they assume to be linear over a step; DDIM
assumes that it is constant (Lu et al. 2022, "DPM-Solver++", Eq. 8):

    x_prev = A x + B pred_x0,    A and B those of DDIM at eta 0.

Guidance enters as in ADM's Algorithm 2: eps moves by -sqrt(1 - alpha_bar) g, and memory keeps the guided prediction.
"""

import torch

from diffusion.process import DiffusionProcess
from diffusion.tables import SamplerTable, sampling_table, score_columns, stack_columns
from vocabulary.sampling import Thresholding

MOST_EXTRAPOLATION = 1.0  # largest k in dpmpp_2m_table: the factor on the last change of the prediction


def dpmpp_2m_table(process: DiffusionProcess, *, thresholding: Thresholding = "clip") -> SamplerTable:
    """DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2): the prediction is extrapolated from the last two.

    The prediction D is replaced by D + k (D - D_before). k is half the ratio of this step's length in lambda to the
    length of the step before. k = 0 makes a step first-order: the first step, which has no prediction before, and each
    step whose k would exceed 1, because such an extrapolation is unreliable. These are the last step, whose length is
    infinite, and, if there are few steps, the one before it, as in the paper.
    """
    schedule = process.schedule
    previous = schedule.alpha_bar_prev
    columns = score_columns(process, previous, (1 - previous).sqrt(), thresholding)
    lengths = schedule.sigma.log().diff()  # from one kept timestep to the next in noise; lambda is -log sigma
    ahead = torch.zeros_like(previous)
    if len(ahead) > 2:
        ahead[1:-1] = lengths[:-1] / (2 * lengths[1:])
    ahead = torch.where(ahead > MOST_EXTRAPOLATION, 0, ahead)
    columns["memory_to_prev"] = -ahead * columns["x0_to_prev"]
    for name in ("x0_to_prev", "guidance"):
        if name in columns:
            columns[name] = (1 + ahead) * columns[name]
    columns["x0_to_memory"] = torch.ones_like(previous)
    return sampling_table(process, columns)


def heun_table(process: DiffusionProcess, *, thresholding: Thresholding = "clip") -> SamplerTable:
    """Heun's method: a step of DDIM, a second evaluation at its end, and the step again with both predictions' mean.

    A step has two rows, but the last step has one, because it goes to the clean image, where nothing is evaluated (as
    in Karras et al. 2022, Algorithm 1). The first row keeps A x + B/2 pred_x0 in memory; the second adds B/2 pred_x0.
    The step is in lambda, not in sigma as in the paper: a correction in sigma is larger by the ratio of a step's two
    sigmas, which exceeds a thousand at the start of the cosine schedule.
    """
    schedule = process.schedule
    previous = schedule.alpha_bar_prev
    predict = score_columns(process, previous, (1 - previous).sqrt(), thresholding)
    half = predict["x0_to_prev"] / 2
    correct = {name: column[:-1] for name, column in predict.items() if name not in ("x_to_prev", "guidance")}
    correct |= {"x0_to_prev": half[1:], "memory_to_prev": torch.ones_like(half[1:])}
    if "guidance" in predict:
        correct["guidance"] = half[1:] * predict["guidance_x0"][:-1]
    predict |= {"x_to_memory": predict["x_to_prev"], "x0_to_memory": half}
    # Ascending in noise like the schedule: the correction at a timestep comes just before the prediction from it.
    order = torch.arange(len(half)).repeat_interleave(2)[:-1]
    rows = torch.stack([stack_columns(predict)[:-1], stack_columns(correct)], dim=1).flatten(0, 1)
    rows = torch.cat([rows, stack_columns(predict)[-1:]])
    return SamplerTable(rows, process.network_timesteps[order], schedule.timestep_map[order]).reversed()
