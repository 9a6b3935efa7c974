"""Where images lie: a local folder or an S3 bucket.

A fence in Redis cannot cover a file store. So a key carries the execution that wrote it, the transaction that records
an image publishes it, and the sweep removes what was never published.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from struct import unpack

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, from_url

from jobs.errors import ErrorKind, RefusedError, SettingsError, UnavailableError
from jobs.job import ImageRecord

ROOT = "jobs"
KEY_PARTS = 4  # as `image_key` makes them


@dataclass(frozen=True)
class StoredImage:
    """One object of the store, as a listing shows it."""

    key: str
    job_id: str
    execution_id: str
    last_modified: datetime


class ImageStore:
    """PNG files by job, execution and index."""

    def __init__(self, address: str) -> None:
        """Raises: SettingsError for an address that no store can be made of."""
        try:
            if "://" in address:
                self._store = from_url(address)
            else:
                self._store = LocalStore(Path(address), mkdir=True, automatic_cleanup=True)
        except (BaseError, OSError, ValueError) as error:
            raise SettingsError(f"ADM_STORE: {address} cannot be used: {str(error).partition(chr(10))[0]}") from error

    def put(self, job_id: str, execution_id: str, index: int, png: bytes) -> ImageRecord:
        """Store an image; nobody sees it before its record is published.

        Raises: UnavailableError when the store does not take it.
        """
        width, height = unpack(">II", png[16:24])  # PNG, 11.2.2: the header's first two fields
        try:
            obstore.put(self._store, image_key(job_id, execution_id, index), png)
        except BaseError as error:
            raise UnavailableError(f"the image store did not take an image: {type(error).__name__}") from error
        return ImageRecord(
            index=index,
            sha256=hashlib.sha256(png).hexdigest(),
            width=width,
            height=height,
            bytes=len(png),
            execution_id=execution_id,
        )

    def get(self, job_id: str, image: ImageRecord) -> bytes:
        """An image's bytes.

        Raises: RefusedError when it is gone, UnavailableError when the store cannot be reached.
        """
        try:
            return bytes(obstore.get(self._store, image_key(job_id, image.execution_id, image.index)).bytes())
        except FileNotFoundError as error:
            raise RefusedError(ErrorKind.UNKNOWN_IMAGE, f"image {image.index} of job {job_id} is gone") from error
        except BaseError as error:
            raise UnavailableError(f"the image store cannot be read: {type(error).__name__}") from error

    def delete_job(self, job_id: str) -> None:
        """Remove all images of a job, of every execution."""
        self.delete([each.key for each in self.images(job_id)])

    def delete(self, keys: list[str]) -> None:
        """Remove objects; one that has gone already is no error."""
        for key in keys:
            try:
                obstore.delete(self._store, key)
            except FileNotFoundError:
                continue
            except BaseError as error:
                raise UnavailableError(f"the image store does not delete: {type(error).__name__}") from error

    def images(self, job_id: str | None = None) -> Iterator[StoredImage]:
        """All images of a job, or of all jobs, published or not; whatever else lies there is left alone."""
        prefix = ROOT if job_id is None else f"{ROOT}/{job_id}"
        try:
            for chunk in obstore.list(self._store, prefix):
                for each in chunk:
                    parts = each["path"].split("/")
                    if len(parts) == KEY_PARTS:
                        yield StoredImage(each["path"], parts[1], parts[2], each["last_modified"])
        except BaseError as error:
            raise UnavailableError(f"the image store cannot be listed: {type(error).__name__}") from error


def image_key(job_id: str, execution_id: str, index: int) -> str:
    return f"{ROOT}/{job_id}/{execution_id}/{index}.png"
