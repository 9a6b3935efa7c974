"""Writes a file or a folder whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

UNFINISHED = ".tmp"


@contextlib.contextmanager
def atomic_write(path: Path, *, durable: bool = False, many_writers: bool = False) -> Iterator[BinaryIO]:
    """Yield a file to write to, which replaces `path` when the block ends; if the block raises, `path` stays as it was.

    durable: the content is on disk before the rename (fsync); the rename is on disk only once its folder is synced too.
    many_writers: several processes may write `path` at once, so the temporary name has the process's id. With one
    writer the name is fixed, so that the next write overwrites the unfinished file of a killed process.
    """
    writer = f".{os.getpid()}" if many_writers else ""
    unfinished = path.with_name(f".{path.name}{writer}{UNFINISHED}")
    try:
        with unfinished.open("wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all, in UTF-8; a device or a pipe is written directly.

    Bytes of file names that are not UTF-8, which Python reads as surrogates, become escapes.
    """
    content = text.encode(errors="backslashreplace")
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    with atomic_write(path.resolve(), many_writers=True) as file:  # what a link points to, not the link
        file.write(content)


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yield a folder that becomes `target` when the block ends; if the block raises, the folder is removed.

    `target` is absent or empty.
    """
    unfinished = target.with_name(f".{target.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        unfinished.replace(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
