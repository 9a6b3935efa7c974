"""Which row counts a step may be padded to, so that no image can tell how many neighbours it had.

Kernels are chosen by shape and round differently, which flips pixels. So the candidates are tried on the same rows, and
only a set whose rows agree bit for bit is kept. A shape that the device's memory does not suffice for is given up.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

CANDIDATES = (1, 2, 4, 8, 16, 32, 64, 128)


def agreeing_shapes(
    compute: Callable[[Sequence[int]], Tensor], max_rows: int, candidates: Sequence[int] = CANDIDATES
) -> tuple[int, ...]:
    """The candidates up to max_rows, and max_rows, whose rows are equal, bit for bit, wherever in a batch they stand.

    compute(rows) returns the results of rows known by their numbers, in this order: [len(rows), ...], thousands of
    values a row, so that shapes which round differently do not agree by luck. The largest shape that the memory
    suffices for and whose rows do not depend on their places is always kept, as throughput rests on it; in the worst
    case it is the only one. Raises: torch.OutOfMemoryError where memory suffices for none.
    """
    smaller = [rows for rows in candidates if rows < max_rows]
    try:
        reference = _wherever_they_stand(compute, max_rows)
    except torch.OutOfMemoryError:
        if not smaller:
            raise
        reference = None
    if reference is None:  # here, where the exception and all that it held are gone
        return agreeing_shapes(compute, smaller[-1] if smaller else 1, candidates)
    # one place on, as places must not matter between shapes either
    agree = (rows for rows in smaller if torch.equal(compute(range(1, rows + 1)), reference[1 : rows + 1]))
    return (*agree, max_rows)


def _wherever_they_stand(compute: Callable[[Sequence[int]], Tensor], count: int) -> Tensor | None:
    """The results of the first rows; None where they are others one place on, two times out of two.

    Two, because one start in some thirty found a place to matter that never did again, and a worker whose steps are
    small for it would be slow for as long as it lives.
    """
    for _ in range(2):
        reference = compute(range(count))
        if count == 1 or torch.equal(compute([*range(1, count), 0]), reference.roll(-1, 0)):
            return reference
    return None


def in_parts(compute: Callable[..., Tensor], shapes: Sequence[int], *inputs: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """The results of all rows, computed in parts of at most the largest shape, and the shapes that memory sufficed for.

    Each part is padded to one of the ascending shapes, which agree. inputs are tensors of as many rows.
    Raises: torch.OutOfMemoryError where even the smallest shape takes too much.
    """
    left = tuple(shapes)
    while True:
        try:
            return _by_parts(compute, left, inputs), left
        except torch.OutOfMemoryError:
            tried = padded(min(len(inputs[0]), left[-1]), left)
            if tried == left[0]:
                raise
        left = left[: left.index(tried)]
        if inputs[0].is_cuda:
            torch.cuda.empty_cache()


def _by_parts(compute: Callable[..., Tensor], shapes: Sequence[int], inputs: Sequence[Tensor]) -> Tensor:
    computed = []
    for part in zip(*(each.split(shapes[-1]) for each in inputs), strict=True):
        rows = len(part[0])
        count = padded(rows, shapes)
        computed.append(compute(*(pad_rows(each, count) for each in part))[:rows])
    return computed[0] if len(computed) == 1 else torch.cat(computed)


def padded(rows: int, shapes: Sequence[int]) -> int:
    """The smallest of the ascending shapes that holds this many rows."""
    return next(shape for shape in shapes if shape >= rows)


def pad_rows(x: Tensor, rows: int) -> Tensor:
    """Repeat the first row until there are `rows`: finite values, whose results are dropped."""
    return x if len(x) == rows else torch.cat([x, x[:1].expand(rows - len(x), *x.shape[1:])])
