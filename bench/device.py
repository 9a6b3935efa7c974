"""Measures steps of the published networks on a device, against their arithmetic and the official style's loop.

    python -m bench.device [--device cuda] [--stages 256x256_diffusion ...] [--rows 1 8 32] [--out FILE]

The weights are random. An image-step is a network evaluation and, with a classifier, its gradient; its bound is the
time of that arithmetic at the rate of a large matrix product, measured in the same run. Needs only torch, numpy, scipy
and safetensors. Writes bench/results/device-NAME.json, line by line.
"""

import argparse
import json
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bench.machine import machine
from bench.official_loop import convert_to_half, guided_ddim
from bench.summary import Goal, line
from engine.diffusion_process import process_of
from engine.engine import Engine, run_to_end
from engine.guide import Guide
from engine.numerics import settle_kernels
from engine.pipeline import BASE, Pipeline, build_stages
from engine.stage import Stage
from engine.stage_networks import StageNetworks
from engine.trajectory import Guidance, StagePlan, StagePlans
from models.checkpoints.network_file import blank_network
from models.checkpoints.presets import PRESETS
from models.memory import blank_row, forward, row_bytes
from models.networks.classifier import NoisyClassifier
from models.networks.config import ClassifierConfig, UNetConfig
from models.networks.precision import best_precision
from models.networks.unet import UNet
from models.stack import DiffusionNetwork, load_stack
from vocabulary.precisions import Precision

ROOT = Path(__file__).parent
STAGES = (
    "64x64_diffusion",
    "128x128_diffusion",
    "256x256_diffusion",
    "512x512_diffusion",
    "64_256_upsampler",
    "128_512_upsampler",
)
REPEATS, WARM_UPS = 10, 3
STEPS, SCALE = 25, 2.0
STD = 0.02  # deviation of random weights, so that activations stay finite


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def memory_of(device: torch.device, *, peak: bool = False) -> int | None:
    """Bytes that torch has allocated on a GPU now, or the peak since the last call without `peak`; None for a CPU."""
    if device.type != "cuda":
        return None
    if peak:
        return torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def official_precisions(device: torch.device) -> Sequence[Precision]:
    """The precisions in which the official code would run."""
    return ("fp32", "fp16") if device.type == "cuda" else ("fp32",)


def median_seconds(run: Callable[[], object], device: torch.device) -> float:
    """Median seconds of one call, after a warm-up, until its results. Raises: torch.OutOfMemoryError."""
    for _ in range(WARM_UPS):
        run()
    times = []
    for _ in range(REPEATS):
        synchronize(device)
        started = time.perf_counter()
        run()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return median(times)


def seconds_that_fit(run: Callable[[], object], device: torch.device) -> float | None:
    """Like median_seconds; None if the device's memory does not suffice."""
    try:
        return median_seconds(run, device)
    except torch.OutOfMemoryError:
        return None


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP per second of a large matrix product."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / median_seconds(lambda: a @ b, device)


def random_network(config: UNetConfig | ClassifierConfig, device: torch.device) -> nn.Module:
    """A network with random weights, ready to serve."""
    network = blank_network(config).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for each in network.parameters():
            each.normal_(std=STD, generator=generator)
    return network.eval().requires_grad_(False)


def forward_flops(config: UNetConfig | ClassifierConfig) -> int:
    """FLOP of one row; a multiply-add counts as two."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward(blank_network(config), blank_row(config))
    return int(counter.get_total_flops())


def image_step_flops(name: str) -> int:
    """FLOP of a preset's network and, if guided, its classifier: forward, and the same again for the gradient."""
    preset = PRESETS[name]
    guide = preset.sampling.classifier if preset.sampling else None
    return forward_flops(preset.config) + (2 * forward_flops(PRESETS[guide].config) if guide else 0)


def random_stage(name: str, device: torch.device, precision: Precision) -> Stage:
    """A preset's stage, guided if its pipeline is; not warmed up."""
    preset = PRESETS[name]
    network, process = random_network(preset.config, device), preset.process
    assert isinstance(network, UNet)
    assert process is not None
    classifier = preset.sampling.classifier if preset.sampling else None
    guide = None
    if classifier is not None:
        guiding = random_network(PRESETS[classifier].config, device)
        assert isinstance(guiding, NoisyClassifier)
        guide = Guide.of_classifier(guiding)
    loaded = DiffusionNetwork(network, process, "")
    return Stage(0, StageNetworks(name, network, guide, precision=precision), process_of(loaded))


def stage_lines(
    name: str, rows: Sequence[int], device: torch.device, precision: Precision, rate: float
) -> dict[str, Any]:
    """By row count: milliseconds per image-step, the share of the arithmetic's bound, the memory of a step, and for a
    guided stage the time ratio of the official style's loop, None if memory does not suffice."""
    settle_kernels()
    stage, flops = random_stage(name, device, precision), image_step_flops(name)
    if device.type == "cuda":
        stage.networks.fuse_norms(max(rows), stage.rehearsal())
    found: dict[str, Any] = {
        "mode": stage.networks.mode,
        "GFLOP an image-step": round(flops / 1e9, 1),
        "bytes a row, estimated": row_bytes(PRESETS[name].config),
    }
    seconds: dict[int, float] = {}
    for count in rows:
        stage.row_shapes = {"network": (count,), "guide": (count,)}
        before = memory_of(device)
        step = seconds_that_fit(partial(stage.rehearse, count), device)
        if step is None:
            found[str(count)] = None
            continue
        seconds[count] = step / count
        found[str(count)] = {
            "ms an image-step": round(1000 * seconds[count], 3),
            "of the bound": round(flops / rate / seconds[count], 3),
        }
        if before is not None and (most := memory_of(device, peak=True)) is not None:
            found[str(count)]["bytes a row, measured"] = (most - before) // count
    if stage.networks.guide is not None:
        del stage  # two of the largest may not fit
        loop = random_stage(name, device, "fp32")  # plain, in float32's layout, like the official code
        for each, count in product(official_precisions(device), seconds):
            if each == "fp16":
                convert_to_half(loop)
            run = partial(guided_ddim, loop, torch.zeros(count, dtype=torch.long), SCALE, 2, 1, each)
            theirs = seconds_that_fit(run, device)
            times = None if theirs is None else round(theirs / 2 / count / seconds[count], 3)
            found[str(count)][f"against the loop in {each}"] = times
    return found


def demo_lines(device: torch.device, precision: Precision, rows: int) -> dict[str, Any]:
    """The shipped demo stack with guided DDIM: the engine against the official style's loop, in several precisions."""
    stack = load_stack(ROOT.parent / "weights" / "demo", device)
    pipeline, labels = Pipeline(stack.pipelines["demo"], stack), torch.arange(rows) % 10
    engine = Engine(build_stages([stack], rows, precision=precision), rows)
    plain = load_stack(ROOT.parent / "weights" / "demo", device)
    assert plain.classifier is not None
    networks = StageNetworks(BASE, plain.base.network, Guide.of_classifier(plain.classifier.network))
    loop = Stage(0, networks, process_of(plain.base))

    def ours() -> list[Tensor]:
        plan = StagePlan(BASE, "ddim", STEPS)
        images = [
            pipeline.image("bench", index, 1, Guidance(index % 10, SCALE), StagePlans(plan)) for index in range(rows)
        ]
        return [each.pixels for each in run_to_end(engine, images)]

    seconds = median_seconds(ours, device)
    found: dict[str, Any] = {"rows": rows, "seconds": round(seconds, 3)}
    for each in official_precisions(device):
        if each == "fp16":
            convert_to_half(loop)
        theirs = median_seconds(partial(guided_ddim, loop, labels, SCALE, STEPS, 1, each), device)
        found[f"against the loop in {each}"] = round(theirs / seconds, 3)
    return found


GOALS = (  # of an H200
    Goal(
        "256 guided at 32 rows, of the arithmetic's bound", "device", ("256x256_diffusion", "32", "of the bound"), 0.5
    ),
    Goal(
        "the same against the official style's loop",
        "device",
        ("256x256_diffusion", "32", "against the loop in fp16"),
        2.0,
    ),
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--stages", nargs="*", choices=STAGES, default=STAGES)
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    device = options.device
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("bench.device: this machine's torch sees no GPU; --device cpu measures its processor")
    precision = best_precision(device)
    facts = machine()
    name = re.sub(r"[^a-z0-9]+", "-", str(facts["gpu"] if device.type == "cuda" else facts["cpu"]).lower()).strip("-")
    out = options.out or ROOT / "results" / f"device-{name}.json"
    rate = matrix_rate(device, torch.float32 if precision == "fp32" else torch.bfloat16)
    found: dict[str, Any] = {"precision": precision, "TFLOP/s of a matrix product": round(rate / 1e12, 3)}
    lines: dict[str, Callable[[], Any]] = {"demo": partial(demo_lines, device, precision, max(options.rows))}
    for stage in options.stages:
        lines[stage] = partial(stage_lines, stage, options.rows, device, precision, rate)
    for each, measure in lines.items():
        found[each] = measure()
        print(each, found[each], flush=True)
        out.write_text(json.dumps(facts | {"found": found}, indent=1) + "\n")
    for goal in GOALS:
        print(line(goal, goal.measured(lambda _: {"found": found})))


if __name__ == "__main__":
    main()
