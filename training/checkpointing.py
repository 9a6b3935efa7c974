"""Gradient checkpointing: a block's activations are recomputed for its gradient instead of kept."""

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from models.networks.attention import AttentionBlock
from models.networks.blocks import ResBlock


def checkpoint_blocks(network: nn.Module) -> None:
    """Checkpoint each residual and attention block of a network, as the official use_checkpoint does."""
    for module in network.modules():
        if isinstance(module, ResBlock | AttentionBlock):
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)  # type: ignore[method-assign]  # one network's blocks
