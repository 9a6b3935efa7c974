"""Which row counts a step may be padded to, so that no image can tell how many neighbours it had.

Kernels are chosen by shape and round differently, which flips pixels. So the candidates are tried on the same rows, and
only a set whose rows agree bit for bit is kept.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

CANDIDATES = (1, 2, 4, 8, 16, 32, 64, 128)


def agreeing_shapes(
    compute: Callable[[int], Tensor], max_rows: int, candidates: Sequence[int] = CANDIDATES
) -> tuple[int, ...]:
    """The candidates up to max_rows whose rows are equal, bit for bit, to those of the largest.

    compute(rows) returns the results of the first `rows` rows of one fixed input: [rows, ...], thousands of values a
    row, so that shapes which round differently do not agree by luck. The largest shape is always kept, as throughput
    rests on it; in the worst case it is the only one.
    """
    reference = compute(max_rows)
    smaller = (rows for rows in candidates if rows < max_rows)
    return (*(rows for rows in smaller if torch.equal(compute(rows), reference[:rows])), max_rows)


def padded(rows: int, shapes: Sequence[int]) -> int:
    """The smallest of the ascending shapes that holds this many rows."""
    return next(shape for shape in shapes if shape >= rows)


def pad_rows(x: Tensor, rows: int) -> Tensor:
    """Repeat the first row until there are `rows`: finite values, whose results are dropped."""
    return x if len(x) == rows else torch.cat([x, x[:1].expand(rows - len(x), *x.shape[1:])])
