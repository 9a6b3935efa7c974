"""Measures whether a service grows in long use: python -m bench.soak [--minutes 10].

A real service with keys and all quotas on, a real Redis, a worker whose network is a grey pixel, and two callers. They
post jobs, follow events, fetch images and thumbnails, list, cancel, delete, and disconnect during streams. Ended jobs
are kept for 20 s. Memory, open files, threads and the keys in Redis are read every five seconds; the first fifth of the
run is a warm-up. Writes bench/results/soak.json.
"""

import argparse
import asyncio
import contextlib
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import httpx2
import psutil
from redis import Redis

from adm_client import AsyncClient, RefusedError
from bench.http import QUOTAS, RESULTS
from bench.machine import machine
from jobs import logs
from jobs.callers.keyring import KeyStore
from jobs.contract.caller import Role
from jobs.settings import Settings
from tests.conftest import running_redis
from tests.service.conftest import ToyWorker, running_service
from tests.warm import start_cold

KEPT_SECONDS = 20
SAMPLE_SECONDS = 5.0
USERS = 8  # at once, of each caller
MEASURED = ("rss_mb", "files", "threads", "redis_keys", "redis_mb")


async def use(address: str, key: str, until: float, done: Counter[str]) -> None:
    """Act as one user: one job after another, each in another way."""
    async with AsyncClient(address, key) as client, httpx2.AsyncClient(base_url=address) as plain:
        plain.headers["Authorization"] = f"Bearer {key}"
        while time.monotonic() < until:
            job = await client.submit(class_label="torus", steps=10, n=2)
            way = sum(done.values()) % 6
            if way == 0:
                with contextlib.suppress(RefusedError):  # the job has ended already
                    await job.cancel()
                done["cancelled"] += 1
            elif way == 1:  # disconnects after the first bytes of a stream
                async with plain.stream("GET", f"/v1/jobs/{job.id}/events") as answer:
                    await anext(answer.aiter_raw(64))
                done["hung up"] += 1
            elif way == 2:
                async for _ in job:
                    pass
                done["followed"] += 1
            else:
                await job.wait()
                await job.png(1)
                await plain.get(f"/v1/jobs/{job.id}/images/0", params={"size": 64}, headers={"Accept": "image/webp"})
                await plain.get("/v1/jobs", params={"limit": 5})
                done["fetched"] += 1
                if way == 5:
                    await job.delete()
                    done["deleted"] += 1
            await asyncio.sleep(0.05)


def sample(process: psutil.Process, redis: Redis) -> dict[str, float]:
    info: Any = redis.info("memory")
    keys: Any = redis.dbsize()
    return {
        "rss_mb": round(process.memory_info().rss / 1e6, 1),
        "files": process.num_fds(),
        "threads": process.num_threads(),
        "redis_keys": keys,
        "redis_mb": round(info["used_memory"] / 1e6, 2),
    }


async def soak(address: str, keys: list[str], process: psutil.Process, redis: Redis, seconds: float) -> Any:
    done, samples, until = Counter[str](), list[dict[str, float]](), time.monotonic() + seconds
    users = [asyncio.create_task(use(address, key, until, done)) for key in keys for _ in range(USERS)]
    while time.monotonic() < until:
        await asyncio.sleep(SAMPLE_SECONDS)
        samples.append(sample(process, redis))
    await asyncio.gather(*users)
    await asyncio.sleep(KEPT_SECONDS + 15)  # until all jobs have expired
    return {"jobs": dict(done), "samples": samples, "when all had expired": sample(process, redis)}


def compared(samples: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Medians of the second fifth of the run and of the last."""
    fifth = len(samples) // 5
    parts = {"second fifth": samples[fifth : 2 * fifth], "last fifth": samples[-fifth:]}
    return {name: {each: median(one[each] for one in part) for each in MEASURED} for name, part in parts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as data, running_redis() as server, server.client() as redis:
        settings = Settings(
            data=Path(data),
            redis_url=server.address,
            retention_seconds=KEPT_SECONDS,
            sweep_seconds=1,
            log_level="warning",
        )
        logs.configure(settings)
        worker = ToyWorker(server.client(), settings)
        store = KeyStore(redis)
        keys = [store.create(name, Role.USER).key for name in ("ann", "bob")]
        with running_service(settings, start_cold, **QUOTAS, ADM_LOG_LEVEL="info") as (address, process, _):
            found = asyncio.run(soak(address, keys, psutil.Process(process.pid), redis, given.minutes * 60))
        worker.stop()
    found |= compared(found["samples"])
    (RESULTS / "soak.json").write_text(json.dumps(machine() | {"minutes": given.minutes} | found, indent=1) + "\n")
    print(json.dumps({name: value for name, value in found.items() if name != "samples"}, indent=1))


if __name__ == "__main__":
    main()
