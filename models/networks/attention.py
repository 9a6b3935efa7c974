"""Self-attention of the ADM networks: both channel orders of qkv, the block around it, and the pooling form."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.networks.convolution import Conv1d, autocasts
from models.networks.norm import GroupNorm32, zero_parameters


def attend(qkv: Tensor, num_heads: int, *, new_order: bool) -> Tensor:
    """Multi-head attention over the positions of a flattened map.

    The two channel orders have the same shapes, so a wrong one loads without an error and makes noise:
    legacy groups by head, with q, k, v inside each head; the new order groups by q, k, v, with the heads inside each.

    Shapes: qkv [N, 3C, T]; result [N, C, T], head-major in both orders.
    Source: guided-diffusion (MIT), QKVAttentionLegacy and QKVAttention; scale 1/sqrt(C/num_heads).
    """
    n, width, length = qkv.shape
    channels, dtype = width // (3 * num_heads), qkv.dtype
    on_cpu = qkv.device.type == "cpu"
    if on_cpu:
        # torch's gradient of attention in half precision multiplies value by value on a CPU: seven times as slow
        qkv = qkv.float()
    # fused kernels need a head's channels contiguous, as in channels-last maps; on a CPU, other kernels choose
    # the order of sums by the alignment of each image's slice, which differs between images if T is odd
    qkv = qkv.mT.contiguous().mT
    if new_order:
        q, k, v = qkv.reshape(n, 3, num_heads, channels, length).unbind(1)
    else:
        q, k, v = qkv.reshape(n, num_heads, 3, channels, length).unbind(2)
    with torch.autocast("cpu", enabled=False) if on_cpu and autocasts(qkv) else nullcontext():
        out = F.scaled_dot_product_attention(q.transpose(-1, -2), k.transpose(-1, -2), v.transpose(-1, -2))
    return out.transpose(-1, -2).reshape(n, num_heads * channels, length).to(dtype)


def count_heads(channels: int, num_heads: int, num_head_channels: int) -> int:
    """Heads of an attention over `channels`; num_heads is used only if num_head_channels is -1."""
    if num_head_channels == -1:
        return num_heads
    if channels % num_head_channels:
        raise ValueError(
            f"num_head_channels={num_head_channels} does not divide an attention layer's {channels} channels"
        )
    return channels // num_head_channels


class AttentionBlock(nn.Module):
    """Residual self-attention over all positions of a map; no positional embedding."""

    def __init__(
        self, channels: int, num_heads: int = 1, num_head_channels: int = -1, *, new_order: bool = False
    ) -> None:
        super().__init__()
        self.num_heads = count_heads(channels, num_heads, num_head_channels)
        self.new_order = new_order
        self.norm = GroupNorm32(channels)
        self.qkv = Conv1d(channels, 3 * channels, 1)
        self.proj_out = zero_parameters(Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)  # one, two or three spatial dimensions, as in the official block
        attended = attend(self.qkv(self.norm(flat)), self.num_heads, new_order=self.new_order)
        # added as maps, because a sum of flat tensors loses the channels-last layout for one row
        total: Tensor = x + self.proj_out(attended).reshape(x.shape)
        return total


class AttentionPool(nn.Module):
    """Pools a map of a fixed size by letting its mean token attend to every position (CLIP's pooling).

    Always uses the new qkv order, even if the network's blocks do not.
    """

    def __init__(self, map_size: int, channels: int, num_head_channels: int, out_channels: int | None = None) -> None:
        super().__init__()
        self.num_heads = count_heads(channels, -1, num_head_channels)
        drawn = nn.init.normal_(torch.empty(channels, map_size**2 + 1), std=channels**-0.5)
        self.positional_embedding = nn.Parameter(drawn)
        self.qkv_proj = Conv1d(channels, 3 * channels, 1)
        self.c_proj = Conv1d(channels, out_channels or channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2)  # (N, C, HW)
        tokens = torch.cat([tokens.mean(dim=-1, keepdim=True), tokens], dim=-1)
        tokens = tokens + self.positional_embedding.to(tokens.dtype)
        attended: Tensor = self.c_proj(attend(self.qkv_proj(tokens), self.num_heads, new_order=True))
        return attended[:, :, 0]
