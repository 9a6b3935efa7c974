"""The noisy classifier's loss and its measures (guided-diffusion, scripts/classifier_train.py)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def accumulate_classifier(
    classifier: Callable[[Tensor, Tensor], Tensor],
    x_t: Tensor,
    timesteps: Tensor,
    class_labels: Tensor,
    microbatch: int,
) -> tuple[Tensor, Tensor]:
    """Backpropagate the mean cross entropy, each microbatch weighted by its share; returns losses [N] and logits.

    Unlike the diffusion loop, whose microbatch gradients add up unweighted.
    """
    losses, logits = [], []
    for start in range(0, len(x_t), microbatch):
        part = slice(start, min(start + microbatch, len(x_t)))
        predicted = classifier(x_t[part], timesteps[part])
        loss = F.cross_entropy(predicted, class_labels[part], reduction="none")
        (loss.mean() * len(loss) / len(x_t)).backward()
        losses.append(loss.detach())
        logits.append(predicted.detach())
    return torch.cat(losses), torch.cat(logits)


def top_k_hits(logits: Tensor, class_labels: Tensor, k: int) -> Tensor:
    """1.0 where the label is among the k highest logits: [N]."""
    return (logits.topk(k, dim=-1).indices == class_labels[:, None]).any(dim=-1).float()
