"""Computes a step's rows in parts of a few fixed sizes, on a CPU one part per thread.

A thread computes its part alone. If threads shared an operation, they would divide it by the number of rows, and the
place of the division changes how results round (docs/decisions/0014).
"""

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor

from engine.row_shapes import pad_rows, padded
from vocabulary.counts import counted

T = TypeVar("T")

LAUNCHING_ROWS = 2  # rows of a small network whose computation takes a CPU as long as launching the operations


class Lanes:
    """A fixed number of threads, including the caller's."""

    def __init__(self, count: int = 1) -> None:
        self.count = count
        # each new thread calls get_num_threads, which applies torch's setting there; OpenMP would use all cores
        self._others = ThreadPoolExecutor(count - 1, "lane", torch.get_num_threads) if count > 1 else None

    def run(self, tasks: Sequence[Callable[[], T]]) -> list[T]:
        """Run tasks at the same time, started in order; return their results in order.

        Raises: the exception of the first task that failed, after all have ended.
        """
        futures: list[Future[T]] = [Future() for _ in tasks]
        waiting = deque(zip(tasks, futures, strict=True))

        def work() -> None:
            while waiting:
                try:
                    task, future = waiting.popleft()
                except IndexError:  # another lane was faster
                    return
                try:
                    future.set_result(task())
                except BaseException as error:  # noqa: BLE001 - raised when the result is read
                    future.set_exception(error)

        if self._others is not None:
            for _ in range(min(self.count, len(tasks)) - 1):
                self._others.submit(work)
        work()
        wait(futures)
        return [each.result() for each in futures]


@dataclass(frozen=True)
class Rows:
    """Rows for one network. `compute` gets `inputs`, [rows, ...] each, in parts that are padded to one of `shapes`.

    shapes: row counts, ascending.
    """

    compute: Callable[..., Tensor]
    shapes: tuple[int, ...]
    inputs: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.inputs[0])


def compute_rows(lanes: Lanes, asked: Sequence[Rows]) -> list[tuple[Tensor, tuple[int, ...]]]:
    """The results of all rows, and the shapes for which memory sufficed, for each network.

    Raises: torch.OutOfMemoryError if memory does not suffice for the smallest shape.
    """
    done: list[tuple[Tensor, tuple[int, ...]] | None] = [None] * len(asked)
    left = list(asked)
    while missing := [index for index, each in enumerate(done) if each is None]:
        plans = divide(tuple((len(left[i]), left[i].shapes) for i in missing), lanes.count)
        parts = [(i, part) for i, sizes in zip(missing, plans, strict=True) for part in _parts(left[i], sizes)]
        results = lanes.run([part for _, part in parts])
        for index, sizes in zip(missing, plans, strict=True):
            computed = [result for (i, _), result in zip(parts, results, strict=True) if i == index]
            whole = [each for each in computed if each is not None]
            if len(whole) == len(computed):
                done[index] = whole[0] if len(whole) == 1 else torch.cat(whole), left[index].shapes
            else:
                left[index] = _smaller(left[index], sizes[0])
    return [each for each in done if each is not None]


def _parts(rows: Rows, sizes: Sequence[int]) -> list[Callable[[], Tensor | None]]:
    """Tasks that compute one part each and return None if memory ran out."""

    def part(inputs: tuple[Tensor, ...]) -> Tensor | None:
        count, shape = len(inputs[0]), padded(len(inputs[0]), rows.shapes)
        try:
            return rows.compute(*(pad_rows(each, shape) for each in inputs))[:count]
        except torch.OutOfMemoryError:
            return None  # the exception ends here, so that the memory of its frames is released

    divided = zip(*(each.split(list(sizes)) for each in rows.inputs), strict=True)
    return [lambda inputs=inputs: part(inputs) for inputs in divided]  # type: ignore[misc]  # mypy has no type for it


def _smaller(rows: Rows, size: int) -> Rows:
    """The same rows, without the shape of this size, for which memory did not suffice, and without larger ones."""
    tried = padded(size, rows.shapes)
    if rows.inputs[0].is_cuda:
        torch.cuda.empty_cache()
    if tried == rows.shapes[0]:
        raise torch.OutOfMemoryError(f"memory does not suffice for {counted(tried, 'row')}")
    return replace(rows, shapes=rows.shapes[: rows.shapes.index(tried)])


@lru_cache(1024)
def divide(asked: tuple[tuple[int, tuple[int, ...]], ...], lanes: int) -> list[list[int]]:
    """Divide each network's rows, given with their shapes, so that all lanes end as early as possible.

    All parts except the last are as large as the shape they are padded to. If several divisions end at the same time,
    the one with the fewest parts is chosen.
    """
    options = []
    for rows, shapes in asked:
        ways = (tuple(_sizes(rows, parts, shapes)) for parts in range(1, lanes + 1))
        options.append(list(dict.fromkeys(ways)))  # different numbers of parts may give the same division

    def cost(plan: Iterable[Sequence[int]]) -> tuple[int, int]:
        costs = [
            padded(size, shapes) + LAUNCHING_ROWS
            for sizes, (_, shapes) in zip(plan, asked, strict=True)
            for size in sizes
        ]
        ends = [0] * lanes
        for each in costs:  # as in `run`, the first free lane takes the next part
            heapq.heapreplace(ends, ends[0] + each)
        return max(ends), len(costs)

    return [list(sizes) for sizes in min(itertools.product(*options), key=cost)]


def _sizes(rows: int, parts: int, shapes: tuple[int, ...]) -> list[int]:
    size = padded(min(-(-rows // parts), shapes[-1]), shapes)
    return [size] * (rows // size) + [rows % size] * (rows % size > 0)
