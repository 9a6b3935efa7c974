"""Feature sets for the metrics: kept in memory or in a mapped file, and read in parts.

50,000 images with 2,048 features are 410 MB in float32; the metrics compute in float64, one part at a time.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from vocabulary.counts import counted

ROWS = 1000  # images that are converted at once: 16 MB of 2,048 features


class Points:
    """Features [N, D], whose rows are read as float64 minus a centre [D]."""

    def __init__(self, features: Tensor, centre: Tensor | None = None) -> None:
        self._features, self.centre = features, centre

    def __len__(self) -> int:
        return len(self._features)

    @property
    def width(self) -> int:
        return self._features.shape[1]

    def rows(self, index: slice | Tensor) -> Tensor:
        """The rows of these images, [n, D]."""
        exact = self._features[index].double()
        return exact if self.centre is None else exact - self.centre

    def parts(self, size: int = ROWS) -> Iterator[Tensor]:
        """All rows, `size` at a time."""
        return (self.rows(slice(start, start + size)) for start in range(0, len(self), size))

    def mean(self) -> Tensor:
        """The mean minus the centre, [D]."""
        return torch.stack([part.sum(dim=0) for part in self.parts()]).sum(dim=0) / len(self)

    def centred(self) -> "Points":
        """The set minus its mean."""
        return Points(self._features, Points(self._features).mean())


def checked_points(features: Tensor, least: int, metric: str) -> Points:
    """Features [N, ...] flattened to [N, D].

    Raises: ValueError, one line, for fewer samples than the metric needs, and for a sample that is not finite.
    """
    if len(features) < least:
        raise ValueError(f"{metric}: a set has {counted(len(features), 'sample')}, fewer than {least}")
    flat = features.flatten(1)
    for number, part in enumerate(flat.split(ROWS)):
        if len(wrong := (~part.isfinite().all(dim=1)).nonzero()):
            sample = number * ROWS + int(wrong[0])
            raise ValueError(f"{metric}: sample {sample} of {len(flat)} has NaN or infinity in its features")
    return Points(flat)


def checked_pair(first: Tensor, second: Tensor, least: int, metric: str) -> tuple[Points, Points]:
    """Both sets, checked by checked_points. Raises: ValueError, also if their features have different sizes."""
    pair = checked_points(first, least, metric), checked_points(second, least, metric)
    if pair[0].width != pair[1].width:
        sizes = f"{pair[0].width} and {pair[1].width}"
        raise ValueError(f"the sets have features of {sizes} dimensions; they must have the same")
    return pair


def centred_pair(reference: Tensor, sample: Tensor, least: int, metric: str) -> tuple[Points, Points]:
    """Both sets minus the mean of the reference, which changes no distance. Raises: the errors of checked_pair."""
    checked_pair(reference, sample, least, metric)
    centred = Points(reference.flatten(1)).centred()
    return centred, Points(sample.flatten(1), centred.centre)
