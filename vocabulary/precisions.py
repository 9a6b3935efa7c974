"""The precisions of networks."""

from typing import Literal, get_args

Precision = Literal["fp32", "bf16", "fp16"]
"""Arithmetic of convolutions, and of attention on GPUs; all else (norms, linear layers, samplers) is float32."""
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
