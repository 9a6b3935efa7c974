"""Classifier guidance: the gradient, and the paper's two algorithms in plain form (ADM, section 4)."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion.process import Prediction, Process, gather

LogProbabilityFn = Callable[[Tensor, Tensor], Tensor]
"""x_t [N, C, H, W] and timesteps [N] to log p(y | x_t) of K conditions, [N, K]: anything differentiable in x_t."""

ENTROPY_FACTOR_MAX = 10.0


def classifier_log_probabilities(classifier: Callable[[Tensor, Tensor], Tensor]) -> LogProbabilityFn:
    """The log probabilities of a noisy classifier, which returns logits."""
    return lambda x_t, timesteps: F.log_softmax(classifier(x_t, timesteps).float(), dim=-1)


def one_hot(class_labels: Tensor, num_classes: int) -> Tensor:
    """Labels [N] as targets [N, num_classes]."""
    return F.one_hot(class_labels, num_classes).float()


def guidance_gradient(
    log_probabilities: LogProbabilityFn,
    x_t: Tensor,
    timesteps: Tensor,
    targets: Tensor,
    guidance_scale: Tensor | float,
    entropy_scaled: Tensor | None = None,
) -> Tensor:
    """guidance_scale * grad_x sum_y targets_y log p(y | x_t), by one backward pass of the batch's sum.

    A target of one label is the paper's guidance. A distribution pulls the classifier's answer towards it, because the
    sum is minus the cross entropy of the two. If entropy_scaled is true, the scale is multiplied by entropy_factor.
    Shapes: x_t and result [N, C, H, W]; timesteps [N]; targets [N, K]; guidance_scale a number or [N]; entropy_scaled
    [N] of booleans. Images do not mix: the gradient of the sum is each image's own. Weight gradients are not
    computed unless the weights require them.
    Source: ADM, Algorithms 1 and 2; Zheng et al. 2022 for the entropy.
    """
    with torch.enable_grad():
        x = x_t.detach().requires_grad_(True)
        scores = log_probabilities(x, timesteps)
        (gradient,) = torch.autograd.grad((scores * targets).sum(), x)
    scale = torch.as_tensor(guidance_scale, dtype=gradient.dtype, device=gradient.device).expand(len(x_t))
    if entropy_scaled is not None:
        scale = torch.where(entropy_scaled, scale * entropy_factor(scores.detach()), scale)
    scaled: Tensor = gradient * scale[:, None, None, None]
    return scaled


def entropy_factor(log_probabilities: Tensor) -> Tensor:
    """log K over the entropy of p(y | x_t), from 1 for a classifier that knows nothing to ENTROPY_FACTOR_MAX: [N].

    The gradient of a confident classifier vanishes before the image is finished; this factor compensates for that.
    Without the bound, the factor of an answer with entropy 0 would be infinite.
    Source: Zheng et al. 2022, "Entropy-driven Sampling and Training Scheme for Conditional Diffusion Generation".
    """
    entropy = torch.special.entr(log_probabilities.exp()).sum(dim=-1)
    most = math.log(max(log_probabilities.shape[-1], 2))  # log 1 is 0, so a single condition counts as two
    factor: Tensor = most / entropy.clamp(min=most / ENTROPY_FACTOR_MAX)
    return factor.clamp(min=1)


def guide_mean(predicted: Prediction, guidance: Tensor) -> Tensor:
    """Algorithm 1: the ancestral mean moves by variance * guidance; nothing is clamped afterwards."""
    return predicted.mean.float() + predicted.variance * guidance.float()


def guide_score(process: Process, predicted: Prediction, x_t: Tensor, t: Tensor, guidance: Tensor) -> Prediction:
    """Algorithm 2: eps of the (clamped) pred_x0 moves by -sqrt(1 - alpha_bar) * guidance; x_0 and mean follow."""
    eps = process.eps_from_x0(x_t, t, predicted.pred_x0)
    eps = eps - gather((1 - process.schedule.alpha_bar).sqrt(), t, x_t) * guidance
    pred_x0 = process.x0_from_eps(x_t, t, eps)
    return predicted._replace(pred_x0=pred_x0, mean=process.q_posterior(pred_x0, x_t, t)[0])
