"""Measures the error of DDIM's reconstruction of pictures by the number of steps.

    python -m bench.reconstruction [--images N]

Fresh demo renders with their own class, encoded and decoded with equally many steps; unguided, and with guided
decoding. Writes bench/results/reconstruction.json and docs/reconstruction.svg. `bench.paper` measures other stacks.
"""

import argparse
import json
import math
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.paper.subject import DEMO, REFERENCE_SEED, Subject
from engine.engine import Engine
from engine.inversion import Inverter, reconstruction_error
from engine.pipeline import Pipeline, build_stages
from models.stack import load_stack
from vocabulary.precisions import Precision

STEPS = (10, 25, 50, 100)
SCALES = (0.0, 2.0)
ROWS = 16
ROOT = Path(__file__).parent


def measure(subject: Subject, images: int, precision: Precision) -> list[dict[str, Any]]:
    """The errors of held-out images by steps and scale."""
    stack = load_stack(subject.folder)
    pipeline = Pipeline(subject.pipeline(conditional=True), stack)
    engine = Engine(build_stages([stack], ROWS, precision=precision), ROWS)
    pixels, labels = subject.held_out(images)
    found: list[dict[str, Any]] = []
    for steps in STEPS:
        back: dict[float, list[Tensor]] = {scale: [] for scale in SCALES}
        for label in labels.unique(sorted=True).tolist():
            inverter = Inverter(engine, pipeline, steps, label)
            latents = inverter.encode(pixels[labels == label])
            for scale in SCALES:
                back[scale].append(inverter.decode(latents, scale))
        want = torch.cat([pixels[labels == label] for label in labels.unique(sorted=True)])
        for scale in SCALES:
            error = reconstruction_error(torch.cat(back[scale]), want)
            found.append({"images": images, "steps": steps, "guidance_scale": scale} | error)
            print(found[-1], flush=True)
    return found


def plot(found: list[dict[str, Any]]) -> str:
    """Both curves on two logarithmic axes, as SVG."""
    left, top, width, height, low, high = 60, 20, 360, 220, 0.5, 32.0

    def place(steps: float, error: float) -> tuple[float, float]:
        x = left + width * math.log(steps / STEPS[0]) / math.log(STEPS[-1] / STEPS[0])
        return x, top + height * (1 - math.log(max(error, low) / low) / math.log(high / low))

    parts = [f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#888"/>']
    for error in (0.5, 1, 2, 4, 8, 16, 32):
        y = place(STEPS[0], error)[1]
        parts.append(f'<path d="M{left} {y:.1f}h{width}" stroke="#8884"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{error:g}</text>')
    parts += [
        f'<text x="{place(steps, 1)[0]:.1f}" y="{top + height + 16}" text-anchor="middle">{steps}</text>'
        for steps in STEPS
    ]
    for scale, colour in zip(SCALES, ("#2a7de1", "#d9480f"), strict=True):
        points = [place(each["steps"], each["mean_absolute"]) for each in found if each["guidance_scale"] == scale]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
        name = "unguided" if scale == 0 else f"decoded at scale {scale:g}"
        x, y = points[-1]
        parts.append(f'<text x="{x - 6:.1f}" y="{y - 8:.1f}" text-anchor="end" fill="{colour}">{name}</text>')
    parts.append(f'<text x="{left + width / 2}" y="{top + height + 34}" text-anchor="middle">steps each way</text>')
    parts.append(f'<text x="{left}" y="14">mean error, of 255</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 20} {top + height + 44}" '
        f'font-family="sans-serif" font-size="12" fill="#777">{"".join(parts)}</svg>\n'
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=20)
    images = parser.parse_args().images
    found = measure(DEMO, images, "fp32")
    machine = {"cpu": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    report = {"images": images, "seed": REFERENCE_SEED, "machine": machine, "torch": torch.__version__, "found": found}
    (ROOT / "results" / "reconstruction.json").write_text(json.dumps(report, indent=1) + "\n")
    (ROOT.parent / "docs" / "reconstruction.svg").write_text(plot(found))


if __name__ == "__main__":
    main()
