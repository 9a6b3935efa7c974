"""What half precision does to images: the judge and demo FID of 2,000 images in each precision.

    python -m bench.precision_fid fp32 bf16 fp16 [--images 2000]

The same classes from the same starting noise, DDIM of 10 steps at the default's scale, 32x32. Pixels are kept in
runs/precision, a part at a time, so that a run that was stopped goes on; fp32 comes first, for the others are held
against it. Writes bench/results/precision_fid.json.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.guidance_breakdown import Bench, Cell
from bench.machine import machine
from evaluation.demo_report import turns
from evaluation.judging import distance, judge_images
from models.precision import DTYPES, Precision

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "runs" / "precision"
RESULT = ROOT / "bench" / "results" / "precision_fid.json"
PART = 200
STEPS = 10


def images_of(bench: Bench, precision: Precision, count: int) -> Tensor:
    """[N, 3, H, W] uint8; part k has the seed k."""
    cell = Cell("ddim", STEPS, bench.stack.pipelines["demo"].guidance_scale)
    labels, parts = turns(count, len(bench.stack.class_names)), []
    for part in range(count // PART):
        path = KEPT / f"{precision}-{part}.safetensors"
        if not path.exists():
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
        }
        print(precision, found, flush=True)
        before = json.loads(RESULT.read_text())["found"] if RESULT.exists() else {}
        RESULT.write_text(json.dumps(machine() | {"found": before | {precision: found}}, indent=1) + "\n")


if __name__ == "__main__":
    main()
