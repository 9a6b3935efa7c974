"""/v1/queue and /v1/caller: operators see the queue by pipeline and caller, and every caller its own name and role."""

import httpx2
import pytest
from redis import Redis

from jobs.callers.keyring import KeyRecord, KeyStore
from jobs.contract.caller import Role
from jobs.contract.job import JobStatus
from jobs.queue.job_queue import JobQueue
from jobs.redis import keys
from jobs.settings import Settings
from jobs.storage.images import ImageStore
from jobs.views.load import MOST_CALLERS
from tests.service.conftest import MakeKey, ToyWorker, body
from tests.service.test_jobs import is_problem


def hold_claimed(client: httpx2.Client, headers: dict[str, str] | None = None) -> str:
    """A job of 64 images in flight, so that the worker takes no more."""
    job_id = str(client.post("/v1/jobs", json=body(n=64), headers=headers).json()["id"])
    while client.get(f"/v1/jobs/{job_id}", headers=headers).json()["status"] != "in_progress":
        pass
    return job_id


def test_operator_sees_the_queue_by_caller_and_pipeline(
    client: httpx2.Client, fleet: ToyWorker, make_key: MakeKey, redis: Redis
) -> None:
    earlier = client.post("/v1/jobs", json=body(n=64)).json()["id"]
    while client.get(f"/v1/jobs/{earlier}").json()["status"] != "in_progress":
        pass
    ann, bob, root = make_key("ann"), make_key("bob"), make_key("root", Role.OPERATOR)
    make_key("idle")
    for _ in range(3):
        client.post("/v1/jobs", json=body(priority="high"), headers=ann)
    client.post("/v1/jobs", json=body(model="demo-uncond", class_label=None, guidance_scale=0), headers=ann)
    client.post("/v1/jobs", json=body(), headers=bob)
    KeyStore(redis).revoke("bob")
    load = client.get("/v1/queue", headers=root).raise_for_status().json()
    seen = {each["name"]: (each["queued"], each["in_progress"], each["queued_by_pipeline"]) for each in load["callers"]}
    assert seen == {
        "ann": (4, 0, {"demo": 3, "demo-uncond": 1}),
        "bob": (1, 0, {"demo": 1}),
        None: (0, 1, {}),
    }
    assert load["callers"][0]["id"] in ann["Authorization"]
    assert {each["id"]: (each["queued"], each["workers"]) for each in load["pipelines"]} == {
        "demo": (4, 1),
        "demo-uncond": (1, 1),
    }
    assert load["pipelines"][0]["queued_seconds"] > 0
    assert (load["in_progress"], load["callers_left_out"], load["ended_in_last_minute"]) == (1, 0, 0)
    client.post(f"/v1/jobs/{earlier}/cancel", headers=root)
    client.get(f"/v1/jobs/{earlier}?wait=30", headers=root)
    assert client.get("/v1/queue", headers=root).json()["ended_in_last_minute"] == 1


def test_without_keys_everybody_sees_the_queue(client: httpx2.Client, fleet: ToyWorker) -> None:
    hold_claimed(client)
    client.post("/v1/jobs", json=body())
    (caller,) = client.get("/v1/queue").json()["callers"]
    assert caller == {"id": None, "name": None, "queued": 1, "in_progress": 1, "queued_by_pipeline": {"demo": 1}}


def test_workers_are_shown_by_what_they_measured(client: httpx2.Client, fleet: ToyWorker, redis: Redis) -> None:
    images = '# TYPE adm_images counter\nadm_images_total{pipeline="demo"} 3.0\nadm_images_total{pipeline="b"} 4.0\n'
    occupancy = "# TYPE adm_batch_occupancy gauge\nadm_batch_occupancy 0.5\n"
    nothing = {"name": "cpu-0", "images_completed": 0, "batch_occupancy": None}
    for text, shown in (
        (images + occupancy, {"name": "cpu-0", "images_completed": 7, "batch_occupancy": 0.5}),
        (images.replace("4.0", "NaN"), nothing | {"images_completed": 3}),
        (images.replace("3.0", "Inf"), nothing),
        ("garbage {", nothing),
    ):
        redis.set("adm:worker-metrics:cpu-0", text)
        assert client.get("/v1/queue").json()["workers"] == [shown]


def test_callers_with_fewest_jobs_are_left_out_and_counted(
    redis: Redis, settings: Settings, client: httpx2.Client
) -> None:
    queue = JobQueue(redis, settings, ImageStore(settings.store_address))
    callers = [
        KeyRecord(id=f"{number:012x}", name=f"c{number}", role=Role.USER, sha256="", created_at=0)
        for number in range(MOST_CALLERS + 2)
    ]
    for number, each in enumerate(callers):
        for place in range(number + 1):
            redis.zadd(keys.index(JobStatus.QUEUED, each.id), {keys.index_member(place, "job"): 0})
    load = queue.loads.read(callers, queue.ledger.now())
    assert [each.queued for each in load.callers] == list(range(MOST_CALLERS + 2, 2, -1))
    assert load.callers_left_out == 2


@pytest.mark.parametrize("path", ["/v1/queue", "/v1/workers"])
def test_user_sees_nothing_of_the_queue_of_others(client: httpx2.Client, make_key: MakeKey, path: str) -> None:
    ann, scraper = make_key("ann"), make_key("scraper", Role.METRICS)
    for headers, status in ((ann, 403), (scraper, 403), ({}, 401)):
        assert is_problem(client.get(path, headers=headers), status)


def test_caller_reads_its_name_and_role(client: httpx2.Client, make_key: MakeKey) -> None:
    assert client.get("/v1/caller").json() == {"object": "caller", "id": None, "name": None, "role": "operator"}
    ann = make_key("ann")
    view = client.get("/v1/caller", headers=ann).json()
    assert (view["name"], view["role"]) == ("ann", "user")
    assert view["id"] in ann["Authorization"]
