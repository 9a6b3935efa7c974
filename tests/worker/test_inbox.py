import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from threading import Timer
from typing import cast

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from rq.command import send_stop_job_command
from rq.job import Job as RqJob
from rq.queue import Queue
from rq.registry import FailedJobRegistry, FinishedJobRegistry, StartedJobRegistry
from rq.serializers import JSONSerializer
from rq.worker import Worker

from jobs import books, keys
from jobs.errors import FailureKind
from jobs.job import Progress
from jobs.settings import Settings
from jobs.work import rank_of
from tests.conftest import RedisServer
from tests.jobs.samples import DEMO, png, replay, worker_info
from tests.worker.conftest import Bench, OpenInbox
from worker.inbox import Cancel, Inbox, Submit


def test_job_is_claimed_completed_and_its_image_readable(bench: Bench, inbox: Inbox) -> None:
    job_id = bench.submit(n=2)
    (claim,) = bench.claim(inbox)
    assert (claim.job_id, claim.attempt, claim.alone, claim.request.class_label) == (job_id, 1, False, 4)
    assert bench.finish(inbox, claim)
    job = bench.queue.get(job_id)
    assert (job.status, job.attempt, job.numerics) == ("completed", 1, "fingerprint")
    assert [each.class_name for each in job.images] == ["torus", "torus"]
    assert bench.queue.image_bytes(job_id, bench.queue.image(job_id, 1).record) == png(1)
    assert bench.events(job_id) == ["queued", "started", "image", "image", "completed"]
    assert job.progress.fraction == 1


def test_high_priority_is_taken_first_and_low_last(bench: Bench, inbox: Inbox) -> None:
    ids = [bench.submit(priority=priority) for priority in ("low", "normal", "high")]
    assert [each.job_id for each in bench.claim(inbox)] == ids[::-1]


def test_no_room_takes_nothing_but_still_reads_cancels(bench: Bench, inbox: Inbox) -> None:
    first = bench.submit()
    bench.claim(inbox)
    bench.submit()
    bench.queue.cancel(first)
    assert inbox.poll(room=0, wait_seconds=1) == [Cancel(first)]


def test_job_that_does_not_fit_waits_and_holds_back_what_is_behind_it(bench: Bench, inbox: Inbox) -> None:
    bench.submit(n=6)
    bench.submit(n=4)
    bench.submit(n=1)
    assert [each.request.n for each in bench.claim(inbox, room=8)] == [6]
    assert [each.request.n for each in bench.claim(inbox, room=4)] == [4]


def test_job_larger_than_any_batch_enters_when_there_is_some_room(bench: Bench, inbox: Inbox) -> None:
    bench.submit(n=64)
    assert [each.request.n for each in bench.claim(inbox, room=1)] == [64]


def test_idle_worker_is_woken_by_a_submission(bench: Bench, inbox: Inbox) -> None:
    timer = Timer(0.05, bench.submit)
    timer.start()
    began = time.monotonic()
    commands = inbox.poll(room=1, wait_seconds=5)
    timer.join()
    assert [type(each) for each in commands] == [Submit]
    assert time.monotonic() - began < 2


def test_cancelled_while_queued_is_never_claimed(bench: Bench, inbox: Inbox) -> None:
    job_id = bench.submit()
    assert bench.queue.cancel(job_id).status == "cancelled"
    assert bench.claim(inbox) == []
    assert bench.events(job_id) == ["queued", "cancelled"]


def test_cancel_in_progress_reaches_the_worker_by_message_and_ends_it(bench: Bench, inbox: Inbox) -> None:
    job_id = bench.submit()
    (claim,) = bench.claim(inbox)
    assert bench.queue.cancel(job_id).status == "cancelling"
    assert bench.queue.cancel(job_id).status == "cancelling"
    assert inbox.poll(room=0, wait_seconds=1)[0] == Cancel(job_id)
    assert inbox.cancelled(claim)
    assert bench.status(job_id) == "cancelled"
    assert bench.events(job_id) == ["queued", "started", "cancelled"]


def test_lost_cancel_message_is_made_up_for_by_the_heartbeat(bench: Bench, inbox: Inbox, redis: Redis) -> None:
    job_id = bench.submit()
    bench.claim(inbox)
    redis.hset(books.job_key(job_id), "adm_cancel", "1")
    assert inbox.heartbeat(worker_info(), "") == [job_id]


def test_late_stop_message_costs_a_job_nothing_that_nobody_cancelled(bench: Bench, inbox: Inbox) -> None:
    job_id = bench.submit()
    (claim,) = bench.claim(inbox)
    assert not inbox.cancelled(claim)
    assert bench.status(job_id) == "queued"
    (again,) = bench.claim(inbox)
    assert bench.finish(inbox, again)


def test_result_that_comes_after_a_cancel_is_thrown_away(bench: Bench, inbox: Inbox) -> None:
    job_id = bench.submit()
    (claim,) = bench.claim(inbox)
    bench.queue.cancel(job_id)
    assert not bench.finish(inbox, claim)
    assert bench.status(job_id) == "cancelled"
    assert bench.events(job_id).count("cancelled") == 1


def test_stalled_workers_result_is_refused_and_the_other_ones_counts(
    bench: Bench, inbox: Inbox, open_inbox: OpenInbox, redis: Redis
) -> None:
    job_id = bench.submit()
    (stalled,) = bench.claim(inbox)
    redis.zadd(keys.LEASES, {f"{job_id}:{stalled.token}": time.time() - 1})
    other = open_inbox("cpu-1")
    (claim,) = bench.claim(other)
    assert claim.attempt == 2
    assert not bench.finish(inbox, stalled)
    assert not inbox.image_ready(stalled, bench.images.put(job_id, stalled.token, 0, png()))
    assert not inbox.fail(stalled, FailureKind.STEP_FAILED, "late", retry=False)
    assert not inbox.give_back(stalled)
    assert bench.status(job_id) == "in_progress"
    assert bench.finish(other, claim)
    assert bench.events(job_id) == ["queued", "started", "queued", "started", "image", "completed"]


def test_heartbeat_extends_leases_and_names_lost_claims(
    bench: Bench, inbox: Inbox, open_inbox: OpenInbox, redis: Redis
) -> None:
    kept, lost = bench.submit(), bench.submit()
    claims = {each.job_id: each for each in bench.claim(inbox)}
    for each in claims.values():
        redis.zadd(keys.LEASES, {f"{each.job_id}:{each.token}": time.time() + 1})
    bench.queue.ledger.recover(lost, claims[lost].token)
    assert inbox.heartbeat(worker_info(), "") == [lost]
    ends_at = redis.zscore(keys.LEASES, f"{kept}:{claims[kept].token}")
    assert ends_at is not None
    assert ends_at > time.time() + 20
    assert inbox.heartbeat(worker_info(), "") == []


def test_restarted_worker_takes_its_own_jobs_back_at_once_and_at_no_cost(bench: Bench, open_inbox: OpenInbox) -> None:
    ids = [bench.submit(), bench.submit()]
    assert len(bench.claim(open_inbox("cpu-7"))) == 2  # and then it is killed
    again = open_inbox("cpu-7")
    claims = bench.claim(again)
    assert {each.job_id for each in claims} == set(ids)
    assert {each.attempt for each in claims} == {2}
    assert {bench.queue.ledger.read(each).retries_left for each in ids} == {3}  # type: ignore[union-attr] # they exist


def test_job_in_flight_at_two_deaths_runs_alone(bench: Bench, open_inbox: OpenInbox) -> None:
    bench.submit()
    for _ in range(2):
        bench.claim(open_inbox("cpu-7"))
    bench.submit(priority="high")
    inbox = open_inbox("cpu-7")
    assert [each.alone for each in bench.claim(inbox, room=1)] == [False]
    assert bench.claim(inbox) == []  # the suspect waits until the batch is empty


def test_nothing_is_taken_beside_a_job_that_runs_alone(bench: Bench, open_inbox: OpenInbox) -> None:
    bench.submit()
    for _ in range(2):
        bench.claim(open_inbox("cpu-7"))
    bench.submit()
    inbox = open_inbox("cpu-7")
    (alone,) = bench.claim(inbox)
    assert alone.alone
    assert bench.finish(inbox, alone)
    assert [each.alone for each in bench.claim(inbox)] == [False]


def test_only_deaths_while_alone_use_up_the_retries(bench: Bench, open_inbox: OpenInbox) -> None:
    job_id = bench.submit()
    for _ in range(2 + 1 + 3):  # two in company, then the first try alone and three retries
        assert len(bench.claim(open_inbox("cpu-7"))) == 1
    open_inbox("cpu-7")
    job = bench.queue.get(job_id)
    assert job.status == "failed"
    assert job.error is not None
    assert job.error.kind is FailureKind.WORKER_LOST
    assert bench.events(job_id).count("failed") == 1


def test_give_back_spends_no_retry_and_goes_to_the_front(bench: Bench, inbox: Inbox) -> None:
    first = bench.submit()
    (claim,) = bench.claim(inbox)
    bench.submit()
    assert inbox.give_back(claim)
    assert bench.status(first) == "queued"
    again = bench.claim(inbox)
    assert again[0].job_id == first
    assert bench.queue.ledger.read(first).retries_left == 3  # type: ignore[union-attr] # it exists


def test_failure_is_retried_three_times_then_final(bench: Bench, inbox: Inbox) -> None:
    job_id = bench.submit()
    for attempt in range(1, 5):
        (claim,) = bench.claim(inbox)
        assert claim.attempt == attempt
        assert inbox.fail(claim, FailureKind.STEP_FAILED, "the step raised", retry=True)
    job = bench.queue.get(job_id)
    assert (job.status, job.attempt) == ("failed", 4)
    assert bench.events(job_id).count("failed") == 1
    assert bench.claim(inbox) == []


def test_failure_without_retry_is_final_at_once(bench: Bench, inbox: Inbox) -> None:
    job_id = bench.submit()
    (claim,) = bench.claim(inbox)
    assert inbox.fail(claim, FailureKind.NOT_OFFERED, "no such sampler", retry=False)
    assert bench.status(job_id) == "failed"


def test_write_whose_answer_was_lost_may_be_repeated(bench: Bench, inbox: Inbox) -> None:
    job_id = bench.submit()
    (claim,) = bench.claim(inbox)
    assert bench.finish(inbox, claim)
    assert bench.finish(inbox, claim)
    assert bench.events(job_id).count("completed") == 1


def test_return_whose_answer_was_lost_may_be_repeated_also_when_another_has_the_job(
    bench: Bench, inbox: Inbox, open_inbox: OpenInbox, redis: Redis
) -> None:
    job_id = bench.submit()
    (claim,) = bench.claim(inbox)
    assert inbox.give_back(claim)
    assert inbox.give_back(claim)
    (second,) = bench.claim(open_inbox("cpu-1"))
    assert inbox.give_back(claim)
    assert inbox.fail(second, FailureKind.STEP_FAILED, "the step raised", retry=True)
    assert inbox.fail(second, FailureKind.STEP_FAILED, "the step raised", retry=True)
    assert redis.lrange(books.queue_key("adm:demo:normal"), 0, -1) == [job_id.encode()]
    assert redis.hget(books.job_key(job_id), "retries_left") == b"2"
    assert not bench.finish(inbox, claim)


def test_job_that_was_taken_away_is_not_given_back(bench: Bench, inbox: Inbox) -> None:
    job_id = bench.submit()
    (claim,) = bench.claim(inbox)
    bench.queue.ledger.recover(job_id, claim.token)
    assert not inbox.give_back(claim)


def test_queue_entry_that_is_no_job_is_dropped(bench: Bench, inbox: Inbox, redis: Redis) -> None:
    queue = books.queue_key("adm:demo:normal")
    for rubbish in (b"nobody", b"", b"\xff\xfe"):
        redis.rpush(queue, rubbish)
    job_id = bench.submit()
    assert [each.job_id for each in bench.claim(inbox) or bench.claim(inbox)] == [job_id]
    assert redis.llen(queue) == 0


def test_poisoned_payload_fails_and_does_not_stop_the_queue(bench: Bench, inbox: Inbox, redis: Redis) -> None:
    bad, good = bench.submit(), bench.submit()
    redis.hset(books.job_key(bad), "data", b"\x80\x04not json")
    assert [each.job_id for each in bench.claim(inbox)] == [good]
    job = bench.queue.get(bad)
    assert job.error is not None
    assert (job.status, job.error.kind, job.request) == ("failed", FailureKind.BAD_PAYLOAD, None)
    assert bad in FailedJobRegistry("adm:demo:normal", connection=redis)


def test_expired_job_is_never_run(bench: Bench, inbox: Inbox, redis: Redis) -> None:
    job_id = bench.submit(expires_in=1)
    redis.hset(books.job_key(job_id), "adm_expires_at", time.time() - 1)
    assert bench.claim(inbox) == []
    assert bench.status(job_id) == "expired"
    assert bench.events(job_id) == ["queued", "expired"]


def test_job_given_back_after_its_expiry_still_runs(bench: Bench, inbox: Inbox, redis: Redis) -> None:
    job_id = bench.submit(expires_in=1)
    (claim,) = bench.claim(inbox)
    redis.hset(books.job_key(job_id), "adm_expires_at", time.time() - 1)
    inbox.give_back(claim)
    assert len(bench.claim(inbox)) == 1


def test_job_that_was_started_says_no_more_that_it_will_be_given_up(bench: Bench, inbox: Inbox) -> None:
    job_id = bench.submit(expires_in=1)
    (claim,) = bench.claim(inbox)
    inbox.give_back(claim)
    assert bench.queue.get(job_id).expires_at > time.time() + 86_000


def test_deleted_job_leaves_no_key_and_its_worker_is_refused(bench: Bench, inbox: Inbox, redis: Redis) -> None:
    job_id = bench.submit()
    (claim,) = bench.claim(inbox)
    inbox.progress(claim, Progress(stage="base", step=1, steps=25, fraction=0.1))
    bench.queue.delete(job_id)
    inbox.progress(claim, Progress(stage="base", step=2, steps=25, fraction=0.2))
    assert inbox.heartbeat(worker_info(), "") == [job_id]
    assert not bench.finish(inbox, claim)
    bench.redis.delete(keys.progress(job_id))
    assert [key for key in redis.scan_iter() if job_id.encode() in key] == []
    assert all(int(value) == 0 for value in redis.hvals(keys.queued_work("demo")))


@pytest.mark.parametrize("ended", [False, True])
def test_stalled_worker_tells_nothing_of_a_job_that_another_has(
    bench: Bench, inbox: Inbox, open_inbox: OpenInbox, redis: Redis, ended: bool
) -> None:
    job_id = bench.submit()
    (claim,) = bench.claim(inbox)
    bench.queue.ledger.recover(job_id, claim.token)
    other = open_inbox("cpu-1")
    (second,) = bench.claim(other)
    if ended:
        assert bench.finish(other, second)
    before = bench.events(job_id)
    inbox.progress(claim, Progress(stage="base", step=1, steps=25, fraction=0.1))
    assert bench.events(job_id) == before
    assert not redis.exists(keys.progress(job_id))


def test_progress_is_throttled_and_seen_by_polls(bench: Bench, inbox: Inbox) -> None:
    job_id = bench.submit()
    (claim,) = bench.claim(inbox)
    for step in range(1, 100):
        inbox.progress(claim, Progress(stage="base", step=step, steps=100, fraction=step / 100))
    assert bench.events(job_id).count("progress") == 1
    progress = bench.queue.get(job_id).progress
    assert (progress.stage, progress.step) == ("base", 1)


def test_image_is_fetchable_as_soon_as_its_event_was_sent(bench: Bench, inbox: Inbox) -> None:
    job_id = bench.submit(n=2)
    (claim,) = bench.claim(inbox)
    assert inbox.image_ready(claim, bench.images.put(job_id, claim.token, 1, png(9)))
    event = replay(bench.redis, job_id)[-1]
    assert (event.kind, json.loads(event.data)["index"]) == ("image", 1)
    assert bench.queue.image_bytes(job_id, bench.queue.image(job_id, 1).record) == png(9)
    assert bench.finish(inbox, claim)
    assert bench.events(job_id) == ["queued", "started", "image", "image", "completed"]


def test_work_counters_return_to_zero(bench: Bench, inbox: Inbox, redis: Redis) -> None:
    def counted() -> dict[str, int]:
        counters = cast(dict[bytes, bytes], redis.hgetall(keys.queued_work("demo")))
        return {name.decode(): int(row_steps) for name, row_steps in counters.items() if int(row_steps)}

    bench.queue.cancel(bench.submit())
    bench.submit(n=3)
    rank = rank_of("normal", {"base": 75, "upsample": 30})
    assert counted() == {f"normal:{rank}:base": 75, f"normal:{rank}:upsample": 30}
    (claim,) = bench.claim(inbox)
    inbox.give_back(claim)
    (claim,) = bench.claim(inbox)
    assert counted() == {f"running:{rank}:base": 75, f"running:{rank}:upsample": 30}
    bench.finish(inbox, claim)
    assert counted() == {}


def test_rq_sees_queued_running_finished_and_failed_jobs(bench: Bench, inbox: Inbox, redis: Redis) -> None:
    done, failed, running, waiting = (bench.submit() for _ in range(4))
    claims = {each.job_id: each for each in bench.claim(inbox, room=3)}
    inbox.heartbeat(worker_info(), "")
    bench.finish(inbox, claims[done])
    inbox.fail(claims[failed], FailureKind.STEP_FAILED, "the step raised", retry=False)
    queue = Queue("adm:demo:normal", connection=redis, serializer=JSONSerializer)
    assert queue.job_ids == [waiting]
    assert StartedJobRegistry(queue=queue).get_job_ids() == [running]
    assert FinishedJobRegistry(queue=queue).get_job_ids() == [done]
    assert FailedJobRegistry(queue=queue).get_job_ids() == [failed]
    (worker,) = Worker.all(connection=redis, serializer=JSONSerializer)
    assert (worker.name, worker.get_state(), worker.current_execution_count) == ("cpu-0", "busy", 1)
    job = RqJob.fetch(done, connection=redis, serializer=JSONSerializer)
    assert job.is_finished
    assert job.return_value() == "1 image"
    assert job.description == "1 x torus, 25 steps of ddim"
    result = RqJob.fetch(failed, connection=redis, serializer=JSONSerializer).latest_result()
    assert result is not None
    assert result.exc_string == "step-failed: the step raised"


def test_looking_with_rq_does_not_take_a_silent_workers_job_away(
    bench: Bench, inbox: Inbox, redis: Redis, settings: Settings
) -> None:
    job_id = bench.submit()
    (claim,) = bench.claim(inbox)
    StartedJobRegistry("adm:demo:normal", connection=redis).cleanup(timestamp=time.time() + 10**6)
    command = [sys.executable, "-m", "rq.cli", "info", "--raw", "--url", settings.redis_address]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "queue adm:demo:normal 0" in shown
    assert "worker cpu-0" in shown
    assert bench.finish(inbox, claim)
    assert bench.status(job_id) == "completed"


def test_rqs_own_stop_command_reaches_the_loop(bench: Bench, inbox: Inbox, redis: Redis) -> None:
    job_id = bench.submit()
    bench.claim(inbox)
    send_stop_job_command(redis, job_id, serializer=JSONSerializer)
    assert inbox.poll(room=0, wait_seconds=1) == [Cancel(job_id)]


def test_nothing_in_redis_is_pickled(bench: Bench, inbox: Inbox, redis: Redis) -> None:
    job_id = bench.submit()
    (claim,) = bench.claim(inbox)
    bench.finish(inbox, claim)
    record = bench.queue.ledger.read(job_id)
    assert record is not None
    assert not any(value.startswith(b"\x80") for value in record.fields.values())
    assert RqJob.fetch(job_id, connection=redis, serializer=JSONSerializer).kwargs["request"]["seed"] == 5


def test_closed_worker_is_gone_from_the_fleet(bench: Bench, inbox: Inbox) -> None:
    inbox.heartbeat(worker_info(), "adm_x 1\n")
    assert [each.name for each in bench.queue.fleet.read(fresh=True).workers] == ["cpu-0"]
    assert bench.queue.fleet.metrics() == {"cpu-0": "adm_x 1\n"}
    inbox.close()
    assert bench.queue.fleet.read(fresh=True).workers == ()
    assert Worker.all(connection=bench.redis) == []
    assert set(bench.queue.fleet.read().pipelines) == {"demo", "demo-uncond"}  # still known, so that jobs may wait


@pytest.mark.slow
def test_worker_rides_out_a_restart_of_redis(tmp_path: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="adm-", dir="/tmp"))
    server = RedisServer(folder)
    server.start()
    settings = Settings(data=tmp_path, redis_url=server.address)
    client, own = server.client(), server.client()
    inbox = Inbox(own, settings, "cpu-0", [DEMO])
    inbox.open()
    bench = Bench(client, settings)
    first, second = bench.submit(), bench.submit()
    (claim, _) = bench.claim(inbox)
    server.stop()
    assert inbox.poll(room=1, wait_seconds=0) == []
    assert inbox.heartbeat(worker_info(), "") == []
    inbox.progress(claim, Progress(stage="base", step=1, steps=25, fraction=0.1))
    starter = Timer(0.3, server.start)
    starter.start()
    assert bench.finish(inbox, claim)
    starter.join()
    assert bench.status(first) == "completed"
    assert inbox.heartbeat(worker_info(), "") == []
    assert inbox.poll(room=0, wait_seconds=0) == []  # finds that its subscription is gone
    assert inbox.poll(room=0, wait_seconds=0) == []  # subscribes again
    bench.queue.cancel(second)
    assert inbox.poll(room=0, wait_seconds=1) == [Cancel(second)]
    server.stop()
    inbox.close()  # without Redis is no failure: what was announced expires
    shutil.rmtree(folder)


@pytest.mark.slow
def test_redis_that_stays_away_past_the_lease_fails_no_drain(tmp_path: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="adm-", dir="/tmp"))
    server = RedisServer(folder)
    server.start()
    client, own = server.client(), server.client()
    inbox = Inbox(own, Settings(data=tmp_path, redis_url=server.address, lease_seconds=2), "cpu-0", [DEMO])
    inbox.open()
    bench = Bench(client, Settings(data=tmp_path, redis_url=server.address))
    for _ in range(8):
        bench.submit()
    claims = bench.claim(inbox)
    server.stop()
    assert [inbox.give_back(each) for each in claims] == [False] * 8
    shutil.rmtree(folder)


def test_claim_is_told_although_redis_goes_away_right_after_it(
    bench: Bench, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.submit()
    bench.submit()
    claim = inbox._ledger.change
    calls = iter([claim])

    def change_once(job_id: str, decide: Callable[..., object]) -> object:
        if (real := next(calls, None)) is None:
            raise RedisConnectionError("gone")
        return real(job_id, decide)

    monkeypatch.setattr(inbox._ledger, "change", change_once)
    assert len(bench.claim(inbox)) == 1
