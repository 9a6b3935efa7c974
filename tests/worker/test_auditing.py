"""An idle worker takes steps again; a wrong kernel is logged, counted, and followed by new numerics."""

from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry
from redis import Redis
from structlog.testing import capture_logs
from torch import Tensor

from jobs.settings import Settings
from jobs.storage.files import FileStore
from tests.waiting import eventually
from tests.worker.conftest import Bench, OpenInbox
from tests.worker.tiny_stack import write_tiny_stack
from worker.loaded_pipelines import LoadedPipelines
from worker.loading import load
from worker.loop import Worker
from worker.stopping import Stopping

pytestmark = pytest.mark.slow


@pytest.fixture
def loaded(settings: Settings, tmp_path: Path) -> LoadedPipelines:
    write_tiny_stack(tmp_path / "weights")
    changes = {"weights": tmp_path / "weights", "max_rows": 4, "pipelines": ("demo",), "audit_share": 1.0, "threads": 1}
    return load(settings.model_copy(update=changes), torch.device("cpu"), "cpu-0")


def counted(registry: CollectorRegistry, name: str) -> float:
    return registry.get_sample_value(f"{name}_total", {"stage": "base"} if "differences" in name else {}) or 0.0


def off_at(rows: int, compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def computed(x: Tensor, *others: Any, **named: Any) -> Tensor:
        result = compute(x, *others, **named)
        return result * 1.1 if len(x) == rows else result  # in a few steps, much is clipped

    return computed


def serve(
    loaded: LoadedPipelines, bench: Bench, inbox: Any, files: FileStore, settings: Settings, until: Callable[[], bool]
) -> None:
    """Run jobs of four images, one after the other, until something is so."""
    stopping = Stopping()
    thread = Thread(target=Worker(loaded, inbox, bench.images, files, settings).run, args=[stopping])
    thread.start()
    try:
        while not until():
            job_id = bench.submit(n=4, steps=3, upsample=False)
            eventually(lambda: bench.queue.get(job_id).status.is_final, "the job ends")  # noqa: B023 - waited for here
            # none is due if one step took longer than all others, as on a busy machine; the next job adds to them
            eventually(lambda: not loaded.audit.is_due, "a step is taken again")
    finally:
        stopping.set()
        thread.join()


def test_wrong_kernel_is_logged_counted_and_changes_the_numerics(
    loaded: LoadedPipelines, bench: Bench, open_inbox: OpenInbox, redis: Redis, settings: Settings
) -> None:
    stage, before = loaded.engine.stages["demo/base"], loaded.numerics.of_all
    stage.networks._network = off_at(4, stage.networks._network)  # a kernel with a fault at four rows; ours has none
    files = FileStore(redis, settings, bench.images.objects)
    with capture_logs() as logs:
        serve(loaded, bench, open_inbox(), files, settings, lambda: loaded.numerics.of_all != before)
    (line,) = [each for each in logs if each["event"] == "audit_difference"]
    assert (line["stage"], line["out_of_use"]) == ("demo/base", {"network": [4]})
    assert line["row_shape"] in (1, 2, 4)  # of the step that was kept: four rows, or fewer, taken again among others
    assert (line["numerics_before"], line["numerics"]) == (before, loaded.numerics.of_all)
    assert counted(loaded.registry, "adm_audit_differences") == 1
    assert loaded.engine.row_shapes == (1, 2)
    assert list((settings.data / "row-shapes").iterdir()) == []  # so that the next start compares the shapes again
    announced, _ = loaded.report()
    assert announced.numerics == loaded.numerics.of_all
    assert announced.numerics_by_pipeline == {"demo": loaded.numerics.of("demo")}


def test_sound_worker_audits_and_finds_nothing(
    loaded: LoadedPipelines, bench: Bench, open_inbox: OpenInbox, redis: Redis, settings: Settings
) -> None:
    before, files = loaded.numerics.of_all, FileStore(redis, settings, bench.images.objects)
    serve(loaded, bench, open_inbox(), files, settings, lambda: counted(loaded.registry, "adm_audits") >= 2)
    assert counted(loaded.registry, "adm_audit_differences") == 0
    assert loaded.numerics.of_all == before
    assert list((settings.data / "row-shapes").iterdir())
