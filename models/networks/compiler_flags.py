"""Flags of the C++ compiler, without which it miscompiles code that torch.compile generates for a CPU."""

import platform

FLAGS = "-fno-tree-slp-vectorize"


def use_sound_flags() -> None:
    """Have torch.compile call the C++ compiler without an optimisation that breaks bf16 code.

    g++ 12 vectorises straight-line code at -O3 (SLP). In torch's AVX512 code that transposes tiles of 32x32 bf16 values
    it then stores one row of 32, so a compiled attention reads memory that nothing has written. torch switches loop
    vectorisation off for a similar reason (pytorch/pytorch#115261), and vectorises by itself, so nothing is lost.
    """
    import torch._inductor.config  # imported here, because it takes a second, which an eager start saves

    if platform.machine() == "x86_64":  # torch has no setting for flags, but writes this one after -march=
        torch._inductor.config.cpp.march = f"native {FLAGS}"
