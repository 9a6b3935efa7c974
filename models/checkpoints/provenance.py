"""Provenance of weights files, as NAME.json beside them: size, hash and source; imports no torch.

So a start need not hash gigabytes again, and a changed file is distinguished from the one that was fetched or verified.
"""

import contextlib
import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from files.atomic import atomic_write

REMEMBERED_BYTES = 1 << 28  # smaller files are hashed quickly and get no such file


class ChangedFileError(Exception):
    """A file is not the recorded one. `subject` is its name, `reason` the difference."""

    def __init__(self, subject: str, reason: str) -> None:
        super().__init__(f"{subject}: {reason}")
        self.subject, self.reason = subject, reason


@dataclass(frozen=True)
class Provenance:
    """The recorded size, hash, modification time and source of a weights file; url: None for one not fetched."""

    size: int
    sha256: str
    mtime_ns: int
    url: str | None = None


def provenance_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def read_provenance(path: Path) -> Provenance | None:
    """The provenance of a weights file; None if there is no readable one."""
    try:
        return Provenance(**json.loads(provenance_path(path).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def write_provenance(path: Path, sha256: str, url: str | None = None) -> Provenance:
    """Record a file as it is now, atomically."""
    stat = path.stat()
    provenance = Provenance(stat.st_size, sha256, stat.st_mtime_ns, url)
    with atomic_write(provenance_path(path), many_writers=True) as file:  # several workers may start at once
        file.write((json.dumps(dataclasses.asdict(provenance), indent=1) + "\n").encode())
    return provenance


def recorded_hash(path: Path) -> str:
    """SHA-256 of a file: from its provenance if size and time are the recorded ones, otherwise computed and recorded.

    Raises: ChangedFileError if the content is not the recorded one.
    """
    stat, provenance = path.stat(), read_provenance(path)
    if provenance is not None and (provenance.size, provenance.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
        return provenance.sha256
    if provenance is not None and provenance.size != stat.st_size:
        raise ChangedFileError(path.name, f"has {stat.st_size:,} bytes, not the recorded {provenance.size:,}")
    sha256 = hash_file(path)
    if provenance is not None and provenance.sha256 != sha256:
        raise ChangedFileError(path.name, "has changed since it was recorded; if that is intended, delete its .json")
    if provenance is not None or stat.st_size >= REMEMBERED_BYTES:
        with contextlib.suppress(OSError):  # a read-only folder costs a hash at each start
            write_provenance(path, sha256, None if provenance is None else provenance.url)
    return sha256


def hash_file(path: Path) -> str:
    """sha256 of a file, in hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
