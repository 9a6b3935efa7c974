"""Classifier guidance: the gradient, and the paper's two algorithms in plain form (ADM, section 4)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion.process import Prediction, Process, gather

LogitsFn = Callable[[Tensor, Tensor], Tensor]


def classifier_gradient(
    classifier: LogitsFn, x_t: Tensor, timesteps: Tensor, class_labels: Tensor, guidance_scale: Tensor | float
) -> Tensor:
    """guidance_scale * grad_x log p(y | x_t), by one backward pass of the batch's summed log-probability.

    Shapes: x_t and result [N, C, H, W]; timesteps, class_labels [N]; guidance_scale a number or [N]. Images do not mix:
    the gradient of the sum is each image's own. Weight gradients are not formed where the weights do not ask for them.
    Source: ADM, Algorithms 1 and 2.
    """
    with torch.enable_grad():
        x = x_t.detach().requires_grad_(True)
        selected = log_probability(classifier(x, timesteps).float(), class_labels)
        (gradient,) = torch.autograd.grad(selected.sum(), x)
    if isinstance(guidance_scale, Tensor):
        guidance_scale = guidance_scale.to(gradient.dtype)[:, None, None, None]
    return gradient * guidance_scale


def log_probability(logits: Tensor, class_labels: Tensor) -> Tensor:
    """log softmax(logits) at the labels: [N, classes] and [N] to [N]."""
    return F.log_softmax(logits, dim=-1).gather(1, class_labels[:, None])[:, 0]


def guide_mean(predicted: Prediction, guidance: Tensor) -> Tensor:
    """Algorithm 1: the ancestral mean moves by variance * guidance; nothing is clamped afterwards."""
    return predicted.mean.float() + predicted.variance * guidance.float()


def guide_score(process: Process, predicted: Prediction, x_t: Tensor, t: Tensor, guidance: Tensor) -> Prediction:
    """Algorithm 2: eps of the (clamped) pred_x0 moves by -sqrt(1 - alpha_bar) * guidance; x_0 and mean follow."""
    eps = process.eps_from_x0(x_t, t, predicted.pred_x0)
    eps = eps - gather((1 - process.schedule.alpha_bar).sqrt(), t, x_t) * guidance
    pred_x0 = process.x0_from_eps(x_t, t, eps)
    return predicted._replace(pred_x0=pred_x0, mean=process.q_posterior(pred_x0, x_t, t)[0])
