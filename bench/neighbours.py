"""Counts images whose bytes depend on the other rows of their steps; there must be none.

python -m bench.neighbours --precision bf16 --count 2000. It draws random requests of all kinds and settings, computes
each image alone on one thread and among random neighbours on several, and compares the final states bit for bit. With
--compile both run on the same threads, because one build of the networks serves both. Exits 1 on a difference.
"""

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from bench.machine import machine
from engine.compiling import Compiler
from engine.engine import Engine
from engine.numerics import fingerprint
from engine.pipeline import BASE, UPSAMPLE, Pipeline, build_stages
from engine.stage import Stage
from engine.trajectory import FromLatent, FromPicture, Guidance, ImageRequest, StagePlan, StagePlans
from models.stack import load_stack
from vocabulary.precisions import PRECISIONS
from vocabulary.sampling import SAMPLERS, THRESHOLDINGS, TIME_GRIDS, Direction

SCALES = (0.0, 0.5, 1.0, 2.0, 4.0, 10.0, 50.0)
LARGEST_GROUP = 40  # images that run together
ONE_LANE_SHARE = 4  # of the most rows of a step: up to a fourth of them are computed on one lane, more on all


class Requests:
    """Random images of the pipelines, of every kind."""

    def __init__(self, pipelines: list[Pipeline], seed: int, steps: int) -> None:
        self.pipelines, self.steps, self.random = pipelines, steps, random.Random(seed)
        stack = pipelines[0].stack
        self.classes, self.size = len(stack.class_names), stack.base.network.config.image_size
        self.upsamples = stack.upsampler is not None

    def __iter__(self) -> Iterator[ImageRequest]:
        while True:
            yield self._image()

    def _image(self) -> ImageRequest:
        draw, seed = self.random, self.random.randrange(2**63)
        base: StagePlan | None = self._plan(BASE, draw.randint(1, self.steps))
        upsample = self._plan(UPSAMPLE, draw.randint(1, 3)) if self.upsamples and draw.random() < 0.4 else None
        encode: StagePlan | None = None
        start: FromLatent | FromPicture | None = None
        shape, generator = (3, self.size, self.size), torch.Generator().manual_seed(seed % 2**32)
        match draw.choice(["noise", "noise", "noise", "latent", "picture", "encoded", "enlarged"]):
            case "latent":
                start = FromLatent(torch.randn(shape, generator=generator))
            case "noise":
                pass
            case kind:
                start = FromPicture(torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8))
                if kind == "picture" and base is not None:
                    base = replace(base, strength=draw.uniform(0.2, 1.0))
                elif kind == "encoded" and base is not None:
                    encode = StagePlan(BASE, "ddim", max(2, base.num_steps), direction=Direction.ENCODE)
                elif self.upsamples:
                    base, upsample = None, self._plan(UPSAMPLE, draw.randint(1, 3))
        weights = {draw.randrange(self.classes): 0.5, draw.randrange(self.classes): 0.5}
        return draw.choice(self.pipelines).image(
            "job",
            draw.randrange(64),
            seed,
            Guidance(
                draw.choice([*range(self.classes), None]),
                draw.choice(SCALES),
                interval=draw.choice([None, None, (300, 800)]),
                class_weights=draw.choice([None, None, weights]),
                entropy_scaled=draw.random() < 0.3,
            ),
            StagePlans(base, upsample, encode=encode),
            start=start,
        )

    def _plan(self, stage: str, steps: int) -> StagePlan:
        draw = self.random
        sampler = draw.choice(SAMPLERS)
        eta = draw.choice([0.0, 0.5, 1.0]) if sampler == "ddim" else 0.0
        return StagePlan(stage, sampler, steps, eta, draw.choice(TIME_GRIDS), draw.choice(THRESHOLDINGS))


def run(stages: Mapping[str, Stage], max_rows: int, requests: list[ImageRequest]) -> dict[int, Tensor | None]:
    """Final states by index; None for an image that overflowed."""
    engine = Engine(stages, max_rows)
    for place, request in enumerate(requests):
        engine.add(replace(request, job_id=str(place)))
    final: dict[int, Tensor | None] = dict.fromkeys(range(len(requests)))
    while (report := engine.step()) is not None:
        final |= {int(each.request.job_id): each.x for each in report.finished}
    return final


def build(asked: argparse.Namespace, threads: int) -> dict[str, Stage]:
    stack, precision = load_stack(asked.stack, asked.device), asked.precision
    compiler = None if asked.compile is None else Compiler(asked.compile, [stack], precision, asked.max_rows)
    stages = build_stages([stack], asked.max_rows, precision=precision, compiler=compiler, threads=threads)
    for stage in stages.values():
        stage.networks.one_lane_rows = asked.max_rows // ONE_LANE_SHARE
    return stages


def compare(
    alone: Mapping[str, Stage], among: Mapping[str, Stage], max_rows: int, requests: Requests, count: int, until: float
) -> Counter[str]:
    """Compare `count` images, or fewer until the time limit."""
    counted: Counter[str] = Counter()
    stream = iter(requests)
    while counted["compared"] < count and time.monotonic() < until:
        group = [next(stream) for _ in range(requests.random.randint(2, LARGEST_GROUP))]
        for place, together in run(among, max_rows, group).items():
            (lone,) = run(alone, max_rows, [group[place]]).values()
            counted["compared"] += 1
            counted["overflowed"] += lone is None
            same = lone is together if lone is None or together is None else torch.equal(lone, together)
            if not same:
                counted["different"] += 1
                print("different:", group[place].plans, group[place].guidance_scale, file=sys.stderr)
    return counted


def main() -> None:
    """Compare, print one line of JSON, and exit with 1 if images differ or none was compared."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stack", type=Path, default=Path("weights/demo"))
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--compile", type=Path, metavar="FOLDER", help="compile, keeping the networks in this folder")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="compare for so long at most")
    parser.add_argument("--steps", type=int, default=4, help="of the base stage at most")
    parser.add_argument("--max-rows", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    asked = parser.parse_args()
    started = time.monotonic()
    among = build(asked, asked.threads)
    alone = build(asked, 1) if asked.compile is None else among  # compiling takes minutes, so one build serves both
    stack = load_stack(asked.stack)
    requests = Requests([Pipeline(spec, stack) for spec in stack.pipelines.values()], asked.seed, asked.steps)
    counted = compare(alone, among, asked.max_rows, requests, asked.count, time.monotonic() + asked.seconds)
    figures = {
        "stack": asked.stack.name,
        "precision": asked.precision,
        "device": str(asked.device),
        "compiled": asked.compile is not None,
        "seed": asked.seed,
        "threads": [1 if asked.compile is None else asked.threads, asked.threads],
        "numerics": fingerprint(among, asked.precision),
        "shapes": {key: stage.row_shapes for key, stage in among.items()},
        "seconds": round(time.monotonic() - started, 1),
        **{name: counted[name] for name in ("compared", "different", "overflowed")},
        "machine": machine(),
    }
    print(json.dumps(figures))
    sys.exit(bool(counted["different"]) or not counted["compared"])


if __name__ == "__main__":
    main()
