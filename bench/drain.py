"""Time of a worker to requeue a 256-pixel job on SIGTERM: python -m bench.drain [tiny|quarter|official ...].

    tiny       the smallest possible network of 256 pixels
    quarter    adm-256 with a quarter of its channels
    official   the network and the classifier of adm-256, with random weights

A job of one guided image of 250 steps runs alone. After some steps its worker gets SIGTERM, and the next worker resumes
the job. Reports for each stop: seconds until the job is requeued or completed, seconds until the process has ended, the
checkpoint's bytes, and the reported steps that it lacks. Jobs are stopped without a drain time and with the default
one. Writes bench/results/drain.json.
"""

import argparse
import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.machine import machine
from jobs.contract.job import JobStatus
from jobs.settings import Settings
from models.checkpoints.network_file import NetworkConfig, build_network, save_network
from models.checkpoints.presets import OFFICIAL_FOLDER, PRESETS
from models.networks.config import ClassifierConfig, UNetConfig
from tests.conftest import running_redis
from tests.warm import start_cold
from tests.worker.programs import Client, WorkerProcess

RESULTS = Path(__file__).parent / "results/drain.json"
DEFAULT_DRAIN_SECONDS = Settings.model_fields["drain_seconds"].default
JOB: dict[str, object] = {"steps": 250, "sampler": "ddpm", "guidance_scale": 1.0, "class_label": 1, "seed": 1}
PATIENCE_SECONDS = 1800.0
TINY_BASE = UNetConfig(
    image_size=256,
    model_channels=32,
    num_res_blocks=1,
    attention_resolutions=(),
    channel_mult=(1, 1),
    use_scale_shift_norm=True,
    resblock_updown=True,
    num_classes=2,
)
TINY_CLASSIFIER = ClassifierConfig(
    image_size=256,
    model_channels=32,
    num_res_blocks=1,
    attention_resolutions=(32,),
    channel_mult=(1, 1, 1, 1, 1, 1),
    num_head_channels=32,
    use_scale_shift_norm=True,
    resblock_updown=True,
    out_channels=2,
    pool="attention",
)
STACK = {
    "classes": ["one", "other"],
    "base": {"file": "base.safetensors", "schedule": "linear", "num_timesteps": 1000},
    "classifier": {"file": "classifier.safetensors"},
    "pipelines": {
        "drained": {
            "conditional": True,
            "class_required": True,
            "guidance_scale": 1.0,
            "sampling": {"steps": 250, "sampler": "ddpm", "eta": 0.0},
            "upsampling": None,
        }
    },
}
# pipeline, stops, steps before each
CASES = {"tiny": ("drained", 1, 10), "quarter": ("drained", 1, 2), "official": ("adm-256", 1, 2)}


def write_weights(case: str, weights: Path) -> None:
    base, classifier = PRESETS["256x256_diffusion"].config, PRESETS["256x256_classifier"].config
    assert isinstance(base, UNetConfig)
    assert isinstance(classifier, ClassifierConfig)
    if case == "official":
        write_all(weights / OFFICIAL_FOLDER, {"256x256_diffusion": base, "256x256_classifier": classifier})
        return
    if case == "quarter":
        base = replace(base, model_channels=base.model_channels // 4, num_classes=2)
        classifier = replace(classifier, model_channels=classifier.model_channels // 4, out_channels=2)
    else:
        base, classifier = TINY_BASE, TINY_CLASSIFIER
    write_all(weights / "drained", {"base": base, "classifier": classifier})
    (weights / "drained" / "stack.json").write_text(json.dumps(STACK))


def write_all(folder: Path, networks: Mapping[str, NetworkConfig]) -> None:
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    for name, config in networks.items():
        save_network(folder / f"{name}.safetensors", build_network(config).state_dict(), config, dtype=torch.float32)


class Drained:
    """Runs one worker after the other on the same job, and stops each one during it."""

    def __init__(self, settings: Settings, folder: Path, client: Client) -> None:
        self._settings, self._folder, self._client = settings, folder, client
        self._started = 0
        self.starts: list[float] = []  # seconds

    def stop_one(self, steps: int, drain_seconds: float, job_id: str | None) -> tuple[str | None, dict[str, float]]:
        """Start a worker, and stop it when the job has moved by `steps` steps; return the job unless it has ended."""
        began = time.monotonic()
        self._started += 1
        process = self._start(drain_seconds)
        try:
            wait(lambda: is_ready(process), "the worker is ready")
            self.starts.append(time.monotonic() - began)
            job_id = job_id or self._client.post(JOB | {"model": self._settings.pipelines[0]})
            wait(lambda: self._client.job(job_id).status is JobStatus.IN_PROGRESS, "the job is taken")
            before = self._step(job_id)
            wait(lambda: self._step(job_id) > before, "a first step")
            first, since = self._step(job_id), time.monotonic()
            wait(lambda: self._step(job_id) >= first + steps, "some steps")
            step_seconds = (time.monotonic() - since) / (self._step(job_id) - first)
            return self._stop(process, job_id, {"step_seconds": round(step_seconds, 3)})
        finally:
            process.end()

    def _start(self, drain_seconds: float) -> WorkerProcess:
        variables = {"ADM_PIPELINES": self._settings.pipelines[0], "ADM_DRAIN_SECONDS": str(drain_seconds)}
        name = f"drained-{self._started}"
        return WorkerProcess(
            self._settings, self._folder, name, start_cold, **variables, ADM_MAX_ROWS="1", ADM_LEASE_SECONDS="45"
        )

    def _step(self, job_id: str) -> int:
        return self._client.job(job_id).progress.step

    def _stop(
        self, process: WorkerProcess, job_id: str, found: dict[str, float]
    ) -> tuple[str | None, dict[str, float]]:
        stopped = time.monotonic()
        process.process.send_signal(signal.SIGTERM)
        left = wait(lambda: self._client.job(job_id).status is not JobStatus.IN_PROGRESS, "the job is back")
        ended = wait(lambda: process.process.poll() is not None, "the worker ends")
        found |= {"job_left_seconds": round(left - stopped, 3), "ended_seconds": round(ended - stopped, 3)}
        if self._client.job(job_id).status is JobStatus.COMPLETED:
            return None, found | {"completed": 1}
        lines = [json.loads(line) for line in process.output.splitlines() if '"checkpointed"' in line]
        reached = self._client.job(job_id).progress.step
        found |= {"completed": 0, "checkpoint_bytes": lines[-1]["bytes"]}
        return job_id, found | {"steps_lost": max(0, reached - lines[-1]["steps"])}


def wait(holds: Callable[[], bool], what: str) -> float:
    """Wait until a condition holds; return that time."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)
    return time.monotonic()


def is_ready(known: WorkerProcess) -> bool:
    assert known.process.poll() is None, known.output
    return '"ready"' in known.output


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*", default=["tiny", "quarter"])
    asked = parser.parse_args()
    report: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    report["machine"] = machine() | {"cores": len(os.sched_getaffinity(0)), "load": round(os.getloadavg()[0], 1)}
    for case in asked.cases:
        pipeline, number, steps = CASES[case]
        with tempfile.TemporaryDirectory(dir="/tmp", prefix="adm-") as temporary, running_redis() as server:
            folder = Path(temporary)
            write_weights(case, folder / "weights")
            settings = Settings(
                data=folder / "data",
                redis_url=server.address,
                weights=folder / "weights",
                pipelines=(pipeline,),
                lease_seconds=45,
                default_model=pipeline,
            )
            with server.client() as redis:
                drained, found = Drained(settings, folder, Client(redis, settings)), {}
                job_id: str | None = None
                for drain_seconds in (0.0, DEFAULT_DRAIN_SECONDS):
                    stops = []
                    for _ in range(number):
                        job_id, stop = drained.stop_one(steps, drain_seconds, job_id)
                        print(json.dumps(stop), flush=True)
                        stops.append(stop)
                    found[f"drain {drain_seconds:g} s"] = summary(stops)
        report[case] = {"start_seconds": round(median(drained.starts), 1), "stops_each": number, **found}
        print(json.dumps({case: report[case]}, indent=1), flush=True)
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")


def summary(stops: list[dict[str, float]]) -> dict[str, float]:
    """The median and the maximum of each figure."""
    return {
        f"{name}{suffix}": of([each[name] for each in stops if name in each])
        for name in dict.fromkeys(name for each in stops for name in each)
        for suffix, of in (("", median), ("_most", max))
    }


if __name__ == "__main__":
    main()
