"""A queued job that needs a stage that this worker's pipeline lacks; another version of the pipeline may have it."""

import json
from pathlib import Path
from threading import Thread

import pytest
import torch
from redis import Redis

from jobs.contract.errors import FailureKind
from jobs.contract.job import JobStatus
from jobs.settings import Settings
from jobs.storage.files import FileStore
from tests.waiting import eventually
from tests.worker.conftest import Bench, OpenInbox
from tests.worker.tiny_stack import write_tiny_stack
from worker.loading import load
from worker.loop import Worker
from worker.stopping import Stopping

pytestmark = pytest.mark.slow


def without_upsampler(folder: Path) -> None:
    manifest = json.loads((folder / "stack.json").read_text())
    del manifest["upsampler"]
    for pipeline in manifest["pipelines"].values():
        pipeline["upsampling"] = None
    (folder / "stack.json").write_text(json.dumps(manifest))


def test_job_for_a_missing_stage_blocks_no_other_job_and_fails_at_its_turn(
    bench: Bench, open_inbox: OpenInbox, redis: Redis, settings: Settings, tmp_path: Path
) -> None:
    without_upsampler(write_tiny_stack(tmp_path / "weights"))
    settings = settings.model_copy(update={"weights": tmp_path / "weights", "max_rows": 2, "pipelines": ("demo",)})
    full = [bench.submit(n=2, steps=20, upsample=False) for _ in range(2)]
    lacking, last = bench.submit(steps=2), bench.submit(steps=2, upsample=False)
    loaded, stopping = load(settings, torch.device("cpu"), "cpu-0"), Stopping()
    worker = Worker(loaded, open_inbox(), bench.images, FileStore(redis, settings, bench.images.objects), settings)
    thread = Thread(target=worker.run, args=[stopping])
    thread.start()
    try:
        jobs = [*full, lacking, last]
        eventually(
            lambda: all(bench.queue.get(each).status.is_final for each in jobs) or not thread.is_alive(), "all end"
        )
    finally:
        stopping.set()
        thread.join()
    assert [bench.status(each) for each in (*full, last)] == ["completed"] * 3
    failed = bench.queue.get(lacking)
    assert failed.status is JobStatus.FAILED
    assert failed.error is not None
    assert failed.error.kind is FailureKind.NOT_OFFERED
