"""What the service does now and then so that nothing stays for ever: expire, recover, remove."""

from collections import defaultdict
from datetime import timedelta
from typing import cast

from redis.client import Pipeline, Redis

from jobs.contract.job import JobStatus
from jobs.queue import keys, rq_registries
from jobs.queue.ledger import Ledger
from jobs.queue.record import Record
from jobs.queue.rubbish import INDEX_MEMBER, JOB_ID, matched
from jobs.storage.files import FileStore
from jobs.storage.images import CHECKPOINT_SUFFIX, ImageStore, StoredImage, checkpoint_key


class Sweeper:
    """Each call may be repeated and may run in many processes at once."""

    def __init__(self, redis: Redis, ledger: Ledger, images: ImageStore, files: FileStore, lease_seconds: int) -> None:
        self._redis, self._ledger, self._images, self._files = redis, ledger, images, files
        self._lease_seconds = lease_seconds

    def expire_jobs(self) -> int:
        """End the jobs that were not started in time; returns how many."""
        now = self._ledger.now()
        due = cast(list[bytes], self._redis.zrangebyscore(keys.EXPIRING, "-inf", now))

        def decide(pipe: Pipeline, record: Record | None) -> bool:
            if record is not None and record.status is JobStatus.QUEUED and now >= record.expires_at:
                self._ledger.expire(pipe, record)
                return True
            return False

        expired = 0
        for each in due:
            if job_id := matched(JOB_ID, each):
                expired += self._ledger.change(job_id[0], decide)
        self._redis.zremrangebyscore(keys.EXPIRING, "-inf", now)  # and not one that was put back meanwhile
        return expired

    def recover_jobs(self) -> int:
        """Take back the jobs of dead workers, for when no other worker lives that would; returns how many.

        Delayed jobs whose time has come enter their queues too.
        """
        self._ledger.enqueue_due()
        return self._ledger.recover_expired_leases()

    def remove_ended(self) -> int:
        """Remove the jobs whose retention is over, with their images; returns how many."""
        due = cast(list[bytes], self._redis.zrangebyscore(keys.ENDED, "-inf", self._ledger.now()))
        removed = 0
        for each in due:
            if member := matched(INDEX_MEMBER, each):
                self._remove(member[2], member[0])
                removed += 1
            else:
                self._redis.zrem(keys.ENDED, each)  # names no job, and so not all of them
        return removed

    def _remove(self, job_id: str, member: str) -> None:
        """Remove a job, known by its place in the indexes.

        Redis expires its hash by itself, and then a later job of the same idempotency key may have its id: that stays.
        """
        images = [each.key for each in self._images.images(job_id)]  # before the look at the job: not a later one's
        record = self._ledger.read(job_id)
        caller = (cast(bytes | None, self._redis.hget(keys.JOB_CALLERS, member)) or b"").decode()
        if record is None or record.index_member == member:
            self._images.delete(images)  # first: a sweep that is killed in between finds the job again
        self._ledger.delete(job_id, member)

        def forget(pipe: Pipeline, record: Record | None) -> None:
            indexes = (index for status in (None, *JobStatus) for index in keys.indexes(status, caller))
            for key in (keys.ENDED, *indexes):
                pipe.zrem(key, member)
            pipe.hdel(keys.JOB_CALLERS, member)
            if record is None:
                pipe.delete(keys.events(job_id), keys.progress(job_id))

        self._ledger.change(job_id, forget)

    def trim_registries(self) -> None:
        """Take what has expired out of RQ's registries of ended jobs; no RQ worker runs that would."""
        for queue in cast(set[bytes], self._redis.smembers(rq_registries.QUEUES_KEY)):
            rq_registries.trim_registries(self._redis, queue.decode(errors="replace"), self._ledger.now())

    def remove_unpublished_images(self) -> int:
        """Remove half-written images, and those that no job shows and no live execution will publish; counts them.

        Checkpoints too, but those from which jobs may go on.
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
        """Remove the pictures of uploads that have expired; returns how many."""
        return self._files.remove_strays()

    def first_within(self, seconds: int) -> bool:
        """Whether no sweeper of this Redis, this one included, has been told so in the last seconds."""
        return bool(self._redis.set(keys.STORE_SWEPT, 1, nx=True, ex=seconds))


def is_wanted(stored: StoredImage, record: Record | None) -> bool:
    """Whether it is the checkpoint of its job, or of an execution whose images are shown or may yet be."""
    if record is None:
        return False
    if stored.key.endswith(CHECKPOINT_SUFFIX):
        return record.checkpoint is not None and stored.key == checkpoint_key(record.id, record.checkpoint)
    published = {each.execution_id for each in record.images}
    return stored.execution_id in (published if record.status.is_final else published | {record.token})
