"""Counter-based noise: an image's draws are a function of (seed, image index, stage, draw) alone.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): its words are integers, so they are
equal bit for bit on every device; Box-Muller turns them into normals in float64, rounded to float32 at the end.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.transfer import upload

ROUNDS = 10
# Philox's multipliers minus 2^32, so that no product overflows int64. The high word of such a product is too small by
# the counter, which `philox` adds back.
MULTIPLIERS = (0xD2511F53 - 2**32, 0xCD9E8D57 - 2**32)
WEYL = (0x9E3779B9, 0xBB67AE85)  # added to the key each round: the golden ratio and sqrt(3) - 1
WORD = 0xFFFFFFFF


class Draw(NamedTuple):
    """The key of one image-sized draw: step 0 is the stage's starting noise, k the noise of its k-th step."""

    seed: int  # 0 .. 2^63 - 1
    image_index: int
    stage: int
    step: int


def philox(counter: Tensor, key: Tensor) -> Tensor:
    """Philox4x32-10. Shapes: counter [..., 4], key [..., 2], result [..., 4]; 32-bit words in int64."""
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key.unbind(-1)
    for _ in range(ROUNDS):
        product0, product1 = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        high0, high1 = (product0 >> 32) + c0, (product1 >> 32) + c2
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, product1 & WORD, high0 ^ c3 ^ k1, product0 & WORD
        k0, k1 = (k0 + WEYL[0]) & WORD, (k1 + WEYL[1]) & WORD
    return torch.stack(torch.broadcast_tensors(c0, c1, c2, c3), dim=-1)


def normals(draws: Sequence[Draw], shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Standard normal noise, one image for each draw: [len(draws), *shape], float32."""
    count = math.prod(shape)
    blocks = (count + 1) // 2  # a block of four words gives two uniforms of 52 bits, so two normals
    words_of_draws = [[d.step, d.image_index, d.stage, d.seed & WORD, d.seed >> 32] for d in draws]
    address = upload(torch.tensor(words_of_draws, dtype=torch.int64), device)
    block = torch.arange(blocks, dtype=torch.int64, device=device).expand(len(draws), -1)
    step, image_index, stage = (address[:, i, None].expand_as(block) for i in range(3))
    words = philox(torch.stack([block, step, image_index, stage], dim=-1), address[:, None, 3:])
    # One call per image: vectorised log and cos may round differently in the tail of a longer array, and an image's
    # noise must not depend on the other draws.
    images = [_box_muller(each)[:count] for each in words]
    return torch.stack(images).to(torch.float32).reshape(len(draws), *shape)


def _box_muller(words: Tensor) -> Tensor:
    uniform = _uniform(words[:, 0::2], words[:, 1::2])  # (blocks, 2)
    radius = (-2.0 * uniform[:, 0].log()).sqrt()
    angle = 2.0 * math.pi * uniform[:, 1]
    return torch.cat([radius * angle.cos(), radius * angle.sin()])


def _uniform(high: Tensor, low: Tensor) -> Tensor:
    # 52 bits plus a half: strictly between 0 and 1, and exact in float64.
    return ((high << 20 | low >> 12).to(torch.float64) + 0.5) * 2.0**-52
