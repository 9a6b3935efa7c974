"""Pictures that callers have uploaded: the record in Redis, the PNG in the store.

The record publishes the object and expires by itself; the sweep removes objects that no record names. An object's key
is of one upload, so that a sweep never takes what a later upload of the same bytes has just stored.
"""

import hashlib
from collections.abc import Sequence
from datetime import timedelta
from typing import Literal, NamedTuple, cast
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from redis.client import Redis

from jobs.callers.caller import Caller
from jobs.contract.errors import ErrorKind, RefusedError
from jobs.queue import keys
from jobs.queue.clock import RedisClock
from jobs.queue.rubbish import answers
from jobs.queue.server import ServerReader
from jobs.settings import Settings
from jobs.storage.store import ObjectStore
from jobs.views.fleet import FleetReader
from pictures.decoding import MAX_SIDE_PX
from pictures.reduction import Picture, is_halved

ROOT = "files"
KEY_PARTS = 3  # folder, file, upload
LEAST_COUNTED_BYTES = 1 << 16  # of a file, so that the quota bounds their number too
LEAST_SHORT_SIDE_PX = 512  # what the largest published model makes, for pipelines that no worker has announced yet


class FileInfo(BaseModel):
    """An uploaded picture."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(description="the same for the same bytes of the same caller")
    object: Literal["file"] = "file"
    sha256: str = Field(description="of the bytes as they were uploaded")
    width: int = Field(description="of the picture as it was uploaded, upright; what is kept of it may be smaller")
    height: int
    bytes: int = Field(description="as uploaded")
    expires_at: float = Field(description="Unix seconds; another upload, or a job that uses it, puts it off")


class FileRecord(BaseModel):
    """What Redis keeps of a file; when it expires is known to Redis itself."""

    model_config = ConfigDict(frozen=True)

    id: str
    sha256: str
    width: int
    height: int
    bytes: int
    key: str = Field(description="of the PNG in the store")
    png_sha256: str
    short_side_px: int = Field(default=MAX_SIDE_PX, description="for which it was reduced; width and height are not")
    caller: str = Field(default="", description="whose it is; empty where it was made without a key")

    def suffices(self, short_side_px: int) -> bool:
        """Whether what is kept is as good as the whole for a pipeline that makes so much of the short side."""
        return self.short_side_px >= short_side_px or not is_halved(self.width, self.height, self.short_side_px)

    def info(self, expires_at: float) -> FileInfo:
        return FileInfo(**self.model_dump(include=set(FileInfo.model_fields)), expires_at=expires_at)


class StoredFile(NamedTuple):
    """A file, how it is shown, and for how long it is kept."""

    record: FileRecord
    info: FileInfo
    kept_seconds: float


class FileStore:
    """The files of one Redis; all calls block."""

    def __init__(self, redis: Redis, settings: Settings, objects: ObjectStore) -> None:
        self._redis, self._settings, self._objects = redis, settings, objects
        self._now, self._server = RedisClock(redis).now, ServerReader(redis)
        self._fleet = FleetReader(redis, settings.fleet_refresh_seconds)

    def short_side_px(self) -> int:
        """Return what the largest pipeline makes of a picture's short side: the size of its first stage."""
        sizes = [each.stages[0].image_size for each in self._fleet.read().pipelines.values() if each.stages]
        return max([LEAST_SHORT_SIDE_PX, *sizes])

    def present(self, sha256: str, short_side_px: int, caller: Caller) -> FileInfo | None:
        """Keep a caller's upload of these bytes for longer; None unless one suffices for such pipelines."""
        file_id = id_of(sha256, caller)
        record = self.hold([file_id], self._settings.retention_seconds, caller)[0]
        if record is not None and record.suffices(short_side_px) and self._objects.has(record.key):
            return self.get(file_id, caller).info
        return None

    def add(self, sha256: str, num_bytes: int, picture: Picture, short_side_px: int, caller: Caller) -> FileInfo:
        """Keep the picture decoded from an upload for as long as jobs are kept: store it and publish its record.

        A pipeline that came later and takes more than any before gets the better of it once it is uploaded again.
        Raises: RefusedError when the files kept are too many bytes, and where Redis must not be used.
        """
        self._server.usable()
        seconds, file_id = self._settings.retention_seconds, id_of(sha256, caller)
        self._refuse_above_quota(len(picture.png))
        record = FileRecord(
            id=file_id,
            sha256=sha256,
            width=picture.width,
            height=picture.height,
            bytes=num_bytes,
            key=f"{ROOT}/{file_id}/{uuid4().hex}.png",
            png_sha256=hashlib.sha256(picture.png).hexdigest(),
            short_side_px=short_side_px,
            caller=caller.id,
        )
        self._objects.put(record.key, picture.png)
        with self._redis.pipeline() as pipe:
            pipe.set(keys.file(file_id), record.model_dump_json(), ex=seconds)
            pipe.hset(keys.FILE_BYTES, file_id, max(len(picture.png), LEAST_COUNTED_BYTES))
            pipe.execute()
        return record.info(self._now() + seconds)

    def _refuse_above_quota(self, num_bytes: int) -> None:
        """Raise RefusedError for a file that does not fit beside those kept."""
        kept = self._kept_bytes()
        if kept + num_bytes > self._settings.max_files_bytes:
            self._forget_expired()
            kept = self._kept_bytes()
        if kept + num_bytes > self._settings.max_files_bytes:
            detail = (
                f"the pictures kept have {kept} bytes of ADM_MAX_FILES_BYTES; delete some, or wait until they expire"
            )
            raise RefusedError(ErrorKind.FILES_FULL, detail)

    def _kept_bytes(self) -> int:
        sizes = cast(list[bytes], self._redis.hvals(keys.FILE_BYTES))
        return sum(map(int, sizes))

    def _forget_expired(self) -> None:
        counted = [each.decode() for each in cast(list[bytes], self._redis.hkeys(keys.FILE_BYTES))]
        with self._redis.pipeline() as pipe:
            for each in counted:
                pipe.exists(keys.file(each))
            gone = [file_id for file_id, exists in zip(counted, answers(pipe), strict=True) if not exists]
        if gone:
            self._redis.hdel(keys.FILE_BYTES, *gone)

    def get(self, file_id: str, caller: Caller) -> StoredFile:
        """A file's record, and how it is shown. Raises: RefusedError for one that is unknown or has expired."""
        with self._redis.pipeline() as pipe:
            pipe.get(keys.file(file_id))
            pipe.expiretime(keys.file(file_id))
            text, expires_at = answers(pipe)
        if (record := record_of(text)) is None or not caller.may_see(record.caller):
            raise RefusedError(ErrorKind.UNKNOWN_FILE, f"no file {file_id[:128]!r}")
        return StoredFile(record, record.info(expires_at), expires_at - self._now())

    def png(self, file_id: str, caller: Caller) -> bytes:
        """A file's picture: PNG, 8-bit RGB. Raises: RefusedError when it is gone."""
        try:
            return self._objects.get(self.get(file_id, caller).record.key)
        except FileNotFoundError as error:
            raise RefusedError(ErrorKind.UNKNOWN_FILE, f"file {file_id} is gone") from error

    def hold(self, file_ids: Sequence[str], seconds: int, caller: Caller) -> list[FileRecord | None]:
        """Keep a caller's files for at least so long from now; None for each that is unknown or has expired."""
        texts = cast(list[bytes | None], self._redis.mget([keys.file(each) for each in file_ids]))
        owned = [record is not None and caller.may_see(record.caller) for record in map(record_of, texts)]
        with self._redis.pipeline() as pipe:
            for each, is_own in zip(file_ids, owned, strict=True):
                if is_own:
                    pipe.expire(keys.file(each), seconds, gt=True)
                    pipe.get(keys.file(each))
            held = iter(answers(pipe)[1::2])
        return [record_of(next(held)) if is_own else None for is_own in owned]

    def delete(self, file_id: str, caller: Caller) -> None:
        """Remove a file; a job that still waits for it will fail. Raises: RefusedError for an unknown one."""
        record = self.get(file_id, caller).record
        self._redis.delete(keys.file(file_id))
        self._redis.hdel(keys.FILE_BYTES, file_id)
        self._objects.delete([record.key])

    def remove_strays(self) -> int:
        """Remove pictures that no record names, because it has expired or was never written; returns how many."""
        # younger ones may be about to get one
        old = self._objects.now() - timedelta(seconds=self._settings.lease_seconds)
        self._forget_expired()
        ours = [each for each in self._objects.list(ROOT) if len(each.key.split("/")) == KEY_PARTS]
        strays = [each.key for each in ours if each.last_modified < old and not self._is_recorded(each.key)]
        self._objects.delete(strays)
        return len(strays)

    def _is_recorded(self, key: str) -> bool:
        (text,) = cast(list[bytes | None], self._redis.mget(keys.file(key.split("/")[1])))  # None for the wrong type
        record = record_of(text)
        return record is not None and record.key == key


def id_of(sha256: str, caller: Caller) -> str:
    """The id of a caller's file whose bytes, as uploaded, have a hash: nobody learns whether others have it too."""
    of_caller = hashlib.sha256(f"{caller.id}:{sha256}".encode()).hexdigest() if caller.id else sha256
    return f"file-{of_caller[:32]}"


def record_of(text: bytes | None) -> FileRecord | None:
    """What Redis keeps of a file; None where that is nothing, or rubbish."""
    try:
        return None if text is None else FileRecord.model_validate_json(text)
    except ValidationError:
        return None
