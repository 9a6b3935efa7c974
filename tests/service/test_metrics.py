"""The metrics of the service, its queue and its store in `/metrics`."""

import time
from pathlib import Path

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from jobs.contract.errors import UnavailableError
from jobs.storage.store import ObjectStore
from tests.service.conftest import ToyWorker, body
from tests.waiting import eventually


def samples(client: httpx2.Client, name: str) -> dict[frozenset[tuple[str, str]], float]:
    """The values of one metric by their labels."""
    families = text_string_to_metric_families(client.get("/metrics").raise_for_status().text)
    return {frozenset(each.labels.items()): each.value for f in families for each in f.samples if each.name == name}


def labels(**given: str) -> frozenset[tuple[str, str]]:
    return frozenset(given.items())


def in_progress(client: httpx2.Client) -> float:
    """Requests that are being answered, the one that asks for this excepted."""
    return samples(client, "adm_http_requests_in_progress")[labels()] - 1


@pytest.mark.slow
def test_age_of_the_job_that_is_next_grows_and_ends_with_the_queue(client: httpx2.Client, fleet: ToyWorker) -> None:
    line, other = labels(pipeline="demo", priority="normal"), labels(pipeline="demo", priority="high")
    claimed = client.post("/v1/jobs", json=body(n=64, upsample=False)).raise_for_status().headers["Location"]
    while client.get(claimed).json()["status"] != "in_progress":
        time.sleep(0.01)
    client.post("/v1/jobs", json=body(n=64, upsample=False)).raise_for_status()  # there is no room for it
    ages = samples(client, "adm_queue_head_age_seconds")
    assert ages[other] == 0
    assert ages[line] > 0
    eventually(lambda: samples(client, "adm_queue_head_age_seconds")[line] > ages[line], "the age grows")
    fleet.release()
    while samples(client, "adm_queue_head_age_seconds")[line]:
        time.sleep(0.05)


def test_calls_of_the_store_are_measured_by_operation_and_outcome(client: httpx2.Client, worker: ToyWorker) -> None:
    job = client.post("/v1/jobs", json=body(), headers={"Prefer": "wait=30"}).json()
    client.get(job["images"][0]["url"]).raise_for_status()
    assert samples(client, "adm_store_seconds_count")[labels(operation="get", outcome="ok")] >= 1


def test_lost_object_counts_as_missing_and_not_as_a_failure_of_the_store(tmp_path: Path) -> None:
    seen: list[tuple[str, str]] = []
    store = ObjectStore(str(tmp_path), observe=lambda operation, outcome, seconds: seen.append((operation, outcome)))
    store.put("a/b", b"x")
    store.get("a/b")
    store.has("a/c")
    with pytest.raises(FileNotFoundError):
        store.get("a/c")
    store.delete(["a/b"])
    assert seen == [("put", "ok"), ("get", "ok"), ("has", "missing"), ("get", "missing"), ("delete", "ok")]


def test_request_that_is_being_answered_is_counted_until_it_is(client: httpx2.Client, fleet: ToyWorker) -> None:
    job = client.post("/v1/jobs", json=body()).json()
    with client.stream("GET", f"/v1/jobs/{job['id']}/events") as stream:
        chunks = stream.iter_raw()
        next(chunks)
        assert in_progress(client) >= 1
    while in_progress(client):
        time.sleep(0.05)


def test_store_that_does_not_take_an_image_counts_as_failed(tmp_path: Path) -> None:
    seen: list[tuple[str, str]] = []
    store = ObjectStore(str(tmp_path), observe=lambda operation, outcome, seconds: seen.append((operation, outcome)))
    (tmp_path / "a").write_bytes(b"a file where a folder is to be")
    with pytest.raises(UnavailableError):
        store.put("a/b", b"x")
    assert seen == [("put", "failed")]
