"""Pictures that callers have uploaded: the record in Redis, the PNG in the store.

The record publishes the object and expires by itself; the upkeep removes objects that no record names. Each upload has
its own object key, so that the upkeep never removes the object that a later upload of the same bytes has just stored.
"""

import hashlib
from collections.abc import Sequence
from datetime import timedelta
from typing import Literal, NamedTuple, cast
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from redis.client import Redis

from jobs.contract.caller import Caller, Role
from jobs.contract.errors import ErrorKind, RefusedError
from jobs.redis import keys
from jobs.redis.clock import RedisClock
from jobs.redis.replies import answers
from jobs.redis.server import ServerReader
from jobs.settings import Settings
from jobs.storage.file_counts import UNLIMITED, FileCounts, FileLimits
from jobs.storage.store import ObjectStore
from pictures.decoding import MAX_SIDE_PX
from pictures.reduction import Picture, is_halved

ROOT = "files"
KEY_PARTS = 3  # folder, file, upload


class FileInfo(BaseModel):
    """An uploaded picture."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(description="the same for the same bytes of the same caller")
    object: Literal["file"] = "file"
    sha256: str = Field(description="of the bytes as they were uploaded")
    width: int = Field(description="of the uploaded picture, upright; the stored one may be smaller")
    height: int
    bytes: int = Field(description="as uploaded")
    expires_at: float = Field(description="Unix seconds; another upload of it, or a job that uses it, extends it")


class FileRecord(BaseModel):
    """The record of a file in Redis; it expires with its key."""

    model_config = ConfigDict(frozen=True)

    id: str
    sha256: str
    width: int
    height: int
    bytes: int
    key: str = Field(description="of the PNG in the store")
    png_sha256: str
    short_side_px: int = Field(
        default=MAX_SIDE_PX, description="for which the PNG was reduced; width and height are the upload's"
    )
    caller: str = Field(default="", description="id of its caller; empty if it was uploaded without a key")

    def suffices(self, short_side_px: int) -> bool:
        """Return whether the kept picture is as good as the original for a pipeline with this short side."""
        return self.short_side_px >= short_side_px or not is_halved(self.width, self.height, self.short_side_px)

    def info(self, expires_at: float) -> FileInfo:
        return FileInfo(**self.model_dump(include=set(FileInfo.model_fields)), expires_at=expires_at)


class StoredFile(NamedTuple):
    """The record of a file, its view, and its remaining lifetime."""

    record: FileRecord
    info: FileInfo
    kept_seconds: float


class FileStore:
    """The files of one Redis; all calls block."""

    def __init__(self, redis: Redis, settings: Settings, objects: ObjectStore) -> None:
        self._redis, self._settings, self._objects = redis, settings, objects
        self._counts = FileCounts(redis)
        self._now, self._server = RedisClock(redis).now, ServerReader(redis)

    def present(self, sha256: str, short_side_px: int, caller: Caller) -> FileInfo | None:
        """Extend the life of a caller's upload of these bytes, and return it.

        Returns None if there is none, or it was reduced too much for a pipeline with this short side.
        """
        file_id = id_of(sha256, caller)
        record = self.keep([file_id], self._settings.retention_seconds, caller)[0]
        if record is not None and record.suffices(short_side_px) and self._objects.has(record.key):
            return self.get(file_id, caller).info
        return None

    def add(self, sha256: str, num_bytes: int, picture: Picture, short_side_px: int, caller: Caller) -> FileInfo:
        """Store the picture decoded from an upload, and publish its record, for the retention time of jobs.

        The picture is reduced for present pipelines; for a later, larger pipeline it must be uploaded again.
        Raises: RefusedError if kept files would exceed a quota, or Redis must not be used.
        """
        self._server.usable()
        seconds, file_id = self._settings.retention_seconds, id_of(sha256, caller)
        counted = file_id, caller.id, len(picture.png), self._limits(caller)
        self._counts.check(*counted)
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
        try:
            self._counts.publish(*counted, record.model_dump_json(), seconds)
        except RefusedError:  # other uploads were faster
            self._objects.delete([record.key])
            raise
        return record.info(self._now() + seconds)

    def refuse_if_full(self, sha256: str, caller: Caller) -> None:
        """Raise RefusedError if not even the smallest picture may be kept, before one is decoded."""
        self._counts.check(id_of(sha256, caller), caller.id, 0, self._limits(caller))

    def _limits(self, caller: Caller) -> FileLimits:
        own = self._settings.quota_files_bytes if caller.role is Role.USER else UNLIMITED
        return FileLimits(self._settings.max_files_bytes, own)

    def get(self, file_id: str, caller: Caller) -> StoredFile:
        """A file's record and its view. Raises: RefusedError for one that is unknown or has expired."""
        with self._redis.pipeline() as pipe:
            pipe.get(keys.file(file_id))
            pipe.expiretime(keys.file(file_id))
            text, expires_at = answers(pipe)
        if (record := record_of(text)) is None or not caller.may_see(record.caller):
            raise RefusedError(ErrorKind.UNKNOWN_FILE, f"no file {file_id[:128]!r}")
        return StoredFile(record, record.info(expires_at), expires_at - self._now())

    def png(self, file_id: str, caller: Caller) -> bytes:
        """A file's picture: PNG, 8-bit RGB. Raises: RefusedError if it no longer exists."""
        try:
            return self._objects.get(self.get(file_id, caller).record.key)
        except FileNotFoundError as error:
            raise RefusedError(ErrorKind.UNKNOWN_FILE, f"file {file_id} is gone") from error

    def keep(self, file_ids: Sequence[str], seconds: int, caller: Caller) -> list[FileRecord | None]:
        """Keep a caller's files for at least `seconds` from now; return their records, None if unknown or expired."""
        texts = cast(list[bytes | None], self._redis.mget([keys.file(each) for each in file_ids]))
        owned = [record is not None and caller.may_see(record.caller) for record in map(record_of, texts)]
        with self._redis.pipeline() as pipe:
            for each, is_own in zip(file_ids, owned, strict=True):
                if is_own:
                    pipe.expire(keys.file(each), seconds, gt=True)
                    pipe.get(keys.file(each))
            records = iter(answers(pipe)[1::2])
        return [record_of(next(records)) if is_own else None for is_own in owned]

    def delete(self, file_id: str, caller: Caller) -> None:
        """Remove a file; a queued job that needs it will fail. Raises: RefusedError for an unknown one."""
        record = self.get(file_id, caller).record
        self._counts.remove(file_id)
        self._objects.delete([record.key])

    def remove_strays(self) -> int:
        """Remove pictures whose record has expired or was never written; return their number."""
        # younger pictures may be about to get a record
        old = self._objects.now() - timedelta(seconds=self._settings.lease_seconds)
        self._counts.forget_lost()
        ours = [each for each in self._objects.list(ROOT) if len(each.key.split("/")) == KEY_PARTS]
        strays = [each.key for each in ours if each.last_modified < old and not self._is_recorded(each.key)]
        self._objects.delete(strays)
        return len(strays)

    def _is_recorded(self, key: str) -> bool:
        (text,) = cast(list[bytes | None], self._redis.mget(keys.file(key.split("/")[1])))  # None for the wrong type
        record = record_of(text)
        return record is not None and record.key == key


def id_of(sha256: str, caller: Caller) -> str:
    """The id of a caller's file, from its uploaded bytes' hash; it does not show whether others have the file."""
    of_caller = hashlib.sha256(f"{caller.id}:{sha256}".encode()).hexdigest() if caller.id else sha256
    return f"file-{of_caller[:32]}"


def record_of(text: bytes | None) -> FileRecord | None:
    """Parse the record of a file; None if it is absent or corrupt."""
    try:
        return None if text is None else FileRecord.model_validate_json(text)
    except ValidationError:
        return None
