"""Training computes on all threads, in these tests as in a program of its own."""

from collections.abc import Iterator

import pytest

from engine.threads import torch_threads, usable_threads


@pytest.fixture(autouse=True, scope="module")
def all_threads() -> Iterator[None]:
    """Undo the limit of one thread that tests of the worker may have set in this process."""
    with torch_threads(usable_threads()):
        yield
