"""The precisions of networks, and the best one for this machine."""

import torch
from torch import nn

from models.networks.convolution import Conv1d, Conv2d
from vocabulary.precisions import Precision

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def hold_weights(
    network: nn.Module, precision: Precision, layout: torch.memory_format = torch.contiguous_format
) -> None:
    """Round the weights of convolutions to a precision and lay them out; a convolution computes in its weights' dtype.

    Linear layers, norms and embeddings stay float32, as in the official networks' float16. Packed weights, of a network
    that several stages share, stay as they are.
    """
    for module in network.modules():
        if isinstance(module, Conv1d | Conv2d) and not module.weight.is_mkldnn:
            module.to(DTYPES[precision])
            if isinstance(module, Conv2d):
                module.to(memory_format=layout)  # type: ignore[call-overload]  # missing in torch's stubs


def best_precision(device: torch.device) -> Precision:
    """bf16 if the device multiplies it in hardware, else fp32."""
    return "bf16" if device.type == "cuda" or has_fast_bf16() else "fp32"


def has_fast_bf16() -> bool:
    """Return whether the CPU multiplies bfloat16 in hardware; emulated, it is tens of times slower than float32."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
