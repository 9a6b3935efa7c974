import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import cast

import pytest
from redis import Redis
from redis.client import Pipeline as RedisPipeline

from jobs.contract.caller import ANONYMOUS
from jobs.contract.errors import ErrorKind, FailureKind, RefusedError, UnavailableError
from jobs.contract.request import JobRequest
from jobs.queue.cleaner import Cleaner
from jobs.redis import keys, rq_keys
from jobs.redis.record import Record
from jobs.settings import Settings
from jobs.storage.images import ImageStore
from tests.jobs.samples import png, upload
from tests.worker.conftest import Bench
from worker.inbox import Inbox


@pytest.fixture
def cleaner(bench: Bench, redis: Redis) -> Cleaner:
    return Cleaner(redis, bench.queue.ledger, bench.images, bench.queue.files, lease_seconds=30)


def make_old(settings: Settings) -> None:
    for path in (settings.data / "images").rglob("*.png*"):
        os.utime(path, (time.time() - settings.lease_seconds - 60,) * 2)


def is_over(redis: Redis, job_id: str) -> None:
    members = cast(list[bytes], redis.zrange(keys.ENDED, 0, -1))
    member = next(each for each in members if job_id.encode() in each)
    redis.zadd(keys.ENDED, {member: time.time() - 1})


@pytest.mark.parametrize("expired_by_redis", [False, True])
def test_ended_job_goes_with_all_it_left(
    bench: Bench, inbox: Inbox, cleaner: Cleaner, redis: Redis, settings: Settings, expired_by_redis: bool
) -> None:
    job_id = bench.submit()
    (claim,) = bench.claim(inbox)
    bench.finish(inbox, claim)
    assert cleaner.remove_ended() == 0
    is_over(redis, job_id)
    if expired_by_redis:
        redis.delete(rq_keys.job_key(job_id))
    assert cleaner.remove_ended() == 1
    cleaner.trim_registries()
    leftovers = {key for key in redis.scan_iter() if job_id.encode() in key} - {f"rq:results:{job_id}".encode()}
    assert leftovers == set()
    assert not any(bench.queue.counts().values())
    assert bench.queue.page().data == []
    assert list(bench.images.images()) == []
    assert list((settings.data / "images").rglob("*")) == []


@pytest.mark.parametrize("done", [False, True])
def test_upkeep_of_an_ended_job_leaves_a_later_one_of_the_same_idempotency_key_alone(
    bench: Bench, inbox: Inbox, cleaner: Cleaner, redis: Redis, done: bool
) -> None:
    def submit() -> str:
        return bench.queue.submitter.submit(JobRequest.parse(b'{"class_label": "torus"}'), "every day").job.id

    job_id = submit()
    (claim,) = bench.claim(inbox)
    bench.finish(inbox, claim)
    is_over(redis, job_id)
    redis.delete(rq_keys.job_key(job_id), keys.events(job_id))  # which Redis does itself, at that very time
    assert submit() == job_id
    (claim,) = bench.claim(inbox)
    finished = done and bench.finish(inbox, claim)
    cleaner.remove_ended()
    assert finished or bench.finish(inbox, claim)
    assert [each.id for each in bench.queue.page().data] == [job_id]
    assert bench.queue.image_bytes(job_id, bench.queue.image(job_id, 0).record)
    assert bench.events(job_id) == ["queued", "started", "image", "completed"]


def test_everything_of_an_ended_job_expires_even_without_upkeep(bench: Bench, inbox: Inbox, redis: Redis) -> None:
    job_id = bench.submit()
    (claim,) = bench.claim(inbox)
    inbox.results.fail(claim, FailureKind.STEP_FAILED, "the step raised", retry=False)
    for key in (rq_keys.job_key(job_id), keys.events(job_id), f"rq:results:{job_id}"):
        assert 86000 < redis.ttl(key) <= 86400


def is_due(redis: Redis, job_id: str) -> None:
    then = time.time() - 1
    redis.hset(rq_keys.job_key(job_id), "adm_expires_at", then)
    redis.zadd(keys.EXPIRING, {job_id: then})


def test_job_not_started_in_time_expires_once(bench: Bench, cleaner: Cleaner, redis: Redis) -> None:
    job_id, other = bench.submit(), bench.submit()
    is_due(redis, job_id)
    assert (cleaner.expire_jobs(), cleaner.expire_jobs()) == (1, 0)
    assert (bench.status(job_id), bench.status(other)) == ("expired", "queued")
    assert bench.events(job_id) == ["queued", "expired"]


def test_started_job_does_not_expire(bench: Bench, inbox: Inbox, cleaner: Cleaner, redis: Redis) -> None:
    job_id = bench.submit()
    bench.claim(inbox)
    is_due(redis, job_id)
    assert cleaner.expire_jobs() == 0
    assert redis.zcard(keys.EXPIRING) == 0


def test_job_that_nobody_takes_again_expires(bench: Bench, inbox: Inbox, cleaner: Cleaner, redis: Redis) -> None:
    job_id = bench.submit(expires_in=1)
    (claim,) = bench.claim(inbox)
    inbox.results.requeue(claim)
    assert redis.zscore(keys.EXPIRING, job_id) == pytest.approx(bench.queue.get(job_id).expires_at)
    assert cleaner.expire_jobs() == 0
    is_due(redis, job_id)
    assert cleaner.expire_jobs() == 1
    assert bench.events(job_id) == ["queued", "started", "queued", "expired"]


def test_job_that_was_requeued_while_it_was_swept_stays_and_expires_later(
    bench: Bench, inbox: Inbox, cleaner: Cleaner, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = bench.submit()
    change = bench.queue.ledger.change
    is_due(redis, job_id)
    redis.hset(rq_keys.job_key(job_id), "adm_expires_at", time.time() + 10)  # so that the worker below takes it

    def requeue_meanwhile(job_id: str, decide: Callable[[RedisPipeline, Record | None], bool]) -> bool:
        inbox.results.requeue(bench.claim(inbox)[0])
        return change(job_id, decide)

    # the real one, after a change that comes between the cleaner's two commands
    monkeypatch.setattr(bench.queue.ledger, "change", requeue_meanwhile)
    assert cleaner.expire_jobs() == 0
    assert bench.status(job_id) == "queued"
    assert redis.zcount(keys.EXPIRING, time.time() + 86_000, "inf") == 1


def test_cancel_asked_of_a_dead_worker_is_done_by_the_upkeep(
    bench: Bench, inbox: Inbox, cleaner: Cleaner, redis: Redis
) -> None:
    job_id = bench.submit()
    (claim,) = bench.claim(inbox)
    bench.queue.cancel(job_id)
    redis.zadd(keys.LEASES, {f"{job_id}:{claim.token}": time.time() - 1})
    assert cleaner.recover_jobs() == 1
    assert bench.status(job_id) == "cancelled"


def test_only_old_images_that_nobody_will_publish_are_removed(
    bench: Bench, inbox: Inbox, cleaner: Cleaner, redis: Redis, settings: Settings
) -> None:
    done, running = bench.submit(), bench.submit()
    claims = {each.job_id: each for each in bench.claim(inbox)}
    bench.finish(inbox, claims[done])
    bench.images.put(running, claims[running].token, 0, png())
    bench.images.put(running, "a-lost-execution", 0, png())
    bench.images.put("a-deleted-job", "an-execution", 0, png())
    assert cleaner.remove_unpublished_images() == 0
    make_old(settings)
    assert cleaner.remove_unpublished_images() == 2
    assert {each.job_id for each in bench.images.images()} == {done, running}


def test_age_of_an_image_goes_by_the_clock_of_its_store(
    bench: Bench, inbox: Inbox, cleaner: Cleaner, settings: Settings
) -> None:
    """A store whose clock is hours ahead of this machine's, or behind it, dates unpublished images by that clock."""
    bench.submit()
    (claim,) = bench.claim(inbox)
    bench.images.put(claim.job_id, "a-lost-execution", 0, png())
    objects = cleaner._images.objects  # its clock is not this machine's, for which no server here can be set
    for hours in (-2, 2):
        dated = time.time() + 3600 * hours
        for path in (settings.data / "images" / "jobs").rglob("*.png"):
            os.utime(path, (dated, dated))
        with pytest.MonkeyPatch.context() as patched:
            own = objects.now() + timedelta(hours=hours)
            patched.setattr(objects, "now", lambda own=own: own)
            assert cleaner.remove_unpublished_images() == 0


def test_image_that_a_killed_worker_left_half_written_is_removed(
    bench: Bench, cleaner: Cleaner, settings: Settings
) -> None:
    half = settings.data / "images" / "jobs" / "a-job" / "an-execution" / "0.png#1"
    half.parent.mkdir(parents=True)
    half.write_bytes(png()[:20])
    assert cleaner.remove_unpublished_images() == 0, "it may be in the making"
    make_old(settings)
    assert cleaner.remove_unpublished_images() == 1
    assert not half.exists()


def test_image_that_is_gone_is_refused_by_name(bench: Bench, inbox: Inbox) -> None:
    job_id = bench.submit()
    (claim,) = bench.claim(inbox)
    bench.finish(inbox, claim)
    bench.images.delete_job(job_id)
    with pytest.raises(RefusedError) as caught:
        bench.queue.image_bytes(job_id, bench.queue.image(job_id, 0).record)
    assert caught.value.kind is ErrorKind.UNKNOWN_IMAGE


def test_store_that_does_not_take_an_image_says_so(settings: Settings) -> None:
    store = ImageStore(settings.store_address)
    (settings.data / "images" / "jobs").write_text("in the way")
    with pytest.raises(UnavailableError):
        store.put("job", "execution", 0, png())


def test_stray_file_in_the_store_disturbs_neither_upkeep_nor_removal(
    bench: Bench, cleaner: Cleaner, settings: Settings
) -> None:
    bench.images.put("a-deleted-job", "an-execution", 0, png())
    folder = settings.data / "images" / "jobs"
    strays = [folder / "stray.png", folder / "a-deleted-job" / "stray.png"]
    for stray in strays:
        stray.write_bytes(png())
    make_old(settings)
    assert cleaner.remove_unpublished_images() == 1
    bench.images.delete_job("a-deleted-job")
    assert all(stray.exists() for stray in strays)


def test_file_of_an_upload_goes_when_its_record_has_expired(
    bench: Bench, cleaner: Cleaner, redis: Redis, settings: Settings
) -> None:
    kept, expired = (upload(bench.queue.files, png(grey)).id for grey in (1, 2))
    stray = settings.data / "images" / "files" / "stray.png"
    stray.write_bytes(png())
    redis.delete(keys.file(expired))
    assert cleaner.remove_stray_files() == 0
    make_old(settings)
    assert cleaner.remove_stray_files() == 1
    assert bench.queue.files.png(kept, ANONYMOUS)
    assert stray.exists()


def test_one_cleaner_of_all_lists_the_store_in_a_while(cleaner: Cleaner, bench: Bench, redis: Redis) -> None:
    other = Cleaner(redis, bench.queue.ledger, bench.images, bench.queue.files, lease_seconds=30)
    redis.delete(keys.STORE_CLEANED)  # a service of other tests may run beside
    assert [each.first_within(60) for each in (cleaner, other, cleaner)] == [True, False, False]
    assert 0 < redis.ttl(keys.STORE_CLEANED) <= 60
