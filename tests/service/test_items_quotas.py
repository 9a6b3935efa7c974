"""Items evade no quota: each is charged as a job by itself would be."""

from collections.abc import Iterator

import httpx2
import pytest

from jobs.settings import Settings
from tests.service.conftest import MakeKey, ToyWorker, running_service
from tests.service.test_items import items
from tests.service.test_jobs import is_problem

pytestmark = pytest.mark.process

QUOTAS = {"ADM_QUOTA_POSTS": "6", "ADM_QUOTA_DEVICE_SECONDS": "3", "ADM_QUOTA_QUEUED_SECONDS": "2"}


@pytest.fixture(scope="module")
def address(service_settings: Settings) -> Iterator[str]:
    with running_service(service_settings, **QUOTAS) as (address, _, _):
        yield address


def test_each_item_counts_as_a_post(client: httpx2.Client, fleet: ToyWorker, make_key: MakeKey) -> None:
    ann = make_key("ann")
    cheap = {"class_label": 1, "steps": 1, "upsample": False}
    assert client.post("/v1/jobs", json=items(*[cheap] * 4), headers=ann).status_code == 202
    refused = client.post("/v1/jobs", json=items(*[cheap] * 3), headers=ann)
    assert is_problem(refused, 429)
    assert refused.headers["ratelimit"].startswith('"posts";r=2;')
    assert client.post("/v1/jobs", json=items(*[cheap] * 2), headers=ann).status_code == 202
    assert is_problem(client.post("/v1/jobs", json=cheap, headers=ann), 429)
    assert len(client.get("/v1/jobs", headers=ann).json()["data"]) == 6
    too_many = client.post("/v1/jobs", json=items(*[cheap] * 7), headers=ann)
    assert is_problem(too_many, 429)
    assert too_many.json()["detail"].startswith("the 7 calls of this request alone exceed the quota of 6 a minute")


def test_items_together_are_counted_against_quotas_of_work(
    client: httpx2.Client, fleet: ToyWorker, make_key: MakeKey
) -> None:
    ann = make_key("ann")
    costly = {"class_label": 1, "steps": 20, "n": 16, "upsample": False}  # 1.6 s of a device
    refused = client.post("/v1/jobs", json=items(costly, costly), headers=ann)
    assert is_problem(refused, 429)
    assert refused.headers["ratelimit-policy"] == '"queued-device-seconds";q=2'
    assert client.get("/v1/jobs", headers=ann).json()["data"] == []
    assert client.post("/v1/jobs", json=items(costly), headers=ann).status_code == 202


def test_items_together_are_counted_against_the_quota_of_device_seconds(
    client: httpx2.Client, fleet: ToyWorker, make_key: MakeKey
) -> None:
    fleet.release()
    ann = make_key("ann")
    costly = {"class_label": 1, "steps": 10, "n": 16, "upsample": False}  # 0.8 s of a device
    wait = ann | {"Prefer": "wait=30"}
    assert client.post("/v1/jobs", json=items(costly, costly), headers=wait).status_code == 200
    refused = client.post("/v1/jobs", json=items(costly, costly), headers=ann)
    assert is_problem(refused, 429)
    assert refused.headers["ratelimit-policy"] == '"device-seconds";q=3;w=60'
    assert len(client.get("/v1/jobs", headers=ann).json()["data"]) == 2
    assert client.post("/v1/jobs", json=items(costly), headers=wait).status_code == 200, "nothing was charged for it"
