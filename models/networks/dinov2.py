"""DINOv2's vision transformers (Oquab et al. 2023) with patches of 14 pixels and without registers.

Keys are those of the published files `dinov2_vit{s,b,l,g}14_pretrain.pth`, so a checkpoint loads unchanged; the
names of the layers follow those files, of DINOv2 (Apache 2.0).
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.checkpoints.file_form import shown
from models.checkpoints.network_file import WeightsError, check_state
from models.checkpoints.tensor_file import read_tensors
from models.networks.tf_resize import resized_as_tensorflow

PATCH = 14  # pixels
INPUT_SIZE = 224
TRAINED_PATCHES = 37  # along an edge of the images of 518 pixels for which positions are stored
OFFSET = 0.1  # of patches, in the official factor by which positions are resampled
TINY = 1e-6  # of the layer norms
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's red, green and blue, in [0, 1]


@dataclass(frozen=True)
class TransformerSize:
    """Channels, blocks and heads; gated: the feed-forward layers are SwiGLU instead of GELU."""

    width: int
    depth: int
    heads: int
    gated: bool = False


SIZES = {
    size.width: size
    for size in (
        TransformerSize(384, 12, 6),
        TransformerSize(768, 12, 12),
        TransformerSize(1024, 24, 16),
        TransformerSize(1536, 40, 24, gated=True),
    )
}
"""The published networks S, B, L and g by width, which identifies a file."""


class PatchEmbedding(nn.Module):
    """Patches [N, 3, 14P, 14P] to tokens [N, P * P, width], row after row."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, stride=PATCH)

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = self.proj(x)
        return maps.flatten(2).mT


class SelfAttention(nn.Module):
    """Multi-head attention over the tokens; the channels of qkv are q, k, v, with the heads inside each."""

    def __init__(self, size: TransformerSize) -> None:
        super().__init__()
        self.qkv = nn.Linear(size.width, 3 * size.width)
        self.proj = nn.Linear(size.width, size.width)
        self._heads = size.heads

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self._heads, -1)).permute(2, 0, 3, 1, 4)
        attended: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return attended


class FeedForward(nn.Module):
    """Two layers around a GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return found


class GatedFeedForward(nn.Module):
    """SwiGLU (Shazeer 2020), narrower by a third so that it has as many weights; the width is a multiple of 8."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = (4 * width * 2 // 3 + 7) // 8 * 8
        self.w12 = nn.Linear(width, 2 * inner)
        self.w3 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        found: Tensor = self.w3(F.silu(gate) * value)
        return found


class LayerScale(nn.Module):
    """A learned factor for each channel (Touvron et al. 2021)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Attention and a feed-forward layer, each normed before, scaled after, and added to its input."""

    def __init__(self, size: TransformerSize) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(size.width, eps=TINY)
        self.attn = SelfAttention(size)
        self.ls1 = LayerScale(size.width)
        self.norm2 = nn.LayerNorm(size.width, eps=TINY)
        self.mlp = (GatedFeedForward if size.gated else FeedForward)(size.width)
        self.ls2 = LayerScale(size.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        total: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return total


class DinoV2(nn.Module):
    """Computes the feature of an image: the class token after the last norm."""

    def __init__(self, size: TransformerSize) -> None:
        super().__init__()
        self.size = size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, size.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + TRAINED_PATCHES**2, size.width))
        self.mask_token = nn.Parameter(torch.zeros(1, size.width))  # used only in training; the files contain it
        self.patch_embed = PatchEmbedding(size.width)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.depth))
        self.norm = nn.LayerNorm(size.width, eps=TINY)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x [N, 3, 224, 224], as `normalised` returns it; result [N, width]."""
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), self.patch_embed(x)], dim=1) + self._positions()
        for block in self.blocks:
            tokens = block(tokens)
        feature: Tensor = self.norm(tokens[:, 0])
        return feature

    def _positions(self) -> Tensor:
        """The stored positions at the patches of 224 pixels: [1, 1 + 16 * 16, width].

        The factor is the official one. It is not the ratio of the sizes, and decides which places bicubic interpolation
        reads.
        """
        patches = self.pos_embed[:, 1:].unflatten(1, (TRAINED_PATCHES, TRAINED_PATCHES)).permute(0, 3, 1, 2)
        factor = (INPUT_SIZE // PATCH + OFFSET) / TRAINED_PATCHES
        reduced = F.interpolate(patches, scale_factor=(factor, factor), mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], reduced.flatten(2).mT], dim=1)


def load_dinov2(path: Path) -> DinoV2:
    """The network of a weights file. Raises: WeightsError for another file, with the first keys that differ."""
    tensors = read_tensors(path)
    if "register_tokens" in tensors:
        raise WeightsError(shown(path), "has register tokens; take a file without them, dinov2_vit?14_pretrain.pth")
    width = tensors["pos_embed"].shape[-1] if "pos_embed" in tensors else 0
    if width not in SIZES:
        raise WeightsError(shown(path), f"is no DINOv2: its pos_embed has {width} channels, not {list(SIZES)}")
    with torch.device("meta"):
        network = DinoV2(SIZES[width])
    check_state(network, tensors, shown(path))
    network.load_state_dict({key: value.float() for key, value in tensors.items()}, assign=True)
    return network.eval().requires_grad_(False)


def normalised(pixels: Tensor) -> Tensor:
    """Images [N, 3, H, W], uint8, as the network's input: [N, 3, 224, 224], as torch-fidelity prepares them."""
    mean, deviation = (255 * torch.tensor(each)[:, None, None] for each in (MEAN, DEVIATION))
    return (resized_as_tensorflow(pixels.float(), INPUT_SIZE) - mean) / deviation
