"""A run's folder: its files, their format, and the lock for writing.

config.json has the resolved configuration; run.json describes the training data and each start of the run; stats.jsonl
has lines of figures; state.pt has the state from which the run resumes; snapshots/ has earlier states, previews/ has
pictures, and events/ has TensorBoard's files.
"""

import errno
import fcntl
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from files.atomic import atomic_write

CONFIG, INFO, STATS, STATE, LOCK = "config.json", "run.json", "stats.jsonl", "state.pt", "lock"
SNAPSHOTS, PREVIEWS, EVENTS = "snapshots", "previews", "events"
FORMAT = 1  # of the folder; raised when an older program would misread a newer folder
MOST_BYTES = 1 << 20  # limit of a JSON file that is read; a run writes about a thousandth of it


class RunFolderError(ValueError):
    """A folder is not a run, or another process trains in it; the message is one line with a remedy."""


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically. Raises: OSError."""
    with atomic_write(path, durable=True) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())


def read_regular(path: Path, most_bytes: int | None = None) -> bytes:
    """Read a file, or its last most_bytes bytes.

    Links, pipes and devices are refused, because other users may be able to write to a folder of runs. Raises: OSError.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "is no regular file", str(path))
        if most_bytes is not None and found.st_size > most_bytes:
            file.seek(-most_bytes, os.SEEK_END)
        return file.read()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of a run. Raises: RunFolderError, which names the file."""
    try:
        content = json.loads(read_regular(path, MOST_BYTES))
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be read ({error.strerror}); is {path.parent} a training run?") from error
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"{path}: is not JSON ({error})") from error
    if not isinstance(content, dict) or content.get("format", FORMAT) != FORMAT:
        raise RunFolderError(f"{path}: was written by another version of this program")
    return content


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock the folder within the block, and make it if there is none.

    Raises: RunFolderError if another process has locked it, or if it has files that a run would overwrite.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise RunFolderError(f"{folder}: is no folder; give another with --out") from error
    is_run = (folder / LOCK).exists() or (folder / INFO).exists()
    if not is_run and (foreign := [name for name in (CONFIG, STATS, STATE) if (folder / name).exists()]):
        raise RunFolderError(f"{folder}: has a {foreign[0]}, and is no training run; give another folder with --out")
    with (folder / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunFolderError(f"{folder}: another process trains in this folder; give another with --out") from error
        yield


def snapshot_steps(folder: Path) -> list[int]:
    """The steps of the kept snapshots, ascending."""
    return sorted(int(each.stem.removeprefix("state-")) for each in (folder / SNAPSHOTS).glob("state-*.pt"))


def snapshot_path(folder: Path, step: int) -> Path:
    return folder / SNAPSHOTS / f"state-{step:08d}.pt"
