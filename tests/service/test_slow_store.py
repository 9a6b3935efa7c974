"""An image store that does not answer: a FIFO in place of an image, whose readers wait until somebody writes."""

import asyncio
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from pathlib import Path
from threading import Event

import httpx2
import pytest
from redis import Redis

from jobs.contract.caller import ANONYMOUS, Caller, Role
from jobs.contract.errors import ErrorKind, RefusedError
from jobs.redis import keys
from jobs.settings import Settings
from service.fair_threads import FairThreads
from tests.chaos.proxy import StoreProxy
from tests.jobs.samples import png
from tests.service.conftest import ToyWorker, body, running_service
from tests.service.test_jobs import is_problem
from tests.waiting import eventually

DOWNLOADS = 12
STORE_THREADS = 4
IN_PROGRESS = "adm_http_requests_in_progress "
WITHOUT_STORE = ("/readyz", "/healthz", "/livez", "/metrics", "/", "/static/js/api.js", "/v1/jobs", "/v1/models")


Upload = Callable[[int], Future[httpx2.Response]]
Uploading = Callable[[int], AbstractContextManager[Upload]]


@pytest.fixture
def uploading(redis: Redis, service_settings: Settings, bucket: str) -> Uploading:
    """Runs a service whose store is a bucket, with `store_threads` threads; its time limit is longer than the test.

    It yields a function that starts the upload of a grey picture. The periodic cleaning of the store does not run.
    """

    @contextmanager
    def uploading_(store_threads: int) -> Iterator[Upload]:
        variables = {"ADM_STORE": bucket, "ADM_STORE_TIMEOUT_SECONDS": "120", "ADM_STORE_THREADS": str(store_threads)}
        redis.set(keys.STORE_CLEANED, 1)
        with running_service(service_settings, **variables) as (address, _, _), ThreadPoolExecutor(DOWNLOADS) as pool:
            yield lambda grey: pool.submit(httpx2.post, f"{address}/v1/files", content=png(grey), timeout=60)

    return uploading_


@pytest.mark.slow
def test_upload_that_waits_for_the_store_delays_no_other(uploading: Uploading, store_proxy: StoreProxy) -> None:
    with uploading(2) as upload:
        store_proxy.fault, store_proxy.once = "silent", True
        stuck = upload(1)
        assert store_proxy.struck.wait(60)
        try:
            assert upload(2).result(20).status_code == 201
            assert upload(2).result(20).status_code == 201, "it is there already"
            assert not stuck.done()
        finally:
            store_proxy.cut()
        assert stuck.result(20).status_code == 201, "the request is made again"


@pytest.mark.slow
def test_uploads_are_refused_when_the_store_is_stuck(uploading: Uploading, store_proxy: StoreProxy) -> None:
    with uploading(1) as upload:
        store_proxy.fault = "silent"
        stuck = upload(1)
        assert store_proxy.struck.wait(60)
        try:
            for refused in [upload(grey) for grey in range(2, 8)]:
                answer = refused.result(20)
                assert is_problem(answer, 503)
                assert int(answer.headers["Retry-After"]) > 0
            assert not stuck.done()
        finally:
            store_proxy.fault = "none"
            store_proxy.cut()
        assert stuck.result(20).status_code == 201
        assert upload(2).result(20).status_code == 201


@pytest.mark.process
@pytest.mark.slow
def test_downloads_that_wait_for_the_store_delay_nothing_else(service_settings: Settings, worker: ToyWorker) -> None:
    with (
        running_service(service_settings, ADM_STORE_THREADS=str(STORE_THREADS)) as (address, _, _),
        httpx2.Client(base_url=address, timeout=60) as client,
        ThreadPoolExecutor(DOWNLOADS) as pool,
    ):
        job = client.post("/v1/jobs", json=body(), headers={"Prefer": "wait=30"}).json()
        (image,) = worker.images.images(job["id"])
        path = Path(service_settings.store_address) / image.key
        path.unlink()
        os.mkfifo(path)
        url = f"{address}{job['images'][0]['url']}"
        downloads = [pool.submit(httpx2.get, url, timeout=60) for _ in range(DOWNLOADS)]
        try:
            refused = [each.result() for each in islice(as_completed(downloads), DOWNLOADS - STORE_THREADS)]
            # now every thread for store calls is blocked reading the FIFO
            answers = {each: client.get(each).status_code for each in WITHOUT_STORE}
        finally:
            writer = os.open(path, os.O_RDWR)  # the end of the silence
            statuses = [each.result().status_code for each in downloads]
            os.close(writer)
        assert answers == dict.fromkeys(WITHOUT_STORE, 200)
        assert statuses.count(200) == STORE_THREADS
        assert all(is_problem(each, 503) and int(each.headers["Retry-After"]) > 0 for each in refused)


@pytest.mark.process
@pytest.mark.slow
def test_sheets_that_wait_for_each_other_read_no_images_yet(service_settings: Settings, worker: ToyWorker) -> None:
    """Sixty sheets that are asked for at once would have the PNGs of all their cells in memory."""
    with (
        running_service(service_settings, ADM_STORE_THREADS=str(STORE_THREADS)) as (address, _, _),
        httpx2.Client(base_url=address, timeout=60) as client,
        ThreadPoolExecutor(DOWNLOADS) as pool,
    ):
        grid = {"class_label": "torus", "x": {"field": "steps", "values": [2, 3]}}
        made = client.post("/v1/grids", json=grid, headers={"Prefer": "wait=60"}).json()
        first, second = (each["job"] for each in made["cells"])
        (image,) = worker.images.images(first["id"])
        path = Path(service_settings.store_address) / image.key
        path.unlink()
        os.mkfifo(path)
        sheets = [pool.submit(httpx2.get, f"{address}{made['sheet_url']}", timeout=60) for _ in range(DOWNLOADS)]
        try:
            eventually(lambda: in_progress(client) > DOWNLOADS, "all sheets have been asked for")
            other = client.get(second["images"][0]["url"])
        finally:
            writer = os.open(path, os.O_RDWR)  # the end of the silence
            statuses = {each.result().status_code for each in sheets}
            os.close(writer)
        assert other.status_code == 200, "a thread of the store is free"
        assert statuses == {404}, "the image is empty"


def in_progress(client: httpx2.Client) -> float:
    """The number of requests that the service is answering, including this one."""
    (line,) = (each for each in client.get("/metrics").text.splitlines() if each.startswith(IN_PROGRESS))
    return float(line.removeprefix(IN_PROGRESS))


def test_call_of_the_store_is_refused_when_too_many_wait_and_when_none_ends_in_time() -> None:
    async def scenario() -> list[str]:
        calls, released = FairThreads(1, "busy", max_waiting=1, patience_seconds=0.2), Event()
        first = asyncio.create_task(calls.run(lambda: released.wait(30), ANONYMOUS))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(calls.run(lambda: True, ANONYMOUS))
        await asyncio.sleep(0)
        errors = []
        for refused in (calls.run(lambda: True, ANONYMOUS), waiting):
            with pytest.raises(RefusedError) as caught:
                await refused
            assert caught.value.kind is ErrorKind.UNAVAILABLE
            errors.append(str(caught.value))
        released.set()
        assert await first
        assert await calls.run(lambda: "goes on", ANONYMOUS) == "goes on"
        return errors

    assert asyncio.run(scenario()) == ["busy"] * 2


def test_calls_of_one_caller_neither_go_before_anothers_nor_take_all_places() -> None:
    ann, bob = (Caller(name, Role.USER) for name in ("ann", "bob"))
    order: list[str] = []

    async def scenario() -> int:
        calls, released = FairThreads(1, "busy", max_waiting=4, patience_seconds=60), Event()
        first = asyncio.create_task(calls.run(lambda: released.wait(60), ann))
        await asyncio.sleep(0)
        tasks = [asyncio.create_task(calls.run(lambda: order.append("ann"), ann)) for _ in range(4)]
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(calls.run(lambda: order.append("bob"), bob)))
        await asyncio.sleep(0)
        released.set()
        await first
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        return sum(isinstance(each, RefusedError) for each in ended)

    assert asyncio.run(scenario()) == 1, "one caller may have three of four places"
    assert order == ["ann", "bob", "ann", "ann"]
