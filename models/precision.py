"""What arithmetic this machine is good at."""

from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]
"""Arithmetic of convolutions and matrix products; norms, softmax, sums and samplers are float32 in every one."""

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def best_precision(device: torch.device) -> Precision:
    """bf16 where the device multiplies it in hardware, else fp32."""
    return "bf16" if device.type == "cuda" or has_fast_bf16() else "fp32"


def has_fast_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware; emulated, it is tens of times slower than float32."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
