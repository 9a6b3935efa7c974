"""Faults of the system: each is one method, and ends by itself or with `Deployment.heal`."""

import json
import random
import signal
import time
import zlib
from collections.abc import Callable
from typing import Any, cast

from redis.client import Pipeline as RedisPipeline
from redis.client import Redis

from jobs.contract.request import JobRequest
from jobs.queue.announcements import announce_pipelines
from jobs.queue.job_queue import JobQueue
from jobs.queue.transitions import count_work
from jobs.redis import keys, rq_keys
from jobs.redis.payload import PAYLOAD_VERSION
from jobs.redis.record import Record
from jobs.storage.images import ImageStore, image_key
from jobs.views.fleet import FleetReader
from tests.chaos.deployment import LEASE_SECONDS, Deployment, Program

ORPHANED_PIPELINE = "orphaned"  # known, and no worker serves it any more
POISONED_QUEUE = keys.queue("demo", "normal")


class Faults:
    """Causes faults in one deployment, drawn from one seed."""

    def __init__(self, deployment: Deployment, rng: random.Random) -> None:
        self._deployment, self._rng = deployment, rng
        self.poisoned: dict[str, str] = {}  # job -> the kind of failure that it must end with
        self.journal: list[str] = []
        self._began = time.monotonic()
        self.kinds: list[Callable[[], None]] = [
            self.kill_worker,
            self.kill_worker_and_leave_its_jobs,
            self.stall_worker,
            self.stop_worker,
            self.kill_redis,
            self.kill_redis_for_longer_than_a_lease,
            self.fill_disk_of_redis,
            self.hang_redis,
            self.fill_memory_of_redis,
            self.cut_connections,
            self.kill_clients,
            self.lose_replies,
            self.tear_commands,
            self.fill_disk_of_workers,
            self.slow_store,
            self.restart_service,
            self.kill_service,
            self.poison_queue,
        ]

    def plan(self, number: int) -> list[Callable[[], None]]:
        """Faults in random order; every kind comes once before any comes again."""
        planned: list[Callable[[], None]] = []
        while len(planned) < number:
            planned += self._rng.sample(self.kinds, len(self.kinds))
        return planned[:number]

    def pause(self, seconds: float) -> float:
        """The wait before the next fault, at random around the given seconds, so that faults also overlap."""
        return self._rng.uniform(0, 2 * seconds)

    def run(self, fault: Callable[[], None]) -> None:
        self.journal.append(f"{time.monotonic() - self._began:6.1f} s {fault.__name__}")
        fault()
        self._deployment.note_crashes()

    def kill_worker(self) -> None:
        """Kill a worker and start it again at once under its name: before its lease and its record have expired."""
        worker = self._worker()
        worker.kill()
        worker.start()

    def kill_worker_and_leave_its_jobs(self) -> None:
        """Kill a worker; others take over its jobs when the lease ends.

        A kill seldom interrupts a write, so the half-written file of such a kill is made here.
        """
        worker = self._worker()
        worker.kill()
        half_written = self._deployment.store / image_key(f"killed-{worker.pid}", "token", 0)
        half_written.parent.mkdir(parents=True)
        half_written.with_name(f"{half_written.name}#1").write_bytes(b"\x89PNG")
        time.sleep(LEASE_SECONDS + 0.5)
        worker.start()

    def stall_worker(self) -> None:
        """Suspend a worker beyond its lease, so that it continues with jobs that others have claimed."""
        worker = self._worker()
        worker.pause()
        time.sleep(LEASE_SECONDS + self._rng.uniform(0.5, 1.5))
        worker.resume()

    def stop_worker(self) -> None:
        worker = self._worker()
        was_ready = worker.has_logged('"ready"')
        status = worker.kill(signal.SIGTERM)
        if was_ready and status != 0:  # one that still loads has nothing to finish
            self._deployment.crashes.append(f"{worker.name} was stopped, and left with {status}: {worker.lines[-12:]}")
        worker.start()

    def kill_redis(self) -> None:
        self._deployment.redis_server.kill()
        time.sleep(self._rng.uniform(0, 1))
        self._deployment.start_redis()

    def kill_redis_for_longer_than_a_lease(self) -> None:
        """Workers give up results that they could not write, and every lease has ended when Redis is back."""
        self._deployment.redis_server.kill()
        time.sleep(LEASE_SECONDS + self._rng.uniform(0.5, 1.5))
        self._deployment.start_redis()

    def fill_disk_of_redis(self) -> None:
        """Redis dies in the middle of a write, whose beginning is in its file."""
        redis = self._deployment.redis_server
        redis.limit_files(self._rng.randrange(1, 200) + self._aof_bytes())
        for _ in range(100):
            if not redis.running:
                break
            time.sleep(0.02)
        else:
            redis.kill()  # there was no write
        self._deployment.start_redis()

    def hang_redis(self) -> None:
        self._deployment.redis_server.pause()
        time.sleep(self._rng.uniform(0.2, 1.5))
        self._deployment.redis_server.resume()

    def fill_memory_of_redis(self) -> None:
        """Redis answers, but refuses every command that would need memory."""
        with self._deployment.redis() as redis:
            redis.config_set("maxmemory", 1)
            time.sleep(self._rng.uniform(0.2, 2))
            redis.config_set("maxmemory", 0)

    def cut_connections(self) -> None:
        self._deployment.proxy.cut()

    def kill_clients(self) -> None:
        """End all connections of the programs, subscriptions too, as an operator may."""
        with self._deployment.redis() as redis:
            for kind in ("normal", "pubsub"):
                redis.client_kill_filter(_type=kind, skipme=True)

    def lose_replies(self) -> None:
        self._deployment.proxy.plan("lose reply", self._rng.randint(1, 6))

    def tear_commands(self) -> None:
        self._deployment.proxy.plan("tear command", self._rng.randint(1, 6))

    def fill_disk_of_workers(self) -> None:
        """Limit the files of the workers below the size of an image, so that each write of one fails half-way."""
        for worker in self._deployment.workers:
            worker.limit_files(self._rng.randrange(1, 60))
        time.sleep(self._rng.uniform(0.5, 2))
        for worker in self._deployment.workers:
            worker.unlimit_files()

    def slow_store(self) -> None:
        self._deployment.slow_store(self._rng.uniform(0.05, 0.4))
        time.sleep(self._rng.uniform(0.5, 2))
        self._deployment.slow_store(0)

    def restart_service(self) -> None:
        self._deployment.service.kill(signal.SIGTERM)
        self._deployment.start_service()

    def kill_service(self) -> None:
        self._deployment.service.kill()
        self._deployment.start_service()

    def poison_queue(self) -> None:
        """Write corrupt data to the queue, as another program, another version or a broken disk may leave them."""
        with self._deployment.redis() as redis:
            for garbage in (b"nobody", b"\xff\xfe", b"", b"a b:c"):
                redis.lpush(rq_keys.queue_key(POISONED_QUEUE), garbage)
            bare = f"bare-{len(self.poisoned)}"
            redis.hset(rq_keys.job_key(bare), mapping={"status": "queued", "origin": POISONED_QUEUE})
            redis.rpush(rq_keys.queue_key(POISONED_QUEUE), bare)
            self.poisoned[bare] = "bad-payload"
            redis.zadd(keys.LEASES, dict.fromkeys([b"\xff\xfe", b"odd", b"nobody:" + b"0" * 32], 1.0))
            redis.publish(keys.WAKE_CHANNEL, b"\xff")
            for change, failure in PAYLOADS.values():
                self.poisoned[self._poisoned_job(redis, change)] = failure
            for field in ("adm_work", "adm_attempt", "retries_left", "adm_created_at"):
                job_id = self._poisoned_job(redis, dumped)
                redis.hset(rq_keys.job_key(job_id), field, "garbage")
                self.poisoned[job_id] = "bad-payload"

    def _poisoned_job(self, redis: Redis, change: Callable[[list[Any]], bytes]) -> str:
        """Post a job to a pipeline without workers, spoil it there, and move it to the queue of one with workers."""
        queue = JobQueue(redis, self._deployment.settings, ImageStore(self._deployment.settings.store_address))
        body = {"model": ORPHANED_PIPELINE, "class_label": "torus", "steps": 3}
        job_id = queue.submitter.submit(JobRequest.parse(json.dumps(body).encode())).job.id

        def spoil(pipe: RedisPipeline) -> None:
            fields = cast(dict[bytes, bytes], pipe.hgetall(rq_keys.job_key(job_id)))
            data = change(json.loads(zlib.decompress(fields[b"data"])))
            posted = Record.parse(job_id, fields)
            moved = Record.parse(job_id, fields | {b"origin": POISONED_QUEUE.encode()})
            pipe.multi()
            pipe.hset(rq_keys.job_key(job_id), mapping={"data": data, "origin": moved.queue})
            pipe.lrem(rq_keys.queue_key(posted.queue), 0, job_id)
            pipe.rpush(rq_keys.queue_key(moved.queue), job_id)
            count_work(pipe, posted, posted.priority, -1)
            count_work(pipe, moved, moved.priority, 1)

        redis.transaction(spoil, rq_keys.job_key(job_id))
        return job_id

    def _worker(self) -> Program:
        running = [each for each in self._deployment.workers if each.running]
        return self._rng.choice(running)

    def _aof_bytes(self) -> int:
        return max(path.stat().st_size for path in self._deployment.folder.glob("appendonlydir/*.aof"))


def dumped(call: list[Any]) -> bytes:
    return zlib.compress(json.dumps(call).encode())


def with_former_version(call: list[Any]) -> bytes:
    call[3]["version"] = PAYLOAD_VERSION - 1
    return dumped(call)


def with_field(name: str, value: object) -> Callable[[list[Any]], bytes]:
    def change(call: list[Any]) -> bytes:
        call[3]["request"][name] = value
        return dumped(call)

    return change


PAYLOADS: dict[str, tuple[Callable[[list[Any]], bytes], str]] = {
    "not compressed": (lambda call: b"garbage", "bad-payload"),
    "not JSON": (lambda call: zlib.compress(b"\x80\x04."), "bad-payload"),
    "not a call": (lambda call: dumped([]), "bad-payload"),
    "of a version before the first": (with_former_version, "bad-payload"),
    "of the wrong type": (with_field("steps", "many"), "bad-payload"),
    "without its pictures": (with_field("kind", "upsample"), "bad-payload"),
    "for an unknown pipeline": (with_field("model", "elsewhere"), "not-offered"),
    "for the orphaned pipeline": (dumped, "not-offered"),
    "for an unknown class": (with_field("class_label", 99), "not-offered"),
}


def announce_orphaned_pipeline(redis: Redis, deployment: Deployment) -> None:
    """Announce a pipeline that no worker serves, as the announcement of its last worker remains."""
    pipeline = FleetReader(redis, max_age_seconds=0).read().pipelines["demo"]
    with redis.pipeline() as pipe:
        announce_pipelines(pipe, [pipeline.model_copy(update={"id": ORPHANED_PIPELINE})])
        pipe.execute()
