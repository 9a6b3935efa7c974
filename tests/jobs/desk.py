"""Posts jobs of callers without HTTP, on a real Redis."""

import json
from typing import Any, cast

from redis import Redis

from jobs.contract.caller import Caller, Role
from jobs.contract.errors import RefusedError
from jobs.contract.request import JobRequest
from jobs.queue.announcements import announce_pipelines, announce_worker
from jobs.queue.drafting import Submission, Submitted
from jobs.queue.job_queue import JobQueue
from jobs.redis import keys, rq_keys
from jobs.settings import Settings
from jobs.storage.images import ImageStore
from tests.jobs.samples import DEMO, worker_info

ANN, BOB, CYD = (Caller(letter * 12, Role.USER) for letter in "abc")
QUEUE = keys.queue("demo", "normal")


class Desk:
    """Takes jobs of callers, and shows the line that they make."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self.redis = redis
        self.queue = JobQueue(redis, settings, ImageStore(settings.store_address))
        self.owners: dict[str, str] = {}
        with redis.pipeline() as pipe:
            announce_pipelines(pipe, [DEMO])
            announce_worker(pipe, worker_info(pipelines=("demo",)), "", lease_seconds=100)
            pipe.execute()

    def submit(self, *submissions: Submission) -> list[Submitted]:
        accepted = [each for each in self.queue.submitter.submit_all(submissions) if not isinstance(each, RefusedError)]
        self.owners |= {each.job.id: by.caller.id for each, by in zip(accepted, submissions, strict=True)}
        return accepted

    def post(self, caller: Caller, number: int = 1, **fields: Any) -> list[str]:
        return [each.job.id for each in self.submit(*[job_of(caller, **fields)] * number)]

    def line(self) -> list[str]:
        found = cast(list[bytes], self.redis.lrange(rq_keys.queue_key(QUEUE), 0, -1))
        return [each.decode() for each in found]

    def order(self) -> str:
        """The owners of the jobs in the line, a letter each."""
        return "".join(self.owners[each][:1] for each in self.line())


def job_of(caller: Caller, *, key: str | None = None, **fields: Any) -> Submission:
    body = {"class_label": "torus", "guidance_scale": 0, "upsample": False, "seed": 1} | fields
    return Submission(JobRequest.parse(json.dumps(body).encode()), caller, key)
