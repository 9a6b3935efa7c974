"""Simulates competing callers: python -m bench.simulate_callers [--callers 8] [--jobs 1000].

Equal callers post the same jobs, each caller all of them at once, one caller after the other. First in, first out would
serve the first caller to its end before the next. Reports Jain's index over the device time of each caller in the first
half of the time, and the wait of single jobs of other callers until a worker claims them; with turns between callers,
and with all jobs as one caller's, which is first in, first out. Jobs are equal or of all sizes; workers let short jobs
pass long ones, which by itself reduces differences. Writes bench/results/simulate_callers.json.
"""

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from bench.simulate import Simulation
from bench.simulate_load import SimulatedJob, make_pipelines, make_request
from jobs.contract.pipelines import PipelineInfo
from jobs.contract.work import evaluations_of, work_of

RESULTS = Path(__file__).parent / "results/simulate_callers.json"
GAP_SECONDS = 2.0  # between two callers' jobs, and between single jobs
ALIKE = {"steps": 25, "n": 4, "upsample": None}
SINGLE = "single-"  # prefix of callers with a single job


def make_job(
    name: str, arrives: float, caller: str, pipeline: PipelineInfo, draw: random.Random, *, alike: bool
) -> SimulatedJob:
    fields = {"model": pipeline.id, "priority": "normal"} | (ALIKE if alike else {})
    request = make_request(draw, pipeline).model_copy(update=fields)
    return SimulatedJob(name, arrives, request, work_of(request), evaluations_of(request), caller=caller)


def make_jobs(
    callers: int, jobs: int, pipeline: PipelineInfo, draw: random.Random, *, alike: bool
) -> list[SimulatedJob]:
    """The same jobs of each caller, each caller's at one time; then single jobs of others."""
    seed = draw.random()
    made = [
        make_job(f"{caller}/{index}", caller * GAP_SECONDS, f"caller-{caller}", pipeline, each, alike=alike)
        for caller in range(callers)
        for each in [random.Random(seed)]
        for index in range(jobs)
    ]
    starts = callers * GAP_SECONDS
    single = [
        make_job(f"{SINGLE}{index}", starts + index * GAP_SECONDS, f"{SINGLE}{index}", pipeline, draw, alike=alike)
        for index in range(20)
    ]
    return made + single


def jain(values: Sequence[float]) -> float:
    """Jain's index: 1 if all are equal, 1/n if one has everything."""
    return sum(values) ** 2 / len(values) / sum(value**2 for value in values)


def measure(workers: int, callers: int, jobs: list[SimulatedJob], *, in_turns: bool) -> dict[str, Any]:
    """Run jobs; measure the device time of each caller in the first half of the time, with turns or without."""
    queued = [replace(each, caller=each.caller if in_turns else "") for each in jobs]
    simulation = Simulation(workers, make_pipelines(1), queued)
    owners = {each.id: each.caller for each in jobs}
    simulation.owner_of = owners.__getitem__
    simulation.run()
    names = [f"caller-{index}" for index in range(callers)]
    half = range(int(callers * GAP_SECONDS), int(max(each.ends for each in queued) / 2))
    served = [sum(simulation.served[name][second] for second in half) for name in names]
    waits = [each.claimed - each.arrives for each in queued if owners[each.id].startswith(SINGLE)]
    return {
        "seconds": len(half),
        "jain_index": round(jain(served), 4),
        "single_jobs_wait_seconds": {"median": round(median(waits), 1), "max": round(max(waits), 1)},
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    found: dict[str, Any] = {}
    for sizes in ("alike", "of all sizes"):
        draw, pipeline = random.Random(asked.seed), make_pipelines(1)[0]
        jobs = make_jobs(asked.callers, asked.jobs, pipeline, draw, alike=sizes == "alike")
        found[sizes] = {
            name: measure(asked.workers, asked.callers, jobs, in_turns=in_turns)
            for name, in_turns in (("turns", True), ("first in, first out", False))
        }
    report = vars(asked) | {"found": found}
    print(json.dumps(report, indent=1))
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
