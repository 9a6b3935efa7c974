"""What is remembered of a weights file beside it, as NAME.json: its size, hash and source; imports no torch.

A record makes two things cheap: a start does not hash gigabytes again, and a file that changed is told from the one
that was fetched or verified.
"""

import contextlib
import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

REMEMBERED_BYTES = 1 << 28  # hashing less takes a moment, and small files keep no second one beside them


class ChangedFileError(Exception):
    """A file that is not the one recorded: one line that names it."""


@dataclass(frozen=True)
class FileRecord:
    """A weights file as it was when it was recorded. mtime_ns: its time then; url: where it came from, if fetched."""

    size: int
    sha256: str
    mtime_ns: int
    url: str | None = None


def record_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def read_record(path: Path) -> FileRecord | None:
    """The record of a weights file; None where there is none, or none that can be read."""
    try:
        return FileRecord(**json.loads(record_path(path).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def write_record(path: Path, sha256: str, url: str | None = None) -> FileRecord:
    """Record a file as it is now, atomically."""
    stat = path.stat()
    record = FileRecord(stat.st_size, sha256, stat.st_mtime_ns, url)
    partial = record_path(path).with_suffix(".partial")
    partial.write_text(json.dumps(dataclasses.asdict(record), indent=1) + "\n")
    partial.replace(record_path(path))
    return record


def recorded_hash(path: Path) -> str:
    """sha256 of a file: from its record while size and time are those recorded, else hashed, and then remembered.

    Raises: ChangedFileError where the content is another than the record's.
    """
    stat, record = path.stat(), read_record(path)
    if record is not None and (record.size, record.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
        return record.sha256
    if record is not None and record.size != stat.st_size:
        raise ChangedFileError(f"{path.name}: has {stat.st_size:,} bytes, its record says {record.size:,}")
    sha256 = hash_file(path)
    if record is not None and record.sha256 != sha256:
        raise ChangedFileError(f"{path.name}: has changed since it was recorded; if that is meant, delete its .json")
    if record is not None or stat.st_size >= REMEMBERED_BYTES:
        with contextlib.suppress(OSError):  # a folder that cannot be written costs a hash at each start
            write_record(path, sha256, None if record is None else record.url)
    return sha256


def hash_file(path: Path) -> str:
    """sha256 of a file, in hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
