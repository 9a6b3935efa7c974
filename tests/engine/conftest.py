"""Stages of a tiny stack with seeded weights, as a worker builds them."""

from pathlib import Path

import pytest

from engine.pipeline import BASE, UPSAMPLE, Pipeline, build_stages
from engine.stage import Stage
from models.stack import load_stack
from tests.engine.bench import MAX_ROWS, Bench
from tests.models.samples import write_stack
from vocabulary.precisions import Precision


@pytest.fixture(scope="session")
def stack_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stack(tmp_path_factory.mktemp("weights") / "tiny")


@pytest.fixture(scope="session")
def bench(stack_folder: Path) -> Bench:
    """Shared by all tests: stages and pipelines keep nothing of what passed through them."""
    return make_bench(stack_folder)


@pytest.fixture
def own_bench(stack_folder: Path) -> Bench:
    """A bench whose networks the test may damage, on one thread: a batch is one part."""
    return make_bench(stack_folder, threads=1)


def make_bench(folder: Path, precision: Precision = "fp32", threads: int = 2) -> Bench:
    stack = load_stack(folder)
    stages: dict[str, Stage] = build_stages([stack], MAX_ROWS, precision=precision, threads=threads)
    assert set(stages) == {f"tiny/{BASE}", f"tiny/{UPSAMPLE}"}
    return Bench(Pipeline(stack.pipelines["tiny"], stack), Pipeline(stack.pipelines["tiny-uncond"], stack), stages)
