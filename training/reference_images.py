"""Real images of a run's data, as a reference for generated ones."""

from pathlib import Path

import torch
from torch import Tensor

from datasets.shapes import render_set
from runfolder.folder import CONFIG, read_json
from training.config import ConfigError, read_config
from training.data import open_data
from training.images import Images, ImagesInMemory

MOST = 1000
RENDERED_SEED = 6011  # not a seed of training or reports


def reference_images(run: Path) -> Tensor:
    """Up to MOST images [N, 3, H, W], uint8, spread evenly over a run's data; held-out images alone if they suffice.

    Raises: RunFolderError if the folder is not a run; ConfigError if the data can no longer be read.
    """
    config = read_config(read_json(run / CONFIG))
    size = config.network.image_size
    if config.data.source == "shapes":
        return render_set(MOST, RENDERED_SEED, size)[0]
    split = open_data(config.data, size, Path())  # images are not cached
    return _spread(split.held_out if len(split.held_out) >= MOST else split.training, MOST).images


def held_out_images(run: Path, count: int) -> ImagesInMemory:
    """This many images, spread evenly over those that a run held out of training.

    Raises: RunFolderError if the folder is not a run; ConfigError if the data can no longer be read, or if too few
    images were held out.
    """
    config = read_config(read_json(run / CONFIG))
    held_out = open_data(config.data, config.network.image_size, Path()).held_out  # images are not cached
    if len(held_out) < count:
        few = f"{len(held_out)} images were held out of training, and {count} are needed"
        raise ConfigError(f"data.held_out_below = {config.data.held_out_below}: {few}")
    return _spread(held_out, count)


def _spread(images: Images, most: int) -> ImagesInMemory:
    """Up to `most` images, spread evenly over the set, which may be sorted by class."""
    count = min(len(images), most)
    index = torch.arange(count) * len(images) // count
    pixels = torch.stack([images.pixels(each, None) for each in index.tolist()])
    return ImagesInMemory(pixels, images.class_labels[index], images.class_names)
