"""What arithmetic this machine is good at."""

import torch


def has_fast_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware; emulated, it is tens of times slower than float32."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
