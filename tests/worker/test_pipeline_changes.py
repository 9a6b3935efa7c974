"""A worker loads and unloads pipelines while it lives, and loses no job by it."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from redis import Redis

from engine.loading import ShortageError
from jobs.contract.changes import ChangeRequest, ChangeStatus, PipelineChange, WorkerChange
from jobs.contract.job import JobStatus
from jobs.queue.changes import Changes
from jobs.settings import Settings
from tests.waiting import eventually
from tests.worker.programs import Client, Start
from tests.worker.test_checkpoints import LONG, OFTEN, logged, wait_checkpointed
from tests.worker.tiny_stack import write_tiny_stack
from worker.loading import load
from worker.pipeline_changes import PipelineChanger, RefusedChangeError, check, make, reason

NAME = "test-0"


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stacks of the same networks: `demo` with demo and demo-uncond, and `other` with a pipeline other."""
    folder = write_tiny_stack(tmp_path_factory.mktemp("weights"))
    other = folder.parent / "other"
    shutil.copytree(folder, other)
    manifest = json.loads((other / "stack.json").read_text())
    manifest["pipelines"] = {"other": manifest["pipelines"]["demo"]}
    (other / "stack.json").write_text(json.dumps(manifest))
    return folder.parent


@pytest.fixture
def changes(redis: Redis) -> Changes:
    return Changes(redis)


def ask(changes: Changes, action: str, model: str) -> PipelineChange:
    return changes.ask(ChangeRequest.model_validate({"action": action, "model": model}), [NAME], 0.0)


def answer(changes: Changes, change: PipelineChange) -> WorkerChange:
    """The worker's final answer."""

    def read() -> PipelineChange:
        found = changes.read(change.id, {NAME})
        assert found is not None
        return found

    eventually(lambda: read().is_final, "the worker answers")
    return read().workers[0]


def images_of(client: Client, model: str, **fields: object) -> tuple[list[bytes], str | None]:
    (job,) = client.wait_all([client.submit(model=model, **fields)])
    assert job.status is JobStatus.COMPLETED, job.error
    return client.bytes_of(job), job.numerics


def served_by(client: Client) -> set[str]:
    return {name for worker in client.queue.fleet.read(fresh=True).workers for name in worker.pipelines}


@pytest.mark.slow
def test_pipeline_is_loaded_and_another_unloaded_and_images_are_those_of_a_worker_that_began_so(
    start: Start, client: Client, changes: Changes
) -> None:
    worker = start(ADM_PIPELINES="demo-uncond")
    worker.wait_ready()
    assert answer(changes, ask(changes, "load", "other")) == WorkerChange(
        worker=NAME, status=ChangeStatus.DONE, detail="serves demo-uncond, other"
    )
    assert answer(changes, ask(changes, "load", "demo")).status is ChangeStatus.DONE  # of a stack that is loaded
    assert answer(changes, ask(changes, "unload", "demo-uncond")).status is ChangeStatus.DONE
    assert answer(changes, ask(changes, "unload", "demo")).status is ChangeStatus.DONE
    eventually(lambda: served_by(client) == {"other"}, "the worker announces its pipelines")
    found = images_of(client, "other")
    assert worker.kill() == -9
    fresh = start(ADM_PIPELINES="other")
    fresh.wait_ready()
    eventually(lambda: served_by(client) == {"other"}, "the other worker is known")
    assert images_of(client, "other") == found, "bytes and numerics"


@pytest.mark.slow
def test_job_continues_from_its_checkpoint_on_a_worker_that_serves_other_pipelines_too(
    start: Start, client: Client
) -> None:
    worker = start(**OFTEN, ADM_PIPELINES="demo")
    worker.wait_ready()
    undisturbed = images_of(client, "demo", **LONG)
    job_id = client.submit(model="demo", **LONG)
    wait_checkpointed(worker, client, job_id)
    worker.kill()
    second = start(**OFTEN, ADM_PIPELINES="demo,other")
    (job,) = client.wait_all([job_id])
    assert (job.attempt, len(logged(second, "resumed", job_id))) == (2, 1)
    assert (client.bytes_of(job), job.numerics) == undisturbed
    (announced,) = client.queue.fleet.read(fresh=True).workers
    assert announced.numerics_by_pipeline["demo"] == job.numerics != announced.numerics_by_pipeline["other"]


@pytest.mark.slow
def test_jobs_in_flight_end_before_their_pipeline_is_unloaded_and_later_ones_wait(
    start: Start, client: Client, changes: Changes
) -> None:
    worker = start(ADM_PIPELINES="demo,other")
    worker.wait_ready()
    eventually(lambda: served_by(client) == {"demo", "other"}, "the worker is known")
    undisturbed, _ = images_of(client, "demo", steps=250, n=8)
    job_id = client.submit(model="demo", steps=250, n=8)
    client.wait_started(job_id)
    change = ask(changes, "unload", "demo")
    assert answer(changes, change).status is ChangeStatus.DONE
    job = client.job(job_id)
    assert (job.status, job.attempt) == (JobStatus.COMPLETED, 1)
    assert client.bytes_of(job) == undisturbed
    waiting = client.submit(model="demo", steps=2)
    images_of(client, "other", steps=2)
    assert client.job(waiting).status is JobStatus.QUEUED
    assert answer(changes, ask(changes, "load", "demo")).status is ChangeStatus.DONE
    assert client.wait_all([waiting])[0].status is JobStatus.COMPLETED


@pytest.mark.slow
def test_worker_says_why_it_refuses_and_serves_on(start: Start, client: Client, changes: Changes) -> None:
    worker = start(ADM_PIPELINES="other")
    worker.wait_ready()
    eventually(lambda: served_by(client) == {"other"}, "the worker is known")
    for action, model, message in (
        ("unload", "other", "'other' is its only pipeline; load another one first, or stop the worker"),
        ("unload", "demo", "it does not serve 'demo'; it serves other"),
        ("load", "no-such", "has a pipeline 'no-such'; there are adm-128, "),
        ("load", "adm-64", "'adm-64' needs 64x64_diffusion.pt, which is not in"),
    ):
        found = answer(changes, ask(changes, action, model))
        assert found.status is ChangeStatus.REFUSED
        assert message in found.detail, found.detail
    found = answer(changes, ask(changes, "load", "other"))
    assert (found.status, found.detail) == (ChangeStatus.DONE, "served it already")
    images_of(client, "other", steps=2)


@pytest.mark.slow
def test_change_that_a_worker_does_not_live_to_make_is_lost_and_not_made_by_the_next_one(
    start: Start, client: Client, changes: Changes
) -> None:
    worker = start(ADM_PIPELINES="other")
    worker.wait_ready()
    assert worker.kill() == -9
    change = ask(changes, "load", "demo")
    unknown = changes.read(change.id, live=())
    assert unknown is not None
    assert (unknown.workers[0].status, unknown.is_final) == (ChangeStatus.LOST, True)
    start(ADM_PIPELINES="other").wait_ready()
    assert answer(changes, change).detail == "the worker was restarted meanwhile; repeat the request"
    eventually(lambda: served_by(client) == {"other"}, "the worker announces its pipelines")


def test_memory_is_estimated_before_anything_is_loaded_and_a_changed_file_is_named(
    weights: Path, tmp_path: Path
) -> None:
    own = tmp_path / "weights"
    shutil.copytree(weights, own)
    settings = Settings(data=tmp_path, weights=own, pipelines=("demo-uncond",), max_rows=2)
    loaded = load(settings, torch.device("cpu"), NAME)
    change = PipelineChange(id="1", created_at=0, action="load", model="other", workers=())
    check(loaded, settings, change)
    with pytest.raises(ShortageError) as raised:
        check(loaded, settings.model_copy(update={"max_rows": 10**7}), change)
    line = r"adm models load: other needs .* GiB at ADM_MAX_ROWS=10000000, .* are free.*"
    assert re.fullmatch(line, reason(raised.value))
    sibling = change.model_copy(update={"model": "demo"})
    stages = loaded.engine.stages
    made = make(loaded, settings, sibling)
    assert made.engine.stages["demo/base"] is stages["demo/base"], "a stage that is there is not built again"
    assert set(made.engine.stages) == {"demo/base", "demo/upsample"}
    path = own / "demo" / "base.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(RefusedChangeError, match=r"base\.safetensors has changed since this worker loaded it"):
        check(loaded, settings, sibling)


def test_stack_that_cannot_be_loaded_leaves_the_worker_its_pipelines(
    weights: Path, tmp_path: Path, redis: Redis, changes: Changes
) -> None:
    """The file is whole where heads are read, and not finite further in: only loading finds that."""
    own = tmp_path / "weights"
    shutil.copytree(weights, own)
    path = own / "other" / "base.safetensors"
    content = bytearray(path.read_bytes())
    content[-64:] = b"\xff" * 64
    path.write_bytes(content)
    settings = Settings(data=tmp_path, weights=own, pipelines=("demo-uncond",), max_rows=2)
    changer = PipelineChanger(redis, settings, load(settings, torch.device("cpu"), NAME))
    before, change = changer.loaded, ask(changes, "load", "other")
    found = changer.look()
    assert found is not None
    assert found.id == change.id
    assert not changer.change(change)
    assert changer.loaded is before
    assert "values that are not finite" in answer(changes, change).detail


def test_unknown_and_corrupt_changes_are_none(changes: Changes, redis: Redis) -> None:
    assert changes.read("0" * 32, live=()) is None
    redis.set("adm:change:1", "garbage")
    assert changes.read("1", live=()) is None
