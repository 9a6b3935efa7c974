"""The service under many callers at once, and while Redis hangs."""

import asyncio
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import psutil
import pytest

from jobs.queue.events import Preview, publish_preview
from jobs.settings import Settings
from tests.conftest import RedisServer, running_redis
from tests.jobs.samples import png
from tests.service.conftest import ToyWorker, body, running_service

STREAMS = 500
WITHOUT_REDIS = ("/", "/static/js/main.js", "/docs", "/openapi.json", "/livez")


async def open_stream(address: str, job_id: str) -> tuple[str, asyncio.StreamReader, asyncio.StreamWriter]:
    """The status line of a job's stream of events, and the stream behind it."""
    host, port = address.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    await writer.drain()
    return (await reader.readline()).decode(), reader, writer


@pytest.mark.slow
def test_streams_that_open_at_once_are_all_served_and_all_get_the_end(
    address: str, client: httpx2.Client, fleet: ToyWorker
) -> None:
    job_id = client.post("/v1/jobs", json=body()).json()["id"]

    async def scenario() -> tuple[set[str], list[bytes]]:
        opened = await asyncio.gather(*(open_stream(address, job_id) for _ in range(STREAMS)))
        await asyncio.to_thread(fleet.release)
        rests = await asyncio.gather(*(reader.readuntil(b"event: completed") for _, reader, _ in opened))
        for _, _, writer in opened:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for _, _, writer in opened))
        return {line for line, _, _ in opened}, rests

    lines, rests = asyncio.run(scenario())
    assert lines == {"HTTP/1.1 200 OK\r\n"}
    assert len(rests) == STREAMS


@pytest.mark.process
@pytest.mark.slow
def test_readers_that_do_not_read_cost_little_memory_and_are_cut_off(redis_server: RedisServer, tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, redis_url=redis_server.address, fleet_refresh_seconds=0)
    with running_service(settings, ADM_CLIENT_SECONDS="5") as (address, process, lines):
        service = psutil.Process(process.pid)
        with redis_server.client() as redis, httpx2.Client(base_url=address, timeout=60) as client:
            redis.flushall()
            worker = ToyWorker(redis, settings)
            worker.hold()
            job_id = client.post("/v1/jobs", json=body(n=8)).json()["id"]

            async def scenario() -> int:
                opened = await asyncio.gather(*(open_stream(address, job_id) for _ in range(10)))
                before = service.memory_info().rss
                picture = png(1) + os.urandom(200_000)
                for step in range(60):
                    publish_preview(redis, job_id, Preview(step % 2, "base", step, 60, picture))
                    await asyncio.sleep(0.01)
                growth = service.memory_info().rss - before
                while sum("slow_reader" in each for each in lines) < len(opened):
                    await asyncio.sleep(0.05)
                for _, _, writer in opened:
                    writer.close()
                return growth

            growth = asyncio.run(scenario())
            worker.stop()
    assert growth < 60 << 20  # 160 MB if each reader has its own unread events


@pytest.mark.process
@pytest.mark.slow
def test_page_and_metrics_do_not_wait_behind_calls_of_a_redis_that_hangs(tmp_path: Path) -> None:
    with running_redis() as server:
        settings = Settings(data=tmp_path, redis_url=server.address, fleet_refresh_seconds=0)
        with running_service(settings) as (address, _, _), httpx2.Client(base_url=address, timeout=60) as client:
            assert client.get("/readyz").status_code == 200
            for path in WITHOUT_REDIS:  # the first answers are the slow ones
                client.get(path)
            server.send_signal(signal.SIGSTOP)
            try:
                with ThreadPoolExecutor(20) as pool:
                    hanging = [pool.submit(httpx2.get, f"{address}/v1/workers", timeout=60) for _ in range(16)]
                    time.sleep(0.5)
                    for path in WITHOUT_REDIS:
                        assert client.get(path).status_code == 200
                    assert not any(each.done() for each in hanging)
                    metrics, ready = (pool.submit(client.get, path) for path in ("/metrics", "/readyz"))
                    assert "adm_redis_up 0.0" in metrics.result().text
                    assert ready.result().status_code == 503
                    assert {each.result().status_code for each in hanging} == {503}
                    server.send_signal(signal.SIGCONT)
            finally:
                server.send_signal(signal.SIGCONT)
