"""What arithmetic this machine is good at."""

from typing import Literal

import torch
from torch import nn

Precision = Literal["fp32", "bf16", "fp16"]
"""Arithmetic of convolutions and matrix products; norms, softmax, sums and samplers are float32 in every one."""

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def hold_weights(network: nn.Module, precision: Precision) -> None:
    """Round the weights of convolutions and linear layers to what this arithmetic takes, once and for all.

    Under autocast the network computes the same, bit for bit, and casts none of them at each call; without it, in half
    precision, it computes nothing any more. Norms and embeddings stay float32.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            module.to(DTYPES[precision])


def best_precision(device: torch.device) -> Precision:
    """bf16 where the device multiplies it in hardware, else fp32."""
    return "bf16" if device.type == "cuda" or has_fast_bf16() else "fp32"


def has_fast_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware; emulated, it is tens of times slower than float32."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
