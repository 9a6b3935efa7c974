"""What is written for RQ's own tools, compared with what RQ writes."""

from typing import cast

import pytest
from redis import Redis
from rq.job import Job
from rq.serializers import JSONSerializer

from jobs.queue import rq_registries
from jobs.redis import rq_keys
from jobs.settings import Settings
from tests.jobs.desk import ANN, Desk

pytestmark = pytest.mark.redis


def test_new_job_has_the_fields_that_rq_itself_writes_for_it(redis: Redis, settings: Settings) -> None:
    (job_id,) = Desk(redis, settings).post(ANN)
    stored = cast(dict[bytes, bytes], redis.hgetall(rq_keys.job_key(job_id)))
    ours = {name.decode(): value for name, value in stored.items() if not name.startswith(b"adm_")}
    job = Job.fetch(job_id, connection=redis, serializer=JSONSerializer)
    written = {name: value for name, value in job.to_dict().items() if value != ""}
    theirs = {name: value if isinstance(value, bytes) else str(value).encode() for name, value in written.items()}
    assert job.func_name == rq_registries.FUNCTION
    assert ours == theirs | {"status": b"queued"}
