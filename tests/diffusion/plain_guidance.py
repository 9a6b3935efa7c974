"""The paper's two guidance algorithms in plain form, to compare the samplers' tables with (ADM, section 4)."""

from torch import Tensor

from diffusion.process import DiffusionProcess, Prediction, gather
from tests.diffusion.conversions import eps_from_x0


def guide_mean(predicted: Prediction, guidance: Tensor) -> Tensor:
    """Algorithm 1: the ancestral mean moves by variance * guidance; nothing is clamped afterwards."""
    return predicted.mean.float() + predicted.variance * guidance.float()


def guide_score(
    process: DiffusionProcess, predicted: Prediction, x_t: Tensor, t: Tensor, guidance: Tensor
) -> Prediction:
    """Algorithm 2: eps of the (clamped) pred_x0 moves by -sqrt(1 - alpha_bar) * guidance; x_0 and mean follow."""
    eps = eps_from_x0(process, x_t, t, predicted.pred_x0)
    eps = eps - gather((1 - process.schedule.alpha_bar).sqrt(), t, x_t) * guidance
    pred_x0 = process.x0_from_eps(x_t, t, eps)
    return predicted._replace(pred_x0=pred_x0, mean=process.q_posterior(pred_x0, x_t, t)[0])
