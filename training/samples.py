"""The images of each step and all draws for them, as functions of the run's seed and a sample's number.

Sample n is image n of the run; step s trains on samples s * batch_size and following. The draws for a sample do not
depend on the batch size, microbatches, the number of processes, or interruptions of the run.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffusion.pixels import from_uint8
from training.augment import recolour
from training.images import Images, ImagesOnDisk
from training.sections import Data

MOST_LOADERS = 8  # default of the number of decoding processes
ORDER, SAMPLE = 0, 1  # purpose of a generator, a part of its key
UNIFORMS = 24  # uniform numbers of a sample
FLIP = 3  # index of the uniform number for mirroring


@dataclass(frozen=True)
class Batch:
    """Samples [N, ...] on one device.

    x0 [N, 3, H, W] in [-1, 1]; class_labels [N] int64; noise like x0; uniforms [N, UNIFORMS] in [0, 1), float64;
    more_noise like x0, a second draw if the run needs one, else [N, 0].
    """

    x0: Tensor
    class_labels: Tensor
    noise: Tensor
    uniforms: Tensor
    more_noise: Tensor

    @property
    def position(self) -> Tensor:
        """The uniform from which a timestep is drawn: [N]."""
        return self.uniforms[:, 0].contiguous()

    @property
    def drop(self) -> Tensor:
        """The uniform of label dropout; the label is dropped if it is below the share: [N]."""
        return self.uniforms[:, 1]

    @property
    def strength(self) -> Tensor:
        """The uniform for the deviation of noise on an upsampler's input: [N]."""
        return self.uniforms[:, 2]

    @property
    def augmentation(self) -> Tensor:
        """The uniforms of the judge's augmentations: [N, 20]."""
        return self.uniforms[:, 4:24]

    def __len__(self) -> int:
        return len(self.x0)

    def __getitem__(self, part: slice) -> "Batch":
        return Batch(*(each[part] for each in vars(self).values()))

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(each.to(device, non_blocking=True) for each in vars(self).values()))


class Samples(Dataset[tuple[Tensor, ...]]):
    """Every sample of a run by its number; more_noise: draw a second noise image for each."""

    def __init__(self, data: Images, settings: Data, seed: int, *, more_noise: bool = False) -> None:
        self.data, self.settings, self.seed, self.more_noise = data, settings, seed, more_noise
        self.shape = tuple(data.pixels(0, None).shape)
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0))

    def __getitem__(self, number: int) -> tuple[Tensor, ...]:
        epoch, place = divmod(number, len(self.data))
        index = int(self._epoch(epoch)[place])
        draws = self._generator(SAMPLE, number)
        uniforms = draws.random(UNIFORMS)
        noise, more_noise = (
            torch.from_numpy(draws.standard_normal(self.shape if drawn else 0, np.float32))
            for drawn in (True, self.more_noise)
        )
        pixels = self.data.pixels(index, draws if self.settings.random_crop else None)
        if self.settings.flip and uniforms[FLIP] < 0.5:
            pixels = pixels.flip(-1)
        if self.settings.recolours:
            pixels = self._recoloured(pixels, draws)
        return pixels, self.data.class_labels[index], noise, torch.from_numpy(uniforms), more_noise

    def batch(self, numbers: Sequence[int]) -> Batch:
        return collate([self[number] for number in numbers])

    def _recoloured(self, pixels: Tensor, draws: np.random.Generator) -> Tensor:
        saturation, brightness = draws.random(), draws.uniform(-1, 1)  # exponents of the largest factors
        return recolour(
            pixels,
            saturation=self.settings.saturation**saturation,
            brightness=self.settings.brightness**brightness,
            tint=torch.from_numpy(self.settings.tint * draws.standard_normal(3, np.float32)),
        )

    def _epoch(self, epoch: int) -> np.ndarray:
        """The order of the images in an epoch, a permutation."""
        if self._order[0] != epoch:
            self._order = epoch, self._generator(ORDER, epoch).permutation(len(self.data))
        return self._order[1]

    def _generator(self, purpose: int, number: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=[self.seed << 1 | purpose, number]))


def collate(samples: Sequence[tuple[Tensor, ...]]) -> Batch:
    pixels, *others = (torch.stack(column) for column in zip(*samples, strict=True))
    return Batch(from_uint8(pixels), *others)


def batches(samples: Samples, batch_size: int, first_step: int, rank: int, size: int) -> Iterator[Batch]:
    """This process's share of every batch from a step on, without end; a batch has batch_size samples in all."""
    processes = samples.settings.loader_processes
    if processes is None:  # decoding takes longer than a step of a small network
        processes = min(os.cpu_count() or 1, MOST_LOADERS) if isinstance(samples.data, ImagesOnDisk) else 0

    def numbers() -> Iterator[list[int]]:
        step = first_step
        while True:
            yield list(range(step * batch_size + rank, (step + 1) * batch_size, size))
            step += 1

    if processes == 0:
        for each in numbers():
            yield samples.batch(each)
    yield from DataLoader(
        samples,
        batch_sampler=numbers(),
        num_workers=processes,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
    )
