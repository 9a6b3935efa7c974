"""Compares the service's HTTP with a bare FastAPI route: python -m bench.http [--requests N] [--streams N] [--keys].

A real service process on a real Redis, announced pipelines whose workers claim nothing, and 32 connections of another
process, each of which sends its next request after the last answer. One row instead sends PACE POSTs per second,
evenly, and measures latency from the due time. The bare routes are FastAPI's own, on the same server and loop: they
read the same body as JSON, answer with as many bytes, and do nothing else. Rates and latencies depend on other load of
the machine; processor time per request of the serving process depends little on it. With --keys all requests are of one
caller with a key, and all quotas are on. Libraries that only tests install are hidden from it (bench/deployed), so that
its memory is that of a deployed service. Writes bench/results/http.json, or http_keys.json.
"""

import argparse
import asyncio
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import quantiles
from typing import Any, NamedTuple

import psutil
import uvicorn
from fastapi import FastAPI, Request, Response

from bench.machine import machine
from jobs.callers.keyring import KeyStore
from jobs.contract.caller import Role
from jobs.queue.announcements import announce_pipelines, announce_worker
from jobs.settings import Settings
from standalone.embedded import with_free_port
from tests.conftest import RedisServer, running_redis
from tests.jobs.samples import DEMO, DEMO_UNCOND, worker_info
from tests.service.conftest import ROOT, running_service
from tests.warm import start_cold

RESULTS = Path(__file__).parent / "results"
DEPLOYED = str(Path(__file__).parent / "deployed")
CONNECTIONS = 32
PACE = 500  # POSTs a second: the goal
WARM_UP = 200  # requests before the measured ones
BODY = json.dumps({"class_label": "torus", "guidance_scale": 2.5, "steps": 25}).encode()
MANY = str(10**9)
QUOTAS = {"ADM_QUOTA_POSTS": MANY, "ADM_QUOTA_DEVICE_SECONDS": MANY, "ADM_QUOTA_QUEUED_SECONDS": MANY}
HEADERS = "Host: localhost\r\nContent-Type: application/json\r\n"


class Answers(NamedTuple):
    """The answers to a load of requests; latencies in seconds."""

    seconds: float
    latencies: list[float]
    statuses: set[int]
    bodies: list[bytes]


def request(method: str, path: str, body: bytes = b"") -> bytes:
    return f"{method} {path} HTTP/1.1\r\n{HEADERS}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def send_all(port: int, requests: list[bytes], pace: float | None = None) -> Answers:
    """Send requests over CONNECTIONS, each after the last answer, or `pace` per second."""
    waiting = iter(enumerate(requests))
    latencies: list[float] = []
    statuses: set[int] = set()
    bodies: list[bytes] = []

    async def connection() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number, each in waiting:
            if pace is not None:
                await asyncio.sleep(start + number / pace - time.perf_counter())
            began = time.perf_counter() if pace is None else start + number / pace
            writer.write(each)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
            bodies.append(await reader.readexactly(length))
            latencies.append(time.perf_counter() - began)
            statuses.add(int(head.split()[1]))
        writer.close()

    start = time.perf_counter()
    await asyncio.gather(*(connection() for _ in range(CONNECTIONS)))
    return Answers(time.perf_counter() - start, latencies, statuses, bodies)


def send_in_this_process(port: int, requests: list[bytes], pace: float | None) -> Answers:
    return asyncio.run(send_all(port, requests, pace))


class Load:
    """Sends requests to a server from a process of its own."""

    def __init__(self, pool: "multiprocessing.pool.Pool", port: int, pid: int, header: bytes = b"") -> None:
        self._pool, self._port, self._process, self._header = pool, port, psutil.Process(pid), header

    def signed(self, request: bytes) -> bytes:
        """A request with the header of its caller."""
        return request.replace(b"\r\n", b"\r\n" + self._header, 1)

    def send(self, requests: list[bytes], pace: float | None = None) -> tuple[dict[str, float], list[bytes]]:
        """The figures of the requests, and the bodies of the answers."""
        before = sum(self._process.cpu_times()[:2])
        signed = [self.signed(each) for each in requests]
        answers = self._pool.apply(send_in_this_process, (self._port, signed, pace))
        used = sum(self._process.cpu_times()[:2]) - before
        assert max(answers.statuses) < 300, answers.statuses
        percentiles = quantiles(answers.latencies, n=100)
        measured = {
            "per_second": round(len(requests) / answers.seconds, 1),
            "p50_ms": round(percentiles[49] * 1000, 2),
            "p99_ms": round(percentiles[98] * 1000, 2),
            "processor_ms": round(used / len(requests) * 1000, 3),
        }
        return measured, answers.bodies

    def memory_mb(self) -> float:
        return round(self._process.memory_info().rss / 1e6, 1)


def bare_app() -> FastAPI:
    """Routes that only do what every route does; the path gives the number of bytes to answer."""
    app = FastAPI()

    @app.post("/{size}", status_code=202)
    async def post(size: int, request: Request) -> Response:
        await request.json()
        return Response(b" " * size, 202, media_type="application/json")

    @app.get("/{size}")
    async def get(size: int) -> Response:
        return Response(b" " * size, media_type="application/json")

    return app


@contextmanager
def bare_server() -> Iterator[tuple[int, int]]:
    """The bare routes in a process of their own: its port and pid."""
    port = with_free_port(Settings(port=0)).port
    process = subprocess.Popen([sys.executable, "-m", "bench.http", "--serve-bare", str(port)], cwd=ROOT)
    try:
        while not psutil.Process(process.pid).net_connections("tcp"):
            time.sleep(0.05)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait()


def compare(service: Load, bare: Load, num_requests: int) -> dict[str, Any]:
    """Measure each call of the service, and a bare route with equally large request and answer."""
    rows: dict[str, Any] = {}

    def row(
        name: str, requests: list[bytes], method: str = "GET", body: bytes = b"", pace: float | None = None
    ) -> list[bytes]:
        found, bodies = service.send(requests, pace)
        plain, _ = bare.send([request(method, f"/{len(bodies[0])}", body)] * len(requests))
        times = round(found["processor_ms"] / plain["processor_ms"], 2)
        rows[name] = found | {"bare": plain, "times_the_processor_time_of_bare": times}
        return bodies

    service.send([request("POST", "/v1/jobs", BODY)] * WARM_UP)
    bare.send([request("POST", "/1", BODY)] * WARM_UP)
    posted = row("POST /v1/jobs", [request("POST", "/v1/jobs", BODY)] * num_requests, "POST", BODY)
    row(f"POST /v1/jobs, {PACE} a second", [request("POST", "/v1/jobs", BODY)] * num_requests, "POST", BODY, pace=PACE)
    ids = [json.loads(each)["id"] for each in posted]
    row("GET /v1/jobs/{id}, queued", [request("GET", f"/v1/jobs/{each}") for each in ids])
    row("GET /v1/jobs, 20 of them", [request("GET", "/v1/jobs")] * (num_requests // 4))
    row("POST /v1/jobs/{id}/cancel", [request("POST", f"/v1/jobs/{each}/cancel") for each in ids], "POST", b"{}")
    row("GET /v1/jobs/{id}, ended", [request("GET", f"/v1/jobs/{each}") for each in ids])
    row("GET /livez", [request("GET", "/livez")] * num_requests)
    return rows


async def open_streams(port: int, num_streams: int, service: Load) -> dict[str, float]:
    """Open streams of one job at the same time, and cancel it; measure the time until all have the event."""
    posted = await send_all(port, [service.signed(request("POST", "/v1/jobs", BODY))])
    job_id = json.loads(posted.bodies[0])["id"]
    idle_mb, began = service.memory_mb(), time.perf_counter()

    async def stream() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(service.signed(request("GET", f"/v1/jobs/{job_id}/events")))
        assert b" 200 " in await reader.readline()
        await reader.readuntil(b"event: queued")
        return reader, writer

    streams = await asyncio.gather(*(stream() for _ in range(num_streams)))
    opened, open_mb = time.perf_counter(), service.memory_mb()
    await send_all(port, [service.signed(request("POST", f"/v1/jobs/{job_id}/cancel"))])
    await asyncio.gather(*(reader.readuntil(b"event: cancelled") for reader, _ in streams))
    heard = time.perf_counter()
    for _, writer in streams:
        writer.close()
    return {
        "streams": num_streams,
        "seconds_to_open": round(opened - began, 2),
        "seconds_until_all_heard_the_end": round(heard - opened, 2),
        "idle_mb": idle_mb,
        "open_mb": open_mb,
    }


def announce(server: RedisServer) -> None:
    with server.client() as redis, redis.pipeline() as pipe:
        announce_pipelines(pipe, [DEMO, DEMO_UNCOND])
        announce_worker(pipe, worker_info(), "", lease_seconds=3600)
        pipe.execute()


def header_of_key(server: RedisServer) -> bytes:
    with server.client() as redis:
        return f"Authorization: Bearer {KeyStore(redis).create('bench', Role.USER).key}\r\n".encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--keys", action="store_true")
    parser.add_argument("--serve-bare", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve_bare:
        config = uvicorn.Config(bare_app(), port=given.serve_bare, loop="uvloop", log_config=None, access_log=False)
        uvicorn.Server(config).run()
        return
    with tempfile.TemporaryDirectory() as data, running_redis() as server, multiprocessing.Pool(1) as pool:
        settings = Settings(data=Path(data), redis_url=server.address, queue_limit_seconds=1e9, max_queued_jobs=10**6)
        announce(server)
        quotas, header = (QUOTAS, header_of_key(server)) if given.keys else ({}, b"")
        with (
            running_service(settings, start_cold, PYTHONPATH=DEPLOYED, **quotas) as (address, process, _),
            bare_server() as (bare_port, bare_pid),
        ):
            port = int(address.rpartition(":")[2])
            service, bare = Load(pool, port, process.pid, header), Load(pool, bare_port, bare_pid)
            streams = asyncio.run(open_streams(port, given.streams, service))
            rows = compare(service, bare, given.requests)
            found = {"rows": rows, "streams": streams, "memory_after_all_mb": service.memory_mb()}
    (RESULTS / ("http_keys.json" if given.keys else "http.json")).write_text(
        json.dumps(machine() | {"connections": CONNECTIONS, "found": found}, indent=1) + "\n"
    )
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
