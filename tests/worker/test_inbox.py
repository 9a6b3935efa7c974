import json
import time
from threading import Timer
from typing import cast

from redis import Redis
from rq.registry import FailedJobRegistry

from jobs.contract.errors import FailureKind
from jobs.contract.job import Progress
from jobs.contract.work import rank_of
from jobs.redis import keys, rq_keys
from tests.jobs.samples import png, replay, worker_info
from tests.worker.conftest import Bench
from worker.claim import Cancel, Submit
from worker.inbox import Inbox


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
    commands = inbox.poll(room=1, wait_seconds=300)
    timer.join()
    assert [type(each) for each in commands] == [Submit]
    assert time.monotonic() - began < 150, "not at the end of its wait"


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
    assert inbox.results.cancelled(claim)
    assert bench.status(job_id) == "cancelled"
    assert bench.events(job_id) == ["queued", "started", "cancelled"]


def test_cancel_whose_message_was_lost_is_noticed_by_the_heartbeat(bench: Bench, inbox: Inbox, redis: Redis) -> None:
    job_id = bench.submit()
    bench.claim(inbox)
    redis.hset(rq_keys.job_key(job_id), "adm_cancel", "1")
    assert inbox.heartbeat(worker_info(), "") == [job_id]


def test_late_stop_message_does_not_affect_a_job_that_nobody_cancelled(bench: Bench, inbox: Inbox) -> None:
    job_id = bench.submit()
    (claim,) = bench.claim(inbox)
    assert not inbox.results.cancelled(claim)
    assert bench.status(job_id) == "queued"
    (again,) = bench.claim(inbox)
    assert bench.finish(inbox, again)


def test_requeue_spends_no_retry_and_goes_to_the_front(bench: Bench, inbox: Inbox) -> None:
    first = bench.submit()
    (claim,) = bench.claim(inbox)
    bench.submit()
    assert inbox.results.requeue(claim)
    assert bench.status(first) == "queued"
    again = bench.claim(inbox)
    assert again[0].job_id == first
    assert bench.queue.ledger.read(first).retries_left == 3  # type: ignore[union-attr] # it exists


def test_failure_is_retried_three_times_then_final(bench: Bench, inbox: Inbox) -> None:
    job_id = bench.submit()
    for attempt in range(1, 5):
        (claim,) = bench.claim(inbox)
        assert claim.attempt == attempt
        assert inbox.results.fail(claim, FailureKind.STEP_FAILED, "the step raised", retry=True)
    job = bench.queue.get(job_id)
    assert (job.status, job.attempt) == ("failed", 4)
    assert bench.events(job_id).count("failed") == 1
    assert bench.claim(inbox) == []


def test_failure_without_retry_is_final_at_once(bench: Bench, inbox: Inbox) -> None:
    job_id = bench.submit()
    (claim,) = bench.claim(inbox)
    assert inbox.results.fail(claim, FailureKind.NOT_OFFERED, "no such sampler", retry=False)
    assert bench.status(job_id) == "failed"


def test_queue_entry_that_is_no_job_is_dropped(bench: Bench, inbox: Inbox, redis: Redis) -> None:
    queue = rq_keys.queue_key("adm:demo:normal")
    for garbage in (b"nobody", b"", b"\xff\xfe"):
        redis.rpush(queue, garbage)
    job_id = bench.submit()
    assert [each.job_id for each in bench.claim(inbox) or bench.claim(inbox)] == [job_id]
    assert redis.llen(queue) == 0


def test_poisoned_payload_fails_and_does_not_stop_the_queue(bench: Bench, inbox: Inbox, redis: Redis) -> None:
    bad, good = bench.submit(), bench.submit()
    redis.hset(rq_keys.job_key(bad), "data", b"\x80\x04not json")
    assert [each.job_id for each in bench.claim(inbox)] == [good]
    job = bench.queue.get(bad)
    assert job.error is not None
    assert (job.status, job.error.kind, job.request) == ("failed", FailureKind.BAD_PAYLOAD, None)
    assert bad in FailedJobRegistry("adm:demo:normal", connection=redis)


def test_expired_job_is_never_run(bench: Bench, inbox: Inbox, redis: Redis) -> None:
    job_id = bench.submit(expires_in=1)
    redis.hset(rq_keys.job_key(job_id), "adm_expires_at", time.time() - 1)
    assert bench.claim(inbox) == []
    assert bench.status(job_id) == "expired"
    assert bench.events(job_id) == ["queued", "expired"]


def test_job_requeued_after_its_expiry_still_runs(bench: Bench, inbox: Inbox, redis: Redis) -> None:
    job_id = bench.submit(expires_in=1)
    (claim,) = bench.claim(inbox)
    redis.hset(rq_keys.job_key(job_id), "adm_expires_at", time.time() - 1)
    inbox.results.requeue(claim)
    assert len(bench.claim(inbox)) == 1


def test_requeued_job_waits_for_as_long_as_an_ended_one_is_kept(bench: Bench, inbox: Inbox, redis: Redis) -> None:
    job_id = bench.submit(expires_in=1)
    (claim,) = bench.claim(inbox)
    inbox.results.requeue(claim)
    assert bench.queue.get(job_id).expires_at > time.time() + 86_000
    redis.hset(rq_keys.job_key(job_id), "adm_expires_at", time.time() - 1)
    assert bench.claim(inbox) == []
    assert bench.events(job_id) == ["queued", "started", "queued", "expired"]


def test_deleted_job_leaves_no_key_and_its_worker_is_refused(bench: Bench, inbox: Inbox, redis: Redis) -> None:
    job_id = bench.submit()
    (claim,) = bench.claim(inbox)
    inbox.reports.progress((claim, Progress(stage="base", step=1, steps=25, fraction=0.1)))
    bench.queue.delete(job_id)
    inbox.reports.progress((claim, Progress(stage="base", step=2, steps=25, fraction=0.2)))
    assert inbox.heartbeat(worker_info(), "") == [job_id]
    assert not bench.finish(inbox, claim)
    bench.redis.delete(keys.progress(job_id))
    assert [key for key in redis.scan_iter() if job_id.encode() in key] == []
    assert all(int(value) == 0 for value in redis.hvals(keys.queued_work("demo")))


def test_progress_is_throttled_and_seen_by_polls(bench: Bench, inbox: Inbox) -> None:
    job_id = bench.submit()
    (claim,) = bench.claim(inbox)
    for step in range(1, 100):
        inbox.reports.progress((claim, Progress(stage="base", step=step, steps=100, fraction=step / 100)))
    assert bench.events(job_id).count("progress") == 1
    progress = bench.queue.get(job_id).progress
    assert (progress.stage, progress.step) == ("base", 1)


def test_progress_of_all_jobs_of_a_step_is_reported_though_one_of_them_is_lost(bench: Bench, inbox: Inbox) -> None:
    first, lost, last = (bench.submit() for _ in range(3))
    claims = bench.claim(inbox, room=3)
    bench.queue.delete(lost)
    inbox.reports.progress(*((claim, Progress(stage="base", step=2, steps=25, fraction=0.1)) for claim in claims))
    assert [bench.queue.get(job_id).progress.step for job_id in (first, last)] == [2, 2]
    assert not bench.redis.exists(keys.progress(lost))


def test_image_is_fetchable_as_soon_as_its_event_was_sent(bench: Bench, inbox: Inbox) -> None:
    job_id = bench.submit(n=2)
    (claim,) = bench.claim(inbox)
    assert inbox.results.image_ready(claim, bench.images.put(job_id, claim.token, 1, png(9)))
    event = replay(bench.redis, job_id)[-1]
    assert (event.kind, json.loads(event.data)["index"]) == ("image", 1)
    assert "/v1/" not in event.data  # workers know no address
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
    inbox.results.requeue(claim)
    (claim,) = bench.claim(inbox)
    assert counted() == {f"running:{rank}:base": 75, f"running:{rank}:upsample": 30}
    bench.finish(inbox, claim)
    assert counted() == {}
