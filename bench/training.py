"""Compares a training step with the official one, and two processes with one; cost of saves: python -m bench.training.

Medians of alternating blocks of steps on random images; needs the official code (see bench.official_code). Writes
bench/results/training.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench import official_code
from bench.machine import machine
from models.networks.precision import best_precision
from runfolder.stats import read_lines
from training.config import RunConfig, merge, read_config
from training.distributed import Group
from training.images import ImagesInMemory
from training.loop import Run
from training.presets import preset_fields
from training.samples import Samples
from training.state import StateFiles
from vocabulary.precisions import Precision

RESULTS = Path(__file__).parent / "results" / "training.json"
BATCH, BLOCK = 32, 3  # images per step; steps that are timed together
NETWORKS: dict[str, dict[str, Any]] = {
    "demo": {},
    "64 pixels, 40M": {
        "network": {
            "image_size": 64,
            "model_channels": 96,
            "num_res_blocks": 2,
            "channel_mult": [1, 2, 3],
            "attention_sizes": [16],
        }
    },
}


def configure(name: str, precision: Precision, steps: int = 10**6) -> RunConfig:
    fixed = {
        "optimiser": {"steps": steps, "batch_size": BATCH},
        "compute": {"device": "cpu", "precision": precision},
        "objective": {"weighting": "none"},
    }
    return read_config(merge(merge(preset_fields("demo"), NETWORKS[name]), fixed))


def data(config: RunConfig) -> ImagesInMemory:
    size = config.network.image_size
    pixels = torch.randint(0, 256, (256, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImagesInMemory(pixels, torch.arange(256) % 10, tuple(map(str, range(10))))


def our_steps(config: RunConfig, precision: Precision) -> Iterator[object]:
    run = Run(config, data(config), device=torch.device("cpu"), precision=precision, group=Group())
    return run.train(None, lambda: False)


def official_steps(config: RunConfig) -> Iterator[object]:
    run = Run(config, data(config), device=torch.device("cpu"), precision="fp32", group=Group())
    samples = Samples(run.data, config.data, config.seed)
    batches = (samples.batch(range(step * BATCH, (step + 1) * BATCH)) for step in range(10**6))
    rate, ema = config.optimiser.learning_rate, config.averages.rates[0]
    return official_code.training_steps(run.network, batches, rate, ema)


def seconds(steps: Iterator[object]) -> float:
    started = time.perf_counter()
    for _ in range(BLOCK):
        next(steps)
    return (time.perf_counter() - started) / BLOCK


def compare(name: str, precision: Precision, repeats: int) -> dict[str, Any]:
    """The time of the official step relative to ours; on a CPU the official step has only float32."""
    config = configure(name, precision)
    ours, theirs = our_steps(config, precision), official_steps(config)
    next(ours), next(theirs)
    times = [(seconds(ours), seconds(theirs)) for _ in range(repeats)]
    mine, official = (median(each) for each in zip(*times, strict=True))
    return {"ratio": round(official / mine, 3), "seconds": [round(mine, 3), round(official, 3)], "repeats": repeats}


def processes(steps: int) -> dict[str, Any]:
    """Images per second of two processes with one thread each against one process with two, at the same batch size."""
    with tempfile.TemporaryDirectory() as folder:
        rates = []
        for count in (1, 2):
            run = Path(folder) / str(count)
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
            threads = {"OMP_NUM_THREADS": str(2 // count)}
            fields = [f"--steps={steps}", f"--batch-size={BATCH}", f"--out={run}", f"--cache={folder}"]
            path = Path(folder) / "run.toml"
            path.write_text('preset = "demo"\n[data]\ncount = 256\n[saving]\nlog_steps = 5\n')
            program = ["-m", "cli", "train", str(path), *fields]
            subprocess.run([*command, *program], env={**os.environ, **threads}, check=True, stdout=subprocess.DEVNULL)
            rates.append(median(line["images_per_second"] for line in read_lines(run)[1:] if "loss" in line))
    return {"ratio": round(rates[1] / rates[0], 3), "images_per_second": [round(each, 1) for each in rates]}


def saves(steps: int) -> dict[str, Any]:
    """The share of time for saves, each after two minutes of training, the default."""
    config = configure("demo", best_precision(torch.device("cpu")))
    run = Run(config, data(config), device=torch.device("cpu"), precision="fp32", group=Group())
    with tempfile.TemporaryDirectory() as folder:
        files, spent = StateFiles(Path(folder), 1), []
        for _ in range(steps):
            started = time.perf_counter()
            files.save(run.state(), snapshot=False)
            files.finish()
            spent.append(time.perf_counter() - started)
    return {"seconds": round(median(spent), 3), "share": round(median(spent) / config.saving.state_seconds, 5)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    found: dict[str, Any] = {}
    for name in NETWORKS:
        for precision in dict.fromkeys(("fp32", best_precision(torch.device("cpu")))):
            found[f"{name}, {precision}"] = compare(name, precision, repeats)
            print(name, precision, found[f"{name}, {precision}"], flush=True)
    found["two processes against one"] = processes(30)
    found["a save, its writing included"] = saves(5)
    print(json.dumps(found, indent=1))
    RESULTS.write_text(json.dumps(machine() | {"found": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
