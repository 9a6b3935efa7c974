"""Compares the engine with other ways to run the same networks: python -m bench.engine.

Reports the ratio of two times of one run, medians of alternating runs of the shipped demo stack, and writes them to
bench/results/engine.json.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench import official_code
from bench.machine import machine
from bench.names import COMPILED, COMPILED_FP32, EAGER, EAGER_FP32, FIRST_STEP, LONE, STAND_IN
from bench.official_loop import guided_ddim
from engine.compiling import Compiler, NoCompilerError
from engine.diffusion_process import process_of
from engine.engine import Engine, run_to_end
from engine.guide import Guide
from engine.pipeline import BASE, BASE_NUMBER, Pipeline, build_stages
from engine.stage import Stage
from engine.stage_networks import StageNetworks
from engine.trajectory import Guidance, ImageRequest, StagePlan, StagePlans
from models.host_memory import keep_freed_memory
from models.networks.precision import best_precision
from models.stack import Stack, load_stack
from vocabulary.precisions import Precision
from vocabulary.priorities import Priority
from worker.warmup import measure_steps

ROOT = Path(__file__).parent
DEMO = ROOT.parent / "weights" / "demo"
KEPT = ROOT.parent / "runs" / "compiled"  # stores compiled networks, which saves a second run minutes
COMPILED_ROWS = (2, 16)  # compiled in addition to the largest row count; each takes minutes
STEPS, SCALE, ROWS = 25, 2.0, 32
FEW_STEPS = 5  # of the run that loads; the official code has a grid of 5 steps


def report(part: str, rows: int) -> None:
    print(f"compiling {part} at {rows} rows", file=sys.stderr, flush=True)


def seconds_of(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def ratio(one: Callable[[], object], other: Callable[[], object], repeats: int) -> dict[str, Any]:
    """Return the second's time divided by the first's, by medians of alternating runs."""
    times = [(seconds_of(one), seconds_of(other)) for _ in range(repeats)]
    ours, theirs = (median(each) for each in zip(*times, strict=True))
    return {"ratio": round(theirs / ours, 3), "seconds": [round(ours, 3), round(theirs, 3)], "repeats": repeats}


@cache
def plain_stage() -> Stage:
    """Return the base stage without packed weights, for the loop in the official style."""
    stack = load_stack(DEMO)
    assert stack.classifier is not None
    guide = Guide.of_classifier(stack.classifier.network)
    return Stage(BASE_NUMBER, StageNetworks(BASE, stack.base.network, guide), process_of(stack.base))


def official_loop(steps: int, rows: int = ROWS) -> None:
    """Run the loop in a process with torch's default allocator and threads, unlike a worker's."""
    guided_ddim(plain_stage(), torch.arange(rows) % 10, SCALE, steps, seed=1)


def official_sampling(steps: int, rows: int = ROWS) -> None:
    """Run the official code, also in a process of its own."""
    official_code.guided_ddim(DEMO, torch.arange(rows) % 10, SCALE, steps, seed=1)


YARDSTICK = official_sampling if official_code.is_here() else official_loop


class EngineBench:
    """Measures the demo stack in several kinds of engines."""

    def __init__(self, repeats: int) -> None:
        keep_freed_memory()  # like a worker
        self.repeats = repeats
        self.stack: Stack = load_stack(DEMO)
        self.pipeline = Pipeline(self.stack.pipelines["demo"], self.stack)
        self.precision: Precision = best_precision(torch.device("cpu"))
        self.stages = build_stages([self.stack], ROWS, precision=self.precision)

    def engine(self, stages: dict[str, Stage], max_rows: int = ROWS) -> Engine:
        engine = Engine(stages, max_rows)
        measure_steps(engine)
        return engine

    def images(self, job_id: str, count: int, steps: int = STEPS, priority: Priority = "normal") -> list[ImageRequest]:
        plan = StagePlan(BASE, "ddim", steps)
        return [
            self.pipeline.image(job_id, index, 1, Guidance(index % 10, SCALE), StagePlans(plan), priority=priority)
            for index in range(count)
        ]

    def eager(self, precision: Precision) -> dict[str, Stage]:
        if precision == self.precision:
            return self.stages
        return build_stages([load_stack(DEMO)], ROWS, precision=precision)  # weights are packed for one precision

    def compiled(self, precision: Precision) -> dict[str, Stage]:
        """Only the base stage, compiled. Raises: NoCompilerError."""
        stack = replace(load_stack(DEMO), upsampler=None)
        compiler = Compiler(KEPT, [stack], precision, ROWS, report, COMPILED_ROWS)
        return build_stages([stack], ROWS, precision=precision, compiler=compiler)

    def against_official_loop(
        self, precision: Precision, build: Callable[[Precision], dict[str, Stage]]
    ) -> dict[str, Any]:
        """Compare on 32 guided images of 25 steps; the other side runs in a process of its own, in float32."""
        try:
            stages = build(precision)
        except NoCompilerError as error:
            return {"not measured": str(error)}
        engine = self.engine(stages)
        base = stages[self.pipeline.stage_key(BASE)]
        with ProcessPoolExecutor(1, get_context("spawn")) as loop:
            loop.submit(YARDSTICK, FEW_STEPS).result()  # loads
            found = ratio(
                lambda: run_to_end(engine, self.images("bench", ROWS)),
                lambda: loop.submit(YARDSTICK, STEPS).result(),
                self.repeats,
            )
        found["against"] = "the official code" if official_code.is_here() else "our stand-in for it"
        agreeing = base.row_shapes
        return found | {"precision": precision, "mode": base.networks.mode, "rows that agree bit for bit": agreeing}

    def stand_in(self) -> dict[str, Any]:
        """Our stand-in for the official code against the official code itself."""
        if not official_code.is_here():
            return {"not measured": "bench/official/ is not there (bench/official_code.py says how to get it)"}
        with ProcessPoolExecutor(1, get_context("spawn")) as one, ProcessPoolExecutor(1, get_context("spawn")) as other:
            sides = one.submit(official_loop, FEW_STEPS), other.submit(official_sampling, FEW_STEPS)
            for each in sides:
                each.result()
            return ratio(
                lambda: one.submit(official_loop, STEPS).result(),
                lambda: other.submit(official_sampling, STEPS).result(),
                self.repeats,
            )

    def lone_image(self) -> dict[str, Any]:
        """One image in the engine with all row shapes against one image in the official style."""
        engine = self.engine(self.stages)
        with ProcessPoolExecutor(1, get_context("spawn")) as loop:
            loop.submit(YARDSTICK, FEW_STEPS, 1).result()  # loads
            return ratio(
                lambda: run_to_end(engine, self.images("bench", 1)),
                lambda: loop.submit(YARDSTICK, STEPS, 1).result(),
                self.repeats,
            )

    def first_step(self) -> dict[str, Any]:
        """Time from a job's arrival to its first step beside 64 images, in units of a full batch's step."""
        waits = []
        for _ in range(self.repeats):
            engine = self.engine(self.stages)
            for image in self.images("many", 2 * ROWS, 250):
                engine.add(image)
            engine.step()
            full = engine.costs.seconds(self.pipeline.stage_key(BASE), ROWS)
            engine.add(self.images("new", 1, 250)[0])
            started = time.perf_counter()
            while (report := engine.step()) is not None:
                if any(each.request.job_id == "new" for each in report.moved):
                    break
            waits.append((time.perf_counter() - started) / full)
        return {"full_batch_steps": round(median(waits), 3), "repeats": self.repeats}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--eager", action="store_true", help="skip the compiled networks, which take minutes")
    asked = parser.parse_args(arguments)
    bench = EngineBench(asked.repeats)
    lines: dict[str, Callable[[], dict[str, Any]]] = {
        EAGER: lambda: bench.against_official_loop(bench.precision, bench.eager),
        COMPILED: lambda: bench.against_official_loop(bench.precision, bench.compiled),
        LONE: bench.lone_image,
        FIRST_STEP: bench.first_step,
        STAND_IN: bench.stand_in,
    }
    if bench.precision != "fp32":
        lines[EAGER_FP32] = lambda: bench.against_official_loop("fp32", bench.eager)
        lines[COMPILED_FP32] = lambda: bench.against_official_loop("fp32", bench.compiled)
    found: dict[str, Any] = {}
    if asked.eager:
        for name in (COMPILED, COMPILED_FP32):
            lines[name] = lambda: {"not measured": "left out by --eager"}
    for name, measure in lines.items():
        found[name] = measure()
        print(name, json.dumps(found[name]), flush=True)
    if bench.precision == "fp32":  # this machine's own precision, so these lines are measured already
        found |= {EAGER_FP32: found[EAGER], COMPILED_FP32: found[COMPILED]}
    (ROOT / "results" / "engine.json").write_text(json.dumps(machine() | {"found": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
