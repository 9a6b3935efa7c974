"""The worker as a process: what it promises when it is left alone, killed, stopped, or given bad weights."""

import hashlib
import io
import json
import signal
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from PIL import Image
from redis import Redis

from jobs.contract.job import Job, JobStatus
from tests.waiting import eventually
from tests.worker.programs import Client, Start
from tests.worker.tiny_stack import write_tiny_stack

pytestmark = pytest.mark.slow

TERMINAL = {"completed", "failed", "cancelled", "expired"}
MIXED: list[dict[str, object]] = [
    {"class_label": "torus", "steps": 12, "sampler": "ddim", "seed": 1, "n": 2},
    {"class_label": "star", "steps": 30, "sampler": "ddpm", "guidance_scale": 0, "seed": 2},
    {"class_label": None, "guidance_scale": 0, "steps": 20, "seed": 3, "upsample": False},
    {"class_label": 3, "steps": 9, "sampler": "ddim", "eta": 0.5, "seed": 4, "guidance_interval": [100, 600]},
    {"model": "demo-uncond", "class_label": "cube", "guidance_scale": 8, "steps": 15, "seed": 5, "priority": "high"},
    {"class_label": "cone", "steps": 1, "seed": 6, "upsample": {"steps": 3, "sampler": "ddpm"}},
    {"class_label": 2, "steps": 11, "sampler": "dpmpp_2m", "time_grid": "uniform", "guidance_scale": 9, "seed": 7},
    {"class_label": 8, "steps": 7, "sampler": "heun", "time_grid": "karras", "thresholding": "dynamic", "seed": 8},
]


def check_ended_once(client: Client, jobs: list[Job]) -> None:
    for job in jobs:
        assert job.status is JobStatus.COMPLETED, job.error
        assert sum(event in TERMINAL for event in client.events(job.id)) == 1
        assert [image.index for image in job.images] == list(range(len(job.images)))
        for image, png in zip(job.images, client.bytes_of(job), strict=True):
            assert hashlib.sha256(png).hexdigest() == image.sha256


def test_mixed_jobs_in_one_batch_give_the_bytes_they_give_alone(warm: Client) -> None:
    together = warm.wait_all([warm.submit(**fields) for fields in MIXED])
    alone = [warm.wait_all([warm.submit(**fields)])[0] for fields in MIXED]
    check_ended_once(warm, together + alone)
    for one, other in zip(together, alone, strict=True):
        assert [image.sha256 for image in one.images] == [image.sha256 for image in other.images]


def test_killed_worker_loses_nothing_and_its_jobs_end_once_with_the_same_bytes(start: Start, client: Client) -> None:
    worker = start()
    worker.wait_ready()
    undisturbed = client.wait_all([client.submit(**fields) for fields in MIXED])
    for _ in range(2):
        job_ids = [client.submit(**fields | {"steps": 200} if i == 1 else fields) for i, fields in enumerate(MIXED)]
        client.wait_started(job_ids[1])
        worker.kill(signal.SIGKILL)
        assert any(not client.job(job_id).status.is_final for job_id in job_ids)
        worker = start()
        jobs = client.wait_all(job_ids)
        check_ended_once(client, jobs)
        for i, (job, reference) in enumerate(zip(jobs, undisturbed, strict=True)):
            if i != 1:  # that one was made longer, to be killed with certainty
                assert [image.sha256 for image in job.images] == [image.sha256 for image in reference.images]
    assert max(job.attempt for job in jobs) == 2


def test_another_worker_takes_over_when_the_lease_of_a_dead_one_ends(start: Start, client: Client) -> None:
    first = start("test-0", ADM_LEASE_SECONDS="3")
    first.wait_ready()
    job_id = client.submit(steps=1000)
    client.wait_started(job_id)
    first.kill(signal.SIGKILL)
    second = start("test-1")
    job = client.wait_all([job_id])[0]
    check_ended_once(client, [job])
    assert job.attempt == 2
    assert second.process.poll() is None


def test_worker_that_gets_its_own_job_back_starts_it_over(start: Start, client: Client, redis: Redis) -> None:
    worker = start(ADM_HEARTBEAT_SECONDS="3")
    worker.wait_ready()
    job_id = client.submit(steps=300)
    client.wait_started(job_id)
    token = cast(bytes, redis.hget(f"rq:job:{job_id}", "adm_token")).decode()
    client.queue.ledger.recover(job_id, token)  # as the service does after Redis was unreachable for a lease
    job = client.wait_all([job_id])[0]
    check_ended_once(client, [job])
    assert job.attempt == 2
    assert worker.process.poll() is None


def test_stopped_worker_finishes_what_fits_and_requeues_the_rest(start: Start, client: Client) -> None:
    worker = start(ADM_DRAIN_SECONDS="4")
    worker.wait_ready()
    short, long = client.submit(steps=3), client.submit(steps=1000, n=4)
    client.wait_started(long)
    assert worker.kill(signal.SIGTERM) == 0
    assert client.job(short).status is JobStatus.COMPLETED
    returned = client.job(long)
    assert returned.status is JobStatus.QUEUED, "the rest goes back to the queue"
    start().wait_ready()
    client.wait_started(long)
    client.queue.cancel(long)
    assert client.wait_all([long])[0].status is JobStatus.CANCELLED


def test_cancelled_job_leaves_the_batch_and_frees_its_rows(warm: Client) -> None:
    job_id = warm.submit(steps=1000, n=8)
    warm.wait_started(job_id)
    warm.queue.cancel(job_id)
    assert warm.wait_all([job_id])[0].status is JobStatus.CANCELLED
    assert warm.wait_all([warm.submit(steps=2)])[0].status is JobStatus.COMPLETED
    assert [event for event in warm.events(job_id) if event in TERMINAL] == ["cancelled"]


def test_png_says_what_determines_it_and_nothing_of_its_caller(warm: Client) -> None:
    private: dict[str, object] = {"user": "somebody", "metadata": {"order": "4711"}, "priority": "low", "n": 2}
    mine, plain = warm.wait_all([warm.submit(sampler="ddpm", **private), warm.submit(sampler="ddpm")])
    assert mine.images[0].sha256 == plain.images[0].sha256
    text = Image.open(io.BytesIO(warm.bytes_of(mine)[1])).text  # type: ignore[attr-defined]  # of PNG files alone
    assert text["parameters"].startswith("torus\nSteps: 5, Sampler: DDPM, CFG scale: 2, Seed: 5, Image index: 1")
    facts = json.loads(text["adm-serve"])
    assert (facts["class_label"], facts["seed"], facts["image_index"], facts["numerics"]) == (4, 5, 1, mine.numerics)
    assert (facts["time_grid"], facts["thresholding"], facts["version"]) == ("uniform", "clip", 3), (
        "the demo's grid for ddpm"
    )
    assert not set(facts) & {"user", "metadata", "priority", "created_at"}
    assert facts["frames"] is None  # they are of another kind


def test_images_of_a_job_are_those_of_a_larger_one_from_its_first_index_on(warm: Client) -> None:
    whole, part = warm.wait_all([warm.submit(n=5, seed=7), warm.submit(n=2, seed=7, first_index=3)])
    assert [image.index for image in part.images] == [3, 4]
    assert [image.url for image in part.images] == [f"/v1/jobs/{part.id}/images/{index}" for index in (3, 4)]
    assert [image.sha256 for image in part.images] == [image.sha256 for image in whole.images[3:]]


def test_png_states_solver_grid_and_threshold_and_usage_counts_evaluations(warm: Client) -> None:
    upsample = {"steps": 2, "sampler": "dpmpp_2m", "time_grid": "logsnr", "strength": 1}
    options: dict[str, object] = {"sampler": "heun", "time_grid": "karras", "thresholding": "dynamic"}
    (job,) = warm.wait_all([warm.submit(steps=5, upsample=upsample, **options)])
    assert job.usage.steps == 9 + 2
    text = Image.open(io.BytesIO(warm.bytes_of(job)[0])).text  # type: ignore[attr-defined]  # of PNG files alone
    assert text["parameters"].startswith("torus\nSteps: 5, Sampler: Heun, CFG scale: 2,")
    assert text["parameters"].endswith("Schedule type: karras, Thresholding: dynamic")
    facts = json.loads(text["adm-serve"])
    assert (facts["sampler"], facts["time_grid"], facts["thresholding"]) == ("heun", "karras", "dynamic")
    assert facts["upsample"] == upsample | {"eta": 0, "thresholding": "clip"}


def test_worker_refuses_a_name_that_is_taken(start: Start) -> None:
    first = start()
    first.wait_ready()
    second = start()
    assert second.process.wait(300) == 1
    assert (
        "ADM_WORKER_NAME: a worker named 'test-0' is running here already; give this one another name" in second.output
    )
    assert first.process.poll() is None


def test_worker_refuses_a_name_that_lives_with_other_data_on_the_same_redis(
    start: Start, client: Client, tmp_path: Path
) -> None:
    lease = {"ADM_LEASE_SECONDS": "15"}  # which the last start waits for
    first = start(**lease)
    first.wait_ready()
    job_id = client.submit(steps=1000)
    client.wait_started(job_id)
    other_data = lease | {"ADM_DATA": str(tmp_path / "elsewhere")}
    second = start(**other_data)
    assert second.process.wait(300) == 1
    assert f"ADM_WORKER_NAME: a worker named 'test-0' is running already, process {first.process.pid}" in second.output
    assert client.job(job_id).attempt == 1, "its jobs stay its own"
    first.kill()
    start(**other_data).wait_ready()
    eventually(lambda: client.job(job_id).attempt == 2, "the dead one's job is taken back at once")
    client.queue.cancel(job_id)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: (folder / "base.safetensors").write_bytes(b"\x10" * 99),
            "base.safetensors: is no weights file",
        ),
        (lambda folder: truncate(folder / "classifier.safetensors"), "classifier.safetensors: is cut off or damaged"),
        (lambda folder: (folder / "upsampler.safetensors").unlink(), "upsampler.safetensors: there is no such"),
        (lambda folder: (folder / "stack.json").write_text("{"), "stack.json: is not JSON"),
    ],
    ids=["garbage", "truncated", "missing", "manifest"],
)
def test_bad_weights_stop_the_start_with_one_line_that_names_the_file(
    start: Start, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    folder = write_tiny_stack(tmp_path / "weights")
    damage(folder)
    worker = start(ADM_WEIGHTS=str(folder.parent))
    assert worker.process.wait(300) == 1
    loading, refusal = worker.output.strip().splitlines()
    assert '"loading"' in loading
    assert message in refusal


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def test_job_that_asks_what_no_worker_offers_fails_and_stops_nobody(start: Start, client: Client, redis: Redis) -> None:
    first = start()
    first.wait_ready()
    first.kill(signal.SIGTERM)
    wrong: list[tuple[str, object, str]] = [
        ("model", "elsewhere", "no pipeline 'elsewhere'"),
        ("class_label", 99, "has no class 99"),
        ("sampler", "magic", "unknown sampler 'magic'"),
    ]
    job_ids = [client.submit(steps=2) for _ in wrong]
    for job_id, (field, value, _) in zip(job_ids, wrong, strict=True):
        key = f"rq:job:{job_id}"  # RQ's own record, as some other program might have written it
        call = json.loads(zlib.decompress(cast(bytes, redis.hget(key, "data"))))
        call[3]["request"][field] = value
        redis.hset(key, "data", zlib.compress(json.dumps(call).encode()))
    job_ids.append(client.submit(steps=2))
    start().wait_ready()
    *refused, fine = client.wait_all(job_ids)
    for job, (_, _, message) in zip(refused, wrong, strict=True):
        assert job.status is JobStatus.FAILED
        assert job.error is not None
        assert message in job.error.detail
    assert fine.status is JobStatus.COMPLETED


def test_worker_announces_its_pipelines_and_what_steps_cost(warm: Client) -> None:
    eventually(lambda: bool(warm.queue.fleet.read(fresh=True).workers), "the worker is announced")
    (info,) = warm.queue.fleet.read(fresh=True).workers
    assert info.pipelines == ("demo", "demo-uncond")
    assert set(info.step_ms["demo"]) == {"base", "upsample"}
    assert info.row_shapes[-1] == 8
    assert warm.queue.fleet.read().pipelines["demo"].image_size == 16
