"""Which row counts a part of a step may be padded to, so that no image can tell how many neighbours it had.

Kernels are chosen by shape and round differently, which flips pixels. docs/decisions/0014 says why the candidates
agree; here they are compared all the same, and only those are kept whose rows are equal bit for bit. A shape that the
device's memory does not suffice for is given up.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

POWERS = (1, 2, 4, 8, 16, 32, 64, 128)


def candidates_for(device: torch.device, max_rows: int, *, evenly: bool) -> tuple[int, ...]:
    """Row counts to try on a device, ascending; the last holds max_rows.

    evenly: even ones, where torch computes a CPU's norms. It forgets how a batch of one image lies in memory, and
    operations whose inputs lie differently compute value by value, which rounds otherwise than a vector at a time. So
    does the rest of a tensor that no vector fills; an even number of rows leaves none.
    """
    if device.type != "cpu" or not evenly:
        return (*(rows for rows in POWERS if rows < max_rows), max_rows)
    largest = max_rows + max_rows % 2
    return (*(rows for rows in POWERS if 1 < rows < largest), largest)


def agreeing_shapes(
    compute: Callable[[Sequence[int]], Tensor], candidates: Sequence[int], windows: int | None = None
) -> tuple[int, ...]:
    """Those of the ascending candidates whose rows are equal, bit for bit, wherever in a batch they stand.

    compute(rows) returns the results of rows known by their numbers, in this order: [len(rows), ...], thousands of
    values a row, so that shapes which round differently do not agree by luck. The largest shape that the memory
    suffices for and whose rows do not depend on their places is always kept, as throughput rests on it; in the worst
    case it is a single row, which has no neighbours. A shape is compared on all rows of the largest, so many at a time;
    windows limits how many times. Raises: torch.OutOfMemoryError where memory suffices for none.
    """
    *smaller, largest = candidates
    try:
        reference = _wherever_they_stand(compute, largest)
    except torch.OutOfMemoryError:
        if not smaller:
            raise
        reference = None
    if reference is None:  # here, where the exception and all that it held are gone
        return agreeing_shapes(compute, smaller or (1,), windows)
    return (*(rows for rows in smaller if _agrees(compute, rows, reference, windows)), largest)


def _agrees(compute: Callable[[Sequence[int]], Tensor], rows: int, reference: Tensor, windows: int | None) -> bool:
    """Whether rows come out as in the reference, so many at a time; one place on, as places must not matter."""
    starts = range(1, len(reference) - rows + 1, rows)[:windows]
    return all(torch.equal(compute(range(at, at + rows)), reference[at : at + rows]) for at in starts)


def _wherever_they_stand(compute: Callable[[Sequence[int]], Tensor], count: int) -> Tensor | None:
    """The results of the first rows; None where they are others one place on."""
    reference = compute(range(count))
    moved = count == 1 or torch.equal(compute([*range(1, count), 0]), reference.roll(-1, 0))
    return reference if moved else None


def padded(rows: int, shapes: Sequence[int]) -> int:
    """The smallest of the ascending shapes that holds this many rows."""
    return next(shape for shape in shapes if shape >= rows)


def pad_rows(x: Tensor, rows: int) -> Tensor:
    """Repeat the first row until there are `rows`: finite values, whose results are dropped."""
    return x if len(x) == rows else torch.cat([x, x[:1].expand(rows - len(x), *x.shape[1:])])
