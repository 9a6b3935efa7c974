"""Stores the features of a set during its measurement, in mapped files to which batches are appended.

Inception's features of 50,000 images take 820 MB; they are in the files, not in memory. The rows of a batch are written
before its line in the journal, so a killed evaluation resumes after the last batch that has a line.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock, Timeout
from torch import Tensor

from evaluation.extractors import OUTPUTS, Extractor, Features
from vocabulary.counts import counted

JOURNAL = "journal.jsonl"
THUMBNAIL_SIZE = 64  # pixels; larger images are reduced by area
LEAST = 2


class Work:
    """The folder of an evaluation's measurements so far. thumbnails: store a thumbnail of every image, for a report."""

    def __init__(self, folder: Path, *, thumbnails: bool = False) -> None:
        self._folder, self._thumbnails = folder, thumbnails
        self._opened: list[KeptFeatures] = []

    def __enter__(self) -> "Work":
        return self

    def __exit__(self, *exception: object) -> None:
        for each in self._opened:
            each.close()

    def kept(self, part: str, source: str, extractor: Extractor) -> "KeptFeatures":
        """The stored features of a source for a part of an evaluation ("samples", "reference"); there may be none yet.

        Raises: ValueError while another evaluation has locked them.
        """
        address = json.dumps([part, source, extractor.identity["sha256"], self._thumbnails])
        folder = self._folder / hashlib.sha256(address.encode()).hexdigest()[:16]
        self._opened.append(KeptFeatures(folder, extractor, self._thumbnails))
        return self._opened[-1]

    def remove(self) -> None:
        """Remove the files; mapped arrays stay readable."""
        for each in self._opened:
            each.remove()


class KeptFeatures:
    """The features of one set by image index, in files of float32 rows; thumbnails are uint8."""

    def __init__(self, folder: Path, extractor: Extractor, thumbnails: bool) -> None:
        """Raises: ValueError, one line, while another process has locked the folder."""
        self.folder, self._extractor = folder, extractor
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder / "lock", blocking=False)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise ValueError(f"{folder}: another adm evaluate measures the same set; wait for it to end") from error
        self._widths = {name: width for name, size in OUTPUTS.items() if (width := extractor.identity[size])}
        self._thumbnails = thumbnails
        self._batches = {each["key"]: each for each in self._read_journal()}

    def _read_journal(self) -> list[dict[str, Any]]:
        path = self.folder / JOURNAL
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        if lines and not lines[-1].endswith(b"\n"):  # truncated by a kill; its batch is measured again
            lines.pop()
            path.write_bytes(b"".join(lines))
        return [json.loads(line) for line in lines]

    @property
    def batches(self) -> list[dict[str, Any]]:
        """The journal's lines, by the index of their first image."""
        return sorted(self._batches.values(), key=lambda each: each["indices"][0])

    def has(self, key: str, sha256: str | None = None) -> bool:
        """Return whether a batch is stored, with the given hash of its pixels if there is one."""
        batch = self._batches.get(key)
        return batch is not None and sha256 in (None, batch["sha256"])

    def add(self, key: str, indices: Sequence[int], pixels: Tensor, extra: Mapping[str, Any] | None = None) -> None:
        """Measure a batch [n, 3, H, W] of uint8 and store it, unless it is stored. Raises: the extractor's errors."""
        sha256 = hashlib.sha256(pixels.contiguous().numpy().data).hexdigest()
        if self.has(key, sha256):
            return
        size = f"{pixels.shape[3]}x{pixels.shape[2]}"
        found = self._extractor(pixels)
        for name in self._widths:
            self._write(name, indices, getattr(found, name))
        if self._thumbnails:
            self._write("thumbnails", indices, thumbnails(pixels).flatten(1))
        line = {"key": key, "indices": list(indices), "sha256": sha256, "size": size, **(extra or {})}
        with (self.folder / JOURNAL).open("ab") as journal:
            journal.write(json.dumps(line).encode() + b"\n")
        self._batches[key] = line

    def _write(self, name: str, indices: Sequence[int], rows: Tensor) -> None:
        array = np.ascontiguousarray(rows.numpy())
        with os.fdopen(os.open(self.folder / name, os.O_RDWR | os.O_CREAT), "r+b") as file:
            for row, index in zip(array, indices, strict=True):
                file.seek(index * array.itemsize * array.shape[1])
                file.write(row.tobytes())
            file.flush()
            os.fsync(file.fileno())

    def keep_first(self, count: int) -> None:
        """Remove batches after `count` images, for a set that had more in an earlier measurement."""
        self._batches = {key: each for key, each in self._batches.items() if each["indices"][0] < count}

    def features(self) -> Features:
        """All features, mapped. Raises: ValueError for fewer than 2 images."""
        count = self.count
        if count < LEAST:
            raise ValueError(f"has {counted(count, 'image')}; metrics need {LEAST} or more")
        mapped = {name: self._mapped(name, (count, width)) for name, width in self._widths.items()}
        return Features(mapped["pooled"], mapped.get("spatial"), mapped.get("probabilities"))

    @property
    def count(self) -> int:
        return sum(len(each["indices"]) for each in self._batches.values())

    def sha256_of_batches(self) -> str:
        """A hash of all pixels, from the batches' hashes by first index, whatever the order of measurement."""
        return hashlib.sha256("".join(each["sha256"] for each in self.batches).encode()).hexdigest()

    def thumbnails(self) -> Tensor | None:
        """Thumbnails [N, 3, T, T], uint8, mapped; None if they are not stored."""
        if not self._thumbnails:
            return None
        side = min(int(self.batches[0]["size"].partition("x")[0]), THUMBNAIL_SIZE)
        return self._mapped("thumbnails", (self.count, 3 * side * side), np.uint8).reshape(-1, 3, side, side)

    def _mapped(self, name: str, shape: tuple[int, int], dtype: type = np.float32) -> Tensor:
        return torch.from_numpy(np.memmap(self.folder / name, dtype, "c", shape=shape))

    def remove(self) -> None:
        shutil.rmtree(self.folder)

    def close(self) -> None:
        """Unlock the folder for other evaluations; a folder without any batch, as of a refused set, is removed."""
        if not self._batches and self.folder.exists():
            self.remove()
        self._lock.release()


def thumbnails(pixels: Tensor) -> Tensor:
    """Images [n, 3, H, W] of uint8, no larger than 64 pixels."""
    if pixels.shape[3] <= THUMBNAIL_SIZE:
        return pixels
    reduced = F.interpolate(pixels.float(), (THUMBNAIL_SIZE, THUMBNAIL_SIZE), mode="area")
    return reduced.round().to(torch.uint8)
