"""A submission whose answer was lost on the way is posted again, and is one job."""

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from jobs.contract.request import JobRequest
from jobs.queue.announcements import announce_pipelines
from jobs.queue.job_queue import JobQueue
from jobs.redis import keys, rq_keys
from jobs.settings import Settings
from jobs.storage.images import ImageStore
from tests.chaos.proxy import Accident, Proxy
from tests.jobs.samples import DEMO

pytestmark = pytest.mark.redis

BODY = b'{"class_label": "torus", "n": 2, "sampler": "ddim", "steps": 5}'


@pytest.mark.parametrize(("accident", "replayed"), [("lose reply", True), ("tear command", False)])
def test_keyed_job_is_queued_and_counted_once_whatever_became_of_the_first_answer(
    redis: Redis, proxy: Proxy, settings: Settings, accident: Accident, replayed: bool
) -> None:
    with redis.pipeline() as pipe:
        announce_pipelines(pipe, [DEMO])
        pipe.execute()
    with Redis.from_url(proxy.address, retry=Retry(NoBackoff(), 0)) as client:
        queue = JobQueue(client, settings, ImageStore(settings.store_address))
        proxy.plan(accident, 1)
        with pytest.raises(RedisConnectionError):
            queue.submitter.submit(JobRequest.parse(BODY), "a key")
        submitted = queue.submitter.submit(JobRequest.parse(BODY), "a key")
    assert submitted.replayed is replayed
    assert redis.lrange(rq_keys.queue_key(keys.queue("demo", "normal")), 0, -1) == [submitted.job.id.encode()]
    assert redis.zcard(keys.index()) == 1
    assert redis.xlen(keys.events(submitted.job.id)) == 1
    assert sum(int(each) for each in redis.hvals(keys.queued_work("demo"))) == 2 * (5 + 10)
