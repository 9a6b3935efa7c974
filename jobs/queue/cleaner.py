"""Periodic work of the service: expires queued jobs, recovers jobs of dead workers, removes old jobs and files."""

from collections import defaultdict
from datetime import timedelta
from typing import cast

from redis.client import Pipeline as RedisPipeline
from redis.client import Redis

from jobs.contract.job import JobStatus
from jobs.queue import rq_registries
from jobs.queue.ledger import Ledger
from jobs.queue.webhooks import Webhooks
from jobs.redis import keys, rq_keys
from jobs.redis.record import Record
from jobs.redis.replies import matched
from jobs.storage.files import FileStore
from jobs.storage.images import CHECKPOINT_SUFFIX, ImageStore, StoredImage, checkpoint_key


class Cleaner:
    """The tasks of the service's periodic work (`service.upkeep`).

    Calls may be repeated, and may run in many processes at once.
    """

    def __init__(self, redis: Redis, ledger: Ledger, images: ImageStore, files: FileStore, lease_seconds: int) -> None:
        self._redis, self._ledger, self._images, self._files = redis, ledger, images, files
        self._lease_seconds = lease_seconds

    def expire_jobs(self) -> int:
        """Expire the jobs that were not started in time; return their number."""
        now = self._ledger.now()
        due = cast(list[bytes], self._redis.zrangebyscore(keys.EXPIRING, "-inf", now))

        def decide(pipe: RedisPipeline, record: Record | None) -> bool:
            if record is not None and record.status is JobStatus.QUEUED and now >= record.expires_at:
                self._ledger.transitions.expire(pipe, record)
                return True
            return False

        expired = 0
        for each in due:
            if job_id := matched(keys.JOB_ID, each):
                expired += self._ledger.change(job_id[0], decide)
        # jobs that were requeued meanwhile have a later time in this index, so they stay
        self._redis.zremrangebyscore(keys.EXPIRING, "-inf", now)
        return expired

    def recover_jobs(self) -> int:
        """Recover the jobs of dead workers, in case no living worker has done so; return their number.

        Also puts delayed jobs that are due into their queues.
        """
        self._ledger.enqueue_due()
        return self._ledger.recover_expired_leases()

    def remove_ended(self) -> int:
        """Remove the jobs whose retention has ended, with their images; return their number."""
        due = cast(list[bytes], self._redis.zrangebyscore(keys.ENDED, "-inf", self._ledger.now()))
        removed = 0
        for each in due:
            if member := matched(keys.INDEX_MEMBER, each):
                self._remove(member[2], member[0])
                removed += 1
            else:
                self._redis.zrem(keys.ENDED, each)  # an invalid entry, which names no job
        return removed

    def _remove(self, job_id: str, member: str) -> None:
        """Remove a job by its index member.

        Redis removes the job's hash by its own expiry. After that, a later job with the same idempotency key may have
        the same id; that job stays.
        """
        # listed before the record is read, so that none belongs to a later job of this id
        images = [each.key for each in self._images.images(job_id)]
        record = self._ledger.read(job_id)
        caller = (cast(bytes | None, self._redis.hget(keys.JOB_CALLERS, member)) or b"").decode()
        if record is None or record.index_member == member:
            self._images.delete(images)  # first, so that the next upkeep finds the job again if this one is killed
        self._ledger.delete(job_id, member)

        def forget(pipe: RedisPipeline, record: Record | None) -> None:
            indexes = (index for status in (None, *JobStatus) for index in keys.indexes(status, caller))
            for key in (keys.ENDED, *indexes):
                pipe.zrem(key, member)
            pipe.hdel(keys.JOB_CALLERS, member)
            if record is None:
                pipe.delete(keys.events(job_id), keys.progress(job_id))

        self._ledger.change(job_id, forget)

    def trim_registries(self) -> None:
        """Remove expired entries from RQ's registries of ended jobs, because no RQ worker runs to do it."""
        for queue in cast(set[bytes], self._redis.smembers(rq_keys.QUEUES_KEY)):
            rq_registries.trim_registries(self._redis, queue.decode(errors="replace"), self._ledger.now())

    def remove_unpublished_images(self) -> int:
        """Remove half-written images, and unpublished ones whose execution is over; return their number.

        Also removes checkpoints from which no job can resume.
        """
        old = self._images.objects.now() - timedelta(seconds=self._lease_seconds)
        by_job: defaultdict[str, list[StoredImage]] = defaultdict(list)
        for each in self._images.images():
            if each.last_modified < old:
                by_job[each.job_id].append(each)
        removed = 0
        for job_id, images in by_job.items():
            record = self._ledger.read(job_id)
            orphans = [each.key for each in images if not is_wanted(each, record)]
            self._images.delete(orphans)
            removed += len(orphans)
        return removed + self._images.objects.remove_unfinished(old)

    def remove_stray_files(self) -> int:
        """Remove the pictures of uploads that have expired; return their number."""
        return self._files.remove_strays()

    def recount_webhooks(self) -> None:
        """Correct the callers' numbers of pending webhooks."""
        Webhooks(self._redis).recount()

    def first_within(self, seconds: int) -> bool:
        """Return True for the first call of any process on this Redis within the given seconds."""
        return bool(self._redis.set(keys.STORE_CLEANED, 1, nx=True, ex=seconds))


def is_wanted(stored: StoredImage, record: Record | None) -> bool:
    """Return whether an object is its job's checkpoint, or an image that is published or may still be."""
    if record is None:
        return False
    if stored.key.endswith(CHECKPOINT_SUFFIX):
        return record.checkpoint is not None and stored.key == checkpoint_key(record.id, record.checkpoint)
    published = {each.execution_id for each in record.images}
    return stored.execution_id in (published if record.status.is_final else published | {record.token})
