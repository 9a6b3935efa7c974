"""Record the outputs that test_rounding compares: python -m tests.engine.record_rounding adds those of this machine.

The bits depend on the processor too. So each record has a hash of what torch's own operations gave: a machine on which
they give the same must give the same images, bit for bit.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.engine import Engine
from engine.pipeline import BASE, UPSAMPLE, Pipeline, build_stages
from engine.rounding import ROUNDING
from engine.trajectory import Guidance, ImageRequest, StagePlan, StagePlans
from models.networks import native_norm
from models.stack import load_stack
from tests.models.samples import write_stack
from vocabulary.precisions import PRECISIONS, Precision

RECORDS = Path(__file__).with_name("rounding.json")
MODES: tuple[dict[str, str], ...] = (
    {},
    {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
)


def torchs_own() -> str:
    """A hash of what torch's operations give here in every dtype, for inputs whose sums show any change of order."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(shape, generator=generator) for shape in ((4, 32, 8, 8), (32, 32, 3, 3)))
    flat, matrix = x.flatten(1), torch.randn(2048, 128, generator=generator)
    results = [x.exp(), x.cos(), F.silu(x), flat @ matrix, x.sum((2, 3)), flat.softmax(-1), F.group_norm(x, 32)]
    heads = x.flatten(2).mT.unflatten(1, (4, 16))
    results.append(F.scaled_dot_product_attention(heads, heads, heads))
    # sums of many magnitudes that cancel: their rounding is all that is left
    x, w = (each * 2.0 ** torch.randint(-6, 7, each.shape, generator=generator) for each in (x, w))
    maps, kernels = torch.cat([x, x], 1).contiguous(memory_format=torch.channels_last), torch.cat([w, -w], 1)
    for dtype in (torch.float32, torch.bfloat16, torch.half):
        results += [F.conv2d(maps.to(dtype), kernels[..., :n, :n].to(dtype), padding=n // 2) for n in (1, 3)]
    return digest(results)


def digest(tensors: list[Tensor]) -> str:
    """A hash of all bits."""
    whole = hashlib.sha256()
    for each in tensors:
        whole.update(each.float().contiguous().numpy().tobytes())
    return whole.hexdigest()[:16]


def images(folder: Path, precision: Precision) -> list[Tensor]:
    """Final states of a few images of the tiny stack, which together pass every operation that rounds."""
    stack = load_stack(folder)
    stages = build_stages([stack], 4, precision=precision, threads=1)
    pipeline, engine = Pipeline(stack.pipelines["tiny"], stack), Engine(stages, 4)
    for index, request in enumerate(_requests(pipeline)):
        assert request.index == index
        engine.add(request)
    final: dict[int, Tensor] = {}
    while (report := engine.step()) is not None:
        final |= {each.request.index: each.x for each in report.finished}
    return [final[index] for index in sorted(final)]


def _requests(pipeline: Pipeline) -> Iterator[ImageRequest]:
    samplers = ("ddpm", "ddim", "dpmpp_2m", "heun")
    for index, sampler in enumerate(samplers):
        base = StagePlan(BASE, sampler, 3, eta=0.5 * (sampler == "ddim"))
        upsample = StagePlan(UPSAMPLE, sampler, 2) if index % 2 else None
        yield pipeline.image(
            "job",
            index,
            7,
            Guidance(index % 3, 2.0 * (index != 2), entropy_scaled=index == 1),
            StagePlans(base, upsample),
        )


def record() -> dict[str, object]:
    """The outputs of this process."""
    with tempfile.TemporaryDirectory() as folder:
        stack = write_stack(Path(folder) / "tiny")
        outputs = {precision: digest(images(stack, precision)) for precision in PRECISIONS}
    assert native_norm.library() is not None, "torch would compute the norms"
    return {"rounding": ROUNDING, "torch": torch.__version__, "torchs_own": torchs_own(), "outputs": outputs}


def main() -> None:
    """Add a record for each set of instructions that can be selected on this machine; it replaces older ones."""
    if "--one" in sys.argv:
        print(json.dumps(record()))
        return
    known = json.loads(RECORDS.read_text()) if RECORDS.exists() else []
    for mode in MODES:
        command = [sys.executable, "-m", "tests.engine.record_rounding", "--one"]
        ran = subprocess.run(command, env=os.environ | mode, capture_output=True, text=True, check=True)
        one = json.loads(ran.stdout.splitlines()[-1])
        known = [each for each in known if each["rounding"] == ROUNDING and each["torchs_own"] != one["torchs_own"]]
        known.append(one)
    RECORDS.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
