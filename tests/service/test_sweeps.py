"""Sweeps over HTTP: the service shows a sweep that a worker announces, until the pipeline is removed."""

import httpx2
import pytest
from redis import Redis

from jobs.queue.announcements import announce_pipelines
from jobs.redis import keys
from tests.jobs.samples import DEMO, DEMO_UNCOND, SWEEP
from tests.service.conftest import ToyWorker
from tests.service.test_jobs import is_problem


@pytest.fixture
def announced(redis: Redis, fleet: ToyWorker) -> Redis:
    with redis.pipeline() as pipe:
        announce_pipelines(pipe, [DEMO.model_copy(update={"has_sweep": True}), DEMO_UNCOND], [SWEEP])
        pipe.execute()
    return redis


def test_sweep_is_shown_and_not_sent_twice(client: httpx2.Client, announced: Redis) -> None:
    models = {each["id"]: each["has_sweep"] for each in client.get("/v1/models").json()["data"]}
    assert models == {"demo": True, "demo-uncond": False}
    answer = client.get("/v1/models/demo/sweep")
    assert answer.json() == SWEEP.model_dump(mode="json")
    again = client.get("/v1/models/demo/sweep", headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_model_without_a_sweep_and_unknown_model_are_distinguished(client: httpx2.Client, announced: Redis) -> None:
    lacking, unknown = client.get("/v1/models/demo-uncond/sweep"), client.get("/v1/models/none/sweep")
    assert is_problem(lacking, 404)
    assert is_problem(unknown, 404)
    assert [each.json()["type"].rpartition(":")[2] for each in (lacking, unknown)] == ["unknown-sweep", "unknown-model"]


def test_worker_without_the_sweep_takes_it_back(client: httpx2.Client, announced: Redis) -> None:
    """The worker may have other weights, for which the former measurements are not valid."""
    with announced.pipeline() as pipe:
        announce_pipelines(pipe, [DEMO])
        pipe.execute()
    assert is_problem(client.get("/v1/models/demo/sweep"), 404)


def test_unreadable_sweep_is_not_shown(client: httpx2.Client, announced: Redis) -> None:
    announced.hset(keys.SWEEPS, "demo", "{")
    assert is_problem(client.get("/v1/models/demo/sweep"), 404)
