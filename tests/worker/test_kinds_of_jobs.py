"""Jobs that start from pictures, through a real worker: every kind, beside the others, and killed in between."""

import io
import signal

import pytest
from PIL import Image

from jobs.contract.caller import ANONYMOUS
from jobs.contract.errors import FailureKind
from jobs.contract.job import JobStatus
from tests.jobs.samples import upload as keep
from tests.worker.programs import Client, Start, WorkerProcess

pytestmark = pytest.mark.slow


def upload(client: Client, colour: str) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(buffer, "PNG")
    return keep(client.queue.files, buffer.getvalue()).id


def bodies(client: Client) -> list[dict[str, object]]:
    red, blue = upload(client, "red"), upload(client, "blue")
    return [
        {"kind": "upsample", "images": [red, blue], "seed": 1, "upsample": {"steps": 6}},
        {"kind": "variation", "images": [red, blue], "n": 2, "strength": 0.4, "seed": 2, "steps": 20},
        {
            "kind": "variation",
            "images": [blue],
            "class_label": "cube",
            "guidance_scale": 3,
            "seed": 3,
            "steps": 9,
            "sampler": "dpmpp_2m",
        },
        {"kind": "reconstruct", "images": [red, blue], "steps": 12},
        {"kind": "interpolate", "images": [red, blue], "n": 5, "steps": 10, "seed": 4},
        {"kind": "interpolate", "seeds": [5, 6], "class_label": "star", "n": 3, "steps": 10, "seed": 5},
        {
            "kind": "generate",
            "class_weights": {"star": 1, "cube": 2},
            "guidance_scale": 4,
            "steps": 11,
            "seed": 6,
            "guidance_schedule": "entropy",
        },
        {"kind": "score", "images": [red, blue]},
    ]


@pytest.mark.parametrize("sampler", [{"sampler": "ddpm"}, {"sampler": "ddim", "eta": 1.0}])
def test_way_from_a_seed_to_itself_has_equal_frames(warm: Client, sampler: dict[str, object]) -> None:
    """The upsampler keeps them equal too, although it draws noise at every step."""
    body: dict[str, object] = {"kind": "interpolate", "seeds": [5, 5], "class_label": "star", "n": 3, "steps": 6}
    (job,) = warm.wait_all([warm.post(body | sampler)])
    pixels = [Image.open(io.BytesIO(data)).tobytes() for data in warm.bytes_of(job)]
    assert pixels[0] == pixels[1] == pixels[2]


def test_every_kind_gives_its_images_and_results(warm: Client) -> None:
    jobs = warm.wait_all([warm.post(body) for body in bodies(warm)])
    assert [job.error for job in jobs] == [None] * len(jobs)
    assert [len(job.images) for job in jobs] == [2, 4, 1, 2, 5, 3, 1, 0]
    assert {(image.width, image.height) for image in jobs[0].images} == {(16, 16)}  # the tiny stack's
    reconstruct, score = jobs[3].results, jobs[7].results
    assert reconstruct is not None
    assert score is not None
    assert [sorted(each) for each in reconstruct["errors"]] == [["mean_absolute", "psnr"]] * 2
    assert [len(each) for each in score["scores"]] == [10, 10]
    assert [job.progress.fraction for job in jobs] == [1] * len(jobs)


def test_killed_worker_gives_the_bytes_that_jobs_from_pictures_give_alone(start: Start, client: Client) -> None:
    worker = start()
    worker.wait_ready()
    alone = []
    for body in bodies(client):
        alone += [client.bytes_of(job) for job in client.wait_all([client.post(body)])]
    job_ids = [client.post(body) for body in bodies(client)]
    client.wait_started(job_ids[4])
    worker.process.send_signal(signal.SIGKILL)
    worker.process.wait()
    start().wait_ready()
    together = client.wait_all(job_ids)
    assert [client.bytes_of(job) for job in together] == alone
    for job_id in job_ids:
        assert sum(event in {"completed", "failed", "cancelled"} for event in client.events(job_id)) == 1


def test_job_whose_file_is_gone_says_so(warm: Client, warm_worker: WorkerProcess) -> None:
    warm_worker.process.send_signal(signal.SIGSTOP)
    file_id = upload(warm, "green")
    job_id = warm.post({"kind": "score", "images": [file_id]})
    warm.queue.files.delete(file_id, ANONYMOUS)
    warm_worker.process.send_signal(signal.SIGCONT)
    (job,) = warm.wait_all([job_id])
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert job.error.kind is FailureKind.FILE_GONE
