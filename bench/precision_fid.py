"""Measures the effect of half precision on images: judge agreement and demo FID of 2,000 images per precision.

    python -m bench.precision_fid fp32 bf16 fp16 [--images 2000]

The same classes and starting noise, DDIM with 10 steps at the default scale, 32x32. Pixels are stored in
runs/precision in parts, so that a stopped run resumes; fp32 comes first, because the others are compared with it.
Writes bench/results/precision_fid.json.

A CPU without half-precision hardware is tens of times slower in half precision. There the products are computed in
float32 from the same rounded numbers, and their sums are rounded, as hardware does.
"""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from bench.guidance_breakdown import Bench, Cell
from bench.machine import machine
from evaluation.judging import distance, judge_images
from evaluation.sampling import turns
from models.networks.precision import DTYPES, has_fast_bf16
from vocabulary.precisions import Precision

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "runs" / "precision"
RESULT = ROOT / "bench" / "results" / "precision_fid.json"
PART = 200
STEPS = 10
HALVES = (torch.bfloat16, torch.float16)
ATEN = torch.ops.aten
PRODUCTS = frozenset(
    {
        ATEN.convolution.default,
        ATEN.convolution_backward.default,
        ATEN.addmm.default,
        ATEN.mm.default,
        ATEN.bmm.default,
        ATEN.baddbmm.default,
    }
)


class Float32Products(TorchDispatchMode):
    """Half-precision convolutions and matrix products, summed in float32 and rounded once."""

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        dtypes = {each.dtype for each in args if isinstance(each, Tensor)}
        half = next((each for each in HALVES if each in dtypes), None)
        if half is None or func not in PRODUCTS:
            return func(*args, **(kwargs or {}))
        widened = tree_map_only(Tensor, lambda each: each.float() if each.dtype == half else each, args)
        return tree_map_only(Tensor, lambda each: each.to(half), func(*widened, **(kwargs or {})))


def products(precision: Precision) -> AbstractContextManager[object]:
    """A context for the half-precision products of this CPU."""
    native = precision == "fp32" or (precision == "bf16" and has_fast_bf16())
    return nullcontext() if native else Float32Products()  # type: ignore[no-untyped-call] # torch leaves it untyped


def images_of(bench: Bench, precision: Precision, count: int) -> Tensor:
    """Images [N, 3, H, W], uint8; part k has seed k."""
    cell = Cell("ddim", STEPS, bench.stack.pipelines["demo"].guidance_scale)
    labels, parts = turns(count, len(bench.stack.class_names)), []
    for part in range(count // PART):
        path = KEPT / f"{precision}-{part}.safetensors"
        if not path.exists():
            with products(precision):
                pixels = bench.sample(cell, labels[part * PART : (part + 1) * PART], seed=part)
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"pixels": pixels}, path)
            print(precision, (part + 1) * PART, flush=True)
        parts.append(load_file(path)["pixels"])
    return torch.cat(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("precisions", nargs="+", choices=list(DTYPES))
    parser.add_argument("--images", type=int, default=2000, help=f"in parts of {PART}")
    options = parser.parse_args(arguments)
    for precision in options.precisions:
        bench = Bench(precision, options.images)
        pixels = images_of(bench, precision, options.images)
        verdict = judge_images(bench.judge, pixels)
        plain = images_of(bench, "fp32", options.images).float()
        found: dict[str, Any] = {
            **verdict.agreement(torch.tensor(turns(options.images, len(bench.stack.class_names)))),
            "fid": distance(bench.fresh, verdict),
            "fid to the fp32 images": distance(judge_images(bench.judge, plain.to(torch.uint8)), verdict),
            "mean difference from fp32, of 255": round(float((pixels.float() - plain).abs().mean()), 4),
            "images": options.images,
            "products": "native" if isinstance(products(precision), nullcontext) else "in float32",
        }
        print(precision, found, flush=True)
        before = json.loads(RESULT.read_text())["found"] if RESULT.exists() else {}
        RESULT.write_text(json.dumps(machine() | {"found": before | {precision: found}}, indent=1) + "\n")


if __name__ == "__main__":
    main()
