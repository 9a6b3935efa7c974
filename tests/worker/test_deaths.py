"""Jobs whose workers die: which job is failed for it, and where a job is while it waits for its next try."""

import subprocess
import sys
import time
from typing import cast

import pytest
from redis import Redis
from rq.job import Job as RqJob
from rq.queue import Queue
from rq.registry import ScheduledJobRegistry
from rq.serializers import JSONSerializer
from structlog.testing import capture_logs

from jobs.contract.errors import FailureKind
from jobs.contract.job import CheckpointRecord, Progress
from jobs.contract.worker_deaths import DEATHS_ALONE, DEATHS_TOGETHER, MANY_ALONE
from jobs.queue.cleaner import Cleaner
from jobs.redis import keys, rq_keys
from jobs.redis.record import Record
from jobs.settings import Settings
from tests.conftest import RedisServer
from tests.corruption import NOT_UTF8
from tests.jobs.samples import worker_info
from tests.worker.conftest import Bench, OpenInbox
from worker.claim import Claim
from worker.inbox import Inbox

NAME = "cpu-7"  # of the worker that dies
STEPS = 35  # 25 of the base, 10 of the upsampler
QUEUE = keys.queue("demo", "normal")


def at(step: int) -> Progress:
    return Progress(stage="base", step=step, steps=25, fraction=step / STEPS)


def read(bench: Bench, job_id: str) -> Record:
    record = bench.queue.ledger.read(job_id)
    assert record is not None
    return record


def end_delays(bench: Bench) -> None:
    """Make every delayed job due."""
    for job_id in cast(list[bytes], bench.redis.zrange(rq_keys.delayed_key(QUEUE), 0, -1)):
        bench.redis.zadd(rq_keys.delayed_key(QUEUE), {job_id: 1})
    bench.queue.ledger.enqueue_due()


def die(bench: Bench, open_inbox: OpenInbox, *steps: int, **changes: object) -> list[Claim]:
    """Let a worker take a job and die once at each of the steps; returns the claims."""
    claims = []
    for step in steps:
        inbox = open_inbox(NAME, **changes)
        end_delays(bench)
        (claim,) = bench.claim(inbox)
        for reported in range(1, step + 1):
            inbox.reports.progress((claim, at(reported)))
        claims.append(claim)
    open_inbox(NAME, **changes)
    return claims


def delayed(bench: Bench, open_inbox: OpenInbox) -> str:
    """A job that waits for its second try alone."""
    job_id = bench.submit()
    die(bench, open_inbox, *[3] * (DEATHS_TOGETHER + 1))
    return job_id


def test_job_that_kills_its_worker_at_one_step_is_failed_within_five_tries_alone_and_says_what_was_seen(
    bench: Bench, open_inbox: OpenInbox
) -> None:
    job_id = bench.submit()
    claims = die(bench, open_inbox, *[12] * (DEATHS_TOGETHER + DEATHS_ALONE))
    assert [each.alone for each in claims] == [False] * DEATHS_TOGETHER + [True] * DEATHS_ALONE
    job = bench.queue.get(job_id)
    assert job.error is not None
    assert (job.status, job.error.kind) == ("failed", FailureKind.WORKER_LOST)
    assert job.error.detail.startswith("7 workers died with this job in flight since 20")
    assert "5 of them while it ran alone, 5 of these at step 12 of 25 of stage base" in job.error.detail
    assert bench.events(job_id).count("failed") == 1


def test_job_that_kills_before_its_first_step_is_failed(bench: Bench, open_inbox: OpenInbox) -> None:
    job_id = bench.submit()
    die(bench, open_inbox, *[0] * (DEATHS_TOGETHER + DEATHS_ALONE))
    error = bench.queue.get(job_id).error
    assert error is not None
    assert "5 of these before its first step" in error.detail


def test_number_of_deaths_is_a_setting(bench: Bench, open_inbox: OpenInbox) -> None:
    job_id = bench.submit()
    die(bench, open_inbox, *[12] * (DEATHS_TOGETHER + 1), worker_deaths_alone=2)
    assert bench.status(job_id) == "queued"
    die(bench, open_inbox, 12, worker_deaths_alone=2)
    assert bench.status(job_id) == "failed"


def test_job_that_dies_at_varying_steps_survives_any_number_of_deaths_and_costs_no_retry(
    bench: Bench, open_inbox: OpenInbox
) -> None:
    job_id = bench.submit()
    die(bench, open_inbox, *[3, 9, 2, 2, 2, 9, 8, 1, 9, 12, 4, 12, 12, 13, 5, 5, 5, 5, 5, 5])
    assert bench.status(job_id) == "queued"
    record = read(bench, job_id)
    assert (record.retries_left, record.deaths.workers) == (3, 20)


def test_deaths_at_one_step_fail_the_job_though_kills_from_outside_come_between_them(
    bench: Bench, open_inbox: OpenInbox
) -> None:
    job_id = bench.submit()
    die(bench, open_inbox, *[12] * DEATHS_TOGETHER, 12, 3, 12, 12, 0, 7, 12, 11)
    assert bench.status(job_id) == "queued"
    die(bench, open_inbox, 12)
    assert bench.status(job_id) == "failed"


def test_job_whose_workers_die_at_varying_steps_expires_after_the_first_death_however_often_it_is_requeued(
    bench: Bench, open_inbox: OpenInbox, settings: Settings
) -> None:
    job_id = bench.submit()
    die(bench, open_inbox, 1)
    expires_at = read(bench, job_id).expires_at
    assert expires_at == read(bench, job_id).deaths.since + settings.retention_seconds
    die(bench, open_inbox, *range(2, 7))
    record = read(bench, job_id)
    assert (record.status, record.expires_at) == ("queued", expires_at)
    then = time.time() - settings.retention_seconds
    early = record.deaths.model_copy(update={"no_progress_since": then})
    bench.redis.hset(rq_keys.job_key(job_id), "adm_worker_deaths", early.model_dump_json())
    die(bench, open_inbox, 7)
    cleaner = Cleaner(bench.redis, bench.queue.ledger, bench.images, bench.queue.files, settings.lease_seconds)
    assert cleaner.expire_jobs() == 1
    assert bench.status(job_id) == "expired"


def test_requeue_for_another_cause_than_a_death_renews_the_time_to_wait(bench: Bench, open_inbox: OpenInbox) -> None:
    job_id = bench.submit()
    die(bench, open_inbox, 1)
    expires_at = read(bench, job_id).expires_at
    inbox = open_inbox(NAME)
    (claim,) = bench.claim(inbox)
    inbox.results.requeue(claim)
    assert read(bench, job_id).expires_at > expires_at


def test_twenty_deaths_alone_are_a_warning_in_the_log(bench: Bench, open_inbox: OpenInbox) -> None:
    job_id = bench.submit()
    with capture_logs() as logs:
        die(bench, open_inbox, *[3] * DEATHS_TOGETHER, *[5, 4] * 2, *range(6, MANY_ALONE + 3))
    warnings = [each for each in logs if each["event"] == "many_deaths_alone"]
    assert [(each["log_level"], each["job_id"], each["deaths"]) for each in warnings] == [
        ("warning", job_id, deaths) for deaths in (MANY_ALONE, MANY_ALONE + 1)
    ]


def test_next_execution_starts_where_the_checkpoint_was_copied_not_where_it_was_named(
    bench: Bench, open_inbox: OpenInbox
) -> None:
    job_id, inbox = bench.submit(), open_inbox(NAME)
    (claim,) = bench.claim(inbox)
    inbox.reports.progress((claim, at(20)))
    checkpoint = CheckpointRecord(execution_id=claim.token, sha256="a" * 64, numerics="n")
    assert inbox.results.checkpointed(claim, checkpoint, at(15))
    assert read(bench, job_id).reached == at(20)
    (again,) = bench.claim(open_inbox(NAME))
    assert again.checkpoint == checkpoint
    assert read(bench, job_id).reached == at(15), "a death before its first step is one at the checkpoint"


def test_others_are_taken_while_a_suspect_waits_for_its_next_try(bench: Bench, open_inbox: OpenInbox) -> None:
    suspect = delayed(bench, open_inbox)
    others = [bench.submit() for _ in range(3)]
    inbox = open_inbox(NAME)
    claims = bench.claim(inbox)
    assert [each.job_id for each in claims] == others
    assert not any(each.alone for each in claims)
    assert bench.status(suspect) == "queued"


def test_delayed_job_enters_its_queue_behind_the_others_when_its_time_comes(
    bench: Bench, open_inbox: OpenInbox, inbox: Inbox
) -> None:
    suspect, other = delayed(bench, open_inbox), bench.submit()
    assert bench.claim(inbox, room=0) == []
    bench.redis.zadd(rq_keys.delayed_key(QUEUE), {suspect: time.time() + 3600})
    inbox.heartbeat(worker_info(), "")
    assert bench.redis.lrange(rq_keys.queue_key(QUEUE), 0, -1) == [other.encode()]
    bench.redis.zadd(rq_keys.delayed_key(QUEUE), {suspect: time.time() - 1})
    inbox.heartbeat(worker_info(), "")
    assert bench.redis.lrange(rq_keys.queue_key(QUEUE), 0, -1) == [other.encode(), suspect.encode()]
    assert not bench.redis.exists(rq_keys.delayed_key(QUEUE))


def test_delayed_job_is_queued_by_the_service_where_no_worker_lives(
    bench: Bench, open_inbox: OpenInbox, settings: Settings
) -> None:
    suspect = delayed(bench, open_inbox)
    bench.redis.zadd(rq_keys.delayed_key(QUEUE), {suspect: 1})
    Cleaner(bench.redis, bench.queue.ledger, bench.images, bench.queue.files, settings.lease_seconds).recover_jobs()
    assert bench.redis.lrange(rq_keys.queue_key(QUEUE), 0, -1) == [suspect.encode()]


def test_delayed_job_is_counted_and_shown_as_queued(bench: Bench, open_inbox: OpenInbox) -> None:
    suspect = delayed(bench, open_inbox)
    job = bench.queue.get(suspect)
    assert (job.status, job.attempt) == ("queued", 3)
    assert job.queue is not None
    assert bench.queue.counts()[job.status] == 1
    assert bench.queue.backlogs(["demo"]).of("demo").lengths["normal"] == 1
    assert [each.id for each in bench.queue.page(job.status).data] == [suspect]


def test_delayed_job_can_be_cancelled_and_deleted(bench: Bench, open_inbox: OpenInbox) -> None:
    suspect = delayed(bench, open_inbox)
    assert bench.queue.cancel(suspect).status == "cancelled"
    end_delays(bench)
    assert bench.claim(open_inbox("cpu-1")) == []
    other = delayed(bench, open_inbox)
    bench.queue.delete(other)
    assert [key for key in bench.redis.scan_iter() if other.encode() in key] == []
    assert not bench.redis.exists(rq_keys.delayed_key(QUEUE))
    assert all(int(value) == 0 for value in bench.redis.hvals(keys.queued_work("demo")))


def test_delayed_job_expires(bench: Bench, open_inbox: OpenInbox, settings: Settings) -> None:
    suspect = delayed(bench, open_inbox)
    bench.redis.hset(rq_keys.job_key(suspect), "adm_expires_at", time.time() - 1)
    bench.redis.zadd(keys.EXPIRING, {suspect: time.time() - 1})
    cleaner = Cleaner(bench.redis, bench.queue.ledger, bench.images, bench.queue.files, settings.lease_seconds)
    assert cleaner.expire_jobs() == 1
    assert bench.status(suspect) == "expired"
    assert not bench.redis.exists(rq_keys.delayed_key(QUEUE))


def test_delayed_job_survives_a_restart_of_redis(
    bench: Bench, open_inbox: OpenInbox, redis_server: RedisServer
) -> None:
    suspect = delayed(bench, open_inbox)
    bench.redis.config_set("appendfsync", "always")
    bench.redis.close()
    redis_server.stop()
    redis_server.start()
    end_delays(bench)
    (claim,) = bench.claim(open_inbox("cpu-1"))
    assert (claim.job_id, claim.alone) == (suspect, True)


def test_delayed_job_looks_right_to_rq_and_rq_leaves_it_alone(
    bench: Bench, open_inbox: OpenInbox, redis: Redis, settings: Settings
) -> None:
    suspect = delayed(bench, open_inbox)
    queue = Queue(QUEUE, connection=redis, serializer=JSONSerializer)
    assert RqJob.fetch(suspect, connection=redis, serializer=JSONSerializer).is_scheduled
    command = [sys.executable, "-m", "rq.cli", "info", "--raw", "--url", settings.redis_address]
    subprocess.run(command, capture_output=True, check=True)
    assert ScheduledJobRegistry(queue=queue).get_job_ids() == [suspect]  # type: ignore[no-untyped-call] # RQ leaves it untyped
    assert queue.job_ids == []


@pytest.mark.parametrize("entry", [NOT_UTF8, b"", b"a b:c", b"nobody"])
def test_foreign_entry_among_delayed_jobs_is_removed(bench: Bench, entry: bytes) -> None:
    job_id = bench.submit()
    bench.redis.zadd(rq_keys.delayed_key(QUEUE), {entry: 1, job_id.encode(): 1})
    bench.queue.ledger.enqueue_due()
    assert not bench.redis.exists(rq_keys.delayed_key(QUEUE))
    assert bench.redis.lrange(rq_keys.queue_key(QUEUE), 0, -1) == [job_id.encode()], "it was in its queue already"


def test_scheduled_jobs_of_other_programs_are_left_alone(bench: Bench) -> None:
    bench.redis.sadd(rq_keys.QUEUES_KEY, "rq:queue:default")
    bench.redis.zadd(rq_keys.delayed_key("default"), {"theirs": 1})
    bench.queue.ledger.enqueue_due()
    assert bench.redis.zrange(rq_keys.delayed_key("default"), 0, -1) == [b"theirs"]
