"""Finds the factor on the predicted noise with the best demo images, for each sampler.

    python -m bench.eps_scale [--images 200] [--scales 1 1.01 1.02 1.03 1.04]

25 network evaluations per image, guidance scale 4. `adm evaluate stack` uses other seeds for images and renders,
because a factor looks too good on the images on which it was chosen.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace

import torch

from bench.guidance_breakdown import FRESH_IMAGES, Bench
from datasets.shapes import render_set
from engine.pipeline import Pipeline
from evaluation.judging import distance, judge_images, sharpness
from evaluation.sampling import turns
from evaluation.stack_report import SAMPLER_PLANS

SEED, RENDERS_SEED = 11, 5011


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 1.01, 1.02, 1.03, 1.04])
    options = parser.parse_args(arguments)
    bench = Bench()
    pipeline = Pipeline(bench.stack.pipelines["demo"], bench.stack)
    labels = turns(options.images, len(bench.stack.class_names))
    renders, _ = render_set(FRESH_IMAGES, RENDERS_SEED, bench.stack.base.network.config.image_size)
    fresh = judge_images(bench.judge, renders)
    print(f"renders: sharpness {sharpness(renders):.2f}", flush=True)
    for sampler, plan in SAMPLER_PLANS.items():
        for scale in options.scales:
            scaled = replace(plan, eps_scale=scale)
            pixels = bench.sampler.sample(pipeline, labels, pipeline.spec.guidance_scale, scaled, seed=SEED)
            verdict = judge_images(bench.judge, pixels)
            agreement = verdict.agreement(torch.tensor(labels))["agreement"]
            fid = distance(fresh, verdict)
            print(f"{sampler} {scale:g}: agrees {agreement}, FID {fid}, sharpness {sharpness(pixels):.2f}", flush=True)


if __name__ == "__main__":
    main()
