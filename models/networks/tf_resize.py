"""Bilinear resizing as in TensorFlow 1, which the extractors of published scores use."""

import torch
from torch import Tensor


def resized_as_tensorflow(x: Tensor, size: int) -> Tensor:
    """Resize images [N, C, H, W], float32, to [N, C, size, size].

    TensorFlow 1 aligns the first pixels and not the corners: place i of the result is place i * H / size of the image.
    """
    return _along(_along(x, 2, size), 3, size)


def _along(x: Tensor, dim: int, wanted: int) -> Tensor:
    size = x.shape[dim]
    if size == wanted:
        return x
    place = torch.arange(wanted, dtype=torch.float32) * (size / wanted)
    low = place.floor().long()
    share = (place - low).reshape([-1 if axis == dim else 1 for axis in range(x.dim())])
    before, after = x.index_select(dim, low), x.index_select(dim, (low + 1).clamp(max=size - 1))
    return before + (after - before) * share
