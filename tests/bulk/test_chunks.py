"""The laws of a plan: which image is made where."""

import tracemalloc
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from bulk.chunks import IMAGES_PER_CHUNK, ChunkPlan
from bulk.classes import Classes, in_turn, parse_classes
from tests.jobs.samples import SHAPES

LABELS = st.none() | st.integers(0, 3)
LISTS = st.lists(LABELS, min_size=1, max_size=150)


def listed(labels: list[int | None]) -> Classes:
    return Classes(labels.__getitem__, "listed", len(labels))


def address(plan: ChunkPlan) -> dict[int, tuple[int | None, int, int]]:
    """Class, seed and row of each image, which determine its pixels."""
    return {
        index: (chunk.class_label, chunk.seed, row)
        for chunk in plan.chunks()
        for row, index in enumerate(chunk.indices)
    }


@given(LISTS)
def test_every_image_is_planned_once_in_a_chunk_of_its_class(labels: list[int | None]) -> None:
    chunks = list(ChunkPlan(0, len(labels), listed(labels)).chunks())
    assert Counter(index for chunk in chunks for index in chunk.indices) == Counter(range(len(labels)))
    assert all(labels[index] == chunk.class_label for chunk in chunks for index in chunk.indices)
    assert all(0 < len(chunk.indices) <= IMAGES_PER_CHUNK for chunk in chunks)
    assert len({chunk.name for chunk in chunks}) == len({chunk.seed for chunk in chunks}) == len(chunks)


@given(LISTS)
def test_only_the_last_chunk_of_a_class_is_not_full(labels: list[int | None]) -> None:
    chunks = list(ChunkPlan(0, len(labels), listed(labels)).chunks())
    partial = [chunk.class_label for chunk in chunks if len(chunk.indices) < IMAGES_PER_CHUNK]
    assert len(set(partial)) == len(partial)


@given(LISTS)
def test_addresses_name_the_chunk_and_row_of_each_image(labels: list[int | None]) -> None:
    plan = ChunkPlan(0, len(labels), listed(labels))
    made = {index: (chunk.name, row) for chunk in plan.chunks() for row, index in enumerate(chunk.indices)}
    addresses = list(plan.addresses())
    assert [each.class_label for each in addresses] == labels
    assert [(each.chunk, each.row) for each in addresses] == [made[index] for index in range(len(labels))]


@given(LISTS, st.data())
def test_image_is_the_same_however_many_there_are(labels: list[int | None], data: st.DataObject) -> None:
    fewer = data.draw(st.integers(0, len(labels)))
    whole, part = address(ChunkPlan(5, len(labels), listed(labels))), address(ChunkPlan(5, fewer, listed(labels)))
    assert part == {index: whole[index] for index in range(fewer)}


@given(LISTS)
def test_images_of_a_class_are_the_same_whatever_the_other_classes(labels: list[int | None]) -> None:
    mixed = address(ChunkPlan(5, len(labels), listed(labels)))
    alone = address(ChunkPlan(5, labels.count(0), in_turn([0], "0")))
    of_class = [mixed[index] for index, label in enumerate(labels) if label == 0]
    assert of_class == [alone[index] for index in range(len(of_class))]


def test_another_seed_gives_other_noise_to_every_chunk() -> None:
    one, other = (
        {chunk.seed for chunk in ChunkPlan(seed, 500, parse_classes("balanced", SHAPES, seed)).chunks()}
        for seed in (0, 1)
    )
    assert not one & other


def test_addresses_are_those_that_were_published() -> None:
    # Pinned: a later version must resume an earlier run, and make a paper's images again.
    plan = ChunkPlan(0, 50, parse_classes("uniform", SHAPES, 0))
    assert [plan.classes.label(index) for index in range(10)] == [6, 7, 4, 4, 6, 3, 0, 3, 1, 2]
    assert next(iter(ChunkPlan(0, 16, in_turn([3], "3")).chunks())).seed == 1421258248336945


def test_planning_begins_at_once_however_many_images() -> None:
    chunks = ChunkPlan(0, 10**15, parse_classes("uniform", SHAPES, 0)).chunks()
    assert len(next(chunks).indices) == IMAGES_PER_CHUNK


def test_memory_of_a_plan_does_not_grow_with_the_number_of_images() -> None:
    def peak(count: int) -> int:
        plan = ChunkPlan(0, count, parse_classes("balanced", SHAPES, 0))
        tracemalloc.start()
        for _ in zip(plan.chunks(), plan.addresses(), strict=False):
            pass
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(10)
    assert peak(20_000) < peak(500) + 5_000  # the indices alone are 160,000 bytes
