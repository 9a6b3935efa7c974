"""Measures the cost of evaluations: statistics of 10,000 images, neighbours of 10,000, memory for published sizes.

    python -m bench.evaluation statistics|neighbours|memory [--images 50000] [--samples 50000] [--features 2048]

statistics: `adm evaluate stats` of 10,000 64x64 images of noise by the shipped judge. neighbours: precision and recall
of 10,000 against 10,000 in the judge's 128 dimensions and in Inception's 2,048. memory: every metric of so many images
with random features, stored in files like an evaluation's. Each runs in a process of its own; peak memory is its
allocated memory (RssAnon), without cached pages of mapped files. Writes
bench/results/evaluation.json.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import torch
from typer.testing import CliRunner

from bench.machine import machine
from cli.main import app
from evaluation.extractors import Features
from evaluation.precision_recall import precision_recall
from evaluation.scores import all_scores

RESULT = Path(__file__).parent / "results" / "evaluation.json"
LOOK_SECONDS = 0.05
SPATIAL, CLASSES = 2023, 1008  # sizes in the official evaluator


@contextmanager
def watched(found: dict[str, Any]) -> Iterator[None]:
    """Measure seconds and peak memory of the block."""
    ended, peak = Event(), [0]

    def look() -> None:
        while not ended.wait(LOOK_SECONDS):
            peak[0] = max(peak[0], allocated_bytes())

    thread = Thread(target=look)
    thread.start()
    started = time.perf_counter()
    try:
        yield
    finally:
        found["seconds"] = round(time.perf_counter() - started, 1)
        ended.set()
        thread.join()
        found["peak_gb"] = round(peak[0] / 1e9, 2)


def allocated_bytes() -> int:
    line = next(each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def statistics(images: int, samples: int, features: int) -> Iterator[tuple[str, dict[str, Any]]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npz"
        np.savez(path, np.random.default_rng(0).integers(0, 256, (images, 64, 64, 3), np.uint8))
        found: dict[str, Any] = {"images": images}
        with watched(found):
            done = CliRunner().invoke(app, ["evaluate", "stats", str(path), "--out", f"{folder}/stats.npz"])
        assert done.exit_code == 0, done.output
        yield "statistics", found


def neighbours(images: int, samples: int, features: int) -> Iterator[tuple[str, dict[str, Any]]]:
    for width in (128, features):
        found: dict[str, Any] = {"images": images, "features": width}
        reference, sample = (torch.randn(images, width) for _ in range(2))
        with watched(found):
            precision_recall(reference, sample)
        yield f"neighbours, {width} features", found


def memory(images: int, samples: int, features: int) -> Iterator[tuple[str, dict[str, Any]]]:
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, Any] = {"images": images, "samples": samples, "features": features}
        counts = {"samples": samples, "reference": images}
        sets = [random_features(Path(folder) / name, count, features) for name, count in counts.items()]
        started: list[tuple[str, float]] = []

        def on_metric(name: str) -> None:
            print(name, allocated_bytes() / 1e9, flush=True)
            started.append((name, time.perf_counter()))

        with watched(found):
            all_scores(sets[0], sets[1], on_metric)
        ends = [each for _, each in started[1:]] + [time.perf_counter()]
        found["seconds by metric"] = {
            name: round(end - start, 1) for (name, start), end in zip(started, ends, strict=True)
        }
        yield "memory", found


def random_features(path: Path, images: int, features: int) -> Features:
    generator = torch.Generator().manual_seed(len(path.name))
    found = {}
    for name, width in (("pooled", features), ("spatial", SPATIAL), ("probabilities", CLASSES)):
        array = np.memmap(path.with_suffix(f".{name}"), np.float32, "w+", shape=(images, width))
        for start in range(0, images, 1000):
            rows = torch.randn(min(1000, images - start), width, generator=generator)
            array[start : start + len(rows)] = (rows.softmax(dim=1) if name == "probabilities" else rows).numpy()
        array.flush()
        found[name] = torch.from_numpy(np.memmap(path.with_suffix(f".{name}"), np.float32, "c", shape=(images, width)))
    return Features(**found)


PARTS: dict[str, tuple[Callable[[int, int, int], Iterator[tuple[str, dict[str, Any]]]], int]] = {
    "statistics": (statistics, 10_000),
    "neighbours": (neighbours, 10_000),
    "memory": (memory, 50_000),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--images", type=int)
    parser.add_argument("--samples", type=int, help="of memory; default as many as images")
    parser.add_argument("--features", type=int, default=2048)
    options = parser.parse_args(arguments)
    measure, images = PARTS[options.part]
    images = options.images or images
    for name, found in measure(images, options.samples or images, options.features):
        print(name, found, flush=True)
        before = json.loads(RESULT.read_text()) if RESULT.exists() else {}
        RESULT.write_text(json.dumps(before | {name: found | machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
