"""Classifier guidance: the gradient of log p(y | x_t), and its factor (ADM, section 4)."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

LogProbabilityFn = Callable[[Tensor, Tensor], Tensor]
"""A function of x_t [N, C, H, W] and timesteps [N] that returns log p(y | x_t) of K conditions, [N, K], and is
differentiable in x_t."""

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
    """Return guidance_scale * grad_x sum_y targets_y log p(y | x_t), from one backward pass of the batch's sum.

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
    """Return log K divided by the entropy of p(y | x_t), [N]: from 1, for equal probabilities, to ENTROPY_FACTOR_MAX.

    The gradient of a confident classifier vanishes before the image is finished; this factor compensates for that.
    Without the bound, the factor of an answer with entropy 0 would be infinite.
    Source: Zheng et al. 2022, "Entropy-driven Sampling and Training Scheme for Conditional Diffusion Generation".
    """
    entropy = row_sums(torch.special.entr(log_probabilities.exp()))
    most = math.log(max(log_probabilities.shape[-1], 2))  # log 1 is 0, so a single condition counts as two
    factor: Tensor = most / entropy.clamp(min=most / ENTROPY_FACTOR_MAX)
    return factor.clamp(min=1)


def row_sums(values: Tensor) -> Tensor:
    """Sums [N] of values [N, K] over K, which are added in an order that depends on K alone.

    torch's sum on a GPU divides a row among threads by N too, so an image's sum would depend on its neighbours.
    """
    while (count := values.shape[-1]) > 1:
        half = (count + 1) // 2
        first, rest = values[:, :half], values[:, half:]
        values = first + F.pad(rest, (0, half - rest.shape[-1]))
    return values[:, 0]
