"""How long a worker takes to hand a 256-pixel job back on SIGTERM: python -m bench.drain [tiny|official ...].

    tiny       a network of 256 pixels that is as small as one can be
    official   the network and the classifier of adm-256, with random weights: the largest that a CPU here can hold

A job of one guided image of 250 steps runs alone; some steps after it began the worker gets SIGTERM. Reported, of each
stop: seconds until the job is back in its queue or completed, and until the process has ended, the checkpoint's bytes,
and steps that the next worker took again. Once without a drain time, and once with the default one. Writes
bench/results/drain.json.
"""

import argparse
import json
import os
import re
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
TINY_STACK = {
    "classes": ["one", "other"],
    "base": {"file": "base.safetensors", "schedule": "linear", "num_timesteps": 1000},
    "classifier": {"file": "classifier.safetensors"},
    "pipelines": {
        "tiny-256": {
            "conditional": True,
            "class_required": True,
            "guidance_scale": 1.0,
            "sampling": {"steps": 250, "sampler": "ddpm", "eta": 0.0},
        }
    },
}
CASES = {"tiny": ("tiny-256", 3, 20), "official": ("adm-256", 1, 2)}  # pipeline, stops, steps before each


def write_tiny(weights: Path) -> None:
    write_all(weights / "tiny", {"base": TINY_BASE, "classifier": TINY_CLASSIFIER})
    (weights / "tiny" / "stack.json").write_text(json.dumps(TINY_STACK))


def write_official(weights: Path) -> None:
    names = ("256x256_diffusion", "256x256_classifier")
    write_all(weights / OFFICIAL_FOLDER, {name: PRESETS[name].config for name in names})


def write_all(folder: Path, networks: Mapping[str, NetworkConfig]) -> None:
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    for name, config in networks.items():
        save_network(folder / f"{name}.safetensors", build_network(config).state_dict(), config, dtype=torch.float32)


@contextmanager
def worker(settings: Settings, folder: Path, drain_seconds: float) -> Iterator[WorkerProcess]:
    variables = {"ADM_PIPELINES": settings.pipelines[0], "ADM_DRAIN_SECONDS": str(drain_seconds)}
    # above what a step takes, and a heartbeat that does not hide how soon the job is back
    given = WorkerProcess(settings, folder, "drained", **variables, ADM_MAX_ROWS="1", ADM_LEASE_SECONDS="45")
    try:
        yield given
    finally:
        given.end()


def wait(holds: Any, what: str) -> float:
    """Wait until something holds; the time at which it did."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)
    return time.monotonic()


def measure(settings: Settings, folder: Path, client: Client, steps: int, drain_seconds: float) -> dict[str, float]:
    """Stop a worker in the middle of a job, and let another go on with it for a step."""
    job_id = client.post(JOB | {"model": settings.pipelines[0]})
    with worker(settings, folder, drain_seconds) as first:
        began_at = 0

        def has_begun() -> bool:
            assert first.process.poll() is None, first.output
            return client.job(job_id).progress.step > began_at

        wait(has_begun, "the job's first step")
        began_at, since = client.job(job_id).progress.step, time.monotonic()
        wait(lambda: client.job(job_id).progress.step >= began_at + steps, "some steps")
        step_seconds = (time.monotonic() - since) / (client.job(job_id).progress.step - began_at)
        stopped = time.monotonic()
        first.process.send_signal(signal.SIGTERM)
        left = wait(lambda: client.job(job_id).status is not JobStatus.IN_PROGRESS, "the job is back")
        ended = wait(lambda: first.process.poll() is not None, "the worker ends")
        times = {
            "step_seconds": round(step_seconds, 3),
            "job_left_seconds": round(left - stopped, 3),
            "ended_seconds": round(ended - stopped, 3),
        }
        if client.job(job_id).status is JobStatus.COMPLETED:
            return times | {"completed": 1}
        done, size = last_checkpoint(first.output, job_id)
        reached = client.job(job_id).progress
    with worker(settings, folder, drain_seconds) as second:
        wait(lambda: '"resumed"' in second.output.rpartition('"loaded"')[2], "the next worker goes on")
        resumed = int(re.findall(r'"steps": (\d+)[^\n]*"resumed"|"resumed"[^\n]*"steps": (\d+)', second.output)[-1][1])
        client.queue.cancel(job_id)
        wait(lambda: client.job(job_id).status.is_final, "the job is cancelled")
    return times | {"completed": 0, "checkpoint_bytes": size, "steps_repeated": max(done, reached.step) - resumed}


def last_checkpoint(log: str, job_id: str) -> tuple[int, int]:
    """Steps done and bytes of the last checkpoint of a job that a log names."""
    lines = [json.loads(line) for line in log.splitlines() if '"checkpointed"' in line and job_id in line]
    return int(lines[-1]["steps"]), int(lines[-1]["bytes"])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*", default=list(CASES), choices=list(CASES))
    asked = parser.parse_args()
    report: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    report["machine"] = machine() | {"cores": len(os.sched_getaffinity(0)), "load": round(os.getloadavg()[0], 1)}
    for case in asked.cases:
        pipeline, stops, steps = CASES[case]
        with tempfile.TemporaryDirectory(dir="/tmp", prefix="adm-") as temporary, running_redis() as server:
            folder = Path(temporary)
            (write_tiny if case == "tiny" else write_official)(folder / "weights")
            settings = Settings(
                data=folder / "data",
                redis_url=server.address,
                weights=folder / "weights",
                pipelines=(pipeline,),
                lease_seconds=45,
                default_model=pipeline,
            )
            with worker(settings, folder, 0) as known:
                began = time.monotonic()
                wait(lambda: '"ready"' in known.output, "the pipeline is known")
                start_seconds = time.monotonic() - began
                known.kill(signal.SIGTERM)
            with server.client() as redis:
                client = Client(redis, settings)
                found = {
                    f"drain {drain:g} s": summary(
                        [measure(settings, folder, client, steps, drain) for _ in range(stops)]
                    )
                    for drain in (0.0, DEFAULT_DRAIN_SECONDS)
                }
        report[case] = {"start_seconds": round(start_seconds, 1), "stops_each": stops, **found}
        print(json.dumps({case: report[case]}, indent=1), flush=True)
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")


def summary(stops: list[dict[str, float]]) -> dict[str, float]:
    """The median of each figure, and the most."""
    return {
        f"{name}{suffix}": of([each[name] for each in stops if name in each])
        for name in dict.fromkeys(name for each in stops for name in each)
        for suffix, of in (("", median), ("_most", max))
    }


if __name__ == "__main__":
    main()
