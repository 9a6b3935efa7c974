"""No job is lost or done twice, over any order of submit, cancel, delete, expire, claim, finish, fail, crash, stall."""

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule, run_state_machine_as_test
from redis import Redis

from jobs.contract.caller import ANONYMOUS, Caller, Role
from jobs.contract.errors import FailureKind, RefusedError
from jobs.contract.job import FINAL_STATUSES, ImageRecord, JobStatus, Usage
from jobs.contract.request import JobRequest
from jobs.queue.cleaner import Cleaner
from jobs.queue.drafting import Submission
from jobs.queue.job_queue import JobQueue
from jobs.redis import keys, rq_keys
from jobs.settings import Settings
from jobs.storage.images import StoredImage
from tests.conftest import RedisServer
from tests.jobs.samples import DEMO, replay, worker_info
from tests.worker.names import owned
from vocabulary.priorities import PRIORITIES
from worker.claim import Cancel, Claim
from worker.inbox import Inbox

WORKERS = st.sampled_from(["cpu-0", "cpu-1"])
KEYS = st.sampled_from(["one", "other"])
ANN, BOB = (Caller(letter * 12, Role.USER) for letter in "ab")
CALLERS = st.sampled_from([ANONYMOUS, ANN, BOB])


class NoImages:
    """Stands for the store, which plays no part in who owns a job."""

    objects = None

    def delete_job(self, job_id: str) -> None:
        pass

    def images(self, job_id: str) -> list[StoredImage]:
        return []

    def delete(self, keys: list[str]) -> None:
        assert keys == []


class QueueMachine(RuleBasedStateMachine):
    """Two workers that may crash or stall at any moment, and clients that may do anything."""

    jobs: Bundle[str] = Bundle("jobs")
    claims: Bundle[tuple[str, Claim]] = Bundle("claims")  # also those whose worker has crashed or stalled

    def __init__(self, server: RedisServer, config: Settings) -> None:
        super().__init__()
        self.server, self.config = server, config
        self.redis: Any = server.client()  # Any: its answers are bytes, which its types do not know
        self.redis.flushall()
        self.clients: list[Redis] = [self.redis]
        images: Any = NoImages()  # all that is called of it
        self.queue = JobQueue(self.redis, config, images)
        self.cleaner = Cleaner(self.redis, self.queue.ledger, images, self.queue.files, config.lease_seconds)
        self.inboxes = {name: self.opened(name) for name in ("cpu-0", "cpu-1")}
        self.known: set[str] = set()
        self.owners: dict[str, str] = {}
        self.completed: Counter[str] = Counter()

    def opened(self, name: str) -> Inbox:
        self.clients.append(self.server.client())
        inbox = Inbox(self.clients[-1], self.config, owned(name), [DEMO])
        inbox.open()
        return inbox

    @rule(target=jobs, n=st.integers(1, 4), priority=st.sampled_from(["low", "normal", "high"]), caller=CALLERS)
    def submit(self, n: int, priority: str, caller: Caller) -> str:
        return self.post({"class_label": 1, "n": n, "priority": priority}, None, caller)

    @rule(target=jobs, key=KEYS)
    def submit_under_a_key(self, key: str) -> str:
        return self.post({"class_label": 1}, key)

    def post(self, body: dict[str, object], key: str | None, caller: Caller = ANONYMOUS) -> str:
        request = JobRequest.parse(json.dumps(body).encode())
        (outcome,) = self.queue.submitter.submit_all([Submission(request, caller, key)])
        assert not isinstance(outcome, RefusedError)
        job, replayed = outcome
        self.owners[job.id] = caller.id
        assert replayed == (job.id in self.known)
        if not replayed:
            self.completed[job.id] = 0  # an earlier one of the key is gone
        self.known.add(job.id)
        return job.id

    @rule(job_id=jobs)
    def cancel(self, job_id: str) -> None:
        try:
            self.queue.cancel(job_id)
        except RefusedError:
            assert job_id not in self.known or self.queue.get(job_id).status.is_final

    @rule(job_id=jobs)
    def delete(self, job_id: str) -> None:
        try:
            self.queue.delete(job_id)
        except RefusedError:
            assert job_id not in self.known
        self.known.discard(job_id)

    @rule(job_id=jobs)
    def expire(self, job_id: str) -> None:
        if job_id in self.known and self.queue.get(job_id).status is JobStatus.QUEUED:
            self.redis.hset(rq_keys.job_key(job_id), "adm_expires_at", time.time() - 1)
            self.redis.zadd(keys.EXPIRING, {job_id: time.time() - 1})
            assert self.cleaner.expire_jobs() == 1
            assert self.queue.get(job_id).status is JobStatus.EXPIRED

    @rule(target=jobs, key=KEYS)
    def retention_ends_and_a_key_is_used_again_before_the_upkeep(self, key: str) -> str:
        for job_id in [each for each in self.known if not self.is_open(each)]:
            self.redis.delete(rq_keys.job_key(job_id), keys.events(job_id))  # as Redis does by itself
            self.known.discard(job_id)
        for member in self.redis.zrange(keys.ENDED, 0, -1):
            self.redis.zadd(keys.ENDED, {member: time.time() - 1})
        again = self.post({"class_label": 1}, key)
        self.cleaner.remove_ended()
        return again

    @rule(target=claims, name=WORKERS, room=st.integers(0, 6))
    def poll(self, name: str, room: int) -> Any:
        commands = self.inboxes[name].poll(room=room, wait_seconds=0)
        return multiple(*((name, each.claim) for each in commands if not isinstance(each, Cancel)))

    @rule(claim=claims)
    def finish(self, claim: tuple[str, Claim]) -> None:
        name, claimed = claim
        image = ImageRecord(index=0, sha256="0" * 64, width=2, height=2, bytes=9, execution_id=claimed.token)
        was_final = claimed.job_id in self.known and self.queue.get(claimed.job_id).status.is_final
        if (
            self.inboxes[name].results.complete(claimed, [image], Usage(steps=1, device_seconds=0), "n")
            and not was_final
        ):
            self.completed[claimed.job_id] += 1

    @rule(claim=claims, retry=st.booleans())
    def fail(self, claim: tuple[str, Claim], retry: bool) -> None:
        name, claimed = claim
        self.inboxes[name].results.fail(claimed, FailureKind.STEP_FAILED, "the step raised", retry=retry)

    @rule(claim=claims)
    def requeue(self, claim: tuple[str, Claim]) -> None:
        name, claimed = claim
        self.inboxes[name].results.requeue(claimed)

    @rule(name=WORKERS)
    def heartbeat(self, name: str) -> None:
        self.inboxes[name].heartbeat(worker_info(name), "")

    @rule(name=WORKERS)
    def crash_and_restart(self, name: str) -> None:
        self.inboxes[name] = self.opened(name)

    @rule()
    def leases_run_out(self) -> None:
        for member in self.redis.zrange(keys.LEASES, 0, -1):
            self.redis.zadd(keys.LEASES, {member: time.time() - 1})
        self.queue.ledger.recover_expired_leases()

    @rule()
    def delays_end(self) -> None:
        for priority in PRIORITIES:
            delayed = rq_keys.delayed_key(keys.queue("demo", priority))
            for job_id in self.redis.zrange(delayed, 0, -1):
                self.redis.zadd(delayed, {job_id: 1})
        self.queue.ledger.enqueue_due()

    @invariant()
    def each_job_is_where_its_status_says(self) -> None:
        queued = Counter(
            each.decode()
            for priority in PRIORITIES
            for each in (
                *self.redis.lrange(rq_keys.queue_key(keys.queue("demo", priority)), 0, -1),
                *self.redis.zrange(rq_keys.delayed_key(keys.queue("demo", priority)), 0, -1),
            )
        )
        leased = Counter(each.decode().partition(":")[0] for each in self.redis.zrange(keys.LEASES, 0, -1))
        for job_id in self.known:
            job = self.queue.get(job_id)
            events = [each.kind for each in replay(self.redis, job_id)]
            running = job.status in (JobStatus.IN_PROGRESS, JobStatus.CANCELLING)
            assert queued[job_id] == (job.status is JobStatus.QUEUED)
            assert leased[job_id] == running
            assert sum(each.is_final for each in events) == job.status.is_final
            assert not any(each.is_final for each in events[:-1])
            assert self.completed[job_id] == (job.status is JobStatus.COMPLETED)
        assert set(queued) | set(leased) <= self.known

    @invariant()
    def indexes_and_counters_agree_with_the_jobs(self) -> None:
        counts = Counter(self.queue.get(each).status for each in self.known)
        assert {status: number for status, number in self.queue.counts().items() if number} == dict(counts)
        work = self.redis.hgetall(keys.queued_work("demo"))
        left = sum(self.base_work(each) for each in self.known if self.is_open(each))
        assert sum(int(value) for name, value in work.items() if name.endswith(b":base")) == left

    @invariant()
    def lists_and_lines_of_callers_hold_their_own_jobs(self) -> None:
        for caller in (each.id for each in (ANN, BOB)):
            own = {each for each in self.known if self.owners[each] == caller}
            statuses = {each: self.queue.get(each).status for each in own}
            for status in (None, *JobStatus):
                listed = {each.decode()[17:] for each in self.redis.zrange(keys.index(status, caller), 0, -1)}
                assert listed == {each for each in own if status in (None, statuses[each])}
            for queue in (keys.queue("demo", priority) for priority in PRIORITIES):
                line = {each.decode() for each in self.redis.lrange(rq_keys.queue_key(queue), 0, -1)}
                assert {each.decode() for each in self.redis.zrange(keys.own_line(queue, caller), 0, -1)} == line & own
        marked = {each.decode()[17:]: by.decode() for each, by in self.redis.hgetall(keys.JOB_CALLERS).items()}
        assert marked == {each: self.owners[each] for each in self.known if self.owners[each]}

    @invariant()
    def lines_are_in_the_order_of_turns(self) -> None:
        for queue in (keys.queue("demo", priority) for priority in PRIORITIES):
            line = [each.decode() for each in self.redis.lrange(rq_keys.queue_key(queue), 0, -1)]
            turns = [float(self.redis.hget(rq_keys.job_key(each), "adm_turn")) for each in line]
            assert turns == sorted(turns)

    def base_work(self, job_id: str) -> int:
        request = self.queue.get(job_id).request
        assert request is not None
        return request.n * request.steps

    def is_open(self, job_id: str) -> bool:
        return self.queue.get(job_id).status not in FINAL_STATUSES

    def teardown(self) -> None:
        """One worker can end every job that is left."""
        self.leases_run_out()
        self.delays_end()
        inbox = self.opened("cpu-9")
        while claims := [each for each in inbox.poll(room=99, wait_seconds=0) if not isinstance(each, Cancel)]:
            for each in claims:
                inbox.results.complete(each.claim, [], Usage(steps=1, device_seconds=0), "n")
        assert not [each for each in self.known if self.is_open(each)]
        for client in self.clients:
            client.close()


@pytest.mark.slow
def test_no_job_is_lost_or_done_twice(redis_server: RedisServer, tmp_path: Path) -> None:
    config = Settings(data=tmp_path, redis_url=redis_server.address)
    run_state_machine_as_test(  # type: ignore[no-untyped-call, unused-ignore] # typed for classes, takes a factory
        lambda: QueueMachine(redis_server, config),  # type: ignore[arg-type] # see above
        settings=settings(
            max_examples=25,
            stateful_step_count=30,
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        ),
    )
