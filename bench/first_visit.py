"""Records the run that the page shows on a first visit: one image of the demo stack, from noise to the picture.

python -m bench.first_visit; writes service/static/first-visit.png, a strip of frames: the state x of the base stage
before its first step and after every other step, clipped like a finished picture. The last frame is the upsampled
picture.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from diffusion.pixels import to_uint8
from engine.engine import Engine
from engine.pipeline import BASE, UPSAMPLE, Pipeline, build_stages
from engine.trajectory import Guidance, StagePlan, StagePlans
from evaluation.stack_report import of_pipeline
from models.stack import load_stack

STEPS = 25
EVERY = 2  # steps of the base between two frames
EDGE_PX = 64
CLASS = "torus"


def frame(x: Tensor) -> Image.Image:
    """A state as a frame of the strip; a state smaller than EDGE_PX is enlarged by an integer factor."""
    pixels = to_uint8(x).permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels).resize((EDGE_PX, EDGE_PX), Image.Resampling.NEAREST)


def record(stack_folder: Path, seed: int, guidance_scale: float) -> list[Image.Image]:
    """The frames of one image, oldest first."""
    stack = load_stack(stack_folder, torch.device("cpu"))
    pipeline = Pipeline(stack.pipelines["demo"], stack)
    label = stack.class_names.index(CLASS)
    spec, upsampling = pipeline.spec, pipeline.spec.upsampling
    assert upsampling is not None
    base = of_pipeline(StagePlan(BASE, "ddpm", STEPS), spec)
    upsample = StagePlan(UPSAMPLE, upsampling.sampler, upsampling.steps, upsampling.eta, strength=upsampling.strength)
    image = pipeline.image("first-visit", 0, seed, Guidance(label, guidance_scale), StagePlans(base, upsample))
    engine = Engine(build_stages([stack], 1), max_rows=1)
    engine.add(image)
    (state,) = engine.states("first-visit").values()
    frames = [frame(state.x)]
    while (report := engine.step()) is not None:
        (moved,) = report.moved
        if moved.stage_index == 0 and moved.row % EVERY == STEPS % EVERY:
            frames.append(frame(moved.x))
        frames += [frame(each.x) for each in report.finished]
    return frames


def main() -> None:
    """Record, and write the strip."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stack", type=Path, default=Path("weights/demo"))
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--guidance-scale", type=float, default=4.0)
    parser.add_argument("--out", type=Path, default=Path("service/static/first-visit.png"))
    asked = parser.parse_args()
    frames = record(asked.stack, asked.seed, asked.guidance_scale)
    strip = Image.new("RGB", (EDGE_PX * len(frames), EDGE_PX))
    for place, each in enumerate(frames):
        strip.paste(each, (EDGE_PX * place, 0))
    strip.save(asked.out, optimize=True)
    print(f"{asked.out}: {len(frames)} frames, {asked.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
