"""Two versions beside each other, as in a rolling upgrade or a rollback: each serves the jobs that the other leaves."""

import hashlib
import json
from pathlib import Path

import httpx2
import jsonschema_rs
import pytest
from redis import Redis

from jobs.contract.job import JobStatus
from jobs.contract.request import JobRequest
from jobs.queue.job_queue import JobQueue
from jobs.redis.payload import payload_of
from jobs.settings import Settings
from jobs.storage.images import ImageStore
from tests.conftest import RedisServer
from tests.former.kept import VERSIONS, lay_down
from tests.service.conftest import running_service
from tests.worker.conftest import weights  # noqa: F401 - a fixture
from tests.worker.programs import WorkerProcess
from worker.job_state import from_bytes, to_bytes

pytestmark = pytest.mark.redis


@pytest.fixture
def former_settings(redis: Redis, redis_server: RedisServer, tmp_path: Path, weights: Path) -> Settings:  # noqa: F811
    return Settings(data=tmp_path, redis_url=redis_server.address, weights=weights, store=str(tmp_path / "images"))


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_jobs_images_and_events_of_a_former_version_are_served(
    version: str, redis: Redis, former_settings: Settings, tmp_path: Path
) -> None:
    kept = lay_down(version, redis, tmp_path / "images")
    worker = WorkerProcess(former_settings, tmp_path, "test-0", ADM_STORE=former_settings.store_address)
    try:
        with running_service(former_settings) as (address, _, _), httpx2.Client(base_url=address, timeout=90) as client:
            done = client.get(f"/v1/jobs/{kept.completed}").raise_for_status().json()
            for image in done["images"]:
                data = client.get(image["url"]).raise_for_status().content
                assert hashlib.sha256(data).hexdigest() == image["sha256"]
            events = client.get(f"/v1/jobs/{kept.completed}/events").raise_for_status().text
            assert events.count("event: image") == len(done["images"]) == 2
            assert "event: completed" in events
            for job_id in (kept.waiting, kept.handed_back):
                while True:  # the test's own limit ends it
                    job = client.get(f"/v1/jobs/{job_id}", params={"wait": 60}).raise_for_status().json()
                    if JobStatus(job["status"]).is_final:
                        break
                assert job["status"] == "completed", job["error"]
                assert len(job["images"]) == job["request"]["n"]
    finally:
        worker.end()


def test_checkpoint_of_the_former_version_is_continued_and_written_alike(redis: Redis, tmp_path: Path) -> None:
    """The same bytes: so the former version continues ours too."""
    kept = lay_down(VERSIONS[-1], redis, tmp_path / "images")
    queue = JobQueue(redis, Settings(data=tmp_path), ImageStore(str(tmp_path / "images")))
    record = queue.ledger.read(kept.handed_back)
    assert record is not None
    assert record.checkpoint is not None
    numerics = record.checkpoint.numerics
    state = from_bytes(kept.checkpoint, record.request(), numerics)
    assert sum(state.steps_done.values()) > 0
    assert to_bytes(state, record.request(), numerics) == kept.checkpoint


@pytest.mark.parametrize("version", VERSIONS)
def test_former_version_reads_the_request_of_a_job_that_makes_no_use_of_what_is_new(
    version: str, redis: Redis, former_settings: Settings, tmp_path: Path
) -> None:
    kept = lay_down(version, redis, tmp_path / "images")
    queue = JobQueue(redis, former_settings, ImageStore(former_settings.store_address))
    for body in ({"class_label": "torus"}, {"class_label": 1, "sampler": "ddim", "eta": 0.5, "n": 4, "seed": 7}):
        job = queue.submitter.submit(JobRequest.parse(json.dumps(body).encode())).job
        assert job.request is not None
        payload = payload_of(job.request)
        assert payload["version"] == 1
        jsonschema_rs.validator_for(kept.request_schema).validate(payload["request"])
