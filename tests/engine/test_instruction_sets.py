"""Bytes do not depend on neighbours under other instruction sets either: what this processor has of them is tried."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

INSTRUCTION_SETS = {
    "none": {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"},
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    "avx512 without bf16": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "precision"),
    [("none", "fp32"), ("avx2", "fp32"), ("avx2", "bf16"), ("avx2", "fp16"), ("avx512 without bf16", "bf16")],
)
def test_images_do_not_depend_on_neighbours(name: str, precision: str, stack_folder: Path) -> None:
    settings = ["--precision", precision, "--count", "20", "--max-rows", "8", "--threads", "3", "--seed", "1"]
    ran = subprocess.run(
        [sys.executable, "-m", "bench.neighbours", "--stack", str(stack_folder), *settings],
        env=os.environ | INSTRUCTION_SETS[name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["compared"] >= 20
    assert found["different"] == 0
