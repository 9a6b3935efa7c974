import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread
from typing import NamedTuple

import httpx2
import pytest
from redis import Redis

from jobs.settings import Settings
from tests.conftest import RedisServer
from tests.service.conftest import ToyWorker, body, running_service, wait_followed


@contextmanager
def once_followed(redis: Redis, job_id: str, act: Callable[[], object]) -> Iterator[None]:
    """Call `act` as soon as the service has subscribed to the job for the stream that the block reads."""

    def wait_and_act() -> None:
        wait_followed(redis, job_id)
        act()

    acting = Thread(target=wait_and_act)
    acting.start()
    yield
    acting.join()


class Received(NamedTuple):
    id: str
    kind: str
    data: dict[str, object]


def read_events(client: httpx2.Client, job_id: str, last_id: str | None = None) -> Iterator[Received]:
    """Events of a stream until the service closes it."""
    headers = {} if last_id is None else {"Last-Event-ID": last_id}
    with client.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        fields: dict[str, str] = {}
        for line in response.iter_lines():
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
            else:
                if "event" in fields:
                    yield Received(fields["id"], fields["event"], json.loads(fields["data"]))
                fields = {}


def test_stream_sends_all_events_and_closes_after_the_last(
    client: httpx2.Client, fleet: ToyWorker, redis: Redis
) -> None:
    job_id = client.post("/v1/jobs", json=body(n=2, previews=True)).json()["id"]
    with once_followed(redis, job_id, fleet.release):
        events = list(read_events(client, job_id))
    kinds = [each.kind for each in events]
    assert [each for each in kinds if each != "preview"] == [
        "queued",
        "started",
        "progress",
        "image",
        "image",
        "completed",
    ]
    assert kinds.count("preview") == 1
    assert kinds.index("queued") < kinds.index("preview") < kinds.index("image")
    assert all(each.id for each in events)
    assert events[1].data["attempt"] == 1
    assert events[-1].data["status"] == "completed"
    assert client.get(f"/v1/jobs/{job_id}").json() == events[-1].data
    image = next(each for each in events if each.kind == "image")
    assert client.get(str(image.data["url"])).headers["etag"] == f'"{image.data["sha256"]}"'


def test_what_was_missed_is_replayed_but_for_previews(client: httpx2.Client, worker: ToyWorker) -> None:
    job_id = client.post("/v1/jobs", json=body(previews=True), headers={"Prefer": "wait=30"}).json()["id"]
    events = list(read_events(client, job_id))
    assert [each.kind for each in events] == ["queued", "started", "progress", "image", "completed"]
    for place, event in enumerate(events[:-1]):
        assert list(read_events(client, job_id, event.id)) == events[place + 1 :]
    assert list(read_events(client, job_id, "nonsense")) == events


def test_reconnecting_after_the_last_event_is_answered_204(client: httpx2.Client, worker: ToyWorker) -> None:
    job_id = client.post("/v1/jobs", json=body(), headers={"Prefer": "wait=30"}).json()["id"]
    last = list(read_events(client, job_id))[-1]
    response = client.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": last.id})
    assert response.status_code == 204


def test_deleted_job_ends_its_stream(client: httpx2.Client, fleet: ToyWorker, redis: Redis) -> None:
    job_id = client.post("/v1/jobs", json=body()).json()["id"]
    with once_followed(redis, job_id, lambda: client.delete(f"/v1/jobs/{job_id}")):
        last = list(read_events(client, job_id))[-1]
    assert (last.kind, last.data["deleted"]) == ("cancelled", True)


def test_cancelled_job_ends_its_stream(client: httpx2.Client, worker: ToyWorker) -> None:
    worker.stop()
    cancelled = client.post("/v1/jobs", json=body()).json()["id"]
    client.post(f"/v1/jobs/{cancelled}/cancel")
    assert [each.kind for each in read_events(client, cancelled)] == ["queued", "cancelled"]


@pytest.mark.slow
def test_job_that_nobody_starts_expires(client: httpx2.Client, worker: ToyWorker) -> None:
    worker.stop()
    job_id = client.post("/v1/jobs", json=body(expires_in=1)).json()["id"]
    assert [each.kind for each in read_events(client, job_id)] == ["queued", "expired"]
    assert client.get(f"/v1/jobs/{job_id}").json()["status"] == "expired"


@pytest.mark.process
@pytest.mark.slow
def test_events_outlive_the_service(
    redis_server: RedisServer, client: httpx2.Client, worker: ToyWorker, service_settings: Settings
) -> None:
    job_id = client.post("/v1/jobs", json=body(), headers={"Prefer": "wait=30"}).json()["id"]
    events = list(read_events(client, job_id))
    with running_service(service_settings) as (address, _, _), httpx2.Client(base_url=address, timeout=60) as other:
        assert list(read_events(other, job_id, events[1].id)) == events[2:]


def test_many_streams_of_one_job_share_a_subscription(client: httpx2.Client, fleet: ToyWorker, redis: Redis) -> None:
    job_id = client.post("/v1/jobs", json=body()).json()["id"]
    ends: list[str] = []
    threads = [Thread(target=lambda: ends.append(list(read_events(client, job_id))[-1].kind)) for _ in range(20)]
    for each in threads:
        each.start()
    wait_followed(redis, job_id)
    fleet.release()
    for each in threads:
        each.join()
    assert ends == ["completed"] * 20
