"""Sets of rendered shapes. Image i of the set `seed` is a function of (seed, i) alone, so sets have no end."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets.render import RENDERER_VERSION, render
from datasets.sdf import SHAPES
from files.atomic import atomic_write

_CHUNK = 500  # images that a thread renders at a time


def label_of(indices: Tensor) -> Tensor:
    """Class label of each image of a set: classes in turn, so that every set is balanced."""
    return indices % len(SHAPES)


def render_set(count: int, seed: int, image_size: int, *, cache: Path | None = None) -> tuple[Tensor, Tensor]:
    """Images 0 .. count-1 of a set and their labels: [count, 3, image_size, image_size] uint8 and [count] int64.

    With a cache folder, the images are stored there and mapped from disk the next time. The file's name contains all
    that they depend on, and the file is written atomically.
    """
    labels = label_of(torch.arange(count))
    if cache is None:
        return _render_all(count, seed, image_size), labels
    path = cache / f"shapes-v{RENDERER_VERSION}-seed{seed}-{image_size}px-{count}.npy"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, many_writers=True) as file:
            np.save(file, _render_all(count, seed, image_size).numpy())
    return torch.from_numpy(np.load(path, mmap_mode="c")), labels


def _render_all(count: int, seed: int, image_size: int) -> Tensor:
    chunks = torch.arange(count).split(_CHUNK)

    def one(indices: Tensor) -> Tensor:
        return render(label_of(indices), indices, seed=seed, image_size=image_size)

    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        return torch.cat(list(pool.map(one, chunks)))
