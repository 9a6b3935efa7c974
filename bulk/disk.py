"""Durable files, and a lock on a folder for one run at a time."""

import contextlib
import fcntl
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from bulk.errors import BulkError
from files.atomic import UNFINISHED, atomic_write


def remove_unfinished(path: Path) -> None:
    """Remove unfinished replacements of a file, which killed runs have left; only its single writer may call this."""
    of_any_process = re.compile(re.escape(f".{path.name}.") + r"\d+" + re.escape(UNFINISHED))
    for left in path.parent.iterdir():
        if of_any_process.fullmatch(left.name):
            left.unlink(missing_ok=True)


def write_whole(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a file of these pieces, durably."""
    with atomic_write(path, durable=True, many_writers=True) as file:
        file.writelines(pieces)
    settle(path.parent)


def settle(folder: Path) -> None:
    """Make the renames in a folder durable (fsync)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def sole_run(folder: Path) -> Iterator[None]:
    """Lock a folder, and remove unfinished files of killed runs. Raises: BulkError while another run has locked it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BulkError(f"{folder}: another adm sample uses this folder") from error
        for left in folder.glob(f".*{UNFINISHED}"):
            left.unlink(missing_ok=True)
        yield
    finally:
        os.close(descriptor)
