"""The results of requests without faults, and the check that all jobs have ended."""

import httpx2
from redis import Redis

from tests.chaos import audit
from tests.chaos.audit import Seen
from tests.chaos.load import Body


def run_undisturbed(client: httpx2.Client, redis: Redis, templates: list[Body]) -> list[Seen]:
    """The results of every request without faults."""
    ids = [client.post("/v1/jobs", json=body).raise_for_status().json()["id"] for body in templates]
    return [ended(client, redis, job_id) for job_id in ids]


def ended(client: httpx2.Client, redis: Redis, job_id: str) -> Seen:
    while client.get(f"/v1/jobs/{job_id}", params={"wait": 10}).json()["status"] not in audit.FINAL:
        pass
    seen = audit.look_at(client, redis, job_id)
    assert seen is not None
    assert seen.status == "completed", seen.job["error"]
    return seen


def unfinished(redis: Redis) -> int:
    """Jobs that have not ended; counted at one instant, as one may move from a status to another meanwhile."""
    with redis.pipeline() as pipe:
        for status in ("queued", "in_progress", "cancelling"):
            pipe.zcard(f"adm:jobs:{status}")
        return sum(pipe.execute())
