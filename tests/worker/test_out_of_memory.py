"""A worker whose device has too little memory for a while: no job fails because of that."""

from pathlib import Path
from threading import Event, Thread

import pytest
import torch
from redis import Redis
from torch import Tensor, nn

from jobs.contract.job import JobStatus
from jobs.settings import Settings
from jobs.storage.files import FileStore
from tests.waiting import eventually
from tests.worker.conftest import Bench, OpenInbox
from tests.worker.tiny_stack import write_tiny_stack
from worker import attempts
from worker.loading import load
from worker.loop import Worker
from worker.stopping import Stopping

pytestmark = pytest.mark.slow


def test_job_that_fits_in_no_memory_is_requeued_at_no_cost_and_completes_when_there_is_memory(
    bench: Bench,
    open_inbox: OpenInbox,
    redis: Redis,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attempts, "PAUSE_SECONDS", 0.1)
    write_tiny_stack(tmp_path / "weights")
    # on one thread, so that a batch is one part
    settings = settings.model_copy(
        update={"threads": 1, "weights": tmp_path / "weights", "max_rows": 4, "pipelines": ("demo",)}
    )
    loaded = load(settings, torch.device("cpu"), "cpu-0")
    most, stopping, ran_out = [0], Stopping(), Event()

    def run_out(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if len(inputs[0]) > most[0]:
            ran_out.set()
            raise torch.OutOfMemoryError

    loaded.engine.stages["demo/base"].networks.network.register_forward_pre_hook(run_out)
    worker = Worker(loaded, open_inbox(), bench.images, FileStore(redis, settings, bench.images.objects), settings)
    job_id = bench.submit(n=4, steps=3, upsample=False)
    thread = Thread(target=worker.run, args=[stopping])
    thread.start()
    try:
        assert ran_out.wait(60)
        assert not bench.queue.get(job_id).status.is_final
        most[0] = 2
        eventually(lambda: bench.queue.get(job_id).status.is_final, "the job ends")
    finally:
        stopping.set()
        thread.join()
    job = bench.queue.get(job_id)
    assert (job.status, job.error, len(job.images)) == (JobStatus.COMPLETED, None, 4)
    assert bench.events(job_id).count("completed") == 1
    assert loaded.engine.row_shapes == (1, 2)
