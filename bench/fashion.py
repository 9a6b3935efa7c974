"""The fashion stack beside real images that no network of it was trained on: python -m bench.fashion RUN.

RUN is the folder of its base's training run, whose data has the held-out images. Every sampler makes as many images as
there are in one of two halves of real ones; the shipped judge counts those that show their class, and FID is in its
features. Writes weights/fashion/judge.json, and a sheet of images beside real ones.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.machine import machine
from engine.engine import Engine
from engine.pipeline import Pipeline, build_stages
from evaluation.demo_report import WAYS
from evaluation.judging import Verdict, distance, judge_images
from evaluation.sampling import Sampler, turns
from models.checkpoints.network_file import load_network
from models.networks.judge import Judge
from models.networks.precision import best_precision
from models.stack import load_stack
from runfolder.folder import CONFIG, read_json
from training.config import read_config
from training.data import open_data
from training.preview import write_grid

STACK = Path(__file__).parents[1] / "weights" / "fashion"
MAX_ROWS, SEED, COLUMNS, SHOWN = 32, 7001, 20, 100  # images of a sheet: five rows of each kind, and a gap


def held_out(run: Path, count: int) -> tuple[Tensor, Tensor]:
    """Real images [N, 3, H, W], uint8, and their labels: the first `count` that were held out of training."""
    config = read_config(read_json(run / CONFIG))
    images = open_data(config.data, config.network.image_size, Path()).held_out
    pixels = torch.stack([images.pixels(index, None) for index in range(min(count, len(images)))])
    return pixels, images.class_labels[: len(pixels)]


def measure(run: Path, count: int) -> tuple[dict[str, Any], Tensor, Tensor]:
    """All figures, and the images of the default sampler beside real ones of the same classes."""
    real, labels = held_out(run, 2 * count)
    judge = load_network(STACK / "judge.safetensors", Judge)
    verdict = judge_images(judge, real)
    one, other = (Verdict(verdict.probabilities[first::2], verdict.features[first::2]) for first in (0, 1))
    precision = best_precision(torch.device("cpu"))
    stack = load_stack(STACK)
    sampler = Sampler(Engine(build_stages([stack], MAX_ROWS, precision=precision), MAX_ROWS))
    found: dict[str, Any] = {
        "judge_on_held_out": verdict.agreement(labels),
        "fid_between_halves": distance(one, other),
        "precision": precision,
    }
    shown = torch.zeros(0)
    for name, spec in stack.pipelines.items():
        wanted = turns(count, len(stack.class_names))
        for way, plan in WAYS.items():
            pixels = sampler.sample(
                Pipeline(spec, stack),
                list(wanted),
                spec.guidance_scale,
                replace(plan, eps_scale=spec.eps_scale),
                seed=SEED,
                entropy_scaled=spec.guidance_schedule == "entropy",
            )
            judged = judge_images(judge, pixels)
            agreement = judged.agreement(torch.tensor(wanted))
            figures = {"guidance_scale": spec.guidance_scale} | agreement | judged.closeness(one)
            print(name, way, figures, flush=True)
            found.setdefault(name, {})[way] = figures
            is_default = (plan.sampler, plan.eta) == (spec.sampling.sampler, spec.sampling.eta)
            if is_default and not len(shown):
                shown = pixels[:SHOWN]
    classes = len(stack.class_names)
    by_class = torch.stack([real[labels == label][: SHOWN // classes] for label in range(classes)])
    return found, shown, by_class.transpose(0, 1).flatten(0, 1)  # classes in turn, as the samples have them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, default=2000, help="of each sampler, and of each half of real ones")
    parser.add_argument("--sheet", type=Path, default=Path("fashion.png"))
    given = parser.parse_args()
    found, ours, real = measure(given.run, given.images)
    (STACK / "judge.json").write_text(json.dumps(found | {"machine": machine()}, indent=1) + "\n")
    gap = torch.full_like(ours[:COLUMNS], 128)
    write_grid(torch.cat([ours, gap, real]).float() / 127.5 - 1, given.sheet, COLUMNS)


if __name__ == "__main__":
    main()
