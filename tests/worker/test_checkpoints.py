"""A long job goes on where its last worker stood, with the bytes it would have had; or starts over, but never fails."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.contract.job import Job, JobStatus
from jobs.settings import Settings
from jobs.storage.images import CHECKPOINT_SUFFIX
from tests.waiting import eventually
from tests.worker.programs import Client, Start, WorkerProcess
from tests.worker.test_kinds_of_jobs import upload

pytestmark = pytest.mark.slow

OFTEN = {"ADM_CHECKPOINT_SECONDS": "0.05"}
LONG: dict[str, object] = {
    "class_label": "cube",
    "guidance_scale": 2.0,
    "sampler": "dpmpp_2m",
    "steps": 150,
    "n": 2,
    "seed": 8,
    "upsample": {"steps": 10},
}


def files(settings: Settings) -> list[Path]:
    return list((settings.data / "images").rglob(f"*{CHECKPOINT_SUFFIX}"))


def logged(worker: WorkerProcess, event: str, job_id: str) -> list[dict[str, Any]]:
    """The worker's log lines of one event and job; those of its namesakes before it are in the same file."""
    lines = [json.loads(line) for line in worker.output.splitlines() if f'"{event}"' in line]
    return [each for each in lines if each["event"] == event and each["job_id"] == job_id]


def wait_checkpointed(worker: WorkerProcess, client: Client, job_id: str, times: int = 1) -> None:
    def written() -> bool:
        assert not client.job(job_id).status.is_final, "it should have been longer"
        return len(logged(worker, "checkpointed", job_id)) >= times

    eventually(written, "a checkpoint is written")


def hashes(job: Job) -> list[str]:
    assert job.status is JobStatus.COMPLETED, job.error
    return [image.sha256 for image in job.images]


def test_next_worker_continues_with_the_bytes_of_an_undisturbed_job(
    start: Start, client: Client, worker_settings: Settings
) -> None:
    worker = start(**OFTEN)
    worker.wait_ready()
    (undisturbed,) = client.wait_all([client.post(LONG)])
    job_id = client.post(LONG)
    wait_checkpointed(worker, client, job_id, 3)
    worker.kill(signal.SIGKILL)
    assert len(files(worker_settings)) in (1, 2), "the one that counts, and perhaps the one that was to be the next"
    second = start(**OFTEN)
    (job,) = client.wait_all([job_id])
    assert (job.attempt, hashes(job)) == (2, hashes(undisturbed))
    (resumed,) = logged(second, "resumed", job_id)
    assert 0 < resumed["steps"] < job.usage.steps
    assert job.usage.steps == undisturbed.usage.steps, "what was done before counts, and once"
    client.queue.delete(job_id)
    assert list(client.store.images(job_id)) == []
    eventually(lambda: not files(worker_settings), "nothing is left of completed jobs")


def test_jobs_of_every_kind_continue_with_the_same_bytes_and_results(start: Start, client: Client) -> None:
    red, blue = upload(client, "red"), upload(client, "blue")
    bodies: list[dict[str, object]] = [
        {"kind": "upsample", "images": [red, blue], "seed": 1, "upsample": {"steps": 250}},
        {"kind": "variation", "images": [red], "n": 2, "strength": 0.6, "seed": 2, "steps": 250, "sampler": "heun"},
        {"kind": "reconstruct", "images": [red, blue], "steps": 120},
        {"kind": "interpolate", "images": [red, blue], "n": 3, "steps": 150, "seed": 4},
        {"kind": "interpolate", "seeds": [5, 6], "class_label": "star", "n": 2, "steps": 250, "seed": 5},
    ]
    worker = start(**OFTEN)
    worker.wait_ready()
    undisturbed = client.wait_all([client.post(body) for body in bodies])
    job_ids = [client.post(body) for body in bodies]
    for job_id in job_ids:
        eventually(lambda job_id=job_id: bool(logged(worker, "checkpointed", job_id)), "a checkpoint")  # type: ignore[misc] # bound now
    worker.kill(signal.SIGKILL)
    unfinished = [job_id for job_id in job_ids if not client.job(job_id).status.is_final]
    assert unfinished
    second = start(**OFTEN)
    jobs = client.wait_all(job_ids)
    assert [hashes(job) for job in jobs] == [hashes(job) for job in undisturbed]
    assert [job.results for job in jobs] == [job.results for job in undisturbed]
    assert [job.usage.steps for job in jobs] == [job.usage.steps for job in undisturbed]
    assert all(len(logged(second, "resumed", job_id)) == 1 for job_id in unfinished)


def test_interpolation_continues_among_its_frames_with_the_same_bytes(start: Start, client: Client) -> None:
    red, blue = upload(client, "red"), upload(client, "blue")
    body: dict[str, object] = {"kind": "interpolate", "images": [red, blue], "n": 3, "steps": 150, "seed": 4}
    body |= {"upsample": {"steps": 50, "sampler": "ddpm"}}
    worker = start(**OFTEN)
    worker.wait_ready()
    (undisturbed,) = client.wait_all([client.post(body)])
    job_id = client.post(body)

    def among_frames() -> bool:
        assert not client.job(job_id).status.is_final, "it should have been longer"
        return any(each["steps"] > 2 * 150 for each in logged(worker, "checkpointed", job_id))

    eventually(among_frames, "a checkpoint is written after both pictures are encoded")
    worker.kill(signal.SIGKILL)
    second = start(**OFTEN)
    (job,) = client.wait_all([job_id])
    assert logged(second, "resumed", job_id)[0]["steps"] > 2 * 150
    assert hashes(job) == hashes(undisturbed), "each frame draws the noise that it drew before"


def test_stopped_worker_requeues_a_long_job_with_its_state(start: Start, client: Client) -> None:
    worker = start(ADM_CHECKPOINT_SECONDS="0.5", ADM_DRAIN_SECONDS="0")
    worker.wait_ready()
    job_id = client.post(LONG | {"steps": 1000, "n": 4})
    wait_checkpointed(worker, client, job_id)
    before = client.job(job_id).progress.fraction
    eventually(lambda: client.job(job_id).progress.fraction > before, "it goes on")
    assert worker.kill(signal.SIGTERM) == 0
    assert client.job(job_id).status is JobStatus.QUEUED
    written = logged(worker, "checkpointed", job_id)[-1]["steps"]
    second = start(**OFTEN)
    eventually(lambda: bool(logged(second, "resumed", job_id)), "it is gone on with")
    assert logged(second, "resumed", job_id)[0]["steps"] == written
    eventually(lambda: client.job(job_id).progress.step > 0, "it tells its progress")
    assert client.job(job_id).progress.fraction >= before
    client.queue.cancel(job_id)
    assert client.wait_all([job_id])[0].status is JobStatus.CANCELLED


def test_stopped_worker_requeues_with_their_state_jobs_too_short_for_a_regular_checkpoint(
    start: Start, client: Client
) -> None:
    worker = start(ADM_CHECKPOINT_SECONDS="60", ADM_DRAIN_SECONDS="5")
    worker.wait_ready()
    job_ids = [client.post(LONG | {"sampler": "heun", "steps": 1000, "n": 2, "seed": seed}) for seed in range(3)]
    eventually(lambda: all(client.job(job_id).progress.step > 40 for job_id in job_ids), "each has had its share")
    assert worker.kill(signal.SIGTERM) == 0
    assert [client.job(job_id).status for job_id in job_ids] == [JobStatus.QUEUED] * 3
    written = [logged(worker, "checkpointed", job_id)[-1] for job_id in job_ids]
    assert all(0 < each["bytes"] < 300_000 for each in written)
    second = start()
    for job_id, last in zip(job_ids, written, strict=True):
        eventually(lambda job_id=job_id: bool(logged(second, "resumed", job_id)), "it is gone on with")  # type: ignore[misc] # bound now
        assert logged(second, "resumed", job_id)[0]["steps"] == last["steps"] > 0


def test_cancelled_job_leaves_no_checkpoint(start: Start, client: Client, worker_settings: Settings) -> None:
    worker = start(**OFTEN)
    worker.wait_ready()
    job_id = client.post(LONG | {"steps": 1000, "n": 4})
    wait_checkpointed(worker, client, job_id)
    client.queue.cancel(job_id)
    assert client.wait_all([job_id])[0].status is JobStatus.CANCELLED
    eventually(lambda: not files(worker_settings), "its checkpoint is removed, and not by the upkeep an hour later")


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_jobs_start_over_where_their_checkpoints_are_gone_or_damaged(
    start: Start, client: Client, worker_settings: Settings
) -> None:
    damages: list[tuple[Callable[[Path], object], str]] = [
        (Path.unlink, "the checkpoint is gone"),
        (truncate, "damaged"),
        (flip, "damaged"),
    ]
    worker = start(**OFTEN)
    worker.wait_ready()
    job_ids = [client.post(LONG | {"steps": 250}) for _ in damages]
    for job_id in job_ids:
        wait_checkpointed(worker, client, job_id)
    worker.kill(signal.SIGKILL)
    for path in files(worker_settings):
        damages[next(at for at, job_id in enumerate(job_ids) if job_id in path.parts)][0](path)
    second = start(ADM_CHECKPOINT_SECONDS="0")
    starts_over(second, client, dict(zip(job_ids, (why for _, why in damages), strict=True)))


def test_job_starts_over_where_its_checkpoint_is_of_other_numerics(start: Start, client: Client) -> None:
    worker = start(**OFTEN, ADM_MAX_ROWS="4")
    worker.wait_ready()
    job_id = client.post(LONG)
    wait_checkpointed(worker, client, job_id)
    worker.kill(signal.SIGKILL)
    starts_over(start(ADM_CHECKPOINT_SECONDS="0", ADM_MAX_ROWS="8"), client, {job_id: "other numerics"})


def starts_over(worker: WorkerProcess, client: Client, why: dict[str, str]) -> None:
    """Check that jobs start over, each for its reason, and complete without another checkpoint."""
    written = {job_id: len(logged(worker, "checkpointed", job_id)) for job_id in why}
    for job in client.wait_all(list(why)):
        assert (job.attempt, len(hashes(job))) == (2, 2)
        (line,) = logged(worker, "starts_over", job.id)
        assert why[job.id] in line["why"]
        assert logged(worker, "resumed", job.id) == []
        assert len(logged(worker, "checkpointed", job.id)) == written[job.id], "none where none are asked for"
