"""Real images of a run's data, as a reference for generated ones."""

from pathlib import Path

import torch
from torch import Tensor

from datasets.shapes import render_set
from runfolder.folder import CONFIG, read_json
from training.config import read_config
from training.data import open_data

MOST = 1000
RENDERED_SEED = 6011  # not a seed of training or reports


def reference_images(run: Path) -> Tensor:
    """Up to MOST images [N, 3, H, W], uint8, evenly from a run's data; only held-out ones if there are enough.

    Raises: RunFolderError if the folder is not a run; ConfigError if the data can no longer be read.
    """
    config = read_config(read_json(run / CONFIG))
    size = config.network.image_size
    if config.data.source == "shapes":
        return render_set(MOST, RENDERED_SEED, size)[0]
    split = open_data(config.data, size, Path())  # images are not cached
    images = split.held_out if len(split.held_out) >= MOST else split.training
    count = min(len(images), MOST)
    return torch.stack([images.pixels(index * len(images) // count, None) for index in range(count)])
