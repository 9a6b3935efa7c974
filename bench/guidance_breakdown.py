"""Finds the guidance scales at which each sampler breaks, and the quality of few steps, on the demo stack.

    python -m bench.guidance_breakdown [--images 50] [--few-images 200]

Every cell makes the same classes from the same starting noise. The judge measures how often its answer is the requested
class, and the distance of its features from those of fresh renders. All samplers have 25 network evaluations (Heun: 13
steps), and two of them also 10. FID of few images is too large by an amount that depends on their number, so compare
only cells with the same count. Writes bench/results/guidance_breakdown.json after every cell; cells of the same weights
are kept, so that a stopped run resumes.
"""

import argparse
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datasets.shapes import render_set
from engine.engine import Engine
from engine.pipeline import BASE, Pipeline, build_stages
from engine.trajectory import StagePlan
from evaluation.judging import distance, judge_images
from evaluation.sampling import Sampler, turns
from models.checkpoints.network_file import load_network
from models.networks.judge import Judge
from models.stack import file_hash, load_stack
from vocabulary.precisions import Precision
from vocabulary.sampling import TIME_GRIDS, Thresholding, TimeGrid

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "weights" / "demo"
RESULT = Path(__file__).parent / "results" / "guidance_breakdown.json"
SCALES = (0.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
STEPS = {"ddpm": 25, "ddim": 25, "dpmpp_2m": 25, "heun": 13}
FEW_STEPS = {"ddim": 10, "dpmpp_2m": 10}
THRESHOLDINGS: tuple[Thresholding, ...] = ("clip", "dynamic")
MAX_ROWS = 32
SEED, FRESH_SEED, FRESH_IMAGES = 0, 1001, 500


@dataclass(frozen=True)
class Cell:
    """One way to make the images."""

    sampler: str
    steps: int
    guidance_scale: float
    thresholding: Thresholding = "clip"
    time_grid: TimeGrid = "official"

    @property
    def plan(self) -> StagePlan:
        return StagePlan(BASE, self.sampler, self.steps, time_grid=self.time_grid, thresholding=self.thresholding)


def breakdown_cells(scales: Sequence[float]) -> list[Cell]:
    """Scale by scale, so that a stopped run has every sampler."""
    return [
        Cell(sampler, steps, scale, thresholding)
        for scale in scales
        for sampler, steps in (*STEPS.items(), *FEW_STEPS.items())
        for thresholding in THRESHOLDINGS
    ]


def few_step_cells(scale: float) -> list[Cell]:
    """DPM-Solver++(2M) at 10 steps, over every grid, against DDIM at 25 and at 10."""
    solver = [Cell("dpmpp_2m", 10, scale, time_grid=time_grid) for time_grid in TIME_GRIDS]
    longer = [Cell("dpmpp_2m", steps, scale) for steps in (15, 25)]
    ddim = [Cell("ddim", 25, scale), Cell("ddim", 10, scale)]
    return [*ddim, *solver, Cell("heun", 5, scale), *longer, Cell("ddpm", 25, scale)]


class Bench:
    """The demo stack, its judge, and the renders with which samples are compared."""

    def __init__(self, precision: Precision = "fp32", fresh_images: int = FRESH_IMAGES) -> None:
        self.stack = load_stack(DEMO)
        self.judge = load_network(DEMO / "judge.safetensors", Judge)
        self.sampler = Sampler(Engine(build_stages([self.stack], MAX_ROWS, precision=precision), MAX_ROWS))
        pixels, _ = render_set(fresh_images, FRESH_SEED, self.stack.base.network.config.image_size)
        self.fresh = judge_images(self.judge, pixels)

    def sample(self, cell: Cell, labels: Sequence[int], seed: int = SEED) -> Tensor:
        """One image per label: [N, 3, H, W] uint8."""
        pipeline = Pipeline(self.stack.pipelines["demo"], self.stack)
        return self.sampler.sample(pipeline, labels, cell.guidance_scale, cell.plan, seed=seed)

    def measure(self, cell: Cell, images: int) -> dict[str, Any]:
        """Judge agreement, FID, the share of values at the ends of the range, and seconds."""
        started, labels = time.perf_counter(), turns(images, len(self.stack.class_names))
        pixels = self.sample(cell, labels)
        verdict = judge_images(self.judge, pixels)
        return {
            **asdict(cell),
            "evaluations": cell.plan.num_evaluations,
            **verdict.agreement(torch.tensor(labels)),
            "fid": distance(self.fresh, verdict),
            "saturated": round(float(((pixels == 0) | (pixels == 255)).float().mean()), 4),
            "seconds": round(time.perf_counter() - started, 1),
        }

    def header(self) -> dict[str, Any]:
        return {
            "pipeline": "demo",
            "seed": SEED,
            "machine": {"cpu": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
            "torch": torch.__version__,
            "hashes": {path.stem: file_hash(path) for path in sorted(DEMO.glob("*.safetensors"))},
        }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50, help="per cell of sampler, scale and thresholding; 0: none")
    parser.add_argument("--few-images", type=int, default=200, help="per cell of the comparison at few steps; 0: none")
    parser.add_argument("--scales", type=float, nargs="+", default=SCALES, help="of the breakdown")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args(arguments)
    bench = Bench()
    default_scale = bench.stack.pipelines["demo"].guidance_scale
    result: dict[str, Any] = bench.header() | {"few_steps": [], "breakdown": []}
    if options.out.exists() and (before := json.loads(options.out.read_text()))["hashes"] == result["hashes"]:
        result |= {part: before[part] for part in ("few_steps", "breakdown")}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    few = [("few_steps", cell, options.few_images) for cell in few_step_cells(default_scale)]
    for part, cell, images in [
        *few,
        *(("breakdown", cell, options.images) for cell in breakdown_cells(options.scales)),
    ]:
        wanted = asdict(cell) | {"images": images}
        if images == 0 or any(wanted.items() <= there.items() for there in result[part]):
            continue
        measured = bench.measure(cell, images)
        result[part].append(measured)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
        shown = ("sampler", "steps", "guidance_scale", "thresholding", "time_grid", "agreement", "fid", "saturated")
        print(part, *(measured[name] for name in (*shown, "seconds")), flush=True)


if __name__ == "__main__":
    main()
