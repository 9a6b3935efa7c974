"""The fused norm through Triton's compiler, and a start where it cannot run; what it computes: tests/device."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.networks.blocks import ResBlock
from models.networks.fusing import fuse_norms, fused_by
from tests.models.samples import seeded

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
# The kernels are private, since only their launch is for others; it needs a GPU, and compiling them for one does not.
COMPILE = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from models.networks.norm_kernels import _backward_kernel, _forward_kernel, launch_options

for capability, dtype in ((80, "fp32"), (90, "bf16"), (90, "fp16")):
    for kernel, fused in ((_forward_kernel, True), (_forward_kernel, False), (_backward_kernel, True)):
        constants = launch_options(512, 32, 4096, modulated=fused, silu=fused)
        options = {"num_warps": constants.pop("num_warps")}
        types = dict.fromkeys(("x", "y", "dx", "dy", "scale", "shift"), f"*{dtype}")
        types |= dict.fromkeys(("weight", "bias", "means", "rstds", "dscale", "dshift"), "*fp32")
        types |= dict.fromkeys(constants, "constexpr") | {"eps": "fp32"}
        source = ASTSource(kernel, {name: types.get(name, "i32") for name in kernel.arg_names}, constants)
        assert compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm["cubin"]
"""


@needs_triton
@pytest.mark.slow
def test_kernels_compile_for_gpus_that_are_not_here(tmp_path: Path) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    ran = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


@pytest.fixture
def block() -> ResBlock:
    return seeded(ResBlock(32, 16, 0.0, use_scale_shift_norm=True), 0)


@pytest.fixture
def probe(block: ResBlock) -> Callable[[], Tensor]:
    x, emb = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) for shape in ((2, 32, 4, 4), (2, 16)))
    return lambda: block(x, emb)


@torch.no_grad()
def test_norms_stay_eager_where_no_kernel_can_run(block: ResBlock, probe: Callable[[], Tensor]) -> None:
    expected = probe()
    assert fuse_norms(block, probe)  # with Triton, as without: these tensors are in the host's memory
    assert fused_by(block) is None
    assert torch.equal(probe(), expected)


@torch.no_grad()
def test_norms_stay_eager_without_triton(
    block: ResBlock, probe: Callable[[], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "models.networks.norm_kernels", raising=False)
    assert fuse_norms(block, probe) == "ModuleNotFoundError: import of triton halted; None in sys.modules"
    assert fused_by(block) is None


def test_device_that_a_kernel_has_lost_ends_the_start(block: ResBlock) -> None:
    def lose() -> None:
        raise torch.AcceleratorError("the device is lost")

    with pytest.raises(torch.AcceleratorError):
        fuse_norms(block, lose)
