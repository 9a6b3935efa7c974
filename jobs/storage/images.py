"""The store of jobs' images, and of running jobs' checkpoints.

A transaction of Redis cannot include the store. So an object's key names the execution that wrote the object, the
transaction that records an image in Redis publishes it, and the upkeep removes unpublished objects. A checkpoint is
published in the same way.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from struct import unpack
from uuid import uuid4

from jobs.contract.errors import ErrorKind, RefusedError, UnavailableError
from jobs.contract.job import CheckpointRecord, ImageRecord
from jobs.settings.fields import STORE_TIMEOUT_SECONDS
from jobs.storage.store import ObjectStore, Observe, unobserved

ROOT = "jobs"
PROBE = "probe"  # in place of a job id in the keys that `takes` uses
CHECKPOINT_SUFFIX = ".safetensors"
KEY_PARTS = 4  # of the keys that `image_key` and `checkpoint_key` make


@dataclass(frozen=True)
class StoredImage:
    """One image or checkpoint in the store, published or not."""

    key: str
    job_id: str
    execution_id: str
    last_modified: datetime


class ImageStore:
    """PNG files by job, execution and index. Raises UnavailableError when the store cannot be reached."""

    def __init__(
        self, address: str, timeout_seconds: float = STORE_TIMEOUT_SECONDS, observe: Observe = unobserved
    ) -> None:
        """Raises: SettingsError for an address that names no store."""
        self.objects = ObjectStore(address, timeout_seconds, observe)

    def put(self, job_id: str, execution_id: str, index: int, png: bytes) -> ImageRecord:
        """Store an image; it is not visible before its record is published."""
        width, height = unpack(">II", png[16:24])  # PNG, 11.2.2: the header's first two fields
        self.objects.put(image_key(job_id, execution_id, index), png)
        return ImageRecord(
            index=index,
            sha256=hashlib.sha256(png).hexdigest(),
            width=width,
            height=height,
            bytes=len(png),
            execution_id=execution_id,
        )

    def takes(self, png: bytes) -> bool:
        """Return whether the store accepts these bytes now: they are stored under a key of no job, then deleted."""
        key = image_key(PROBE, uuid4().hex, 0)
        try:
            self.objects.put(key, png)
            self.objects.delete([key])
        except UnavailableError:
            return False
        return True

    def get(self, job_id: str, image: ImageRecord) -> bytes:
        """An image's bytes. Raises: RefusedError if it no longer exists."""
        try:
            return self.objects.get(image_key(job_id, image.execution_id, image.index))
        except FileNotFoundError as error:
            raise RefusedError(ErrorKind.UNKNOWN_IMAGE, f"image {image.index} of job {job_id} is gone") from error

    def put_checkpoint(self, job_id: str, execution_id: str, numerics: str, data: bytes) -> CheckpointRecord:
        """Store a checkpoint; no worker resumes from it before its record is written."""
        record = CheckpointRecord(execution_id=execution_id, sha256=hashlib.sha256(data).hexdigest(), numerics=numerics)
        self.objects.put(checkpoint_key(job_id, record), data)
        return record

    def get_checkpoint(self, job_id: str, record: CheckpointRecord) -> bytes:
        """A checkpoint's bytes, not compared with their hash. Raises: FileNotFoundError if it no longer exists."""
        return self.objects.get(checkpoint_key(job_id, record))

    def delete_checkpoint(self, job_id: str, record: CheckpointRecord) -> None:
        """Remove a checkpoint that is no longer needed."""
        self.objects.delete([checkpoint_key(job_id, record)])

    def delete_job(self, job_id: str) -> None:
        """Remove all images and checkpoints of a job, of every execution."""
        self.delete([each.key for each in self.images(job_id)])

    def delete(self, keys: list[str]) -> None:
        """Remove objects; a missing one is not an error."""
        self.objects.delete(keys)

    def images(self, job_id: str | None = None) -> Iterator[StoredImage]:
        """All images and checkpoints of a job, or of all jobs, published or not; other objects are skipped."""
        for each in self.objects.list(ROOT if job_id is None else f"{ROOT}/{job_id}"):
            parts = each.key.split("/")
            if len(parts) == KEY_PARTS:
                yield StoredImage(each.key, parts[1], parts[2], each.last_modified)


def image_key(job_id: str, execution_id: str, index: int) -> str:
    return f"{ROOT}/{job_id}/{execution_id}/{index}.png"


def checkpoint_key(job_id: str, checkpoint: CheckpointRecord) -> str:
    return f"{ROOT}/{job_id}/{checkpoint.execution_id}/{checkpoint.sha256}{CHECKPOINT_SUFFIX}"
