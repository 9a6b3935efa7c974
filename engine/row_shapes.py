"""Row counts for padding: which ones are tried, and which of them agree bit for bit.

Kernels are chosen by shape and round differently, which flips pixels. docs/decisions/0014 explains why the candidates
agree; `agreeing_shapes` compares them nevertheless, and keeps only those whose rows are equal bit for bit. A shape for
which the device's memory does not suffice is not used. `engine.shape_choice` applies this to the networks of a stage.
"""

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

POWERS = (1, 2, 4, 8, 16, 32, 64, 128)
FEW = (1, 8)  # row counts beside the largest for which a network is compiled; each takes up to a minute
HALF_ROWS = 8  # the only row count of generated convolutions and norms in half precision: rounding hides differences


def candidates_for(device: torch.device, max_rows: int, *, evenly: bool) -> tuple[int, ...]:
    """Row counts to try on a device, ascending; the last is max_rows or more.

    evenly: only even ones, for a CPU whose norms are torch's. Torch loses the memory layout of a batch of one image,
    and operations on different layouts compute value by value, which rounds differently from vectors. The remainder of
    a tensor after its last full vector is also computed value by value; an even number of rows leaves no remainder.
    """
    if device.type != "cpu" or not evenly:
        return (*(rows for rows in POWERS if rows < max_rows), max_rows)
    largest = max_rows + max_rows % 2
    return (*(rows for rows in POWERS if 1 < rows < largest), largest)


def compiled_candidates(
    candidates: Sequence[int], few: Collection[int], agreed: Collection[int] | None, *, generated_in_half: bool
) -> Sequence[int]:
    """The row counts to compile a network for: its largest candidate, and of `few` those that agreed before.

    agreed: the row counts that agreed in an earlier start, None before the first. generated_in_half: whether
    convolutions and norms are generated for each row count in half precision. The code generated for two row counts may
    sum in different orders. In float32 a comparison shows whether it does. In half precision it may not (120 of 2,006
    images differed although 2 and 8 rows seemed to agree), so there is only one row count.
    """
    *_, largest = candidates
    if generated_in_half:
        return (min(HALF_ROWS, largest),)
    tried = sorted({max(rows, candidates[0]) for rows in few})  # a single row may be no candidate
    return (*(rows for rows in tried if rows < largest and (agreed is None or rows in agreed)), largest)


def agreeing_shapes(
    compute: Callable[[Sequence[int]], Tensor], candidates: Sequence[int], windows: int
) -> tuple[int, ...]:
    """The ascending candidates whose rows are equal bit for bit at every place in a batch.

    compute(rows) returns the results of the rows with these numbers, in this order: [len(rows), ...], with thousands of
    values per row, so that shapes that round differently do not agree by chance. The largest shape that fits in memory
    and whose rows do not depend on their places is always kept, because throughput depends on it; in the worst case it
    is a single row, which has no neighbours. Each other shape is compared with it on at most `windows` windows of as
    many rows as the shape has. Raises: torch.OutOfMemoryError if memory suffices for no shape.
    """
    *smaller, largest = candidates
    try:
        reference = _place_independent(compute, largest)
    except torch.OutOfMemoryError:
        if not smaller:
            raise
        reference = None
    if reference is None:  # outside the handler, so that the exception and its memory are released
        return agreeing_shapes(compute, smaller or (1,), windows)
    return (*(rows for rows in smaller if _agrees(compute, rows, reference, windows)), largest)


def _agrees(compute: Callable[[Sequence[int]], Tensor], rows: int, reference: Tensor, windows: int) -> bool:
    """Return whether consecutive windows of this many rows, the first from row 1, have the reference's results."""
    starts = range(1, len(reference) - rows + 1, rows)[:windows]
    return all(torch.equal(compute(range(at, at + rows)), reference[at : at + rows]) for at in starts)


def _place_independent(compute: Callable[[Sequence[int]], Tensor], count: int) -> Tensor | None:
    """The results of the first `count` rows; None if they change when all rows are shifted by one place."""
    reference = compute(range(count))
    moved = count == 1 or torch.equal(compute([*range(1, count), 0]), reference.roll(-1, 0))
    return reference if moved else None


def padded(rows: int, shapes: Sequence[int]) -> int:
    """The smallest of the ascending shapes that has room for this many rows."""
    return next(shape for shape in shapes if shape >= rows)


def pad_rows(x: Tensor, rows: int) -> Tensor:
    """Pad to `rows` rows by repeating the first one, whose values are finite; results of padding are dropped."""
    return x if len(x) == rows else torch.cat([x, x[:1].expand(rows - len(x), *x.shape[1:])])
