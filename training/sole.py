"""A run's folder belongs to one process at a time."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def sole_run(folder: Path) -> Iterator[None]:
    """Hold a run's folder, made if need be. Raises: ValueError while another process trains in it."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{folder}: another adm train works here; wait for its end, or give another --out"
            ) from error
        yield
    finally:
        os.close(descriptor)
