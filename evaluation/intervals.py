"""95 % intervals of shares and means."""

import math

from torch import Tensor

Z_95 = 1.959963984540054


def wilson_interval(hits: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927), which is also valid near 0 and 1."""
    share = hits / total
    spread = Z_95**2 / total
    centre = (share + spread / 2) / (1 + spread)
    half = Z_95 / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def mean_interval(values: Tensor) -> tuple[float, float]:
    """The 95 % interval of a mean, by its standard error: [N] values."""
    half = Z_95 * float(values.double().std()) / math.sqrt(len(values))
    mean = float(values.double().mean())
    return mean - half, mean + half
